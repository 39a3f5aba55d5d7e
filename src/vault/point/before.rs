//! What is known of a disk at the point that a new one is made against: its chain, or a summary of
//! the chain that spares a backup from opening all of it.
//!
//! The summary lies in the folder of this host's state and is rewritten after each backup. It is believed if its
//! digests give the root that the manifest of the point names, and if every archive of the chain is
//! the file that was there when the chain was last read: of the same length and version
//! (locally: inode and time of change). In every other case the chain is opened as if there were none.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::open::{Shared, check_indexes, open_archives};
use crate::base::error::Result;
use crate::formats::archive::{DIGEST_LEN, Digest, Geometry, GroupIndex, Summary};
use crate::vault::archive::Reader;
use crate::vault::chain::{Chain, GroupCursor, Overlay};
use crate::vault::frames::pack::GroupDigests;
use crate::vault::repository::storage::{Entry, Name, Storage};
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
    /// The archives of the chain, where the storage can tell one from another.
    archives: Option<Stamps>,
}

#[derive(Debug)]
enum Known {
    Chain(Chain),
    Summary(Summary),
}

/// By what the archives of a chain are recognised that nobody has changed: their names, the full
/// first, and a digest over names, lengths and versions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamps {
    names: Vec<String>,
    digest: blake3::Hash,
}

impl Stamps {
    fn new() -> Self {
        Self { names: Vec::new(), digest: blake3::hash(&[]) }
    }

    /// Adds an archive as it is now; none where the storage can't tell one from another.
    fn with(self, storage: &dyn Storage, archive: &Name) -> Option<Self> {
        self.and(storage.entry(archive).ok()??)
    }

    fn and(mut self, entry: Entry) -> Option<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.digest.as_bytes()).update(&entry.len?.to_le_bytes());
        // No name has a byte 0.
        hasher.update(entry.name.as_bytes()).update(&[0]).update(entry.version?.as_bytes());
        self.digest = hasher.finalize();
        self.names.push(entry.name);
        Some(self)
    }

    /// The archives of these names in a folder, as they are now.
    fn of(storage: &dyn Storage, folder: &Name, names: &[&str]) -> Option<Self> {
        let mut entries = storage.entries(folder, names).ok()?.into_iter();
        entries.try_fold(Self::new(), |stamps, entry| stamps.and(entry?))
    }

    /// The digest, a line with the version of the manifests, and a line for each name.
    fn encode(&self, manifests: &str) -> Vec<u8> {
        let mut bytes = self.digest.as_bytes().to_vec();
        bytes.extend_from_slice(manifests.as_bytes());
        for name in &self.names {
            bytes.push(b'\n');
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// What was written, if all archives are as they were and still those of the point.
    fn proved(catalog: &Catalog, point: &Point, bytes: &[u8]) -> Option<Self> {
        let (digest, lines) = bytes.split_first_chunk::<DIGEST_LEN>()?;
        let mut lines = std::str::from_utf8(lines).ok()?.split('\n');
        let (manifests, names) = (lines.next()?, Vec::from_iter(lines));
        if names.last() != Some(&point.record.archive.as_str()) {
            return None;
        }
        let (repository, folder) = (catalog.repository(), point.archive.folder()?);
        let now = Self::of(&**repository.storage(), &folder, &names)?;
        if now.digest.as_bytes() != digest {
            return None;
        }
        // A merge puts another archive in an earlier point's place, and the old one can be there yet.
        if repository.manifests_version(&point.disk.domain).as_deref() != Some(manifests) {
            let chain = catalog.chain_of(point).ok()?;
            if !chain.iter().map(Name::last).eq(names) {
                return None;
            }
        }
        Some(now)
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
        let stamps = |stamps: Stamps, name| stamps.with(storage, name);
        let archives = names.iter().try_fold(Stamps::new(), stamps);
        let chain = check_indexes(open_archives(storage, &names, point, &Shared::default())?)?;
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
        if !is_of_point {
            return None;
        }
        let archives = Stamps::proved(catalog, point, &std::mem::take(&mut summary.note))?;
        Some(Self { known: Known::Summary(summary), archives: Some(archives) })
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
            Known::Summary(_) => self.archives.as_ref().map_or(0, |stamps| stamps.names.len()),
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
    let below = match before {
        Some(before) => before.archives.clone(),
        None => Some(Stamps::new()),
    };
    // Before the archive is read, so that a change while it is being read is seen the next time.
    let Some(archives) = below.and_then(|below| below.with(storage, archive)) else {
        // A storage that can't tell when an archive changes.
        return Ok(());
    };
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
    // The disk's domain is locked: nobody else has changed a manifest since they were read.
    let manifests = repository.manifests_version(&disk.domain).unwrap_or_default();
    summary.note = archives.encode(&manifests);
    repository.write_summary(disk, &summary.encode())
}
