//! What is done by itself: the host's file of jobs, one run of what is due, the history of runs, and
//! whether everything is all right.
//!
//! A run goes through the jobs one after the other: backup, copy, verification, pruning, drill. What fails
//! stops nothing else, and everything leaves a record.

mod config;
mod due;
mod guests;
mod journal;
mod programs;
mod run;
mod status;
mod words;

use std::path::Path;

use crate::base::clock;
use crate::base::error::Result;
use crate::flows::report::{Failure, PlanReport, RunHistory};
use crate::guest::quiesce::Program;
use crate::vault::repository::Repository;
use guests::Guests;

pub use config::{
    Anchor, Config, Consistency, Copy, Drill, EXAMPLE, Hooks, IoClass, Job, JobImage, LibvirtPlace,
    Limits, Pattern, Prune, RepositoryPlace, Verify,
};
pub use journal::Journal;
pub use run::run;
pub use status::status;

/// Opens a repository: its place is as `--repo` takes it.
pub type Opener<'a> = &'a (dyn Fn(&RepositoryPlace) -> Result<Repository> + Sync);

/// This host, as its file describes it.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// What the file says.
    pub config: &'a Config,
    /// How a repository is opened.
    pub open: Opener<'a>,
    /// The folder for this host's own state.
    pub state: &'a Path,
    /// How the watchdog of frozen guests is started.
    pub watchdog: &'a Program,
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
    for (name, place) in &config.repositories {
        let opened = open(place).and_then(|it| it.settings().map(|settings| (it, settings)));
        match opened {
            Err(error) => problems.push(Failure::from(&error.within(format!("repository {name}")))),
            Ok((_, settings)) if settings.keep.is_empty() => {
                problems.extend(without_rules(config, name));
            }
            Ok(_) => {}
        }
    }
    let zone = config.zone()?;
    Ok(PlanReport {
        config: path.to_owned(),
        time_zone: zone.iana_name().unwrap_or("the local one").to_owned(),
        guests: guests.fates(config, &jobs),
        jobs,
        problems,
    })
}

/// The jobs that prune by no rule: they say none, and their repository has none.
fn without_rules(config: &Config, repository: &str) -> Vec<Failure> {
    let is_one = |name: &str, job: &Job| {
        let has_none = job.prune.as_ref().is_some_and(|prune| prune.keep.is_none());
        has_none && config.repository_of(name, job).is_ok_and(|(it, _)| it == repository)
    };
    let jobs = config.jobs.iter().filter(|(name, job)| is_one(name, job));
    let problem = |name: &String| Failure {
        kind: crate::base::error::ErrorKind::Usage,
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
