//! One run: what is due, or what was named.

mod acts;
mod backup;
mod copy;
mod recall;

use std::ffi::OsString;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::{Hooks, IoClass, Job, Limits, RepositoryPlace};
use super::due::{self, Due};
use super::guests::{Guests, Subject};
use super::journal::{Journal, Memory};
use super::telling::{self, Ended, Occasion, Pings};
use super::words::nearest;
use super::{Host, known, programs};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::sys::kernel;
use crate::flows::notify::journald;
use crate::flows::report::{Act, ActResult, End, Failure, Record, RunReport};
use crate::vault::repository::Repository;

/// How long a hook may take if the file does not say.
const HOOK_MAX: Duration = Duration::from_secs(3600);

/// The longest variable that a hook is given, in bytes.
const VARIABLE_MAX: usize = 32 << 10;

/// The best level of the class in which an idle neighbour's I/O is.
const IO_LEVEL_LAST: u8 = 7;

/// Does what is due, or what was named, job by job. `told` hears of each record when it is made.
///
/// # Errors
/// A job is called otherwise; another run is at work; libvirt's folders or the history can't be read, or
/// the history can't be written. What fails in a job is a record and no error.
pub fn run(
    host: &Host<'_>,
    names: &[String],
    observer: &dyn Observer,
    cancel: &Cancel,
    told: &(dyn Fn(&Record) + Sync),
) -> Result<RunReport> {
    let (started, now) = (Instant::now(), clock::now()?);
    check_names(host, names)?;
    let journal = Journal::new(host.state);
    let _turn = match journal.turn() {
        Ok(turn) => turn,
        Err(error) if error.kind() == ErrorKind::Busy => {
            note_refusal(host, &journal, now, &error);
            return Err(error);
        }
        Err(error) => {
            let failure = Some(Failure::from(&error));
            let cancel = Some(cancel);
            let _ = telling::tell(host, Occasion { failure, cancel, ..Occasion::at(now) });
            return Err(error);
        }
    };
    let around = Around { observer, cancel, told };
    let (error, is_told) = match in_turn(host, names, around, &journal, (now, started)) {
        Ok((report, None)) => return Ok(report),
        Ok((_, Some(error))) => (error, true),
        Err(error) => (error, false),
    };
    // Whoever started the run may not look at what it says.
    let _ = journal.add(&record(now, None, Act::Run, End::Failed, error.chain()));
    if !is_told {
        let failure = Some(Failure::from(&error));
        let cancel = Some(cancel);
        let _ = telling::tell(host, Occasion { failure, cancel, ..Occasion::at(now) });
    }
    Err(error)
}

/// Who hears of a run, and who may stop it.
#[derive(Clone, Copy)]
struct Around<'a> {
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    told: &'a (dyn Fn(&Record) + Sync),
}

/// Does what is due, when no other run is at work. That something could not be noted is told already.
fn in_turn(
    host: &Host<'_>,
    names: &[String],
    around: Around<'_>,
    journal: &Journal,
    (now, started): (Timestamp, Instant),
) -> Result<(RunReport, Option<Error>)> {
    journal.rotate(None)?;
    let guests = Guests::read(&host.config.libvirt.libvirt())?;
    let (history, notes) = recall::read((host, journal), &guests, now)?;
    let memory = Memory::new(&history, now);
    let due = match names.is_empty() {
        true => due::due(host.config, &memory, now)?,
        false => due::named(host.config, &memory, names, now)?,
    };
    let run = Run {
        host,
        observer: around.observer,
        cancel: around.cancel,
        told: around.told,
        journal,
        memory: &memory,
        guests: &guests,
        now,
        records: Mutex::default(),
        unwritten: Mutex::default(),
        is_unheard: AtomicBool::default(),
    };
    notes.into_iter().for_each(|note| run.keep(note));
    run.note_new(&due);
    run.note_cut();
    let mut end = End::Done;
    if !due.jobs.is_empty() {
        stand_back(&host.config.limits);
        let jobs: Vec<&str> = due.jobs.iter().map(|(name, _)| *name).collect();
        let pings = telling::begin(host.config, now, &jobs);
        end = run.all(&due);
        run.tell(Some(pings));
    } else {
        run.tell(None);
    }
    let records = run.records.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unwritten = run.unwritten.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = RunReport {
        run: now,
        end,
        alarm: records.iter().any(is_alarm),
        next: due::next_time(host.config, clock::now()?)?,
        records,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((report, unwritten))
}

/// Whether a record says that a guest may still be frozen.
fn is_alarm(record: &Record) -> bool {
    // A backup that was made warns of a guest that it has thawed first.
    record.end == End::Failed && record.warnings.iter().any(|it| it.code == Code::Frozen)
}

/// Fails if a job is called otherwise.
fn check_names(host: &Host<'_>, names: &[String]) -> Result<()> {
    let known = || host.config.jobs.keys().map(String::as_str);
    let Some(name) = names.iter().find(|name| !host.config.jobs.contains_key(*name)) else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, format!("no job is called {name:?}")).advise(
        match nearest(name, known()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", known().collect::<Vec<_>>().join(", ")),
        },
    ))
}

/// Notes that a run could not have its turn.
fn note_refusal(host: &Host<'_>, journal: &Journal, now: Timestamp, error: &Error) {
    let mut record = record(now, None, Act::Run, End::Refused, error.chain());
    record.subject = Some("another run".to_owned());
    // Who is refused says so by the status, too.
    let _ = journal.add(&record);
    if let Some(socket) = host.journald.filter(|_| host.config.journal) {
        journald::record(socket, &record);
    }
    // A run that hangs must not keep anybody from hearing of it.
    let _ = telling::tell(host, Occasion::at(now));
}

/// Lets other programs of this host go first.
fn stand_back(limits: &Limits) {
    // What the system refuses costs nobody a backup.
    let _ = rustix::process::nice(limits.nice.into());
    match limits.io_class {
        IoClass::None => {}
        IoClass::BestEffort => kernel::set_io_class(2, IO_LEVEL_LAST),
        IoClass::Idle => kernel::set_io_class(3, 0),
    }
}

/// What becomes of work whose hook `before` did not work: what somebody stopped is due again.
fn left_by(error: &Error) -> End {
    match error.kind() {
        ErrorKind::Interrupted => End::Interrupted,
        _ => End::NotTried,
    }
}

/// A record that begins and ends now.
fn record(
    run: Timestamp,
    job: Option<&str>,
    act: Act,
    end: End,
    text: impl Into<String>,
) -> Record {
    Record {
        run,
        job: job.map(str::to_owned),
        act,
        subject: None,
        began: clock::now().unwrap_or(run),
        seconds: 0.0,
        end,
        text: text.into(),
        advice: None,
        warnings: Vec::new(),
        result: None,
    }
}

/// One run.
struct Run<'a> {
    host: &'a Host<'a>,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    told: &'a (dyn Fn(&Record) + Sync),
    journal: &'a Journal,
    memory: &'a Memory<'a>,
    guests: &'a Guests,
    now: Timestamp,
    records: Mutex<Vec<Record>>,
    /// The first record that could not be written into the history.
    unwritten: Mutex<Option<Error>>,
    /// The system's journal does not listen.
    is_unheard: AtomicBool,
}

/// A job in a run.
struct Work<'a> {
    run: &'a Run<'a>,
    name: &'a str,
    job: &'a Job,
    subjects: Vec<Subject>,
}

/// What an act came to.
struct Came {
    end: End,
    text: String,
    advice: Option<String>,
    warnings: Vec<Warning>,
    result: Option<ActResult>,
}

impl Came {
    fn to(end: End, text: impl Into<String>) -> Self {
        Self { end, text: text.into(), advice: None, warnings: Vec::new(), result: None }
    }

    fn failed(error: &Error) -> Self {
        let end = match error.kind() {
            ErrorKind::Interrupted => End::Interrupted,
            _ => End::Failed,
        };
        let mut came = Self::to(end, error.chain());
        came.advice = error.advice().map(str::to_owned);
        if error.kind() == ErrorKind::Alarm {
            came.warnings.push(Warning::failed(Code::Frozen, error));
        }
        came
    }
}

impl<'a> Run<'a> {
    /// Keeps a record, and tells of it.
    fn keep(&self, record: Record) {
        if let Err(error) = self.journal.add(&record) {
            let advice = "the work was done as far as it was shown; make room for the state";
            let error = error.advise(advice);
            self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        if let Some(socket) = self.host.journald.filter(|_| self.host.config.journal)
            && !self.is_unheard.load(Ordering::Relaxed)
            && !journald::record(socket, &record)
        {
            // It is not waited for again.
            self.is_unheard.store(true, Ordering::Relaxed);
        }
        (self.told)(&record);
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    /// Opens a repository, which the run then reads and writes no faster than the file allows.
    fn open(&self, place: &RepositoryPlace) -> Result<Repository> {
        let repository = (self.host.open)(place)?;
        Ok(match self.host.config.limits.rate {
            Some(rate) => repository.limited(rate, self.cancel),
            None => repository,
        })
    }

    /// Whether something that was done could not be noted: nothing more is begun then.
    fn is_unnoted(&self) -> bool {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Does a piece of work and keeps the record of it. Gives how it ended.
    fn doing(
        &self,
        job: Option<&str>,
        act: Act,
        subject: Option<&str>,
        work: impl FnOnce() -> Came,
    ) -> End {
        let (began, started) = (clock::now().unwrap_or(self.now), Instant::now());
        let came = work();
        let end = came.end;
        self.keep(Record {
            subject: subject.map(str::to_owned),
            began,
            seconds: started.elapsed().as_secs_f64(),
            advice: came.advice,
            warnings: came.warnings,
            result: came.result,
            ..record(self.now, job, act, came.end, came.text)
        });
        end
    }

    /// Tells people what is new. That somebody can't be told is a record, and harms nothing.
    fn tell(&self, pings: Option<Pings>) {
        let records: Vec<Record> =
            self.records.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = pings.is_some().then_some(Ended { run: self.now, records: &records });
        let came =
            pings.zip(ended).map(|(pings, ended)| pings.end(self.host.config, &ended, self.cancel));
        let now = clock::now().unwrap_or(self.now);
        let cut = records.iter().find(|record| record.end == End::Cut);
        let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failure = unwritten.as_ref().map(Failure::from);
        let pings = came.unwrap_or_default();
        let cancel = Some(self.cancel);
        let occasion = Occasion { ended, pings, failure, cut, cancel, ..Occasion::at(now) };
        let is_of_run = occasion.is_of_run();
        let report = match telling::tell(self.host, occasion) {
            Ok(report) => report,
            // Another process is telling what is new, and this one has nothing of its own.
            Err(error) if error.kind() == ErrorKind::Busy && !is_of_run => return,
            Err(error) => {
                self.doing(None, Act::Notify, None, || Came::failed(&error));
                return;
            }
        };
        for it in report.notifiers {
            self.doing(None, Act::Notify, Some(&it.notifier), || match it.error {
                Some(failure) => {
                    Came { advice: failure.advice, ..Came::to(End::Failed, failure.text) }
                }
                None => Came::to(End::Done, it.told.unwrap_or(it.to)),
            });
        }
    }

    /// Notes schedules that were never seen before.
    fn note_new(&self, due: &Due<'_>) {
        for (job, act) in &due.new {
            let text = "its schedule counts from now on";
            self.keep(record(self.now, Some(job), *act, End::Seen, text));
        }
    }

    /// Notes that the run before never said how it ended.
    fn note_cut(&self) {
        let Some(before) = self.memory.unended() else { return };
        let text = format!(
            "the run that began at {} never ended: it was killed, the power was cut, or it could not note its end",
            before.began.strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        let mut cut = record(self.now, None, Act::Run, End::Cut, text);
        cut.advice = Some("what it left undone is done when it is due".to_owned());
        self.keep(cut);
    }

    /// Goes through the jobs, within the hooks of the run.
    fn all(&self, due: &Due<'a>) -> End {
        let names: Vec<&str> = due.jobs.iter().map(|(name, _)| *name).collect();
        self.keep(record(self.now, None, Act::Run, End::Begun, names.join(", ")));
        // A run that can't be noted would be due again at each tick of the timer, and prune each time.
        if self.is_unnoted() {
            return End::Failed;
        }
        let hooks = &self.host.config.hooks;
        let started = Instant::now();
        let ready = self.hook(None, "before", hooks.before.as_deref(), hooks, &[]);
        for (name, acts) in &due.jobs {
            let Some(job) = self.host.config.jobs.get(*name) else { continue };
            let work = Work { run: self, name, job, subjects: self.guests.of(job) };
            match &ready {
                Ok(()) => work.all(acts),
                Err(error) => work.leave(acts, left_by(error), &Came::failed(error)),
            }
        }
        let end = self.close(hooks);
        let text = self.summary();
        self.keep(Record {
            seconds: started.elapsed().as_secs_f64(),
            ..record(self.now, None, Act::Run, end, text)
        });
        end
    }

    /// Runs the hooks after all jobs. Gives how the run ended.
    fn close(&self, hooks: &Hooks) -> End {
        let troubles = self.troubles(None);
        let variables = self.variables(None, &troubles);
        let _ = match troubles.is_empty() {
            true => self.hook(None, "after", hooks.after.as_deref(), hooks, &variables),
            false => self.hook(None, "failed", hooks.failed.as_deref(), hooks, &variables),
        };
        let variables = self.variables(None, &self.troubles(None));
        let _ = self.hook(None, "finally", hooks.at_last.as_deref(), hooks, &variables);
        self.end_of(None)
    }

    /// Runs a hook, if there is one. One that fails is a record.
    fn hook(
        &self,
        job: Option<&str>,
        name: &str,
        line: Option<&str>,
        hooks: &Hooks,
        variables: &[(&str, String)],
    ) -> Result<()> {
        let Some(line) = line else { return Ok(()) };
        let limit = hooks.time_limit.map_or(HOOK_MAX, |limit| limit.0);
        let mut outcome = Ok(());
        self.doing(job, Act::Hook, Some(name), || {
            let mut all: Vec<(&str, OsString)> = vec![("QDELTA_HOOK", name.into())];
            all.extend(self.host.variables());
            all.extend(variables.iter().map(|(name, value)| (*name, value.into())));
            all.extend(job.map(|job| ("QDELTA_JOB", job.into())));
            outcome = programs::hook(line, &all, limit, self.cancel)
                .map_err(|error| error.within(format!("hook {name}")));
            match &outcome {
                Ok(()) => Came::to(End::Done, line),
                Err(error) => Came::failed(error),
            }
        });
        outcome
    }

    /// The records of a job, or of all, that tell of trouble: acts by their subjects where these have
    /// failed.
    fn troubles(&self, job: Option<&str>) -> Vec<String> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = records.iter().filter(|it| job.is_none() || it.job.as_deref() == job);
        let trouble = of_job.filter(|it| it.is_failure() || it.end == End::Gone);
        let trouble = trouble.filter(|it| it.act != Act::Run);
        let named = trouble.filter_map(|record| {
            let act = record.job.as_ref().map(|job| format!("{job} {}", record.act));
            record.subject.clone().or(act)
        });
        let mut all: Vec<String> = Vec::new();
        for name in named {
            if !all.contains(&name) {
                all.push(name);
            }
        }
        all
    }

    /// What hooks are told.
    fn variables(&self, job: Option<&str>, troubles: &[String]) -> Vec<(&'static str, String)> {
        // What is longer than the system allows would keep the hook from being started at all.
        let mut failed = String::new();
        for name in troubles {
            if failed.len() + name.len() > VARIABLE_MAX {
                failed += "\n...";
                break;
            }
            failed += if failed.is_empty() { "" } else { "\n" };
            failed += name;
        }
        vec![("QDELTA_END", self.end_of(job).to_string().to_lowercase()), ("QDELTA_FAILED", failed)]
    }

    /// How a job, or all of them, have ended as far as is known.
    fn end_of(&self, job: Option<&str>) -> End {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = records.iter().filter(|it| job.is_none() || it.job.as_deref() == job);
        let done: Vec<&Record> = of_job.filter(|it| it.act != Act::Run).collect();
        let has = |wanted: &[End]| done.iter().any(|it| wanted.contains(&it.end));
        match () {
            () if has(&[End::Interrupted]) => End::Interrupted,
            () if done.iter().any(|it| it.is_failure()) => End::Failed,
            () if has(&[End::Warned, End::Gone, End::NotTried]) => End::Warned,
            () => End::Done,
        }
    }

    /// What the run did, in a line.
    fn summary(&self) -> String {
        let troubles = self.troubles(None);
        match troubles.is_empty() {
            true => "all that was due was done".to_owned(),
            false => format!("not all right: {}", acts::some_of(&troubles)),
        }
    }
}

impl Work<'_> {
    /// Opens a repository of the file, and remembers which one it is.
    fn open(&self, name: &str, place: &RepositoryPlace) -> Result<Repository> {
        let repository = self.run.open(place)?;
        known::remember(self.run.host, name, repository.id());
        Ok(repository)
    }

    /// Does parts of the job, within its hooks.
    fn all(&self, acts: &[Act]) {
        let (run, hooks) = (self.run, &self.job.hooks);
        let job = Some(self.name);
        match run.hook(job, "before", hooks.before.as_deref(), hooks, &[]) {
            Ok(()) => self.acts(acts),
            Err(error) => self.leave(acts, left_by(&error), &Came::failed(&error)),
        }
        let troubles = run.troubles(job);
        let variables = run.variables(job, &troubles);
        let _ = match troubles.is_empty() {
            true => run.hook(job, "after", hooks.after.as_deref(), hooks, &variables),
            false => run.hook(job, "failed", hooks.failed.as_deref(), hooks, &variables),
        };
        let variables = run.variables(job, &run.troubles(job));
        let _ = run.hook(job, "finally", hooks.at_last.as_deref(), hooks, &variables);
    }

    /// Notes parts of the job that are not done, and why.
    fn leave(&self, acts: &[Act], end: End, why: &Came) {
        for act in acts {
            self.run.doing(Some(self.name), *act, None, || Came {
                advice: why.advice.clone(),
                ..Came::to(end, why.text.clone())
            });
        }
    }
}
