//! The flow that proves that guests come back: a point is climbed rung by rung, from its bytes to the
//! admin's own check in the running guest, as far as this machine lets it.
//!
//! What could not be tried is never counted as passed.

mod boot;
mod inside;
mod ladder;
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfGuest, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::files::make_private_folder;
use crate::disk::flow::pipeline::Resources;
use crate::flows::host;
use crate::flows::mount;
use crate::flows::report::{DrillHistory, DrillReport, DrillsReport, Failure, GuestDrills};
use crate::vault::repository::storage::{Local, Lock, LockMode, Locked, Name, Storage, Wait};
use crate::vault::repository::{
    Catalog, DiskAt, DomainName, Drill, Repository, Rung, Selector, Targets,
};

/// Which guests to drill, and how.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// Guests, and perhaps a point of each; all guests if none is named.
    pub guests: Vec<DiskAt>,
    /// Only so many of them: those whose last drill is longest ago.
    pub pick: Option<usize>,
    /// How far to climb.
    pub wanted: Rung,
    /// The program that boots a guest.
    pub boot_command: Option<PathBuf>,
    /// How long each program may take.
    pub time_limit: Duration,
    /// What drills are compared with; where nothing is said, the repository's settings decide.
    pub targets: Targets,
    /// A folder of this host for what the programs need, and for what is kept of them.
    pub folder: PathBuf,
    /// Threads and I/O.
    pub resources: Resources,
}

/// Drills guests, one after the other. One that fails does not stop the others.
///
/// # Errors
/// No guest is called so; the repository can't be listed, or its settings make no sense. That a guest
/// does not come back is a result and no error.
pub fn run(
    repository: &Repository,
    request: &DrillRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<DrillsReport> {
    let started = Instant::now();
    repository.storage().distrust_copies();
    let settings = repository.settings()?.drill;
    let targets = Targets {
        rto: request.targets.rto.or(settings.rto),
        rpo: request.targets.rpo.or(settings.rpo),
    };
    let _turn = turn(&request.folder)?;
    let mut guests = guests(&repository.catalog(), &request.guests)?;
    if let Some(pick) = request.pick {
        // Those that were never drilled come first, then those whose drill is longest ago.
        guests.sort_by_key(|(domain, _)| last(repository, domain).map(|drill| drill.began));
        guests.truncate(pick);
    }
    let mut report = DrillsReport::default();
    for (domain, selector) in guests {
        if cancel.is_cancelled() {
            report.interrupted = true;
            break;
        }
        let recorder = Recorder::new(observer);
        let named = OfGuest::new(&recorder, domain.as_str());
        let ladder = ladder::Ladder::new(repository, request, targets, &named, cancel);
        let climbed = ladder.and_then(|ladder| ladder.climb(&domain, &selector));
        let (drill, error) = match climbed {
            Ok(drill) => (Some(drill), None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                report.interrupted = true;
                break;
            }
            Err(error) => (None, Some(Failure::from(&error))),
        };
        if let Some(drill) = &drill {
            note(repository, &domain, drill, &named);
        }
        let warnings = recorder.take();
        report.guests.push(DrillReport { domain, drill, error, warnings });
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Makes sure that no other drill runs on this host: guests that boot beside each other say nothing of how
/// long one takes. What a drill that was killed has left behind is removed.
fn turn(folder: &Path) -> Result<Box<dyn Lock>> {
    make_private_folder(folder).map_err(|error| Error::io("make", folder, error))?;
    let lock = match Local::new(folder).lock(
        &Name::top().join("lock"),
        LockMode::Exclusive,
        Wait::UNHEARD,
    )? {
        Locked::Held(lock) => lock,
        Locked::Busy(holder) => {
            let text = format!("another drill runs on this host: {holder}");
            return Err(Error::new(ErrorKind::Busy, text).advise("wait until it is done"));
        }
    };
    let left = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for left in left.filter(|it| it.file_name().to_string_lossy().starts_with(ladder::PREFIX)) {
        mount::clean_up(&left.path().join(ladder::POINTS));
        // What can't be removed now is tried again the next time.
        let _ = std::fs::remove_dir_all(left.path());
    }
    Ok(lock)
}

/// What this host remembers of the drills of guests: of those that are named, or of all.
///
/// # Errors
/// No guest is called so; the repository can't be listed.
pub fn history(repository: &Repository, named: &[DiskAt]) -> Result<DrillHistory> {
    let guests = guests(&repository.catalog(), named)?;
    let guests = guests.into_iter().map(|(domain, _)| {
        let drills = repository.drills(&domain);
        GuestDrills { domain, drills }
    });
    Ok(DrillHistory { guests: guests.collect() })
}

/// The last drill of a guest.
fn last(repository: &Repository, domain: &DomainName) -> Option<Drill> {
    repository.drills(domain).pop()
}

/// The guests that are named, each once, and the point of each.
fn guests(catalog: &Catalog, named: &[DiskAt]) -> Result<Vec<(DomainName, Selector)>> {
    if named.is_empty() {
        let domains = catalog.repository().domains()?.into_iter();
        // No machine starts from the configuration of a host.
        let domains = domains.filter(|domain| !host::is_host(domain));
        return Ok(domains.map(|domain| (domain, Selector::Latest)).collect());
    }
    let mut guests = BTreeMap::new();
    for at in named {
        if at.disk.disk().is_some() {
            let text = format!("{} is one disk, and a drill is of a whole guest", at.disk);
            return Err(Error::new(ErrorKind::Usage, text).advise("name the guest: GUEST[@POINT]"));
        }
        let domain = catalog.find_domain(&at.disk.to_string())?;
        guests.insert(domain, at.point.clone().unwrap_or(Selector::Latest));
    }
    Ok(guests.into_iter().collect())
}

/// Remembers a drill on this host.
fn note(repository: &Repository, domain: &DomainName, drill: &Drill, observer: &dyn Observer) {
    let noted = repository.note(domain, |history| history.note_drill(drill.clone()));
    if let Err(error) = noted {
        let warning = Warning::failed(Code::NotNoted, &error);
        observer.warn(warning.within("the drill could not be noted, and will be due again"));
    }
}
