//! QEMU's locks on image files: who uses an image is asked, and qdelta's own use is made known.
//!
//! QEMU has four permissions on an image. Byte 100 + n of the file, locked, says "I hold permission
//! n"; byte 200 + n says "nobody else may have permission n". All the locks are shared ones, so
//! that their holders coexist; a conflict shows when somebody looks whether the other byte is
//! locked at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::kernel::byte_lock;
use crate::disk::sys::patience;

/// "I hold permission 0".
const HELD: i64 = 100;
/// "Nobody else may have permission 0".
const DENIED: i64 = 200;
/// How many permissions there are.
const PERMISSIONS: u8 = 4;

const READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;
const ALL: u8 = (1 << PERMISSIONS) - 1;

/// What others do with an image and what they forbid, as far as their locks tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    held: u8,
    denied: u8,
}

impl Holder {
    /// Somebody writes to the image: it is in use by a running guest, or by a tool.
    pub fn writes(self) -> bool {
        self.held & (WRITE | RESIZE) != 0
    }

    /// Somebody reads the image.
    pub fn reads(self) -> bool {
        self.held & READ != 0
    }
}

/// Asks who else uses the image `file`; `None` if nobody is known to. Nothing is locked.
///
/// # Errors
/// The filesystem knows no such locks, or the descriptor is none of a file.
pub fn probe(file: impl AsFd) -> io::Result<Option<Holder>> {
    let file = file.as_fd();
    let holder = Holder { held: bits(file, HELD, ALL)?, denied: bits(file, DENIED, ALL)? };
    Ok((holder.held != 0 || holder.denied != 0).then_some(holder))
}

/// As [`probe`], but for those who have just ended and whose locks go in a moment: their locks do not
/// count.
///
/// # Errors
/// As [`probe`].
pub fn probe_living(file: impl AsFd) -> io::Result<Option<Holder>> {
    let mut holder = None;
    patience::wait_until(|| {
        holder = probe(&file)?;
        Ok::<bool, io::Error>(holder.is_none())
    })?;
    Ok(holder)
}

/// What a [`ImageLock`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Others may read, too; nobody may write.
    Read,
    /// Nobody else may do anything.
    Write,
}

/// qdelta's claim on an image, of the kind that QEMU heeds. It ends with the value.
#[derive(Debug)]
#[must_use = "the claim ends when this is dropped"]
pub struct ImageLock {
    /// Shares its locks with the descriptor that was given.
    file: OwnedFd,
    locked: Vec<i64>,
    warning: Option<String>,
}

impl ImageLock {
    /// Claims `file` for reading: as long as this lives, QEMU opens it read-only or not at all.
    /// `path` is for the error.
    ///
    /// Where the filesystem knows no such locks, nothing is claimed and [`Self::warning`] says so.
    ///
    /// # Errors
    /// `Busy` if somebody writes to it; `Io` if the system fails.
    pub fn shared_read(file: impl AsFd, path: &Path) -> Result<Self> {
        Self::acquire(file.as_fd(), path, Purpose::Read)
    }

    /// Claims `file` for writing: as long as this lives, QEMU does not open it.
    ///
    /// # Errors
    /// `Busy` if somebody uses it in any way; `Io` if the system fails.
    pub fn exclusive(file: impl AsFd, path: &Path) -> Result<Self> {
        Self::acquire(file.as_fd(), path, Purpose::Write)
    }

    /// Turns a claim for writing into one for reading. In between nobody can write: what a reader
    /// claims, a writer has claimed already.
    pub fn downgrade(&mut self) {
        let keep: Vec<i64> = bytes(HELD, READ).chain(bytes(DENIED, WRITE | RESIZE)).collect();
        let (kept, released) = self.locked.iter().partition(|byte| keep.contains(byte));
        self.locked = kept;
        let released: Vec<i64> = released;
        for byte in released {
            // What can't be unlocked now is when the last descriptor is closed.
            let _ = byte_lock::release(self.file.as_fd(), byte);
        }
    }

    /// Why the claim may not be heeded, if there is a reason.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn acquire(file: BorrowedFd<'_>, path: &Path, purpose: Purpose) -> Result<Self> {
        let failed = |error: io::Error| Error::io("lock", path, error);
        let mut lock = Self {
            file: file.try_clone_to_owned().map_err(failed)?,
            locked: Vec::new(),
            warning: unreliable(file).map(|name| {
                format!("{}: image locks on {name} are only seen on this machine", path.display())
            }),
        };
        let (hold, deny) = match purpose {
            Purpose::Read => (READ, WRITE | RESIZE),
            Purpose::Write => (READ | WRITE | RESIZE, ALL),
        };
        // First the own claim and then the look at the others', as QEMU does: of two that come at
        // the same time, at least one sees the other.
        let mut conflict = lock.claim(hold, deny).and_then(|()| lock.conflict(hold, deny));
        if matches!(conflict, Ok(Some(_))) {
            // While it waits it claims nothing, so that it is in nobody's way.
            lock.release();
            let free = patience::wait_until(|| lock.conflict(hold, deny).map(|it| it.is_none()));
            if matches!(free, Ok(true)) {
                conflict = lock.claim(hold, deny).and_then(|()| lock.conflict(hold, deny));
            }
        }
        match conflict {
            Ok(None) => Ok(lock),
            Ok(Some(what)) => {
                let error = Error::new(ErrorKind::Busy, format!("{} {what}", path.display()));
                Err(error.advise(match purpose {
                    Purpose::Read => {
                        "shut the guest down first, or back it up as it runs with --domain; if \
                         another backup is leaving its anchor there, try again"
                    }
                    Purpose::Write => "end the program that uses it first",
                }))
            }
            Err(error) if is_unknown(&error) => {
                lock.warning =
                    Some(format!("{}: this filesystem has no locks: {error}", path.display()));
                Ok(lock)
            }
            // Not one of QEMU's locks, which are all shared, but somebody means it.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("{} is locked by another program", path.display());
                Err(Error::new(ErrorKind::Busy, text).advise("end the program that uses it first"))
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn release(&mut self) {
        for byte in self.locked.drain(..) {
            // What can't be unlocked now is when the last descriptor is closed.
            let _ = byte_lock::release(self.file.as_fd(), byte);
        }
    }

    fn claim(&mut self, hold: u8, deny: u8) -> io::Result<()> {
        for (base, mask) in [(HELD, hold), (DENIED, deny)] {
            for byte in bytes(base, mask) {
                byte_lock::share(self.file.as_fd(), byte)?;
                self.locked.push(byte);
            }
        }
        Ok(())
    }

    /// What stands against the claim, in words.
    fn conflict(&self, hold: u8, deny: u8) -> io::Result<Option<&'static str>> {
        let held = bits(self.file.as_fd(), HELD, deny)?;
        if held & (WRITE | RESIZE) != 0 {
            return Ok(Some("is being written to by another program"));
        }
        if held != 0 {
            return Ok(Some("is in use by another program"));
        }
        let denied = bits(self.file.as_fd(), DENIED, hold)?;
        Ok((denied != 0).then_some("is in use by a program that wants it for itself"))
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        self.release();
    }
}

/// The bytes from `base` on that stand for the permissions in `mask`.
fn bytes(base: i64, mask: u8) -> impl Iterator<Item = i64> {
    (0..PERMISSIONS).filter(move |n| mask >> n & 1 == 1).map(move |n| base + i64::from(n))
}

/// Which of the permissions in `mask` have their byte locked by somebody else.
fn bits(file: BorrowedFd<'_>, base: i64, mask: u8) -> io::Result<u8> {
    let mut found = 0;
    for byte in bytes(base, mask) {
        if byte_lock::is_held(file, byte)? {
            found |= 1 << (byte - base);
        }
    }
    Ok(found)
}

/// Whether the failure says that there are no locks here.
fn is_unknown(error: &io::Error) -> bool {
    let unknown = [Errno::NOLCK, Errno::NOTSUP, Errno::NOSYS, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| unknown.contains(&errno))
}

/// The name of the file's filesystem if it is one on which locks do not reach other machines, or
/// may not.
pub(crate) fn unreliable(file: BorrowedFd<'_>) -> Option<&'static str> {
    match rustix::fs::fstatfs(file).ok()?.f_type as u64 & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::path::PathBuf;
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use super::*;

    fn image(dir: &Path) -> PathBuf {
        let path = dir.join("image.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("1M")
            .status()
            .unwrap();
        assert!(made.success());
        path
    }

    /// A `qemu-io` that has an image open until it is dropped.
    struct Holding {
        child: Child,
        stdin: ChildStdin,
        stdout: BufReader<ChildStdout>,
    }

    impl Holding {
        fn open(path: &Path, options: &[&str]) -> Self {
            let mut child = Command::new("qemu-io")
                .args(["-f", "qcow2"])
                .args(options)
                .arg(path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let stdin = child.stdin.take().unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let mut holding = Self { child, stdin, stdout };
            holding.wait();
            holding
        }

        /// Returns when the image is open: the answer to a command says so.
        fn wait(&mut self) {
            writeln!(self.stdin, "length").unwrap();
            let mut line = String::new();
            while !line.contains("1 MiB") {
                line.clear();
                assert!(self.stdout.read_line(&mut line).unwrap() > 0, "qemu-io has ended");
            }
        }
    }

    impl Drop for Holding {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Whether QEMU opens the image with these options now.
    fn qemu_opens(path: &Path, options: &[&str]) -> bool {
        let output = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "length"])
            .args(options)
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || text.contains("lock"), "{text}");
        output.status.success()
    }

    /// A second reader of our own kind comes in, and the end of the first one changes nothing.
    fn a_second_reader_goes_on(first: ImageLock, path: &Path) {
        let other = File::open(path).unwrap();
        let second = ImageLock::shared_read(&other, path).unwrap();
        drop(first);
        assert!(!qemu_opens(path, &[]));
        drop(second);
        assert!(qemu_opens(path, &[]));
    }

    #[test]
    fn a_writer_is_seen_and_keeps_readers_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = File::open(&path).unwrap();
        assert_eq!(probe(&file).unwrap(), None);
        let holding = Holding::open(&path, &[]);
        assert!(probe(&file).unwrap().unwrap().writes());
        let error = ImageLock::shared_read(&file, &path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.advice().is_some());
        // The attempt leaves nothing behind that would disturb the writer's successor.
        drop(holding);
        assert_eq!(probe(&file).unwrap(), None);
        assert!(qemu_opens(&path, &[]));
        assert_eq!(ImageLock::shared_read(&file, &path).unwrap().warning(), None);
    }

    #[test]
    fn a_reader_is_seen_and_lets_readers_in_but_no_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let _holding = Holding::open(&path, &["-r"]);
        let holder = probe(&file).unwrap().unwrap();
        assert!(holder.reads() && !holder.writes());
        drop(ImageLock::shared_read(&file, &path).unwrap());
        assert_eq!(ImageLock::exclusive(&file, &path).unwrap_err().kind(), ErrorKind::Busy);
    }

    #[test]
    fn while_it_is_read_qemu_reads_but_does_not_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = File::open(&path).unwrap();
        let lock = ImageLock::shared_read(&file, &path).unwrap();
        assert!(qemu_opens(&path, &["-r"]));
        assert!(!qemu_opens(&path, &[]));
        a_second_reader_goes_on(lock, &path);
    }

    #[test]
    fn while_it_is_written_nobody_else_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let lock = ImageLock::exclusive(&file, &path).unwrap();
        assert!(!qemu_opens(&path, &["-r"]));
        let other = File::open(&path).unwrap();
        assert_eq!(ImageLock::shared_read(&other, &path).unwrap_err().kind(), ErrorKind::Busy);
        drop(lock);
        assert!(qemu_opens(&path, &[]));
    }

    #[test]
    fn a_writer_becomes_a_reader_without_letting_writers_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut lock = ImageLock::exclusive(&file, &path).unwrap();
        lock.downgrade();
        assert!(qemu_opens(&path, &["-r"]));
        assert!(!qemu_opens(&path, &[]));
        a_second_reader_goes_on(lock, &path);
    }

    #[test]
    fn a_lock_of_another_kind_is_heeded_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let other = File::options().read(true).write(true).open(&path).unwrap();
        byte_lock::own(other.as_fd(), 201).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(ImageLock::shared_read(&file, &path).unwrap_err().kind(), ErrorKind::Busy);
        // Closing it is not enough while another test starts a program, which has it open, too.
        byte_lock::release(other.as_fd(), 201).unwrap();
        drop(ImageLock::shared_read(&file, &path).unwrap());
    }

    #[test]
    fn what_knows_no_locks_is_a_warning() {
        let errno = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_unknown(&errno(Errno::NOLCK)) && is_unknown(&errno(Errno::NOTSUP)));
        assert!(!is_unknown(&errno(Errno::AGAIN)) && !is_unknown(&errno(Errno::IO)));
        // /proc/version is on a filesystem without locks of its own, where the kernel's generic
        // ones serve: nothing to warn of.
        let file = File::open("/proc/version").unwrap();
        let lock = ImageLock::shared_read(&file, Path::new("/proc/version")).unwrap();
        assert_eq!(lock.warning(), None);
    }
}
