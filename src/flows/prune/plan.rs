//! What becomes of the archives of points that are gone: which are dropped, which become part of a later
//! point, which stay for now. No I/O: what a merge costs is asked for.
//!
//! The archives of a disk are a tree, each child made against its parent. A point that is gone and that
//! nothing builds on is dropped. One that a single point builds on can become part of that one. One that
//! several points build on stays, as if it were not gone.
//!
//! **One rule decides about merging: what it frees must be a share of what it writes.** Every byte that a
//! merge frees was written before and is freed once, so all merges together write no more than 1/share of
//! what backups wrote. And what is not merged holds less than a share of its size that nobody needs. The
//! rule is the same at the base of a chain and in its middle.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::merge::{DiskPath, Estimate, Step};
use crate::vault::repository::{DiskName, DomainName, PointId};

/// A point of a guest, as far as its archives go.
#[derive(Debug, Clone)]
pub struct Member {
    /// The point.
    pub point: PointId,
    /// Nobody needs it any more: its archives may go.
    pub gone: bool,
    /// Its archives.
    pub archives: Vec<Archive>,
}

/// The archive of a disk.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The disk.
    pub disk: DiskName,
    /// The point of the same disk that it was made against; none for a full.
    pub parent: Option<PointId>,
    /// Its length.
    pub bytes: u64,
}

/// What is worth doing, and what there is room for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// How many percent of what a merge writes it must free.
    pub share: u8,
    /// Bytes that can be written; none if nobody knows.
    pub free: Option<u64>,
    /// Stop when so many bytes are free, and take the oldest first.
    pub until_free: Option<u64>,
}

/// What is to be done for a guest, in this order, and what is not.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Points that nothing builds on. They go first.
    pub drops: Vec<Drop>,
    /// What is merged, what needs least room first.
    pub merges: Vec<Merge>,
    /// Points that are gone and stay all the same.
    pub stays: Vec<Stays>,
}

/// Points that go without anything being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    /// The points, the newest first: parents come after their children.
    pub points: Vec<PointId>,
    /// Bytes of their archives.
    pub bytes: u64,
}

/// Points that become part of later ones, together: no one of them can go without the others.
#[derive(Debug, Clone)]
pub struct Merge {
    /// Nearly always one. Several where disks of one point build on different points.
    pub steps: Vec<Step>,
    /// What it costs and frees, all disks together.
    pub costs: Estimate,
    /// The oldest point of the chain that it is in: damage there concerns all merges of that chain.
    pub chain: PointId,
}

/// Points that are gone and stay all the same.
#[derive(Debug, Clone)]
pub struct Stays {
    /// The points, ascending.
    pub points: Vec<PointId>,
    /// Why.
    pub why: Why,
}

/// Why points that are gone stay.
#[derive(Debug, Clone)]
pub enum Why {
    /// A merge would free too little of what it writes.
    Share(Estimate),
    /// Several points build on one of their disks.
    Branches(Vec<PointId>),
    /// A merge has no room for what it writes.
    Room {
        /// What it costs and frees.
        costs: Estimate,
        /// Bytes that would be free then.
        free: u64,
    },
    /// As much as was asked for is free without them.
    Enough,
    /// What they are to become part of can't be read.
    Damaged(Error),
}

/// The points that nothing builds on. They can go whatever a merge costs.
pub fn leaves(domain: &DomainName, members: &[Member]) -> Vec<Drop> {
    let mut plan = Plan::default();
    Forest::grow(domain, members).drop_leaves(&mut plan, &mut Room { free: None, until: None });
    plan.drops
}

/// Plans for the points of a guest. `estimate` says what a step costs.
///
/// # Errors
/// What `estimate` says, if that is no damage: the plan was interrupted, or can't be made.
pub fn plan(
    domain: &DomainName,
    members: &[Member],
    limits: &Limits,
    estimate: impl FnMut(&Step) -> Result<Estimate>,
) -> Result<Plan> {
    let forest = Forest::grow(domain, members);
    let mut plan = Plan::default();
    let mut room = Room { free: limits.free, until: limits.until_free };
    forest.drop_leaves(&mut plan, &mut room);
    for point in forest.with(Role::Branches) {
        let why = Why::Branches(forest.builders(point));
        plan.stays.push(Stays { points: vec![point], why });
    }
    let merges = forest.weigh(limits, &mut plan, estimate)?;
    choose(merges, limits, &mut plan, &mut room);
    plan.stays.sort_by(|a, b| a.points.cmp(&b.points));
    Ok(plan)
}

/// Takes the merges that there is room for, in the order in which they are to be done.
fn choose(
    mut merges: Vec<(Vec<PointId>, Merge)>,
    limits: &Limits,
    plan: &mut Plan,
    room: &mut Room,
) {
    merges.sort_by_key(|(points, merge)| match limits.until_free {
        Some(_) => (0, points.first().copied()),
        None => (merge.costs.writes, points.first().copied()),
    });
    for (points, merge) in merges {
        let costs = merge.costs;
        let why = match room.free {
            _ if room.is_enough() => Why::Enough,
            Some(free) if free < room_for(costs.writes) => Why::Room { costs, free },
            _ => {
                room.gain(costs.frees);
                plan.merges.push(merge);
                continue;
            }
        };
        plan.stays.push(Stays { points, why });
    }
}

/// The room that writing so many bytes needs: an estimate may be a little too low, and a manifest and the
/// filesystem's own structures come on top.
pub fn room_for(writes: u64) -> u64 {
    const LEAST: u64 = 1 << 20;
    writes.saturating_add(writes / 64).saturating_add(LEAST)
}

/// Bytes that can be written, as far as they are known.
struct Room {
    free: Option<u64>,
    until: Option<u64>,
}

impl Room {
    fn gain(&mut self, bytes: u64) {
        self.free = self.free.map(|free| free.saturating_add(bytes));
    }

    /// Whether as much is free as was asked for.
    fn is_enough(&self) -> bool {
        self.until.zip(self.free).is_some_and(|(until, free)| free >= until)
    }
}

/// What becomes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is needed.
    Needed,
    /// It is gone, and nothing builds on it.
    Leaf,
    /// It is gone, and several points build on one of its disks.
    Branches,
    /// It is gone, and can become part of what builds on it.
    Absorbed,
}

/// The points of a guest, and what builds on what.
struct Forest<'a> {
    domain: &'a DomainName,
    members: BTreeMap<PointId, &'a Member>,
    roles: BTreeMap<PointId, Role>,
    /// By point: what builds on it and is no leaf.
    children: BTreeMap<PointId, Vec<Child<'a>>>,
}

/// A point that builds on another one with one of its disks.
struct Child<'a> {
    disk: &'a DiskName,
    point: PointId,
    /// A point that stays needs it, perhaps by way of others. A disk that was removed from the guest is
    /// not needed any more, though other disks of the same point may be.
    needed: bool,
}

impl<'a> Forest<'a> {
    fn grow(domain: &'a DomainName, members: &'a [Member]) -> Self {
        let members: BTreeMap<_, _> = members.iter().map(|it| (it.point, it)).collect();
        let (roles, children) = (BTreeMap::new(), BTreeMap::new());
        let mut forest = Self { domain, members: members.clone(), roles, children };
        // Children are newer than their parents.
        for (point, member) in members.into_iter().rev() {
            let role = forest.judge(member);
            forest.roles.insert(point, role);
            if role != Role::Leaf {
                for (disk, parent) in forest.parents(point).collect::<Vec<_>>() {
                    let needed =
                        role != Role::Absorbed || forest.needs(point, disk).next().is_some();
                    let children = forest.children.entry(parent).or_default();
                    children.push(Child { disk, point, needed });
                }
            }
        }
        forest
    }

    /// What becomes of a point whose children are known.
    fn judge(&self, member: &Member) -> Role {
        let branches = |archive: &Archive| self.needs(member.point, &archive.disk).nth(1).is_some();
        match member.gone {
            false => Role::Needed,
            true if !self.children.contains_key(&member.point) => Role::Leaf,
            true if member.archives.iter().any(branches) => Role::Branches,
            true => Role::Absorbed,
        }
    }

    fn children(&self, point: PointId) -> impl Iterator<Item = &Child<'a>> {
        self.children.get(&point).into_iter().flatten()
    }

    /// The points for whose sake an archive is needed.
    fn needs(&self, point: PointId, disk: &DiskName) -> impl Iterator<Item = PointId> {
        let children = self.children(point).filter(|it| it.needed);
        children.filter(move |it| it.disk == disk).map(|it| it.point)
    }

    fn role(&self, point: PointId) -> Role {
        self.roles.get(&point).copied().unwrap_or(Role::Needed)
    }

    /// The points of a role, ascending.
    fn with(&self, role: Role) -> impl Iterator<Item = PointId> {
        self.roles.iter().filter(move |it| *it.1 == role).map(|it| *it.0)
    }

    fn archives(&self, point: PointId) -> &'a [Archive] {
        self.members.get(&point).map_or(&[], |member| &member.archives)
    }

    /// The points that the disks of a point build on, as far as they are there.
    fn parents(&self, point: PointId) -> impl Iterator<Item = (&'a DiskName, PointId)> {
        let parent = |archive: &'a Archive| Some((&archive.disk, archive.parent?));
        let parents = self.archives(point).iter().filter_map(parent);
        parents.filter(|(_, parent)| self.members.contains_key(parent))
    }

    /// The points that need one, ascending.
    fn builders(&self, point: PointId) -> Vec<PointId> {
        let points = self.children(point).filter(|it| it.needed).map(|it| it.point);
        points.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Drops what nothing builds on, tree by tree, the oldest first.
    fn drop_leaves(&self, plan: &mut Plan, room: &mut Room) {
        let mut trees = Groups::default();
        for leaf in self.with(Role::Leaf) {
            trees.add(leaf);
            for (_, parent) in self.parents(leaf) {
                if self.role(parent) == Role::Leaf {
                    trees.join(leaf, parent);
                }
            }
        }
        for mut points in trees.all() {
            if room.is_enough() {
                plan.stays.push(Stays { points, why: Why::Enough });
                continue;
            }
            let archives = points.iter().flat_map(|&point| self.archives(point));
            let bytes = archives.map(|archive| archive.bytes).sum();
            room.gain(bytes);
            points.reverse();
            plan.drops.push(Drop { points, bytes });
        }
    }

    /// Every merge that is worth its while, with the points that it absorbs.
    fn weigh(
        &self,
        limits: &Limits,
        plan: &mut Plan,
        mut estimate: impl FnMut(&Step) -> Result<Estimate>,
    ) -> Result<Vec<(Vec<PointId>, Merge)>> {
        let mut chains = Groups::default();
        for &point in self.members.keys() {
            self.parents(point).for_each(|(_, parent)| chains.join(point, parent));
        }
        let mut merges = Vec::new();
        for run in self.runs() {
            let is_absorbed = |point: &PointId| self.role(*point) == Role::Absorbed;
            let (points, ends): (Vec<_>, Vec<_>) = run.into_iter().partition(is_absorbed);
            let weighed = self.steps(&points, &ends).and_then(|steps| {
                let mut costs = self.alone(&points, &steps);
                for step in &steps {
                    costs = costs.and(estimate(step)?);
                }
                Ok((steps, costs))
            });
            let why = match weighed {
                Ok((steps, costs)) if is_worth_it(&costs, limits) => {
                    let Some(chain) = points.first().map(|it| chains.first(*it)) else { continue };
                    merges.push((points, Merge { steps, costs, chain }));
                    continue;
                }
                Ok((_, costs)) => Why::Share(costs),
                Err(error) if is_damage(&error) => Why::Damaged(error),
                Err(error) => return Err(error),
            };
            plan.stays.push(Stays { points, why });
        }
        Ok(merges)
    }

    /// The points that become part of others, with those that they become part of: in groups that hang
    /// together.
    fn runs(&self) -> Vec<Vec<PointId>> {
        let mut runs = Groups::default();
        for (&point, &role) in &self.roles {
            for (_, parent) in self.parents(point).filter(|_| role != Role::Leaf) {
                if self.role(parent) == Role::Absorbed {
                    runs.join(point, parent);
                }
            }
        }
        runs.all()
    }

    /// The steps in which these points become part of the `ends`: one for each of those.
    fn steps(&self, absorbed: &[PointId], ends: &[PointId]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for &into in ends {
            let mut disks = Vec::new();
            for archive in self.archives(into) {
                let points = self.path(into, archive)?;
                if points.len() > 1 {
                    disks.push(DiskPath { disk: archive.disk.clone(), points });
                }
            }
            steps.push(Step { domain: self.domain.clone(), into, absorbed: Vec::new(), disks });
        }
        // Only when the last of them is done, nothing builds on the points any more.
        if let Some(last) = steps.last_mut() {
            last.absorbed = absorbed.to_vec();
        }
        Ok(steps)
    }

    /// The points whose archives of a disk become one with that of `into`, the oldest first.
    fn path(&self, into: PointId, archive: &Archive) -> Result<Vec<PointId>> {
        let mut points = vec![into];
        let (mut child, mut next) = (into, archive.parent);
        while let Some(parent) = next {
            let below = self.archives(parent).iter().find(|it| it.disk == archive.disk);
            let below = below.ok_or_else(|| {
                let text = format!(
                    "disk {} of point {child} of {} builds on point {parent}, which is missing",
                    archive.disk, self.domain
                );
                Error::new(ErrorKind::Damaged, text)
            })?;
            if self.role(parent) != Role::Absorbed {
                break;
            }
            points.push(parent);
            (child, next) = (parent, below.parent);
        }
        points.reverse();
        Ok(points)
    }

    /// What goes with these points though no step merges it: disks that nothing builds on.
    fn alone(&self, absorbed: &[PointId], steps: &[Step]) -> Estimate {
        let mut paths: BTreeMap<&DiskName, BTreeSet<PointId>> = BTreeMap::new();
        for path in steps.iter().flat_map(|step| &step.disks) {
            paths.entry(&path.disk).or_default().extend(&path.points);
        }
        let mut costs = Estimate::default();
        for &point in absorbed {
            let is_merged = |archive: &&Archive| {
                paths.get(&archive.disk).is_some_and(|points| points.contains(&point))
            };
            let alone = self.archives(point).iter().filter(|archive| !is_merged(archive));
            costs.frees += alone.map(|archive| archive.bytes).sum::<u64>();
        }
        costs
    }
}

/// Whether a merge frees enough of what it writes.
fn is_worth_it(costs: &Estimate, limits: &Limits) -> bool {
    let (frees, writes) = (u128::from(costs.frees), u128::from(costs.writes));
    match limits.until_free {
        Some(_) => frees > 0,
        None => frees * 100 >= writes * u128::from(limits.share),
    }
}

/// Whether an error tells of the archives, and not of this run.
pub fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Io)
}

/// Points that hang together.
#[derive(Default)]
struct Groups(BTreeMap<PointId, PointId>);

impl Groups {
    fn add(&mut self, point: PointId) {
        self.0.entry(point).or_insert(point);
    }

    /// The oldest point that hangs together with this one.
    fn first(&mut self, mut point: PointId) -> PointId {
        while let Some(&next) = self.0.get(&point).filter(|next| **next != point) {
            // Each look shortens the way for the next one.
            let after = self.0.get(&next).copied().unwrap_or(next);
            self.0.insert(point, after);
            point = after;
        }
        point
    }

    fn join(&mut self, a: PointId, b: PointId) {
        self.add(a);
        self.add(b);
        let (a, b) = (self.first(a), self.first(b));
        self.0.insert(a.max(b), a.min(b));
    }

    /// The groups, the one with the oldest point first, each ascending.
    fn all(mut self) -> Vec<Vec<PointId>> {
        let mut groups: BTreeMap<PointId, Vec<PointId>> = BTreeMap::new();
        for point in self.0.keys().copied().collect::<Vec<_>>() {
            groups.entry(self.first(point)).or_default().push(point);
        }
        groups.into_values().collect()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod years;
