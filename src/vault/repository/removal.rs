//! Removing what merging has replaced, and points that nothing builds on.
//!
//! A manifest of a point that stays lists in `replaces` the archives that are to go, also those of other
//! points. From then on it is settled that they go. The manifests of those points are removed first, then
//! the archives, and last the list: no point is ever seen without its archives, and no archive is left
//! that nothing can find. Who is killed on the way leaves the rest to the next run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::listed::WholeList;
use super::manifest::Manifest;
use super::names::{DiskId, DiskName, DomainName};
use super::point::PointId;
use super::{Catalog, Clearance, DomainLock, Repository};
use crate::base::cancel::Cancel;
use crate::base::clock;
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
    /// Says of points that they are to go, with their archives: from now on [`Self::remove_replaced`]
    /// removes them. Their newest sibling that stays carries the list.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: another point needs one of them, or none stays. Others: a manifest can't be
    /// read or replaced.
    pub fn condemn(
        &self,
        lock: &DomainLock,
        points: &BTreeSet<PointId>,
        cancel: &Cancel,
    ) -> Result<()> {
        let domain = lock.domain();
        let (mut carrier, mut archives) = (None, Vec::new());
        let list = self.catalog().whole_list(domain, cancel)?;
        list.check_has(self, points.iter().copied(), cancel)?;
        for (point, manifest) in list.manifests() {
            let point = *point;
            let manifest = manifest.as_ref().map_err(|error| {
                error
                    .clone()
                    .within(format!("what point {point} of {domain} builds on can't be told"))
            })?;
            if points.contains(&point) {
                archives.extend(manifest.archives());
                continue;
            }
            if let Some(parent) = parents(manifest).find(|parent| points.contains(parent)) {
                let text = format!("point {point} of {domain} needs point {parent}");
                return Err(Error::new(ErrorKind::Usage, text));
            }
            carrier = Some(point);
        }
        let newest = archives.iter().map(|archive| archive.point).max();
        let carrier = carrier.filter(|carrier| Some(*carrier) > newest).ok_or_else(|| {
            let text = format!("no later point of {domain} stays");
            Error::new(ErrorKind::Usage, text)
        })?;
        let (mut manifest, version) = self.versioned(domain, carrier)?;
        archives.retain(|archive| !manifest.replaces.contains(archive));
        manifest.replaces.extend(archives);
        self.replace(lock, version, &manifest).map(drop)
    }

    /// Removes everything that manifests of a domain list in `replaces`: what merges have replaced, and
    /// points that went with it.
    ///
    /// # Errors
    /// A manifest can't be read or replaced, or a file not be removed: the next run goes on. As
    /// `Catalog::check_listed`.
    pub fn remove_replaced(
        &self,
        lock: &DomainLock,
        _clearance: &Clearance,
        cancel: &Cancel,
    ) -> Result<Removed> {
        let (catalog, domain) = (self.catalog(), lock.domain());
        let (now, mut removed) = (clock::now()?, Removed::default());
        let lists =
            |it: &Result<Manifest>| it.as_ref().is_ok_and(|carrier| !carrier.replaces.is_empty());
        if !catalog.manifests(domain)?.iter().any(|(_, manifest)| lists(manifest)) {
            return Ok(removed);
        }
        let list = catalog.whole_list(domain, cancel)?;
        for (_, carrier) in list.manifests().iter().filter(|(_, manifest)| lists(manifest)) {
            let Ok(carrier) = carrier else { continue };
            list.check_has(self, carrier.replaces.iter().map(|it| it.point), cancel)?;
            self.check_replaced(carrier)?;
            removed.add(self.remove_listed(lock, carrier, &list, now)?);
        }
        Ok(removed)
    }

    /// Fails unless what has replaced archives of a point is there.
    fn check_replaced(&self, carrier: &Manifest) -> Result<()> {
        for replaced in carrier.replaces.iter().filter(|it| it.point == carrier.point) {
            let Some(record) = carrier.disk(&replaced.disk) else { continue };
            let disk = DiskId { domain: carrier.domain.clone(), disk: replaced.disk.clone() };
            let archive = self.archive(&disk, &record.archive);
            if !self.is_there(&archive)? {
                let path = self.describe(&archive);
                let text =
                    format!("the archive {} is missing: what it replaced stays", path.display());
                return Err(Error::new(ErrorKind::Damaged, text).advise(
                    "bring it back from another copy of the repository: qdelta repair --from REPO2",
                ));
            }
        }
        Ok(())
    }

    /// Removes what a manifest lists: the manifests first, the newest of them before all that it builds on;
    /// then the archives, which the list still names.
    fn remove_listed(
        &self,
        lock: &DomainLock,
        carrier: &Manifest,
        list: &WholeList,
        now: Timestamp,
    ) -> Result<Removed> {
        let (domain, manifests) = (lock.domain(), list.manifests());
        let mut points: BTreeSet<PointId> = carrier.replaces.iter().map(|it| it.point).collect();
        points.remove(&carrier.point);
        // What was pinned since stays, and what a point that stays builds on. Parents are older: the
        // newest come first.
        for (point, manifest) in manifests.iter().rev() {
            let Ok(manifest) = manifest else { continue };
            if manifest.is_pinned(now) {
                points.remove(point);
            }
            if !points.contains(point) {
                parents(manifest).for_each(|parent| {
                    points.remove(&parent);
                });
            }
        }
        let names: Vec<String> =
            points.iter().rev().map(|point| Manifest::file_name(*point)).collect();
        // Also without a name: that this very manifest stands here, must be durable before anything goes.
        let count = self.remove_for_good(lock, list, &self.points_dir(domain), &names)?;
        self.forget_points(domain, &points);
        let mut removed = Removed { points: count, ..Removed::default() };
        let is_there = |point| manifests.iter().any(|(it, _)| *it == point);
        let mut folders: BTreeMap<&DiskName, Vec<String>> = BTreeMap::new();
        for replaced in &carrier.replaces {
            let stays = replaced.point != carrier.point
                && !points.contains(&replaced.point)
                && is_there(replaced.point);
            if !stays {
                folders.entry(&replaced.disk).or_default().push(replaced.archive.clone());
            }
        }
        for (disk, archives) in folders {
            let folder = self.disk_dir(&DiskId { domain: domain.clone(), disk: disk.clone() });
            for archive in &archives {
                let entry = self.storage().entry(&folder.join(archive))?;
                removed.bytes += entry.and_then(|entry| entry.len).unwrap_or(0);
            }
            removed.archives += self.remove_for_good(lock, list, &folder, &archives)?;
        }
        let (mut manifest, version) = self.versioned(domain, carrier.point)?;
        manifest.replaces.clear();
        self.replace(lock, version, &manifest)?;
        Ok(removed)
    }
}

/// The points of the same domain that a point builds on.
fn parents(manifest: &Manifest) -> impl Iterator<Item = PointId> + '_ {
    let parents = manifest.disks.iter().filter_map(|record| record.parent.as_ref());
    parents.filter(|parent| parent.domain == manifest.domain).map(|parent| parent.point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::archive::Kind;
    use crate::vault::repository::Pin;
    use crate::vault::repository::storage::Wait;
    use crate::vault::repository::tests::{back_up, disk, fresh};

    /// Two chains, the first of which is to go.
    #[test]
    fn points_that_are_condemned_go_with_their_archives() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let make = |kind| back_up(&repository, &id, kind).unwrap();
        let old = [Kind::Full, Kind::Incremental, Kind::Incremental].map(make);
        let new = [Kind::Full, Kind::Incremental].map(make);
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let condemn = |points: &[PointId]| {
            let points = points.iter().copied().collect();
            repository.condemn(&lock, &points, &Cancel::default()).map_err(|error| error.kind())
        };
        let ids = || -> Vec<PointId> {
            repository.catalog().points(&id).unwrap().points.iter().map(|point| point.id).collect()
        };
        assert_eq!(condemn(&old[..2]), Err(ErrorKind::Usage), "the third one needs them");
        assert_eq!(condemn(&new[1..]), Err(ErrorKind::Usage), "nothing later stays");
        condemn(&old).unwrap();
        condemn(&old).unwrap();
        assert_eq!(ids().len(), 5, "nothing has gone yet");
        // Somebody wants the second one after all: it stays, and so does what it builds on.
        let at = clock::now().unwrap();
        let pin = Pin { holder: None, at, reason: None, until: None };
        repository
            .mark(&lock, old[1], |marks| {
                marks.pin(pin);
                Ok(())
            })
            .unwrap();
        let clearance = repository.clear(&lock, Wait::UNHEARD).unwrap().unwrap();
        let removed = repository.remove_replaced(&lock, &clearance, &Cancel::default()).unwrap();
        assert_eq!((removed.points, removed.archives, removed.bytes), (1, 1, 4));
        assert_eq!(ids(), [old[0], old[1], new[0], new[1]]);
        let catalog = repository.catalog();
        let points = catalog.points(&id).unwrap().points;
        assert!(points.iter().all(|point| catalog.chain_of(point).is_ok()));
        assert!(catalog.strays(&id).unwrap().is_empty());
    }
}
