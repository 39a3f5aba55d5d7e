//! What anchors there are of a disk, and what they cost.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta_formats::archive::Tracker;

use super::{self as anchors, Tag, bitmap};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::edit::{self, ImageFile};
use crate::disk::files::paths::absolute;
use crate::disk::io::{FileStore, Opener, is_refusal};
use crate::disk::reflink;
use crate::flows::report::{AnchorReport, AnchorState, AnchorsReport};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Anchor, AnchorKind, Catalog, DiskId, Point, PointId, Repository, Wanted,
};

/// The anchors of the disks that are wanted, or of every disk.
///
/// # Errors
/// The wanted disk is not there; otherwise as [`list`].
pub fn list_wanted(
    repository: &Repository,
    wanted: Option<&Wanted>,
    observer: &dyn Observer,
) -> Result<AnchorsReport> {
    report(repository, wanted, None, observer, &Cancel::default())
}

/// Removes the anchors that are called as `names` say from the disks that are wanted, or from every disk;
/// without names, all anchors. Gives those that are left, too.
///
/// # Errors
/// The wanted disk, or an anchor, is not there; an image is in use, or an anchor can't be removed. Those
/// before it are gone then.
pub fn remove_wanted(
    repository: &Repository,
    wanted: Option<&Wanted>,
    names: &[String],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<AnchorsReport> {
    report(repository, wanted, Some(names), observer, cancel)
}

fn report(
    repository: &Repository,
    wanted: Option<&Wanted>,
    remove: Option<&[String]>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<AnchorsReport> {
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let unreadable = |error: &Error| observer.warn(Warning::failed(Code::Unreadable, error));
    if let Some(error) = repository.trouble() {
        unreadable(&error);
    }
    let catalog = repository.catalog();
    let disks = match wanted {
        Some(wanted) => catalog.find_disks(wanted)?,
        None => {
            let survey = catalog.survey()?;
            survey.unreadable.iter().for_each(|folder| unreadable(&folder.error));
            survey.disks
        }
    };
    let mut report = AnchorsReport::default();
    if let Some(names) = remove {
        report.removed = remove_from(repository, &disks, names, observer, cancel)?;
    }
    for disk in &disks {
        report.anchors.extend(list(&catalog, disk, observer)?);
    }
    report.warnings = recorder.take();
    Ok(report)
}

/// Removes anchors of some disks: all, or those that are called so, each of the disk that it is of.
fn remove_from(
    repository: &Repository,
    disks: &[DiskId],
    names: &[String],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<AnchorReport>> {
    if let [only] = disks {
        return remove(repository, only, names, observer, cancel);
    }
    let catalog = repository.catalog();
    let mut removed = Vec::new();
    let mut unknown = names.to_vec();
    for disk in disks {
        let there = list(&catalog, disk, observer)?;
        let own: Vec<String> =
            names.iter().filter(|name| there.iter().any(|it| it.name == **name)).cloned().collect();
        unknown.retain(|name| !own.contains(name));
        if names.is_empty() || !own.is_empty() {
            removed.extend(remove(repository, disk, &own, observer, cancel)?);
        }
    }
    match unknown.first() {
        Some(name) => Err(Error::new(ErrorKind::NotFound, format!("no disk has an anchor {name}"))
            .advise("qdelta anchors lists those that there are")),
        None => Ok(removed),
    }
}

/// The anchors of a disk: those that its latest point names, and those that are found in its images
/// and beside them.
///
/// # Errors
/// The repository can't be read; an image that is there can't be looked at.
pub fn list(
    catalog: &Catalog,
    disk: &DiskId,
    observer: &dyn Observer,
) -> Result<Vec<AnchorReport>> {
    let points = catalog.points(disk)?.points;
    let tag = Tag::new(catalog.repository(), disk);
    let newest = points.iter().rfind(|it| it.removed.is_none() && !it.is_of_snapshot());
    let current = newest.and_then(|point| point.record.anchor.as_ref());
    let mut found = Vec::new();
    for place in places(&points) {
        found.extend(found_at(&place, &tag, observer)?);
    }
    let mut anchors: Vec<AnchorReport> = found
        .into_iter()
        .map(|found| {
            let is_current = current.is_some_and(|anchor| anchor.name == found.name);
            let state = if is_current { AnchorState::Current } else { AnchorState::LeftOver };
            AnchorReport {
                disk: disk.to_string(),
                name: found.name,
                tracker: found.tracker,
                state,
                place: found.place,
                bytes_held: found.bytes_held,
            }
        })
        .collect();
    if let Some(anchor) = current
        && anchors.iter().all(|found| found.name != anchor.name)
    {
        // Whether a server still has a bitmap, only the server knows.
        let state = match anchor.what {
            AnchorKind::LiveBitmap { .. } => AnchorState::Current,
            _ => AnchorState::Missing,
        };
        anchors.push(AnchorReport {
            disk: disk.to_string(),
            name: anchor.name.clone(),
            tracker: anchor.what.tracker(),
            state,
            place: points.last().map(|it| it.record.image.path.clone()).unwrap_or_default(),
            bytes_held: None,
        });
    }
    anchors.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(anchors)
}

/// Removes the anchors of a disk that are called as `names` say, or all of them without names. Gives
/// those that it removed. The next backup of the disk falls back to another tracker.
///
/// # Errors
/// There is no such anchor; an image is in use, or an anchor can't be removed. Those before it are
/// gone then.
fn remove(
    repository: &Repository,
    disk: &DiskId,
    names: &[String],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<AnchorReport>> {
    let _lock = repository.lock(&disk.domain, Wait::by(observer, cancel))?;
    let all = list(&repository.catalog(), disk, observer)?;
    let is_missing = |it: &AnchorReport| it.state == AnchorState::Missing;
    let (missing, mut wanted): (Vec<_>, Vec<_>) = all.into_iter().partition(is_missing);
    for name in names {
        if wanted.iter().all(|anchor| anchor.name != *name) {
            let text = format!("{disk} has no anchor {name}");
            return Err(Error::new(ErrorKind::NotFound, text)
                .advise("qdelta anchors lists those that there are"));
        }
    }
    let is_live = |it: &AnchorReport| it.tracker == Tracker::LiveBitmap;
    match names.is_empty() {
        true => {
            for live in wanted.iter().filter(|it| is_live(it)) {
                let text = format!(
                    "the anchor {} stays: it is a bitmap of QEMU's, which its server removes, or the snapshot \
                     command that had it begun",
                    live.name
                );
                observer.warn(Warning::new(Code::OldAnchor, text).of(disk));
            }
            wanted.retain(|anchor| !is_live(anchor));
        }
        false => wanted.retain(|anchor| names.contains(&anchor.name)),
    }
    if let Some(live) = wanted.iter().find(|it| is_live(it)) {
        let text = format!("the anchor {} is a bitmap of QEMU's", live.name);
        return Err(Error::new(ErrorKind::Usage, text)
            .advise("QEMU removes it, or the snapshot command that had it begun; a backup with --anchor none leaves none"));
    }
    for anchor in &wanted {
        remove_one(anchor)?;
    }
    if names.is_empty() {
        for invalid in missing.iter().filter(|it| it.tracker == Tracker::Bitmap) {
            // A few clusters do no harm where they can't be given back now, or not any more.
            let _ = bitmap::reclaim_at(&invalid.place);
        }
    }
    Ok(wanted)
}

/// Removes the anchors of a disk that lie where only the points name that `go`: nobody would look for them
/// there afterwards. Gives how many there were. What can't be removed stays, with a warning.
pub(crate) fn forget(
    catalog: &Catalog,
    disk: &DiskId,
    go: &BTreeSet<PointId>,
    observer: &dyn Observer,
) -> Result<u64> {
    let points = catalog.points(disk)?.points;
    let (go, stay): (Vec<_>, Vec<_>) = points.into_iter().partition(|it| go.contains(&it.id));
    let tag = Tag::new(catalog.repository(), disk);
    let mut removed = 0;
    for place in places(&go).difference(&places(&stay)) {
        let gone = found_at(place, &tag, observer).and_then(|found| {
            found.iter().try_for_each(|it| remove_at(&it.place, &it.name, it.tracker))?;
            Ok(found.len() as u64)
        });
        match gone {
            Ok(count) => removed += count,
            Err(error) => {
                observer.warn(Warning::failed(Code::OldAnchor, &error).of(disk));
            }
        }
    }
    Ok(removed)
}

fn remove_one(found: &AnchorReport) -> Result<()> {
    remove_at(&found.place, &found.name, found.tracker)
}

fn remove_at(place: &Path, name: &str, tracker: Tracker) -> Result<()> {
    match tracker {
        Tracker::Reflink => {
            let folder = place.ancestors().nth(2).unwrap_or(Path::new("."));
            reflink::remove_kept(folder, name)
        }
        Tracker::Bitmap => {
            let anchor = Anchor { name: name.to_owned(), what: AnchorKind::Bitmap };
            anchors::remove(place, &anchor)
        }
        _ => {
            let file = ImageFile::open(place)?;
            let snapshots = edit::snapshot::list(&file)?;
            let ours = snapshots.iter().find(|it| it.name == name.as_bytes());
            ours.map_or(Ok(()), |snapshot| edit::snapshot::delete(&file, &snapshot.id))
        }
    }
}

/// The images in which, and the folders beside which, the points of a disk may have left anchors: each
/// once, whatever names it was recorded by.
fn places(points: &[Point]) -> BTreeSet<PathBuf> {
    let mut places = Vec::new();
    for record in points.iter().map(|point| &point.record) {
        if record.anchor.is_some() {
            places.push(&record.image.path);
        }
        if let Some(AnchorKind::Reflink { clones }) = record.anchor.as_ref().map(|it| &it.what) {
            places.extend(clones.iter().map(|clone| &clone.file));
        }
    }
    places.extend(points.last().map(|latest| &latest.record.image.path));
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| absolute(path));
    places.into_iter().map(real).collect()
}

/// An anchor that was found.
pub(crate) struct Found {
    pub name: String,
    pub tracker: Tracker,
    place: PathBuf,
    bytes_held: Option<u64>,
}

/// The anchors of a tag in the image at `place` and among the clones of this very file.
fn found_at(place: &Path, tag: &Tag, observer: &dyn Observer) -> Result<Vec<Found>> {
    let mut found = in_image(place, tag)?;
    let (Some(folder), Some(file_name)) = (place.parent(), place.file_name()) else {
        return Ok(found);
    };
    for name in
        ours(reflink::kept_beside(folder), observer)?.into_iter().filter(|name| tag.owns(name))
    {
        let own = folder.join(reflink::ANCHOR_FOLDER).join(&name);
        if let Some(file) = ours(reflink::open_kept(folder, &name, file_name), observer)? {
            let clone = own.join(file_name);
            let bytes_held = Some(reflink::exclusive_bytes(file.as_fd(), &clone)?);
            found.push(Found { name, tracker: Tracker::Reflink, place: own, bytes_held });
        }
    }
    Ok(found)
}

/// What was found in a folder of clones; nothing if it is somebody else's, who must not keep anybody
/// from the other anchors.
fn ours<T: Default>(found: Result<T>, observer: &dyn Observer) -> Result<T> {
    match found {
        Err(error) if error.kind() == ErrorKind::Usage => {
            observer.warn(Warning::failed(Code::OldAnchor, &error));
            Ok(T::default())
        }
        found => found,
    }
}

/// The qcow2 image at a path, to look at its tables; none if there is no such image. No lock is taken: the
/// image may be in use.
pub(crate) fn image_at(path: &Path) -> Result<Option<ImageFile>> {
    let file = match Opener::READ.or_device().open(path) {
        Ok(file) => file,
        // The image may have been moved or deleted since.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || is_refusal(&error) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut magic = [0; 4];
    let is_qcow2 = std::io::Read::read_exact(&mut &file, &mut magic).is_ok()
        && qdelta_formats::qcow2::has_magic(&magic);
    Ok(is_qcow2.then(|| ImageFile::over(Arc::new(FileStore::new(file, path)))))
}

/// The bitmaps and snapshots of a tag. No lock is taken: the image may be in use.
pub(crate) fn in_image(path: &Path, tag: &Tag) -> Result<Vec<Found>> {
    let Some(image) = image_at(path)? else { return Ok(Vec::new()) };
    let mut bitmaps: Vec<Vec<u8>> = edit::bitmap::list(&image)?
        .into_iter()
        .map(|it| bitmap::of_map(&it.name).map(<[u8]>::to_vec).unwrap_or(it.name))
        .collect();
    // A bitmap and its map are one anchor.
    bitmaps.sort_unstable();
    bitmaps.dedup();
    let bitmaps = bitmaps.into_iter().map(|name| (name, Tracker::Bitmap));
    let snapshots =
        edit::snapshot::list(&image)?.into_iter().map(|it| (it.name, Tracker::Snapshot));
    Ok(bitmaps
        .chain(snapshots)
        .map(|(name, tracker)| (String::from_utf8_lossy(&name).into_owned(), tracker))
        .filter(|(name, _)| tag.owns(name))
        .map(|(name, tracker)| Found { name, tracker, place: path.to_path_buf(), bytes_held: None })
        .collect())
}
