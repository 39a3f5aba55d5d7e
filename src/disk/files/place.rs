//! Where a new file may be made, and opening a block device for oneself.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::disk::sys::patience;

/// The folders of the kernel's own: what is made there is in memory, or is nothing at all.
const KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Fails if a file at `path` would be one in a folder of the kernel's: a device that is not there, or
/// whose name is mistyped, must not become a file in memory that the next start of the machine forgets.
/// A tmpfs that is mounted below, such as `/dev/shm`, is for files.
///
/// # Errors
/// `Usage`, with what to do.
pub(crate) fn check_new_file(path: &Path) -> Result<()> {
    let Some(folder) = KERNELS.map(Path::new).into_iter().find(|folder| is_in(path, folder)) else {
        return Ok(());
    };
    let text =
        format!("{} is not there, and no file is made in {}", path.display(), folder.display());
    let error = Error::new(ErrorKind::Usage, text);
    Err(match folder.ends_with("dev") {
        true => error
            .because("a file there is in memory, and is gone when this machine starts again")
            .advise("if a device is meant, see how it is called (lsblk), and activate it first (lvchange -ay)"),
        false => error.advise("name a file in another folder"),
    })
}

/// Whether `path` lies in one of the kernel's folders, by its name or by where its folder leads.
fn is_in(path: &Path, kernels: &Path) -> bool {
    let Ok(absolute) = std::path::absolute(path) else { return false };
    let lexical = without_dots(&absolute);
    let real = nearest(&lexical);
    let Ok(own) = std::fs::metadata(kernels) else { return lexical.starts_with(kernels) };
    let is_mount = std::fs::metadata("/").is_ok_and(|root| root.dev() != own.dev());
    match real.as_ref().and_then(|real| Some((real, std::fs::metadata(real).ok()?.dev()))) {
        // The same filesystem may be mounted elsewhere, too, as for a chroot.
        Some((real, device)) => (real.starts_with(kernels) || is_mount) && device == own.dev(),
        None => lexical.starts_with(kernels),
    }
}

/// The real path of the nearest folder above `path` that is there.
fn nearest(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find_map(|folder| folder.canonicalize().ok())
}

/// The path without `.` and `..`, by its words alone.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Opens the block device at `path` for reading and writing, if nobody else has it for himself: a
/// mounted filesystem, a volume manager, another qdelta.
///
/// # Errors
/// `Busy`, `NotFound`, `Io`.
pub(crate) fn open_device(path: &Path) -> Result<File> {
    let opener = Opener::CHANGE.or_device().unused();
    let mut last = None;
    let free = patience::wait_until(|| match opener.open(path) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
            last = Some(Err(error));
            Ok(false)
        }
        Ok(file) => {
            last = Some(Ok(file));
            Ok(true)
        }
        Err(error) => Err(error),
    });
    match (free, last) {
        (Ok(true), Some(Ok(file))) => Ok(file),
        (Ok(_), Some(Err(busy))) => {
            let text = format!("{} is mounted or otherwise in use", path.display());
            Err(Error::new(ErrorKind::Busy, text).because(busy))
        }
        (Err(error), _) => Err(Error::io("open", path, error)),
        (Ok(_), _) => Err(Error::new(ErrorKind::Io, format!("cannot open {}", path.display()))),
    }
}

/// Whether something of this host has the block device at `path` for itself: a mounted filesystem, a volume manager,
/// swap. Nothing keeps that from writing.
pub(crate) fn is_held(path: &Path) -> bool {
    let is_device = std::fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device());
    let opener = Opener::READ.or_device().unused();
    let is_busy =
        || opener.open(path).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::BUSY));
    // Whoever only looks at a new device lets go of it soon.
    is_device && !patience::wait_until(|| Ok::<_, Error>(!is_busy())).unwrap_or(true)
}

/// Makes a folder that nobody but its owner looks into, and the folders around it, unless it is there.
///
/// # Errors
/// It can't be made.
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => Ok(()),
        false => DirBuilder::new().recursive(true).mode(0o700).create(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A restore to a device that was not there made a file of that name in memory, and called it
    /// proved.
    #[test]
    fn no_file_is_made_among_devices() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev", dir.path().join("link")).unwrap();
        let link = dir.path().join("link/no-such-device");
        let far = PathBuf::from("/dev/no-such-group/no-such-volume");
        let dotted = PathBuf::from("/tmp/../dev/./no-such-device");
        for path in ["/dev/no-such-device", "/proc/x", "/sys/x"].map(PathBuf::from) {
            assert_eq!(check_new_file(&path).unwrap_err().kind(), ErrorKind::Usage, "{path:?}");
        }
        for path in [link, far, dotted] {
            assert_eq!(check_new_file(&path).unwrap_err().kind(), ErrorKind::Usage, "{path:?}");
        }
        for path in ["disk.raw", "/disk.raw", "/devices/disk.raw", "/no/such/folder/disk"] {
            check_new_file(Path::new(path)).unwrap();
        }
        check_new_file(&dir.path().join("disk.raw")).unwrap();
        let shm = std::fs::metadata("/dev/shm").map(|it| it.dev());
        if shm.is_ok_and(|shm| shm != std::fs::metadata("/dev").unwrap().dev()) {
            check_new_file(Path::new("/dev/shm/disk.raw")).unwrap();
        }
    }
}
