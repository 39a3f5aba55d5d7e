//! Whether everything is all right: how each guest, job and repository stands, and what is open.
//!
//! Every age is that of a success. What was never done is a finding, and silence is none. Every guest that libvirt has,
//! and every guest with points in a repository, ends as one of three: a job covers it, somebody is told of it, or the
//! file ignores it. Every promise of the file has a finding for when it is not kept.

mod copies;
mod guest;
mod kept;
mod proofs;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::config::{Config, Job, RepositoryPlace};
use super::guests::{ELSEWHERE, Guests};
use super::journal::{HISTORY, Journal, Memory, TORN_MAX};
use super::{Host, due, known, programs, telling};
use crate::base::calendar::Calendar;
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{
    Act, ActResult, ActStatus, End, FindingCode, GuestFate, JobStatus, Level, OpenFinding, Record,
    RepositoryStatus, RunHistory, SpaceReport, StatusReport, Timer,
};
use crate::flows::space::{self, SpaceRequest};
use crate::vault::repository::{Catalog, DomainName};

pub(super) use guest::Of;

/// What the finding is about that libvirt has no guests.
pub(super) const LIBVIRT: &str = "libvirt";

/// The same while a run is at work, which may come to the job in its turn. A run that hangs, or takes days, must not
/// hide nights that are missed.
const LATE_RUNNING_MAX_S: i64 = 24 * 3600;

/// Finds out how everything stands. Nothing is changed.
///
/// # Errors
/// libvirt's folders or the history can't be read. That a repository can't be opened is a finding.
pub fn status(host: &Host<'_>) -> Result<StatusReport> {
    look(host).map(|(report, _)| report)
}

/// The repositories that could be opened, by name.
pub(super) type Catalogs = BTreeMap<String, Opened>;

/// The same, with what was read of the repositories.
pub(super) fn look(host: &Host<'_>) -> Result<(StatusReport, Catalogs)> {
    let now = clock::now()?;
    let config = host.config;
    let journal = Journal::new(host.state);
    let (history, is_running) = settled(&journal, now)?;
    let memory = Memory::new(&history, now);
    let guests = Guests::read(&config.libvirt.libvirt())?;
    let zone = config.zone()?;
    let mut looked = Look {
        late: proofs::promised(config, now, &zone),
        proved: BTreeMap::new(),
        config,
        memory: &memory,
        guests: &guests,
        catalogs: BTreeMap::new(),
        is_running,
        now,
        zone,
        findings: Vec::new(),
    };
    let repositories = looked.repositories(host);
    looked.replaced(&known::read(host.state));
    let jobs = looked.jobs();
    let plans = guests.plans(config, now)?;
    let fates = guests.fates(config, &plans);
    looked.not_covered(&fates);
    let standing = looked.guests();
    looked.unproved();
    looked.kept();
    looked.proved_since();
    let is_lost = history.records.is_empty() && !known::read(host.state).is_empty();
    looked.rest((is_lost, history.torn));
    looked.findings.extend(telling::troubles(host));
    let timer = looked.timer();
    let (mut findings, catalogs) = (looked.findings, looked.catalogs);
    findings.sort_by(|one, other| {
        other
            .level
            .cmp(&one.level)
            .then_with(|| (one.code, &one.subject).cmp(&(other.code, &other.subject)))
    });
    let report = StatusReport {
        at: now,
        level: findings.iter().map(|finding| finding.level).max().unwrap_or_default(),
        guests: standing
            .into_iter()
            .map(|mut guest| {
                let own = findings.iter().filter(|finding| finding.subject == guest.guest);
                let open = own.map(|finding| finding.level).max().unwrap_or_default();
                guest.level = guest.level.max(open);
                guest
            })
            .collect(),
        findings,
        jobs,
        repositories,
        timer,
    };
    Ok((report, catalogs))
}

/// The history, and whether a run is at work. A run that ends while it is looked at has not been killed.
fn settled(journal: &Journal, now: Timestamp) -> Result<(RunHistory, bool)> {
    let unended = |history: &RunHistory| Memory::new(history, now).unended().map(|it| it.run);
    let mut history = journal.read()?;
    while let Some(run) = unended(&history) {
        if journal.is_busy() {
            return Ok((history, true));
        }
        let before = run;
        history = journal.read()?;
        if unended(&history) == Some(before) {
            break;
        }
    }
    Ok((history, false))
}

/// Opens all repositories at the same time: one that does not answer is waited for once, and not for long.
fn open_all(host: &Host<'_>) -> Vec<Result<Opened>> {
    let open = |place: &RepositoryPlace| {
        let repository = (host.open)(&place.for_a_look())?;
        match repository.trouble() {
            Some(error) => Err(error),
            None => Ok(Opened {
                domains: repository.domains()?.into_iter().collect(),
                catalog: repository.catalog(),
            }),
        }
    };
    let ended = |_| Err(Error::new(ErrorKind::Io, "it could not be opened"));
    thread::scope(|scope| {
        let places = host.config.repositories.values();
        let open = &open;
        let threads: Vec<_> = places.map(|place| scope.spawn(move || open(place))).collect();
        threads.into_iter().map(|it| it.join().unwrap_or_else(ended)).collect()
    })
}

/// A repository that could be opened.
pub(super) struct Opened {
    pub catalog: Catalog,
    /// The guests that it has points of.
    pub domains: BTreeSet<DomainName>,
}

/// What is looked at, and what was found.
struct Look<'a> {
    config: &'a Config,
    memory: &'a Memory<'a>,
    guests: &'a Guests,
    /// The repositories that could be opened.
    catalogs: Catalogs,
    /// A run is at work now.
    is_running: bool,
    now: Timestamp,
    zone: TimeZone,
    /// What the jobs promise of proofs, and what waits too long.
    late: BTreeMap<String, proofs::Late>,
    /// Since when all points of a job's guests are good and proved; none where one is not.
    proved: BTreeMap<String, Option<Timestamp>>,
    findings: Vec<OpenFinding>,
}

impl<'a> Look<'a> {
    /// Adds a finding; gives it, for what else is known of it.
    fn find(
        &mut self,
        level: Level,
        code: FindingCode,
        subject: &str,
        text: impl Into<String>,
    ) -> Option<&mut OpenFinding> {
        self.findings.push(OpenFinding {
            level,
            code,
            subject: subject.to_owned(),
            job: None,
            act: None,
            text: text.into(),
            advice: None,
            since: None,
        });
        self.findings.last_mut()
    }

    /// Says which job, and which part of it, the last finding is about.
    fn of_job(&mut self, job: &str, act: Option<Act>) {
        if let Some(finding) = self.findings.last_mut() {
            (finding.job, finding.act) = (Some(job.to_owned()), act);
        }
    }

    /// Adds a finding with what to do about it.
    fn advise(
        &mut self,
        level: Level,
        code: FindingCode,
        subject: &str,
        text: String,
        advice: &str,
    ) {
        if let Some(finding) = self.find(level, code, subject, text) {
            finding.advice = Some(advice.to_owned());
        }
    }

    /// Opens the repositories, and says how much room each has.
    fn repositories(&mut self, host: &Host<'_>) -> Vec<RepositoryStatus> {
        let mut all = Vec::new();
        for ((name, place), opened) in self.config.repositories.iter().zip(open_all(host)) {
            let (free, space) = match &opened {
                Ok(opened) => (opened.catalog.repository().bytes_free(), self.space(opened)),
                Err(error) => {
                    self.trouble(FindingCode::Repository, name, error);
                    (None, None)
                }
            };
            let growth = space.as_ref().and_then(|space| space.growth.as_ref());
            let full_at = growth.and_then(|growth| growth.full_at);
            let days_left =
                full_at.map(|at| (at.as_second() - self.now.as_second()) as f64 / 86_400.0);
            if let Some((free, keep)) = free.zip(place.keep_free).filter(|(free, keep)| free < keep)
            {
                let size = |bytes| bytesize::ByteSize(bytes).display().iec();
                let text = format!("{} is free, and {} is to stay free", size(free), size(keep));
                let advice = "keep fewer points, or make room: qdelta space says what they take";
                self.advise(Level::Critical, FindingCode::Room, name, text, advice);
            } else if opened.is_ok() && free.is_none() && place.keep_free.is_some() {
                let text = "nobody knows how much is free, and keep_free asks for room".to_owned();
                let advice = "see whether df shows the room of the repository's folder";
                self.advise(Level::Warning, FindingCode::Room, name, text, advice);
            } else if let Some(days) = days_left.filter(|_| growth.is_some_and(|it| it.soon)) {
                let text = match days < 1.0 {
                    true => "the room will be full within a day".to_owned(),
                    false => {
                        let left = duration::age((days * 86_400.0) as i64);
                        format!("the room will be full in {left}")
                    }
                };
                let advice = "keep fewer points, or make room: qdelta space says what they take";
                self.advise(Level::Warning, FindingCode::RoomSoon, name, text, advice);
            }
            all.push(RepositoryStatus {
                repository: name.clone(),
                place: place.place.clone().into(),
                bytes_free: free,
                keep_free: place.keep_free,
                bytes_stored: space.as_ref().map(|space| space.bytes_stored),
                bytes_per_day: growth.map(|growth| growth.bytes_per_day),
                days_left,
            });
            if let Ok(opened) = opened {
                self.catalogs.insert(name.clone(), opened);
            }
        }
        all
    }

    /// What all points take, and how fast the room fills.
    fn space(&self, opened: &Opened) -> Option<SpaceReport> {
        opened.read_ahead();
        let domains = opened.domains.iter().cloned().collect();
        let request = SpaceRequest { domains, each: false, now: self.now };
        space::run_with(&opened.catalog, &request, &Cancel::default()).ok()
    }

    /// Something that can't be used.
    fn trouble(&mut self, code: FindingCode, subject: &str, error: &Error) {
        let advice = error.advice().map(str::to_owned);
        if let Some(finding) = self.find(Level::Critical, code, subject, error.chain()) {
            finding.advice = advice;
        }
    }

    /// How the jobs stand; what is overdue, and what of a whole act has failed.
    fn jobs(&mut self) -> Vec<JobStatus> {
        let mut all = Vec::new();
        for (name, job) in &self.config.jobs {
            let mut acts = Vec::new();
            for (act, schedule) in due::acts(job) {
                let past = self.memory.of(Some(name), act, None);
                acts.push(ActStatus {
                    act,
                    last: past.last.filter(|it| it.end != End::Seen).map(|it| it.began),
                    end: past.last.map(|it| it.end),
                    success: past.success.map(|it| it.began),
                    next: schedule.iter().filter_map(|it| it.next(self.now, &self.zone)).min(),
                });
                let comes = |it: &Calendar| it.next(self.now, &self.zone).is_some();
                if !schedule.is_empty() && !schedule.iter().any(comes) {
                    let text =
                        format!("{act} has no time any more: its schedule does not come again");
                    let advice = "write a time that is still to come, or no schedule";
                    self.advise(Level::Warning, FindingCode::Overdue, name, text, advice);
                    self.of_job(name, Some(act));
                } else if let Some(text) = self.overdue(name, job, act) {
                    let advice = "qdelta run does what is due; see why nothing starts it";
                    self.advise(Level::Critical, FindingCode::Overdue, name, text, advice);
                    self.of_job(name, Some(act));
                }
                if let Some(last) = past.last.filter(|it| it.end.is_trouble()) {
                    self.act_failed(name, act, last);
                }
                if let Some(last) = past.last.filter(|it| it.end == End::Warned) {
                    self.act_warned(name, act, last);
                }
            }
            all.push(JobStatus { job: name.clone(), acts });
        }
        all
    }

    /// Since when a part of a job is overdue, in words.
    fn overdue(&self, name: &str, job: &Job, act: Act) -> Option<String> {
        let (_, schedule) = due::acts(job).into_iter().find(|(it, _)| *it == act)?;
        if schedule.is_empty() {
            return None;
        }
        // A run comes to the jobs that it has begun with, in their turn, and to no others.
        let begun = self.memory.unended().filter(|_| self.is_running);
        let is_in_turn = begun.is_some_and(|run| run.text.split(", ").any(|job| job == name));
        let late_max = if is_in_turn { LATE_RUNNING_MAX_S } else { due::LATE_MAX_S };
        let past = self.memory.of(Some(name), act, None);
        let time = due::last_time(schedule, self.now, &self.zone)?;
        let late = self.now.as_second() - time.as_second();
        // In the night in which clocks are put back, a time alone may mean two.
        let shown = time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string();
        match past.last {
            None if is_in_turn => None,
            None if self.memory.is_new(name, act) => {
                Some(format!("{act} never ran: no run has seen its schedule yet"))
            }
            _ if late < late_max || !due::is_missed(past, time) => None,
            Some(last) if last.end == End::Seen => {
                Some(format!("{act} never ran: it was due at {shown}"))
            }
            _ => Some(format!("{act} was due at {shown}, and nothing has started it")),
        }
    }

    /// An act of a job did not come to a good end. Where its guests have records of their own, these say
    /// why.
    fn act_failed(&mut self, job: &str, act: Act, last: &Record) {
        // A drill that could not begin is none that the repository knows of.
        let is_known = |record: &Record| match (act, &record.result) {
            (Act::Drill, Some(ActResult::Drill(report))) => report.drill.is_some(),
            (Act::Drill, _) => false,
            _ => true,
        };
        let is_trouble = |record: &&Record| {
            record.end.is_trouble() && record.end != End::Gone && record.run == last.run
        };
        let troubles =
            self.memory.subjects(job, act).filter_map(|(_, past)| past.last.filter(is_trouble));
        // Of a guest that went, nobody but the job says it.
        let names: BTreeSet<String> = self.names();
        let is_told = |record: &Record| {
            record.subject.as_ref().is_some_and(|name| names.contains(name)) && is_known(record)
        };
        let (known, others): (Vec<&Record>, Vec<&Record>) = troubles.partition(|it| is_told(it));
        if !known.is_empty() && others.is_empty() {
            return;
        }
        let is_untried = !others.is_empty() && others.iter().all(|it| it.end == End::NotTried);
        let level = match (act, last.end) {
            (_, End::Interrupted) | (Act::Prune, _) => Level::Warning,
            _ if is_untried => Level::Warning,
            _ => Level::Critical,
        };
        let why = others.first().map_or(String::new(), |it| match &it.subject {
            Some(name) if !names.contains(name) => format!(": {name}: {}", it.text),
            _ => format!(": {}", it.text),
        });
        let text = format!("{act} {}: {}{why}", last.end.to_string().to_lowercase(), last.text);
        let (advice, since) = (last.advice.clone(), last.began);
        if let Some(finding) = self.find(level, FindingCode::Failed, job, text) {
            (finding.advice, finding.since) = (advice, Some(since));
        }
        self.of_job(job, Some(act));
    }

    /// What the jobs mean, by name.
    fn names(&self) -> BTreeSet<String> {
        let subjects = self.config.jobs.values().flat_map(|job| self.guests.of(job));
        subjects.map(|it| it.name()).collect()
    }

    /// An act of a job has warnings. Those of its guests are told of each guest.
    fn act_warned(&mut self, job: &str, act: Act, last: &Record) {
        self.warned(job, act, job, last);
        if last.warnings.is_empty() && act == Act::Prune {
            let text = format!("{act}: {}", last.text);
            if let Some(finding) = self.find(Level::Warning, FindingCode::Warned, job, text) {
                (finding.advice, finding.since) = (last.advice.clone(), Some(last.began));
            }
            self.of_job(job, Some(act));
        }
    }

    /// Guests that no job covers.
    fn not_covered(&mut self, fates: &[GuestFate]) {
        for fate in fates.iter().filter(|fate| fate.jobs.is_empty() && !fate.ignored) {
            let advice = "add it to the guests of a job, or to ignore";
            let text = "no job covers it".to_owned();
            self.advise(Level::Warning, FindingCode::NotCovered, &fate.guest, text, advice);
        }
    }

    /// Hooks, the clock, libvirt's files, and a run that never ended.
    fn rest(&mut self, (is_lost, torn): (bool, usize)) {
        let failed = self.memory.hooks().filter_map(|(job, _, past)| {
            // One that failed before the last time is no news, and one of a job that is gone none either.
            let latest = match job {
                Some(job) => self.memory.of(Some(job), Act::Backup, None).last,
                None => self.memory.of(None, Act::Run, None).last,
            };
            let is_there = job.is_none_or(|job| self.config.jobs.contains_key(job));
            let last = past.last.filter(|record| is_there && record.end.is_trouble())?;
            let is_latest = latest.is_none_or(|latest| latest.run <= last.run);
            is_latest.then(|| last.clone())
        });
        for last in failed.collect::<Vec<_>>() {
            let job = last.job.as_deref().unwrap_or("run");
            if let Some(finding) = self.find(Level::Warning, FindingCode::Failed, job, last.text) {
                finding.since = Some(last.began);
                (finding.job, finding.act) = (last.job, Some(Act::Hook));
            }
        }
        self.history(is_lost, torn);
        if self.memory.ahead > 0 {
            let text = format!(
                "{} records of the history lie ahead of the clock: it is wrong, or was",
                self.memory.ahead
            );
            let advice = "look at the clock of this host: timedatectl";
            self.advise(Level::Warning, FindingCode::Clock, "clock", text, advice);
        }
        let wants_guests = self.config.jobs.values().any(|job| !job.guests.is_empty());
        if wants_guests && self.guests.is_empty() {
            let folder = self.config.libvirt.config.display();
            let text = format!("libvirt has no guest at all in {folder}, and jobs mean some");
            self.advise(Level::Critical, FindingCode::Unreadable, LIBVIRT, text, ELSEWHERE);
        }
        let unreadable: Vec<(String, Error)> = self
            .guests
            .unreadable()
            .map(|(name, error)| (name.to_owned(), error.clone()))
            .collect();
        for (guest, error) in unreadable {
            self.trouble(FindingCode::Unreadable, &guest, &error);
        }
        if let Some(cut) = self.memory.unended().filter(|_| !self.is_running) {
            let text = "the last run never ended: it was killed, the power was cut, or it could not note its end";
            let since = cut.began;
            if let Some(finding) = self.find(Level::Warning, FindingCode::Cut, "run", text) {
                finding.since = Some(since);
                finding.advice = Some("qdelta run does what is due".to_owned());
            }
        }
    }

    /// The history is lost, or makes no sense in part: now, or when the last run began.
    fn history(&mut self, is_lost: bool, torn: usize) {
        let latest = self.memory.of(None, Act::Run, None).last;
        let noted = self.memory.of(None, Act::Run, Some(HISTORY)).last;
        let noted = noted.filter(|noted| latest.is_none_or(|latest| latest.run <= noted.run));
        let text = match noted {
            _ if is_lost => {
                "it is lost: what was done, and what failed, is not known any more".to_owned()
            }
            _ if torn > TORN_MAX => format!("{torn} lines of it make no sense"),
            Some(noted) => noted.text.clone(),
            None => return,
        };
        let advice =
            "see whether the disk of the state folder is sound; the next night begins it anew";
        self.advise(Level::Critical, FindingCode::Unreadable, HISTORY, text, advice);
    }

    /// Whether the timer is on.
    fn timer(&mut self) -> Timer {
        let unit = &self.config.timer;
        let timer = programs::timer(unit);
        if timer == Timer::Off {
            let text = format!("{unit} is off: nothing starts qdelta run");
            let advice = "systemctl enable --now starts it; timer = \"none\" in the file says that \
                          another program starts runs";
            self.advise(Level::Warning, FindingCode::Timer, unit, text, advice);
        }
        timer
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::guest::quiesce::Program;

    /// Each store that was down was waited for three minutes, one after the other: what asks for the status had given
    /// up long before.
    #[test]
    fn repositories_are_opened_at_the_same_time_and_with_little_patience() {
        let text = "[repositories.a]\nplace = \"s3://a/p\"\n\
                    [repositories.b]\nplace = \"s3://b/p?region=r\"\n\
                    [repositories.c]\nplace = \"s3://c/p?patience=60s\"\n\
                    [repositories.d]\nplace = \"/d\"\n\
                    [jobs.x]\nrepository = \"a\"\nguests = [\"x\"]\n";
        let config = Config::parse(text).unwrap();
        let (seen, all) = (Mutex::new(Vec::new()), Condvar::new());
        let open = |place: &RepositoryPlace| {
            let mut seen = seen.lock().unwrap();
            seen.push(place.place.clone());
            all.notify_all();
            let limit = Duration::from_secs(60);
            let (_seen, waited) =
                all.wait_timeout_while(seen, limit, |seen| seen.len() < 4).unwrap();
            let text = if waited.timed_out() { "alone" } else { "with all" };
            Err(Error::new(ErrorKind::Io, text))
        };
        let watchdog = Program { path: PathBuf::new(), arguments: Vec::new() };
        let (path, state) = (Path::new(""), Path::new(""));
        let host = Host {
            path,
            config: &config,
            open: &open,
            state,
            spare: None,
            watchdog: &watchdog,
            journald: None,
        };
        let opened: Vec<String> =
            open_all(&host).into_iter().map(|it| it.err().unwrap().chain()).collect();
        assert_eq!(opened, ["with all"; 4]);
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        let a = "s3://a/p?patience=10";
        assert_eq!(seen, ["/d", a, "s3://b/p?region=r&patience=10", "s3://c/p?patience=60s"]);
    }
}
