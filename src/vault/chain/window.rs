//! What the archives of a chain say about 64 neighbouring groups: as many as one container of a
//! bitmap is about.

use std::sync::Arc;

use super::bits::{GroupBits, and, bits_in, bits_of, count, ones};
use super::state::{FrameRead, GroupState};
use super::tables::Tables;
use super::{Chain, state};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::bitmap::{CONTAINER_WORDS, Container};
use crate::formats::archive::{BlockIndex, Digest, GROUP_BLOCKS, GroupIndex, group_digest};
use crate::vault::archive::{Part, Reader, span_of, spans_in};

/// Groups in a window.
const GROUPS: u32 = 64;

/// Words of 64 blocks in a group.
const GROUP_WORDS: usize = state::LEN / 64;

/// What a chain's archives say about the groups of one window.
pub(super) struct Window {
    /// Which window of the disk it is.
    number: u32,
    /// The archives that say something about any of the groups, the newest first.
    speakers: Vec<Speaker>,
}

/// An archive that says something about a window.
pub(super) struct Speaker {
    /// Its position in the chain.
    pub(super) archive: usize,
    /// The groups that it says something about, one bit for each.
    groups: u64,
    stored: Option<Part>,
    /// How many spans of the window's blocks are before each group; none if a span is one block.
    spans: Option<Box<[u16; GROUPS as usize]>>,
    zero: Option<Arc<Container>>,
    /// The groups whose digest it has.
    digests: u64,
    /// How many digests of groups are before the window's.
    digest_rank: u64,
}

impl Window {
    /// The window of a group.
    pub(super) fn number_of(group: GroupIndex) -> u32 {
        group.0 / GROUPS
    }

    /// Which window of the disk this is.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Reads what the archives say.
    pub(super) fn load(archives: &[Arc<Reader>], number: u32) -> Result<Self> {
        let mut speakers = Vec::new();
        for (archive, reader) in archives.iter().enumerate().rev() {
            let speaker = Speaker::load(archive, reader, number)?;
            if speaker.groups != 0 {
                speakers.push(speaker);
            }
        }
        Ok(Self { number, speakers })
    }

    /// The archives that say something about a group of the window, the newest first.
    pub(super) fn speakers(&self, group: GroupIndex) -> impl Iterator<Item = &Speaker> {
        let bit = 1 << (group.0 % GROUPS);
        self.speakers.iter().filter(move |speaker| speaker.groups & bit != 0)
    }

    /// Fills `state` with what the chain says about a group of the window.
    pub(super) fn fill(
        &self,
        chain: &Chain,
        group: GroupIndex,
        tables: &mut Tables,
        state: &mut GroupState,
    ) -> Result<()> {
        state.clear(group);
        let mut breaks = chain.salvage.as_deref().unwrap_or_default();
        if breaks.is_empty() && self.speakers(group).next().is_none() {
            return Ok(());
        }
        state.clean = false;
        let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
        let mut open = [u64::MAX; GROUP_WORDS];
        let mut found_digest = false;
        for speaker in self.speakers(group) {
            let index = speaker.archive;
            let (Some(reader), Some(kept)) =
                (chain.archives.get(index), chain.blocks_kept.get(index))
            else {
                continue;
            };
            while let Some(((above, blocks), rest)) = breaks.split_first()
                && *above > index
            {
                state.doubt(&and(&open, &bits_of(0..blocks.saturating_sub(start))));
                breaks = rest;
            }
            if !found_digest
                && *kept > start
                && let Some(rank) = speaker.digest_rank(group)
            {
                let (windows, ahead) = tables.of(index);
                state.group_digest = windows.group_digest(reader, rank, ahead)?;
                found_digest = true;
            }
            let seen = and(&open, &bits_of(0..kept.saturating_sub(start)));
            let stored = speaker.stored(group);
            speaker.take_stored(reader, &stored, &and(&stored, &seen), tables, state)?;
            let [lost, unsure] = match reader.gaps() {
                Some(gaps) => [&gaps.lost, &gaps.unsure].map(|blocks| bits_in(blocks, start)),
                None => [[0; GROUP_WORDS]; 2],
            };
            state.lose(&and(&lost, &seen));
            state.doubt(&and(&unsure, &seen));
            state.proven &= reader.has_proofs();
            let said = stored.iter().zip(speaker.zero(group)).zip(lost);
            for (open, ((stored, zero), lost)) in open.iter_mut().zip(said) {
                *open &= !(stored | zero | lost);
            }
        }
        for (_, blocks) in breaks {
            state.doubt(&and(&open, &bits_of(0..blocks.saturating_sub(start))));
        }
        state.frames.reverse();
        self.prove(chain, group, state)
    }

    /// Compares the group's digest with that of its blocks' digests.
    fn prove(&self, chain: &Chain, group: GroupIndex, state: &mut GroupState) -> Result<()> {
        if !state.proven {
            return Ok(());
        }
        let computed =
            if state.has_stored() { group_digest(&state.digests) } else { state.zero_group };
        if computed == state.group_digest {
            return Ok(());
        }
        if chain.is_salvaged() {
            state.proven = false;
            return Ok(());
        }
        let mut names: Vec<String> = self
            .speakers(group)
            .filter_map(|speaker| chain.archives.get(speaker.archive))
            .map(|archive| archive.path().display().to_string())
            .collect();
        names.reverse();
        let what = format!(
            "the digests of {} do not agree: the index of one of these is damaged: {}",
            chain.describe_group(group),
            names.join(", ")
        );
        Err(Error::new(ErrorKind::Damaged, what)
            .advise("`qdelta verify` finds out which; `restore --salvage` gives what is sound."))
    }
}

impl Speaker {
    /// What an archive at this position says about a window.
    pub(super) fn load(archive: usize, reader: &Reader, number: u32) -> Result<Self> {
        // A window has the blocks of one container, and its groups are one word of a container.
        let key = number as u16;
        let stored = reader.stored().part_of(key)?;
        let zero = reader.zero().part_of(key)?.map(|part| part.container);
        let (word, mut digests, mut digest_rank) = (number as usize % CONTAINER_WORDS, 0, 0);
        if let Some(part) = reader.groups().part_of((number as usize / CONTAINER_WORDS) as u16)? {
            digests = part.container.word(word);
            digest_rank = part.rank + u64::from(part.container.rank(word));
        }
        let mut groups = digests;
        let mut spans = None;
        let span = reader.metadata().frame_blocks;
        if let Some(part) = &stored {
            let words = words_of(&part.container);
            groups |= groups_of(&words);
            if span > 1 {
                let mut before = Box::new([0; GROUPS as usize]);
                let mut sum = 0;
                for (before, words) in before.iter_mut().zip(words.chunks(GROUP_WORDS)) {
                    // Spans of two blocks or more: at most 32,768 in a window.
                    *before = sum as u16;
                    sum += words.iter().map(|word| spans_in(*word, span)).sum::<u32>();
                }
                spans = Some(before);
            }
        }
        if let Some(container) = &zero {
            groups |= groups_of(&words_of(container));
        }
        if let Some(gaps) = reader.gaps() {
            let group_blocks = u64::from(GROUP_BLOCKS);
            let starts = (u64::from(number) * u64::from(GROUPS)..).take(GROUPS as usize);
            for (bit, group) in starts.enumerate() {
                let blocks =
                    [&gaps.lost, &gaps.unsure].map(|set| bits_in(set, group * group_blocks));
                groups |= u64::from(blocks != [[0; GROUP_WORDS]; 2]) << bit;
            }
        }
        Ok(Self { archive, groups, stored, spans, zero, digests, digest_rank })
    }

    /// Whether the archive says something about a group.
    pub(super) fn speaks(&self, group: GroupIndex) -> bool {
        self.groups >> (group.0 % GROUPS) & 1 == 1
    }

    /// How many blocks the archive stores before a group of which it stores some.
    pub(super) fn rank(&self, group: GroupIndex) -> u64 {
        let below = |part: &Part| part.rank + u64::from(part.container.rank(first_word(group)));
        self.stored.as_ref().map_or(0, below)
    }

    /// The blocks of a group that the archive stores.
    pub(super) fn stored(&self, group: GroupIndex) -> GroupBits {
        let mut bits = [0; GROUP_WORDS];
        if let Some(part) = &self.stored {
            part.container.bits(first_word(group), &mut bits);
        }
        bits
    }

    /// The blocks of a group that the archive marks as zero.
    pub(super) fn zero(&self, group: GroupIndex) -> GroupBits {
        let mut bits = [0; GROUP_WORDS];
        if let Some(container) = &self.zero {
            container.bits(first_word(group), &mut bits);
        }
        bits
    }

    /// The number of the group's digest in the archive's table, if it is there.
    pub(super) fn digest_rank(&self, group: GroupIndex) -> Option<u64> {
        let bit = group.0 % GROUPS;
        let below = self.digests & ((1 << bit) - 1);
        (self.digests >> bit & 1 == 1).then(|| self.digest_rank + u64::from(below.count_ones()))
    }

    /// Puts the wanted ones of the stored blocks into the state, with digests and frames.
    pub(super) fn take_stored(
        &self,
        reader: &Reader,
        stored: &GroupBits,
        wanted: &GroupBits,
        tables: &mut Tables,
        state: &mut GroupState,
    ) -> Result<()> {
        let Some(part) = &self.stored else { return Ok(()) };
        if count(wanted) == 0 {
            return Ok(());
        }
        let rank = self.rank(state.group);
        // Where some can't be proved, all mean nothing.
        if state.proven && reader.has_proofs() {
            let (windows, ahead) = tables.of(self.archive);
            let digests = windows.digests(reader, rank, count(stored), ahead)?;
            for (block, digest) in ones(stored).zip(digests) {
                if is_set(wanted, block)
                    && let Some(place) = state.digests.get_mut(block)
                {
                    *place = Digest(*digest);
                }
            }
        }
        for block in ones(wanted) {
            if let Some(owner) = state.owners.get_mut(block) {
                // `CHAIN_LEN_MAX` is below `LOST` and `ZERO`.
                *owner = self.archive as u16;
            }
        }
        let span = reader.metadata().frame_blocks;
        let position = match &self.spans {
            None => rank,
            Some(before) => {
                let bit = (state.group.0 % GROUPS) as usize;
                part.spans + u64::from(before.get(bit).copied().unwrap_or(0))
            }
        };
        let frames = stored.iter().map(|word| u64::from(spans_in(*word, span))).sum();
        let (windows, ahead) = tables.of(self.archive);
        let records = windows.frames(reader, position, frames, ahead)?;
        // Reversed at the end, when all archives have spoken: newest first becomes oldest first,
        // so here the last frame comes first.
        let from = state.frames.len();
        let frames = (position..).zip(spans(stored, span)).zip(records);
        for ((position, (first, mask)), record) in frames {
            let wanted = span_at(wanted, first, span);
            if wanted == 0 {
                continue;
            }
            let entry = reader.decode_frame(position, record)?;
            let block = state.group.0 * GROUP_BLOCKS + first;
            if entry.first_block.0 != block {
                return Err(reader.misplaced(position, BlockIndex(block)));
            }
            state.frames.push(FrameRead { archive: self.archive, position, entry, mask, wanted });
        }
        if let Some(own) = state.frames.get_mut(from..) {
            own.reverse();
        }
        Ok(())
    }
}

/// The first word of a group in a container.
fn first_word(group: GroupIndex) -> usize {
    (group.0 % GROUPS) as usize * GROUP_WORDS
}

fn words_of(container: &Container) -> [u64; CONTAINER_WORDS] {
    let mut words = [0; CONTAINER_WORDS];
    container.bits(0, &mut words);
    words
}

/// The groups that have a block, one bit for each.
fn groups_of(words: &[u64; CONTAINER_WORDS]) -> u64 {
    let groups = words.chunks(GROUP_WORDS).map(|words| words.iter().any(|word| *word != 0));
    groups.enumerate().fold(0, |all, (bit, any)| all | u64::from(any) << bit)
}

fn is_set(bits: &GroupBits, block: usize) -> bool {
    bits.get(block / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
}

/// The bits of the span of `span` blocks that starts at block `first`, which is a multiple of it.
fn span_at(bits: &GroupBits, first: u32, span: u32) -> u64 {
    span_of(bits.get(first as usize / 64).copied().unwrap_or(0), first, span)
}

/// The spans that are not empty: first block, and the bits.
fn spans(bits: &GroupBits, span: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
    (0..state::LEN as u32)
        .step_by(span as usize)
        .map(move |first| (first, span_at(bits, first, span)))
        .filter(|(_, mask)| *mask != 0)
}
