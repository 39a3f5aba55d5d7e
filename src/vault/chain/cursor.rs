//! One pass over the groups of a chain. Each archive waits at the next group that it says something
//! about; a step costs what the archives say about that group, and nothing for the silent ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::runs::{GroupBits, Runs, and, bits_of, count, ones};
use super::state::{FrameRead, GroupState};
use super::{Chain, state};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    BlockIndex, Digest, GROUP_BLOCKS, GroupIndex, group_digest, zero_block_digest,
    zero_group_digest,
};
use crate::vault::archive::Reader;

/// A pass over the groups of a chain, cheapest in ascending order.
pub struct GroupCursor<'a> {
    chain: &'a Chain,
    lanes: Vec<Lane<'a>>,
    /// Each lane that is not at its end, by the next group that it says something about.
    waiting: BinaryHeap<Reverse<(u32, usize)>>,
    /// Groups below this were passed.
    passed: u32,
    /// The lanes that speak about the group, while it is looked at.
    speaking: Vec<usize>,
    digests: Vec<Digest>,
    state: GroupState,
}

impl std::fmt::Debug for GroupCursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCursor").field("passed", &self.passed).finish_non_exhaustive()
    }
}

impl<'a> GroupCursor<'a> {
    pub(super) fn new(chain: &'a Chain) -> Self {
        let block_size = chain.geometry().block_size();
        let state = GroupState::new(zero_block_digest(block_size), zero_group_digest(block_size));
        let mut cursor = Self {
            chain,
            lanes: Vec::new(),
            waiting: BinaryHeap::new(),
            passed: 0,
            speaking: Vec::new(),
            digests: Vec::new(),
            state,
        };
        cursor.rewind();
        cursor
    }

    /// Back to the first group.
    fn rewind(&mut self) {
        self.passed = 0;
        self.lanes = self.chain.archives().iter().map(|reader| Lane::new(reader)).collect();
        self.waiting = (0..)
            .zip(&self.lanes)
            .filter_map(|(index, lane)| Some(Reverse((lane.next_group()?, index))))
            .collect();
    }

    /// The first group from `from` on that any archive says something about: stores a block of it,
    /// marks one as zero, or has its digest. All groups before it are zero.
    ///
    /// # Errors
    /// A frame table can't be read.
    pub fn next_touched(&mut self, from: GroupIndex) -> Result<Option<GroupIndex>> {
        self.skip_to(from)?;
        if self.chain.salvage.as_ref().is_some_and(|breaks| !breaks.is_empty()) {
            // A missing archive may have said something about any group.
            return Ok((from.0 < self.chain.geometry().group_count()).then_some(from));
        }
        let next = self.waiting.peek().map(|Reverse((group, _))| *group);
        Ok(next.filter(|group| *group < self.chain.geometry().group_count()).map(GroupIndex))
    }

    /// What the chain says about `group`. Groups before the last one asked for are found again from
    /// the start.
    ///
    /// The digests are proved by the group's digest before anyone sees them, so a damaged digest
    /// table can't spoil a backup that compares with them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the disk has no such group. [`ErrorKind::Damaged`]: digests or frame
    /// entries are not as they were written; the error names the group and the archives. Others:
    /// a store failed.
    pub fn seek(&mut self, group: GroupIndex) -> Result<&GroupState> {
        if group.0 >= self.chain.geometry().group_count() {
            let context = format!("the disk has no group {}", group.0);
            return Err(Error::new(ErrorKind::Usage, context));
        }
        self.skip_to(group)?;
        self.passed = group.0 + 1;
        self.state.clear(group);
        self.speaking.clear();
        while let Some(Reverse((next, lane))) = self.waiting.peek().copied() {
            if next != group.0 {
                break;
            }
            self.waiting.pop();
            self.speaking.push(lane);
        }
        let broken = self.chain.salvage.as_ref().is_some_and(|breaks| !breaks.is_empty());
        if self.speaking.is_empty() && !broken {
            return Ok(&self.state);
        }
        let result = self.merge(group);
        for index in std::mem::take(&mut self.speaking) {
            if let Some(next) = self.lanes.get(index).and_then(Lane::next_group) {
                self.waiting.push(Reverse((next, index)));
            }
        }
        result?;
        Ok(&self.state)
    }

    fn skip_to(&mut self, group: GroupIndex) -> Result<()> {
        if group.0 < self.passed {
            self.rewind();
        }
        while let Some(Reverse((next, index))) = self.waiting.peek().copied() {
            if next >= group.0 {
                break;
            }
            self.waiting.pop();
            if let Some(lane) = self.lanes.get_mut(index) {
                lane.skip_to(group)?;
                if let Some(next) = lane.next_group() {
                    self.waiting.push(Reverse((next, index)));
                }
            }
        }
        self.passed = self.passed.max(group.0);
        Ok(())
    }

    /// Lets the speaking lanes fill the state, the newest first.
    fn merge(&mut self, group: GroupIndex) -> Result<()> {
        self.speaking.sort_unstable_by_key(|index| Reverse(*index));
        self.state.clean = false;
        let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
        let mut open = [u64::MAX; 16];
        let mut found_digest = false;
        let mut breaks = self.chain.salvage.as_deref().unwrap_or_default();
        for index in &self.speaking {
            let (Some(lane), Some(kept)) =
                (self.lanes.get_mut(*index), self.chain.blocks_kept.get(*index))
            else {
                continue;
            };
            while let Some(((above, blocks), rest)) = breaks.split_first()
                && above > index
            {
                self.state.doubt(&and(&open, &bits_of(0..blocks.saturating_sub(start))));
                breaks = rest;
            }
            let on_disk = bits_of(0..kept.saturating_sub(start));
            let speech = lane.speak(group)?;
            if let Some(digest) = speech.group_digest
                && !found_digest
                && *kept > start
            {
                self.state.group_digest = digest;
                found_digest = true;
            }
            let seen = and(&open, &on_disk);
            let wanted = and(&speech.stored, &seen);
            lane.take_stored(*index, group, &speech, &wanted, &mut self.digests, &mut self.state)?;
            self.state.lose(&and(&speech.lost, &seen));
            self.state.doubt(&and(&speech.unsure, &seen));
            self.state.proven &= lane.reader.has_proofs();
            let said = speech.stored.iter().zip(speech.zero).zip(speech.lost);
            for (open, ((stored, zero), lost)) in open.iter_mut().zip(said) {
                *open &= !(stored | zero | lost);
            }
        }
        for (_, blocks) in breaks {
            self.state.doubt(&and(&open, &bits_of(0..blocks.saturating_sub(start))));
        }
        self.state.frames.reverse();
        self.prove(group)
    }

    /// Compares the group's digest with that of its blocks' digests.
    fn prove(&mut self, group: GroupIndex) -> Result<()> {
        if !self.state.proven {
            return Ok(());
        }
        let computed = if self.state.has_stored() {
            group_digest(&self.state.digests)
        } else {
            self.state.zero_group
        };
        if computed == self.state.group_digest {
            return Ok(());
        }
        if self.chain.is_salvaged() {
            self.state.proven = false;
            return Ok(());
        }
        let mut names: Vec<String> = self
            .speaking
            .iter()
            .filter_map(|index| self.chain.archives().get(*index))
            .map(|archive| archive.path().display().to_string())
            .collect();
        names.reverse();
        let what = format!(
            "the digests of {} do not agree: the index of one of these is damaged: {}",
            self.chain.describe_group(group),
            names.join(", ")
        );
        Err(Error::new(ErrorKind::Damaged, what)
            .advise("`qdelta verify` finds out which; `restore --salvage` gives what is sound."))
    }
}

/// What one archive says about a group.
pub(super) struct Speech {
    pub stored: GroupBits,
    pub zero: GroupBits,
    lost: GroupBits,
    unsure: GroupBits,
    pub group_digest: Option<Digest>,
    /// Rank of the first stored block of the group among all stored blocks.
    pub first_rank: u64,
}

/// One archive's position in the pass.
pub(super) struct Lane<'a> {
    reader: &'a Reader,
    stored: Runs<'a>,
    zero: Runs<'a>,
    groups: Runs<'a>,
    lost: Option<Runs<'a>>,
    unsure: Option<Runs<'a>>,
    /// How many stored blocks were passed.
    stored_rank: u64,
    /// How many groups with a digest were passed.
    group_rank: u64,
    /// The number of the frame that holds the next stored block.
    frame: u64,
}

impl<'a> Lane<'a> {
    pub fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            stored: Runs::new(reader.stored()),
            zero: Runs::new(reader.zero()),
            groups: Runs::new(reader.groups()),
            lost: reader.gaps().map(|gaps| Runs::new(&gaps.lost)),
            unsure: reader.gaps().map(|gaps| Runs::new(&gaps.unsure)),
            stored_rank: 0,
            group_rank: 0,
            frame: 0,
        }
    }

    /// The next group that the archive says something about.
    pub fn next_group(&self) -> Option<u32> {
        let gaps = [self.lost.as_ref(), self.unsure.as_ref()];
        let [lost, unsure] = gaps.map(|runs| runs.and_then(Runs::next));
        let blocks = [self.stored.next(), self.zero.next(), lost, unsure];
        let groups = blocks.into_iter().flatten().map(|block| block / GROUP_BLOCKS);
        groups.chain(self.groups.next()).min()
    }

    fn skip_to(&mut self, group: GroupIndex) -> Result<()> {
        // A group that exists starts below 2^32 blocks.
        let block = group.0 * GROUP_BLOCKS;
        let skipped = self.stored.skip_to(block);
        self.stored_rank += skipped;
        if skipped > 0 {
            let rest = self.frame..self.reader.frame_count();
            self.frame = self.reader.frame_from(BlockIndex(block), rest)?;
        }
        self.zero.skip_to(block);
        for runs in [&mut self.lost, &mut self.unsure].into_iter().flatten() {
            runs.skip_to(block);
        }
        self.group_rank += self.groups.skip_to(group.0);
        Ok(())
    }

    /// Takes what the archive says about the group that the lane is at.
    pub fn speak(&mut self, group: GroupIndex) -> Result<Speech> {
        let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
        let blocks = start..start + u64::from(GROUP_BLOCKS);
        let first_rank = self.stored_rank;
        let stored = self.stored.take(blocks.clone());
        self.stored_rank += count(&stored);
        let mut digest = None;
        if self.groups.next() == Some(group.0) {
            digest = Some(self.reader.group_digest(self.group_rank)?);
            self.group_rank += self.groups.skip_to(group.0 + 1);
        }
        let gaps = [&mut self.lost, &mut self.unsure];
        let [lost, unsure] =
            gaps.map(|runs| runs.as_mut().map_or([0; 16], |runs| runs.take(blocks.clone())));
        let zero = self.zero.take(blocks);
        Ok(Speech { stored, zero, lost, unsure, group_digest: digest, first_rank })
    }

    /// Puts the wanted ones of the stored blocks into the state, with digests and frames.
    fn take_stored(
        &mut self,
        index: usize,
        group: GroupIndex,
        speech: &Speech,
        wanted: &GroupBits,
        digests: &mut Vec<Digest>,
        state: &mut GroupState,
    ) -> Result<()> {
        let span = self.reader.metadata().frame_blocks;
        let position = self.frame;
        self.frame += spans(&speech.stored, span).count() as u64;
        if count(wanted) == 0 {
            return Ok(());
        }
        digests.clear();
        digests.resize(count(&speech.stored) as usize, state.zero_block);
        if self.reader.has_proofs() {
            self.reader.block_digests(speech.first_rank, digests)?;
        }
        for (block, digest) in ones(&speech.stored).zip(digests.iter()) {
            if wanted.get(block / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
                && let (Some(owner), Some(place)) =
                    (state.owners.get_mut(block), state.digests.get_mut(block))
            {
                // `CHAIN_LEN_MAX` is below `LOST` and `ZERO`.
                *owner = index as u16;
                *place = *digest;
            }
        }
        // Reversed at the end, when all archives have spoken: newest first becomes oldest first,
        // so here the last frame comes first.
        let from = state.frames.len();
        for (position, (first, mask)) in (position..).zip(spans(&speech.stored, span)) {
            let wanted = span_of(wanted, first, span);
            if wanted == 0 {
                continue;
            }
            let entry = self.reader.frame(position)?;
            let block = group.0 * GROUP_BLOCKS + first;
            if entry.first_block.0 != block {
                return Err(self.reader.misplaced(position, BlockIndex(block)));
            }
            state.frames.push(FrameRead { archive: index, position, entry, mask, wanted });
        }
        if let Some(own) = state.frames.get_mut(from..) {
            own.reverse();
        }
        Ok(())
    }
}

/// The bits of the span of `span` blocks that starts at block `first`, which is a multiple of it.
fn span_of(bits: &GroupBits, first: u32, span: u32) -> u64 {
    let word = bits.get(first as usize / 64).copied().unwrap_or(0);
    word >> (first % 64) & u64::MAX >> (64 - span)
}

/// The spans that are not empty: first block, and the bits.
fn spans(bits: &GroupBits, span: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
    (0..state::LEN as u32)
        .step_by(span as usize)
        .map(move |first| (first, span_of(bits, first, span)))
        .filter(|(_, mask)| *mask != 0)
}
