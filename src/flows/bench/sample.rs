//! The part of an image that a measurement uses.

use rustix::fs::Advice;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::disk::image::extent::{Extent, Source};
use crate::disk::image::{Image, ImageReader};
use crate::disk::io::Segment;

/// How much of the image is kept in memory for the processors, in bytes: far more than fits their
/// caches, and far less than memory.
const LOADED_MAX: u64 = 24 << 20;
/// How many bytes of the disk are mapped at a time.
const STRETCH: u64 = 1 << 30;
/// More extents than this are not remembered: the sample ends there.
const EXTENTS_MAX: usize = 1 << 20;

/// The data at the beginning of a disk, as much as was asked for.
pub(super) struct Sample {
    /// Where it lies.
    pub extents: Vec<Extent>,
    /// The length of the data in the image's files, in bytes.
    pub bytes: u64,
    /// How much of the disk it takes to have it, in bytes.
    pub disk_size: u64,
}

impl Sample {
    pub(super) fn new(image: &Image, bytes: u64, block_size: u32) -> Result<Self> {
        let size = image.virtual_size();
        let mut sample = Self { extents: Vec::new(), bytes: 0, disk_size: 0 };
        let mut mapper = image.mapper();
        while sample.disk_size < size && sample.bytes < bytes && sample.extents.len() < EXTENTS_MAX
        {
            let mut found = Vec::new();
            let end = size.min(sample.disk_size + STRETCH);
            mapper.extents(sample.disk_size..end, &mut found)?;
            sample.disk_size = end;
            for mut extent in found {
                if let Source::Data { .. } = extent.source {
                    // A raw image is one extent.
                    let wanted = (bytes - sample.bytes).next_multiple_of(block_size.into());
                    extent.len = extent.len.min(wanted);
                }
                let Some(len) = stored(&extent) else { continue };
                sample.extents.push(extent);
                sample.bytes += len;
                if sample.bytes >= bytes {
                    let whole = extent.range().end.next_multiple_of(u64::from(block_size));
                    sample.disk_size = whole.min(size);
                    break;
                }
            }
        }
        Ok(sample)
    }

    /// The sample in pieces of at most `piece` bytes, in the order of the files.
    pub(super) fn pieces(&self, piece: usize) -> Vec<Segment> {
        let mut ranges: Vec<(usize, u64, u64)> = self
            .extents
            .iter()
            .filter_map(|extent| match extent.source {
                Source::Data { file, host_offset } => {
                    Some((usize::from(file.0), host_offset, extent.len))
                }
                Source::Compressed(cluster) => {
                    let len = u64::from(cluster.compressed_len);
                    Some((usize::from(cluster.file.0), cluster.host_offset, len))
                }
                _ => None,
            })
            .collect();
        ranges.sort_unstable();
        let mut pieces = Vec::new();
        for (file, mut offset, mut len) in ranges {
            while len > 0 {
                let count = len.min(piece as u64);
                pieces.push(Segment { file, offset, range: 0..count as usize });
                offset += count;
                len -= count;
            }
        }
        pieces
    }

    /// Blocks spread over the sample, side by side.
    pub(super) fn load(&self, image: &Image, block_size: u32) -> Result<Vec<u8>> {
        let size = u64::from(block_size);
        let mut blocks: Vec<u64> = Vec::new();
        for extent in &self.extents {
            blocks.extend(extent.guest_offset / size..extent.range().end.div_ceil(size));
        }
        blocks.dedup();
        let step = (blocks.len() as u64 * size).div_ceil(LOADED_MAX).max(1) as usize;
        let reader = ImageReader::new(image);
        let mut bytes = Vec::new();
        for block in blocks.into_iter().step_by(step) {
            let start = bytes.len();
            bytes.resize(start + size as usize, 0);
            reader.read(bytes.get_mut(start..).unwrap_or_default(), block * size)?;
        }
        Ok(bytes)
    }

    /// Reads the sample, so that it is in the page cache as far as that has room.
    pub(super) fn warm(&self, image: &Image, cancel: &Cancel) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        for piece in self.pieces(buffer.len()) {
            cancel.check()?;
            let (Some(file), Some(part)) =
                (image.files().get(piece.file), buffer.get_mut(piece.range.clone()))
            else {
                continue;
            };
            // Behind a compressed cluster the file may end; nothing here depends on the bytes.
            match file.read_exact_at(part, piece.offset) {
                Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                    return Err(Error::io("read", file.path(), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks the kernel to drop the image's files from the page cache. What it keeps, it keeps.
    pub(super) fn chill(&self, image: &Image) {
        for file in image.files() {
            if let Some(descriptor) = file.fd() {
                let _ = rustix::fs::fadvise(descriptor, 0, None, Advice::DontNeed);
            }
        }
    }
}

/// How many bytes an extent takes in its file; nothing if there is nothing to read.
fn stored(extent: &Extent) -> Option<u64> {
    match extent.source {
        Source::Data { .. } => Some(extent.len),
        Source::Compressed(cluster) => Some(u64::from(cluster.compressed_len)),
        Source::Unallocated | Source::Zero { .. } => None,
    }
}
