//! The writing end of a pipe. The pipe's reader may never come or may stop reading, so every wait
//! ends when somebody asks to stop.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};

/// How long to wait between two checks for a request to stop.
const PAUSE: Duration = Duration::from_millis(50);
/// How many bytes a pipe with any room takes at once without waiting (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// A pipe that is written to.
pub struct Pipe {
    file: File,
    cancel: Cancel,
    /// How much is written at once, in bytes.
    piece_size: usize,
}

/// Somebody asked to stop while the pipe's reader did not read.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub(super) struct Stopped;

impl Pipe {
    /// Opens a named pipe, and waits for its reader.
    ///
    /// # Errors
    /// `Interrupted` if `cancel` says so first; `Io` if it can't be opened.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self> {
        let mut options = File::options();
        options.write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        loop {
            cancel.check()?;
            match options.open(path) {
                Ok(file) => {
                    return Ok(Self { file, cancel: cancel.clone(), piece_size: usize::MAX });
                }
                // Nobody has opened the pipe for reading yet.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(Error::io("open", path, error)),
            }
        }
    }

    /// Takes a pipe that is open already. Other processes that have the pipe open do not notice.
    pub fn of(file: File, cancel: &Cancel) -> Self {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::NONBLOCK.bits() as i32;
        let (file, piece_size) = match File::options().write(true).custom_flags(flags).open(own) {
            Ok(own) => (own, usize::MAX),
            // The pipe belongs to another user. The shared descriptor must stay blocking, so no
            // more is written than fits.
            Err(_) => (file, ATOMIC),
        };
        Self { file, cancel: cancel.clone(), piece_size }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..self.piece_size).unwrap_or(bytes);
        let pause = Timespec::try_from(PAUSE).map_err(io::Error::other)?;
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other(Stopped));
            }
            let mut polled = [PollFd::new(&self.file, PollFlags::OUT)];
            match poll(&mut polled, Some(&pause)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match rustix::io::write(self.file.as_fd(), piece) {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
