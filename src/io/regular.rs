//! Opening what should be a regular file, whatever somebody has put in its place.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What becomes of a symlink in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlink {
    /// It is followed.
    Followed,
    /// It is no regular file.
    Refused,
}

/// Opens `path`, seen from the folder `at`, for reading, and waits for nobody: opening a FIFO in a
/// file's place would wait for its writer.
///
/// # Errors
/// It can't be opened.
pub fn open_without_waiting(at: impl AsFd, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?.into())
}

/// Opens `path`, seen from the folder `at`, for reading, if it is a regular file; none if something
/// else is there.
///
/// # Errors
/// It can't be opened.
pub fn open_regular(at: impl AsFd, path: &Path, symlink: Symlink) -> io::Result<Option<File>> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if symlink == Symlink::Refused {
        flags |= OFlags::NOFOLLOW;
    }
    let file: File = match rustix::fs::openat(at, path, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::LOOP) if symlink == Symlink::Refused => return Ok(None),
        // A socket, or a device without a driver.
        Err(Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn only_a_regular_file_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) =
            (folder.path().join("file"), folder.path().join("link"), folder.path().join("fifo"));
        std::fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let is_one = |path, symlink| open_regular(CWD, path, symlink).unwrap().is_some();
        assert!(is_one(&file, Symlink::Refused));
        assert!(is_one(&link, Symlink::Followed));
        for other in [&link, &fifo, &folder.path().to_path_buf()] {
            assert!(!is_one(other, Symlink::Refused), "{other:?}");
        }
        let missing = open_regular(CWD, &folder.path().join("none"), Symlink::Refused);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
