//! Clones as anchors: `reflink` copies of the files of an image, kept beside them.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Tag;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::disk::reflink::{Kept, kept_beside, remove_kept};
use crate::vault::repository::{Anchor, AnchorKind, CloneRecord};

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
                let _ = remove_kept(folder, &self.anchor);
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
    for name in kept_beside(folder)? {
        if tag.owns(&name) && !keep.contains(&name.as_str()) {
            remove_kept(folder, &name)?;
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
