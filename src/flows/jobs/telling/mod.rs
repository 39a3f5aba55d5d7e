//! Telling people what is new, once each: after a run, and now and then when nothing is due.
//!
//! Nobody waits for a notifier longer than its time, all of them are told at the same time, and one that
//! can't be reached is a finding of which the others hear.

mod together;
mod told;
mod turn;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use jiff::Timestamp;

use super::config::Config;
use super::journal::{Journal, Memory};
use super::status::{LIBVIRT, status};
use super::words::nearest;
use super::{Host, due};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::flows::notify::{self, Notifier, Ping, journald, metrics};
use crate::flows::report::{
    Act, End, Event, Failure, FindingCode, Level, Message, MessagePart, NotifierReport,
    NotifyReport, OpenFinding, Record, RunHistory, StatusReport,
};
use together::{Work, at_once};
use told::{Doubt, Listener, News, Told, Trouble, is_own, news};
use turn::turn;
use words::{Digest, Letter};

pub(super) use words::Ended;

/// Where nothing is done, everything is looked at so often.
const LOOK_EVERY_S: i64 = 3600;

/// What the file of metrics is called where something is wrong with it.
const TEXTFILE: &str = "textfile";

/// What this host remembers is called so where it can't be written.
const STATE: &str = "state";

/// What the finding is about that nobody could look at all.
const HOST: &str = "host";

/// Who hears of findings beside the notifiers.
const JOURNAL: &str = "journal";

/// Pings that are under way.
pub(super) struct Pings(Vec<(String, JoinHandle<Result<()>>)>);

/// What came of telling somebody.
type Outcome = (String, Result<()>);

/// Tells watches that a run begins, and waits for none.
pub(super) fn begin(config: &Config, run: Timestamp, jobs: &[&str]) -> Pings {
    let is_meant = |notifier: &Notifier| {
        notifier.hears(Event::Start) && jobs.iter().any(|job| notifier.hears_of(Some(job)))
    };
    let pings = config.notify.iter().filter(|(_, notifier)| is_meant(notifier));
    let begin = |(name, notifier): (&String, &Notifier)| {
        let (log, event) = (jobs.join(", "), Event::Start);
        let ping = Ping { event, run: notify::run_id(run), log };
        let notifier = notifier.clone();
        (name.clone(), thread::spawn(move || notify::ping(&notifier, &ping)))
    };
    Pings(pings.map(begin).collect())
}

impl Pings {
    /// Tells watches how the run ended.
    pub fn end(self, config: &Config, ended: &Ended<'_>, cancel: &Cancel) -> Vec<Outcome> {
        let (mut names, mut work) = (Vec::new(), Vec::new());
        for (name, started) in self.0 {
            let Some(notifier) = config.notify.get(&name) else { continue };
            let is_of = |job: Option<&str>| notifier.hears_of(job);
            let has_failed = ended.has_failed(is_of);
            let event = if has_failed { Event::Failure } else { Event::Success };
            let ping = Ping { event, run: notify::run_id(ended.run), log: ended.log(is_of) };
            let notifier = notifier.clone();
            names.push(name);
            work.push(Box::new(move || {
                // The start must not overtake the end.
                let first = started.join().unwrap_or_else(|_| Ok(()));
                notify::ping(&notifier, &ping).and(first)
            }) as Work);
        }
        names.into_iter().zip(at_once(work, Some(cancel))).collect()
    }
}

/// The findings about notifiers that could not be reached.
pub(super) fn troubles(host: &Host<'_>) -> Vec<OpenFinding> {
    let (config, told) = (host.config, Told::read(host));
    let is_there = |name: &str| {
        let has_textfile = config.metrics.textfile.is_some();
        config.notify.contains_key(name) || (name == TEXTFILE && has_textfile) || name == STATE
    };
    told.notifiers
        .iter()
        .filter(|(name, _)| is_there(name))
        .filter_map(|(name, listener)| Some(of_trouble(name, listener.trouble.as_ref()?)))
        .collect()
}

fn of_trouble(name: &str, trouble: &Trouble) -> OpenFinding {
    let is_state = name == STATE;
    let (level, what, advice) = match is_state {
        true => {
            let advice =
                "without it no run begins: see whether its filesystem is read-only or full";
            (Level::Critical, "what this host remembers can't be written", advice.to_owned())
        }
        false => {
            let advice = format!("qdelta notify --test {name} tries it");
            (Level::Warning, "it could not be told", advice)
        }
    };
    OpenFinding {
        level,
        code: FindingCode::Notifier,
        subject: name.to_owned(),
        job: None,
        act: None,
        text: format!("{what}: {}", trouble.text),
        advice: trouble.advice.clone().filter(|_| !is_state).or(Some(advice)),
        since: Some(trouble.since),
    }
}

/// A run that could not be done, or not be noted.
fn of_failure(failure: &Failure) -> OpenFinding {
    OpenFinding {
        level: Level::Critical,
        code: FindingCode::Failed,
        subject: "run".to_owned(),
        job: None,
        act: Some(Act::Run),
        text: format!("a run failed: {}", failure.text),
        advice: failure.advice.clone(),
        since: None,
    }
}

/// A run that never ended.
fn of_cut(record: &Record) -> OpenFinding {
    OpenFinding {
        level: Level::Warning,
        code: FindingCode::Cut,
        subject: "run".to_owned(),
        job: None,
        act: None,
        text: record.text.clone(),
        advice: record.advice.clone(),
        since: None,
    }
}

/// Whether nobody can say of a finding that was open before whether it goes on: its repository can't be opened, libvirt
/// has no guests, or nobody could look at all.
fn in_doubt<'a>(
    config: &'a Config,
    history: &'a RunHistory,
    open: &[OpenFinding],
) -> impl Fn(&OpenFinding) -> bool + 'a {
    let has = |subject: &str| {
        open.iter().any(|it| it.code == FindingCode::Unreadable && it.subject == subject)
    };
    let (is_dark, has_no_guests) = (has(HOST), has(LIBVIRT));
    // Points that are lost are not what somebody asked to have ended.
    let lost = open.iter().filter(|it| it.code == FindingCode::Lost);
    let lost: BTreeSet<String> = lost.map(|it| it.subject.clone()).collect();
    let broken = open.iter().filter(|it| it.code == FindingCode::Repository);
    let broken: BTreeSet<String> = broken.map(|it| it.subject.clone()).collect();
    let is_any_broken = !broken.is_empty();
    let is_of_broken = move |finding: &OpenFinding| match &finding.job {
        Some(name) => config.jobs.get(name).is_some_and(|job| {
            let own = config.repository_of(name, job).is_ok_and(|(it, _)| broken.contains(it));
            own || job.copy.as_ref().is_some_and(|copy| broken.contains(&copy.to))
        }),
        None => broken.contains(&finding.subject),
    };
    move |finding| match finding.code {
        _ if finding.code == FindingCode::Notifier => false,
        _ if is_dark => true,
        FindingCode::Gone if lost.contains(&finding.subject) => true,
        FindingCode::Rpo
        | FindingCode::NoPoint
        | FindingCode::Lost
        | FindingCode::Damaged
        | FindingCode::Unproved
        | FindingCode::Drill
        | FindingCode::LeftOut
        | FindingCode::Copy
        | FindingCode::Gone
        | FindingCode::Frozen => {
            // What belongs to no job may be in any repository.
            has_no_guests || is_of_broken(finding) || (finding.job.is_none() && is_any_broken)
        }
        FindingCode::Room | FindingCode::RoomSoon | FindingCode::Replaced => is_of_broken(finding),
        FindingCode::Failed | FindingCode::Warned => {
            has_no_guests || is_untried(config, history, finding)
        }
        FindingCode::NotCovered => has_no_guests,
        // These ask nobody but the host, the file and the history.
        FindingCode::Notifier
        | FindingCode::Repository
        | FindingCode::Overdue
        | FindingCode::Timer
        | FindingCode::Cut
        | FindingCode::Clock
        | FindingCode::Unreadable => false,
    }
}

/// Whether nothing was done since that shows how it stands with what failed: its record is lost, or its job has another
/// name now.
fn is_untried(config: &Config, history: &RunHistory, finding: &OpenFinding) -> bool {
    let (Some(name), Some(act), Some(since)) = (&finding.job, finding.act, finding.since) else {
        return false;
    };
    let newer = || history.records.iter().filter(|it| it.began > since && it.end != End::Seen);
    let Some(job) = config.jobs.get(name) else {
        let is_it = |it: &Record| it.act == act && it.subject.as_ref() == Some(&finding.subject);
        return !newer().any(|it| is_it(it) && it.end.is_success());
    };
    // What is not asked for any more is not waited for.
    let is_asked_for = act == Act::Hook || due::acts(job).iter().any(|(it, _)| *it == act);
    // A warning is over when the same was done without it, and not when it failed.
    let is_judged = |it: &Record| match finding.code {
        FindingCode::Warned => {
            let is_of_job = it.act != Act::Backup || finding.subject == *name;
            it.end.is_success() && (is_of_job || it.subject.as_ref() == Some(&finding.subject))
        }
        _ => true,
    };
    // What others of the job did says nothing of a guest; that any job has backed it up does.
    let is_of_guest = finding.subject != *name && matches!(act, Act::Backup | Act::Copy);
    if is_of_guest {
        let is_own = |it: &Record| it.act == act && it.subject.as_ref() == Some(&finding.subject);
        let is_judged = |it: &Record| it.job.as_ref() == Some(name) && is_judged(it);
        return is_asked_for
            && !newer().any(|it| is_own(it) && (is_judged(it) || it.end.is_success()));
    }
    let is_it = |it: &Record| it.job.as_ref() == Some(name) && (act == Act::Hook || it.act == act);
    is_asked_for && !newer().any(|it| is_it(it) && is_judged(it))
}

/// What no type can check of who is told of what.
pub(super) fn check(config: &Config) -> Result<()> {
    for (name, notifier) in &config.notify {
        let within = |error: Error| error.within(format!("notify.{name}"));
        notifier.check().map_err(within)?;
        notifier.template.as_deref().map_or(Ok(()), notify::check_template).map_err(within)?;
        if [JOURNAL, TEXTFILE, STATE].contains(&name.as_str()) {
            let text = format!("{name:?} can't be the name of a notifier");
            return Err(Error::new(ErrorKind::Usage, text).advise("call it otherwise"));
        }
        if let Some(job) = notifier.jobs.iter().find(|job| !config.jobs.contains_key(*job)) {
            let known = config.jobs.keys().map(String::as_str);
            let near = nearest(job, known.clone()).or(known.clone().next()).unwrap_or("");
            let error = Error::new(ErrorKind::Usage, format!("there is no [jobs.{job}]"));
            return Err(within(error.advise(format!("did you mean {near:?}?"))));
        }
    }
    let is_read = |path: &PathBuf| path.is_absolute() && path.extension() == Some("prom".as_ref());
    match config.metrics.textfile.as_ref().is_none_or(is_read) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Usage, "metrics: nobody would read this textfile")
            .advise("name a file whose path begins with / and ends in .prom")),
    }
}

/// Whether anybody is told of anything.
fn is_wanted(host: &Host<'_>) -> bool {
    let config = host.config;
    let is_journal = config.journal && host.journald.is_some();
    !config.notify.is_empty() || config.metrics.textfile.is_some() || is_journal
}

/// This host's name.
pub(super) fn host_name() -> String {
    let name = Opener::READ.read_text(Path::new("/proc/sys/kernel/hostname"), 4096);
    name.unwrap_or_default().trim().to_owned()
}

/// What is to be told.
pub(super) struct Occasion<'a> {
    /// The time.
    pub now: Timestamp,
    /// What a run did; none if nothing was due.
    pub ended: Option<Ended<'a>>,
    /// What became of its pings.
    pub pings: Vec<Outcome>,
    /// Why the run could not be done.
    pub failure: Option<Failure>,
    /// That the run before never ended: by the time of the look that may be made up for.
    pub cut: Option<&'a Record>,
    /// Whether to look in any case.
    pub look: bool,
    /// Whether everything is told, whenever that is due.
    pub digest: bool,
    /// Only these notifiers; all if there are none.
    pub only: &'a [String],
    /// Who may ask to stop.
    pub cancel: Option<&'a Cancel>,
}

impl Occasion<'_> {
    /// Nothing but the time.
    pub fn at(now: Timestamp) -> Self {
        let pings = Vec::new();
        let (ended, failure, cut) = (None, None, None);
        let (look, digest, only, cancel) = (false, false, &[], None);
        Self { now, ended, pings, failure, cut, look, digest, only, cancel }
    }

    /// Whether it tells of a run, as no later look would.
    pub fn is_of_run(&self) -> bool {
        self.ended.is_some() || self.failure.is_some() || self.cut.is_some()
    }
}

/// Looks how everything stands, if it is time, and tells everybody what is new to them.
///
/// # Errors
/// [`ErrorKind::Busy`] if another process is telling; what was told can't be remembered. That somebody
/// can't be told is part of the result.
pub(super) fn tell(host: &Host<'_>, occasion: Occasion<'_>) -> Result<NotifyReport> {
    let nothing = NotifyReport { notifiers: Vec::new(), findings: Vec::new() };
    if !is_wanted(host) && !occasion.look {
        return Ok(nothing);
    }
    // Where no lock can be had, rather twice than never.
    let _turn = match turn(host.state, occasion.is_of_run(), occasion.cancel) {
        Err(error) if error.kind() == ErrorKind::Busy => return Err(error),
        turn => turn.ok(),
    };
    let mut told = Told::read(host);
    let is_due = |looked: Timestamp| {
        let age = occasion.now.as_second() - looked.as_second();
        !(0..LOOK_EVERY_S).contains(&age)
    };
    // That it can't be read is a finding of the look.
    let history = Journal::new(host.state).read();
    let history = history.unwrap_or_else(|_| RunHistory { records: Vec::new(), torn: 0 });
    let due = due_digests(host.config, &mut told, occasion.now, occasion.digest)?;
    let is_time = occasion.look || occasion.is_of_run() || !due.is_empty();
    if !is_time && told.looked.is_some_and(|looked| !is_due(looked)) {
        return Ok(nothing);
    }
    let mut report = look(host, occasion.now);
    report.findings.splice(0..0, occasion.failure.iter().map(of_failure));
    if !report.findings.iter().any(|finding| finding.code == FindingCode::Cut) {
        report.findings.extend(occasion.cut.map(of_cut));
    }
    let reports = BTreeMap::new();
    let mut teller =
        Teller { host, told, report, due, history: &history, reports, is_unsaid: false };
    for (name, came) in occasion.pings.clone() {
        teller.note(&name, came, None, occasion.now);
    }
    // Whether it can be written is known before anybody is told.
    let came = match teller.told.write(host) {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) => Err(error),
    };
    teller.note(STATE, came, None, occasion.now);
    teller.measure(occasion.now);
    teller.round(&occasion, true);
    // Who could be told hears of those who could not: now, or at the next start if there was a message already.
    if !occasion.cancel.is_some_and(Cancel::is_cancelled) {
        teller.round(&occasion, false);
    }
    teller.measure(occasion.now);
    teller.journal(occasion.now);
    teller.told.looked = Some(occasion.now).filter(|_| !teller.is_unsaid);
    // That it can't be written was told.
    let _ = teller.told.write(host);
    let findings = teller.report.findings;
    Ok(NotifyReport { notifiers: teller.reports.into_values().collect(), findings })
}

/// How everything stands. That nobody can find out is a finding.
fn look(host: &Host<'_>, now: Timestamp) -> StatusReport {
    status(host).unwrap_or_else(|error| StatusReport {
        at: now,
        level: Level::Critical,
        findings: vec![OpenFinding {
            level: Level::Critical,
            code: FindingCode::Unreadable,
            subject: HOST.to_owned(),
            job: None,
            act: None,
            text: format!("nobody knows how it stands: {}", error.chain()),
            advice: error.advice().map(str::to_owned),
            since: None,
        }],
        guests: Vec::new(),
        jobs: Vec::new(),
        repositories: Vec::new(),
        timer: crate::flows::report::Timer::Unknown,
    })
}

/// The notifiers whose digest is due, and since when it tells. One that is new waits for its time.
fn due_digests(
    config: &Config,
    told: &mut Told,
    now: Timestamp,
    is_asked_for: bool,
) -> Result<BTreeMap<String, Timestamp>> {
    let zone = config.zone()?;
    let mut due = BTreeMap::new();
    for (name, notifier) in &config.notify {
        let listener = told.of(name);
        let week = now.as_second().saturating_sub(7 * 86_400);
        let since = listener.digest.filter(|last| *last <= now);
        let long_ago = Timestamp::from_second(week).unwrap_or(now);
        if is_asked_for && notifier.ping.is_none() {
            due.insert(name.clone(), since.unwrap_or(long_ago));
            continue;
        }
        let Some(calendar) = &notifier.digest else { continue };
        let Some(last) = since else {
            listener.digest = Some(now);
            continue;
        };
        if calendar.last(now, &zone).is_some_and(|time| time > last) {
            due.insert(name.clone(), last);
        }
    }
    Ok(due)
}

/// Who tells.
struct Teller<'a> {
    host: &'a Host<'a>,
    told: Told,
    report: StatusReport,
    /// The digests that are due.
    due: BTreeMap<String, Timestamp>,
    history: &'a RunHistory,
    /// What became of telling each.
    reports: BTreeMap<String, NotifierReport>,
    /// Somebody has had a message, and something became known afterwards.
    is_unsaid: bool,
}

impl Teller<'_> {
    /// Tells each what is new. The second time, what became known meanwhile: of one look nobody gets two messages.
    fn round(&mut self, occasion: &Occasion<'_>, is_first: bool) {
        let others = |finding: &OpenFinding| finding.code != FindingCode::Notifier;
        self.report.findings.retain(others);
        let trouble = |(name, listener): (&String, &Listener)| {
            let is_known = [TEXTFILE, STATE].contains(&name.as_str());
            let is_there = self.host.config.notify.contains_key(name) || is_known;
            Some(of_trouble(name, listener.trouble.as_ref().filter(|_| is_there)?))
        };
        self.report.findings.extend(self.told.notifiers.iter().filter_map(trouble));
        let gravest = self.report.findings.iter().map(|finding| finding.level).max();
        self.report.level = gravest.unwrap_or_default();
        let host_name = host_name();
        let none = Listener::default();
        let mut letters = Vec::new();
        let is_in_doubt = in_doubt(self.host.config, self.history, &self.report.findings);
        for (name, notifier) in &self.host.config.notify {
            let report = self.reports.get(name).filter(|_| !is_first);
            let has_failed = report.is_some_and(|report| report.error.is_some());
            let is_meant = occasion.only.is_empty() || occasion.only.contains(name);
            if notifier.ping.is_some() || !is_meant || has_failed {
                continue;
            }
            let listener = self.told.notifiers.get(name).unwrap_or(&none);
            let open = (self.report.findings.as_slice(), &is_in_doubt as Doubt<'_>);
            let news = news((name, notifier), listener, open, occasion.now);
            let run = occasion.ended.filter(|_| is_first).and_then(|run| {
                let has_failed = run.has_failed(|job| notifier.hears_of(job));
                let event = if has_failed { Event::Failure } else { Event::Success };
                notifier.hears(event).then_some((run, has_failed))
            });
            let since = self.due.get(name).filter(|_| is_first);
            // Who is reached need not hear that it could not be.
            let others = self.report.findings.iter().filter(|it| !is_own(name, it));
            let digest = since.map(|since| Digest {
                report: &self.report,
                open: others.cloned().collect(),
                history: self.history,
                since: *since,
            });
            let letter = Letter {
                host: &host_name,
                now: occasion.now,
                news: &news,
                tells_end: notifier.hears(Event::Recovery),
                reached_again: listener.trouble.as_ref().filter(|_| is_first),
                run,
                digest,
            };
            let (message, end) = (letter.message(), letter.end());
            if report.is_some() {
                self.is_unsaid |= message.is_some();
                continue;
            }
            letters.push((name, notifier, message, news, end));
        }
        let send = |(_, notifier, message, ..): &(_, &Notifier, Option<Message>, News<'_>, _)| {
            let (notifier, message) = ((*notifier).clone(), message.clone());
            let variables = self.host.variables();
            Box::new(move || match message {
                Some(message) => notify::send(&notifier, &message, &variables),
                None => Ok(()),
            }) as Work
        };
        let sent = at_once(letters.iter().map(send).collect(), occasion.cancel);
        let mut notes = Vec::new();
        let mut lost = Vec::new();
        for ((name, _, message, news, end), came) in letters.iter().zip(sent) {
            if came.is_ok() {
                let listener = self.told.notifiers.entry((*name).clone()).or_default();
                listener.note(news, occasion.now);
                if is_first && self.due.contains_key(*name) {
                    listener.digest = Some(occasion.now);
                }
            }
            let end = end.clone().filter(|_| came.is_err());
            lost.extend(end.map(|end| ((*name).clone(), end)));
            if let Some(message) = message {
                notes.push(((*name).clone(), came, message.title.clone()));
            }
        }
        drop(letters);
        for (name, came, title) in notes {
            self.note(&name, came, Some(title), occasion.now);
        }
        for (name, end) in lost {
            let trouble = self.told.of(&name).trouble.as_mut();
            trouble.into_iter().for_each(|it| it.lose(end.clone()));
        }
    }

    /// Notes whether somebody could be told.
    fn note(&mut self, name: &str, came: Result<()>, title: Option<String>, now: Timestamp) {
        let error = came.as_ref().err().map(Failure::from);
        let listener = self.told.of(name);
        let before = listener.trouble.take();
        let since = before.as_ref().map_or(now, |trouble| trouble.since);
        let (lost, lost_more) = before.map_or_else(Default::default, |it| (it.lost, it.lost_more));
        listener.trouble = error.as_ref().map(|failure| Trouble {
            since,
            text: failure.text.clone(),
            advice: failure.advice.clone(),
            lost,
            lost_more,
        });
        let Some(notifier) = self.host.config.notify.get(name) else { return };
        let told = title.or_else(|| self.reports.get(name)?.told.clone());
        let report = NotifierReport { told, error, ..of_notifier(name, notifier) };
        self.reports.insert(name.to_owned(), report);
    }

    /// Writes the file of metrics.
    fn measure(&mut self, now: Timestamp) {
        let Some(path) = &self.host.config.metrics.textfile else { return };
        let memory = Memory::new(self.history, now);
        let failing = |(name, _): (&String, &Notifier)| {
            let listener = self.told.notifiers.get(name);
            (name.clone(), listener.is_some_and(|it| it.trouble.is_some()))
        };
        let of = |job: &str, act, subject: Option<&str>| {
            let past = memory.of(Some(job), act, subject);
            (past.last, past.success)
        };
        let notifiers = self.host.config.notify.iter().map(failing).collect();
        let text = metrics::text(&self.report, &metrics::LastTimes { of: &of, notifiers });
        let came = metrics::write(path, &text);
        self.note(TEXTFILE, came, None, now);
    }

    /// Tells the system's journal of findings that opened or ended.
    fn journal(&mut self, now: Timestamp) {
        let Some(socket) = self.host.journald.filter(|_| self.host.config.journal) else { return };
        let everything = Notifier::default();
        let mut listener = self.told.notifiers.remove(JOURNAL).unwrap_or_default();
        let is_in_doubt = in_doubt(self.host.config, self.history, &self.report.findings);
        let open = (self.report.findings.as_slice(), &is_in_doubt as Doubt<'_>);
        let news = news((JOURNAL, &everything), &listener, open, now);
        let open = news.opened.iter().chain(&news.again).map(|finding| (*finding, true));
        let ended = news.ended.iter().map(|finding| (finding, false));
        // A journal that does not listen is not waited for again.
        let _ =
            open.chain(ended).all(|(finding, is_open)| journald::finding(socket, finding, is_open));
        listener.note(&news, now);
        self.told.notifiers.insert(JOURNAL.to_owned(), listener);
    }
}

fn of_notifier(name: &str, notifier: &Notifier) -> NotifierReport {
    NotifierReport {
        notifier: name.to_owned(),
        to: notifier.shown(),
        on: events_of(notifier),
        told: None,
        error: None,
    }
}

/// What somebody is told of.
pub(super) fn events_of(notifier: &Notifier) -> Vec<Event> {
    let all = [
        Event::Start,
        Event::Success,
        Event::Failure,
        Event::Finding,
        Event::Recovery,
        Event::Digest,
    ];
    all.into_iter().filter(|event| notifier.hears(*event)).collect()
}

/// Tells each of these, or all, that they can be told.
pub(super) fn test(host: &Host<'_>, only: &[String], now: Timestamp) -> NotifyReport {
    let is_meant = |name: &String| only.is_empty() || only.contains(name);
    let meant = || host.config.notify.iter().filter(|(name, _)| is_meant(name));
    let message = Message {
        events: Vec::new(),
        level: Level::Ok,
        host: host_name(),
        at: now,
        title: "a test: qdelta reaches you".to_owned(),
        parts: vec![MessagePart {
            heading: "A test".to_owned(),
            findings: Vec::new(),
            lines: vec!["Somebody has tried whether you can be told. Nothing is wrong.".to_owned()],
        }],
    };
    let send = |(_, notifier): (&String, &Notifier)| {
        let (notifier, message) = (notifier.clone(), message.clone());
        let variables = host.variables();
        Box::new(move || notify::send(&notifier, &message, &variables)) as Work
    };
    let came = at_once(meant().map(send).collect(), None);
    let report = |((name, notifier), came): ((&String, &Notifier), Result<()>)| {
        let told = Some(message.title.clone());
        let error = came.as_ref().err().map(Failure::from);
        NotifierReport { told, error, ..of_notifier(name, notifier) }
    };
    NotifyReport { notifiers: meant().zip(came).map(report).collect(), findings: Vec::new() }
}
