//! Whether a file is another one again, and whether somebody writes to it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::base::error::{Error, Result};
use crate::disk::files::{image_lock, layers};
use crate::disk::io::Opener;
use crate::disk::sys::FileId;

/// Filesystems count in two seconds at the most.
const COARSE_S: i64 = 2;

/// A file or block device as it is at the moment.
#[derive(Debug, Clone)]
pub(super) struct Look {
    id: FileId,
    /// Time of the last write, in seconds; none for a device.
    modified_s: Option<i64>,
    /// QEMU's locks say that somebody writes to it. Where there are none, this says nothing.
    pub is_written: bool,
}

impl Look {
    /// Looks at the file or block device at `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn at(path: &Path) -> Result<Self> {
        let file =
            Opener::READ.or_device().open(path).map_err(|error| Error::io("open", path, error))?;
        Self::of(file.as_fd(), path)
    }

    /// Looks at an open file, called `path`.
    ///
    /// # Errors
    /// It is neither a file nor a block device.
    pub fn of(fd: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let failed = |error| Error::io("look at", path, error);
        let metadata = fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
        let metadata = metadata.map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(failed(std::io::Error::other("it is no regular file and no block device")));
        }
        let is_written = image_lock::probe(fd).ok().flatten().is_some_and(|holder| holder.writes());
        Ok(Self {
            id: FileId::from(&metadata),
            modified_s: metadata.is_file().then(|| metadata.mtime()),
            is_written,
        })
    }

    /// Whether it is the same file or device as `other`, by whatever name.
    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Whether it has the same bytes as `other`: it is the same, or a loop device over it.
    pub fn has_same_bytes(&self, other: &Self) -> bool {
        layers::is_same_disk(self.id, other.id)
    }

    /// Whether it is the same as `other`, or a device that lies on it.
    pub fn leads_to(&self, other: &Self) -> bool {
        layers::lies_on(self.id, other.id)
    }

    /// Whether it is a file that was written last before `other` was: no copy keeps a time that is
    /// older than its source's.
    pub fn is_older(&self, other: &Self) -> bool {
        match (self.modified_s, other.modified_s) {
            (Some(made), Some(live)) => made.saturating_add(COARSE_S) < live,
            _ => false,
        }
    }
}
