//! What a chain says about one group of blocks.

use super::bits::{GroupBits, ones};
use crate::formats::archive::{Digest, FrameEntry, GROUP_BLOCKS, GroupIndex};

/// Blocks in a group, as a length.
pub(super) const LEN: usize = GROUP_BLOCKS as usize;

/// Where the bytes of a block come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The block is zero.
    Zero,
    /// The archive at this position in the chain stores it.
    Archive(usize),
    /// A damaged archive stored it, and its content is lost. Only in a salvaged chain.
    Lost,
}

/// A frame that holds blocks which are still what the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRead {
    /// The archive's position in the chain.
    pub archive: usize,
    /// The frame's number in that archive.
    pub position: u64,
    /// Where it lies.
    pub entry: FrameEntry,
    /// The blocks of its span that it stores, as in its header.
    pub mask: u64,
    /// Those that no newer archive has replaced. Never none.
    pub wanted: u64,
}

/// What a chain says about one group: which archive holds each block, the digests, and the frames
/// to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    pub(super) group: GroupIndex,
    pub(super) owners: Box<[u16; LEN]>,
    pub(super) digests: Box<[Digest; LEN]>,
    pub(super) group_digest: Digest,
    pub(super) frames: Vec<FrameRead>,
    pub(super) zero_block: Digest,
    pub(super) zero_group: Digest,
    /// Blocks that a damaged or missing archive may have changed.
    pub(super) unsure: GroupBits,
    /// Whether the digests were proved.
    pub(super) proven: bool,
    /// Whether owners and digests are those of a group of zeros.
    pub(super) clean: bool,
}

/// The mark of a zero block among the owners.
pub(super) const ZERO: u16 = u16::MAX;

/// The mark of a lost block among the owners.
pub(super) const LOST: u16 = u16::MAX - 1;

impl GroupState {
    pub(super) fn new(zero_block: Digest, zero_group: Digest) -> Self {
        Self {
            group: GroupIndex(0),
            owners: Box::new([ZERO; LEN]),
            digests: Box::new([zero_block; LEN]),
            group_digest: zero_group,
            frames: Vec::new(),
            zero_block,
            zero_group,
            unsure: [0; 16],
            proven: true,
            clean: true,
        }
    }

    /// Makes it a group of zeros.
    pub(super) fn clear(&mut self, group: GroupIndex) {
        self.group = group;
        if !self.clean {
            self.owners.fill(ZERO);
            self.digests.fill(self.zero_block);
            self.group_digest = self.zero_group;
            self.frames.clear();
            self.unsure = [0; 16];
            self.proven = true;
            self.clean = true;
        }
    }

    /// Marks blocks as lost.
    pub(super) fn lose(&mut self, blocks: &GroupBits) {
        for block in ones(blocks) {
            if let Some(owner) = self.owners.get_mut(block) {
                *owner = LOST;
            }
            self.proven = false;
        }
    }

    /// Marks blocks as possibly out of date.
    pub(super) fn doubt(&mut self, blocks: &GroupBits) {
        for (unsure, more) in self.unsure.iter_mut().zip(blocks) {
            *unsure |= more;
            self.proven &= *more == 0;
        }
    }

    /// Which group this is.
    pub fn group(&self) -> GroupIndex {
        self.group
    }

    /// Whether any block comes from an archive. If not, all are zero.
    pub fn has_stored(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Where block `index` of the group (0 to 1023) comes from. Blocks past the end of the disk are
    /// zero.
    pub fn owner(&self, index: usize) -> Owner {
        match self.owners.get(index) {
            None | Some(&ZERO) => Owner::Zero,
            Some(&LOST) => Owner::Lost,
            Some(archive) => Owner::Archive((*archive).into()),
        }
    }

    /// Whether block `index` of the group (0 to 1023) may be out of date: an archive above its owner
    /// is damaged or missing and may have changed it. Only in a salvaged chain.
    pub fn is_unsure(&self, index: usize) -> bool {
        self.unsure.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Whether any block is lost or unsure. Only in a salvaged chain.
    pub fn has_gaps(&self) -> bool {
        self.unsure != [0; 16] || self.owners.contains(&LOST)
    }

    /// Whether [`Self::digests`] and [`Self::group_digest`] were proved. Always, except in a
    /// salvaged chain; where they were not, they mean nothing, and whoever needs them computes them
    /// from the blocks.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// The digest of block `index` of the group (0 to 1023).
    pub fn digest(&self, index: usize) -> Digest {
        self.digests.get(index).copied().unwrap_or(self.zero_block)
    }

    /// The digests of all blocks of the group, proved by the group's digest: see
    /// [`Self::is_proven`].
    pub fn digests(&self) -> &[Digest; LEN] {
        &self.digests
    }

    /// The digest of the group.
    pub fn group_digest(&self) -> Digest {
        self.group_digest
    }

    /// The frames that hold blocks of the group, by archive, oldest first, ascending within each.
    pub fn frames(&self) -> &[FrameRead] {
        &self.frames
    }
}
