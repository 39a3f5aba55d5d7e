//! The internal snapshots of images: each moment at which they were taken becomes a point of its own, before the
//! point of the state that the disks have now.
//!
//! A snapshot's point is made against the latest state, or against the snapshot before it. States follow
//! states, as if there were no snapshots: an anchor belongs to a state, and what it claims holds from that
//! state on. Only the first state of a disk is made against the last of its snapshots, where there is one.
//!
//! Two snapshots of one file, or a snapshot and the file's state, are compared by their tables: what both
//! refer to is the same bytes, read at the same moment.

use qdelta_formats::archive::{Consistency, Digest, Geometry, Tracker};
use qdelta_formats::qcow2::Snapshot;

use super::disk::{self, DiskBackup, geometry_for};
use super::snapshot_pins::{self, Listed, taken};
use super::together::{Ready, Together};
use super::{AnchorChoice, Options, publish};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::base::warning::{Code, Warning};
use crate::disk::edit::{self, ImageFile};
use crate::disk::image::{self, Format, Image, OpenOptions, Unwritten};
use crate::flows::anchors::inventory::image_at;
use crate::flows::anchors::is_anchor;
use crate::flows::capture::Captured;
use crate::flows::report::StoredSnapshot;
use crate::flows::tracking::changes::Claim;
use crate::flows::tracking::{self, Tracked};
use crate::vault::point::{Base, Before, KindChoice};
use crate::vault::repository::{
    Catalog, DiskId, Manifest, Point, PointId, SnapshotRecord, snapshot_pin,
};

/// A host takes the snapshots of a stopped guest's disks one after the other; no further apart than this, in
/// seconds.
const APART_MAX_S: i64 = 60;

/// A snapshot in the image of a disk.
#[derive(Debug, Clone)]
struct Member {
    /// The number of the disk.
    disk: usize,
    record: SnapshotRecord,
}

/// The snapshots that show one moment of a guest: at most one of each disk.
#[derive(Debug)]
struct Moment(Vec<Member>);

/// How many points are to be made of snapshots at most: their ids lie before that of the state, which anchors
/// and programs are told before the disks are taken.
pub(super) fn count<'a>(
    catalog: &Catalog,
    disks: impl IntoIterator<Item = (&'a DiskId, &'a std::path::Path, &'a OpenOptions)>,
) -> u64 {
    let mut count = 0;
    for (disk, path, open) in disks {
        if open.as_file || open.export.is_some() || open.format == Some(Format::Raw) {
            continue;
        }
        // Whoever can't be looked at now is told of when it is taken.
        let Ok(Some(file)) = image_at(path) else { continue };
        let snapshots = edit::snapshot::list(&file).unwrap_or_default();
        let snapshots: Vec<_> = snapshots.iter().filter(|it| !is_anchor(&it.name)).collect();
        if snapshots.is_empty() {
            continue;
        }
        let points = catalog.points(disk).map(|list| list.points).unwrap_or_default();
        let is_stored = |it: &Snapshot| {
            let mut known = points.iter().filter_map(|point| point.record.snapshot.as_ref());
            record(&file, it).is_ok_and(|record| known.any(|known| *known == record))
        };
        count += snapshots.into_iter().filter(|it| !is_stored(it)).count();
    }
    count as u64
}

/// Makes points of the snapshots in the images that were taken, but for those that are stored already. What
/// can't be stored of them is a warning: the state is worth a point without them.
///
/// # Errors
/// Somebody asked to stop; the repository is full, or can't be read.
pub(super) fn store<'a>(
    together: &Together<'a>,
    ready: &mut [Ready<'a>],
    sources: &[Captured],
    cancel: &Cancel,
) -> Result<()> {
    let Some(reserved) = together.snapshots else { return Ok(()) };
    let mut found = Found::default();
    for (number, (disk, source)) in ready.iter().zip(sources).enumerate() {
        let observer = &OfDisk::new(together.observer, disk.disk);
        found.look(number, source, observer);
    }
    let manifests = together.catalog.manifests(together.lock.domain())?;
    let mut storing = Storing { together, ready, sources, latest: Vec::new(), cancel };
    storing.latest.resize_with(sources.len(), || None);
    let mut ids = (0..reserved)
        .rev()
        .filter_map(|ago| PointId::from_ms(together.point.as_ms().checked_sub(ago + 1)?));
    let (mut is_begun, mut oldest) = (false, None);
    for moment in moments(found.members.clone()) {
        // A disk that was left out, or could not be read, has its snapshot in another point.
        let is_stored = |member: &Member| {
            let mut sound = manifests.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
            sound.any(|manifest| storing.holds(manifest, member))
        };
        let missing: Vec<Member> =
            moment.0.iter().filter(|member| !is_stored(member)).cloned().collect();
        if missing.is_empty() {
            continue;
        }
        let moment = Moment(missing);
        cancel.check()?;
        if !std::mem::replace(&mut is_begun, true) {
            storing.track_states()?;
        }
        let Some(id) = ids.next() else {
            let text = "it was taken while the backup began: the next backup stores it";
            let warning = Warning::new(Code::SnapshotLeftOut, text);
            moment.0.iter().for_each(|member| storing.warn(member, warning.clone()));
            continue;
        };
        match storing.write(&moment, id) {
            Ok(()) => oldest = moment.0.iter().map(|it| it.record.taken).chain(oldest).min(),
            Err(error) if is_of_all(&error) => return Err(error),
            Err(error) => {
                let warning = Warning::failed(Code::SnapshotLeftOut, &error);
                moment.0.iter().for_each(|member| storing.warn(member, warning.clone()));
            }
        }
    }
    storing.begin_states();
    snapshot_pins::warn_of_unread(&manifests, oldest, together.observer);
    snapshot_pins::settle(together, storing.ready, &found.listed, &manifests)
}

/// Whether a failure is none of one snapshot: what comes after it would fail as well.
fn is_of_all(error: &Error) -> bool {
    [ErrorKind::Interrupted, ErrorKind::NoSpace, ErrorKind::Busy].contains(&error.kind())
}

/// The snapshots in all images.
#[derive(Default)]
struct Found {
    members: Vec<Member>,
    listed: Listed,
}

impl Found {
    /// Lists those in the image of a disk.
    fn look(&mut self, disk: usize, source: &Captured, observer: &dyn Observer) {
        let listed = self.list(disk, source, observer);
        if let Err(error) = &listed {
            let warning = Warning::failed(Code::SnapshotLeftOut, error);
            observer.warn(warning.within("the snapshots in its image can't be told"));
        }
        self.listed.is_known.push(listed.is_ok());
    }

    fn list(&mut self, disk: usize, source: &Captured, observer: &dyn Observer) -> Result<()> {
        if source.options.export.is_some() {
            let text = "its image is read through a server, which shows no snapshots";
            return Err(Error::new(ErrorKind::Usage, text)
                .advise("back the guest up with --with-snapshots while it is stopped"));
        }
        let top = source.image.layers().first();
        if source.options.as_file || top.is_none_or(|top| top.format != Format::Qcow2) {
            return Ok(());
        }
        let Some(store) = source.image.files().first() else { return Ok(()) };
        let file = ImageFile::to_read(store.clone());
        let all = edit::snapshot::list(&file)?;
        for snapshot in all.iter().filter(|it| !is_anchor(&it.name)) {
            self.listed.entries.push((disk, snapshot.clone()));
            let is_only = all.iter().filter(|it| it.id == snapshot.id).count() == 1;
            let sound = match is_only {
                true => record(&file, snapshot),
                // It is opened by its id.
                false => Err(Error::new(ErrorKind::Image, "another snapshot has the same id")),
            };
            match sound {
                Ok(record) => self.members.push(Member { disk, record }),
                Err(error) => {
                    let name = String::from_utf8_lossy(&snapshot.name).escape_debug().to_string();
                    let warning = Warning::failed(Code::SnapshotLeftOut, &error);
                    observer.warn(warning.within(&format!("snapshot {name}")));
                }
            }
        }
        Ok(())
    }
}

fn record(file: &ImageFile, snapshot: &Snapshot) -> Result<SnapshotRecord> {
    let odd = |what: &str| {
        Error::new(ErrorKind::Image, format!("{} is no text, or makes no sense", what))
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Ok(SnapshotRecord {
        id: text(&snapshot.id).ok_or_else(|| odd("its id"))?,
        name: text(&snapshot.name).ok_or_else(|| odd("its name"))?,
        taken: taken(snapshot).ok_or_else(|| odd("its time"))?,
        vm_clock_ns: snapshot.vm_clock_ns,
        vm_state_bytes: snapshot.vm_state_size,
        tables: Digest(edit::snapshot::tables(file, snapshot)?),
    })
}

/// The moments that snapshots show, in the order in which they were taken. Those of a running guest have the very
/// same time and clock; those that were taken one after the other of a stopped guest's disks have the same name.
fn moments(mut members: Vec<Member>) -> Vec<Moment> {
    members.sort_by_key(|member| member.record.taken);
    let mut moments: Vec<Moment> = Vec::new();
    for member in members {
        let is_its = |moment: &&mut Moment| {
            moment.0.iter().all(|other| {
                other.disk != member.disk && is_of_one_moment(&other.record, &member.record)
            })
        };
        let apart = |moment: &&mut Moment| {
            let first = moment.0.first().map(|first| first.record.taken);
            first.map(|first| member.record.taken.duration_since(first).abs())
        };
        match moments.iter_mut().filter(is_its).min_by_key(apart) {
            Some(moment) => moment.0.push(member),
            None => moments.push(Moment(vec![member])),
        }
    }
    moments
}

fn is_of_one_moment(one: &SnapshotRecord, other: &SnapshotRecord) -> bool {
    let is_same = (one.taken, one.vm_clock_ns) == (other.taken, other.vm_clock_ns);
    let apart = one.taken.as_second().abs_diff(other.taken.as_second());
    let is_near = !one.is_of_running() && !other.is_of_running() && apart <= APART_MAX_S as u64;
    one.name == other.name && (is_same || is_near)
}

/// What was stored last of a disk by this backup.
struct Latest {
    point: Point,
    /// The snapshot, opened.
    image: Image,
    name: String,
}

struct Storing<'s, 'a> {
    together: &'s Together<'a>,
    ready: &'s mut [Ready<'a>],
    sources: &'s [Captured],
    latest: Vec<Option<Latest>>,
    cancel: &'s Cancel,
}

impl Storing<'_, '_> {
    /// Whether a point has the snapshot of a disk.
    fn holds(&self, manifest: &Manifest, member: &Member) -> bool {
        let disk = self.ready.get(member.disk).map(|it| &it.disk.disk);
        let record = disk.and_then(|disk| manifest.disk(disk));
        record.and_then(|record| record.snapshot.as_ref()) == Some(&member.record)
    }

    fn warn(&self, member: &Member, warning: Warning) {
        let Some(ready) = self.ready.get(member.disk) else { return };
        let within = format!("snapshot {}", member.record.name.escape_debug());
        self.together.observer.warn(warning.within(&within).of(ready.disk));
    }

    /// Makes a point of a moment.
    fn write(&mut self, moment: &Moment, id: PointId) -> Result<()> {
        let started = std::time::Instant::now();
        let Together { lock, options, observer, .. } = *self.together;
        let repository = self.together.catalog.repository();
        // What was made a moment ago is a parent now.
        let catalog = repository.catalog();
        let is_running = moment.0.iter().any(|member| member.record.is_of_running());
        let consistency =
            if is_running { Consistency::CrashConsistent } else { Consistency::Offline };
        let (mut written, mut stored) = (Vec::new(), Vec::new());
        let wanted: Vec<(DiskId, Options)> =
            moment.0.iter().filter_map(|member| self.options(member, options)).collect();
        for (member, (disk, options)) in moment.0.iter().zip(&wanted) {
            let done = self
                .job(member, disk, options, &catalog, id, consistency)
                .and_then(|(job, image)| Ok((disk::write(job, observer, self.cancel)?, image)));
            match done {
                Ok((mut done, image)) => {
                    done.record.snapshot = Some(member.record.clone());
                    written.push(done);
                    stored.push((member, image));
                }
                Err(error) if is_of_all(&error) => {
                    written.into_iter().for_each(|done| done.rest.discard());
                    return Err(error);
                }
                // The other disks have theirs.
                Err(error) => {
                    let warning = Warning::failed(Code::SnapshotLeftOut, &error);
                    self.warn(member, warning);
                }
            }
        }
        if written.is_empty() {
            return Ok(());
        }
        let mut manifest = Manifest::new(id, lock.domain().clone(), consistency);
        let name = moment.0.first().map(|first| first.record.name.clone()).unwrap_or_default();
        manifest.pins = vec![snapshot_pin(&name, clock::now()?)];
        manifest.elapsed_ms = started.elapsed().as_millis() as u64;
        let reports = publish(written, manifest, repository, observer)?;
        let catalog = repository.catalog();
        for ((member, image), report) in stored.into_iter().zip(reports) {
            let Some(ready) = self.ready.get_mut(member.disk) else { continue };
            let SnapshotRecord { id, name, taken, .. } = member.record.clone();
            let point = catalog.point(ready.disk, report.point);
            let latest = point.map(|point| Latest { point, image, name: name.clone() });
            if let Some(place) = self.latest.get_mut(member.disk) {
                *place = latest;
            }
            ready.stored.push(StoredSnapshot {
                point: report.point,
                id,
                name,
                taken,
                kind: report.kind,
                parent: report.parent,
                bytes_read: report.bytes_read,
                bytes_changed: report.bytes_changed,
                bytes_written: report.bytes_written,
            });
        }
        Ok(())
    }

    /// The name of the disk, and how its snapshot is backed up.
    fn options(&self, member: &Member, options: &Options) -> Option<(DiskId, Options)> {
        let disk = self.ready.get(member.disk)?.disk.clone();
        let anchor = AnchorChoice::None;
        let how = Options { kind: KindChoice::Auto, track: None, anchor, ..options.clone() };
        Some((disk, Options { is_aside: true, synthetic: false, ..how }))
    }

    /// What is to be written of a snapshot, and the snapshot once more, to compare the next one with.
    fn job<'j>(
        &self,
        member: &Member,
        disk: &'j DiskId,
        options: &'j Options,
        catalog: &'j Catalog,
        point: PointId,
        consistency: Consistency,
    ) -> Result<(DiskBackup<'j, 'j>, Image)>
    where
        Self: 'j,
    {
        let none = || Error::new(ErrorKind::Usage, "no such disk");
        let from = self.sources.get(member.disk).ok_or_else(none)?;
        let open = OpenOptions { snapshot: Some(member.record.id.clone()), ..from.options.clone() };
        let source = Captured::live(&from.path, &open)?;
        let image = Image::open(&from.path, &open)?;
        let (base, tracked) = match self.latest.get(member.disk).and_then(Option::as_ref) {
            Some(latest) => {
                let base = Base::after(catalog, latest.point.clone())?;
                let tracked = by_tables(latest, &image, &base)?;
                (base, tracked)
            }
            None => {
                let mut base = Base::choose(catalog, disk, KindChoice::Auto)?;
                let tracked = self.by_state(member.disk, &image, &base)?;
                // Nothing is said of the state that came before it.
                (base.latest, base.is_forgotten) = (None, false);
                (base, tracked)
            }
        };
        let lock = self.together.lock;
        Ok((
            DiskBackup {
                catalog,
                lock,
                point,
                disk,
                consistency,
                options,
                base,
                source,
                tracked: Some(tracked),
                stored: Vec::new(),
            },
            image,
        ))
    }

    /// Finds out what has changed between the latest states and those now: of use for the snapshots that were taken
    /// in between, too.
    fn track_states(&mut self) -> Result<()> {
        let Together { catalog, options, observer, .. } = *self.together;
        for (ready, source) in self.ready.iter_mut().zip(self.sources) {
            let Some(before) = ready.base.before() else { continue };
            let size = geometry_for(&source.image, options.block_size, Some(before))?;
            let observer: &dyn Observer = &OfDisk::new(observer, ready.disk);
            let choose = || tracking::choose(catalog, &ready.base, source, size, options.track);
            ready.tracked = Some(observer.step("check", choose)?);
        }
        Ok(())
    }

    /// What may have changed between the latest state and a snapshot: what has changed between that state and
    /// the one now, and what the tables of the latter have otherwise than the snapshot's.
    fn by_state(&self, disk: usize, image: &Image, base: &Base) -> Result<Tracked> {
        let none = || Error::new(ErrorKind::Usage, "no such disk");
        let ready = self.ready.get(disk).ok_or_else(none)?;
        let source = self.sources.get(disk).ok_or_else(none)?;
        let scan =
            || Tracked::scan("nothing tells what has changed until the snapshot", Vec::new());
        let against = ready.base.point().map(|point| point.id);
        let (Some(tracked), Some(before)) = (&ready.tracked, base.before()) else {
            return Ok(scan());
        };
        let Some(claim) =
            tracked.claim.as_ref().filter(|_| against == base.point().map(|point| point.id))
        else {
            return Ok(scan());
        };
        let mut own = Claim::none(geometry(image, before)?);
        own.add_blocks(claim.blocks());
        own.add_resize(source.image.virtual_size());
        own.add_resize(before.geometry().virtual_size());
        image::differences(image, &source.image, &Unwritten, |range| {
            own.add(range);
            Ok(())
        })?;
        Ok(Tracked {
            tracker: tracked.tracker,
            claim: Some(own),
            why: format!("{}; and the tables differ from the snapshot's", tracked.why),
            refused: Vec::new(),
        })
    }

    /// The first state of a disk is made against the last of its snapshots.
    fn begin_states(&mut self) {
        let catalog = self.together.catalog.repository().catalog();
        let is_auto = self.together.options.kind == KindChoice::Auto;
        let all = self.ready.iter_mut().zip(self.sources).zip(&self.latest);
        for ((ready, source), latest) in all.filter(|_| is_auto) {
            let (Some(latest), true) = (latest, ready.base.is_first()) else { continue };
            // Without one, it is a full.
            let Ok(base) = Base::after(&catalog, latest.point.clone()) else { continue };
            let Ok(tracked) = by_tables(latest, &source.image, &base) else { continue };
            (ready.base, ready.tracked) = (base, Some(tracked));
        }
    }
}

/// What the tables say of what has changed since a snapshot that was stored a moment ago.
fn by_tables(latest: &Latest, image: &Image, base: &Base) -> Result<Tracked> {
    let Some(before) = base.before() else {
        return Ok(Tracked::scan("a full needs everything", Vec::new()));
    };
    let mut claim = Claim::none(geometry(image, before)?);
    claim.add_resize(latest.point.record.virtual_size);
    image::differences(&latest.image, image, &Unwritten, |range| {
        claim.add(range);
        Ok(())
    })?;
    let name = latest.name.escape_debug();
    Ok(Tracked {
        tracker: Tracker::Snapshot,
        claim: Some(claim),
        why: format!("the tables differ from those of the snapshot {name}, which was just stored"),
        refused: Vec::new(),
    })
}

/// The disk of an image in the blocks of the chain that it follows.
fn geometry(image: &Image, before: &Before) -> Result<Geometry> {
    Geometry::new(image.virtual_size(), before.geometry().block_size()).map_err(|error| {
        Error::new(ErrorKind::Image, "the disk can't be cut into blocks").because(error)
    })
}
