//! What a repository tells of points whose manifests it does not have: the content that later points build on, and
//! that of archives that lie there alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use qdelta_formats::archive::Digest;

use super::carry::parent_of;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::archive::Reader;
use crate::vault::repository::{Catalog, DiskName, DomainName, Manifest, PointId};

/// What is known of points without a sound manifest.
#[derive(Default)]
pub(super) struct Told {
    /// The roots of points, by what is left of them or builds on them.
    roots: BTreeMap<(PointId, DiskName), Vec<Digest>>,
    /// The points whose archives lie there alone, sound or not.
    alone: BTreeSet<PointId>,
}

impl Told {
    /// Reads the manifests of a guest, and the archives that have none. What can't be read tells nothing.
    ///
    /// # Errors
    /// A folder can't be listed.
    pub fn read(catalog: &Catalog, domain: &DomainName) -> Result<Self> {
        let mut told = Self::default();
        for (_, manifest) in catalog.manifests(domain)? {
            let Ok(manifest) = manifest else { continue };
            for record in &manifest.disks {
                if let Some(parent) = &record.parent {
                    told.add(parent.point, &record.disk, parent.root);
                }
            }
        }
        let disks = match catalog.disks_of(domain) {
            // The guest comes for the first time.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            disks => disks?,
        };
        for disk in disks {
            for (archive, point) in catalog.archives_alone(&disk)? {
                told.alone.insert(point);
                let opened = catalog.repository().storage().open(&archive).and_then(Reader::open);
                let sound = opened.and_then(|reader| reader.check_index().map(|()| reader));
                let Ok(reader) = sound.map(Arc::new) else { continue };
                let metadata = reader.metadata();
                let is_it = metadata.point == point.to_string()
                    && metadata.domain == domain.as_str()
                    && metadata.disk == disk.disk.as_str();
                if !is_it {
                    continue;
                }
                told.add(point, &disk.disk, reader.root());
                if let Ok(Some(parent)) = parent_of(&reader) {
                    told.add(parent.point, &disk.disk, parent.root);
                }
            }
        }
        Ok(told)
    }

    fn add(&mut self, point: PointId, disk: &DiskName, root: Digest) {
        let roots = self.roots.entry((point, disk.clone())).or_default();
        if !roots.contains(&root) {
            roots.push(root);
        }
    }

    /// Whether archives of a point lie there alone.
    pub fn is_alone(&self, point: PointId) -> bool {
        self.alone.contains(&point)
    }

    /// Fails if the point was something else than the manifest says that comes from another repository.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]: it was.
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        let of_point = self.roots.iter().filter(|((point, _), _)| *point == manifest.point);
        for ((_, disk), roots) in of_point {
            let theirs = manifest.disk(disk).map(|record| record.root);
            if roots.iter().any(|root| Some(*root) != theirs) {
                let text = format!(
                    "the manifest of point {} of {} is lost or damaged, and what is left of the point, or builds on \
                     it, shows another disk {disk} than the other repository has",
                    manifest.point, manifest.domain
                );
                return Err(Error::new(ErrorKind::Exists, text).advise(
                    "the two repositories hold different guests under one name, or each was backed up into by itself: \
                     use another copy",
                ));
            }
        }
        Ok(())
    }
}
