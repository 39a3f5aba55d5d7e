//! The last stage of a backup's data path: results in order, into the archive and the digest tree.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{
    BlockIndex, Digest, GROUP_BLOCKS, Geometry, GroupIndex, Mask, RootHasher, group_digest,
    zero_block_digest, zero_group_digest,
};

use roaring::RoaringBitmap;

use super::Root;
use crate::base::error::Result;
use crate::disk::flow::pipeline::Consumer;
use crate::vault::archive::{Summary, Writer};
use crate::vault::frames::pack::{GroupDigests, Packed};

/// What reaches the assembler, in the order of the disk.
pub(super) enum Step {
    /// So many groups that are zero and always were.
    ZeroGroups(u32),
    /// A group begins.
    Group {
        /// Which.
        group: GroupIndex,
        /// Its digests at the parent and the group's own; `None` if all of it was zero.
        before: Option<(Arc<GroupDigests>, Digest)>,
    },
    /// A whole group is what it was at the parent.
    Kept {
        /// Its digest.
        digest: Digest,
    },
    /// These blocks of the group read as zero.
    Zeros(Range<u64>),
    /// These were read and compared.
    Packed(Packed),
}

/// What the archive holds in the end.
pub(super) struct Assembled {
    pub root: Root,
    pub summary: Summary,
    pub bytes_changed: u64,
    /// A block that has changed though the claim said that it had not.
    pub missed: Option<BlockIndex>,
}

pub(super) struct Assembler<'a> {
    geometry: Geometry,
    zero_block: Digest,
    zero_group: Digest,
    writer: Writer,
    root: RootHasher,
    group: Option<Group>,
    bytes_changed: u64,
    /// Blocks that must not have changed.
    sample: Option<&'a RoaringBitmap>,
    missed: Option<BlockIndex>,
}

/// The group at hand.
struct Group {
    index: GroupIndex,
    digests: Box<GroupDigests>,
    /// The group's digest at the parent.
    before: Digest,
    touched: bool,
}

impl<'a> Assembler<'a> {
    pub fn new(geometry: Geometry, writer: Writer, sample: Option<&'a RoaringBitmap>) -> Self {
        Self {
            geometry,
            zero_block: zero_block_digest(geometry.block_size()),
            zero_group: zero_group_digest(geometry.block_size()),
            writer,
            root: RootHasher::new(geometry),
            group: None,
            bytes_changed: 0,
            sample,
            missed: None,
        }
    }

    fn open_group(&mut self, index: GroupIndex, before: Option<(Arc<GroupDigests>, Digest)>) {
        let mut touched = false;
        let (digests, before) = match before {
            None => (Box::new([self.zero_block; GROUP_BLOCKS as usize]), self.zero_group),
            Some((digests, before)) => {
                let mut digests = Box::new(*digests);
                // A disk that shrank: what the parent has past the new end is gone.
                let blocks = self.geometry.group_blocks(index);
                let kept = (blocks.end - blocks.start) as usize;
                for digest in digests.iter_mut().skip(kept) {
                    touched |= *digest != self.zero_block;
                    *digest = self.zero_block;
                }
                (digests, before)
            }
        };
        self.group = Some(Group { index, digests, before, touched });
    }

    fn close_group(&mut self) -> Result<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let mut digest = group.before;
        if group.touched {
            digest = group_digest(&group.digests);
            if digest != group.before {
                self.writer.set_group(group.index, digest)?;
            }
        }
        self.root.push(digest);
        Ok(())
    }

    fn zero(&mut self, block: u64) -> Result<()> {
        let Some(group) = &mut self.group else { return Ok(()) };
        let digest = &mut group.digests[(block % u64::from(GROUP_BLOCKS)) as usize];
        if *digest != self.zero_block {
            *digest = self.zero_block;
            group.touched = true;
            self.count(BlockIndex(block as u32));
            self.writer.mark_zero(block..block + 1)?;
        }
        Ok(())
    }

    /// A block has changed.
    fn count(&mut self, block: BlockIndex) {
        self.bytes_changed += self.geometry.block_len(block);
        if self.sample.is_some_and(|sample| sample.contains(block.0)) {
            self.missed.get_or_insert(block);
        }
    }

    fn store(&mut self, packed: &Packed) -> Result<()> {
        for frame in &packed.frames {
            let payload = &packed.payloads[frame.payload.clone()];
            let first = frame.first_block;
            self.writer.write_frame(first, frame.mask, frame.codec, payload, &frame.digests)?;
            let Some(group) = &mut self.group else { continue };
            let stored = Mask(frame.mask).bits();
            for (bit, digest) in stored.zip(&frame.digests) {
                let block = first.0 + bit;
                group.digests[(block % GROUP_BLOCKS) as usize] = *digest;
            }
            group.touched = true;
            let stored = Mask(frame.mask).bits();
            for block in stored.map(|bit| first.0 + bit) {
                self.count(BlockIndex(block));
            }
        }
        Ok(())
    }
}

impl Consumer<Step> for Assembler<'_> {
    type Output = Assembled;

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::ZeroGroups(count) => {
                self.close_group()?;
                self.root.push_many(self.zero_group, count);
            }
            Step::Kept { digest } => {
                self.close_group()?;
                self.root.push(digest);
            }
            Step::Group { group, before } => {
                self.close_group()?;
                self.open_group(group, before);
            }
            Step::Zeros(blocks) => {
                for block in blocks {
                    self.zero(block)?;
                }
            }
            Step::Packed(packed) => {
                self.store(&packed)?;
                for block in &packed.zeroed {
                    self.zero(u64::from(*block))?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Assembled> {
        self.close_group()?;
        let root = self.root.finish();
        let (mut sink, summary) = self.writer.finish(root)?;
        sink.flush().map_err(|source| {
            crate::Error::io("write", std::path::Path::new("the archive"), source)
        })?;
        Ok(Assembled { root, summary, bytes_changed: self.bytes_changed, missed: self.missed })
    }
}
