//! What every flow's data path has in common: a reader, workers on all cores, and one consumer
//! that sees the results in order; every queue bounded; the first failure stops them all.
//!
//! ```text
//!            tasks (bounded)              results (bounded)
//! producer ────────────────► worker × N ───────────────────► consumer, in order
//!     ▲                                                          │
//!     └──────────────── tickets (their number is the window) ◄───┘
//! ```
//!
//! The producer runs on the calling thread and needs a ticket for everything that it emits; the
//! consumer gives the ticket back when it has dealt with it. So nobody runs ahead of the slowest
//! stage by more than the window, and what waits for its turn is bounded, too.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Backend, Direct};

/// Bytes of the disk that one task of a data path covers, at least. A task is never smaller than a
/// block, nor than a cluster of the image.
pub const TASK_SIZE_MIN: u64 = 1 << 20;

/// How many threads work, and through what they read and write.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    /// Worker threads; at least one.
    pub threads: usize,
    /// How to read.
    pub backend: Backend,
    /// Whether to go past the page cache.
    pub direct: Direct,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, NonZero::get),
            backend: Backend::Auto,
            direct: Direct::Auto,
        }
    }
}

/// More threads than this bring nothing, and each holds buffers.
const THREADS_MAX: usize = 64;

impl Resources {
    /// How many worker threads to start: at least one, at most 64.
    pub fn workers(&self) -> usize {
        self.threads.clamp(1, THREADS_MAX)
    }

    /// How many tasks may be under way at once: enough to keep a device and every worker busy.
    pub fn window(&self) -> usize {
        8 + 4 * self.workers()
    }
}

/// What goes to the consumer: the turn it has, and what it is.
type Turn<R> = Result<(u64, R)>;

/// The producer's end: tickets in, tasks for the workers and results that need no work out.
pub struct Producer<T, R> {
    tickets: Receiver<()>,
    tasks: Sender<(u64, T)>,
    results: Sender<Turn<R>>,
    next_turn: u64,
    /// How many turns there will have been, for the consumer to compare.
    turns: Arc<AtomicU64>,
}

/// The right to emit one thing, in the order in which tickets were taken.
pub struct Ticket(u64);

/// The consumer is gone: it has failed, and its error is the one to report.
#[derive(Debug)]
pub struct Stopped;

impl<T, R> Producer<T, R> {
    /// A ticket if one is free now.
    pub fn try_ticket(&mut self) -> Result<Option<Ticket>, Stopped> {
        match self.tickets.try_recv() {
            Ok(()) => Ok(Some(self.turn())),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Stopped),
        }
    }

    /// Waits for a ticket. Whoever still holds results back that others wait for must not call it.
    pub fn ticket(&mut self) -> Result<Ticket, Stopped> {
        self.tickets.recv().map_err(|_| Stopped)?;
        Ok(self.turn())
    }

    fn turn(&mut self) -> Ticket {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.store(self.next_turn, Ordering::Release);
        Ticket(turn)
    }

    /// Hands a task to the workers.
    pub fn work(&self, ticket: Ticket, task: T) -> Result<(), Stopped> {
        self.tasks.send((ticket.0, task)).map_err(|_| Stopped)
    }

    /// Hands a result to the consumer that no worker has anything to do with.
    pub fn pass(&self, ticket: Ticket, result: R) -> Result<(), Stopped> {
        self.results.send(Ok((ticket.0, result))).map_err(|_| Stopped)
    }
}

impl Ticket {
    /// The number of its turn, for a queue's token.
    pub fn turn(&self) -> u64 {
        self.0
    }

    /// The ticket of a turn whose number went through a queue as a token.
    pub fn of_turn(turn: u64) -> Self {
        Self(turn)
    }
}

/// Why a producer ended early: an error of its own, or the consumer's.
pub enum Halt {
    /// The consumer is gone; its error is the one to report.
    Stopped,
    /// The producer failed.
    Failed(Error),
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs a data path: `produce` here, `make_worker()` results on their threads, `consume` for each
/// result in order, and `finish` on the consumer's thread after the last of a run without failure.
///
/// # Errors
/// The first failure of any of them; a panic in one of them is a failure, too.
pub fn run<T, R, W, C, F>(
    resources: &Resources,
    produce: impl FnOnce(&mut Producer<T, R>) -> Result<(), Halt>,
    mut make_worker: impl FnMut() -> Result<W>,
    consume: C,
) -> Result<F>
where
    T: Send,
    R: Send,
    W: FnMut(T) -> Result<R> + Send,
    C: Consumer<R, Output = F> + Send,
    F: Send,
{
    let window = resources.window();
    let (ticket_sender, tickets) = bounded(window);
    for _ in 0..window {
        // The channel holds exactly this many, and both ends are here.
        let _ = ticket_sender.send(());
    }
    let (tasks, task_receiver) = bounded::<(u64, T)>(window);
    let (results, result_receiver) = bounded::<Turn<R>>(window);
    let workers = (0..resources.workers()).map(|_| make_worker()).collect::<Result<Vec<W>>>()?;

    std::thread::scope(|scope| {
        for mut worker in workers {
            let task_receiver = task_receiver.clone();
            let results = results.clone();
            scope.spawn(move || {
                for (turn, task) in task_receiver {
                    let result = guard(|| worker(task)).map(|result| (turn, result));
                    let failed = result.is_err();
                    if results.send(result).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(task_receiver);
        let turns = Arc::new(AtomicU64::new(0));
        let expected = Arc::clone(&turns);
        let consumer = scope.spawn(move || {
            // Both channels close when this thread ends, whatever the reason: that stops the rest.
            guard(move || take_in_order(&result_receiver, &ticket_sender, consume, &expected))
        });
        let mut producer = Producer { tickets, tasks, results, next_turn: 0, turns };
        let produced = guard(|| match produce(&mut producer) {
            Ok(()) | Err(Halt::Stopped) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
        });
        if let Err(error) = produced {
            // Nobody listens any more only if the consumer failed first.
            let _ = producer.results.send(Err(error));
        }
        drop(producer);
        consumer.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// Takes what the workers and the producer made, in order.
pub trait Consumer<R> {
    /// What it gives in the end.
    type Output;
    /// Deals with the next result.
    fn take(&mut self, result: R) -> Result<()>;
    /// Called once, after the last result of a run without failure.
    fn finish(self) -> Result<Self::Output>;
}

fn take_in_order<R, C: Consumer<R>>(
    results: &Receiver<Turn<R>>,
    tickets: &Sender<()>,
    mut consumer: C,
    expected: &AtomicU64,
) -> Result<C::Output> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for turn in results {
        let (turn, result) = turn?;
        early.insert(turn, result);
        while let Some(result) = early.remove(&next) {
            consumer.take(result)?;
            next += 1;
            // The producer may be done already.
            let _ = tickets.try_send(());
        }
    }
    // Every sender is gone, so the count is final. A result that got lost must not pass for the end.
    if next != expected.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::Io, "a worker ended without its result"));
    }
    consumer.finish()
}

/// Turns a panic into an error, so that the other threads end instead of waiting for ever.
///
/// # Errors
/// Those of `work`; it panicked.
pub fn guard<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Io, "internal error: a thread of the data path panicked")
        .advise("this is a bug in qdelta; nothing was committed")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect(Vec<u64>, Option<u64>);

    impl Consumer<u64> for Collect {
        type Output = Vec<u64>;
        fn take(&mut self, result: u64) -> Result<()> {
            if Some(result) == self.1 {
                return Err(Error::new(ErrorKind::NoSpace, "consumer"));
            }
            self.0.push(result);
            Ok(())
        }
        fn finish(self) -> Result<Vec<u64>> {
            Ok(self.0)
        }
    }

    fn resources() -> Resources {
        Resources { threads: 3, backend: Backend::Threads, ..Resources::default() }
    }

    fn run_with(
        count: u64,
        produce_fails_at: Option<u64>,
        worker: fn(u64) -> Result<u64>,
        consume_fails_at: Option<u64>,
    ) -> Result<Vec<u64>> {
        run(
            &resources(),
            |producer| {
                for number in 0..count {
                    if Some(number) == produce_fails_at {
                        return Err(Error::new(ErrorKind::Image, "producer").into());
                    }
                    let ticket = producer.ticket()?;
                    if number % 5 == 0 {
                        producer.pass(ticket, number)?;
                    } else {
                        producer.work(ticket, number)?;
                    }
                }
                Ok(())
            },
            || Ok(worker),
            Collect(Vec::new(), consume_fails_at),
        )
    }

    #[test]
    fn results_arrive_in_order() {
        let slow_on_odd = |number: u64| {
            if number % 2 == 1 {
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
            Ok(number)
        };
        let expected: Vec<u64> = (0..2000).collect();
        assert_eq!(run_with(2000, None, slow_on_odd, None).unwrap(), expected);
    }

    #[test]
    fn the_first_failure_ends_the_run_wherever_it_happens() {
        let kind = |result: Result<Vec<u64>>| result.unwrap_err().kind();
        assert_eq!(kind(run_with(500, Some(77), Ok, None)), ErrorKind::Image);
        assert_eq!(kind(run_with(500, None, Ok, Some(80))), ErrorKind::NoSpace);
        let fails = |number| {
            if number == 81 { Err(Error::new(ErrorKind::Damaged, "worker")) } else { Ok(number) }
        };
        assert_eq!(kind(run_with(500, None, fails, None)), ErrorKind::Damaged);
        let panics = |number| {
            assert_ne!(number, 81, "a planted panic");
            Ok(number)
        };
        let error = run_with(500, None, panics, None).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
