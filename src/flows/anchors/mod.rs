//! Anchors: what a backup leaves behind so that the next one learns what has changed.
//!
//! A new anchor is made *before* the image is read: whatever is written behind it is claimed by the
//! next backup, also if this one has read it already. The old one goes when the new point is safe.

pub(crate) mod bitmap;
pub mod inventory;
pub(crate) mod reflink;
mod snapshot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qdelta_formats::archive::Tracker;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::edit::{self, ImageFile};
use crate::disk::image::OpenOptions;
use crate::disk::reflink::remove_kept;
use crate::vault::repository::{Anchor, AnchorKind, DiskId, DomainName, PointId, Repository};

/// With what the names of all anchors begin.
const PREFIX: &str = "qdelta-";
/// How many digits tell the anchors of one disk from those of others.
const TAG_LEN: usize = 8;

/// Whether a bitmap or snapshot with this name is an anchor, of whatever disk and repository, or what is beside one:
/// who calls a snapshot of his own `qdelta-before-upgrade` means no anchor.
pub(crate) fn is_anchor(name: &[u8]) -> bool {
    let rest = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(PREFIX));
    // A point, and the tag of a disk.
    rest.and_then(|rest| rest.rsplit_once('-')).is_some_and(|(point, tag)| {
        let is_digit = |c: char| c.is_ascii_hexdigit();
        point.parse::<PointId>().is_ok()
            && tag.get(..TAG_LEN).is_some_and(|it| it.chars().all(is_digit))
    })
}

/// What makes anchors of one disk of one repository recognisable: the end of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    pub fn new(repository: &Repository, disk: &DiskId) -> Self {
        let digest = blake3::hash(format!("{} {disk}", repository.id()).as_bytes());
        Self(digest.to_hex().chars().take(TAG_LEN).collect())
    }

    /// What makes recognisable what is made of all disks of a guest at once.
    pub fn of_guest(repository: &Repository, domain: &DomainName) -> Self {
        let digest = blake3::hash(format!("{} {domain}", repository.id()).as_bytes());
        Self(digest.to_hex().chars().take(TAG_LEN).collect())
    }

    /// The end of all names.
    pub fn as_str(&self) -> &str {
        &self.0
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

/// The anchor that a backup is to leave.
pub(crate) struct NewAnchor<'a> {
    /// For which tracker: one that leaves any.
    pub tracker: Tracker,
    pub name: String,
    pub tag: &'a Tag,
    /// The point from which a bitmap of QEMU's counts.
    pub began: Option<PointId>,
    /// The name of the latest point's anchor, which is needed until the new point is committed.
    pub previous: Option<String>,
}

impl NewAnchor<'_> {
    /// Whether the anchor is written into the image itself.
    pub fn is_in_image(&self) -> bool {
        matches!(self.tracker, Tracker::Bitmap | Tracker::Snapshot)
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
                bitmap::create(&file, path, options, name, tag)?;
                AnchorKind::Bitmap
            }
            _ => snapshot::create(&file, name)?,
        };
        Ok(Anchor { name: new.name.clone(), what })
    })?;
    file.downgrade();
    Ok((file, anchor))
}

/// Removes the bitmaps and snapshots of a tag from an image, but those called as `keep` says, and what
/// bitmaps of any tag have left that a program that knows none passed by.
pub(crate) fn sweep(file: &ImageFile, tag: &Tag, keep: &[&str]) -> Result<()> {
    let stale = |name: &[u8]| {
        let anchor = String::from_utf8_lossy(bitmap::of_map(name).unwrap_or(name));
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
    bitmap::reclaim(file)
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
        all.push(match reflink::sweep_clones(folder, tag, keep) {
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

/// The warning that an old anchor could not be removed.
pub(crate) fn stays(error: &Error) -> Warning {
    Warning::failed(Code::OldAnchor, error)
        .within("an old anchor stays for now")
        .advise("`qdelta anchors` shows it")
}

/// Bitmaps may stay in an image that a guest uses, or that can't be written to: they cost nothing, and
/// `qdelta anchors` shows them.
pub(crate) fn unless_cheap(removed: Result<()>, are_bitmaps: bool) -> Result<()> {
    match removed {
        Err(error) if are_bitmaps => {
            tracing::debug!("an old bitmap stays for now: {}", error.chain());
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
        AnchorKind::Reflink { .. } | AnchorKind::LiveBitmap { .. } => remove_from(None, anchor),
    }
}

/// Removes an anchor, if it is still there. One that is in an image is removed from `image`.
///
/// # Errors
/// It can't be removed.
pub(crate) fn remove_from(image: Option<&ImageFile>, anchor: &Anchor) -> Result<()> {
    match (&anchor.what, image) {
        (AnchorKind::Bitmap | AnchorKind::Snapshot { .. }, None) => Ok(()),
        (AnchorKind::Bitmap, Some(file)) => bitmap::remove(file, &anchor.name),
        (AnchorKind::Snapshot { id, date_s, date_ns }, Some(file)) => {
            snapshot::remove(file, &anchor.name, id, (*date_s, *date_ns))
        }
        (AnchorKind::Reflink { clones }, _) => {
            for clone in clones {
                let Some(folder) = clone.file.parent() else { continue };
                remove_kept(folder, &anchor.name)?;
            }
            Ok(())
        }
        // Whoever has QEMU begin bitmaps has it end them.
        (AnchorKind::LiveBitmap { .. }, _) => Ok(()),
    }
}
