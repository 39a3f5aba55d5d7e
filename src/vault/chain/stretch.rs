//! Part of a chain: archives that follow each other, read as the one archive that could stand for all
//! of them. What none of them says is as in the parent of the first.

use std::sync::Arc;

use super::bits::{GroupBits, and, bits_of, ones};
use super::state::{FrameRead, GroupState};
use super::tables::Tables;
use super::window::Window;
use super::{CHAIN_LEN_MAX, blocks_kept, check_pair};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind, group_digest, zero_block_digest,
    zero_group_digest,
};
use crate::vault::archive::Reader;
use crate::vault::frames::pack::GroupDigests;

/// Archives that were proved to follow each other, the oldest first.
#[derive(Debug, Clone)]
pub struct Stretch {
    archives: Vec<Arc<Reader>>,
    blocks_kept: Vec<u64>,
    /// The fewest blocks that the disk had on the way: what nobody stores from there on is zero.
    shortest: u64,
}

/// What a stretch says about one group.
#[derive(Debug)]
pub struct Layer {
    state: GroupState,
    owned: GroupBits,
    zero: GroupBits,
    digest: Option<Digest>,
}

/// A pass over the groups of a stretch, in ascending order.
pub struct StretchCursor<'a> {
    stretch: &'a Stretch,
    window: Option<Window>,
    tables: Tables,
    layer: Layer,
    /// Whether the digests of blocks are asked for.
    digests: bool,
}

impl std::fmt::Debug for StretchCursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StretchCursor").field("group", &self.layer.group()).finish_non_exhaustive()
    }
}

impl Stretch {
    /// The stretch of these archives, the oldest first, each the parent of the next.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: they do not follow each other in this order; the error names both files
    /// that do not fit. [`ErrorKind::Usage`]: none at all, or more than [`CHAIN_LEN_MAX`].
    pub fn new(archives: Vec<Arc<Reader>>) -> Result<Self> {
        if archives.is_empty() || archives.len() > CHAIN_LEN_MAX {
            let context = format!("{} archives can't be part of a chain", archives.len());
            return Err(Error::new(ErrorKind::Usage, context));
        }
        for (parent, child) in archives.iter().zip(archives.iter().skip(1)) {
            check_pair(parent, child)?;
        }
        let blocks_kept = blocks_kept(&archives);
        let counts = archives.iter().map(|archive| archive.geometry().block_count());
        let shortest = counts.min().unwrap_or(0);
        Ok(Self { archives, blocks_kept, shortest })
    }

    /// The archives, the oldest first.
    pub fn archives(&self) -> &[Arc<Reader>] {
        &self.archives
    }

    /// The last archive: its point is what the stretch is about.
    pub fn newest(&self) -> &Arc<Reader> {
        #[expect(clippy::indexing_slicing, reason = "`new` refuses a stretch of none")]
        &self.archives[self.archives.len() - 1]
    }

    /// The first archive.
    pub fn oldest(&self) -> &Arc<Reader> {
        #[expect(clippy::indexing_slicing, reason = "`new` refuses a stretch of none")]
        &self.archives[0]
    }

    /// Whether it is a whole chain, which has no parent.
    pub fn is_whole(&self) -> bool {
        self.oldest().metadata().kind == Kind::Full
    }

    /// Size of the disk, and of its blocks, at the newest point.
    pub fn geometry(&self) -> Geometry {
        self.newest().geometry()
    }

    /// How many blocks the frames with the longest span of any archive have.
    pub fn span_max(&self) -> u32 {
        let spans = self.archives.iter().map(|archive| archive.metadata().frame_blocks);
        spans.max().unwrap_or(1)
    }

    /// Starts a pass over the disk's groups, which reads ahead. Without `digests` those of blocks are
    /// not read, and mean nothing.
    pub fn cursor(&self, digests: bool) -> StretchCursor<'_> {
        let size = self.geometry().block_size();
        let state = GroupState::new(zero_block_digest(size), zero_group_digest(size));
        let layer = Layer { state, owned: [0; 16], zero: [0; 16], digest: None };
        let tables = Tables::ahead(self.archives.len());
        StretchCursor { stretch: self, window: None, tables, layer, digests }
    }
}

impl StretchCursor<'_> {
    /// What the stretch says about `group` of the disk at the newest point.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: an archive's index is not as it was written. Others: a store failed.
    pub fn seek(&mut self, group: GroupIndex) -> Result<&Layer> {
        let number = Window::number_of(group);
        let window = match self.window.take().filter(|window| window.number() == number) {
            Some(window) => window,
            None => Window::load(self.stretch.archives(), number)?,
        };
        let laid = self.lay(&window, group);
        self.window = Some(window);
        laid.map(|()| &self.layer)
    }

    fn lay(&mut self, window: &Window, group: GroupIndex) -> Result<()> {
        let (stretch, layer) = (self.stretch, &mut self.layer);
        layer.state.clear(group);
        (layer.owned, layer.zero, layer.digest) = ([0; 16], [0; 16], None);
        let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
        layer.state.clean = false;
        layer.state.proven = self.digests;
        let mut open = [u64::MAX; 16];
        for speaker in window.speakers(group) {
            let index = speaker.archive;
            let (Some(reader), Some(kept)) =
                (stretch.archives.get(index), stretch.blocks_kept.get(index))
            else {
                continue;
            };
            if layer.digest.is_none()
                && *kept > start
                && let Some(rank) = speaker.digest_rank(group)
            {
                let (windows, ahead) = self.tables.of(index);
                layer.digest = Some(windows.group_digest(reader, rank, ahead)?);
            }
            let seen = and(&open, &bits_of(0..kept.saturating_sub(start)));
            let (stored, zero) = (speaker.stored(group), speaker.zero(group));
            let wanted = and(&stored, &seen);
            speaker.take_stored(reader, &stored, &wanted, &mut self.tables, &mut layer.state)?;
            add(&mut layer.owned, &wanted);
            add(&mut layer.zero, &and(&zero, &seen));
            for (open, (stored, zero)) in open.iter_mut().zip(stored.iter().zip(zero)) {
                *open &= !(stored | zero);
            }
        }
        layer.settle(stretch, start)
    }
}

impl Layer {
    /// Adds what follows from the ends of the disks on the way, and checks the rest.
    fn settle(&mut self, stretch: &Stretch, start: u64) -> Result<()> {
        if self.digest.is_none() && (start >= stretch.shortest || stretch.is_whole()) {
            self.digest = Some(self.state.zero_group);
        }
        self.state.frames.sort_by_key(|frame| frame.entry.first_block.0);
        let Some(digest) = self.digest else {
            // What lay behind an end was zero at the parent already, or a digest would have changed.
            return match self.is_silent() {
                true => Ok(()),
                false => {
                    Err(self.damaged(stretch, "a block has changed and no digest of the group"))
                }
            };
        };
        let end = stretch.geometry().block_count();
        let cut = bits_of(stretch.shortest.saturating_sub(start)..end.saturating_sub(start));
        let owned = self.owned;
        add(&mut self.zero, &cut);
        for (zero, owned) in self.zero.iter_mut().zip(owned) {
            *zero &= !owned;
        }
        if stretch.is_whole() && self.state.proven && group_digest(&self.state.digests) != digest {
            return Err(
                self.damaged(stretch, "the digests of its blocks do not give that of the group")
            );
        }
        Ok(())
    }

    fn damaged(&self, stretch: &Stretch, what: &str) -> Error {
        let range = stretch.geometry().group_range(self.group());
        let text = format!(
            "group {}, bytes {} to {} of the disk: {what}: the index of one of these is damaged: {} \
             and what follows up to {}",
            self.group().0,
            range.start,
            range.end,
            stretch.oldest().path().display(),
            stretch.newest().path().display()
        );
        Error::new(ErrorKind::Damaged, text).advise("`qdelta verify` finds out which")
    }

    /// Which group this is.
    pub fn group(&self) -> GroupIndex {
        self.state.group()
    }

    /// Whether no block is stored, nor marked as zero.
    pub fn is_silent(&self) -> bool {
        self.owned == [0; 16] && self.zero == [0; 16]
    }

    /// The frames that hold what stands of the group, ascending by the first block of their spans.
    pub fn frames(&self) -> &[FrameRead] {
        self.state.frames()
    }

    /// The digests of the blocks that [`Self::frames`] hold.
    pub fn digests(&self) -> &GroupDigests {
        self.state.digests()
    }

    /// The group's digest at the newest point; none if it is that of the parent.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether another layer of the same group says the same of every block. In a `whole` chain all that
    /// is not stored is zero.
    pub fn says_what(&self, other: &Self, whole: bool) -> bool {
        self.owned == other.owned
            && (whole || self.zero == other.zero)
            && self.digest == other.digest
            && ones(&self.owned).all(|block| self.state.digest(block) == other.state.digest(block))
    }

    /// The blocks of the group that are zero at the newest point and perhaps not at the parent, counted
    /// from the start of the group.
    pub fn zero(&self) -> impl Iterator<Item = usize> + '_ {
        ones(&self.zero)
    }
}

fn add(bits: &mut GroupBits, more: &GroupBits) {
    for (word, more) in bits.iter_mut().zip(more) {
        *word |= more;
    }
}
