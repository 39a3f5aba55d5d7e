//! A part of a disk as bytes of its own.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::io::ReadAt;

/// Stretches of a disk, one after the other.
pub(super) struct Part {
    disk: Arc<dyn ReadAt>,
    name: PathBuf,
    /// Where each piece begins in the part, and where it lies on the disk.
    pieces: Vec<(u64, Range<u64>)>,
    len: u64,
}

impl Part {
    /// The `pieces` of `disk`, none of which goes beyond its end.
    pub fn new(disk: Arc<dyn ReadAt>, name: &str, pieces: Vec<Range<u64>>) -> Self {
        let name = PathBuf::from(format!("{} ({name})", disk.path().display()));
        let mut len = 0;
        let place = |piece: Range<u64>| {
            let start = len;
            len += piece.end - piece.start;
            (start, piece)
        };
        let pieces = pieces.into_iter().filter(|piece| piece.start < piece.end).map(place);
        Self { pieces: pieces.collect(), disk, name, len }
    }
}

impl ReadAt for Part {
    fn path(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.len {
            return Ok(0);
        }
        let behind = self.pieces.partition_point(|(start, _)| *start <= offset);
        let Some((start, piece)) = behind.checked_sub(1).and_then(|at| self.pieces.get(at)) else {
            return Ok(0);
        };
        let at = piece.start + (offset - start);
        let count = (piece.end - at).min(buffer.len() as u64) as usize;
        self.disk.read_at(buffer.get_mut(..count).unwrap_or_default(), at)
    }
}
