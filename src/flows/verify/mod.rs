//! The flow that proves what a repository holds.
//!
//! Every archive is read once: its index by checksums, every frame by its checksums and, unless
//! asked to be quick, by the digest of each block. Then every point's root is computed from the
//! digests that its chain leaves standing. Both together prove what restoring each point would
//! give, without restoring any.

mod archives;
mod frames;
mod scrub;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::Errno;

use crate::base::cancel::Cancel;
use crate::base::duration::Stretch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::period::Period;
use crate::base::size;
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::Resources;
use crate::flows::report::{FileState, Finding, VerifyReport};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DamagedFolder, DiskId, DomainName, MachineFile, Needed, Point, PointId, PointList,
    Repository, Selector, Verdict, Wanted,
};
use archives::{Damage, Seen};
pub(crate) use frames::Proof;

/// What to verify, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// What is proved: everything in the repository if nothing is named.
    pub targets: Vec<Target>,
    /// Checksums alone: nothing is decompressed.
    pub quick: bool,
    /// Only what was not proved for long, and not more than fits; all of it if none.
    pub scrub: Option<Scrub>,
    /// Threads and I/O.
    pub resources: Resources,
}

/// A disk or all of a guest, and what of it is proved.
#[derive(Debug, Clone)]
pub struct Target {
    /// The disk, or the guest.
    pub disk: Wanted,
    /// One of its points and what that one needs, or all of them.
    pub point: Option<Selector>,
}

/// A disk that was asked for, and which of its points.
struct Asked {
    disk: DiskId,
    /// All if none.
    points: Option<Vec<Selector>>,
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

impl FromStr for Budget {
    type Err = Error;

    /// Takes a time like `2h` or `90min`, or a size like `200G`. A number alone may be meant as either.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().strip_suffix(['m', 'M']).map(str::trim_end);
        if number.is_some_and(|it| !it.is_empty() && it.chars().all(|c| c.is_ascii_digit())) {
            let text = format!("{text:?} may mean minutes or MiB");
            return Err(Error::new(ErrorKind::Usage, text)
                .advise("minutes are written 90min, a size 512MiB"));
        }
        if let Ok(Stretch(time)) = text.parse() {
            return Ok(Self::Time(time));
        }
        let has_unit = text.ends_with(|c: char| !c.is_ascii_digit());
        size::parse(text).ok().filter(|_| has_unit).map(Self::Bytes).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is no budget"))
                .advise("write a time like 2h or 90min, or a size like 200G")
        })
    }
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
    repository.storage().distrust_copies();
    if let Some(error) = repository.trouble() {
        report.findings.push(finding(repository, &repository.config_path(), NO_POINTS, &error)?);
        observer.warn(Warning::failed(Code::Unreadable, &error));
    }
    let catalog = repository.catalog();
    let asked = asked(&catalog, &request.targets, &mut report)?;
    match &request.scrub {
        Some(scrub) => {
            let work = scrub::Work { catalog: &catalog, request, observer, cancel, started };
            work.run(scrub, &asked, &mut report)?;
        }
        None => {
            for asked in &asked {
                verify_disk(&catalog, asked, request, observer, cancel, &mut report)?;
            }
        }
    }
    // The disks of a domain stand side by side.
    for of_domain in asked.chunk_by(|one, next| one.disk.domain == next.disk.domain) {
        let Some(first) = of_domain.first() else { continue };
        let points = of_domain.iter().map(|asked| asked.named_points(&catalog));
        let points = points.collect::<Result<Option<Vec<_>>>>()?;
        let points = points.map(|all| all.iter().flatten().map(|point| point.id).collect());
        if let Some(warning) = catalog.told_of_written_over(&first.disk.domain)? {
            observer.warn(warning);
        }
        let wait = Wait::by(observer, cancel);
        verify_machines(&catalog, &first.disk.domain, points.as_ref(), wait, &mut report)?;
    }
    report_strangers(&catalog, &request.targets, &mut report, observer);
    if let Some(encryption) = repository.encryption().filter(|_| request.targets.is_empty()) {
        for (path, error) in encryption.damaged_keys()? {
            report.findings.push(finding(repository, &path, NO_POINTS, &error)?);
        }
    }
    for found in &mut report.findings {
        found.name = repository.storage().plain_name(&found.path);
    }
    // What several disks share was found at each of them, and is said once.
    let mut known = BTreeSet::new();
    report.findings.retain(|found| known.insert((found.path.clone(), found.problem.clone())));
    report.proved = !request.quick && report.findings.is_empty();
    report.warnings = recorder.take();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The disks that are meant, sorted. One that is named more than once is proved once.
fn asked(catalog: &Catalog, targets: &[Target], report: &mut VerifyReport) -> Result<Vec<Asked>> {
    let mut all: BTreeMap<DiskId, Option<Vec<Selector>>> = BTreeMap::new();
    if targets.is_empty() {
        let survey = catalog.survey()?;
        for folder in &survey.unreadable {
            report.findings.push(unlisted(catalog.repository(), folder)?);
        }
        all.extend(survey.disks.into_iter().map(|disk| (disk, None)));
    }
    for Target { disk, point } in targets {
        let mut disks = catalog.find_disks(disk)?;
        let Some(selector) = point else {
            all.extend(disks.into_iter().map(|disk| (disk, None)));
            continue;
        };
        // A disk of a guest may be younger than the point, or not be in it.
        let is_missing = |disk: &DiskId| {
            let found = catalog.resolve(disk, selector);
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        if !disks.iter().all(is_missing) {
            disks.retain(|disk| !is_missing(disk));
        }
        for disk in disks {
            let points = all.entry(disk).or_insert_with(|| Some(Vec::new()));
            points.iter_mut().for_each(|points| points.push(selector.clone()));
        }
    }
    Ok(all.into_iter().map(|(disk, points)| Asked { disk, points }).collect())
}

impl Asked {
    /// The points that are named, the oldest first; none if all are meant.
    fn named_points(&self, catalog: &Catalog) -> Result<Option<Vec<Point>>> {
        let Some(selectors) = &self.points else { return Ok(None) };
        let points = selectors.iter().map(|selector| catalog.resolve(&self.disk, selector));
        let mut points = points.collect::<Result<Vec<_>>>()?;
        points.sort_unstable_by_key(|point| point.id);
        points.dedup_by_key(|point| point.id);
        Ok(Some(points))
    }

    /// The points that are asked for. What is wrong beside them is reported.
    fn points(&self, catalog: &Catalog, report: &mut VerifyReport) -> Result<Vec<Point>> {
        if let Some(points) = self.named_points(catalog)? {
            return Ok(points);
        }
        let list = catalog.points(&self.disk)?;
        report_the_rest(catalog, &self.disk, &list, report)?;
        Ok(list.points)
    }
}

fn verify_disk(
    catalog: &Catalog,
    asked: &Asked,
    request: &VerifyRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut VerifyReport,
) -> Result<()> {
    let disk = &asked.disk;
    let _hold = catalog.repository().hold(&disk.domain, Wait::by(observer, cancel))?;
    let points = asked.points(catalog, report)?;
    report.points += points.len() as u64;
    let needed = catalog.needed_by(disk, &points);
    // All else of the points would only take memory while the archives are read.
    let points = Vec::from_iter(points.into_iter().map(|point| point.id));
    let (due, known, until) = (None, None, None);
    let run = archives::Run { catalog, disk, request, observer, cancel, due, known, until };
    let (damage, seen) = run.verify(&needed, report)?;
    let named = asked.points.is_none().then(|| names_of(&needed));
    note(catalog, disk, &damage, &seen, named.as_ref(), request, observer);
    damage.settle(disk, &points, seen.states(), report);
    Ok(())
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
        report.findings.push(unlisted(catalog.repository(), folder)?);
    }
    // Which archives have no manifest can't be told where the manifests, or they, are not known.
    let (strays, misshown) = match list.unreadable.is_empty() {
        true => catalog.strays_and_misshown(disk)?,
        false => Default::default(),
    };
    for wrong in misshown {
        report.findings.push(Finding {
            path: wrong.path,
            name: None,
            state: FileState::Unreadable,
            points: vec![wrong.point],
            problem: wrong.error.chain(),
        });
    }
    for (archive, point) in strays {
        report.findings.push(Finding {
            path: catalog.repository().describe(&archive),
            name: None,
            state: FileState::Stray,
            points: vec![point],
            problem: "no manifest names this archive: the point's manifest is lost, or was not \
                      copied (replay can restore it from the archives alone)"
                .to_owned(),
        });
    }
    for damaged in &list.damaged {
        let (path, points) = (&damaged.path, [damaged.point]);
        report.findings.push(finding(catalog.repository(), path, points, &damaged.error)?);
    }
    Ok(())
}

/// Reports what has a name that nobody of the repository has given: a guest that was renamed is in no list.
/// Where only some of the repository is asked for, what was seen beside it is no damage of it.
fn report_strangers(
    catalog: &Catalog,
    targets: &[Target],
    report: &mut VerifyReport,
    observer: &dyn Observer,
) {
    if !targets.is_empty() {
        if let Some(text) = catalog.strangers() {
            observer.warn(Warning::new(Code::Stray, text).advise("verify the whole repository"));
        }
        return;
    }
    for path in catalog.repository().all_strangers() {
        report.findings.push(Finding {
            path,
            name: None,
            state: FileState::Stray,
            points: Vec::new(),
            problem:
                "nobody of this repository has given this name: the file or folder was renamed, \
                      moved here from another folder, or put here by somebody else"
                    .to_owned(),
        });
    }
}

/// A folder that can't be listed.
///
/// # Errors
/// As [`refuse_of_all`].
fn unlisted(repository: &Repository, folder: &DamagedFolder) -> Result<Finding> {
    refuse_of_all(repository, &folder.error)?;
    let problem = folder.error.chain();
    let (path, state) = (folder.path.clone(), FileState::Unreadable);
    Ok(Finding { path, name: None, state, points: Vec::new(), problem })
}

/// Proves the files of a domain's machine, each once, at all points or at these.
fn verify_machines(
    catalog: &Catalog,
    domain: &DomainName,
    wanted: Option<&BTreeSet<PointId>>,
    wait: Wait<'_>,
    report: &mut VerifyReport,
) -> Result<()> {
    let repository = catalog.repository();
    let _hold = repository.hold(domain, wait)?;
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
                refuse_unless_damage(repository, &error)?;
                report.findings.push(finding(repository, &path, points, &error)?);
            }
        }
    }
    Ok(())
}

/// No points in particular.
const NO_POINTS: [PointId; 0] = [];

/// What is wrong with a file.
///
/// # Errors
/// As [`refuse_of_all`].
fn finding(
    repository: &Repository,
    path: &Path,
    points: impl IntoIterator<Item = PointId>,
    error: &Error,
) -> Result<Finding> {
    refuse_of_all(repository, error)?;
    let state = match error.kind() {
        ErrorKind::NotFound => FileState::Missing,
        ErrorKind::Io => FileState::Unreadable,
        _ => FileState::Damaged,
    };
    Ok(Finding {
        path: path.to_path_buf(),
        name: None,
        state,
        points: points.into_iter().collect(),
        problem: error.chain(),
    })
}

/// An error that says that the verification itself can't go on is passed up; damage is not.
fn refuse_unless_damage(repository: &Repository, error: &Error) -> Result<()> {
    match error.kind() {
        ErrorKind::Damaged | ErrorKind::NotFound => Ok(()),
        ErrorKind::Io if !is_exhausted(error) => refuse_of_all(repository, error),
        _ => Err(error.clone()),
    }
}

/// An error that says nothing of the file that it came up with is passed up: a store that can't be reached, or
/// refuses a key that has ended, would refuse every other file as well.
///
/// # Errors
/// That error.
fn refuse_of_all(repository: &Repository, error: &Error) -> Result<()> {
    let is_of_all = error.kind() == ErrorKind::Io && !is_answered(error);
    match is_of_all && repository.storage().fails_as_a_whole() {
        true => Err(error.clone()),
        false => Ok(()),
    }
}

/// Whether the store has answered, and what it holds is not what was written.
fn is_answered(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|it| it.kind() == std::io::ErrorKind::InvalidData) {
            return true;
        }
        cause = error.source();
    }
    false
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        assert_eq!("2h".parse::<Budget>().unwrap(), Budget::Time(Duration::from_secs(7200)));
        assert_eq!("90min".parse::<Budget>().unwrap(), Budget::Time(Duration::from_secs(5400)));
        assert_eq!("200G".parse::<Budget>().unwrap(), Budget::Bytes(200 << 30));
        // A number alone may be meant as either.
        for bad in ["", "2", "h", "-1h", "2x", "99999999999999999h", "1.5h"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad:?}");
        }
    }
}
