//! The flow that makes a recovery point of one image.
//!
//! ```text
//! image → extents → reader → workers (digest, compare, compress) → archive → repository
//! ```

mod assemble;
mod data_path;
mod disk;
mod guest;
mod guests;
mod internal;
mod meter;
mod room;
mod same_disk;
mod snapshot_pins;
mod together;
mod trial;

use std::path::{Path, PathBuf};
use std::time::Instant;

use qdelta_formats::archive::{Consistency, Digest, Tracker};
use serde::{Deserialize, Deserializer};

use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::is_uri;
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::{Format, Image, OpenOptions};
use crate::disk::io::Backend;
use crate::flows::anchors::{NewAnchor, Tag};
use crate::flows::capture::Captured;
use crate::flows::merge::{self, MergeOptions};
use crate::flows::report::BackupReport;
use crate::vault::point::Base;
pub use crate::vault::point::KindChoice;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Anchor, AnchorKind, Catalog, DiskId, DiskSpec, DomainLock, MachineRecord, Manifest, Pending,
    PointId, Repository,
};
use disk::Rest;
use together::{Ready, Together};

pub use crate::flows::tracking::changes::SAMPLE_DEFAULT;
pub use crate::vault::codec::LEVEL_DEFAULT;
pub use guest::{
    ConsistencyChoice, GuestOptions, GuestRequest, HostConfig, repository_name, run_guest,
};
pub use guests::{Guests, GuestsRequest, run_guests};

pub(crate) use guest::{open_options, stated_chain};
pub(crate) use same_disk::is_same_uuid;
pub(crate) use trial::Trial;

/// What to leave behind for the next backup to compare with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AnchorChoice {
    /// What the point before left; nothing at first.
    #[default]
    AsBefore,
    /// Nothing.
    None,
    /// What this tracker needs: [`Tracker::Bitmap`], [`Tracker::Snapshot`] or
    /// [`Tracker::Reflink`].
    For(Tracker),
    /// The bitmap of this name, which QEMU began at the moment that an export shows. No point before has one
    /// of that name.
    Begun(String),
}

impl<'de> Deserialize<'de> for AnchorChoice {
    /// Reads the word for what can be chosen in any place: of a bitmap that QEMU began, only whoever began it knows the
    /// name.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: &[&str] = &["auto", "none", "bitmap", "snapshot", "reflink"];
        let word = String::deserialize(deserializer)?;
        match word.as_str() {
            "auto" => Ok(Self::AsBefore),
            "none" => Ok(Self::None),
            "bitmap" => Ok(Self::For(Tracker::Bitmap)),
            "snapshot" => Ok(Self::For(Tracker::Snapshot)),
            "reflink" => Ok(Self::For(Tracker::Reflink)),
            _ => Err(serde::de::Error::unknown_variant(&word, WORDS)),
        }
    }
}

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The image.
    pub image: ImageRequest,
    /// How to back it up.
    pub options: Options,
}

/// An image that is to be backed up.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// Its path; of an export of a server, its URI.
    pub path: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// Which disk of the repository it is; unless told, the one called after the image's file.
    pub disk: Option<DiskSpec>,
}

/// How to back up a disk.
#[derive(Debug, Clone)]
pub struct Options {
    /// Full, incremental or differential.
    pub kind: KindChoice,
    /// The zstd level.
    pub level: i32,
    /// Block size of a new chain in bytes. A chain that goes on keeps its own.
    pub block_size: Option<u32>,
    /// The tracker to use; unless told, the best that can be proved valid.
    pub track: Option<Tracker>,
    /// What to leave for the next backup.
    pub anchor: AnchorChoice,
    /// How many blocks to read that a tracker says have not changed, to see whether that is true:
    /// so many of those that were not zero, and as many of those that were.
    pub sample: u64,
    /// Threads and I/O.
    pub resources: Resources,
    /// It is a safety point, made before a roll back.
    pub safety: bool,
    /// What has changed is merged with the chain before into a full: a new chain begins, and no more is
    /// read of the image.
    pub synthetic: bool,
    /// A disk may have no bytes now that had some at the latest point: somebody said so.
    pub may_be_empty: bool,
    /// The internal snapshots of the images become points, too.
    pub with_snapshots: bool,
    /// What is stored is not the state of a disk: a snapshot in its image, or a guest's memory. No anchor is left
    /// or removed.
    pub is_aside: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: KindChoice::default(),
            level: LEVEL_DEFAULT,
            block_size: None,
            track: None,
            anchor: AnchorChoice::default(),
            sample: SAMPLE_DEFAULT,
            resources: Resources::default(),
            safety: false,
            synthetic: false,
            may_be_empty: false,
            with_snapshots: false,
            is_aside: false,
        }
    }
}

/// Makes a recovery point of an image.
///
/// # Errors
/// Nothing that the repository held is changed by a failure, and nothing new is in it.
pub fn run(
    repository: &Repository,
    request: &BackupRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<BackupReport> {
    let (images, options) = (std::slice::from_ref(&request.image), &request.options);
    let mut reports = run_together(repository, images, options, observer, cancel)?;
    reports.pop().ok_or_else(|| Error::new(ErrorKind::Usage, "no disk"))
}

/// Makes one recovery point of images that are the disks of one domain. Nobody can write to any of
/// them before all are taken.
///
/// # Errors
/// Nothing that the repository held is changed by a failure, and nothing new is in it.
pub fn run_together(
    repository: &Repository,
    images: &[ImageRequest],
    options: &Options,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<BackupReport>> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let is_raw = |image: &ImageRequest| image.open.format == Some(Format::Raw);
    // A server is known by its whole name, from whatever folder and in whatever spelling it was named.
    let named = |image: &ImageRequest| match &image.open.export {
        Some(export) if is_uri(&image.path) => {
            ImageRequest { path: export.name().to_path_buf(), ..image.clone() }
        }
        _ => image.clone(),
    };
    let images: &[ImageRequest] = &images.iter().map(named).collect::<Vec<_>>();
    let may_be_empty = options.may_be_empty || options.safety || images.iter().all(is_raw);
    let options = &Options { may_be_empty, ..options.clone() };
    let disks = images.iter().map(disk_for).collect::<Result<Vec<_>>>()?;
    let none = || Error::new(ErrorKind::Usage, "no disk");
    let domain = &disks.first().ok_or_else(none)?.domain;
    repository.check_names(domain, disks.iter().map(|disk| &disk.disk))?;
    let catalog = repository.catalog();
    let mut opens = Vec::new();
    for (image, disk) in images.iter().zip(&disks) {
        let mut open = image.open.clone();
        let note = same_disk::settle_format(&catalog, disk, &image.path, &mut open)?;
        // What can't be read at all leaves no trace in the repository.
        Image::open(&image.path, &open)
            .map_err(|error| same_disk::explained(error, &catalog, disk, &image.path))?;
        opens.push((open, note));
    }
    let lock = repository.lock(domain, Wait::by(observer, cancel))?;
    // From here on nobody else writes to the domain.
    let catalog = clean(repository, &lock, observer)?;
    catalog.warn_of_damage(&disks, observer);
    let mut ready = Vec::new();
    for ((image, disk), (open, note)) in images.iter().zip(&disks).zip(&opens) {
        let mut disk = Ready::new(&catalog, disk, &image.path, open, options)?;
        check_named(&disk, options)?;
        disk.notes.extend(note.clone());
        // Who gives the disk its name means this image.
        if image.disk.is_none() {
            same_disk::check_image(&disk)?;
        }
        ready.push(disk);
    }
    let looked = ready.iter().map(|it| (it.disk, it.image, it.open));
    let (point, snapshots) = next_points(&catalog, &lock, options, looked, observer)?;
    let together = Together { catalog: &catalog, lock: &lock, point, options, observer, snapshots };
    let mut sources = together.take(&ready)?;
    let consistency = consistency_of(&mut sources)?;
    let written = together.write(ready, sources, consistency, cancel)?;
    let mut reports =
        commit(written, consistency, None, options.safety, started, repository, &recorder)?;
    synthesize(repository, &lock, options, &mut reports, observer, cancel);
    if let Some(first) = reports.first_mut() {
        first.warnings.extend(recorder.take());
    }
    for report in &mut reports {
        report.seconds = started.elapsed().as_secs_f64();
    }
    Ok(reports)
}

/// What the images of a point are at the moment that is read. An image file is held, so that nobody writes to
/// it. Of an export, its server alone can see to that: that clients may not write to it says nothing of who
/// else does, since QEMU gives out a disk that a guest writes to read-only, too.
fn consistency_of(sources: &mut [Captured]) -> Result<Consistency> {
    let mut consistency = Consistency::Offline;
    for source in sources {
        if source.is_in_use() {
            consistency = Consistency::Unknown;
        }
        let Some(export) = &source.options.export else { continue };
        consistency = Consistency::Unknown;
        if export.open()?.description().read_only {
            continue;
        }
        let text = "its server lets clients write to it: whether somebody did while it was read is not known";
        let warning = Warning::new(Code::Writable, text);
        source.warnings.push(warning.advise("have it given out read-only (-r)"));
    }
    Ok(consistency)
}

/// Makes one point of disks that were written. Their new anchors stay, and the old ones go; if it
/// fails, it is the other way round. `safety`: the point is a safety point.
fn commit(
    written: Vec<disk::Written<'_>>,
    consistency: Consistency,
    machine: Option<MachineRecord>,
    safety: bool,
    started: Instant,
    repository: &Repository,
    recorder: &Recorder<'_>,
) -> Result<Vec<BackupReport>> {
    let first = written.first().map(|it| (it.pending.point(), it.pending.disk().domain.clone()));
    let (point, domain) = first.ok_or_else(|| Error::new(ErrorKind::Usage, "no disk"))?;
    let mut manifest = Manifest::new(point, domain, consistency);
    manifest.machine = machine;
    manifest.safety = safety;
    manifest.elapsed_ms = started.elapsed().as_millis() as u64;
    let reports = publish(written, manifest, repository, recorder)?;
    let with_warnings = reports.into_iter().map(|report| {
        let warnings = recorder.take_of(&report.disk);
        BackupReport { warnings, ..report }
    });
    Ok(with_warnings.collect())
}

/// Makes `manifest` the point of disks that were written, whose records it has not yet.
fn publish(
    written: Vec<disk::Written<'_>>,
    mut manifest: Manifest,
    repository: &Repository,
    observer: &dyn Observer,
) -> Result<Vec<BackupReport>> {
    let mut archives = Vec::new();
    let mut rest = Vec::new();
    for disk in written {
        manifest.disks.push(disk.record);
        archives.push(disk.pending);
        rest.push(disk.rest);
    }
    match Pending::commit_all(archives, &manifest) {
        Ok(()) => {
            repository.saw(&manifest.domain, manifest.point);
            repository.note_added(&manifest.domain, manifest.bytes_stored());
            repository.keep_safe(&manifest.domain, observer);
        }
        Err(error) => {
            rest.into_iter().for_each(Rest::discard);
            return Err(error);
        }
    }
    Ok(rest.into_iter().map(|rest| rest.settle(observer)).collect())
}

/// Makes a full of a new point if that was asked for, by merging. The point stands already: what fails
/// leaves it as it is.
fn synthesize(
    repository: &Repository,
    lock: &DomainLock,
    options: &Options,
    reports: &mut [BackupReport],
    observer: &dyn Observer,
    cancel: &Cancel,
) {
    let Some(point) = reports.first().map(|report| report.point).filter(|_| options.synthetic)
    else {
        return;
    };
    let how = MergeOptions { level: options.level, resources: options.resources };
    match merge::synthesize(repository, lock, point, &how, observer, cancel) {
        Ok(merged) => {
            for disk in merged.disks {
                let Some(report) = reports.iter_mut().find(|it| it.disk == disk.disk) else {
                    continue;
                };
                (report.kind, report.parent) = (disk.kind, None);
                report.bytes_written = disk.bytes_written;
                report.archive = disk.archive.unwrap_or_default();
            }
        }
        Err(error) => {
            // The manifest of the full may have got its place before something failed.
            let stands = repository.versioned(lock.domain(), point).map(|(manifest, _)| manifest);
            let is_full = |it: &Manifest| it.disks.iter().all(|disk| disk.parent.is_none());
            let what = match &stands {
                Ok(manifest) if is_full(manifest) => {
                    show_full(repository, manifest, reports);
                    "the point is made, and is a full now; then something failed"
                }
                Ok(_) => "the point is made, and is no full: its chain could not be merged",
                Err(_) => "the point is made, and nobody can tell whether it is a full now",
            };
            observer.warn(Warning::failed(Code::NotMerged, &error).within(what));
        }
    }
}

/// Says of the disks of a point that it is a full now, as its manifest has it.
fn show_full(repository: &Repository, manifest: &Manifest, reports: &mut [BackupReport]) {
    for record in &manifest.disks {
        let disk = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
        let shown = disk.to_string();
        let Some(report) = reports.iter_mut().find(|it| it.disk == shown) else { continue };
        (report.kind, report.parent) = (record.kind, None);
        report.bytes_written = record.bytes_written;
        report.archive = repository.describe(&repository.archive(&disk, &record.archive));
    }
}

/// Removes what interrupted backups left of a domain, and reads what is there then.
fn clean(repository: &Repository, lock: &DomainLock, observer: &dyn Observer) -> Result<Catalog> {
    let (cleaned, catalog) = repository.clean(lock)?;
    for leftover in &cleaned.removed {
        tracing::debug!(path = %leftover.path.display(), "removed: an interrupted backup left it");
    }
    for leftover in &cleaned.kept {
        let text = format!("{} belongs to no recovery point; left alone", leftover.path.display());
        observer.warn(Warning::new(Code::Stray, text));
    }
    for error in &cleaned.unreadable {
        observer.warn(Warning::failed(Code::Unreadable, error));
    }
    let (seen, newest) = (repository.newest_seen(lock.domain()), catalog.newest_of(lock.domain()));
    if let Some(seen) = seen.filter(|seen| newest.is_none_or(|newest| newest < *seen)) {
        let domain = lock.domain();
        let now = newest.map_or("has none now".to_owned(), |it| format!("{it} is the newest now"));
        let text =
            format!("point {seen} of {domain} was there when this host looked last, and {now}");
        let warning = Warning::new(Code::WentBack, text);
        observer.warn(warning.advise(
            "if nobody has removed it, the repository was put back to an earlier state: compare it with \
             another copy",
        ));
    }
    catalog.remember_listed(lock.domain());
    Ok(catalog)
}

/// The id for the new point; and how many ids before it are free for the snapshots in these images, if they are to
/// become points.
fn next_points<'a>(
    catalog: &Catalog,
    lock: &DomainLock,
    options: &Options,
    disks: impl IntoIterator<Item = (&'a DiskId, &'a Path, &'a OpenOptions)>,
    observer: &dyn Observer,
) -> Result<(PointId, Option<u64>)> {
    let next = next_point(catalog, lock, observer)?;
    if !options.with_snapshots {
        return Ok((next, None));
    }
    let count = internal::count(catalog, disks);
    let none = || Error::new(ErrorKind::Io, format!("no id comes after point {next}"));
    Ok((PointId::from_ms(next.as_ms() + count).ok_or_else(none)?, Some(count)))
}

fn next_point(catalog: &Catalog, lock: &DomainLock, observer: &dyn Observer) -> Result<PointId> {
    let next = catalog.next_point(lock)?;
    // Once is enough: the point before follows a point from the future already, if it was not made there.
    let is_known = || {
        let now = clock::now().ok()?;
        let (_, latest) = catalog.manifests(lock.domain()).ok()?.into_iter().next_back()?;
        Some(latest.ok()?.created <= now)
    };
    if let Some(behind) = next.clock_behind.filter(|_| is_known() != Some(true)) {
        let behind = duration::shown(behind);
        let text = format!("the clock is {behind} behind the latest point; the new one follows it");
        observer.warn(Warning::new(Code::Clock, text).advise(
            "if the clock is right now, nothing is to be done: until it has come to that time, new points are named \
             behind the latest one",
        ));
    }
    Ok(next.id)
}

/// The kind of anchor that is to be left, at this point or, if it is a safety point, at the next one.
fn wanted_anchor(options: &Options, base: &Base) -> Option<Tracker> {
    let before = base.latest.as_ref().map(|latest| &latest.record);
    let as_before = before.and_then(|record| {
        record.anchor.as_ref().map(|anchor| anchor.what.tracker()).or(record.anchor_wanted)
    });
    match options.anchor {
        AnchorChoice::None if options.safety => as_before,
        AnchorChoice::None => None,
        AnchorChoice::For(tracker) => Some(tracker),
        AnchorChoice::Begun(_) => Some(Tracker::LiveBitmap),
        AnchorChoice::AsBefore => as_before,
    }
}

/// The anchor that is to be left, if any.
fn leave<'a>(
    options: &Options,
    open: &OpenOptions,
    base: &'a Base,
    tag: &'a Tag,
    point: PointId,
) -> Option<NewAnchor<'a>> {
    if open.snapshot.is_some() {
        // It would be one of the current state, which is not what is backed up.
        return None;
    }
    if options.anchor == AnchorChoice::None {
        return None;
    }
    let before = base.latest.as_ref().and_then(|latest| latest.record.anchor.as_ref());
    let tracker = wanted_anchor(options, base)?;
    let previous = before.map(|anchor| anchor.name.clone());
    if tracker == Tracker::LiveBitmap {
        let (name, began) = live_bitmap(options, before, point)?;
        return Some(NewAnchor { tracker, name, tag, began: Some(began), previous });
    }
    Some(NewAnchor { tracker, name: tag.name(point), tag, began: None, previous })
}

/// The bitmap that is named, and the point from which it counts: this one, or an earlier one if the latest point
/// has it. Without being named anew, none is believed: whoever has it recorded must say that it still does.
fn live_bitmap(
    options: &Options,
    before: Option<&Anchor>,
    point: PointId,
) -> Option<(String, PointId)> {
    let AnchorChoice::Begun(name) = &options.anchor else { return None };
    let began = match before.filter(|before| before.name == *name).map(|before| &before.what) {
        Some(AnchorKind::LiveBitmap { began }) => *began,
        _ => point,
    };
    Some((name.clone(), began))
}

/// Fails if a bitmap is named of what is no export.
///
/// # Errors
/// `Usage`: no server has it.
fn check_named(ready: &Ready<'_>, options: &Options) -> Result<()> {
    if !matches!(options.anchor, AnchorChoice::Begun(_)) || ready.open.export.is_some() {
        return Ok(());
    }
    let text = format!(
        "{} is no export of a server, and has no bitmap that counts",
        ready.image.display()
    );
    Err(Error::new(ErrorKind::Usage, text).advise(
        "--live-bitmap goes with nbd:// and nbd+unix://; --anchor bitmap is for image files",
    ))
}

/// The disk of the repository that the image is backed up as. It follows from the names alone:
/// which other disks its domain has does not matter, or a second disk would get the first one's
/// image.
fn disk_for(image: &ImageRequest) -> Result<DiskId> {
    let spec = match &image.disk {
        Some(spec) => spec.clone(),
        None => match &image.open.export {
            Some(export) => DiskSpec::for_export(export.export())?,
            None => DiskSpec::for_image(&image.path)?,
        },
    };
    Ok(spec.or_only_disk())
}

/// What a run of the data path gives.
struct Done {
    assembled: assemble::Assembled,
    bytes_read: u64,
    bytes_sampled: u64,
    backend: Backend,
}

/// What every recovery point's root is made of.
type Root = Digest;

#[cfg(test)]
mod summary_tests;
