//! The proof of merged archives, before anything old goes.
//!
//! A merged archive is opened from its file and compared with those whose place it is to take: it must say
//! of every block what they say together. Then the digests of the groups, of all archives of the chain as
//! it will be, must give the root of each point. No frame is read for that: what frames hold was proved by
//! their checksums, or by the digests of their blocks, when they were copied.

use std::collections::BTreeSet;
use std::sync::Arc;

use qdelta_formats::archive::{Digest, Geometry, GroupIndex, RootHasher, zero_group_digest};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::archive::Reader;
use crate::vault::chain::Stretch;
use crate::vault::repository::{Catalog, DiskId, DiskRecord, ParentRecord, PointId};

/// Fails unless `merged` says of every block what `stretch` says.
pub(super) fn is_same(merged: &Arc<Reader>, stretch: &Stretch, cancel: &Cancel) -> Result<()> {
    merged.check_index()?;
    let alone = Stretch::new(vec![Arc::clone(merged)])?;
    let (mut ours, mut theirs) = (alone.cursor(true), stretch.cursor(true));
    let differs = |what: String| {
        let text =
            format!("{}: the merged archive is not what it was made of", merged.path().display());
        Err(Error::new(ErrorKind::Damaged, text).because(what))
    };
    if merged.root() != stretch.newest().root() || alone.geometry() != stretch.geometry() {
        return differs("it has another root or size".to_owned());
    }
    for group in (0..stretch.geometry().group_count()).map(GroupIndex) {
        cancel.check()?;
        if !ours.seek(group)?.says_what(theirs.seek(group)?, alone.is_whole()) {
            return differs(format!("group {} differs", group.0));
        }
    }
    Ok(())
}

/// Fails unless the digests of the groups give the root of each of these points of a disk, whose records
/// are those of `record`.
pub(super) fn roots<'a>(
    catalog: &Catalog,
    disk: &DiskId,
    points: &BTreeSet<PointId>,
    record: impl Fn(PointId) -> Option<&'a DiskRecord>,
    cancel: &Cancel,
) -> Result<()> {
    let mut open = points.clone();
    while let Some(newest) = open.pop_last() {
        let mut path = Vec::new();
        let mut next = Some(newest);
        while let Some(point) = next {
            let record = record(point).ok_or_else(|| {
                let text =
                    format!("point {newest} of {disk} needs point {point}, which is missing");
                Error::new(ErrorKind::Damaged, text)
            })?;
            path.push((point, record));
            next = record.parent.as_ref().map(|parent| parent.point);
        }
        let mut groups = Groups::default();
        let mut below: Option<ParentRecord> = None;
        for (point, record) in path.into_iter().rev() {
            cancel.check()?;
            let archive = catalog.open_archive(disk, point, record)?;
            let link =
                archive.metadata().parent.as_ref().map(ParentRecord::try_from).transpose()?;
            groups.lay(&archive)?;
            open.remove(&point);
            let is_asked = points.contains(&point);
            if link != below || is_asked && groups.root(archive.geometry()) != record.root {
                let path = archive.path().display();
                let text = format!("{path}: its chain does not give the root of point {point}");
                return Err(Error::new(ErrorKind::Damaged, text)
                    .advise("`qdelta verify` tells which files are damaged"));
            }
            below = Some(ParentRecord {
                domain: disk.domain.clone(),
                disk: disk.disk.clone(),
                point,
                root: record.root,
            });
        }
    }
    Ok(())
}

/// The digests of a disk's groups, as far as the archives of a chain have been laid over each other.
#[derive(Default)]
pub(crate) struct Groups {
    digests: Vec<Digest>,
}

impl Groups {
    /// Lays the next archive of the chain over those before.
    ///
    /// # Errors
    /// Its index can't be read.
    pub fn lay(&mut self, archive: &Reader) -> Result<()> {
        let geometry = archive.geometry();
        let zero = zero_group_digest(geometry.block_size());
        self.digests.resize(geometry.group_count() as usize, zero);
        let mut rank = 0;
        for groups in archive.groups().pieces() {
            for group in groups? {
                if let Some(digest) = self.digests.get_mut(group as usize) {
                    *digest = archive.group_digest(rank)?;
                }
                rank += 1;
            }
        }
        Ok(())
    }

    /// The root of the point of the last archive.
    pub fn root(&self, geometry: Geometry) -> Digest {
        let mut root = RootHasher::new(geometry);
        self.digests.iter().for_each(|digest| root.push(*digest));
        root.finish()
    }
}
