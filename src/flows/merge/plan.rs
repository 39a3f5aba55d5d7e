//! Which archives become one: a run of points of a guest that go, and the point that takes their place.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::repository::{
    Catalog, DiskId, DiskName, DiskRecord, DomainName, Manifest, PointId,
};

/// Points of a guest that become part of a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The guest.
    pub domain: DomainName,
    /// The point that takes their place.
    pub into: PointId,
    /// The points that go, ascending. None if only archives are to be merged.
    pub absorbed: Vec<PointId>,
    /// The disks of the point whose archives change.
    pub disks: Vec<DiskPath>,
}

/// The archives of a disk that become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPath {
    /// The disk.
    pub disk: DiskName,
    /// Their points, the oldest first; the last one is the point that takes the place of all.
    pub points: Vec<PointId>,
}

/// The manifests of a guest, and what builds on what.
pub struct Family {
    domain: DomainName,
    manifests: BTreeMap<PointId, Manifest>,
    /// By point and disk: the points that build on it.
    children: BTreeMap<(PointId, DiskName), Vec<PointId>>,
}

impl Family {
    /// Reads all manifests of a guest. Points that are to be removed are none any more.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: one of them can't be read, or an archive has none: what they build on is
    /// not known.
    pub fn read(catalog: &Catalog, domain: &DomainName) -> Result<Self> {
        let mut family =
            Self { domain: domain.clone(), manifests: BTreeMap::new(), children: BTreeMap::new() };
        let (mut disks, mut going) = (BTreeSet::new(), BTreeSet::new());
        let now = clock::now()?;
        for (point, manifest) in catalog.manifests(domain)?.into_iter().rev() {
            let manifest = manifest.map_err(|error| {
                error.within(format!("what point {point} of {domain} builds on can't be told"))
            })?;
            // Whoever lists a point is later.
            let listed = manifest.replaces.iter().map(|replaced| replaced.point);
            going.extend(listed.filter(|earlier| *earlier != point));
            if going.contains(&point) && !manifest.is_pinned(now) {
                continue;
            }
            for record in &manifest.disks {
                disks.insert(record.disk.clone());
                if let Some(parent) = parent_of(domain, record) {
                    let of_disk = (parent, record.disk.clone());
                    family.children.entry(of_disk).or_default().push(point);
                }
            }
            family.manifests.insert(point, manifest);
        }
        // Also those of which no manifest is left.
        disks.extend(catalog.disks_of(domain)?.into_iter().map(|id| id.disk));
        for disk in disks {
            let id = DiskId { domain: domain.clone(), disk };
            if let Some((archive, _)) = catalog.strays(&id)?.first() {
                let path = catalog.repository().describe(archive);
                let text = format!("no manifest names the archive {}", path.display());
                let folder = path.ancestors().nth(2).unwrap_or(&path);
                return Err(Error::new(ErrorKind::Damaged, text)
                    .within("what builds on the points that would go can't be told")
                    .advise(format!(
                        "bring its manifest back, or move the archive out of the guest's folder, {}",
                        folder.display()
                    )));
            }
        }
        Ok(family)
    }

    /// All manifests, the oldest first.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.values()
    }

    /// The manifest of a point.
    pub fn manifest(&self, point: PointId) -> Option<&Manifest> {
        self.manifests.get(&point)
    }

    /// The points from `from` on that `into` builds on with its disks, or with one of them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it does not build on `from`.
    pub fn between(
        &self,
        from: PointId,
        into: PointId,
        disk: Option<&DiskName>,
    ) -> Result<BTreeSet<PointId>> {
        let records = self.existing(into)?.disks.iter();
        let mut found = BTreeSet::new();
        for record in records.filter(|record| disk.is_none_or(|disk| record.disk == *disk)) {
            let mut next = parent_of(&self.domain, record);
            while let Some(point) = next.filter(|point| *point >= from) {
                found.insert(point);
                let record = self.manifest(point).and_then(|it| it.disk(&record.disk));
                next = record.and_then(|record| parent_of(&self.domain, record));
            }
        }
        if found.contains(&from) {
            return Ok(found);
        }
        let text = format!("point {into} of {} does not build on point {from}", self.domain);
        Err(Error::new(ErrorKind::Usage, text)
            .advise("qdelta points shows which point each one builds on"))
    }

    /// The merge of these points into `into`. With none, the whole chains of its disks become fulls, and
    /// no point goes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if something else needs one of the points.
    pub fn step(&self, absorbed: &BTreeSet<PointId>, into: PointId) -> Result<Step> {
        let mut disks = Vec::new();
        let mut on_path = BTreeSet::new();
        for record in &self.existing(into)?.disks {
            let mut points = vec![into];
            let mut next = parent_of(&self.domain, record);
            while let Some(point) =
                next.filter(|point| absorbed.is_empty() || absorbed.contains(point))
            {
                let record = self.existing(point)?.disk(&record.disk);
                on_path.insert((point, record.map(|record| record.disk.clone())));
                points.push(point);
                next = record.and_then(|record| parent_of(&self.domain, record));
            }
            points.reverse();
            if points.len() > 1 {
                disks.push(DiskPath { disk: record.disk.clone(), points });
            }
        }
        for &point in absorbed {
            let manifest = self.existing(point)?;
            for record in &manifest.disks {
                let of_disk = (point, record.disk.clone());
                let mut needed = self.children.get(&of_disk).into_iter().flatten();
                let is_path = on_path.contains(&(point, Some(record.disk.clone())));
                let is_other =
                    |child: &&PointId| !(absorbed.contains(*child) || is_path && **child == into);
                if let Some(child) = needed.find(is_other) {
                    let disk = &record.disk;
                    let text =
                        format!("point {point} can't go: disk {disk} of point {child} needs it");
                    return Err(Error::new(ErrorKind::Usage, text).advise(
                        "several points build on it: merge a range that ends before it, or \
                                 begins behind it",
                    ));
                }
            }
        }
        let absorbed = absorbed.iter().copied().collect();
        Ok(Step { domain: self.domain.clone(), into, absorbed, disks })
    }

    /// Fails if one of the points is pinned.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if one is.
    pub fn check_pins(&self, points: &BTreeSet<PointId>, now: Timestamp) -> Result<()> {
        let is_pinned = |point: &&PointId| {
            self.manifest(**point).is_some_and(|manifest| manifest.is_pinned(now))
        };
        let Some(pinned) = points.iter().find(is_pinned) else { return Ok(()) };
        let text = format!("point {pinned} of {} is pinned, so it stays", self.domain);
        let pins = self.manifest(*pinned).map(|manifest| manifest.pins.as_slice());
        let holder = pins.unwrap_or_default().iter().find(|pin| pin.holds(now));
        let of = holder.and_then(|pin| pin.holder.as_ref());
        let of = of.map_or_else(String::new, |holder| format!(" --holder {holder}"));
        let advice = format!("qdelta unpin {}@{pinned}{of} takes the pin away", self.domain);
        Err(Error::new(ErrorKind::Usage, text).advise(advice))
    }

    fn existing(&self, point: PointId) -> Result<&Manifest> {
        self.manifest(point).ok_or_else(|| {
            let text = format!("{} has no point {point}", self.domain);
            Error::new(ErrorKind::NotFound, text).advise("qdelta points lists the points")
        })
    }
}

/// The point of the same disk that a record's archive was made against.
fn parent_of(domain: &DomainName, record: &DiskRecord) -> Option<PointId> {
    let parent = record.parent.as_ref()?;
    (parent.domain == *domain && parent.disk == record.disk).then_some(parent.point)
}
