//! The files of the mount that somebody has open.

use std::ops::Range;
use std::sync::Arc;

use super::names;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::inside::volumes::{self, Survey};
use crate::vault::point::{Content, OpenPoint, OpenPoints};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskId, PointId, Selector};

/// So many ranges of a disk are asked for at once.
const RUNS: usize = 1024;

/// An open file.
#[derive(Debug)]
pub(super) struct Open {
    /// The number of the file.
    pub number: u64,
    point: Arc<OpenPoint>,
    /// The ranges of the disk that are the file, in order.
    pieces: Vec<Range<u64>>,
    size: u64,
}

/// What somebody looks for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end is one.
    Hole,
}

impl Open {
    /// Opens the disk at a point.
    pub fn disk(
        points: &Arc<OpenPoints>,
        number: u64,
        disk: &DiskId,
        point: PointId,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let point = open(points, disk, point, wait)?;
        let size = point.size();
        Ok(Self { number, point, pieces: std::iter::once(0..size).collect(), size })
    }

    /// Opens the volume whose file is called so.
    pub fn volume(
        points: &Arc<OpenPoints>,
        number: u64,
        (disk, point): (&DiskId, PointId),
        survey: &Survey,
        name: &str,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let volume = names::files_of(survey).find(|(file, _)| file == name);
        let Some((_, volume)) = volume else {
            return Err(Error::new(ErrorKind::NotFound, format!("{disk}@{point} has no {name}")));
        };
        let pieces = volume.pieces().to_vec();
        Ok(Self { number, point: open(points, disk, point, wait)?, pieces, size: volume.size })
    }

    /// Reads as much at `offset` as the file has, at most `len` bytes.
    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let len = self.size.saturating_sub(offset).min(len as u64) as usize;
        let mut bytes = vec![0; len];
        let mut done = 0;
        for (start, piece) in self.from(offset) {
            let rest = bytes.get_mut(done..).unwrap_or_default();
            let count = (rest.len() as u64).min(piece.end - piece.start) as usize;
            let part = rest.get_mut(..count).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            debug_assert_eq!(start, offset + done as u64);
            // A disk can't end before a piece of it: then the guest's table says so, and zeros stand there.
            self.point.read(part, piece.start)?;
            done += count;
        }
        Ok(bytes)
    }

    /// The first place from `offset` on that is sought; nothing if there is none.
    pub fn seek(&self, offset: u64, sought: Sought) -> Result<Option<u64>> {
        if offset >= self.size {
            return Ok(None);
        }
        for (start, piece) in self.from(offset) {
            let mut at = piece.start;
            while at < piece.end {
                let runs = self.point.extents(at..piece.end, RUNS)?;
                let Some(last) = runs.last() else { break };
                let next = last.range.end;
                let is_sought = |content| (content == Content::Zero) == (sought == Sought::Hole);
                if let Some(run) = runs.iter().find(|run| is_sought(run.content)) {
                    return Ok(Some(start + (run.range.start.max(piece.start) - piece.start)));
                }
                at = next;
            }
        }
        Ok((sought == Sought::Hole).then_some(self.size))
    }

    /// How many bytes of the file are not in a hole.
    pub fn data(&self) -> Result<u64> {
        self.point.data_in(&self.pieces)
    }

    /// What of the pieces comes from `offset` of the file on, each with its place in the file.
    fn from(&self, offset: u64) -> impl Iterator<Item = (u64, Range<u64>)> + '_ {
        let mut end = 0;
        self.pieces.iter().filter_map(move |piece| {
            let start = end;
            end += piece.end - piece.start;
            let skipped = offset.saturating_sub(start).min(piece.end - piece.start);
            let rest = piece.start + skipped..piece.end;
            (!rest.is_empty()).then_some((start + skipped, rest))
        })
    }
}

fn open(
    points: &Arc<OpenPoints>,
    disk: &DiskId,
    point: PointId,
    wait: Wait<'_>,
) -> Result<Arc<OpenPoint>> {
    points.open(disk, &Selector::Id(point.to_string()), wait).map(Arc::new)
}

/// Finds the volumes of a disk at a point.
pub(super) fn survey(
    points: &Arc<OpenPoints>,
    disk: &DiskId,
    point: PointId,
    wait: Wait<'_>,
) -> Result<Survey> {
    let disk: Arc<dyn ReadAt> = open(points, disk, point, wait)?;
    volumes::survey(&disk)
}
