//! A file as the engine sees it. Tests put faulty ones under the real engine.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that can be read and written at any offset, like a file or a block device.
pub trait Store: Send + Sync {
    /// What to call it in an error.
    fn path(&self) -> &Path;
    /// Its length in bytes. For a block device, the size of the device.
    fn len(&self) -> io::Result<u64>;
    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end. May read fewer.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at most `bytes.len()` bytes at `offset`. May write fewer.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Cuts or extends it to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once everything written is on stable storage. An error is fatal: what was written
    /// before may be lost, and a second call would not tell.
    fn sync(&self) -> io::Result<()>;
    /// The descriptor behind it, if there is one that a ring may use in its place.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// If its descriptor goes past the page cache: the same file through the cache, for all that
    /// is not aligned.
    fn cached(&self) -> Option<&Arc<dyn Store>> {
        None
    }

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the store ends before.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = buffer.get_mut(count..).ok_or(io::ErrorKind::InvalidData)?;
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = bytes.get(count..).ok_or(io::ErrorKind::InvalidData)?;
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// An open file or block device.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    path: PathBuf,
}

impl FileStore {
    /// Wraps a file that is open already; `path` is what errors will call it.
    pub fn new(file: File, path: impl Into<PathBuf>) -> Self {
        Self { file, path: path.into() }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Store for FileStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        use std::os::unix::fs::FileTypeExt;
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            // The end of a block device is found by seeking; reads and writes here never use the
            // file's own position.
            return Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
