//! Making a clone.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::disk::sys::kernel::fiemap;

/// Clones the open file `source`, called `source_path`, to a new file in `folder`, which is called
/// `target` with its whole path, and which nobody but its owner can read. The kernel writes what is
/// dirty in the source first, and lets nobody write to it meanwhile. The clone is not synced: sync it,
/// and its folder, before relying on it.
///
/// # Errors
/// [`ErrorKind::Exists`] if there is such a file; [`ErrorKind::Usage`] if the filesystem can't
/// clone, or is another one; [`ErrorKind::NoSpace`]; [`ErrorKind::Io`]. Then there is no new file.
pub(super) fn clone_file(
    source: impl AsFd,
    source_path: &Path,
    folder: BorrowedFd<'_>,
    target: &Path,
) -> Result<File> {
    let name = target.file_name().unwrap_or_default();
    let file = Opener::CHANGE.create(0o600).open_at(folder, Path::new(name));
    let file = file.map_err(|error| Error::io("create", target, error))?;
    let cloned = match rustix::fs::ioctl_ficlone(&file, source.as_fd()) {
        // Btrfs clones a file that is marked NOCOW only to another one that is.
        Err(Errno::INVAL) => {
            mark_like(source.as_fd(), &file);
            rustix::fs::ioctl_ficlone(&file, source.as_fd())
        }
        other => other,
    };
    cloned.map(|()| file).map_err(|errno| {
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        refused(errno, source_path, target)
    })
}

/// Tries whether files in a folder can be cloned, with two that have no name.
///
/// # Errors
/// [`ErrorKind::Usage`] if its filesystem can't clone; [`ErrorKind::Io`] if no file can be made there.
pub fn try_clone_in(folder: &Path) -> Result<()> {
    let failed = |error| Error::io("make a file in", folder, error);
    let mut source = tempfile::tempfile_in(folder).map_err(failed)?;
    source.write_all(&[1; 4096]).map_err(failed)?;
    let target = tempfile::tempfile_in(folder).map_err(failed)?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(|errno| refused(errno, folder, folder))
}

/// Gives an empty file the NOCOW mark of another one. If it can't be, cloning says so.
fn mark_like(source: impl AsFd, target: impl AsFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(source.as_fd())
        && flags.contains(rustix::fs::IFlags::NOCOW)
        && let Ok(own) = rustix::fs::ioctl_getflags(target.as_fd())
    {
        let _ = rustix::fs::ioctl_setflags(target, own | rustix::fs::IFlags::NOCOW);
    }
}

fn refused(errno: Errno, source: &Path, target: &Path) -> Error {
    let what = match source == target {
        true => format!("cannot clone files in {}", source.display()),
        false => format!("cannot clone {} to {}", source.display(), target.display()),
    };
    let (kind, advice) = match errno {
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::NOSYS => {
            (ErrorKind::Usage, Some("cloning needs XFS with reflink, or Btrfs, below the image"))
        }
        Errno::XDEV => (ErrorKind::Usage, Some("a clone must be on the filesystem of its image")),
        Errno::NOSPC | Errno::DQUOT => (ErrorKind::NoSpace, None),
        _ => (ErrorKind::Io, None),
    };
    let error = Error::new(kind, what).because(std::io::Error::from(errno));
    match advice {
        Some(advice) => error.advise(advice),
        None => error,
    }
}

/// How many extents a file has: what a clone of it costs.
///
/// # Errors
/// The filesystem does not tell.
pub fn extent_count(file: BorrowedFd<'_>, path: &Path) -> Result<u64> {
    fiemap::count(file).map_err(|error| Error::io("count the extents of", path, error))
}
