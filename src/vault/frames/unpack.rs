//! The workers' stage of a restore and of a verification: from frames to the disk's blocks, each
//! proved by its digest.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{
    BlockIndex, Codec, Digest, FRAME_HEADER_LEN, FrameEntry, FrameView, GROUP_BLOCKS, Mask,
    block_digest,
};

use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::archive::Reader;
use crate::vault::codec::Decompressor;
use crate::vault::frames::pack::GroupDigests;

/// A frame that a range of the disk needs, and for which of its blocks.
#[derive(Debug, Clone)]
pub struct FrameNeed {
    /// Which archive of the chain, counted from the full.
    pub archive: usize,
    /// Where the frame is.
    pub entry: FrameEntry,
    /// The blocks of its span that it stores, as the index says.
    pub mask: u64,
    /// The blocks of its span that are wanted. The others are superseded.
    pub wanted: u64,
    /// Where in the task's buffer the frame was read to; if it had no room there, the worker reads
    /// it.
    pub at: Option<Range<usize>>,
}

/// Blocks that a salvage could not get back.
#[derive(Debug)]
pub struct Lost {
    /// The first block of the frame's span.
    pub first_block: u64,
    /// Which blocks of the span.
    pub mask: u64,
    /// Why.
    pub error: Error,
}

/// Turns frames into blocks; one for each worker.
pub struct Unpacker {
    archives: Vec<Arc<Reader>>,
    block_size: usize,
    decompressor: Decompressor,
    /// A frame's blocks, where not all of them are wanted or they are no neighbours.
    frame: Vec<u8>,
    /// A frame that the task's buffer had no room for.
    overflow: Vec<u8>,
}

impl Unpacker {
    /// An unpacker for blocks of `block_size` bytes out of `archives`.
    pub fn new(archives: Vec<Arc<Reader>>, block_size: u32) -> Result<Self> {
        Ok(Self {
            archives,
            block_size: block_size as usize,
            decompressor: Decompressor::new()?,
            frame: Vec::new(),
            overflow: Vec::new(),
        })
    }

    /// Unpacks what `needs` ask for of `blocks`. `buffer` is what was read, `digests` are those of
    /// the blocks' group. Fills `out` with all the blocks side by side; those that nobody needs
    /// hold zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], with archive, offset and guest range, if a frame is not what was
    /// written.
    pub fn unpack(
        &mut self,
        blocks: &Range<u64>,
        needs: &[FrameNeed],
        buffer: &[u8],
        digests: &GroupDigests,
        out: &mut [u8],
    ) -> Result<()> {
        begin(blocks, needs, out);
        for need in needs {
            self.unpack_frame(blocks, need, buffer, Some(digests), out)?;
        }
        Ok(())
    }

    /// Unpacks what is sound of what `needs` ask for, each frame read here. `digests` are those of
    /// the blocks' group, if they are known. Fills `out` with all blocks side by side, and gives
    /// those that are lost, which hold zeros.
    ///
    /// # Errors
    /// Those that are no damage: the system fails.
    pub fn salvage(
        &mut self,
        blocks: &Range<u64>,
        needs: &[FrameNeed],
        digests: Option<&GroupDigests>,
        out: &mut [u8],
    ) -> Result<Vec<Lost>> {
        begin(blocks, needs, out);
        let mut lost = Vec::new();
        for need in needs {
            let Err(error) = self.unpack_frame(blocks, need, &[], digests, out) else { continue };
            if !matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) {
                return Err(error);
            }
            let first = u64::from(need.entry.first_block.0);
            for bit in Mask(need.wanted).bits() {
                let start = (first + u64::from(bit) - blocks.start) as usize * self.block_size;
                out[start..start + self.block_size].fill(0);
            }
            lost.push(Lost { first_block: first, mask: need.wanted, error });
        }
        Ok(lost)
    }

    fn unpack_frame(
        &mut self,
        blocks: &Range<u64>,
        need: &FrameNeed,
        buffer: &[u8],
        digests: Option<&GroupDigests>,
        out: &mut [u8],
    ) -> Result<()> {
        let (archive, view) = view_of(&self.archives, need, buffer, &mut self.overflow)?;
        let header = &view.header;
        let first = u64::from(header.first_block.0);
        let mask = Mask(header.mask);
        // Both are within the task: a span never reaches over its edges.
        let place = |bit: u32| (first + u64::from(bit) - blocks.start) as usize * self.block_size;
        if let Some(first) = mask.first().filter(|_| need.wanted == mask.0 && mask.is_run()) {
            let start = place(first);
            let whole = &mut out[start..start + header.raw_len()];
            decode(&mut self.decompressor, archive, &need.entry, &view, whole)?;
        } else {
            self.frame.resize(header.raw_len(), 0);
            decode(&mut self.decompressor, archive, &need.entry, &view, &mut self.frame)?;
            let held = mask.bits();
            for (bit, bytes) in held.zip(self.frame.chunks_exact(self.block_size)) {
                if need.wanted & (1 << bit) != 0 {
                    let start = place(bit);
                    out[start..start + self.block_size].copy_from_slice(bytes);
                }
            }
        }
        let Some(digests) = digests else { return Ok(()) };
        check_wanted(archive, need, blocks, digests, out, self.block_size)
    }

    /// Unpacks what is wanted of one frame, which is read here. Fills `out` with all blocks of `blocks`, the
    /// frame's span, side by side, and gives where in `out` they begin. What `out` held before is of no
    /// account; but memory that was used before is not made zero for nothing.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub fn unpack_alone(
        &mut self,
        blocks: &Range<u64>,
        need: &FrameNeed,
        digests: &GroupDigests,
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        let len = (blocks.end - blocks.start) as usize * self.block_size;
        let is_whole = u64::from(need.wanted.count_ones()) == blocks.end - blocks.start;
        // Bytes that are stored as they are need no copy: they stay where they were read to.
        if is_whole && need.at.is_none() && need.entry.payload_len as usize == len {
            let (archive, view) = view_of(&self.archives, need, &[], &mut self.overflow)?;
            if view.header.codec == Codec::Stored {
                check_wanted(archive, need, blocks, digests, view.payload, self.block_size)?;
                std::mem::swap(&mut self.overflow, out);
                return Ok(FRAME_HEADER_LEN);
            }
        }
        // The memory may hold a frame as it is stored, the next time.
        out.reserve_exact((len + FRAME_HEADER_LEN).saturating_sub(out.len()));
        out.resize(len, 0);
        self.unpack(blocks, std::slice::from_ref(need), &[], digests, out)?;
        Ok(0)
    }

    /// Proves a frame by the digests in its own archive's index, or, if `quick`, by its checksums
    /// alone. Gives how many bytes of blocks it holds.
    ///
    /// # Errors
    /// As [`Self::unpack`].
    pub fn check(&mut self, need: &FrameNeed, buffer: &[u8], digests: &[Digest]) -> Result<u64> {
        let (archive, view) = view_of(&self.archives, need, buffer, &mut self.overflow)?;
        let header = &view.header;
        if !digests.is_empty() {
            self.frame.resize(header.raw_len(), 0);
            decode(&mut self.decompressor, archive, &need.entry, &view, &mut self.frame)?;
            let held = Mask(header.mask).bits();
            let contents = self.frame.chunks_exact(self.block_size);
            for ((bit, content), expected) in held.zip(contents).zip(digests) {
                let block = BlockIndex(header.first_block.0 + bit);
                check_block(archive, need, block, content, expected)?;
            }
        }
        Ok(header.raw_len() as u64)
    }
}

/// A frame as it is stored, and its archive. The frame is in `buffer`, or is read to `overflow`.
fn view_of<'a>(
    archives: &'a [Arc<Reader>],
    need: &FrameNeed,
    buffer: &'a [u8],
    overflow: &'a mut Vec<u8>,
) -> Result<(&'a Reader, FrameView<'a>)> {
    let archive = archives.get(need.archive).ok_or_else(|| {
        Error::new(ErrorKind::Io, "internal error: a frame of an archive that is not open")
    })?;
    let view = match &need.at {
        Some(at) => archive.parse_frame(&need.entry, need.mask, &buffer[at.clone()])?,
        None => archive.read_frame(&need.entry, need.mask, overflow)?,
    };
    Ok((archive, view))
}

/// Makes `out` zero where no frame will put anything.
fn begin(blocks: &Range<u64>, needs: &[FrameNeed], out: &mut [u8]) {
    let wanted: u64 = needs.iter().map(|need| u64::from(need.wanted.count_ones())).sum();
    if wanted < blocks.end - blocks.start {
        out.fill(0);
    }
}

fn decode(
    decompressor: &mut Decompressor,
    archive: &Reader,
    entry: &FrameEntry,
    view: &FrameView<'_>,
    out: &mut [u8],
) -> Result<()> {
    decompressor
        .decompress(view.header.codec, view.payload, out)
        .map_err(|error| archive.frame_error(entry, view.header.mask, error))
}

/// Proves the blocks that are wanted of a frame; `out` holds all of `blocks` side by side.
fn check_wanted(
    archive: &Reader,
    need: &FrameNeed,
    blocks: &Range<u64>,
    digests: &GroupDigests,
    out: &[u8],
    block_size: usize,
) -> Result<()> {
    for bit in Mask(need.wanted).bits() {
        let block = BlockIndex(need.entry.first_block.0 + bit);
        let start = (u64::from(block.0) - blocks.start) as usize * block_size;
        let expected = &digests[(block.0 % GROUP_BLOCKS) as usize];
        check_block(archive, need, block, &out[start..start + block_size], expected)?;
    }
    Ok(())
}

fn check_block(
    archive: &Reader,
    need: &FrameNeed,
    block: BlockIndex,
    content: &[u8],
    expected: &Digest,
) -> Result<()> {
    if block_digest(content) == *expected {
        return Ok(());
    }
    let error = Error::new(
        ErrorKind::Damaged,
        format!("block {} is not what its digest says, though the checksum fits", block.0),
    );
    Err(archive.frame_error(&need.entry, need.mask, error))
}
