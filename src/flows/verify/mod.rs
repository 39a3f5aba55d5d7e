//! The flow that proves what a repository holds.
//!
//! Every archive is read once: its index by checksums, every frame by its checksums and, unless
//! asked to be quick, by the digest of each block. Then every point's root is computed from the
//! digests that its chain leaves standing. Both together prove what restoring each point would
//! give, without restoring any.

mod archives;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::Resources;
use crate::vault::repository::{
    Catalog, DiskId, DomainName, MachineFile, PointId, PointList, Repository, Selector, Wanted,
};

/// What to verify, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// A disk or all of a guest, or everything in the repository.
    pub disk: Option<Wanted>,
    /// One of its points and what that one needs, or all of them.
    pub point: Option<Selector>,
    /// Checksums alone: nothing is decompressed.
    pub quick: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a verification found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Recovery points that were looked at.
    pub points: u64,
    /// Archives that were read.
    pub archives: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Files of machines that were read: domain XML, firmware variables and the like.
    pub machine_files: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of blocks that were proved (or, if quick, whose checksums were).
    pub bytes_verified: u64,
    /// Whether checksums alone were looked at.
    pub quick: bool,
    /// Whether everything that was looked at is proved: by digests and roots, and nothing was found.
    pub proved: bool,
    /// Everything that is not as it was written. Empty if all is well.
    pub findings: Vec<Finding>,
    /// Disk by disk: which points can be restored, and which archives are sound.
    pub disks: Vec<DiskResult>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
    /// What was found already.
    #[serde(skip)]
    known: BTreeSet<(PathBuf, String)>,
}

/// How a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is what was written.
    Sound,
    /// It is there, and not what was written.
    Damaged,
    /// It is not there.
    Missing,
    /// No manifest names it. It may well be sound.
    Stray,
    /// The system can't read it, or can't list it.
    Unreadable,
}

/// What a verification says of a disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskResult {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Its points that were looked at, oldest first.
    pub points: Vec<PointResult>,
    /// The archives that these need.
    pub archives: Vec<ArchiveResult>,
}

/// What a verification says of a point of a disk.
#[derive(Debug, Clone, Serialize)]
pub struct PointResult {
    /// The point.
    pub point: PointId,
    /// Whether the disk can be restored whole to it.
    pub restorable: bool,
    /// The files because of which it can't.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub because: Vec<PathBuf>,
}

/// What a verification says of an archive.
#[derive(Debug, Clone, Serialize)]
pub struct ArchiveResult {
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// How it was found.
    pub state: State,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The file or folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// How it was found.
    pub state: State,
    /// The recovery points that can't be restored whole because of it.
    pub points: Vec<String>,
    /// What is wrong, and where.
    pub problem: String,
}

impl Report {
    /// Adds a finding. What several disks share is found once.
    fn add(&mut self, finding: Finding) {
        if self.known.insert((finding.path.clone(), finding.problem.clone())) {
            self.findings.push(finding);
        }
    }
}

/// Verifies a repository, a disk, or a point.
///
/// # Errors
/// Damage is no error here but a finding; an error says that the verification could not be done.
pub fn run(
    repository: &Repository,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report> {
    let started = std::time::Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let mut report = Report { quick: request.quick, ..Report::default() };
    if let Some(error) = repository.trouble() {
        report.add(finding(&repository.path().join("qdelta.toml"), NO_POINTS, &error));
        observer.warn(Warning::failed(Code::Unreadable, &error));
    }
    let catalog = repository.catalog();
    let mut disks = match &request.disk {
        Some(wanted) => catalog.find_disks(wanted)?,
        None => {
            let survey = catalog.survey()?;
            for folder in &survey.unreadable {
                report.add(unlisted(&folder.path, &folder.error));
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
    for disk in &disks {
        verify_disk(&catalog, disk, request, observer, cancel, &mut report)?;
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
    report.proved = !request.quick && report.findings.is_empty();
    report.warnings = recorder.take();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn verify_disk(
    catalog: &Catalog,
    disk: &DiskId,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut Report,
) -> Result<()> {
    let _hold = catalog.repository().hold(&disk.domain)?;
    let points = match &request.point {
        Some(selector) => vec![catalog.resolve(disk, selector)?],
        None => {
            let list = catalog.points(disk)?;
            report_the_rest(catalog, disk, &list, report)?;
            list.points
        }
    };
    report.points += points.len() as u64;
    let needed = catalog.needed_by(disk, &points);
    let run = archives::Run { catalog, disk, request, observer, cancel };
    let (damage, archives) = run.verify(&needed, report)?;
    damage.settle(disk, &points, archives, report);
    Ok(())
}

/// Reports what is wrong with a disk beside its points.
fn report_the_rest(
    catalog: &Catalog,
    disk: &DiskId,
    list: &PointList,
    report: &mut Report,
) -> Result<()> {
    for folder in &list.unreadable {
        report.add(unlisted(&folder.path, &folder.error));
    }
    // Which archives have no manifest can't be told where the manifests, or they, are not known.
    let strays = match list.unreadable.is_empty() {
        true => catalog.strays(disk)?,
        false => Vec::new(),
    };
    for (archive, point) in strays {
        report.add(Finding {
            path: catalog.repository().describe(&archive),
            state: State::Stray,
            points: vec![point.to_string()],
            problem: "no manifest names this archive: the point's manifest is lost, or was not \
                      copied (replay can restore it from the archives alone)"
                .to_owned(),
        });
    }
    for damaged in &list.damaged {
        report.add(finding(&damaged.path, [damaged.point], &damaged.error));
    }
    Ok(())
}

/// A folder that can't be listed.
fn unlisted(path: &Path, error: &Error) -> Finding {
    let problem = error.chain();
    Finding { path: path.to_path_buf(), state: State::Unreadable, points: Vec::new(), problem }
}

/// Proves the files of a domain's machine, each once, at all points or at these.
fn verify_machines(
    catalog: &Catalog,
    domain: &DomainName,
    wanted: Option<&BTreeSet<PointId>>,
    report: &mut Report,
) -> Result<()> {
    let repository = catalog.repository();
    let _hold = repository.hold(domain)?;
    let mut files: BTreeMap<PathBuf, (MachineFile, BTreeSet<String>)> = BTreeMap::new();
    let machines = match wanted {
        Some(points) => catalog.machines_at(domain, points),
        None => catalog.machines(domain),
    };
    for (point, machine) in machines {
        for file in machine.files {
            let path = repository.machine_file_path(domain, &file);
            files.entry(path).or_insert((file, BTreeSet::new())).1.insert(point.to_string());
        }
    }
    for (path, (file, points)) in files {
        report.machine_files += 1;
        match repository.copy_machine_file(domain, &file, &mut std::io::sink()) {
            Ok(()) => report.bytes_verified += file.length,
            Err(error) => {
                refuse_unless_damage(&error)?;
                report.add(finding(&path, points, &error));
            }
        }
    }
    Ok(())
}

/// No points in particular.
const NO_POINTS: [PointId; 0] = [];

fn finding<T: ToString>(
    path: &Path,
    points: impl IntoIterator<Item = T>,
    error: &Error,
) -> Finding {
    let state = match error.kind() {
        ErrorKind::NotFound => State::Missing,
        ErrorKind::Io => State::Unreadable,
        _ => State::Damaged,
    };
    Finding {
        path: path.to_path_buf(),
        state,
        points: points.into_iter().map(|point| point.to_string()).collect(),
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
