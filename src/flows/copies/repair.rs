//! What is damaged or lost in one repository, mended from another that has the same points.
//!
//! A mended archive is written beside the damaged one, under an id of its own, and proved; then the manifest of
//! its point names it, and only then the old one goes: the order of a merge. So nothing is worse at any moment
//! than it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::carry::{Arrived, Carrier, Have, Roots, fits, path, record_of};
use super::guest::{bring_machine_file, going, link_of};
use super::told::Told;
use super::{Sides, check_apart};
use crate::base::cancel::Cancel;
use crate::base::error::{AGAIN, Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::flows::merge::{MergeOptions, tidy};
use crate::flows::report::{
    FailedPoint, Failure, FileState, GuestRepair, Mended, Part, RepairReport, VerifyReport,
};
use crate::flows::verify::{self, Target, VerifyRequest};
use crate::vault::repository::storage::Publish;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Beside, Catalog, DiskId, DiskName, DiskRecord, DomainLock, DomainName, Link, Manifest, PointId,
    Replaced, Repository,
};

/// What to mend, and how.
#[derive(Debug, Clone)]
pub struct RepairRequest {
    /// The guests.
    pub domains: Vec<DomainName>,
    /// Say what would be tried, and do nothing.
    pub dry_run: bool,
    /// How to write archives anew, and threads and I/O.
    pub options: MergeOptions,
}

/// Mends what is damaged or lost of guests from another repository. What can't be mended stays as it is.
///
/// # Errors
/// The two are one repository; the work was interrupted: what was mended before stays mended.
pub fn repair(
    (here, from): (&Repository, &Repository),
    request: &RepairRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RepairReport> {
    let started = Instant::now();
    check_apart(here, from)?;
    let recorder = Recorder::new(observer);
    let sides = Sides { from, to: here, observer: &recorder, cancel };
    let mut guests = Vec::new();
    for domain in &request.domains {
        cancel.check()?;
        let mut report = GuestRepair::new(domain.clone());
        match guest(sides, request, domain, &mut report) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => report.error = Some(Failure::from(&error)),
            Ok(()) => {}
        }
        let is_empty =
            report.mended.is_empty() && report.failed.is_empty() && report.only_there.is_empty();
        if report.error.is_some() || !is_empty {
            guests.push(report);
        }
    }
    guests.extend(only_there((here, from), request, &recorder)?);
    Ok(RepairReport {
        repository: here.path().to_owned(),
        from: from.path().to_owned(),
        dry_run: request.dry_run,
        guests,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The guests that are lost here as a whole: nothing of them is left to be mended.
fn only_there(
    (here, from): (&Repository, &Repository),
    request: &RepairRequest,
    observer: &dyn Observer,
) -> Result<Vec<GuestRepair>> {
    let ours = here.domains()?;
    if !ours.iter().all(|domain| request.domains.contains(domain)) {
        return Ok(Vec::new());
    }
    let source = from.catalog();
    let mut lost = Vec::new();
    for domain in from.domains()?.into_iter().filter(|domain| !ours.contains(domain)) {
        let text = format!("{domain} is only in {}", from.path().display());
        observer.warn(Warning::new(Code::WentBack, text).advise(brings((here, from))));
        let manifests = source.manifests(&domain)?;
        let living = manifests.iter().filter(|(_, manifest)| lives(manifest));
        let only_there = living.map(|(point, _)| *point).collect();
        lost.push(GuestRepair { only_there, ..GuestRepair::new(domain) });
    }
    Ok(lost)
}

/// Whether a manifest is sound, and its point not removed.
fn lives(manifest: &Result<Manifest>) -> bool {
    manifest.as_ref().is_ok_and(|manifest| manifest.removed.is_none())
}

/// What brings whole points from the other repository.
fn brings((here, from): (&Repository, &Repository)) -> String {
    let [here, from] = [here, from].map(Repository::shell_word);
    format!("qdelta copy --repo {from} --to {here} brings what is only there")
}

/// Mends a guest.
fn guest(
    sides: Sides<'_>,
    request: &RepairRequest,
    domain: &DomainName,
    report: &mut GuestRepair,
) -> Result<()> {
    let Sides { from, to: here, observer, cancel } = sides;
    let _hold = from.hold(domain, Wait::by(observer, cancel))?;
    let lock = here.lock(domain, Wait::by(observer, cancel))?;
    let source = from.catalog();
    let theirs: BTreeMap<_, _> = source.manifests(domain)?.into_iter().collect();
    if !request.dry_run {
        here.clean_but(&lock, &theirs.keys().copied().collect())?;
    }
    let found = look(here, domain, request, observer, cancel)?;
    let bad = found.findings.iter().filter(|it| it.state != FileState::Stray);
    let catalog = here.catalog();
    let ours: BTreeMap<_, _> = catalog.manifests(domain)?.into_iter().collect();
    let options = &request.options;
    let mut work = Work {
        carrier: Carrier { from: &source, to: here, lock: &lock, options, observer, cancel },
        here: &catalog,
        told: Told::read(&catalog, domain)?,
        dry_run: request.dry_run,
        bad: bad.map(|finding| finding.path.clone()).collect(),
        disks: BTreeMap::new(),
        report,
    };
    let mut points: BTreeSet<PointId> = ours.keys().copied().collect();
    // Archives without a manifest, but for those that are being removed.
    let going = going(&ours);
    for disk in catalog.disks_of(domain)? {
        for point in theirs.keys().filter(|point| !going.contains(point)) {
            if !ours.contains_key(point) && !catalog.archives_at(&disk, *point)?.is_empty() {
                points.insert(*point);
            }
        }
        points.extend(catalog.strays(&disk)?.into_iter().map(|(_, point)| point));
    }
    let newest = points.last().copied();
    let lost = theirs.iter().filter(|(point, it)| Some(**point) > newest && lives(it));
    let lost: Vec<PointId> = lost.map(|(point, _)| *point).collect();
    if !lost.is_empty() {
        let text = format!(
            "{} points of {domain} in {} are later than the newest one here",
            lost.len(),
            from.path().display()
        );
        observer.warn(Warning::new(Code::WentBack, text).advise(brings((here, from))));
    }
    for &point in points.difference(&going) {
        cancel.check()?;
        let done = match (ours.get(&point), theirs.get(&point)) {
            (Some(Ok(manifest)), theirs) => work.mend(manifest, theirs),
            (damaged, Some(Ok(theirs))) => work.bring_back(theirs, damaged.is_some()),
            (Some(Err(error)), None) => Err(missing(error.clone())),
            (Some(Err(error)), Some(Err(_))) => {
                Err(error.clone().within("both manifests are damaged"))
            }
            (None, None) => Err(missing(Error::new(ErrorKind::NotFound, "its manifest is lost"))),
            (None, Some(Err(error))) => Err(error.clone().within("its manifest is lost here")),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => work.fail(point, &error),
            Ok(()) => {}
        }
    }
    report.only_there = lost;
    // With a manifest that can't be read nobody knows what builds on what.
    if !request.dry_run {
        let is_known = report.failed.is_empty();
        let is_tidy = is_known && tidy(here, &lock, observer, cancel)?.is_some();
        report.waiting = !is_tidy && !report.mended.is_empty();
        here.keep_safe(domain, observer);
    }
    Ok(())
}

/// Reads all that there is of a guest.
fn look(
    here: &Repository,
    domain: &DomainName,
    request: &RepairRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    let all = VerifyRequest {
        targets: vec![Target { disk: domain.as_str().parse()?, point: None }],
        quick: false,
        scrub: None,
        resources: request.options.resources,
    };
    match verify::run(here, &all, observer, cancel) {
        // Not one manifest or archive is left to name a disk.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(VerifyReport::default()),
        found => found,
    }
}

fn missing(error: Error) -> Error {
    error.within("the other repository does not have the point")
}

/// What is whole of a disk so far: the oldest points come first.
#[derive(Default)]
struct Whole {
    have: Have,
    roots: Roots,
}

/// The repair of a guest.
struct Work<'a, 'r> {
    carrier: Carrier<'a>,
    here: &'a Catalog,
    told: Told,
    dry_run: bool,
    /// Files that are not what was written, or not there.
    bad: BTreeSet<PathBuf>,
    disks: BTreeMap<DiskName, Whole>,
    report: &'r mut GuestRepair,
}

impl<'a> Work<'a, '_> {
    fn fail(&mut self, point: PointId, error: &Error) {
        self.report.failed.push(FailedPoint { point, error: Failure::from(error) });
    }

    fn mended(&mut self, point: PointId, what: Part, disk: Option<&DiskName>, path: PathBuf) {
        self.report.mended.push(Mended { point, what, disk: disk.cloned(), path });
    }

    /// Mends a point whose manifest is sound: each disk whose archive is damaged, or whose parent is gone, gets
    /// another archive.
    fn mend(&mut self, manifest: &Manifest, theirs: Option<&Result<Manifest>>) -> Result<()> {
        let here = self.carrier.to;
        let (mut made, mut arrivals) = (manifest.clone(), Vec::new());
        let mut failure = Ok(());
        for record in &mut made.disks {
            let id = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            let old = here.describe(&here.archive(&id, &record.archive));
            let Whole { have, .. } = self.disks.entry(record.disk.clone()).or_default();
            let stands = |parent: PointId, root| {
                have.get(&parent).is_some_and(|it: &DiskRecord| it.root == root)
            };
            let has_parent =
                record.parent.as_ref().is_none_or(|parent| stands(parent.point, parent.root));
            let is_bad = self.bad.contains(&old);
            if has_parent && !is_bad {
                have.insert(manifest.point, record.clone());
                continue;
            }
            let of = (manifest.point, &*record);
            let lacks = || match &record.parent {
                Some(parent) if !is_bad => {
                    let text = format!("it builds on point {}, which is not whole", parent.point);
                    missing(Error::new(ErrorKind::Damaged, text))
                }
                _ => missing(damage(&old)),
            };
            let theirs = theirs.ok_or_else(lacks).and_then(|theirs| {
                let theirs = theirs.as_ref().map_err(Error::clone)?;
                let found = theirs.disk(&record.disk).filter(|it| it.root == record.root);
                found.map(|_| theirs).ok_or_else(lacks)
            });
            match theirs.and_then(|theirs| self.another(&id, of, theirs)) {
                Ok(arrived) => {
                    let anchor = record.anchor.clone();
                    let replaced = Replaced {
                        point: manifest.point,
                        disk: record.disk.clone(),
                        archive: record.archive.clone(),
                    };
                    // It could be read this time.
                    let is_old = |it: &Arrived<'_>| it.name.last() == record.archive;
                    if arrived.as_ref().is_some_and(is_old) {
                        tracing::debug!("{} is sound after all", old.display());
                    } else if let Some(arrived) = arrived {
                        *record = DiskRecord { anchor, ..record_of(record, &arrived)? };
                        made.replaces.push(replaced);
                        arrivals.push((id, arrived));
                    } else {
                        self.mended(manifest.point, Part::Archive, Some(&record.disk), old);
                    }
                    let whole = self.disks.entry(record.disk.clone()).or_default();
                    whole.have.insert(manifest.point, record.clone());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                // Of the points below, a manifest may be lost: their archives are still there.
                Err(_) if !is_bad && self.stands(&id, manifest) => {}
                Err(error) => failure = Err(error),
            }
        }
        if !arrivals.is_empty() {
            self.replace(manifest, &made, arrivals)?;
        }
        let machine = self.machine_files(manifest);
        failure.and(machine)
    }

    /// Whether all archives that a disk's point is made of are here and sound, whatever became of manifests.
    fn stands(&self, disk: &DiskId, manifest: &Manifest) -> bool {
        let here = self.carrier.to;
        let path = link_of(self.here, disk, manifest)
            .and_then(|link| path(self.here, disk, link, &Have::default()));
        let is_sound = |link: &Link| !self.bad.contains(&here.describe(&link.archive));
        path.is_ok_and(|links| links.iter().all(is_sound))
    }

    /// Lets the manifest of a point name the archives that have arrived.
    fn replace(
        &mut self,
        old: &Manifest,
        made: &Manifest,
        arrivals: Vec<(DiskId, Arrived<'a>)>,
    ) -> Result<()> {
        let Carrier { to: here, lock, .. } = self.carrier;
        let (found, version) = here.versioned(&old.domain, old.point)?;
        if found != *old {
            let text = format!("point {} has changed meanwhile", old.point);
            return Err(Error::new(ErrorKind::Busy, text).advise(AGAIN));
        }
        let replaced = here.replace_archives(lock, version, made, Some(old), "mended");
        // Where nobody can tell which manifest stands there, both archives stay.
        let stands = || here.versioned(&old.domain, old.point).is_ok_and(|(_, it)| it == version);
        let is_kept = replaced.is_ok() || !stands();
        for (disk, arrived) in arrivals {
            let path = here.describe(&arrived.name);
            if let Some(beside) = arrived.beside.filter(|_| is_kept) {
                beside.keep();
            }
            if replaced.is_ok() {
                self.mended(old.point, Part::Archive, Some(&disk.disk), path);
            }
        }
        replaced
    }

    /// Another archive for a disk's point, proved; nothing in a dry run, if there could be one.
    fn another(
        &mut self,
        disk: &DiskId,
        of: (PointId, &DiskRecord),
        theirs: &Manifest,
    ) -> Result<Option<Arrived<'a>>> {
        let Whole { have, roots } = self.disks.entry(disk.disk.clone()).or_default();
        let (carrier, here) = (self.carrier, self.here);
        if !self.dry_run
            && let Some(found) = carrier.find(here, disk, of, have)?
            && roots.prove(here, disk, &found.reader, have, carrier.cancel).is_ok()
        {
            return Ok(Some(found));
        }
        let link = link_of(carrier.from, disk, theirs)?;
        if self.dry_run {
            return path(carrier.from, disk, link, have).map(|_| None);
        }
        let arrived = carrier.carry(disk, link, have, true)?;
        fits(&arrived.reader, disk, of)?;
        roots.prove(here, disk, &arrived.reader, have, carrier.cancel)?;
        Ok(Some(arrived))
    }

    /// Brings back the manifest of a point, with the archives that are there or come from the other repository.
    fn bring_back(&mut self, theirs: &Manifest, is_damaged: bool) -> Result<()> {
        self.told.check(theirs)?;
        let Carrier { to: here, lock, .. } = self.carrier;
        let name = here.manifest_path(&theirs.domain, theirs.point);
        let (mut made, mut arrivals) = (theirs.clone(), Vec::new());
        // What was removed here stays removed, and what was pinned pinned, as far as anybody can tell. What
        // holds a point for a while holds it in its own repository.
        let left = here.marks_left(&theirs.domain, theirs.point);
        made.pins.retain(|pin| pin.holder.is_none() || pin.is_of_snapshot());
        made.pins.retain(|pin| left.pins.iter().all(|it| it.holder != pin.holder));
        made.pins.extend(left.pins);
        (made.removed, made.replaces) = (left.removed, Vec::new());
        for record in &mut made.disks {
            let id = DiskId { domain: theirs.domain.clone(), disk: record.disk.clone() };
            if let Some(arrived) = self.another(&id, (theirs.point, &*record), theirs)? {
                *record = record_of(record, &arrived)?;
                arrivals.push(arrived);
            }
        }
        if !self.dry_run {
            let from = self.carrier.from.repository();
            for file in theirs.machine.iter().flat_map(|machine| &machine.files) {
                if here.copy_machine_file(&theirs.domain, file, &mut io::sink()).is_err() {
                    bring_machine_file(from, here, lock, file)?;
                }
            }
            let how = if is_damaged { Publish::Replace } else { Publish::New };
            let put = here.put_back(lock, &made, how);
            // Where the manifest may have come to stand there, what it names stays.
            let stands = match here.versioned(&theirs.domain, theirs.point) {
                Ok(_) => true,
                Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged),
            };
            if put.is_ok() || stands {
                arrivals.into_iter().filter_map(|it| it.beside).for_each(Beside::keep);
            }
            put?;
        }
        for record in &made.disks {
            let whole = self.disks.entry(record.disk.clone()).or_default();
            whole.have.insert(made.point, record.clone());
        }
        self.mended(theirs.point, Part::Manifest, None, name);
        Ok(())
    }

    /// Brings the damaged files of a point's machine.
    fn machine_files(&mut self, manifest: &Manifest) -> Result<()> {
        let Some(machine) = &manifest.machine else { return Ok(()) };
        let (here, from) = (self.carrier.to, self.carrier.from.repository());
        let lock: &DomainLock = self.carrier.lock;
        for file in &machine.files {
            let path = here.machine_file_path(&manifest.domain, file);
            if !self.bad.contains(&path) {
                continue;
            }
            if !self.dry_run {
                bring_machine_file(from, here, lock, file)?;
            }
            self.bad.remove(&path);
            self.mended(manifest.point, Part::MachineFile, None, path);
        }
        Ok(())
    }
}

fn damage(path: &std::path::Path) -> Error {
    Error::new(ErrorKind::Damaged, format!("{} is damaged or missing", path.display()))
}
