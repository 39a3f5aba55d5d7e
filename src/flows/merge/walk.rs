//! What of a stretch's frames goes into the merged archive as it is, and what must be packed anew.

use std::ops::Range;

use qdelta_formats::archive::{FrameEntry, GROUP_BLOCKS, GroupIndex, Mask};

use crate::vault::chain::{FrameRead, Stretch};

/// Some neighbouring blocks whose frames have nothing to do with other blocks.
pub(super) struct Unit<'a> {
    /// The first of the blocks: a multiple of how many there are.
    pub first: u64,
    /// The frames that hold what stands of the blocks.
    pub frames: &'a [FrameRead],
}

/// How the merged archive is cut.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Blocks in a unit: in the longest span of any archive.
    pub unit: u32,
    /// Blocks in a span of the merged archive.
    pub span: u32,
}

impl Cut {
    pub fn of(stretch: &Stretch) -> Self {
        Self { unit: stretch.span_max(), span: stretch.newest().metadata().frame_blocks }
    }

    /// The units that frames, ascending, belong to.
    pub fn units(self, frames: &[FrameRead]) -> impl Iterator<Item = Unit<'_>> {
        let unit_of = move |frame: &FrameRead| frame.entry.first_block.0 / self.unit;
        let units = frames.chunk_by(move |one, next| unit_of(one) == unit_of(next));
        units.filter_map(move |frames| {
            let first = u64::from(unit_of(frames.first()?)) * u64::from(self.unit);
            Some(Unit { first, frames })
        })
    }
}

impl Unit<'_> {
    /// The blocks of the unit that a frame is wanted for, one bit for each.
    pub fn wanted(&self, frame: &FrameRead) -> u64 {
        frame.wanted << (u64::from(frame.entry.first_block.0) - self.first)
    }

    /// Whether a frame can stand in the merged archive as it is: all its blocks stand, and no others of
    /// its span do.
    pub fn is_whole(&self, frame: &FrameRead, stretch: &Stretch, cut: Cut) -> bool {
        let archive = stretch.archives().get(frame.archive);
        let span = archive.map(|archive| archive.metadata().frame_blocks);
        let held = span_mask(frame.entry.first_block.0.into(), self.first, cut.span);
        let mut others = self.frames.iter().filter(|other| *other != frame);
        frame.wanted == frame.mask
            && span == Some(cut.span)
            && others.all(|other| self.wanted(other) & held == 0)
    }
}

/// The bits of a span of `span` blocks in the unit that starts at block `unit`.
pub(super) fn span_mask(first: u64, unit: u64, span: u32) -> u64 {
    (u64::MAX >> (u64::BITS - span)) << (first - unit)
}

/// The spans of a unit that hold some of the blocks `mask`: the first block of each, and its blocks.
pub(super) fn spans(unit: u64, mask: u64, cut: Cut) -> impl Iterator<Item = (u64, Mask)> {
    let firsts = (0..cut.unit).step_by(cut.span as usize);
    let spans = firsts.map(move |at| {
        let first = unit + u64::from(at);
        (first, Mask((mask & span_mask(first, unit, cut.span)) >> at))
    });
    spans.filter(|(_, mask)| mask.0 != 0)
}

/// The blocks of a group that are `zero`, counted from the start of the group, as runs of blocks of the
/// disk.
pub(super) fn runs(group: GroupIndex, zero: impl Iterator<Item = usize>) -> Vec<Range<u64>> {
    let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in zero.map(|at| start + at as u64) {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

/// How many bytes a frame takes of which `wanted` of `held` blocks stay, by their share.
pub(super) fn share(entry: &FrameEntry, wanted: u32, held: u32) -> u64 {
    u64::from(entry.payload_len) * u64::from(wanted) / u64::from(held.max(1))
}
