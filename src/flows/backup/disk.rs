//! The part of a backup that is about one disk: from an image at one moment to an archive that waits
//! for its manifest.

use std::path::PathBuf;
use std::time::Instant;

use qdelta_formats::archive::{
    ArchiveId, Consistency, Geometry, Kind, Metadata, Parent, Tracker, frame_blocks,
};

use super::data_path::{self, Selection};
use super::meter::Whole;
use super::{AnchorChoice, Done, Options, wanted_anchor};
use super::{room, same_disk};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::base::random;
use crate::base::warning::{Code, Warning};
use crate::disk::files::device_id;
use crate::disk::files::paths::absolute;
use crate::disk::image::{Format, Image};
use crate::flows::anchors::{self, Tag};
use crate::flows::capture::{Captured, NO_ANCHOR, NO_MORE_TRIES};
use crate::flows::report::{BackupReport, StoredSnapshot};
use crate::flows::tracking::{self, Tracked};
use crate::vault::archive;
use crate::vault::point::{Base, Before, sum_up};
use crate::vault::repository::{
    AnchorKind, Catalog, DiskId, DiskRecord, DomainLock, ImageRecord, LayerRecord, Pending, Point,
    PointId, Refusal, Repository,
};

/// A disk that is to become part of a point.
pub(super) struct DiskBackup<'a, 'b> {
    pub catalog: &'b Catalog,
    pub lock: &'a DomainLock,
    pub point: PointId,
    pub disk: &'b DiskId,
    pub consistency: Consistency,
    pub options: &'b Options,
    pub base: Base,
    pub source: Captured,
    /// What has changed, if that is known already.
    pub tracked: Option<Tracked>,
    /// The snapshots of the disk that were stored before.
    pub stored: Vec<StoredSnapshot>,
}

/// A disk whose archive is written, but for its manifest.
pub(super) struct Written<'a> {
    pub pending: Pending<'a>,
    pub record: DiskRecord,
    pub rest: Rest,
}

/// What of a disk must be dealt with when its point is safe, or when it failed.
pub(super) struct Rest {
    report: BackupReport,
    base: Base,
    repository: Repository,
    disk: DiskId,
    /// The file name of its archive.
    archive: String,
    tag: Tag,
    source: Captured,
    /// The anchors that there are stay: they are of another state, or somebody else removes them.
    leaves_anchors: bool,
}

/// Writes the archive of a disk. If that fails, the anchor that was left for it goes.
pub(super) fn write<'a>(
    mut job: DiskBackup<'a, '_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Written<'a>> {
    match job.run(&OfDisk::new(observer, job.disk), cancel) {
        Ok((pending, record, report)) => {
            let leaves_anchors = job.options.safety || job.options.is_aside;
            let tag = Tag::new(job.catalog.repository(), job.disk);
            let (repository, disk) = (job.catalog.repository().clone(), job.disk.clone());
            let (base, source) = (job.base, job.source);
            let archive = record.archive.clone();
            let rest =
                Rest { report, base, repository, disk, archive, tag, source, leaves_anchors };
            Ok(Written { pending, record, rest })
        }
        Err(error) => {
            job.source.discard();
            Err(error)
        }
    }
}

impl Rest {
    /// The point is safe: the new anchor stays, and all before go, also those of other kinds that
    /// interrupted backups have left. What can't go, the next backup removes.
    pub fn settle(self, observer: &dyn Observer) -> BackupReport {
        let Self { report, base, repository, disk, archive, tag, source, leaves_anchors } = self;
        // The next backup can do without.
        let archive = repository.archive(&disk, &archive);
        if let Err(error) = sum_up(&repository, &disk, base.before(), &archive) {
            let warning = Warning::failed(Code::NoSummary, &error)
                .within("the next backup has to open the whole chain");
            observer.warn(warning.of(&report.disk));
        }
        let path = source.path.clone();
        // What a guest wrote to a raw disk is no anchor, whatever it looks like.
        let is_qcow2 = source.image.layers().first().is_some_and(|top| top.format == Format::Qcow2);
        let names = source.image.file_names().into_iter();
        let files: Vec<PathBuf> = names.filter_map(|name| name.canonicalize().ok()).collect();
        let left = source.anchor.as_ref().map(|anchor| anchor.name.clone());
        if let Some(allocation) = &source.allocation
            && let Err(error) = repository.write_allocation(&disk, allocation)
        {
            let warning = Warning::failed(Code::NoAnchor, &error).within(NO_ANCHOR);
            observer.warn(warning.of(&report.disk));
        }
        source.settle();
        // Before a roll back the image is held by whoever rolls it back, and who removes them then.
        if leaves_anchors {
            return report;
        }
        let old = base.latest.as_ref().and_then(|latest| latest.record.anchor.as_ref());
        let old = old.filter(|old| Some(&old.name) != left.as_ref());
        let removed = old.map_or(Ok(()), |old| {
            let is_bitmap = matches!(old.what, AnchorKind::Bitmap);
            anchors::unless_cheap(anchors::remove(&path, old), is_bitmap)
        });
        // What is still called like the old one is somebody else's.
        let keep = [left.as_deref(), old.map(|old| old.name.as_str())];
        let image = is_qcow2.then_some(path.as_path());
        let swept = anchors::sweep_all(image, &files, &tag, &keep.map(Option::unwrap_or_default));
        // Before the first point, nothing can be said to be old.
        let is_first = base.latest.is_none() && !base.is_forgotten;
        let failed = [removed, swept].into_iter().filter_map(Result::err);
        for error in failed.filter(|_| !is_first) {
            observer.warn(anchors::stays(&error).of(&report.disk));
        }
        report
    }

    /// There is no point: the new anchor goes.
    pub fn discard(self) {
        self.source.discard();
    }
}

impl<'a> DiskBackup<'a, '_> {
    fn run(
        &mut self,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<(Pending<'a>, DiskRecord, BackupReport)> {
        let started = Instant::now();
        if !self.options.may_be_empty {
            same_disk::check_not_empty(&self.base, &self.source)?;
        }
        let before = self.base.before();
        let geometry = geometry_for(&self.source.image, self.options.block_size, before)?;
        let choose = || {
            let track = self.options.track;
            tracking::choose(self.catalog, &self.base, &self.source, geometry, track)
        };
        // An anchor is believed only of a sound image, and to prove that can take minutes.
        let latest = self.base.latest.as_ref();
        let mut tracked = match latest.is_some_and(|latest| latest.record.anchor.is_some()) {
            _ if self.tracked.is_some() => self.tracked.take().map_or_else(choose, Ok)?,
            true => observer.step("check", choose)?,
            false => choose()?,
        };
        let is_known = self.is_known_to_have_no_anchor();
        for warning in &self.source.warnings {
            if !(is_known && warning.code == Code::NoAnchor) {
                observer.warn(warning.clone());
            }
        }
        if let Some(broken) = &self.base.broken_chain {
            observer.warn(Warning::new(Code::BrokenChain, broken));
        }
        same_disk::warn(&self.base, &self.source, observer);
        self.give_up_refused(&tracked);
        let (pending, done, archive_id) = loop {
            let attempt = self.attempt(geometry, &tracked, observer, cancel)?;
            let Some(block) = attempt.1.assembled.missed else { break attempt };
            let reason = format!(
                "its claim is wrong: block {} has changed and is not in it; everything was read \
                 instead",
                block.0
            );
            let text = format!("tracker {}: {reason}", tracked.tracker);
            observer.warn(Warning::new(Code::WrongClaim, text));
            if tracked.tracker == Tracker::LiveBitmap && self.source.counted.is_none() {
                // Whoever cleared one bitmap of the server may clear the next.
                self.source.anchor = None;
            }
            tracked.refused.push(Refusal { tracker: tracked.tracker, reason });
            tracked = Tracked::scan("the claim of another tracker was wrong", tracked.refused);
        };
        same_disk::warn_of_zeros(&self.base, done.assembled.root, geometry, observer);
        let is_said = self.source.warnings.iter().any(|it| it.code == Code::NoAnchor);
        // On later nights it is known: a warning for ever would hide others.
        let had_one = self.base.latest.as_ref().is_some_and(|it| it.record.anchor.is_some());
        let is_news =
            had_one || matches!(self.options.anchor, AnchorChoice::For(_) | AnchorChoice::Begun(_));
        if let Some(wanted) = wanted_anchor(self.options, &self.base)
            && self.source.anchor.is_none()
            && !self.options.safety
            && is_news
            && !is_said
        {
            let why = match wanted {
                Tracker::LiveBitmap => match &self.options.anchor {
                    AnchorChoice::Begun(name) => &format!(
                        "the bitmap {} is not believed: one of a new name must begin",
                        name.escape_debug()
                    ),
                    _ => "no bitmap was named (--live-bitmap, or `leaves` of a snapshot command)",
                },
                Tracker::Reflink => "no clone was made: a copy or a snapshot was read",
                _ => "nothing is written into an image that a guest uses",
            };
            let text = format!("{NO_ANCHOR} ({wanted}): {why}");
            observer.warn(Warning::new(Code::NoAnchor, text).advise(NO_MORE_TRIES));
        }
        if self.base.is_forgotten && matches!(self.options.anchor, AnchorChoice::AsBefore) {
            let text = format!(
                "{NO_ANCHOR}: no earlier point of {} can be read, so which kind it had is not known",
                self.disk
            );
            observer.warn(Warning::new(Code::NoAnchor, text).advise("--anchor KIND leaves one"));
        }
        // The fingerprints before the last look: they must not be of what was written behind it.
        let record = self.record(&pending, &done, geometry, &tracked, archive_id)?;
        self.source.check_unchanged()?;
        cancel.check()?;
        let report = self.report(&record, &done, tracked, pending.path().clone(), started);
        Ok((pending, record, report))
    }

    /// A bitmap of a server that goes on to count is no anchor any more if what it has was refused: it would
    /// be refused again, or be believed without a reason.
    fn give_up_refused(&mut self, tracked: &Tracked) {
        let before = self.base.latest.as_ref().and_then(|latest| latest.record.anchor.as_ref());
        let counts_on = before.is_some()
            && before.map(|it| &it.name) == self.source.anchor.as_ref().map(|it| &it.name);
        let is_refused = tracked.refused.iter().any(|it| it.tracker == Tracker::LiveBitmap);
        if counts_on && is_refused && self.source.counted.is_none() {
            self.source.anchor = None;
        }
    }

    /// Whether nobody has to be told again that no anchor is left: the raw disk of a guest had none the last
    /// time, and got the kind of its qcow2 disks then. A raw disk stays one, so every night would warn.
    fn is_known_to_have_no_anchor(&self) -> bool {
        let is_raw = |record: &DiskRecord| record.image.format == Format::Raw;
        let before = self.base.latest.as_ref().map(|latest| &latest.record);
        let had_none = before.is_some_and(|record| record.anchor.is_none() && is_raw(record));
        let top = self.source.image.layers().first();
        let wanted = wanted_anchor(self.options, &self.base);
        matches!(self.options.anchor, AnchorChoice::AsBefore)
            && matches!(wanted, Some(Tracker::Bitmap | Tracker::Snapshot))
            && had_none
            && top.is_some_and(|top| top.format == Format::Raw)
    }

    /// Writes the archive by what a tracker says.
    fn attempt(
        &self,
        geometry: Geometry,
        tracked: &Tracked,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<(Pending<'a>, Done, ArchiveId)> {
        let (kind, before) = (self.base.kind, self.base.before());
        let selection = match (&tracked.claim, before) {
            (Some(claim), Some(before)) => Some(Selection {
                sample: claim.sample(&before.nonzero()?, self.options.sample, seed()?),
                claim: claim.blocks().clone(),
            }),
            _ => None,
        };
        let metadata = metadata_for(
            self.disk,
            &self.point.to_string(),
            (kind, tracked.tracker, self.consistency),
            geometry,
            self.base.point(),
        )?;
        let archive_id = metadata.archive_id;
        let repository = self.catalog.repository();
        let whole = Whole::of(&self.source.image, selection.as_ref(), geometry);
        room::warn(repository, &self.base, selection.as_ref(), whole, geometry, observer);
        let pending = repository.begin(self.lock, self.disk, self.point, kind, archive_id)?;
        let spool = repository.spool_folder();
        let writer = archive::Writer::new(pending.writer(), metadata, spool)?.named(pending.path());
        let job = data_path::Archiving {
            image: &self.source.image,
            geometry,
            before,
            selection: selection.as_ref(),
            whole,
            frame_blocks: frame_blocks(geometry.block_size()),
            level: self.options.level,
            resources: &self.options.resources,
        };
        let done = data_path::run(&job, writer, observer, cancel)?;
        Ok((pending, done, archive_id))
    }

    fn record(
        &self,
        pending: &Pending<'_>,
        done: &Done,
        geometry: Geometry,
        tracked: &Tracked,
        archive_id: ArchiveId,
    ) -> Result<DiskRecord> {
        let stored = &done.assembled;
        Ok(DiskRecord {
            disk: self.disk.disk.clone(),
            archive: pending.archive_name(),
            archive_id,
            kind: self.base.kind,
            tracker: tracked.tracker,
            parent: self.base.point().map(Point::as_parent),
            root: stored.root,
            virtual_size: geometry.virtual_size(),
            block_size: geometry.block_size(),
            bytes_read: done.bytes_read,
            bytes_changed: stored.bytes_changed,
            payload_bytes: stored.summary.payload_bytes,
            bytes_written: stored.summary.file_len,
            image: image_record(&self.source)?,
            bytes_sampled: done.bytes_sampled,
            refused: tracked.refused.clone(),
            anchor: self.source.anchor.clone(),
            anchor_wanted: wanted_anchor(self.options, &self.base),
            opening: pending.opening(),
            snapshot: None,
        })
    }

    fn report(
        &self,
        record: &DiskRecord,
        done: &Done,
        tracked: Tracked,
        archive: PathBuf,
        started: Instant,
    ) -> BackupReport {
        BackupReport {
            point: self.point,
            disk: self.disk.to_string(),
            kind: record.kind,
            parent: record.parent_point(),
            tracker: record.tracker,
            why: tracked.why,
            refused: tracked.refused,
            consistency: self.consistency,
            virtual_size: record.virtual_size,
            block_size: record.block_size,
            bytes_read: record.bytes_read,
            bytes_sampled: record.bytes_sampled,
            bytes_changed: record.bytes_changed,
            bytes_written: record.bytes_written,
            root: record.root,
            archive,
            anchor: record.anchor.as_ref().map(|anchor| anchor.name.clone()),
            io: done.backend,
            broken_chain: self.base.broken_chain.is_some(),
            snapshots: self.stored.clone(),
            warnings: Vec::new(),
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// A number that nobody can guess: which blocks are looked at must not follow from anything.
fn seed() -> Result<u64> {
    Ok(u64::from_le_bytes(random::bytes()?))
}

pub(super) fn geometry_for(
    image: &Image,
    asked: Option<u32>,
    before: Option<&Before>,
) -> Result<Geometry> {
    let block_size = match before {
        Some(before) => {
            let size = before.geometry().block_size();
            if asked.is_some_and(|asked| asked != size) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("the chain has blocks of {size} bytes"),
                )
                .advise("leave --block-size out, or begin a new chain with --kind full"));
            }
            size
        }
        None => asked.unwrap_or_else(|| default_block_size(image.virtual_size())),
    };
    Geometry::new(image.virtual_size(), block_size).map_err(|error| {
        let kind = if before.is_some() { ErrorKind::Image } else { ErrorKind::Usage };
        Error::new(kind, "the disk can't be cut into blocks")
            .because(error)
            .advise("larger blocks (--block-size, up to 2M) make larger disks possible")
    })
}

/// 64 KiB, or as much more as it takes for a disk to have at most 2³² blocks.
fn default_block_size(virtual_size: u64) -> u32 {
    let mut size = Geometry::BLOCK_SIZE_DEFAULT;
    while size < Geometry::BLOCK_SIZE_MAX && virtual_size > u64::from(size) << 32 {
        size *= 2;
    }
    size
}

pub(super) fn metadata_for(
    disk: &DiskId,
    point: &str,
    (kind, tracker, consistency): (Kind, Tracker, Consistency),
    geometry: Geometry,
    parent: Option<&Point>,
) -> Result<Metadata> {
    Ok(Metadata {
        archive_id: ArchiveId(random::bytes()?),
        point: point.to_owned(),
        domain: disk.domain.to_string(),
        disk: disk.disk.to_string(),
        kind,
        tracker,
        consistency,
        created_ms: u64::try_from(crate::base::clock::now()?.as_millisecond()).unwrap_or(0),
        geometry,
        frame_blocks: frame_blocks(geometry.block_size()),
        parent: parent.map(|parent| Parent {
            domain: parent.disk.domain.to_string(),
            disk: parent.disk.disk.to_string(),
            point: parent.id.to_string(),
            root: parent.record.root,
        }),
        generator: concat!("qdelta ", env!("CARGO_PKG_VERSION")).to_owned(),
        extensions: Vec::new(),
    })
}

fn image_record(source: &Captured) -> Result<ImageRecord> {
    let layers: Vec<LayerRecord> = source
        .image
        .layers()
        .iter()
        .zip(tracking::fingerprints(source)?)
        .map(|(layer, fingerprint)| LayerRecord {
            path: absolute(&layer.path),
            data_file: layer.data_file.as_deref().map(absolute),
            format: layer.format,
            virtual_size: layer.virtual_size,
            fingerprint,
            device: device_id(&layer.path),
        })
        .collect();
    // What is read in the place of a file by a server is the disk in the file.
    let of_file = source.options.format.filter(|_| source.options.export.is_some());
    let format = of_file.or(layers.first().map(|layer| layer.format)).unwrap_or_default();
    Ok(ImageRecord {
        path: absolute(&source.path),
        format,
        layers,
        boot: crate::disk::files::fingerprint::boot(),
    })
}
