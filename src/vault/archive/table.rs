//! A section of an archive that is too large to load: mapped where the store is a file, read piece
//! by piece where it is not.

use std::io::ErrorKind::UnexpectedEof as Eof;
use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;
use crate::disk::sys::kernel::Map;
use crate::formats::archive::Section;

/// How many bytes are looked at together when a whole table is read.
const CHUNK_LEN: usize = 1 << 20;

/// Records of a sealed archive, taken out by copying.
pub(super) struct Table {
    store: Arc<dyn ReadAt>,
    offset: u64,
    len: u64,
    source: Source,
}

enum Source {
    Mapped(Map),
    Memory(Vec<u8>),
    Read,
}

impl Table {
    /// The bytes of `section`, which the caller has checked to lie within the file.
    pub(super) fn open(store: &Arc<dyn ReadAt>, section: &Section) -> Self {
        let (offset, len) = (section.offset, section.len);
        let source = match (store.fd(), usize::try_from(len)) {
            // Some file systems can't map; reading is slower and gives the same bytes.
            (Some(fd), Ok(len)) if len > 0 => {
                Map::read_only(fd, offset, len).map_or(Source::Read, Source::Mapped)
            }
            _ => Source::Read,
        };
        Self { store: Arc::clone(store), offset, len, source }
    }

    /// The bytes of `section`, read piece by piece.
    pub(super) fn unmapped(store: &Arc<dyn ReadAt>, section: &Section) -> Self {
        let (offset, len) = (section.offset, section.len);
        Self { store: Arc::clone(store), offset, len, source: Source::Read }
    }

    /// Records that were found rather than read.
    pub(super) fn memory(store: &Arc<dyn ReadAt>, bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { store: Arc::clone(store), offset: 0, len, source: Source::Memory(bytes) }
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes at `at`.
    pub(super) fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let copied = match &self.source {
            Source::Mapped(map) => copy(map, at, out),
            Source::Memory(bytes) => copy(bytes, at, out),
            Source::Read => return self.read_store(at, out),
        };
        copied.ok_or_else(|| self.failed(at, out.len(), Eof.into()))
    }

    fn read_store(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(self.failed(at, out.len(), Eof.into()));
        }
        let len = out.len();
        self.store.read_exact_at(out, self.offset + at).map_err(|error| self.failed(at, len, error))
    }

    fn failed(&self, at: u64, len: usize, error: std::io::Error) -> Error {
        let offset = self.offset.saturating_add(at);
        Error::io(format!("read {len} bytes at {offset} of"), self.store.path(), error)
    }

    /// Shows all bytes to `see`, in order, in pieces that are a multiple of `record` bytes long.
    /// They are read even where the table is mapped: who looks at everything looks for damage, and
    /// a device that fails shall give an error and not a signal.
    pub(super) fn scan(
        &self,
        record: usize,
        mut see: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut chunk = vec![0; CHUNK_LEN / record * record];
        let mut at = 0;
        while at < self.len {
            let count = (self.len - at).min(chunk.len() as u64) as usize;
            if let Some(piece) = chunk.get_mut(..count) {
                match &self.source {
                    Source::Memory(_) => self.read(at, piece)?,
                    Source::Mapped(_) | Source::Read => self.read_store(at, piece)?,
                }
                see(piece)?;
            }
            at += count as u64;
        }
        Ok(())
    }
}

fn copy(from: &[u8], at: u64, out: &mut [u8]) -> Option<()> {
    out.copy_from_slice(from.get(at as usize..)?.get(..out.len())?);
    Some(())
}
