//! Whether everything is all right: how each guest, job and repository stands, and what is open.
//!
//! Every age is that of a success. What was never done is a finding, and silence is none.

mod copies;
mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::config::{Config, Job, RepositoryPlace};
use super::guests::{ELSEWHERE, Guests};
use super::journal::{Journal, Memory};
use super::{Host, due, programs, telling};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::{
    Act, ActResult, ActStatus, End, FindingCode, GuestFate, JobStatus, Level, OpenFinding, Record,
    RepositoryStatus, SpaceReport, StatusReport, Timer,
};
use crate::flows::space::{self, SpaceRequest};
use crate::vault::repository::{Catalog, Climb, DomainName};

/// What the finding is about that libvirt has no guests.
pub(super) const LIBVIRT: &str = "libvirt";

/// How long after its time a job may begin before it is overdue.
const LATE_MAX_S: i64 = 3600;

/// The same while a run is at work, which may come to the job in its turn. A run that hangs, or takes days, must not
/// hide nights that are missed.
const LATE_RUNNING_MAX_S: i64 = 24 * 3600;

/// The room is full soon if it is full within so many days.
const DAYS_LEFT_MIN: f64 = 14.0;

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
    let history = journal.read()?;
    let memory = Memory::new(&history, now);
    let guests = Guests::read(&config.libvirt.libvirt())?;
    let is_running = memory.unended().is_some() && journal.is_busy();
    let zone = config.zone()?;
    let mut looked = Look {
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
    let jobs = looked.jobs();
    let plans = guests.plans(config, now)?;
    let fates = guests.fates(config, &plans);
    looked.not_covered(&fates);
    let standing = looked.guests();
    looked.gone();
    looked.rest();
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
            } else if let Some(days) = days_left.filter(|days| *days < DAYS_LEFT_MIN) {
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
                if let Some(text) = self.overdue(name, job, act) {
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
        let late_max = if self.is_running { LATE_RUNNING_MAX_S } else { LATE_MAX_S };
        let past = self.memory.of(Some(name), act, None);
        let time = due::last_time(schedule, self.now, &self.zone)?;
        let late = self.now.as_second() - time.as_second();
        // In the night in which clocks are put back, a time alone may mean two.
        let shown = time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string();
        match past.last {
            None if self.is_running => None,
            None => Some(format!("{act} never ran: no run has seen its schedule yet")),
            Some(_) if late < late_max || !due::is_missed(past, time) => None,
            Some(last) if last.end == End::Seen => {
                Some(format!("{act} never ran: it was due at {shown}"))
            }
            Some(_) => Some(format!("{act} was due at {shown}, and nothing has started it")),
        }
    }

    /// An act of a job did not come to a good end. Where its guests have records of their own, these say
    /// why.
    fn act_failed(&mut self, job: &str, act: Act, last: &Record) {
        // A drill that could not begin, or not go so far, is none that the repository knows of.
        let is_known = |record: &Record| match (act, &record.result) {
            (Act::Drill, Some(ActResult::Drill(report))) => {
                report.drill.as_ref().is_some_and(|drill| drill.result == Climb::Failed)
            }
            (Act::Drill, _) => false,
            _ => true,
        };
        let troubles = self.memory.subjects(job, act).filter_map(|(_, past)| {
            past.last.filter(|record| record.end.is_trouble() && record.run == last.run)
        });
        let (known, others): (Vec<&Record>, Vec<&Record>) = troubles.partition(|it| is_known(it));
        if !known.is_empty() && others.is_empty() {
            return;
        }
        let is_untried = !others.is_empty() && others.iter().all(|it| it.end == End::NotTried);
        let level = match (act, last.end) {
            (_, End::Interrupted) | (Act::Prune, _) => Level::Warning,
            _ if is_untried => Level::Warning,
            _ => Level::Critical,
        };
        let why = others.first().map_or(String::new(), |it| format!(": {}", it.text));
        let text = format!("{act} {}: {}{why}", last.end.to_string().to_lowercase(), last.text);
        let (advice, since) = (last.advice.clone(), last.began);
        if let Some(finding) = self.find(level, FindingCode::Failed, job, text) {
            (finding.advice, finding.since) = (advice, Some(since));
        }
        self.of_job(job, Some(act));
    }

    /// A part of a job has warnings. Those of its guests are told of each guest.
    fn act_warned(&mut self, job: &str, act: Act, last: &Record) {
        let text = match last.warnings.split_first() {
            Some((first, [])) => first.text.clone(),
            Some((first, others)) => {
                format!("{}; and {} more warnings", first.text, others.len())
            }
            None if act == Act::Prune => last.text.clone(),
            None => return,
        };
        let own = last.warnings.first().and_then(|warning| warning.advice.clone());
        let (advice, since) = (own.or(last.advice.clone()), last.began);
        let text = format!("{act}: {text}");
        if let Some(finding) = self.find(Level::Warning, FindingCode::Warned, job, text) {
            (finding.advice, finding.since) = (advice, Some(since));
        }
        self.of_job(job, Some(act));
    }

    /// Guests that no job covers.
    fn not_covered(&mut self, fates: &[GuestFate]) {
        for fate in fates.iter().filter(|fate| fate.jobs.is_empty() && !fate.ignored) {
            let advice = "add it to the guests of a job, or to ignore";
            let text = "no job covers it".to_owned();
            self.advise(Level::Warning, FindingCode::NotCovered, &fate.guest, text, advice);
        }
    }

    /// Guests that were backed up, and that libvirt does not have any more.
    fn gone(&mut self) {
        let mut gone: BTreeMap<&str, &Record> = BTreeMap::new();
        for job in self.config.jobs.keys() {
            for (guest, past) in self.memory.subjects(job, Act::Backup) {
                let Some(last) = past.last else { continue };
                let is_known = self.guests.has(guest) || last.end != End::Gone;
                if !is_known && !self.guests.is_meant(&self.config.ignore, guest) {
                    gone.insert(guest, last);
                }
            }
        }
        for (guest, last) in gone {
            let (text, since) = (last.text.clone(), last.began);
            if let Some(finding) = self.find(Level::Warning, FindingCode::Gone, guest, text) {
                finding.since = Some(since);
                finding.advice = Some("if that is right, add it to ignore".to_owned());
            }
        }
    }

    /// Hooks, the clock, libvirt's files, and a run that never ended.
    fn rest(&mut self) {
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
        if self.memory.ahead > 0 {
            let text = format!(
                "{} records of the history lie ahead of the clock: it is wrong, or was",
                self.memory.ahead
            );
            let advice = "look at the clock of this host: timedatectl";
            self.advise(Level::Warning, FindingCode::Clock, "clock", text, advice);
        }
        let wants_guests = self.config.jobs.values().any(|job| !job.guests.is_empty());
        if wants_guests && self.guests.names().next().is_none() {
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
            let text = "the last run never ended: it was killed, or the power was cut".to_owned();
            let since = cut.began;
            if let Some(finding) = self.find(Level::Warning, FindingCode::Cut, "run", text) {
                finding.since = Some(since);
                finding.advice = Some("qdelta run does what is due".to_owned());
            }
        }
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
