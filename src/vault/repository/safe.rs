//! Until when points are safe: a storage that locks files refuses to remove them, whoever asks.
//!
//! What is written is locked at once, for the period that `qdelta.toml` says. Each backup and each prune locks
//! anew what belongs to points that are not removed: what their chains need stays locked as long as they do.
//! The files of points that the rules of retention no longer keep are not locked anew, so those can go when
//! their locks end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::config::CONFIG;
use super::manifest::Manifest;
use super::names::DomainName;
use super::storage::Name;
use super::{Catalog, DiskId, Point, PointId, Repository};
use crate::base::error::Result;
use crate::base::period::Period;

/// A lock is made longer when so much of its time is over, as a share: one request for each file and night
/// would be more than backups take.
const OVER: i32 = 10;

impl Repository {
    /// For how long what is written is locked; none if it is not.
    pub fn lock_period(&self) -> Option<Period> {
        self.locked
    }

    /// Locks anew what the points of a domain need that are not removed; gives how many files were locked for
    /// longer than before.
    ///
    /// # Errors
    /// Something can't be read or locked: others may be.
    pub(crate) fn keep_safe(&self, domain: &DomainName) -> Result<u64> {
        let Some(period) = self.locked else { return Ok(0) };
        let now = self.storage.now()?;
        let until = period.after(now, &TimeZone::UTC);
        let enough = until - until.duration_since(now) / OVER;
        let catalog = self.catalog();
        let mut names = BTreeSet::from([Name::top().join(CONFIG)]);
        for (point, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) if manifest.removed.is_some() => {}
                Ok(manifest) => names.extend(self.files_of(&catalog, &manifest)),
                // Nobody knows what it needs. It may be mended.
                Err(_) => {
                    names.insert(self.points_dir(domain).join(&Manifest::file_name(point)));
                }
            }
        }
        let names: Vec<Name> = names.into_iter().collect();
        let keys = match &self.encryption {
            Some(encryption) => encryption.ring().extend_locks(until, enough)?,
            None => 0,
        };
        Ok(keys + self.storage.extend_locks(&names, until, enough)?)
    }

    /// Every file that it takes to restore the points that a manifest makes, itself included.
    fn files_of(&self, catalog: &Catalog, manifest: &Manifest) -> Vec<Name> {
        let mut names = self.own_files_of(manifest);
        for record in &manifest.disks {
            let disk = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            let selector = super::Selector::Id(manifest.point.to_string());
            if let Ok(point) = catalog.resolve(&disk, &selector) {
                names.extend(catalog.remains_of(&point).archives);
            }
        }
        names
    }

    /// The manifest, its archives, and the files of its machine.
    fn own_files_of(&self, manifest: &Manifest) -> Vec<Name> {
        let domain = &manifest.domain;
        let mut names = vec![self.points_dir(domain).join(&Manifest::file_name(manifest.point))];
        for record in &manifest.disks {
            let disk = DiskId { domain: domain.clone(), disk: record.disk.clone() };
            names.push(self.archive(&disk, &record.archive));
        }
        let files = manifest.machine.iter().flat_map(|machine| &machine.files);
        names.extend(files.map(|file| self.machine_file_name(domain, file)));
        names
    }

    /// Until when the archives of points are locked, of those of which one still is: they can't be removed
    /// before.
    ///
    /// # Errors
    /// The storage does not tell.
    pub(crate) fn locked_points<'a>(
        &self,
        manifests: impl Iterator<Item = &'a Manifest>,
    ) -> Result<BTreeMap<PointId, Timestamp>> {
        let mut locked = BTreeMap::new();
        if self.locked.is_none() {
            return Ok(locked);
        }
        let now = self.storage.now()?;
        for manifest in manifests {
            let names = self.own_files_of(manifest);
            let until = self.storage.locked_until(&names)?.into_iter().flatten().max();
            locked.extend(until.filter(|it| *it > now).map(|it| (manifest.point, it)));
        }
        Ok(locked)
    }
}

impl Catalog {
    /// Until when nobody can remove anything that the points of a disk need, of each for which that can be
    /// said.
    ///
    /// # Errors
    /// The storage does not tell.
    pub fn safe_until(&self, points: &[Point]) -> Result<BTreeMap<PointId, Timestamp>> {
        let of = |point: &Point| (point.disk.domain.clone(), point.id);
        self.all_safe_until(points.iter().map(of))
    }

    /// Until when nobody can remove anything that a point needs; none if anybody can.
    ///
    /// # Errors
    /// As [`Self::safe_until`].
    pub fn point_safe_until(
        &self,
        domain: &DomainName,
        point: PointId,
    ) -> Result<Option<Timestamp>> {
        let all = self.all_safe_until(std::iter::once((domain.clone(), point)))?;
        Ok(all.into_values().next())
    }

    fn all_safe_until(
        &self,
        points: impl Iterator<Item = (DomainName, PointId)>,
    ) -> Result<BTreeMap<PointId, Timestamp>> {
        let repository = self.repository();
        if repository.locked.is_none() {
            return Ok(BTreeMap::new());
        }
        let now = repository.storage.now()?;
        let mut needed: BTreeMap<PointId, BTreeSet<Name>> = BTreeMap::new();
        for (domain, point) in points {
            let domain = self.domain(&domain);
            if let Some(Ok(manifest)) = domain.manifest(point) {
                needed.insert(point, repository.files_of(self, manifest).into_iter().collect());
            }
        }
        let all: Vec<Name> =
            needed.values().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let times = repository.storage.locked_until(&all)?;
        let times: BTreeMap<&Name, Option<Timestamp>> = all.iter().zip(times).collect();
        let safe = needed.into_iter().filter_map(|(point, names)| {
            let mut first = Timestamp::MAX;
            for name in &names {
                first = first.min((*times.get(name)?)?);
            }
            (first.duration_since(now) > SignedDuration::ZERO).then_some((point, first))
        });
        Ok(safe.collect())
    }
}
