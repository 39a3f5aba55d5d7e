//! What is done by itself: the host's file of jobs, one run of what is due, the history of runs, and
//! whether everything is all right.
//!
//! A run goes through the jobs one after the other: backup, copy, verification, pruning, drill. What fails
//! stops nothing else, and everything leaves a record.

mod config;
mod due;
mod fleet;
mod guests;
mod journal;
mod kit;
mod known;
mod programs;
mod run;
mod sense;
mod status;
mod telling;
mod words;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::host::{self, HostFiles};
use crate::flows::notify::Notifier;
use crate::flows::report::{Failure, NotifierPlan, NotifyReport, PlanReport, RunHistory};
use crate::guest::quiesce::Program;
use crate::vault::repository::Repository;
use guests::Guests;

pub use config::copy::Copy;
pub use config::{
    Config, Drill, EXAMPLE, Hooks, IoClass, Job, JobImage, LibvirtPlace, Limits, Metrics, Pattern,
    Prune, RepositoryPlace, Verify,
};
pub use fleet::fleet;
pub use journal::Journal;
pub use kit::{KitRequest, export_kit};
pub use run::run;
pub use status::status;

/// Opens a repository: its place is as `--repo` takes it.
pub type Opener<'a> = &'a (dyn Fn(&RepositoryPlace) -> Result<Repository> + Sync);

/// This host, as its file describes it.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Where the file is.
    pub path: &'a Path,
    /// What the file says.
    pub config: &'a Config,
    /// How a repository is opened.
    pub open: Opener<'a>,
    /// The folder for this host's own state.
    pub state: &'a Path,
    /// The folder for what must be remembered while that one can't be written: gone with the next start of the host.
    pub spare: Option<&'a Path>,
    /// How the watchdog of frozen guests is started.
    pub watchdog: &'a Program,
    /// The socket of the system's journal; none where there is none.
    pub journald: Option<&'a Path>,
}

impl Host<'_> {
    /// What programs of the admin's find in their environment, so that qdelta in them speaks of this host however it
    /// was started.
    fn variables(&self) -> [(&'static str, OsString); 2] {
        let absolute = |path: &Path| {
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into_os_string()
        };
        [("QDELTA_CONFIG", absolute(self.path)), ("STATE_DIRECTORY", absolute(self.state))]
    }

    /// What is kept of the host itself: libvirt's folder, the file of jobs, and what the file names or usually
    /// belongs to it.
    fn files(&self) -> HostFiles {
        let named = self.config.host_files.clone();
        let usual = || host::FILES.iter().map(PathBuf::from).collect();
        let mut files = HostFiles { named: named.is_some(), paths: named.unwrap_or_else(usual) };
        files.paths.extend([self.config.libvirt.config.clone(), self.path.to_owned()]);
        files
    }
}

/// Says what would be done when, and what becomes of each guest. Nothing is done.
///
/// # Errors
/// libvirt's folders can't be read.
pub fn plan(host: &Host<'_>, path: &Path) -> Result<PlanReport> {
    let Host { config, open, .. } = *host;
    let guests = Guests::read(&config.libvirt.libvirt())?;
    let jobs = guests.plans(config, clock::now()?)?;
    let mut problems = guests.problems(config);
    problems.extend(sense::problems(config, &guests, clock::now()?)?);
    let mut places: Vec<(String, &str)> = Vec::new();
    for (name, place) in &config.repositories {
        let opened =
            open(&place.for_a_look()).and_then(|it| it.settings().map(|settings| (it, settings)));
        match opened {
            Err(error) => problems.push(Failure::from(&error.within(format!("repository {name}")))),
            Ok((repository, settings)) => {
                if settings.keep.is_empty() {
                    problems.extend(without_rules(config, name));
                }
                // Links and mounts lead to one place, too.
                let id = repository.id();
                let other = places.iter().find(|(it, _)| it == id).map(|(_, other)| other);
                problems.extend(other.map(|other| one_place(name, other)));
                places.push((id.to_owned(), name));
            }
        }
    }
    for (name, notifier) in &config.notify {
        let problem = notifier.problem().map(|error| error.within(format!("notify.{name}")));
        problems.extend(problem.as_ref().map(Failure::from));
    }
    problems.extend(open_secrets(host));
    let zone = config.zone()?;
    Ok(PlanReport {
        config: path.to_owned(),
        time_zone: zone.iana_name().unwrap_or("the local one").to_owned(),
        guests: guests.fates(config, &jobs),
        jobs,
        notifiers: notifier_plans(config, clock::now()?)?,
        problems,
    })
}

/// Who is told of what.
fn notifier_plans(config: &Config, now: Timestamp) -> Result<Vec<NotifierPlan>> {
    let zone = config.zone()?;
    let plan = |(name, notifier): (&String, &Notifier)| NotifierPlan {
        notifier: name.clone(),
        to: notifier.shown(),
        on: telling::events_of(notifier),
        level: notifier.level,
        jobs: notifier.jobs.clone(),
        digest: notifier.digest.as_ref().map(ToString::to_string),
        next: notifier.digest.as_ref().and_then(|calendar| calendar.next(now, &zone)),
    };
    Ok(config.notify.iter().map(plan).collect())
}

/// What is told when somebody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// What is new.
    News,
    /// Everything.
    Digest,
    /// That somebody can be told.
    Test,
}

/// Tells these notifiers, or all.
///
/// # Errors
/// One is called otherwise; another process is telling. That one can't be told is part of the result.
pub fn notify(host: &Host<'_>, only: &[String], tell: Tell) -> Result<NotifyReport> {
    let known = || host.config.notify.keys().map(String::as_str);
    if let Some(name) = only.iter().find(|name| !host.config.notify.contains_key(*name)) {
        let text = format!("there is no [notify.{name}]");
        return Err(Error::new(ErrorKind::Usage, text).advise(
            match words::nearest(name, known()).or(known().next()) {
                Some(near) => format!("did you mean {near}?"),
                None => "[notify.NAME] in the file says who is told of what".to_owned(),
            },
        ));
    }
    let now = clock::now()?;
    if tell == Tell::Test {
        return Ok(telling::test(host, only, now));
    }
    let occasion = telling::Occasion {
        now,
        ended: None,
        pings: Vec::new(),
        failure: None,
        cut: None,
        look: true,
        digest: tell == Tell::Digest,
        only,
        cancel: None,
    };
    telling::tell(host, occasion)
}

/// The notifiers whose secret stands in a file that everybody on this host may read.
fn open_secrets(host: &Host<'_>) -> Vec<Failure> {
    let is_open = host.path.metadata().is_ok_and(|it| it.mode() & 0o004 != 0);
    let shows = |(_, notifier): &(&String, &Notifier)| is_open && notifier.shows_a_secret();
    let problem = |(name, _): (&String, &Notifier)| {
        let text =
            format!("notify.{name}: its address is a secret, and everybody here may read the file");
        let error = Error::new(ErrorKind::Usage, text);
        Failure::from(&error.advise(format!(
            "say file:PATH or credential:NAME in its place, or chmod 600 {}",
            host.path.display()
        )))
    };
    let of_file = |(name, notifier): (&String, &Notifier)| {
        let is_open = |path: &&Path| path.metadata().is_ok_and(|it| it.mode() & 0o004 != 0);
        let path = notifier.secret_files().into_iter().find(is_open)?;
        let text =
            format!("notify.{name}: everybody here may read the secret in {}", path.display());
        let error = Error::new(ErrorKind::Usage, text);
        Some(Failure::from(&error.advise(format!("chmod 600 {}", path.display()))))
    };
    let all = || host.config.notify.iter();
    all().filter(shows).map(problem).chain(all().filter_map(of_file)).collect()
}

/// Says that two names mean one repository.
fn one_place(name: &str, other: &str) -> Failure {
    let text = format!("repositories.{name} and repositories.{other} are one repository");
    let error = Error::new(ErrorKind::Usage, text);
    Failure::from(
        &error.advise("give it one name, and use it in all jobs; a second copy is elsewhere"),
    )
}

/// The jobs that prune by no rule: they say none, and their repository has none.
fn without_rules(config: &Config, repository: &str) -> Vec<Failure> {
    let is_one = |name: &str, job: &Job| {
        let has_none = job.prune.as_ref().is_some_and(|prune| prune.keep.is_none());
        has_none && config.repository_of(name, job).is_ok_and(|(it, _)| it == repository)
    };
    let jobs = config.jobs.iter().filter(|(name, job)| is_one(name, job));
    let problem = |name: &String| Failure {
        kind: ErrorKind::Usage,
        text: format!("job {name}: no rule says what pruning keeps"),
        advice: Some(format!(
            "say keep = {{ daily = 14 }} in [jobs.{name}.prune], or [keep] in the repository's qdelta.toml"
        )),
    };
    jobs.map(|(name, _)| problem(name)).collect()
}

/// What was done by itself on this host.
///
/// # Errors
/// The history can't be read.
pub fn history(state: &Path) -> Result<RunHistory> {
    Journal::new(state).read()
}
