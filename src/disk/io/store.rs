//! A file as the engine sees it. Tests put faulty ones under the real engine.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;

use super::PooledFile;

/// What a part of some bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing is stored: it reads as zeros.
    Hole,
    /// Bytes are stored, or nobody knows.
    Data,
}

/// Bytes that can be read at any offset, from any thread: a file, a device, an image's disk, a point, an
/// export of a server.
pub trait ReadAt: Send + Sync {
    /// What to call it in an error.
    fn path(&self) -> &Path;
    /// Its length in bytes. For a block device, the size of the device.
    fn len(&self) -> io::Result<u64>;
    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end. May read fewer.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills parts of `buffer`, each from its offset, where it is quicker to ask for all of them at once; nothing where
    /// it is not. After an error, any of them may be filled.
    fn read_parts(
        &self,
        _buffer: &mut [u8],
        _parts: &[(Range<usize>, u64)],
    ) -> Option<io::Result<()>> {
        None
    }

    /// The descriptor behind it, if there is one that a ring may use in its place.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// If it is open only while it is needed: what opens it. It has no descriptor of its own then.
    fn pooled(&self) -> Option<&PooledFile> {
        None
    }

    /// If its descriptor goes past the page cache: the same file through the cache, for all that
    /// is not aligned.
    fn cached(&self) -> Option<&Arc<dyn ReadAt>> {
        None
    }

    /// What lies at `offset`, and where that ends, which may be behind the last byte; nothing if it can't be
    /// told. Asking is cheaper than reading.
    fn part_at(&self, offset: u64) -> Option<(u64, Part)> {
        self.fd().and_then(|fd| part_of_file(fd, offset))
    }

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the bytes end before.
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
}

/// What lies at `offset` of a file; nothing if the file or its filesystem can't tell.
fn part_of_file(fd: BorrowedFd<'_>, offset: u64) -> Option<(u64, Part)> {
    // The descriptor's position is nobody's business: all reads say where they read.
    match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Some((data, Part::Hole)),
        Ok(_) => match rustix::fs::seek(fd, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Some((hole, Part::Data)),
            _ => None,
        },
        // No data from here to the end.
        Err(rustix::io::Errno::NXIO) => Some((u64::MAX, Part::Hole)),
        Err(_) => None,
    }
}

/// Bytes that can be read and written at any offset, like a file or a block device.
pub trait Store: ReadAt {
    /// Writes at most `bytes.len()` bytes at `offset`. May write fewer.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Cuts or extends it to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once everything written is on stable storage. An error is fatal: what was written
    /// before may be lost, and a second call would not tell.
    fn sync(&self) -> io::Result<()>;

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

/// The files of a queue or a data path: to be read alone, or written as well.
pub enum Files {
    /// They are only read.
    Read(Vec<Arc<dyn ReadAt>>),
    /// They are written, and perhaps read.
    Write(Vec<Arc<dyn Store>>),
}

impl Files {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Read(files) => files.len(),
            Self::Write(files) => files.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// File number `index`.
    pub(super) fn get(&self, index: usize) -> Option<&dyn ReadAt> {
        match self {
            Self::Read(files) => files.get(index).map(|file| file.as_ref()),
            Self::Write(files) => files.get(index).map(|file| file.as_ref() as &dyn ReadAt),
        }
    }

    /// File number `index`, if it may be written.
    pub(super) fn writable(&self, index: usize) -> Option<&dyn Store> {
        match self {
            Self::Read(_) => None,
            Self::Write(files) => files.get(index).map(|file| file.as_ref()),
        }
    }

    /// All of them, for reading.
    pub(super) fn readable(&self) -> Vec<Arc<dyn ReadAt>> {
        match self {
            Self::Read(files) => files.clone(),
            Self::Write(files) => {
                files.iter().map(|file| Arc::clone(file) as Arc<dyn ReadAt>).collect()
            }
        }
    }
}

impl From<Vec<Arc<dyn ReadAt>>> for Files {
    fn from(files: Vec<Arc<dyn ReadAt>>) -> Self {
        Self::Read(files)
    }
}

impl From<Vec<Arc<dyn Store>>> for Files {
    fn from(files: Vec<Arc<dyn Store>>) -> Self {
        Self::Write(files)
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

impl ReadAt for FileStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        use std::os::unix::fs::FileTypeExt;
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            // The end of a block device is found by seeking; reads and writes here never use the
            // file's own position.
            return Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Store for FileStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
