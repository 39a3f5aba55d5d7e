//! Opening files: the one place that does it, whatever somebody has put in a file's place.
//!
//! Opening a named pipe waits for its other end, perhaps for ever, and deaf to signals; opening a
//! tape rewinds it. So nothing is opened here before it was looked at, nothing is waited for, and what
//! was opened is looked at again: only that counts.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::base::error::{Error, ErrorKind};

/// The most room that is made for a file before it is read.
const READ_AT_ONCE_MAX: u64 = 1 << 20;

/// How a regular file, or a block device, is opened. Everything else is refused: see [`is_refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opener {
    flags: OFlags,
    mode: Mode,
    devices: bool,
}

/// Something else lies where a file should.
#[derive(Debug)]
struct NoFile {
    found: FileType,
    devices: bool,
}

impl Opener {
    /// For reading. Symbolic links are followed.
    pub const READ: Self = Self::new(OFlags::RDONLY);
    /// For reading and writing. Symbolic links are followed.
    pub const CHANGE: Self = Self::new(OFlags::RDWR);

    const fn new(access: OFlags) -> Self {
        let always = OFlags::NONBLOCK.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);
        Self { flags: access.union(always), mode: Mode::empty(), devices: false }
    }

    /// The same for block devices, too.
    #[must_use]
    pub const fn or_device(mut self) -> Self {
        self.devices = true;
        self
    }

    /// The same without following a symbolic link in the file's own place.
    #[must_use]
    pub const fn itself(self) -> Self {
        self.with(OFlags::NOFOLLOW)
    }

    /// The same, past the page cache.
    #[must_use]
    pub const fn direct(self) -> Self {
        self.with(OFlags::DIRECT)
    }

    /// The same of a block device that nothing in the system uses: it is busy otherwise.
    #[must_use]
    pub const fn unused(self) -> Self {
        self.with(OFlags::EXCL)
    }

    /// The same; a file that is missing is made, with this mode.
    #[must_use]
    pub const fn or_create(mut self, mode: u32) -> Self {
        self.mode = Mode::from_raw_mode(mode);
        self.with(OFlags::CREATE)
    }

    /// The same; the file must be missing, and is made with this mode.
    #[must_use]
    pub const fn create(self, mode: u32) -> Self {
        self.or_create(mode).with(OFlags::EXCL)
    }

    /// The same; what is written goes to the file's end, whoever else writes there.
    #[must_use]
    pub const fn at_end(self) -> Self {
        self.with(OFlags::APPEND)
    }

    const fn with(mut self, flags: OFlags) -> Self {
        self.flags = self.flags.union(flags);
        self
    }

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It can't be opened, or is no file.
    pub fn open(self, path: &Path) -> io::Result<File> {
        self.open_at(CWD, path)
    }

    /// Opens the file at `path`, seen from the folder `at`.
    ///
    /// # Errors
    /// It can't be opened, or is no file.
    pub fn open_at(self, at: impl AsFd, path: &Path) -> io::Result<File> {
        let (file, _) = self.open_checked(at.as_fd(), path)?;
        // With this flag a ring would give up where it should wait for the disk.
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
        Ok(file)
    }

    /// The same, and what the system says of the file. It has the flag that makes a ring give up; plain reads of a
    /// file don't heed the flag.
    fn open_checked(self, at: BorrowedFd<'_>, path: &Path) -> io::Result<(File, Stat)> {
        if !self.flags.contains(OFlags::CREATE | OFlags::EXCL) {
            let follow = match self.flags.contains(OFlags::NOFOLLOW) {
                true => AtFlags::SYMLINK_NOFOLLOW,
                false => AtFlags::empty(),
            };
            match rustix::fs::statat(at, path, follow) {
                Ok(stat) => self.check(FileType::from_raw_mode(stat.st_mode))?,
                Err(Errno::NOENT) if self.flags.contains(OFlags::CREATE) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let file: File = rustix::fs::openat(at, path, self.flags, self.mode)?.into();
        let stat = rustix::fs::fstat(&file)?;
        self.check(FileType::from_raw_mode(stat.st_mode))?;
        Ok((file, stat))
    }

    fn check(self, found: FileType) -> io::Result<()> {
        match found {
            FileType::RegularFile => Ok(()),
            FileType::BlockDevice if self.devices => Ok(()),
            found => {
                let refusal = NoFile { found, devices: self.devices };
                Err(io::Error::new(io::ErrorKind::InvalidInput, refusal))
            }
        }
    }

    /// Opens the file at `path` to read all of it, or its beginning.
    ///
    /// # Errors
    /// It can't be opened, or is no file.
    pub fn whole(self, path: &Path) -> io::Result<Whole> {
        let (file, stat) = self.open_checked(CWD, path)?;
        Ok(Whole { file, len: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    /// Reads the file at `path`, which has at most `max` bytes.
    ///
    /// # Errors
    /// It can't be read, is no file, or is longer (`InvalidData`).
    pub fn read(self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let bytes = self.read_start(path, max.saturating_add(1))?;
        if bytes.len() as u64 > max {
            let text = format!("it is longer than {max} bytes, and that makes no sense");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }

    /// Reads the first `max` bytes of the file at `path`, or all of a shorter one.
    ///
    /// # Errors
    /// It can't be read, or is no file.
    pub fn read_start(self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.whole(path)?.read_start(max)
    }

    /// Reads the text of the file at `path`, which has at most `max` bytes.
    ///
    /// # Errors
    /// As [`Self::read`]; `InvalidData` if it is no UTF-8.
    pub fn read_text(self, path: &Path, max: u64) -> io::Result<String> {
        let bytes = self.read(path, max)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A file that is open to be read from its beginning.
#[derive(Debug)]
pub struct Whole {
    file: File,
    len: u64,
}

impl Whole {
    /// How long the file is, by what the system says.
    pub fn reported_len(&self) -> u64 {
        self.len
    }

    /// Reads the first `max` bytes, or all of a shorter file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read_start(mut self, max: u64) -> io::Result<Vec<u8>> {
        // With room for one byte more than there should be, one read has all of a small file and shows its end: a
        // repository has tens of thousands of manifests. A length that is not true costs a few reads more.
        let room = self.len.min(READ_AT_ONCE_MAX).saturating_add(1).min(max);
        let mut bytes = vec![0; room as usize];
        let mut have = 0;
        while have < bytes.len() {
            match self.file.read(bytes.get_mut(have..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if have > 0 && have as u64 == self.len {
                break;
            }
        }
        let is_full = have == bytes.len();
        bytes.truncate(have);
        if is_full {
            self.file.take(max.saturating_sub(have as u64)).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

/// The failure to open `path`: one of `kind` if something else lies in its place.
pub fn not_opened(path: &Path, error: io::Error, kind: ErrorKind) -> Error {
    match is_refusal(&error) {
        true => Error::new(kind, path.display().to_string()).because(error),
        // Something was there: who takes it for missing goes on as if nothing had ever been.
        false if kind == ErrorKind::Damaged && leads_nowhere(path, &error) => {
            let text = format!("{}: it is a symbolic link that leads to no file", path.display());
            Error::new(kind, text).because(error)
        }
        false => Error::io("open", path, error),
    }
}

/// Whether a file was not opened because a symbolic link in its place leads nowhere, or to itself.
fn leads_nowhere(path: &Path, error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let is_link = || path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    errno.is_some_and(|errno| errno == Errno::NOENT || errno == Errno::LOOP) && is_link()
}

/// Whether a file was not opened because it is something else: a folder, a pipe, a socket, a device, or
/// a symbolic link that was not to be followed.
pub fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NoFile>())
}

impl fmt::Display for NoFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.found {
            FileType::RegularFile => "a regular file",
            FileType::Directory => "a folder",
            FileType::Symlink => "a symbolic link",
            FileType::Fifo => "a named pipe",
            FileType::Socket => "a socket",
            FileType::CharacterDevice => "a character device",
            FileType::BlockDevice => "a block device",
            FileType::Unknown => "of an unknown kind",
        };
        match self.devices {
            true => write!(f, "it is {found}, neither a regular file nor a block device"),
            false => write!(f, "it is {found}, not a regular file"),
        }
    }
}

impl std::error::Error for NoFile {}

/// Opens the folder at `path`, seen from the folder `at`; a symbolic link in its place only if `follow`.
///
/// # Errors
/// It can't be opened, or is no folder (`ENOTDIR`, or `ELOOP` for a link).
pub fn open_folder(at: impl AsFd, path: &Path, follow: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Gets hold of what lies at `path` without opening it for anything: no pipe blocks, no device acts.
///
/// # Errors
/// Nothing is there, or it may not be looked up.
pub fn pin(path: &Path, follow: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Gets hold of a folder without the right to list it.
///
/// # Errors
/// Nothing is there, it is no folder, or it may not be looked up.
pub fn pin_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Returns once the names in a folder are on stable storage.
///
/// # Errors
/// It can't be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_folder(CWD, path, true)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const HOWS: [Opener; 6] = [
        Opener::READ,
        Opener::CHANGE,
        Opener::READ.or_device(),
        Opener::CHANGE.or_device().unused(),
        Opener::READ.itself(),
        Opener::CHANGE.or_create(0o600),
    ];

    /// A salvage opened archives by itself, without a look, and waited for ever on a named pipe.
    #[test]
    fn nothing_but_a_file_is_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        let others =
            [path("fifo"), path("socket"), path(""), "/dev/null".into(), "/dev/tty".into()];
        for how in HOWS {
            for other in &others {
                let error = how.open(other).unwrap_err();
                assert!(is_refusal(&error), "{other:?} {how:?}: {error}");
                assert!(error.to_string().contains("regular file"), "{error}");
            }
        }
    }

    #[test]
    fn a_file_is_opened_so_that_reads_wait_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "four").unwrap();
        symlink(&file, &link).unwrap();
        for how in HOWS.iter().filter(|how| !how.flags.contains(OFlags::EXCL)) {
            let opened = how.open(&file).unwrap();
            let flags = rustix::fs::fcntl_getfl(&opened).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK), "{how:?}");
        }
        Opener::READ.open(&link).unwrap();
        assert!(is_refusal(&Opener::READ.itself().open(&link).unwrap_err()));
        let missing = Opener::READ.open(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let taken = Opener::CHANGE.create(0o600).open(&file).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(Opener::READ.read(&file, 4).unwrap(), b"four");
        assert_eq!(Opener::READ.read_start(&file, 3).unwrap(), b"fou");
        let long = Opener::READ.read(&file, 3).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    }

    /// Nine questions to the system for each manifest were a third of what a look at fifteen thousand cost. One read
    /// has all of a small file now, and must not take what a length says for the end of the file.
    #[test]
    fn a_whole_file_is_read_whatever_its_length_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let all: Vec<u8> = (0..(1 << 20) + 5_u32).map(|at| (at % 251) as u8).collect();
        for len in [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, all.len()] {
            std::fs::write(&path, &all[..len]).unwrap();
            for max in [0, 1, len.saturating_sub(1), len, len + 1, usize::MAX] {
                let read = Opener::READ.read_start(&path, max as u64).unwrap();
                assert_eq!(read, &all[..len.min(max)], "{len} {max}");
            }
            for (was, len) in [(0, len), (len, len), (len / 2, len), (len + 1, len)] {
                let file = File::open(&path).unwrap();
                let whole = Whole { file, len: was as u64 };
                // Somebody wrote to the file after it was looked at.
                let expected = if was == len / 2 && was > 0 { was..=len } else { len..=len };
                assert!(
                    expected.contains(&whole.read_start(u64::MAX).unwrap().len()),
                    "{was} {len}"
                );
            }
        }
        // The system says of this one that it has no byte.
        let own = Opener::READ.read_start(Path::new("/proc/self/status"), 1 << 20).unwrap();
        assert!(own.starts_with(b"Name:") && own.ends_with(b"\n"), "{own:?}");
    }

    #[test]
    fn a_folder_is_opened_only_if_it_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink(folder.path(), &link).unwrap();
        open_folder(CWD, &link, true).unwrap();
        assert!(open_folder(CWD, &link, false).is_err());
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(open_folder(CWD, &fifo, true).unwrap_err(), Errno::NOTDIR);
        sync_folder(folder.path()).unwrap();
    }
}
