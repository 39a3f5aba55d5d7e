//! Which file a descriptor or a name leads to, and whether the file was written to.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType};

/// Tells a file or a block device from every other one, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// A file, a folder, a pipe.
    File {
        /// The device of its filesystem.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// A block device, which may have several nodes.
    BlockDevice(u64),
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { device, inode } => write!(f, "{device}:{inode}"),
            Self::BlockDevice(number) => write!(f, "device {number}"),
        }
    }
}

impl FileId {
    /// The file behind a descriptor.
    ///
    /// # Errors
    /// Whatever `fstat` says.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Self::BlockDevice(stat.st_rdev),
            _ => Self::File { device: stat.st_dev, inode: stat.st_ino },
        })
    }

    /// The file that the name leads to, through symbolic links.
    ///
    /// # Errors
    /// Whatever `stat` says.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

impl From<&Metadata> for FileId {
    fn from(data: &Metadata) -> Self {
        match data.file_type().is_block_device() {
            true => Self::BlockDevice(data.rdev()),
            false => Self::File { device: data.dev(), inode: data.ino() },
        }
    }
}

/// What a write to a file changes: two equal stamps say that nobody wrote in between, as far as the
/// file's time is fine enough to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub id: FileId,
    pub len: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// Whatever `fstat` says.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self {
            id: FileId::of(&file)?,
            len: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
        })
    }
}

impl From<&Metadata> for Stamp {
    fn from(data: &Metadata) -> Self {
        let modified = (data.mtime(), data.mtime_nsec());
        Self { id: FileId::from(data), len: data.len(), modified }
    }
}

/// A regular file that was looked at without opening it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Which file it is.
    pub id: FileId,
    /// Its length in bytes.
    pub len: u64,
    /// When anything of it changed last: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

/// Looks at the regular file of this name in an open folder, without walking the path to the folder again
/// for each name. None for anything else, symbolic links included.
///
/// # Errors
/// Nothing has the name, or it can't be looked at.
pub fn look_in(folder: impl AsFd, name: &str) -> io::Result<Option<Seen>> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some(Seen {
        id: FileId::File { device: stat.st_dev, inode: stat.st_ino },
        len: u64::try_from(stat.st_size).unwrap_or_default(),
        changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Seven modules told files apart in as many ways, by descriptor, by name and by metadata.
    #[test]
    fn a_file_is_the_same_by_every_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other, link] = ["file", "other", "link"].map(|name| dir.path().join(name));
        std::fs::write(&path, b"file").unwrap();
        std::fs::write(&other, b"file").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let file = File::open(&path).unwrap();
        let id = FileId::of(&file).unwrap();
        assert_eq!(id, FileId::at(&link).unwrap());
        assert_eq!(id, FileId::from(&file.metadata().unwrap()));
        assert_ne!(id, FileId::at(&other).unwrap());
        assert_eq!(
            FileId::at(&dir.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_write_changes_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"before").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let before = Stamp::of(&file).unwrap();
        assert_eq!(before, Stamp::of(&file).unwrap());
        assert_eq!(before, Stamp::from(&file.metadata().unwrap()));
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let touched = Stamp::of(&file).unwrap();
        assert_eq!((touched.id, touched.len, touched.modified), (before.id, 6, (0, 0)));
        file.set_len(5).unwrap();
        assert_eq!(Stamp::of(&file).unwrap().len, 5);
    }
}
