//! Writing a long file so that its sync at the end is short.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use crate::disk::sys::kernel::begin_writeback;

/// How much is written between two nudges, in bytes. Less makes small requests, more leaves the
/// device idle while the processors work.
const STEP: u64 = 8 << 20;

/// Writes to a file from its beginning on, and has the kernel put on the device what is complete.
#[derive(Debug)]
pub struct EarlyWriteback {
    file: File,
    written: u64,
    begun: u64,
}

impl EarlyWriteback {
    /// Writes to `file`, whose position is its beginning.
    pub fn new(file: File) -> Self {
        Self { file, written: 0, begun: 0 }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Write for EarlyWriteback {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        if self.written - self.begun >= STEP {
            begin_writeback(self.file.as_fd(), self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
