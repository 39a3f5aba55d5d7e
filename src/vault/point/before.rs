//! What is known of a disk at the point that a new one is made against: its chain, or a summary of
//! the chain that spares a backup from opening all of it.
//!
//! The summary lies in the folder of this host's state and is rewritten after each backup. It is believed if its
//! digests give the root that the manifest of the point names, and if every archive of the chain is
//! the file that was there when the chain was last read: of the same length and version
//! (locally: inode and time of change). In every other case the chain is opened as if there were none.

use std::sync::Arc;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::open::{check_indexes, open_archives};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{Digest, Geometry, GroupIndex, Summary};
use crate::vault::archive::Reader;
use crate::vault::chain::{Chain, GroupCursor, Overlay};
use crate::vault::frames::pack::GroupDigests;
use crate::vault::repository::storage::{Name, Storage};
use crate::vault::repository::{Catalog, DiskId, Point, Repository};

/// The most blocks that are summed up: their digests are in memory as long as a backup runs, and
/// written after it. A disk with more is read from its chain, whose opening costs little beside it.
const BLOCKS_MAX: u64 = (16 << 20) / 32;

/// Records of the tables of the new archive that are read ahead.
const AHEAD: u64 = 1024;

/// What is known of a disk at a point.
#[derive(Debug)]
pub(crate) struct Before {
    known: Known,
    /// The archives of the chain, the full first.
    archives: Vec<Stamp>,
}

#[derive(Debug)]
enum Known {
    Chain(Chain),
    Summary(Summary),
}

/// By what an archive is recognised that nobody has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    name: String,
    length: u64,
    version: String,
}

impl Stamp {
    /// The stamp of an archive as it is now, where the storage can tell one from another.
    fn of(storage: &dyn Storage, archive: &Name) -> Option<Self> {
        let entry = storage.entry(archive).ok()??;
        Some(Self { name: entry.name, length: entry.len?, version: entry.version? })
    }
}

impl Before {
    /// What is known of the disk at a point.
    ///
    /// # Errors
    /// An archive of the chain is missing or its index is damaged.
    pub fn open(catalog: &Catalog, point: &Point) -> Result<Self> {
        if let Some(before) = Self::summed_up(catalog, point) {
            return Ok(before);
        }
        let storage = &**catalog.repository().storage();
        let names = catalog.chain_of(point)?;
        // Before the archives are read, so that a change while they are is seen the next time.
        let archives = names.iter().filter_map(|name| Stamp::of(storage, name)).collect();
        let chain = check_indexes(open_archives(storage, &names, point)?)?;
        Ok(Self { known: Known::Chain(chain), archives })
    }

    /// What a summary says, if there is one that is of this point and still true.
    fn summed_up(catalog: &Catalog, point: &Point) -> Option<Self> {
        let bytes = catalog.repository().summary(&point.disk)?;
        let mut summary = Summary::decode(&bytes).ok()?;
        let record = &point.record;
        let is_of_point = summary.root == record.root
            && summary.geometry.virtual_size() == record.virtual_size
            && summary.geometry.block_size() == record.block_size;
        let archives: Vec<Stamp> =
            serde_json::from_slice(&std::mem::take(&mut summary.note)).ok()?;
        let is_last = archives.last().is_some_and(|last| last.name == record.archive);
        let (storage, folder) = (&**catalog.repository().storage(), point.archive.folder()?);
        let is_as_it_was =
            |stamp: &Stamp| Stamp::of(storage, &folder.join(&stamp.name)).as_ref() == Some(stamp);
        let is_true = is_of_point && is_last && archives.iter().all(is_as_it_was);
        is_true.then_some(Self { known: Known::Summary(summary), archives })
    }

    /// Whether the archives were not opened.
    #[cfg(test)]
    pub fn is_summed_up(&self) -> bool {
        matches!(self.known, Known::Summary(_))
    }

    /// How many archives the chain has.
    pub fn archives(&self) -> usize {
        match &self.known {
            Known::Chain(chain) => chain.archives().len(),
            Known::Summary(_) => self.archives.len(),
        }
    }

    /// Size of the disk and of its blocks.
    pub fn geometry(&self) -> Geometry {
        match &self.known {
            Known::Chain(chain) => chain.geometry(),
            Known::Summary(summary) => summary.geometry,
        }
    }

    /// The blocks that are not zero.
    ///
    /// # Errors
    /// An archive can't be read.
    pub fn nonzero(&self) -> Result<RoaringBitmap> {
        match &self.known {
            Known::Chain(chain) => chain.nonzero(),
            Known::Summary(summary) => Ok(summary.nonzero().clone()),
        }
    }

    /// Starts a pass over the digests of the groups.
    pub fn digests(&self) -> Digests<'_> {
        match &self.known {
            Known::Chain(chain) => Digests::Chain(Box::new(chain.cursor())),
            Known::Summary(summary) => Digests::Summary(summary),
        }
    }

    /// Whether more blocks are known to be there than are summed up.
    fn is_large(&self) -> bool {
        match &self.known {
            Known::Chain(chain) => chain.largest() > BLOCKS_MAX,
            Known::Summary(_) => false,
        }
    }
}

/// A pass over the digests of a disk, ascending.
pub(crate) enum Digests<'a> {
    Chain(Box<GroupCursor<'a>>),
    Summary(&'a Summary),
}

impl Digests<'_> {
    /// The digest of a group; none if all its blocks were zero.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn group(&mut self, group: GroupIndex) -> Result<Option<Digest>> {
        match self {
            Self::Chain(cursor) => {
                let state = cursor.seek(group)?;
                Ok(state.has_stored().then(|| state.group_digest()))
            }
            Self::Summary(summary) => Ok(summary.group_digest(group)),
        }
    }

    /// The digests of the blocks of a group, and its own; none if all were zero.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if they are not as they were written.
    pub fn of(&mut self, group: GroupIndex) -> Result<Option<(Arc<GroupDigests>, Digest)>> {
        match self {
            Self::Chain(cursor) => {
                let state = cursor.seek(group)?;
                Ok(state.has_stored().then(|| (Arc::new(*state.digests()), state.group_digest())))
            }
            Self::Summary(summary) => {
                Ok(summary.group(group).map(|(blocks, digest)| (blocks.into(), digest)))
            }
        }
    }
}

/// Sums up a disk at a point that was just made, for the next one: what was known before, and what
/// the new archive says.
///
/// # Errors
/// The archive or the chain can't be read, or the summary can't be written: the next backup opens
/// the chain.
pub(crate) fn sum_up(
    repository: &Repository,
    disk: &DiskId,
    before: Option<&Before>,
    archive: &Name,
) -> Result<()> {
    let storage = &**repository.storage();
    // Before the archive is read, so that a change while it is being read is seen the next time.
    let stamp = Stamp::of(storage, archive);
    let reader = Reader::open(storage.open(archive)?)?;
    if before.is_some_and(Before::is_large) || reader.stored().len() > BLOCKS_MAX {
        return Ok(());
    }
    let mut summary = Summary::new(reader.geometry(), reader.root());
    let mut known = before.map(|before| (before.digests(), before.geometry().group_count()));
    let mut overlay = Overlay::new(&reader, AHEAD);
    for group in (0..reader.geometry().group_count()).map(GroupIndex) {
        let below = match &mut known {
            Some((digests, count)) if group.0 < *count => digests.of(group)?,
            _ => None,
        };
        if let Some(blocks) = overlay.over(group, below.map(|(blocks, _)| blocks))? {
            summary.push(group, &blocks);
        }
        if summary.nonzero().len() > BLOCKS_MAX {
            return Ok(());
        }
    }
    let mut archives = before.map(|before| before.archives.clone()).unwrap_or_default();
    archives.extend(stamp);
    if archives.len() != before.map_or(0, Before::archives) + 1 {
        // A storage that can't tell when an archive changes.
        return Ok(());
    }
    summary.note = serde_json::to_vec(&archives).map_err(|error| {
        Error::new(ErrorKind::Io, "the summary of a chain can't be written").because(error)
    })?;
    repository.write_summary(disk, &summary.encode())
}
