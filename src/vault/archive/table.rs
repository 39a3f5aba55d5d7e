//! A section of an archive that is too large to load, read piece by piece.

use std::io::ErrorKind::UnexpectedEof as Eof;
use std::sync::Arc;

use super::load::unread;
use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::Section;

/// How many bytes are looked at together when a whole table is read.
const CHUNK_LEN: u64 = 1 << 20;

/// Records of an archive, taken out by copying.
pub(super) struct Table {
    store: Arc<dyn ReadAt>,
    offset: u64,
    len: u64,
    /// The records, if they were found rather than read.
    found: Option<Vec<u8>>,
}

impl Table {
    /// The bytes of `section`, which the caller has checked to lie within the file.
    pub(super) fn open(store: &Arc<dyn ReadAt>, section: &Section) -> Self {
        Self { store: Arc::clone(store), offset: section.offset, len: section.len, found: None }
    }

    /// Records that were found rather than read.
    pub(super) fn memory(store: &Arc<dyn ReadAt>, bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { store: Arc::clone(store), offset: 0, len, found: Some(bytes) }
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes at `at`.
    pub(super) fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let len = out.len();
        if at.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(self.failed(at, len, Eof.into()));
        }
        match &self.found {
            Some(bytes) => copy(bytes, at, out).ok_or_else(|| self.failed(at, len, Eof.into())),
            None => {
                let read = self.store.read_exact_at(out, self.offset + at);
                read.map_err(|error| self.failed(at, len, error))
            }
        }
    }

    fn failed(&self, at: u64, len: usize, error: std::io::Error) -> Error {
        let offset = self.offset.saturating_add(at);
        unread(self.store.path(), offset, len, error)
    }

    /// Shows all bytes to `see`, in order, in pieces that are a multiple of `record` bytes long.
    pub(super) fn scan(
        &self,
        record: usize,
        mut see: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut chunk = vec![0; self.len.min(CHUNK_LEN) as usize / record * record];
        let mut at = 0;
        while at < self.len && !chunk.is_empty() {
            let count = (self.len - at).min(chunk.len() as u64) as usize;
            let piece = chunk.get_mut(..count).unwrap_or_default();
            self.read(at, piece)?;
            see(piece)?;
            at += count as u64;
        }
        Ok(())
    }
}

fn copy(from: &[u8], at: u64, out: &mut [u8]) -> Option<()> {
    out.copy_from_slice(from.get(at as usize..)?.get(..out.len())?);
    Some(())
}
