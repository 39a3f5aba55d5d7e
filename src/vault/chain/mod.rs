//! A full and the archives that follow it, read as one disk: the newest archive that says
//! something about a block wins.

mod bits;
mod cursor;
mod forest;
mod salvage;
mod state;
mod stretch;
mod tables;
mod window;

use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind, Metadata, Parent, zero_group_digest,
};
use crate::vault::archive::Reader;

pub use cursor::GroupCursor;
use cursor::Recent;
pub use forest::{Forest, Overlay};
pub use state::{FrameRead, GroupState, Owner};
pub use stretch::{Layer, Stretch, StretchCursor};

/// The most archives a chain may have. Ten years of one every two hours.
pub const CHAIN_LEN_MAX: usize = 50_000;

/// Archives that were proved to follow each other, the full first.
#[derive(Debug, Clone)]
pub struct Chain {
    archives: Vec<Arc<Reader>>,
    /// For each archive, the fewest blocks that a disk above it has: what it stores from there on
    /// was cut off later. For the newest, its own.
    blocks_kept: Vec<u64>,
    /// Set if the chain may have damage.
    salvage: Option<Breaks>,
    recent: Recent,
}

/// Where archives are missing in a salvaged chain: below which position, and how many blocks of
/// the disk they may have had a say in. The newest first.
type Breaks = Vec<(usize, u64)>;

impl Chain {
    /// The chain of these archives, the full first, each the parent of the next.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: they are not one chain in this order; the error names both files
    /// that do not fit. [`ErrorKind::Usage`]: none at all, or more than [`CHAIN_LEN_MAX`].
    pub fn new(archives: Vec<Arc<Reader>>) -> Result<Self> {
        if archives.is_empty() || archives.len() > CHAIN_LEN_MAX {
            let context = format!("{} archives can't be a chain", archives.len());
            return Err(Error::new(ErrorKind::Usage, context));
        }
        if let Some(first) = archives.first() {
            check_first(first)?;
        }
        for (parent, child) in archives.iter().zip(archives.iter().skip(1)) {
            check_pair(parent, child)?;
        }
        Ok(Self::link(archives, None))
    }

    /// The chain of archives that were found to follow each other.
    fn link(archives: Vec<Arc<Reader>>, salvage: Option<Breaks>) -> Self {
        let blocks_kept = blocks_kept(&archives);
        Self { archives, blocks_kept, salvage, recent: Recent::default() }
    }

    /// Size of the disk, and of its blocks, at the newest point.
    pub fn geometry(&self) -> Geometry {
        self.newest().geometry()
    }

    /// The root of the newest point.
    pub fn root(&self) -> Digest {
        self.newest().root()
    }

    /// The archives, the full first.
    pub fn archives(&self) -> &[Arc<Reader>] {
        &self.archives
    }

    /// The last archive.
    pub fn newest(&self) -> &Arc<Reader> {
        #[expect(clippy::indexing_slicing, reason = "`new` refuses a chain of none")]
        &self.archives[self.archives.len() - 1]
    }

    /// How many blocks the archive stores that stores the most.
    pub fn largest(&self) -> u64 {
        self.archives.iter().map(|archive| archive.stored().len()).max().unwrap_or(0)
    }

    /// The blocks that are not zero at the newest point. At most one bit for each block of the disk.
    ///
    /// # Errors
    /// A store failed, or a bitmap is not what it was.
    pub fn nonzero(&self) -> Result<RoaringBitmap> {
        let mut nonzero = RoaringBitmap::new();
        for archive in &self.archives {
            for blocks in archive.stored().pieces() {
                nonzero |= blocks?;
            }
            for blocks in archive.zero().pieces() {
                nonzero -= blocks?;
            }
            // A disk that shrank here has lost what lay behind its end.
            if let Ok(end) = u32::try_from(archive.geometry().block_count()) {
                nonzero.remove_range(end..);
            }
        }
        Ok(nonzero)
    }

    /// The blocks that may differ between the disk at the archive of this position and at the
    /// newest point. At most one bit for each block of the disk.
    ///
    /// # Errors
    /// See [`Self::nonzero`].
    pub fn changed_since(&self, position: usize) -> Result<RoaringBitmap> {
        let mut changed = RoaringBitmap::new();
        let mut shortest = u64::MAX;
        for archive in self.archives.iter().skip(position) {
            shortest = shortest.min(archive.geometry().block_count());
        }
        for archive in self.archives.iter().skip(position + 1) {
            for blocks in archive.stored().pieces().chain(archive.zero().pieces()) {
                changed |= blocks?;
            }
        }
        // What a disk lost by shrinking is in no archive; if it grew again, it is zero now.
        let end = self.geometry().block_count();
        if let Some(last) = end.checked_sub(1)
            && shortest < end
        {
            changed.insert_range(shortest as u32..=last as u32);
        }
        Ok(changed)
    }

    /// The digests of all groups of the disk at the newest point, as the archives have them: whether
    /// they are right shows the root. 32 bytes for each group.
    ///
    /// # Errors
    /// A table of digests can't be read.
    pub fn group_digests(&self) -> Result<Vec<Digest>> {
        let geometry = self.geometry();
        let count = geometry.group_count() as usize;
        let mut digests = vec![zero_group_digest(geometry.block_size()); count];
        let mut open = RoaringBitmap::new();
        open.insert_range(0..geometry.group_count());
        for (archive, kept) in self.archives.iter().zip(&self.blocks_kept).rev() {
            if open.is_empty() {
                break;
            }
            let mut rank = 0;
            for groups in archive.groups().pieces() {
                for group in groups? {
                    let start = u64::from(group) * u64::from(GROUP_BLOCKS);
                    if start < *kept
                        && open.remove(group)
                        && let Some(digest) = digests.get_mut(group as usize)
                    {
                        *digest = archive.group_digest(rank)?;
                    }
                    rank += 1;
                }
            }
        }
        Ok(digests)
    }

    /// The disk's groups as `(group, bytes of the disk)`, for messages.
    pub(crate) fn describe_group(&self, group: GroupIndex) -> String {
        let range = self.geometry().group_range(group);
        format!("group {}, bytes {} to {} of the disk", group.0, range.start, range.end)
    }
}

/// For each archive, the fewest blocks that a disk above it has; for the newest, its own.
fn blocks_kept(archives: &[Arc<Reader>]) -> Vec<u64> {
    let mut kept = archives.last().map_or(0, |newest| newest.geometry().block_count());
    let mut blocks_kept: Vec<u64> = Vec::with_capacity(archives.len());
    for archive in archives.iter().rev() {
        blocks_kept.push(kept);
        kept = kept.min(archive.geometry().block_count());
    }
    blocks_kept.reverse();
    blocks_kept
}

fn check_first(first: &Reader) -> Result<()> {
    let metadata = first.metadata();
    if metadata.kind == Kind::Full {
        return Ok(());
    }
    let parent = metadata.parent.as_ref().map_or("none", |parent| parent.point.as_str());
    let context = format!(
        "{} is {} and needs the archive of point {parent} before it",
        first.path().display(),
        metadata.kind
    );
    Err(Error::new(ErrorKind::Damaged, context)
        .advise("Name the full first, then the archives that follow it, oldest first."))
}

/// Whether an archive is of the point that a link names, whatever is known of its root.
fn is_point(link: &Parent, archive: &Metadata) -> bool {
    (&link.domain, &link.disk, &link.point) == (&archive.domain, &archive.disk, &archive.point)
}

fn check_pair(parent: &Reader, child: &Reader) -> Result<()> {
    let (above, below) = (child.metadata(), parent.metadata());
    let misfit = |why: String| {
        let (child, parent) = (child.path().display(), parent.path().display());
        Err(Error::new(ErrorKind::Damaged, format!("{child} does not follow {parent}: {why}")))
    };
    let Some(link) = &above.parent else {
        return misfit("it is a full, the start of another chain".into());
    };
    if !is_point(link, below) {
        return misfit(format!(
            "it follows point {} of {}/{}, the other is point {} of {}/{}",
            link.point, link.domain, link.disk, below.point, below.domain, below.disk
        ));
    }
    if link.root != parent.root() {
        return misfit(format!(
            "it was made against the root {}, the other has {}",
            link.root,
            parent.root()
        ));
    }
    let (ours, theirs) = (above.geometry.block_size(), below.geometry.block_size());
    if ours != theirs {
        return misfit(format!("blocks of {ours} bytes over blocks of {theirs}"));
    }
    Ok(())
}

#[cfg(test)]
mod salvage_tests;
#[cfg(test)]
mod tests;
