//! Archives as sets of versions of blocks, and merges of them, in memory.

use std::collections::{BTreeMap, BTreeSet};

use super::{Archive, Limits, Member, Merge, Plan, plan};
use crate::base::error::Result;
use crate::flows::merge::{Estimate, Step};
use crate::vault::repository::{DiskName, DomainName, PointId};

/// The archive of a disk: versions of blocks, and the point that it was made against.
#[derive(Debug, Clone)]
pub struct Stored {
    pub parent: Option<PointId>,
    pub blocks: BTreeMap<u32, u64>,
    pub size: u64,
}

/// What an archive of these blocks takes: a header, and frames of 16 blocks at most that lie side by
/// side. A frame compresses worse the fewer blocks it has.
pub fn size(blocks: impl Iterator<Item = u32>) -> u64 {
    const HEADER: u64 = 2000;
    let (mut bytes, mut frame) = (HEADER, None);
    for block in blocks {
        bytes += 30_032 + u64::from(frame != Some(block / 16)) * 3_000;
        frame = Some(block / 16);
    }
    bytes
}

impl Stored {
    fn new(parent: Option<PointId>, blocks: BTreeMap<u32, u64>) -> Self {
        let size = size(blocks.keys().copied());
        Self { parent, blocks, size }
    }
}

/// The archives of a guest.
#[derive(Debug, Clone)]
pub struct Guest {
    pub domain: DomainName,
    pub points: BTreeMap<PointId, BTreeMap<DiskName, Stored>>,
    /// The points that nobody needs.
    pub gone: BTreeSet<PointId>,
    /// Bytes that backups have written.
    pub backed_up: u64,
    /// Bytes that merges have written.
    pub merged: u64,
}

impl Guest {
    pub fn new() -> Self {
        Self {
            domain: "web".parse().unwrap(),
            points: BTreeMap::new(),
            gone: BTreeSet::new(),
            backed_up: 0,
            merged: 0,
        }
    }

    pub fn back_up(
        &mut self,
        point: PointId,
        disk: &str,
        parent: Option<PointId>,
        blocks: BTreeMap<u32, u64>,
    ) {
        let stored = Stored::new(parent, blocks);
        self.backed_up += stored.size;
        self.points.entry(point).or_default().insert(disk.parse().unwrap(), stored);
    }

    /// What a disk holds at a point: the newest version of each block.
    pub fn content(&self, point: PointId, disk: &DiskName) -> BTreeMap<u32, u64> {
        let (mut content, mut next) = (BTreeMap::new(), Some(point));
        while let Some(point) = next {
            let stored = &self.points[&point][disk];
            for (&block, &version) in &stored.blocks {
                content.entry(block).or_insert(version);
            }
            next = stored.parent;
        }
        content
    }

    /// What every point holds that somebody needs.
    pub fn needed(&self) -> BTreeMap<(PointId, DiskName), BTreeMap<u32, u64>> {
        let needed = self.points.iter().filter(|(point, _)| !self.gone.contains(point));
        let disks = needed.flat_map(|(point, disks)| disks.keys().map(move |disk| (*point, disk)));
        disks.map(|(point, disk)| ((point, disk.clone()), self.content(point, disk))).collect()
    }

    pub fn bytes(&self) -> u64 {
        self.points.values().flat_map(BTreeMap::values).map(|stored| stored.size).sum()
    }

    pub fn members(&self) -> Vec<Member> {
        let archive = |(disk, stored): (&DiskName, &Stored)| Archive {
            disk: disk.clone(),
            parent: stored.parent,
            bytes: stored.size,
        };
        let member = |(point, disks): (&PointId, &BTreeMap<DiskName, Stored>)| Member {
            point: *point,
            gone: self.gone.contains(point),
            archives: disks.iter().map(archive).collect(),
        };
        self.points.iter().map(member).collect()
    }

    pub fn plan(&self, limits: &Limits) -> Result<Plan> {
        plan(&self.domain, &self.members(), limits, |step| Ok(self.estimate(step)))
    }

    fn estimate(&self, step: &Step) -> Estimate {
        let mut costs = Estimate::default();
        for path in &step.disks {
            let stored = path.points.iter().map(|point| &self.points[point][&path.disk]);
            let before: u64 = stored.map(|stored| stored.size).sum();
            let writes = self.merge(&path.points, &path.disk).size;
            costs.reads += writes;
            costs.writes += writes;
            costs.frees += before.saturating_sub(writes);
        }
        costs
    }

    fn merge(&self, points: &[PointId], disk: &DiskName) -> Stored {
        let mut blocks = BTreeMap::new();
        let mut below: Option<PointId> = None;
        for point in points {
            let stored = &self.points[point][disk];
            assert!(below.is_none_or(|below| stored.parent == Some(below)), "{points:?}");
            blocks.extend(&stored.blocks);
            below = Some(*point);
        }
        Stored::new(self.points[&points[0]][disk].parent, blocks)
    }

    /// Does what was planned, with what the executor checks: nothing is removed that something builds on.
    pub fn apply(&mut self, plan: &Plan) {
        for drop in &plan.drops {
            let before = self.bytes();
            drop.points.iter().for_each(|&point| self.remove(point));
            assert_eq!(before - self.bytes(), drop.bytes);
        }
        for merge in &plan.merges {
            self.apply_merge(merge);
        }
    }

    fn apply_merge(&mut self, merge: &Merge) {
        let before = self.bytes();
        let mut written = 0;
        for step in &merge.steps {
            for path in &step.disks {
                assert_eq!(path.points.last(), Some(&step.into));
                let stored = self.merge(&path.points, &path.disk);
                written += stored.size;
                self.points.get_mut(&step.into).unwrap().insert(path.disk.clone(), stored);
            }
            step.absorbed.iter().rev().for_each(|&point| self.remove(point));
        }
        assert_eq!(written, merge.costs.writes);
        assert_eq!(before - self.bytes(), merge.costs.frees, "{merge:?}");
        self.merged += written;
    }

    fn remove(&mut self, point: PointId) {
        assert!(self.gone.remove(&point), "point {point} is needed, or gone already");
        self.points.remove(&point);
        let mut left = self.points.values().flat_map(BTreeMap::values);
        assert!(left.all(|stored| stored.parent != Some(point)), "something builds on {point}");
    }
}
