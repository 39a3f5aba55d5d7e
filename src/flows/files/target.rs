//! A folder of this machine that a tree is written into. Every name is opened in the folder above it and
//! no link is followed on the way, so nothing is ever written outside.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;

/// A folder that is written into.
pub(super) struct Target {
    folder: OwnedFd,
    path: PathBuf,
    /// The folder that was used last, by its path below this one: files come folder by folder.
    last: Option<(Vec<u8>, OwnedFd)>,
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl Target {
    /// The folder at `path`, which may be a link: the caller has chosen it.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = rustix::fs::open(path, FOLDER, Mode::empty());
        let folder = folder.map_err(|error| Error::io("open", path, error.into()))?;
        Ok(Self { folder, path: path.to_owned(), last: None })
    }

    /// What errors call a file below.
    pub fn path_of(&self, path: &[u8]) -> PathBuf {
        match path {
            b"" => self.path.clone(),
            path => self.path.join(OsStr::from_bytes(path)),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The folder that `path` lies in, and its last name.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p OsStr)> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let Some(at) = at else { return Ok((self.folder.as_fd(), OsStr::from_bytes(path))) };
        let (folder, name) = path.split_at(at);
        let name = OsStr::from_bytes(name.get(1..).unwrap_or_default());
        if self.last.as_ref().is_none_or(|(last, _)| last != folder) {
            let opened = self.descend(folder)?;
            self.last = Some((folder.to_vec(), opened));
        }
        let fd = self.last.as_ref().map_or(self.folder.as_fd(), |(_, fd)| fd.as_fd());
        Ok((fd, name))
    }

    /// Opens a folder below, name by name.
    fn descend(&self, folder: &[u8]) -> Result<OwnedFd> {
        let mut here: Option<OwnedFd> = None;
        for name in folder.split(|byte| *byte == b'/') {
            let above = here.as_ref().map_or(self.folder.as_fd(), |fd| fd.as_fd());
            let opened = rustix::fs::openat(above, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
            here = Some(opened.map_err(|error| self.failed("open", folder, error))?);
        }
        here.ok_or_else(|| self.failed("open", folder, Errno::NOENT))
    }

    /// An error about a file below.
    pub fn failed(&self, operation: &str, path: &[u8], error: Errno) -> Error {
        Error::io(operation, &self.path_of(path), error.into())
    }

    /// An error about a file that the target does not take, if that is a matter of this file alone: of its
    /// name, which the target may know already or have no form for, or of its kind.
    fn not_made(&self, path: &[u8], error: Errno) -> Error {
        let why = match error {
            Errno::EXIST => {
                "its name stands twice in its folder, or the target takes it for another one"
            }
            Errno::INVAL | Errno::NAMETOOLONG | Errno::ILSEQ | Errno::NOENT => {
                "the target has no form for its name, or for where it leads"
            }
            Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK => "the target has no files of its kind",
            error => return self.failed("make", path, error),
        };
        Error::new(ErrorKind::Image, why).because(std::io::Error::from(error))
    }

    /// Makes a folder that nobody but its owner looks into. One that is there already is as good, if
    /// `merge` says so.
    pub fn make_folder(&mut self, path: &[u8], merge: bool) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if merge => {
                // A link in its place would lead elsewhere.
                let opened =
                    rustix::fs::openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
                opened.map(drop).map_err(|error| self.failed("write into", path, error))
            }
            Err(error) => Err(self.not_made(path, error)),
        }
    }

    /// Opens a folder below, to change its attributes.
    pub fn open_folder(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, name) = self.parent(path)?;
        let opened = rustix::fs::openat(parent, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
        opened.map_err(|error| self.failed("open", path, error))
    }

    /// Makes a new file that nobody but its owner reads.
    pub fn make_file(&mut self, path: &[u8]) -> Result<File> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (parent, name) = self.parent(path)?;
        let opened = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        opened.map(File::from).map_err(|error| self.not_made(path, error))
    }

    /// Makes a symbolic link.
    pub fn make_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let made = rustix::fs::symlinkat(target, parent, name);
        made.map_err(|error| self.not_made(path, error))
    }

    /// Makes a device, a pipe or a socket.
    pub fn make_special(&mut self, path: &[u8], kind: FileType, device: (u32, u32)) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let device = rustix::fs::makedev(device.0, device.1);
        let made = rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device);
        made.map_err(|error| self.not_made(path, error))
    }

    /// Gives the file at `from` a second name.
    pub fn make_name(&mut self, from: &[u8], path: &[u8]) -> Result<()> {
        let at = from.iter().rposition(|byte| *byte == b'/');
        let (folder, old) = match at {
            Some(at) => {
                let (folder, name) = from.split_at(at);
                (Some(self.descend(folder)?), name.get(1..).unwrap_or_default())
            }
            None => (None, from),
        };
        let top = self.folder.try_clone().map_err(|error| Error::io("open", &self.path, error))?;
        let folder = folder.unwrap_or(top);
        let (parent, name) = self.parent(path)?;
        let made = rustix::fs::linkat(&folder, old, parent, name, AtFlags::empty());
        made.map_err(|error| self.not_made(path, error))
    }

    /// Owner, group, time and mode of a file that is no folder and has no descriptor.
    pub fn set_by_name(
        &mut self,
        path: &[u8],
        set: impl FnOnce(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        set(parent, name).map_err(|error| self.failed("set the attributes of", path, error))
    }

    /// Gives what was written as `from` its final name beside it, in the place of a file that has it.
    pub fn replace(&mut self, from: &[u8], path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let old = from.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let renamed = rustix::fs::renameat(parent, old, parent, name);
        renamed.map_err(|error| self.failed("replace", path, error))
    }

    /// Removes a file below that was not finished. Whether that works changes nothing any more.
    pub fn remove(&mut self, path: &[u8]) {
        if let Ok((parent, name)) = self.parent(path) {
            let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
    }
}

/// A name that nothing has, for what is not finished yet.
pub(super) fn unfinished_name() -> Result<Vec<u8>> {
    let bytes: [u8; 8] = random::bytes()?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(".qdelta-{hex}.part").into_bytes())
}

/// Permissions as the system takes them.
pub(super) fn mode(bits: u16) -> Mode {
    Mode::from_bits_truncate(RawMode::from(bits))
}
