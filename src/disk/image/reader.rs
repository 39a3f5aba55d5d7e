//! Random access to an image: any bytes of its disk, from any thread.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::read_plan::{ClusterReader, ReadPlan};
use super::{Image, Mapper};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::{Extent, Source};
use crate::disk::io::ReadAt;

/// Extents that a read has in memory at a time.
const EXTENTS_MAX: usize = 4096;
/// Hands that wait for the next read. More threads than this make theirs anew.
const IDLE_MAX: usize = 64;

/// An image's disk, to be read anywhere and by any number of threads at once. Nobody may write to
/// the image meanwhile.
///
/// Each thread that is reading has windows on the tables, as a [`Mapper`] has, and one
/// decompressed cluster.
pub struct ImageReader<'a> {
    image: &'a Image,
    name: PathBuf,
    /// Hands that no thread uses now.
    idle: Mutex<Vec<Hand>>,
}

/// What one thread reads with.
struct Hand {
    mapper: Mapper,
    clusters: ClusterReader,
    extents: Vec<Extent>,
}

impl<'a> ImageReader<'a> {
    /// The disk of `image`.
    pub fn new(image: &'a Image) -> Self {
        let name = image.layers().first().map(|top| top.path.clone()).unwrap_or_default();
        Self { image, name, idle: Mutex::default() }
    }

    /// Fills `out` with the bytes at `offset`, as far as the disk goes; gives how many there are.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if a table or a compressed cluster is damaged; [`ErrorKind::Io`]. What
    /// `out` holds then means nothing.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let size = self.image.virtual_size();
        let len = size.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut hand = self.hand();
        let (mut at, end) = (offset, offset + len as u64);
        while at < end {
            hand.extents.clear();
            let next = hand.mapper.extents_up_to(EXTENTS_MAX, at..end, &mut hand.extents)?;
            let part = (at - offset) as usize..(next - offset) as usize;
            let part = out.get_mut(part).unwrap_or_default();
            fill(self.image.files(), &mut hand.clusters, &hand.extents, &(at..next), part)?;
            at = next;
        }
        self.lay_down(hand);
        Ok(len)
    }

    /// Where the bytes of `range` are, in order. Stops after `limit` extents: the end of the last one
    /// is where to go on. A range behind the disk's end is cut.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn extents(&self, range: Range<u64>, limit: usize) -> Result<Vec<Extent>> {
        let end = range.end.min(self.image.virtual_size());
        let mut extents = Vec::new();
        if range.start < end {
            let mut hand = self.hand();
            hand.mapper.extents_up_to(limit, range.start..end, &mut extents)?;
            self.lay_down(hand);
        }
        Ok(extents)
    }

    fn hand(&self) -> Hand {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Hand {
            mapper: self.image.mapper(),
            clusters: ClusterReader::new(self.image.files().to_vec()),
            extents: Vec::new(),
        })
    }

    fn lay_down(&self, hand: Hand) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(hand);
        }
    }
}

/// Fills `out` with the bytes of `range` of the disk, which `extents` cover.
fn fill(
    files: &[Arc<dyn ReadAt>],
    clusters: &mut ClusterReader,
    extents: &[Extent],
    range: &Range<u64>,
    out: &mut [u8],
) -> Result<()> {
    let mut plan = ReadPlan::default();
    plan.add(extents, range, 0, out.len());
    for part in plan.zeros {
        out.get_mut(part).unwrap_or_default().fill(0);
    }
    for segment in plan.segments {
        let file = files.get(segment.file).ok_or_else(|| {
            Error::new(ErrorKind::Image, "an extent names a file that the image does not have")
        })?;
        let into = out.get_mut(segment.range).unwrap_or_default();
        file.read_exact_at(into, segment.offset).map_err(|error| {
            let what = format!("read {} bytes at {} of", into.len(), segment.offset);
            Error::io(what, file.path(), error)
        })?;
    }
    for (part, cluster) in plan.compressed {
        clusters.fill(&cluster, out.get_mut(part).unwrap_or_default())?;
    }
    Ok(())
}

impl ReadAt for ImageReader<'_> {
    fn path(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.image.virtual_size())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset).map_err(io::Error::other)
    }
}

impl Extent {
    /// Whether its bytes are zeros that nothing holds.
    pub fn is_hole(&self) -> bool {
        matches!(self.source, Source::Unallocated | Source::Zero { .. })
    }
}
