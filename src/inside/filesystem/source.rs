//! Reads of a volume through a bounded cache: a reader of a filesystem asks for the same tables again and
//! again, in small pieces.

use std::sync::Arc;

use super::damaged;
use crate::base::error::{Error, Result};
use crate::base::shelf::Shelf;
use crate::disk::io::ReadAt;

/// Bytes of a page of the cache.
const PAGE: u64 = 16 << 10;
/// Bytes of the pages that are kept.
const CACHE: u64 = 16 << 20;

/// A volume, read through a cache.
pub(super) struct Source {
    volume: Arc<dyn ReadAt>,
    len: u64,
    pages: Shelf<u64, Vec<u8>>,
}

impl Source {
    pub fn new(volume: Arc<dyn ReadAt>) -> Result<Self> {
        let len = volume.len().map_err(|error| Error::io("look at", volume.path(), error))?;
        Ok(Self { volume, len, pages: Shelf::new(16, CACHE) })
    }

    /// What errors call the volume.
    pub fn name(&self) -> String {
        self.volume.path().display().to_string()
    }

    /// Fills `out` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Image`]: the filesystem names bytes behind the end of its volume.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            let text = format!("{}: a place behind the end of the volume is named", self.name());
            return Err(damaged(text));
        }
        // Content is read once and in large pieces: it would only drive the tables out.
        if out.len() as u64 >= PAGE {
            return self.read_volume(out, offset);
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let page = self.page(at / PAGE)?;
            let piece = page.get((at % PAGE) as usize..).unwrap_or_default();
            let count = piece.len().min(out.len() - done);
            for (to, from) in out.iter_mut().skip(done).zip(piece) {
                *to = *from;
            }
            if count == 0 {
                return Err(damaged(format!("{}: the volume ends early", self.name())));
            }
            done += count;
        }
        Ok(())
    }

    /// `len` bytes at `offset`.
    pub fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn page(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        self.pages.get(number, PAGE, || {
            let start = number * PAGE;
            let mut bytes = vec![0; PAGE.min(self.len - start) as usize];
            self.read_volume(&mut bytes, start)?;
            Ok(bytes)
        })
    }

    fn read_volume(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let read = self.volume.read_exact_at(out, offset);
        read.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
                Some(inner) => inner.clone(),
                None => Error::io("read", self.volume.path(), error),
            }
        })
    }
}
