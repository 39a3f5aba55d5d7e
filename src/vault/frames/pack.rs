//! The workers' stage of a backup: from a buffer of the disk's bytes to the frames of the blocks
//! that changed.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{
    BlockIndex, Codec, Digest, GROUP_BLOCKS, Mask, block_digest, zero_block_digest,
};

use crate::base::error::Result;
use crate::vault::codec::Compressor;

/// The digests of all blocks of a group.
pub type GroupDigests = [Digest; GROUP_BLOCKS as usize];

/// The blocks of one task that changed, ready for the archive.
#[derive(Debug, Default)]
pub struct Packed {
    /// The blocks that were looked at.
    pub blocks: Range<u64>,
    /// The frames, in ascending order.
    pub frames: Vec<PackedFrame>,
    /// The payloads of all frames.
    pub payloads: Vec<u8>,
    /// The blocks that are zero now and were not before, in ascending order.
    pub zeroed: Vec<u32>,
}

/// One frame of a [`Packed`].
#[derive(Debug)]
pub struct PackedFrame {
    /// The first block of its span.
    pub first_block: BlockIndex,
    /// Which blocks of the span it holds.
    pub mask: u64,
    /// How its payload is coded.
    pub codec: Codec,
    /// Which part of [`Packed::payloads`] is its payload.
    pub payload: Range<usize>,
    /// The digests of its blocks.
    pub digests: Vec<Digest>,
}

/// Finds and packs what changed; one for each worker.
pub struct Packer {
    block_size: usize,
    frame_blocks: u64,
    zero_digest: Digest,
    compressor: Compressor,
    /// The blocks of a frame side by side, where they are not neighbours in the buffer.
    gathered: Vec<u8>,
    compressed: Vec<u8>,
}

impl Packer {
    /// A packer for blocks of `block_size` bytes, up to `frame_blocks` of them in a frame, that
    /// compresses with zstd at `level`.
    pub fn new(block_size: u32, frame_blocks: u32, level: i32) -> Result<Self> {
        Ok(Self {
            block_size: block_size as usize,
            frame_blocks: u64::from(frame_blocks),
            zero_digest: zero_block_digest(block_size),
            compressor: Compressor::new(level)?,
            gathered: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// Packs those blocks that differ from what they were `before`. `bytes` are `blocks` side by
    /// side, the last one filled up with zeros; only the `runs` of them, ascending, are looked at.
    /// `before` has the digests of their group, or is `None` if all of it was zero.
    pub fn pack(
        &mut self,
        blocks: Range<u64>,
        runs: &[Range<u64>],
        bytes: &[u8],
        before: Option<&Arc<GroupDigests>>,
    ) -> Result<Packed> {
        let mut packed = Packed { blocks: blocks.clone(), ..Packed::default() };
        let mut span = Span::default();
        for block in runs.iter().cloned().flatten() {
            let start = block.saturating_sub(blocks.start) as usize * self.block_size;
            let content = &bytes[start..start + self.block_size];
            let first = block - block % self.frame_blocks;
            if first != span.first {
                self.close(&mut span, &mut packed, bytes)?;
                span = Span { first, ..Span::default() };
            }
            let index_in_group = (block % u64::from(GROUP_BLOCKS)) as usize;
            let old = before.map_or(&self.zero_digest, |digests| &digests[index_in_group]);
            if is_zero(content) {
                if *old != self.zero_digest {
                    packed.zeroed.push(block as u32);
                }
                continue;
            }
            let digest = block_digest(content);
            if digest != *old {
                span.mask |= 1 << (block - first);
                span.digests.push(digest);
            }
        }
        self.close(&mut span, &mut packed, bytes)?;
        Ok(packed)
    }

    /// Compresses what the span collected into a frame of its own.
    fn close(&mut self, span: &mut Span, packed: &mut Packed, bytes: &[u8]) -> Result<()> {
        // A task may begin in the middle of a span only if it has but one block, which is one span.
        let base = (span.first.saturating_sub(packed.blocks.start)) as usize * self.block_size;
        let digests = std::mem::take(&mut span.digests);
        self.pack_span(span.first, Mask(span.mask), digests, &bytes[base..], packed)
    }

    /// Compresses the blocks of `mask` into one frame, whatever they hold: `bytes` begin with the span
    /// at block `first`, and `digests` are those of the blocks. Nothing is packed of an empty mask.
    pub fn pack_span(
        &mut self,
        first: u64,
        mask: Mask,
        digests: Vec<Digest>,
        bytes: &[u8],
        packed: &mut Packed,
    ) -> Result<()> {
        let Some(low) = mask.first() else { return Ok(()) };
        let (low, count) = (low as usize, mask.count() as usize);
        let raw = if mask.is_run() {
            let start = low * self.block_size;
            &bytes[start..start + count * self.block_size]
        } else {
            self.gathered.clear();
            for bit in mask.bits() {
                let start = bit as usize * self.block_size;
                self.gathered.extend_from_slice(&bytes[start..start + self.block_size]);
            }
            &self.gathered
        };
        let start = packed.payloads.len();
        let codec = self.compressor.compress(raw, &mut self.compressed)?;
        packed.payloads.extend_from_slice(match codec {
            Codec::Stored => raw,
            Codec::Zstd => &self.compressed,
        });
        packed.frames.push(PackedFrame {
            first_block: BlockIndex(first as u32),
            mask: mask.0,
            codec,
            payload: start..packed.payloads.len(),
            digests,
        });
        Ok(())
    }
}

#[derive(Default)]
struct Span {
    first: u64,
    mask: u64,
    digests: Vec<Digest>,
}

/// Whether all bytes are zero. Folds 4 KiB at a time: the compiler makes wide ORs of it, and data
/// that is not zero is left after the first piece.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_byte_anywhere_is_not_zero() {
        for len in [1, 15, 4096, 65536] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn only_changed_blocks_are_packed_and_gaps_are_closed() {
        let size = 4096;
        let mut bytes = vec![0; 8 * size];
        for block in [0, 2, 3, 5] {
            bytes[block * size..][..size].fill(block as u8 + 1);
        }
        let mut before = [zero_block_digest(4096); GROUP_BLOCKS as usize];
        before[2] = block_digest(&bytes[2 * size..][..size]);
        before[7] = Digest([7; 32]);
        let before = Arc::new(before);
        let packed = Packer::new(4096, 64, 1)
            .unwrap()
            .pack(0..8, &[0..5, 5..8], &bytes, Some(&before))
            .unwrap();
        assert_eq!(packed.zeroed, [7]);
        let [frame] = packed.frames.as_slice() else { panic!("one span, one frame") };
        assert_eq!(frame.mask, 0b10_1001);
        let mut out = vec![0; 3 * size];
        crate::vault::codec::Decompressor::new()
            .unwrap()
            .decompress(frame.codec, &packed.payloads[frame.payload.clone()], &mut out)
            .unwrap();
        assert!(out[..size].iter().all(|byte| *byte == 1));
        assert!(out[size..2 * size].iter().all(|byte| *byte == 4));
        assert!(out[2 * size..].iter().all(|byte| *byte == 6));
    }
}
