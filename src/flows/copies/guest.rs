//! The points of one guest, oldest first: each is whole in the other repository before the next one begins.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Seek};

use jiff::Timestamp;
use tempfile::SpooledTempFile;

use super::carry::{Carrier, Have, Roots, fits, path, record_of};
use super::told::Told;
use super::{CopyRequest, Sides, late};
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::flows::merge::tidy;
use crate::flows::report::{
    Carried, CopiedDisk, CopiedPoint, FailedPoint, Failure, Fate, GuestCopy,
};
use crate::flows::retain::{self, Clock, Policy};
use crate::formats::archive::Kind;
use crate::vault::repository::storage::Publish;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DiskId, DiskName, DomainLock, DomainName, Link, MachineFile, Manifest, Pin, PointId,
    Repository, SNAPSHOT_HOLDER, Stamp, Verdict,
};

/// A file of a machine stays in memory up to this many bytes on its way.
const MACHINE_MEMORY_MAX: usize = 8 << 20;

/// The manifests of a guest, as they could be read.
type Manifests = Vec<(PointId, Result<Manifest>)>;

/// What the other repository has of a disk.
#[derive(Default)]
struct There {
    have: Have,
    roots: Roots,
}

/// Copies the points of a guest.
pub(super) struct Guest<'a> {
    pub sides: Sides<'a>,
    pub request: &'a CopyRequest,
    pub domain: &'a DomainName,
}

/// What one run has found out about a guest.
struct Work<'a> {
    carrier: Carrier<'a>,
    to: Catalog,
    told: Told,
    disks: BTreeMap<DiskName, There>,
    /// The files of the machine that are there, and were proved in this run.
    machine: BTreeSet<String>,
    /// Archives that were proved, by their disks.
    proved: Vec<(DiskName, String)>,
}

impl Guest<'_> {
    /// Copies what is missing. What fails at one point stops no other.
    pub fn run(&self) -> GuestCopy {
        let mut report = GuestCopy {
            domain: self.domain.clone(),
            points: Vec::new(),
            present: 0,
            pinned: Vec::new(),
            failed: Vec::new(),
            error: None,
        };
        let done = match self.request.dry_run {
            true => self.rehearse(&mut report),
            false => self.copy(&mut report),
        };
        report.error = done.err().map(|error| Failure::from(&error));
        report
    }

    fn copy(&self, report: &mut GuestCopy) -> Result<()> {
        let Sides { from, to, observer, cancel } = self.sides;
        let wait = Wait::by(observer, cancel);
        let _hold = from.hold(self.domain, wait)?;
        let source = from.catalog();
        let manifests = source.manifests(self.domain)?;
        let wanted = self.wanted(&source, &manifests)?;
        self.fail_lost(&source, report)?;
        if manifests.is_empty() {
            return Ok(());
        }
        let disks: BTreeSet<DiskName> = manifests
            .iter()
            .filter_map(|(_, manifest)| manifest.as_ref().ok())
            .flat_map(|manifest| manifest.disks.iter().map(|record| record.disk.clone()))
            .collect();
        to.check_names(self.domain, &disks)?;
        let lock = to.lock(self.domain, wait)?;
        let (cleaned, _) = to.clean_but(&lock, &wanted)?;
        for leftover in &cleaned.kept {
            let text = format!("{} belongs to no recovery point", leftover.path.display());
            observer.warn(Warning::new(Code::Stray, text));
        }
        // By credentials that can only add, nothing there can be removed.
        if let Err(error) = tidy(to, &lock, observer, cancel) {
            let text = "what merges have replaced there could not be removed";
            observer.warn(Warning::failed(Code::NotMerged, &error).within(text));
        }
        self.look_back(&source, &to.catalog());
        let points = self.look_for_late(&manifests);
        let options = &self.request.options;
        let catalog = to.catalog();
        let mut work = Work {
            carrier: Carrier { from: &source, to, lock: &lock, options, observer, cancel },
            told: Told::read(&catalog, self.domain)?,
            to: catalog,
            disks: BTreeMap::new(),
            machine: BTreeSet::new(),
            proved: Vec::new(),
        };
        let there = self.there(&work.to, &mut work.disks)?;
        self.check_same_guest(&manifests, &there)?;
        let done = self.each(&manifests, &wanted, &there, report, |manifest| work.point(manifest));
        let renewed = self.renew_pins(&lock, &manifests, &there, report);
        work.note();
        if let Some(newest) = to.catalog().newest_of(self.domain) {
            to.saw(self.domain, newest);
        }
        let copied = report.points.iter().flat_map(|point| &point.disks);
        let bytes: u64 = copied.map(|disk| disk.bytes_written).sum();
        if bytes > 0 {
            to.note_added(self.domain, bytes);
        }
        to.keep_safe(self.domain, observer);
        from.saw_points(self.domain, &points);
        done.and(renewed)
    }

    /// Says what would be copied, as far as the manifests tell.
    fn rehearse(&self, report: &mut GuestCopy) -> Result<()> {
        let Sides { from, to, .. } = self.sides;
        let source = from.catalog();
        let manifests = source.manifests(self.domain)?;
        self.look_for_late(&manifests);
        let wanted = self.wanted(&source, &manifests)?;
        self.fail_lost(&source, report)?;
        let target = to.catalog();
        let mut disks = BTreeMap::new();
        let there = self.there(&target, &mut disks)?;
        self.check_same_guest(&manifests, &there)?;
        let told = Told::read(&target, self.domain)?;
        self.each(&manifests, &wanted, &there, report, |manifest| {
            told.check(manifest)?;
            let mut copied = copied(manifest);
            for record in &manifest.disks {
                let id = DiskId { domain: self.domain.clone(), disk: record.disk.clone() };
                let There { have, .. } = disks.entry(record.disk.clone()).or_default();
                let path = path(&source, &id, link_of(&source, &id, manifest)?, have)?;
                let storage = from.storage();
                let len = |link: &Link| storage.entry(&link.archive).ok().flatten()?.len;
                copied.disks.push(CopiedDisk {
                    disk: record.disk.clone(),
                    kind: match path.last().is_some_and(|link| link.parent.is_none()) {
                        true => Kind::Full,
                        false => Kind::Incremental,
                    },
                    how: if path.len() == 1 { Carried::Copied } else { Carried::Merged },
                    archives: path.len() as u64,
                    bytes_written: path.iter().filter_map(len).sum(),
                });
                have.insert(manifest.point, record.clone());
            }
            Ok(copied)
        })
    }

    /// Goes through the points that are wanted and missing, the oldest first.
    fn each(
        &self,
        manifests: &Manifests,
        wanted: &BTreeSet<PointId>,
        there: &BTreeMap<PointId, Result<Manifest>>,
        report: &mut GuestCopy,
        mut copy: impl FnMut(&Manifest) -> Result<CopiedPoint>,
    ) -> Result<()> {
        let mut failed_before = false;
        for (point, manifest) in manifests.iter().filter(|(point, _)| wanted.contains(point)) {
            self.sides.cancel.check()?;
            let done = match (manifest, there.get(point)) {
                (Err(error), _) => Err(error.clone()),
                (Ok(ours), Some(Ok(theirs))) => same(ours, theirs).map(|()| None),
                (Ok(_), Some(Err(error))) => {
                    let [to, from] = [self.sides.to, self.sides.from].map(Repository::shell_word);
                    let advice = format!("qdelta repair --repo {to} --from {from} mends it there");
                    Err(error.clone().within("the other repository has it").advise(advice))
                }
                (Ok(manifest), None) => copy(manifest).map(Some),
            };
            match done {
                Ok(Some(copied)) => {
                    failed_before = false;
                    report.points.push(copied);
                }
                Ok(None) => report.present += 1,
                // What is wrong with one point says nothing about the next one; all else does, and a sector
                // that can't be read twice in a row may be a disk that is gone.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Exists
                    ) || error.kind() == ErrorKind::Io && !failed_before =>
                {
                    failed_before = error.kind() == ErrorKind::Io;
                    let error = Failure::from(&error);
                    report.failed.push(FailedPoint { point: *point, error });
                }
                Err(error) => return Err(error.within(format!("point {point}"))),
            }
        }
        Ok(())
    }

    /// The points that are to be in the other repository.
    fn wanted(&self, source: &Catalog, manifests: &Manifests) -> Result<BTreeSet<PointId>> {
        let Some(keep) = &self.request.points else {
            let is_there = |it: &Result<Manifest>| {
                it.as_ref().map_or(true, |manifest| manifest.removed.is_none())
            };
            let there = manifests.iter().filter(|(_, manifest)| is_there(manifest));
            return Ok(there.map(|(point, _)| *point).collect());
        };
        let settings = source.repository().settings()?;
        let policy = Policy {
            keep: keep.clone(),
            grace: settings.grace,
            zone: settings.zone()?,
            now: clock::now()?,
            // Nothing is removed, whatever the clock says.
            clock: Clock::Trusted,
        };
        let decided = retain::decide(source, self.domain, &policy)?;
        let kept = decided.points.iter().filter(|verdict| verdict.fate == Fate::Keep);
        Ok(kept.map(|verdict| verdict.point).collect())
    }

    /// The points of the other repository; of each disk, those that something new can build on.
    fn there(
        &self,
        target: &Catalog,
        disks: &mut BTreeMap<DiskName, There>,
    ) -> Result<BTreeMap<PointId, Result<Manifest>>> {
        let mut there: BTreeMap<_, _> = target.manifests(self.domain)?.into_iter().collect();
        let (sound, going) = (sound(target, self.domain, &there)?, going(&there));
        let files = self.sides.to.machine_digests(self.domain)?;
        for (point, manifest) in there.iter_mut().filter(|(point, _)| !going.contains(point)) {
            let living = manifest.as_ref().ok().filter(|it| it.removed.is_none());
            if let Some(damage) = living.and_then(|it| damage(*point, it, &sound, &files)) {
                *manifest = Err(Error::new(ErrorKind::Damaged, damage));
            }
        }
        for (disk, have) in sound {
            disks.insert(disk, There { have, roots: Roots::default() });
        }
        Ok(there)
    }

    /// Fails if another guest is there under the same name: none of its points is here, and none was made where
    /// these were.
    fn check_same_guest(
        &self,
        manifests: &Manifests,
        there: &BTreeMap<PointId, Result<Manifest>>,
    ) -> Result<()> {
        let Sides { from, to, .. } = self.sides;
        let good = || manifests.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
        let theirs = || there.values().filter_map(|manifest| manifest.as_ref().ok());
        let is_shared = |manifest: &Manifest| match there.get(&manifest.point) {
            Some(Ok(theirs)) => same(manifest, theirs).is_ok(),
            // Nobody knows what it was.
            Some(Err(_)) => true,
            None => false,
        };
        let machine = |manifest: &Manifest| manifest.machine.as_ref()?.uuid.clone();
        let ours: BTreeSet<_> = good().map(origin).chain([Some(from.id())]).collect();
        let is_known = self.request.same_guest
            || theirs().next().is_none()
            || good().any(is_shared)
            || theirs().any(|manifest| ours.contains(&origin(manifest)))
            || good()
                .filter_map(machine)
                .next_back()
                .is_some_and(|ours| theirs().filter_map(machine).next_back() == Some(ours));
        if is_known {
            return Ok(());
        }
        let (domain, to, from) = (self.domain, to.path().display(), from.path().display());
        let text = format!(
            "{to} has another guest {domain}: none of its points is in {from}, or was made there"
        );
        Err(Error::new(ErrorKind::Usage, text).advise(
            "if it is the same guest, say --same-guest once; if not, copy it to another repository",
        ))
    }

    /// Points whose manifests are lost can't be copied.
    fn fail_lost(&self, source: &Catalog, report: &mut GuestCopy) -> Result<()> {
        for (point, what) in without_manifest(source, self.domain)? {
            let error = Error::new(ErrorKind::Damaged, what).advise(
                "qdelta repair brings the manifest back from a repository that has the point",
            );
            report.failed.push(FailedPoint { point, error: Failure::from(&error) });
        }
        Ok(())
    }

    /// The points that are here, after a warning of those that came after later ones.
    fn look_for_late(&self, manifests: &Manifests) -> BTreeSet<PointId> {
        let points = manifests.iter().map(|(point, _)| *point).collect();
        late::warn(self.sides.from, self.domain, &points, self.sides.observer);
        points
    }

    /// Warns if one of the repositories has an earlier state than it had.
    fn look_back(&self, source: &Catalog, target: &Catalog) {
        let Sides { from, to, observer, .. } = self.sides;
        for (repository, catalog) in [(from, source), (to, target)] {
            let newest = catalog.newest_of(self.domain);
            let seen = repository.newest_seen(self.domain);
            if let Some(seen) = seen.filter(|seen| newest.is_none_or(|newest| newest < *seen)) {
                let text = format!(
                    "point {seen} of {} was there when this host looked last, and is gone from {}",
                    self.domain,
                    repository.path().display()
                );
                observer.warn(Warning::new(Code::WentBack, text).advise(COMPARE));
            }
        }
        let (ours, theirs) = (source.newest_of(self.domain), target.newest_of(self.domain));
        if let Some(theirs) = theirs.filter(|theirs| ours.is_none_or(|ours| ours < *theirs)) {
            let text = format!(
                "the newest point of {} in {} is {theirs}, and {} has none so late",
                self.domain,
                to.path().display(),
                from.path().display()
            );
            observer.warn(Warning::new(Code::WentBack, text).advise(COMPARE));
        }
    }

    /// Renews the admin's pins of points that are there: a pin that ended or was taken away here stays there. That of
    /// a snapshot goes with the snapshot. What else holds a point for a while holds it in its own repository.
    fn renew_pins(
        &self,
        lock: &DomainLock,
        manifests: &Manifests,
        there: &BTreeMap<PointId, Result<Manifest>>,
        report: &mut GuestCopy,
    ) -> Result<()> {
        let now = clock::now()?;
        for point in self.pinned_and_gone(manifests, there)? {
            // The image has lost the snapshot: the rules decide there, too.
            self.sides.to.mark(lock, point, |marks| {
                marks.unpin(Some(SNAPSHOT_HOLDER));
                Ok(())
            })?;
        }
        for (point, manifest) in manifests {
            let (Ok(ours), Some(Ok(theirs))) = (manifest, there.get(point)) else { continue };
            let of_snapshot =
                |it: &Manifest| it.pins.iter().find(|it| it.is_of_snapshot()).cloned();
            let (own, known) = (of_snapshot(ours), of_snapshot(theirs));
            let holds = |pin: &Option<Pin>| pin.as_ref().is_some_and(|pin| pin.holds(now));
            // One that an admin took away there does not come back.
            if known.is_some() && holds(&own) != holds(&known) && same(ours, theirs).is_ok() {
                // The image has lost the snapshot, and the rules decide there, too; or it has it again.
                self.sides.to.mark(lock, *point, |marks| {
                    marks.unpin(Some(SNAPSHOT_HOLDER));
                    if holds(&own) {
                        marks.removed = None;
                    }
                    marks.pins.extend(own.clone());
                    Ok(())
                })?;
            }
            let of_admin = |manifest: &Manifest| {
                manifest.pins.iter().find(|pin| pin.holder.is_none()).cloned()
            };
            let Some(pin) = of_admin(ours).filter(|pin| pin.holds(now)) else { continue };
            if is_older(of_admin(theirs).as_ref(), &pin, now) && same(ours, theirs).is_ok() {
                self.sides.to.mark(lock, *point, |marks| {
                    marks.pin(pin.clone());
                    // Whatever the rules there say.
                    marks.removed = None;
                    Ok(())
                })?;
                report.pinned.push(*point);
            }
        }
        Ok(())
    }

    /// The points that a snapshot pins there, and that are gone here: each went after its pin did, for no rule removes
    /// what is pinned. Gone it is only where later points of the same origin are, and nothing of it.
    fn pinned_and_gone(
        &self,
        manifests: &Manifests,
        there: &BTreeMap<PointId, Result<Manifest>>,
    ) -> Result<Vec<PointId>> {
        let pinned = there.iter().filter_map(|(point, theirs)| {
            let theirs = theirs.as_ref().ok()?;
            let is_here = manifests.iter().any(|(id, _)| id == point);
            let is_pinned = theirs.pins.iter().any(Pin::is_of_snapshot);
            (is_pinned && !is_here).then_some((*point, theirs))
        });
        let mut gone: Vec<_> = pinned.collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let lost = without_manifest(&self.sides.from.catalog(), self.domain)?;
        gone.retain(|(point, theirs)| {
            let is_later = |(id, ours): &(PointId, Result<Manifest>)| {
                let ours = ours.as_ref().ok();
                id > point && ours.is_some_and(|it| origin(it) == origin(theirs))
            };
            !lost.contains_key(point) && manifests.iter().any(is_later)
        });
        Ok(gone.into_iter().map(|(point, _)| point).collect())
    }
}

/// Where a point was made.
fn origin(manifest: &Manifest) -> Option<&str> {
    manifest.origin.as_deref().or(manifest.repository.as_deref())
}

/// What to do where a repository has an earlier state.
pub(super) const COMPARE: &str = "if nobody has removed it, the repository was put back to an earlier state: qdelta verify \
                       --against says what each one has";

/// Whether a pin is to take the place of another.
fn is_older(old: Option<&Pin>, new: &Pin, now: Timestamp) -> bool {
    old.is_none_or(|old| !old.holds(now) || old.at < new.at)
}

/// Of each disk, the points that are whole as far as can be seen, and that do not go.
pub(super) fn sound(
    catalog: &Catalog,
    domain: &DomainName,
    manifests: &BTreeMap<PointId, Result<Manifest>>,
) -> Result<BTreeMap<DiskName, Have>> {
    let good = || manifests.values().filter_map(|manifest| manifest.as_ref().ok());
    let going = going(manifests);
    let disks: BTreeSet<&DiskName> =
        good().flat_map(|manifest| manifest.disks.iter().map(|record| &record.disk)).collect();
    let mut sound = BTreeMap::new();
    for disk in disks {
        let id = DiskId { domain: domain.clone(), disk: disk.clone() };
        let list = catalog.points(&id)?;
        let health = catalog.health(&id, &list)?;
        let damaged = catalog.known_damaged(&id, &list.points);
        let whole = list.points.into_iter().filter(|point| {
            health.restorable.contains(&point.id)
                && !damaged.contains(&point.id)
                && !going.contains(&point.id)
        });
        let have: Have = whole.map(|point| (point.id, point.record)).collect();
        sound.insert(disk.clone(), have);
    }
    Ok(sound)
}

/// What keeps a point from coming back whole, as far as can be seen; none if nothing does.
pub(super) fn damage(
    point: PointId,
    manifest: &Manifest,
    sound: &BTreeMap<DiskName, Have>,
    files: &BTreeSet<String>,
) -> Option<String> {
    let is_whole = |disk| sound.get(disk).is_some_and(|have| have.contains_key(&point));
    if let Some(record) = manifest.disks.iter().find(|record| !is_whole(&record.disk)) {
        return Some(format!("disk {} can't be restored whole", record.disk));
    }
    let mut needed = manifest.machine.iter().flat_map(|machine| &machine.files);
    let lost = needed.find(|file| !files.contains(&file.digest.to_string()))?;
    Some(format!("a file of the machine is missing: {}", lost.path.display()))
}

/// The points whose archives are here and whose manifests are lost.
pub(super) fn without_manifest(
    catalog: &Catalog,
    domain: &DomainName,
) -> Result<BTreeMap<PointId, String>> {
    let disks = match catalog.disks_of(domain) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        disks => disks?,
    };
    let mut lost = BTreeMap::new();
    for disk in disks {
        for (archive, point) in catalog.strays(&disk)? {
            let path = catalog.repository().describe(&archive);
            lost.insert(point, format!("its manifest is lost, and {} is here", path.display()));
        }
    }
    Ok(lost)
}

/// The points that are being removed: another one lists their archives.
pub(super) fn going(manifests: &BTreeMap<PointId, Result<Manifest>>) -> BTreeSet<PointId> {
    let good = manifests.values().filter_map(|manifest| manifest.as_ref().ok());
    let listed = good.flat_map(|it| it.replaces.iter().map(move |going| (it.point, going.point)));
    listed.filter(|(carrier, going)| carrier != going).map(|(_, going)| going).collect()
}

/// Fails unless two manifests show the same disks.
pub(super) fn same(one: &Manifest, other: &Manifest) -> Result<()> {
    let roots = |manifest: &Manifest| -> BTreeMap<DiskName, _> {
        manifest.disks.iter().map(|record| (record.disk.clone(), record.root)).collect()
    };
    match roots(one) == roots(other) {
        true => Ok(()),
        false => {
            let text =
                format!("the other repository has another point {} of {}", one.point, one.domain);
            Err(Error::new(ErrorKind::Exists, text)
                .advise("the two repositories hold different guests under one name: use another"))
        }
    }
}

/// The archive of a point of a disk.
pub(super) fn link_of(from: &Catalog, disk: &DiskId, manifest: &Manifest) -> Result<Link> {
    let point = from.point(disk, manifest.point).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{disk} has no point {}", manifest.point))
    })?;
    Ok(Link::of(&point))
}

fn copied(manifest: &Manifest) -> CopiedPoint {
    CopiedPoint { point: manifest.point, created: manifest.created, disks: Vec::new() }
}

impl Work<'_> {
    /// Copies a point.
    fn point(&mut self, manifest: &Manifest) -> Result<CopiedPoint> {
        self.told.check(manifest)?;
        let is_lost = self.told.is_alone(manifest.point);
        let arrival = self.carrier.to.arrive(self.carrier.lock, manifest.point, is_lost)?;
        let (mut made, mut copied) = (manifest.clone(), copied(manifest));
        made.pins.retain(|pin| pin.holder.is_none() || pin.is_of_snapshot());
        (made.removed, made.replaces) = (None, Vec::new());
        match self.bring(manifest, &mut made, &mut copied) {
            Ok(()) => {
                arrival.commit(&made, Publish::New)?;
                for record in &made.disks {
                    let there = self.disks.entry(record.disk.clone()).or_default();
                    there.have.insert(made.point, record.clone());
                }
                Ok(copied)
            }
            Err(error) => {
                // What has arrived is there for whoever goes on.
                if !copied.disks.is_empty() {
                    arrival.leave();
                }
                Err(error)
            }
        }
    }

    /// Brings all that a point needs, and says in `made` what its archives are called there.
    fn bring(
        &mut self,
        manifest: &Manifest,
        made: &mut Manifest,
        copied: &mut CopiedPoint,
    ) -> Result<()> {
        for record in &mut made.disks {
            let disk = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            let there = self.disks.entry(record.disk.clone()).or_default();
            let of = (manifest.point, &*record);
            let arrived = match self.carrier.find(&self.to, &disk, of, &there.have)? {
                Some(found) => found,
                None => {
                    let link = link_of(self.carrier.from, &disk, manifest)?;
                    self.carrier.carry(&disk, link, &there.have, false)?
                }
            };
            fits(&arrived.reader, &disk, of)?;
            let (have, cancel) = (&there.have, self.carrier.cancel);
            there.roots.prove(&self.to, &disk, &arrived.reader, have, cancel)?;
            *record = record_of(record, &arrived)?;
            copied.disks.push(CopiedDisk {
                disk: record.disk.clone(),
                kind: record.kind,
                how: arrived.how,
                archives: arrived.archives,
                bytes_written: record.bytes_written,
            });
            if let Some(beside) = arrived.beside {
                beside.keep();
            }
            self.proved.push((record.disk.clone(), record.archive.clone()));
        }
        let Some(machine) = &manifest.machine else { return Ok(()) };
        let (from, lock) = (self.carrier.from.repository(), self.carrier.lock);
        for file in &machine.files {
            let digest = file.digest.to_string();
            // Only once it has arrived: the next point needs the file as well. One that lies there is proved.
            if self.machine.contains(&digest) {
                continue;
            }
            let to = self.carrier.to;
            if to.copy_machine_file(&manifest.domain, file, &mut io::sink()).is_err() {
                bring_machine_file(from, to, lock, file)?;
            }
            self.machine.insert(digest);
        }
        Ok(())
    }

    /// Notes on this host what was proved there.
    fn note(&self) {
        let (to, domain) = (self.carrier.to, self.carrier.lock.domain());
        if self.proved.is_empty() {
            return;
        }
        let catalog = to.catalog();
        let stamps: Vec<(&DiskName, &str, Stamp)> = self
            .proved
            .iter()
            .filter_map(|(disk, archive)| {
                let id = DiskId { domain: domain.clone(), disk: disk.clone() };
                let stamp = catalog.stamp(&to.archive(&id, archive))?;
                Some((disk, archive.as_str(), stamp))
            })
            .collect();
        let noted = to.note(domain, |history| {
            for (disk, archive, stamp) in stamps {
                history.note(disk, archive, stamp, Verdict::Proved);
            }
        });
        if let Err(error) = noted {
            self.carrier.observer.warn(Warning::failed(Code::NotNoted, &error));
        }
    }
}

/// Brings a file of a machine, and proves it where it has arrived.
pub(super) fn bring_machine_file(
    from: &Repository,
    to: &Repository,
    lock: &DomainLock,
    file: &MachineFile,
) -> Result<()> {
    let domain = lock.domain();
    let mut content = SpooledTempFile::new(MACHINE_MEMORY_MAX);
    from.copy_machine_file(domain, file, &mut content)?;
    content.rewind().map_err(|error| Error::io("read", &file.path, error))?;
    to.store_machine_file(lock, content, &file.path)?;
    to.copy_machine_file(domain, file, &mut io::sink())
}
