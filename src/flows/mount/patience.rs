//! Work that may never end, done by threads that nobody waits for longer than a while: a repository on a
//! server that is gone can hold a read for ever, and whoever asked gets an answer all the same. At the end they are
//! waited for, though not for ever: a thread that goes on while the program ends may just be taking a lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that work when none is stuck.
const THREADS: usize = 8;
/// The most threads: as many pieces of work can be stuck. What comes then waits for its time to be over.
const THREADS_MAX: usize = 64;

/// Threads that work, and an answer after a while whatever becomes of the work.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    patience: Duration,
    state: Mutex<State>,
    /// There is work, or none will come any more.
    work: Condvar,
    /// No work will come any more, or a thread has ended since.
    over: Condvar,
}

#[derive(Default)]
struct State {
    /// What no thread has begun, and when it was asked for.
    queue: VecDeque<(Instant, Job)>,
    /// What threads are at, and when it was asked for.
    running: BTreeMap<u64, (Instant, Step)>,
    /// The number of the next piece of work.
    next: u64,
    threads: usize,
    /// Threads whose work was given up, and that are still at it.
    stuck: usize,
    is_over: bool,
}

type Step = Box<dyn FnOnce() + Send>;

struct Job {
    work: Step,
    /// Answers in the place of the work, unless that has answered.
    give_up: Step,
}

impl Workers {
    /// Threads that get so much time for each piece of work.
    pub fn new(patience: Duration) -> Self {
        let (state, work, over) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { patience, state, work, over });
        let watched = Arc::clone(&shared);
        // Without the thread nothing is ever given up; the rest works.
        let _ = thread::Builder::new().name("patience".into()).spawn(move || watched.watch());
        Self { shared }
    }

    /// Lets a thread `work`, and answers with what comes of it; with nothing if the time is over before.
    pub fn ask<R, T>(
        &self,
        reply: R,
        work: impl FnOnce() -> T + Send + 'static,
        answer: impl FnOnce(R, Option<T>) + Send + 'static,
    ) where
        R: Send + 'static,
        T: 'static,
    {
        let waiting = Arc::new(Mutex::new(Some((reply, answer))));
        let mine = Arc::clone(&waiting);
        let work: Step = Box::new(move || {
            let done = work();
            let waiting = locked(&mine).take();
            if let Some((reply, answer)) = waiting {
                answer(reply, Some(done));
            }
        });
        let give_up: Step = Box::new(move || {
            let waiting = locked(&waiting).take();
            if let Some((reply, answer)) = waiting {
                answer(reply, None);
            }
        });
        let mut state = locked(&self.shared.state);
        state.queue.push_back((Instant::now(), Job { work, give_up }));
        self.shared.hire(&mut state);
        self.shared.work.notify_one();
    }

    /// Does what was asked for, and waits for the threads to end, for so long at most; whether all have.
    pub fn end(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        self.shared.end();
        let mut state = locked(&self.shared.state);
        while state.threads > 0 {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            let waited = self.shared.over.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    fn end(&self) {
        locked(&self.state).is_over = true;
        self.work.notify_all();
        self.over.notify_all();
    }

    /// Starts a thread if work waits and all that are there may be busy.
    fn hire(self: &Arc<Self>, state: &mut State) {
        let wanted = (THREADS + state.stuck).min(THREADS_MAX);
        let idle = state.threads.saturating_sub(state.running.len() + state.stuck);
        if state.threads < wanted && state.queue.len() > idle {
            let shared = Arc::clone(self);
            let work = move || shared.work();
            if thread::Builder::new().name("mount".into()).spawn(work).is_ok() {
                state.threads += 1;
            }
        }
    }

    fn work(&self) {
        let mut state = locked(&self.state);
        loop {
            let is_done = state.is_over && state.queue.is_empty();
            if is_done || state.threads > THREADS + state.stuck {
                state.threads -= 1;
                self.over.notify_all();
                return;
            }
            let Some((since, job)) = state.queue.pop_front() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let number = state.next;
            state.next += 1;
            state.running.insert(number, (since, job.give_up));
            drop(state);
            (job.work)();
            state = locked(&self.state);
            if state.running.remove(&number).is_none() {
                state.stuck -= 1;
            }
        }
    }

    /// Gives up what takes too long.
    fn watch(self: Arc<Self>) {
        let mut state = locked(&self.state);
        while !state.is_over || state.threads > 0 {
            let now = Instant::now();
            let is_late = |since: Instant| now.saturating_duration_since(since) >= self.patience;
            let mut late: Vec<Step> = Vec::new();
            while state.queue.front().is_some_and(|(since, _)| is_late(*since)) {
                late.extend(state.queue.pop_front().map(|(_, job)| job.give_up));
            }
            let stuck = state.running.iter().filter(|(_, (since, _))| is_late(*since));
            for number in stuck.map(|(number, _)| *number).collect::<Vec<_>>() {
                late.extend(state.running.remove(&number).map(|(_, give_up)| give_up));
                state.stuck += 1;
            }
            self.hire(&mut state);
            if !late.is_empty() {
                drop(state);
                late.into_iter().for_each(|give_up| give_up());
                state = locked(&self.state);
                continue;
            }
            let tick = self.patience / 8;
            state = self.over.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A thread that was just taking a lock in a store was left to itself, and the lock stayed.
    #[test]
    fn the_end_waits_for_what_is_being_done_though_not_for_ever() {
        let workers = Workers::new(Duration::from_secs(60));
        let (answers, told) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let after = answers.clone();
        workers.ask(answers, move || gate.recv().is_ok(), |to, done| to.send(done).unwrap());
        assert!(!workers.end(Duration::from_millis(1)));
        workers.ask(after, || false, |to, done| to.send(done).unwrap());
        release.send(()).unwrap();
        assert!(workers.end(Duration::from_secs(60)));
        let mut done: Vec<_> = told.try_iter().collect();
        done.sort_unstable();
        assert_eq!(done, [Some(false), Some(true)]);
    }

    /// Work that never ends held up everything that was asked for after it.
    #[test]
    fn what_is_stuck_is_given_up_and_what_comes_later_is_done() {
        let workers = Workers::new(Duration::from_millis(200));
        let (answers, told) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for number in 0..THREADS {
            let gate = Arc::clone(&gate);
            let work = move || locked(&gate).recv().is_ok();
            workers.ask((answers.clone(), number), work, |(to, number), done| {
                to.send((number, done.is_some())).unwrap();
            });
        }
        let given_up: Vec<_> = (0..THREADS).map(|_| told.recv().unwrap()).collect();
        assert!(given_up.iter().all(|(_, was_done)| !was_done));
        workers.ask(
            (answers.clone(), 100),
            || (),
            |(to, number), done| {
                to.send((number, done.is_some())).unwrap();
            },
        );
        assert_eq!(told.recv().unwrap(), (100, true));
        assert_eq!(locked(&workers.shared.state).stuck, THREADS);
        drop(release);
        while locked(&workers.shared.state).stuck > 0 {
            thread::yield_now();
        }
        workers.ask(
            (answers, 101),
            || (),
            |(to, number), done| {
                to.send((number, done.is_some())).unwrap();
            },
        );
        assert_eq!(told.recv().unwrap(), (101, true));
        // Nobody is answered twice.
        assert!(told.try_recv().is_err());
    }
}
