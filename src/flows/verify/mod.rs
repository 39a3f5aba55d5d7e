//! The flow that proves what a repository holds.
//!
//! Every archive is read once: its index by checksums, every frame by its checksums and, unless
//! asked to be quick, by the digest of each block. Then every point's root is computed from the
//! digests that its chain leaves standing. Both together prove what restoring each point would
//! give, without restoring any.

mod archives;
mod scrub;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::period::Period;
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::Resources;
use crate::flows::report::{FileState, Finding, VerifyReport};
use crate::vault::repository::{
    Catalog, DiskId, DomainName, MachineFile, Needed, Point, PointId, PointList, Repository,
    Selector, Verdict, Wanted,
};
use archives::{Damage, Seen};

/// What to verify, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// A disk or all of a guest, or everything in the repository.
    pub disk: Option<Wanted>,
    /// One of its points and what that one needs, or all of them.
    pub point: Option<Selector>,
    /// Checksums alone: nothing is decompressed.
    pub quick: bool,
    /// Only what was not proved for long, and not more than fits; all of it if none.
    pub scrub: Option<Scrub>,
    /// Threads and I/O.
    pub resources: Resources,
}

/// Which archives a scrub takes: what was proved longest ago comes first.
#[derive(Debug, Clone, Default)]
pub struct Scrub {
    /// What was proved within this time is left out; without it, nothing is.
    pub max_age: Option<Period>,
    /// How much is read, or how long; without it, everything that is due.
    pub budget: Option<Budget>,
}

/// What a scrub may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So much time: the archive at hand is finished.
    Time(Duration),
    /// So many bytes of archives, or one archive that is longer.
    Bytes(u64),
}

/// Verifies a repository, a disk, or a point.
///
/// # Errors
/// Damage is no error here but a finding; an error says that the verification could not be done.
pub fn run(
    repository: &Repository,
    request: &VerifyRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    let started = std::time::Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let mut report = VerifyReport { quick: request.quick, ..VerifyReport::default() };
    if let Some(error) = repository.trouble() {
        report.findings.push(finding(&repository.path().join("qdelta.toml"), NO_POINTS, &error));
        observer.warn(Warning::failed(Code::Unreadable, &error));
    }
    let catalog = repository.catalog();
    let mut disks = match &request.disk {
        Some(wanted) => catalog.find_disks(wanted)?,
        None => {
            let survey = catalog.survey()?;
            for folder in &survey.unreadable {
                report.findings.push(unlisted(&folder.path, &folder.error));
            }
            survey.disks
        }
    };
    if let Some(selector) = request.point.as_ref().filter(|_| disks.len() > 1) {
        // A disk of a guest may be younger than the point, or not be in it.
        let is_missing = |disk: &DiskId| {
            let found = catalog.resolve(disk, selector);
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        if !disks.iter().all(is_missing) {
            disks.retain(|disk| !is_missing(disk));
        }
    }
    match &request.scrub {
        Some(scrub) => {
            let work = scrub::Work { catalog: &catalog, request, observer, cancel, started };
            work.run(scrub, &disks, &mut report)?;
        }
        None => {
            for disk in &disks {
                verify_disk(&catalog, disk, request, observer, cancel, &mut report)?;
            }
        }
    }
    let domains: BTreeSet<_> = disks.iter().map(|disk| &disk.domain).collect();
    for domain in domains {
        let of_domain = disks.iter().filter(|disk| disk.domain == *domain);
        let wanted = match &request.point {
            Some(selector) => {
                let points = of_domain.map(|disk| catalog.resolve(disk, selector));
                Some(points.map(|point| Ok(point?.id)).collect::<Result<BTreeSet<_>>>()?)
            }
            None => None,
        };
        verify_machines(&catalog, domain, wanted.as_ref(), &mut report)?;
    }
    // What several disks share was found at each of them, and is said once.
    let mut known = BTreeSet::new();
    report.findings.retain(|found| known.insert((found.path.clone(), found.problem.clone())));
    report.proved = !request.quick && report.findings.is_empty();
    report.warnings = recorder.take();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn verify_disk(
    catalog: &Catalog,
    disk: &DiskId,
    request: &VerifyRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut VerifyReport,
) -> Result<()> {
    let _hold = catalog.repository().hold(&disk.domain)?;
    let points = points_of(catalog, disk, request, report)?;
    report.points += points.len() as u64;
    let needed = catalog.needed_by(disk, &points);
    // All else of the points would only take memory while the archives are read.
    let points = Vec::from_iter(points.into_iter().map(|point| point.id));
    let (due, known, until) = (None, None, None);
    let run = archives::Run { catalog, disk, request, observer, cancel, due, known, until };
    let (damage, seen) = run.verify(&needed, report)?;
    let named = request.point.is_none().then(|| names_of(&needed));
    note(catalog, disk, &damage, &seen, named.as_ref(), request, observer);
    damage.settle(disk, &points, seen.states(), report);
    Ok(())
}

/// The points of a disk that are asked for. What is wrong beside them is reported.
fn points_of(
    catalog: &Catalog,
    disk: &DiskId,
    request: &VerifyRequest,
    report: &mut VerifyReport,
) -> Result<Vec<Point>> {
    if let Some(selector) = &request.point {
        return Ok(vec![catalog.resolve(disk, selector)?]);
    }
    let list = catalog.points(disk)?;
    report_the_rest(catalog, disk, &list, report)?;
    Ok(list.points)
}

/// The names of archives.
fn names_of(needed: &[Needed]) -> BTreeSet<&str> {
    needed.iter().map(|archive| archive.link.archive.last()).collect()
}

/// Notes on this host how archives were found. If all archives of the disk are `named`, what is known of
/// others is forgotten.
fn note(
    catalog: &Catalog,
    disk: &DiskId,
    damage: &Damage,
    seen: &Seen,
    named: Option<&BTreeSet<&str>>,
    request: &VerifyRequest,
    observer: &dyn Observer,
) {
    let noted = catalog.repository().note(&disk.domain, |history| {
        for (path, (name, stamp)) in &seen.stamps {
            let verdict = match damage.of(path) {
                Some(problem) => Verdict::Damaged(problem.to_owned()),
                // Checksums alone prove nothing.
                None if request.quick => continue,
                None => Verdict::Proved,
            };
            history.note(&disk.disk, name, stamp.clone(), verdict);
        }
        if let Some(named) = named {
            history.forget_others(&disk.disk, named);
        }
    });
    if let Err(error) = noted {
        let warning = Warning::failed(Code::NotNoted, &error).of(disk);
        observer
            .warn(warning.within("what was proved could not be noted, and will be proved again"));
    }
}

/// Reports what is wrong with a disk beside its points.
fn report_the_rest(
    catalog: &Catalog,
    disk: &DiskId,
    list: &PointList,
    report: &mut VerifyReport,
) -> Result<()> {
    for folder in &list.unreadable {
        report.findings.push(unlisted(&folder.path, &folder.error));
    }
    // Which archives have no manifest can't be told where the manifests, or they, are not known.
    let strays = match list.unreadable.is_empty() {
        true => catalog.strays(disk)?,
        false => Vec::new(),
    };
    for (archive, point) in strays {
        report.findings.push(Finding {
            path: catalog.repository().describe(&archive),
            state: FileState::Stray,
            points: vec![point],
            problem: "no manifest names this archive: the point's manifest is lost, or was not \
                      copied (replay can restore it from the archives alone)"
                .to_owned(),
        });
    }
    for damaged in &list.damaged {
        report.findings.push(finding(&damaged.path, [damaged.point], &damaged.error));
    }
    Ok(())
}

/// A folder that can't be listed.
fn unlisted(path: &Path, error: &Error) -> Finding {
    let problem = error.chain();
    Finding { path: path.to_path_buf(), state: FileState::Unreadable, points: Vec::new(), problem }
}

/// Proves the files of a domain's machine, each once, at all points or at these.
fn verify_machines(
    catalog: &Catalog,
    domain: &DomainName,
    wanted: Option<&BTreeSet<PointId>>,
    report: &mut VerifyReport,
) -> Result<()> {
    let repository = catalog.repository();
    let _hold = repository.hold(domain)?;
    let mut files: BTreeMap<PathBuf, (MachineFile, BTreeSet<PointId>)> = BTreeMap::new();
    let machines = match wanted {
        Some(points) => catalog.machines_at(domain, points),
        None => catalog.machines(domain),
    };
    for (point, machine) in machines {
        for file in machine.files {
            let path = repository.machine_file_path(domain, &file);
            files.entry(path).or_insert((file, BTreeSet::new())).1.insert(point);
        }
    }
    for (path, (file, points)) in files {
        report.machine_files += 1;
        match repository.copy_machine_file(domain, &file, &mut std::io::sink()) {
            Ok(()) => report.bytes_verified += file.length,
            Err(error) => {
                refuse_unless_damage(&error)?;
                report.findings.push(finding(&path, points, &error));
            }
        }
    }
    Ok(())
}

/// No points in particular.
const NO_POINTS: [PointId; 0] = [];

fn finding(path: &Path, points: impl IntoIterator<Item = PointId>, error: &Error) -> Finding {
    let state = match error.kind() {
        ErrorKind::NotFound => FileState::Missing,
        ErrorKind::Io => FileState::Unreadable,
        _ => FileState::Damaged,
    };
    Finding {
        path: path.to_path_buf(),
        state,
        points: points.into_iter().collect(),
        problem: error.chain(),
    }
}

/// An error that says that the verification itself can't go on is passed up; damage is not.
fn refuse_unless_damage(error: &Error) -> Result<()> {
    match error.kind() {
        ErrorKind::Damaged | ErrorKind::NotFound => Ok(()),
        ErrorKind::Io if !is_exhausted(error) => Ok(()),
        kind => {
            let passed = Error::new(kind, error.chain());
            Err(match error.advice() {
                Some(advice) => passed.advise(advice.to_owned()),
                None => passed,
            })
        }
    }
}

/// Whether the system has no descriptor or no memory left for us: that says nothing about a file.
fn is_exhausted(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let errno = error.downcast_ref().and_then(Errno::from_io_error);
        if matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod unreadable_tests;
