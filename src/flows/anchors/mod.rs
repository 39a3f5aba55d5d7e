//! Anchors: what a backup leaves behind so that the next one learns what has changed.
//!
//! A new anchor is made *before* the image is read: whatever is written behind it is claimed by the
//! next backup, also if this one has read it already. The old one goes when the new point is safe.

pub mod inventory;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use qdelta_formats::archive::Tracker;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::{self, ImageFile, NewBitmap};
use crate::disk::image::{Allocated, Image, OpenOptions};
use crate::disk::io::ReadAt;
use crate::disk::reflink::{self, Kept};
use crate::vault::repository::{Anchor, AnchorKind, CloneRecord, DiskId, PointId, Repository};

/// With what the names of all anchors begin.
pub(crate) const PREFIX: &str = "qdelta-";
/// Bytes of the disk that a bit of a new bitmap stands for: QEMU's own default.
const GRANULARITY: u64 = 64 << 10;

/// Bits that a new bitmap has from the beginning, one in each of as many equal parts of the disk:
/// so many, or the fewer that leave this many bits between them, but at least three.
const CANARIES: std::ops::RangeInclusive<u64> = 3..=16;
const CANARY_SPAN: u64 = 64;

/// The name of the map beside the bitmap called `name`: another bitmap, which records no writes. It
/// says what was allocated in the image, and by its last bit that the disk was not shrunk; the bitmap
/// itself shows neither.
pub(crate) fn map_of(name: &str) -> String {
    format!("{name}{MAP}")
}

/// The name of the bitmap that a map with this name is beside.
pub(crate) fn of_map(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(MAP.as_bytes())
}

/// With what the names of maps end.
const MAP: &str = ".map";
/// The most bits of a map whose units are smaller than those of the bitmap: QEMU has 64 MiB of them
/// in memory, and qdelta no more than that.
const MAP_BITS_MAX: u64 = 1 << 29;

/// What makes anchors of one disk of one repository recognisable: the end of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    pub fn new(repository: &Repository, disk: &DiskId) -> Self {
        let digest = blake3::hash(format!("{} {disk}", repository.id()).as_bytes());
        Self(digest.to_hex().chars().take(8).collect())
    }

    /// The name of the anchor of a point.
    pub fn name(&self, point: PointId) -> String {
        format!("{PREFIX}{point}-{}", self.0)
    }

    /// Whether an anchor with this name is of this disk and repository.
    pub fn owns(&self, name: &str) -> bool {
        name.starts_with(PREFIX) && name.ends_with(&format!("-{}", self.0))
    }
}

/// The anchor that a backup is to new.
pub(crate) struct NewAnchor<'a> {
    /// For which tracker: bitmap, snapshot or reflink.
    pub tracker: Tracker,
    pub name: String,
    pub tag: &'a Tag,
    /// The name of the latest point's anchor, which is needed until the new point is committed.
    pub previous: Option<String>,
}

impl NewAnchor<'_> {
    /// Whether the anchor is written into the image itself.
    pub fn is_in_image(&self) -> bool {
        self.tracker != Tracker::Reflink
    }
}

/// Writes a new bitmap or snapshot into the image at `path`, which nobody uses, and removes those
/// of the same tag that are not to be kept, which an interrupted backup or a busy image has left. The
/// file is held against writers as long as it is open.
pub(crate) fn write(
    path: &Path,
    options: &OpenOptions,
    new: &NewAnchor<'_>,
) -> Result<(ImageFile, Anchor)> {
    let (tag, name) = (new.tag, new.name.as_str());
    let mut file = ImageFile::open(path)?;
    let keep = new.previous.as_deref().unwrap_or_default();
    let anchor = sweep(&file, tag, &[keep, name]).and_then(|()| {
        let what = match new.tracker {
            Tracker::Bitmap => {
                check_no_data_file(&file)?;
                check_no_snapshots(&file, tag)?;
                let image = Image::open(path, options)?;
                let bitmaps = bitmaps_of(name, image.virtual_size(), allocated(&image)?);
                edit::bitmap::create_all(&file, &bitmaps)?;
                AnchorKind::Bitmap
            }
            _ => {
                let snapshot = edit::snapshot::create(&file, name, SystemTime::now())?;
                AnchorKind::Snapshot {
                    id: String::from_utf8_lossy(&snapshot.id).into_owned(),
                    date_s: snapshot.date_s,
                    date_ns: snapshot.date_ns,
                }
            }
        };
        Ok(Anchor { name: new.name.clone(), what })
    })?;
    file.downgrade();
    Ok((file, anchor))
}

/// Fails if the image has internal snapshots that are not `tag`'s. With a bitmap in the image,
/// `qemu-img check -r` of QEMU 7.2 to 10.0 deletes them all; and `qemu-img convert --bitmaps` puts one
/// of them in the place of the disk of now, beside the bitmaps of now.
fn check_no_snapshots(file: &ImageFile, tag: &Tag) -> Result<()> {
    let snapshots = edit::snapshot::list(file)?;
    let is_ours = |name: &[u8]| tag.owns(&String::from_utf8_lossy(name));
    let Some(other) = snapshots.iter().find(|it| !is_ours(&it.name)) else { return Ok(()) };
    let (path, name) = (file.path().display(), String::from_utf8_lossy(&other.name));
    let text = format!(
        "{path} has an internal snapshot '{name}', which `qemu-img check -r` would delete if there \
         was a bitmap, too"
    );
    Err(Error::new(ErrorKind::Usage, text).advise("--anchor snapshot does it no harm"))
}

/// Fails if the image has its data in another file: its bitmap would never be believed, since the data
/// may change behind its back.
fn check_no_data_file(file: &ImageFile) -> Result<()> {
    if !file.has_data_file()? {
        return Ok(());
    }
    let text = format!("{} has an external data file", file.path().display());
    Err(Error::new(ErrorKind::Usage, text)
        .because("it may change behind the back of a bitmap")
        .advise("--anchor reflink looks at both files"))
}

/// The bitmap called `name` of a disk of `size` bytes, and the map of what is allocated in its image.
fn bitmaps_of(name: &str, size: u64, allocated: Allocated) -> [NewBitmap; 2] {
    let Allocated { unit, mut units } = allocated;
    units.insert(size.saturating_sub(1) / unit);
    let set = canaries(name, size).into_iter().map(|byte| byte / GRANULARITY).collect();
    [
        NewBitmap { name: map_of(name), granularity: unit, records: false, set: units },
        NewBitmap { name: name.to_owned(), granularity: GRANULARITY, records: true, set },
    ]
}

/// What is allocated in the top layer of an image, for a map.
///
/// # Errors
/// [`ErrorKind::Usage`] if a map of it would be too large; otherwise as [`Image::allocated`].
pub(crate) fn allocated(image: &Image) -> Result<Allocated> {
    let (size, unit) = (image.virtual_size(), image.allocation_unit()?);
    if unit < GRANULARITY && size.div_ceil(unit) > MAP_BITS_MAX {
        let text = format!(
            "a disk of {} in clusters (or subclusters) of {unit} bytes is too large for a bitmap of \
             them",
            bytesize::ByteSize(size).display().iec()
        );
        return Err(Error::new(ErrorKind::Usage, text).advise("--anchor snapshot needs none"));
    }
    image.allocated()
}

/// Bytes of a disk of `size` bytes whose bits are set in the bitmap called `name` from the
/// beginning: whoever clears it, or puts another one in its place, takes them away, and only a guest
/// that then writes everywhere brings all of them back. They are anywhere in their parts, so that
/// guests do not all write there.
pub(crate) fn canaries(name: &str, size: u64) -> Vec<u64> {
    let bits = size.div_ceil(GRANULARITY);
    let count = (bits / CANARY_SPAN).clamp(*CANARIES.start(), *CANARIES.end());
    let mut digest = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    let place = |part: u64| {
        let (begin, end) = (part * bits / count, (part + 1) * bits / count);
        let mut number = [0; 8];
        digest.fill(&mut number);
        (begin + u64::from_le_bytes(number) % (end - begin).max(1)) * GRANULARITY
    };
    (0..count).map(place).collect()
}

/// Removes the bitmaps and snapshots of a tag from an image, but those called as `keep` says, and what
/// bitmaps of any tag have left that a program that knows none passed by.
pub(crate) fn sweep(file: &ImageFile, tag: &Tag, keep: &[&str]) -> Result<()> {
    let stale = |name: &[u8]| {
        let anchor = String::from_utf8_lossy(of_map(name).unwrap_or(name));
        let is_stale = tag.owns(&anchor) && !keep.contains(&anchor.as_ref());
        is_stale.then(|| String::from_utf8_lossy(name).into_owned())
    };
    let bitmaps = edit::bitmap::list(file)?;
    let names: Vec<String> = bitmaps.iter().filter_map(|bitmap| stale(&bitmap.name)).collect();
    edit::bitmap::remove_all(file, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    for snapshot in edit::snapshot::list(file)? {
        if stale(&snapshot.name).is_some() {
            edit::snapshot::delete(file, &snapshot.id)?;
        }
    }
    reclaim(file)
}

/// Gives the clusters of bitmaps back to which nothing leads any more.
fn reclaim(file: &ImageFile) -> Result<()> {
    let clusters = edit::reclaim(file, |name| name.starts_with(PREFIX.as_bytes()))?;
    if clusters > 0 {
        tracing::debug!(clusters, "bitmaps had left them");
    }
    Ok(())
}

/// Gives back what the bitmap of the latest point has left in the image at `path`, which is not valid
/// any more.
///
/// # Errors
/// As [`remove`].
pub(crate) fn reclaim_at(path: &Path) -> Result<()> {
    reclaim(&ImageFile::open(path)?)
}

/// Removes the anchors of a tag of every kind, in the qcow2 image at `image` and beside these files, but
/// those called as `keep` says.
///
/// # Errors
/// One can't be removed; all others are gone.
pub(crate) fn sweep_all(
    image: Option<&Path>,
    files: &[PathBuf],
    tag: &Tag,
    keep: &[&str],
) -> Result<()> {
    let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    let mut all: Vec<Result<()>> = Vec::new();
    for folder in folders {
        all.push(match sweep_clones(folder, tag, keep) {
            // A folder that is not ours has nothing of ours.
            Err(error) if error.kind() == ErrorKind::Usage => Ok(()),
            swept => swept,
        });
    }
    all.extend(image.map(|image| sweep_image(image, tag, keep)));
    all.into_iter().collect()
}

fn sweep_image(image: &Path, tag: &Tag, keep: &[&str]) -> Result<()> {
    let mut stale = inventory::in_image(image, tag)?;
    stale.retain(|found| !keep.contains(&found.name.as_str()));
    if stale.is_empty() {
        return Ok(());
    }
    let are_bitmaps = stale.iter().all(|found| found.tracker == Tracker::Bitmap);
    unless_cheap(ImageFile::open(image).and_then(|file| sweep(&file, tag, keep)), are_bitmaps)
}

/// Bitmaps may stay in an image that a guest uses, or that can't be written to: they cost nothing.
pub(crate) fn unless_cheap(removed: Result<()>, are_bitmaps: bool) -> Result<()> {
    match removed {
        Err(error) if are_bitmaps => {
            tracing::info!("an old bitmap stays for now: {}", error.chain());
            Ok(())
        }
        removed => removed,
    }
}

/// Removes an anchor, if it is still there, from the image at `path`.
///
/// # Errors
/// [`ErrorKind::Busy`] if a guest uses the image; or it can't be removed.
pub(crate) fn remove(path: &Path, anchor: &Anchor) -> Result<()> {
    match &anchor.what {
        AnchorKind::Bitmap | AnchorKind::Snapshot { .. } => {
            remove_from(Some(&ImageFile::open(path)?), anchor)
        }
        AnchorKind::Reflink { .. } => remove_from(None, anchor),
    }
}

/// Removes an anchor, if it is still there. One that is in an image is removed from `image`.
///
/// # Errors
/// It can't be removed.
pub(crate) fn remove_from(image: Option<&ImageFile>, anchor: &Anchor) -> Result<()> {
    match (&anchor.what, image) {
        (AnchorKind::Bitmap | AnchorKind::Snapshot { .. }, None) => Ok(()),
        (AnchorKind::Bitmap, Some(file)) => {
            edit::bitmap::remove_all(file, &[&anchor.name, &map_of(&anchor.name)])?;
            reclaim(file)
        }
        (AnchorKind::Snapshot { id, date_s, date_ns }, Some(file)) => {
            let ours = edit::snapshot::list(file)?.into_iter().find(|it| {
                it.name == anchor.name.as_bytes()
                    && it.id == id.as_bytes()
                    && (it.date_s, it.date_ns) == (*date_s, *date_ns)
            });
            match ours {
                Some(snapshot) => edit::snapshot::delete(file, &snapshot.id),
                None => Ok(()),
            }
        }
        (AnchorKind::Reflink { clones }, _) => {
            for clone in clones {
                let Some(folder) = clone.file.parent() else { continue };
                reflink::remove_kept(folder, &anchor.name)?;
            }
            Ok(())
        }
    }
}

/// Clones of files of an image. They are removed when this value is dropped, unless [`Self::keep`]
/// was called.
pub(crate) struct Clones {
    anchor: String,
    clones: Vec<(PathBuf, Kept)>,
    stay: bool,
}

impl Clones {
    /// Clones each of these open files, in the folder of the anchor called `name` beside it. This
    /// is all that must happen at the moment of the backup.
    pub fn take(files: &[(PathBuf, Arc<dyn ReadAt>)], name: &str) -> Result<Self> {
        let mut clones = Self { anchor: name.to_owned(), clones: Vec::new(), stay: false };
        for (path, store) in files {
            let clone = Kept::clone_of(descriptor(store.as_ref())?, path, name)?;
            clones.clones.push((path.clone(), clone));
        }
        Ok(clones)
    }

    /// The name of the anchor that the clones are, or may become.
    pub fn name(&self) -> &str {
        &self.anchor
    }

    /// The files and their clones, for [`crate::disk::image::OpenOptions::clones`].
    pub fn substitutes(&self) -> Vec<(PathBuf, PathBuf)> {
        self.clones.iter().map(|(file, kept)| (file.clone(), kept.path.clone())).collect()
    }

    /// Writes the clones to stable storage, and gives the anchor that they make.
    pub fn anchor(&self) -> Result<Anchor> {
        let mut clones = Vec::new();
        for (file, clone) in &self.clones {
            clone.sync()?;
            clones.push(record_of(file, &clone.path, &clone.file)?);
        }
        Ok(Anchor { name: self.anchor.clone(), what: AnchorKind::Reflink { clones } })
    }

    /// The clones stay, also when this value is dropped.
    pub fn keep(mut self) {
        self.stay = true;
    }
}

impl Drop for Clones {
    fn drop(&mut self) {
        if self.stay {
            return;
        }
        for (file, _) in &self.clones {
            if let Some(folder) = file.parent() {
                // What can't be removed now is removed by the next run.
                let _ = reflink::remove_kept(folder, &self.anchor);
            }
        }
    }
}

/// What a manifest says of `clone`, the open clone of `file`: enough to recognise the clone again.
/// The number of its device is not part of that, since it changes when the machine starts anew.
pub(crate) fn record_of(file: &Path, clone: &Path, open: &File) -> Result<CloneRecord> {
    let metadata = open.metadata().map_err(|error| Error::io("look at", clone, error))?;
    let modified_ns =
        metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Ok(CloneRecord {
        file: file.to_path_buf(),
        clone: clone.to_path_buf(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified_ns,
    })
}

/// Removes the clones of a tag that are kept beside files in `folder`, but those called as `keep`
/// says.
pub(crate) fn sweep_clones(folder: &Path, tag: &Tag, keep: &[&str]) -> Result<()> {
    for name in reflink::kept_beside(folder)? {
        if tag.owns(&name) && !keep.contains(&name.as_str()) {
            reflink::remove_kept(folder, &name)?;
        }
    }
    Ok(())
}

/// The descriptor of an open file.
pub(crate) fn descriptor(store: &dyn ReadAt) -> Result<BorrowedFd<'_>> {
    store.fd().ok_or_else(|| {
        let text = format!("{} is no file that can be cloned", store.path().display());
        Error::new(ErrorKind::Usage, text)
    })
}
