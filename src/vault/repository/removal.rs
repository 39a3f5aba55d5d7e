//! Removing what merging has replaced, and points that nothing builds on.
//!
//! The archives of a point go first and its manifest last, so that there is no archive that nothing can
//! find. While they go, something says that they do: the manifest of the point that took their place
//! lists them in `replaces`. Who is killed on the way leaves the rest to the next run.

use std::collections::BTreeSet;

use super::manifest::{Manifest, Replaced};
use super::names::{DiskId, DomainName};
use super::point::PointId;
use super::{Catalog, Clearance, DomainLock, Repository};
use crate::base::error::{Error, ErrorKind, Result};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Points that are gone.
    pub points: u64,
    /// Archives that are gone.
    pub archives: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Removed {
    fn add(&mut self, other: Self) {
        self.points += other.points;
        self.archives += other.archives;
        self.bytes += other.bytes;
    }
}

impl Catalog {
    /// All manifests of a domain, the oldest first: also those that can't be read.
    ///
    /// # Errors
    /// The folder of the manifests can't be listed.
    pub(crate) fn manifests(
        &self,
        domain: &DomainName,
    ) -> Result<Vec<(PointId, Result<Manifest>)>> {
        let reading = self.domain(domain);
        match reading.unreadable() {
            Some(folder) => Err(folder.error),
            None => Ok(reading.all().map(|(point, it)| (point, it.clone())).collect()),
        }
    }
}

impl Repository {
    /// Removes everything that merges of a domain have replaced, with the points that went with it.
    ///
    /// # Errors
    /// A manifest can't be read or replaced, or a file not be removed: the next run goes on.
    pub(crate) fn remove_replaced(
        &self,
        lock: &DomainLock,
        clearance: &Clearance,
    ) -> Result<Removed> {
        let domain = lock.domain();
        let manifests = self.catalog().manifests(domain)?;
        let mut removed = Removed::default();
        for (_, manifest) in &manifests {
            let Ok(manifest) = manifest else { continue };
            if manifest.replaces.is_empty() {
                continue;
            }
            let earlier = manifest.replaces.iter().map(|replaced| replaced.point);
            let mut points: BTreeSet<PointId> =
                earlier.filter(|point| *point != manifest.point).collect();
            let is_pinned = |manifest: &Manifest| manifest.pinned.is_some();
            for (point, _) in manifests.iter().filter(|(_, it)| it.as_ref().is_ok_and(is_pinned)) {
                points.remove(point);
            }
            // What builds on one of them since, needs it. Parents are older: the newest come first.
            for (_, other) in manifests.iter().rev() {
                let Ok(other) = other else { continue };
                if !points.contains(&other.point) {
                    for parent in other.disks.iter().filter_map(|record| record.parent.as_ref()) {
                        if parent.domain == *domain {
                            points.remove(&parent.point);
                        }
                    }
                }
            }
            for replaced in &manifest.replaces {
                if replaced.point == manifest.point {
                    removed.add(self.remove_archive(domain, replaced)?);
                }
            }
            for point in points.into_iter().rev() {
                let of_point = |replaced: &&Replaced| replaced.point == point;
                let archives: Vec<_> = manifest.replaces.iter().filter(of_point).cloned().collect();
                removed.add(self.remove_point(lock, clearance, point, &archives)?);
            }
            let (mut current, version) = self.versioned(domain, manifest.point)?;
            current.replaces.clear();
            self.replace(lock, version, &current)?;
        }
        Ok(removed)
    }

    /// Removes a point that nothing builds on: these archives and those that its manifest names, then the
    /// manifest. What is gone already is no error.
    ///
    /// # Errors
    /// A file can't be removed: the manifest stays, and the next run goes on.
    pub(crate) fn remove_point(
        &self,
        lock: &DomainLock,
        _clearance: &Clearance,
        point: PointId,
        archives: &[Replaced],
    ) -> Result<Removed> {
        let domain = lock.domain();
        let mut removed = Removed::default();
        for archive in archives {
            removed.add(self.remove_archive(domain, archive)?);
        }
        let manifest = match self.versioned(domain, point) {
            Ok((manifest, _)) => manifest,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(removed),
            Err(error) => return Err(error),
        };
        for archive in manifest.archives().filter(|archive| archive.point == point) {
            removed.add(self.remove_archive(domain, &archive)?);
        }
        let name = self.points_dir(domain).join(&Manifest::file_name(point));
        self.storage().remove(&name)?;
        removed.points += 1;
        Ok(removed)
    }

    fn remove_archive(&self, domain: &DomainName, replaced: &Replaced) -> Result<Removed> {
        let id = DiskId { domain: domain.clone(), disk: replaced.disk.clone() };
        let name = self.archive(&id, &replaced.archive);
        let Some(entry) = self.storage().entry(&name)? else { return Ok(Removed::default()) };
        match self.storage().remove(&name) {
            Ok(()) => Ok(Removed { points: 0, archives: 1, bytes: entry.len.unwrap_or(0) }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removed::default()),
            Err(error) => Err(Error::within(error, "an archive that is not needed any more stays")),
        }
    }
}
