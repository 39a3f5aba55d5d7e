//! Pruning: what no rule keeps is marked as removed, and the data of points whose grace is over goes.
//!
//! `retain` says which points stay, `plan` what becomes of the archives of the others, `merge` writes.
//! Here is only the order: first all guests are marked, and what nothing builds on is dropped, which makes
//! room; then guest by guest what is worth it is merged. At every moment every point that stays is whole,
//! and whoever is killed leaves the rest to the next run.

mod plan;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::flows::anchors::inventory;
use crate::flows::merge::{Family, MergeOptions, Merger, tidy};
use crate::flows::report::{
    Failure, Fate, GuestPrune, MergeReport, PruneReport, Reclaimed, Spare, Spared,
};
use crate::flows::retain::{self, Clock, Policy};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DiskId, DomainLock, DomainName, Manifest, PointId, Repository,
};
use plan::{Archive, Limits, Member, Merge, Plan, Stays, Why, room_for};

/// How many points are dropped at a time: their archives stand in one manifest meanwhile.
const DROPPED_AT_ONCE: usize = 1000;

/// What to prune, and how.
#[derive(Debug, Clone)]
pub struct PruneRequest {
    /// The guests.
    pub domains: Vec<DomainName>,
    /// The rules, the grace, and the time.
    pub policy: Policy,
    /// IANA's name of the policy's zone.
    pub time_zone: String,
    /// How many percent of what a merge writes it must free.
    pub merge_share: u8,
    /// Go on until so many bytes are free, whatever a merge frees and whatever grace is left. What the
    /// rules keep stays.
    pub until_free: Option<u64>,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// How to merge.
    pub merging: MergeOptions,
}

/// How far pruning goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Points whose grace is over, where a merge frees its share.
    Usual,
    /// Points whose grace is over, whatever a merge frees.
    AnyShare,
    /// All that are removed.
    AnyGrace,
}

/// Prunes guests. What fails in one stops no other.
///
/// # Errors
/// As [`Policy::check`]; the work was interrupted: what was done before stays done.
pub fn run(
    repository: &Repository,
    request: &PruneRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<PruneReport> {
    request.policy.check()?;
    check_until_free(repository, request)?;
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let is_believed = OnceCell::new();
    let pruner = Pruner { repository, request, observer: &recorder, cancel, is_believed };
    let mut guests = Vec::new();
    for domain in &request.domains {
        cancel.check()?;
        guests.push(pruner.mark(domain)?);
    }
    match request.dry_run {
        true => pruner.rehearse_all(&mut guests)?,
        false => {
            let merged = pruner.merge_all(&mut guests);
            pruner.note(&guests);
            merged?;
        }
    }
    Ok(PruneReport {
        repository: repository.path().to_owned(),
        dry_run: request.dry_run,
        time_zone: request.time_zone.clone(),
        keep: request.policy.keep.clone(),
        bytes_free: pruner.free(),
        guests,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Fails if so much is to be free and nobody knows how much is.
fn check_until_free(repository: &Repository, request: &PruneRequest) -> Result<()> {
    if request.until_free.is_none() || repository.bytes_free().is_some() {
        return Ok(());
    }
    let text = format!("nobody knows how much is free in {}", repository.path().display());
    Err(Error::new(ErrorKind::Usage, text)
        .because("an object store does not say it")
        .advise(
            "leave --until-free out, and let more go: by fewer points in the rules, a shorter --grace, or \
             merge_share = 1 in qdelta.toml",
        ))
}

/// One run.
struct Pruner<'a> {
    repository: &'a Repository,
    request: &'a PruneRequest,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    /// Whether the points of all guests together speak for the clock, once somebody asked.
    is_believed: OnceCell<bool>,
}

impl Pruner<'_> {
    /// Bytes that can be written.
    fn free(&self) -> Option<u64> {
        self.repository.bytes_free()
    }

    /// Whether as much is free as was asked for, if anything was.
    fn is_enough(&self, free: Option<u64>) -> bool {
        self.request.until_free.is_none_or(|until| free.is_none_or(|free| free >= until))
    }

    /// How far to go, one after another.
    fn reaches(&self) -> &'static [Reach] {
        match self.request.until_free {
            None => &[Reach::Usual],
            Some(_) => &[Reach::Usual, Reach::AnyShare, Reach::AnyGrace],
        }
    }

    fn limits(&self, reach: Reach, free: Option<u64>) -> Limits {
        let until_free = self.request.until_free.filter(|_| reach > Reach::Usual);
        Limits { share: self.request.merge_share, free, until_free }
    }

    /// Marks what no rule keeps and drops what nothing builds on, or only says what that would be.
    fn mark(&self, domain: &DomainName) -> Result<GuestPrune> {
        let catalog = self.repository.catalog();
        catalog.warn_of_damage(&catalog.disks_of(domain).unwrap_or_default(), self.observer);
        let decided = match self.request.dry_run {
            true => self.decide(&catalog, domain),
            false => self.mark_and_drop(domain),
        };
        match decided {
            Ok(guest) => {
                self.warn_of_damaged(&guest);
                Ok(guest)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => Ok(GuestPrune {
                error: Some(Failure::from(&error)),
                ..GuestPrune::new(domain.clone(), false, Vec::new())
            }),
        }
    }

    /// Tells of points that are removed because they are damaged: no rule counts them.
    fn warn_of_damaged(&self, guest: &GuestPrune) {
        let removed = guest.points.iter().filter(|it| it.damaged && it.fate == Fate::Remove);
        for point in removed.map(|verdict| verdict.point) {
            let text = format!(
                "point {point} of {} is damaged: the rules don't count it, and it is removed",
                guest.domain
            );
            self.observer.warn(Warning::new(Code::DamagedArchive, text).advise(
                "qdelta verify tells what is wrong with it; qdelta repair --from REPO2 brings it back from another \
                 copy, and qdelta undelete lets it stay, as long as its grace is not over",
            ));
        }
    }

    /// What the rules say of a guest. Where its own points let the clock be doubted, it may be that the guest alone was
    /// not backed up for long: then those of all others decide.
    fn decide(&self, catalog: &Catalog, domain: &DomainName) -> Result<GuestPrune> {
        // A point that only seems to be damaged would go, or let a worse one stay in its place.
        catalog.check_archives_listed(domain)?;
        let policy = &self.request.policy;
        let guest = retain::decide(catalog, domain, policy)?;
        if !guest.clock_in_doubt || !self.is_believed()? {
            return Ok(guest);
        }
        retain::decide(catalog, domain, &Policy { clock: Clock::Trusted, ..policy.clone() })
    }

    /// Whether the points of all guests of the repository together speak for the clock.
    fn is_believed(&self) -> Result<bool> {
        if let Some(known) = self.is_believed.get() {
            return Ok(*known);
        }
        let catalog = self.repository.catalog();
        let mut made = Vec::new();
        for domain in self.repository.domains()? {
            made.extend(catalog.points_of(&domain).iter().map(|point| point.time()));
        }
        let Policy { zone, now, .. } = &self.request.policy;
        Ok(*self.is_believed.get_or_init(|| !retain::is_in_doubt(made, zone, *now)))
    }

    fn mark_and_drop(&self, domain: &DomainName) -> Result<GuestPrune> {
        let repository = self.repository;
        let lock = repository.lock(domain, self.wait())?;
        repository.catalog().check_listed(domain, self.cancel)?;
        // What a killed backup or merge has left.
        repository.clean(&lock)?;
        tidy(repository, &lock, self.observer, self.cancel)?;
        let mut guest = self.decide(&repository.catalog(), domain)?;
        retain::remove(repository, &lock, &guest, &self.request.policy)?;
        if guest.clock_in_doubt {
            return Ok(guest);
        }
        repository.keep_safe(domain, self.observer);
        let dropped = self.drop_leaves(&lock, &mut guest);
        self.settle(&mut guest, dropped)?;
        Ok(guest)
    }

    /// Drops the points whose grace is over and that nothing builds on.
    fn drop_leaves(&self, lock: &DomainLock, guest: &mut GuestPrune) -> Result<()> {
        let catalog = self.repository.catalog();
        let family = Family::read(&catalog, lock.domain())?;
        let locked = self.locked(&family, guest, Reach::Usual)?;
        let members = self.members(&family, guest, Reach::Usual, &locked);
        let drops = plan::leaves(lock.domain(), &members);
        self.remove(lock, (&catalog, &family), &drops, guest)
    }

    /// Removes points that nothing builds on.
    fn remove(
        &self,
        lock: &DomainLock,
        (catalog, family): (&Catalog, &Family),
        drops: &[plan::Drop],
        guest: &mut GuestPrune,
    ) -> Result<()> {
        // Of each tree the newest first: no point is left whose parent is gone.
        let points: Vec<PointId> = drops.iter().flat_map(|drop| drop.points.clone()).collect();
        for points in points.chunks(DROPPED_AT_ONCE) {
            self.cancel.check()?;
            let points: BTreeSet<PointId> = points.iter().copied().collect();
            self.forget_anchors((catalog, family), &points, guest)?;
            self.repository.condemn(lock, &points, self.cancel)?;
            guest.data.waiting |=
                tidy(self.repository, lock, self.observer, self.cancel)?.is_none();
            guest.data.dropped.extend(points);
        }
        guest.data.dropped.sort_unstable();
        guest.data.bytes_freed += drops.iter().map(|drop| drop.bytes).sum::<u64>();
        Ok(())
    }

    /// Puts a failure into a guest's result, unless the whole run is to end.
    fn settle(&self, guest: &mut GuestPrune, outcome: Result<()>) -> Result<()> {
        match outcome {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => guest.error = Some(Failure::from(&error)),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Merges what is worth it, guest by guest.
    fn merge_all(&self, guests: &mut [GuestPrune]) -> Result<()> {
        for &reach in self.reaches() {
            for guest in guests.iter_mut().filter(|it| it.error.is_none() && !it.clock_in_doubt) {
                if reach > Reach::Usual && self.is_enough(self.free()) {
                    return Ok(());
                }
                let merged = self.merge_guest(guest, reach);
                self.settle(guest, merged)?;
            }
        }
        Ok(())
    }

    /// Notes how much went, for the forecast of room.
    fn note(&self, guests: &[GuestPrune]) {
        for guest in guests.iter().filter(|it| it.data.bytes_freed > 0) {
            self.repository.note_freed(&guest.domain, guest.data.bytes_freed);
        }
    }

    fn merge_guest(&self, guest: &mut GuestPrune, reach: Reach) -> Result<()> {
        let domain = guest.domain.clone();
        let lock = self.repository.lock(&domain, self.wait())?;
        let mut catalog = self.repository.catalog();
        catalog.check_listed(&domain, self.cancel)?;
        catalog.check_archives_listed(&domain)?;
        let mut family = Family::read(&catalog, &domain)?;
        let locked = self.locked(&family, guest, reach)?;
        let members = self.members(&family, guest, reach, &locked);
        let limits = self.limits(reach, self.free());
        let estimate = |step: &_| self.merger(&catalog, &family).estimate(step);
        let plan = plan::plan(&domain, &members, &limits, estimate)?;
        self.remove(&lock, (&catalog, &family), &plan.drops, guest)?;
        if !plan.drops.is_empty() {
            // Another manifest carries the list of what goes.
            catalog = self.repository.catalog();
            family = Family::read(&catalog, &domain)?;
        }
        guest.data.spared = plan.stays.iter().map(spared).chain(waiting(&locked)).collect();
        let mut going = BTreeSet::new();
        let merger = self.merger(&catalog, &family);
        let merged = self.merge(&lock, &merger, plan.merges, &mut going, guest);
        self.clear_up(&lock, &merger, &mut going, guest)?;
        merged?;
        guest.data.spared.sort_by(|a, b| a.points.cmp(&b.points));
        guest.data.machine_files += self.remove_machine_files(&lock)?;
        Ok(())
    }

    /// Does what was planned, one merge after another. Damage stops those of its chain alone.
    fn merge(
        &self,
        lock: &DomainLock,
        merger: &Merger<'_>,
        merges: Vec<Merge>,
        going: &mut BTreeSet<PointId>,
        guest: &mut GuestPrune,
    ) -> Result<()> {
        let mut damaged: BTreeMap<PointId, Error> = BTreeMap::new();
        let mut waits = 0;
        for merge in merges {
            self.cancel.check()?;
            let points = absorbed(&merge);
            if let Some(error) = damaged.get(&merge.chain) {
                let why = Spare::Damaged { problem: Failure::from(error) };
                guest.data.spared.push(Spared { points, why });
                continue;
            }
            // What earlier merges have replaced goes before room becomes scarce.
            let needed = room_for(merge.costs.writes);
            if self.free().is_some_and(|free| free < needed.saturating_add(waits)) {
                self.clear_up(lock, merger, going, guest)?;
                waits = 0;
            }
            if let Some(bytes_free) = self.free().filter(|free| *free < needed) {
                let why = Spare::Room { bytes_needed: needed, bytes_free };
                guest.data.spared.push(Spared { points, why });
                continue;
            }
            match merger.run(lock, &merge.steps) {
                Ok(reports) => {
                    going.extend(points);
                    waits += merge.costs.writes + merge.costs.frees;
                    guest.data.add(reports, needed);
                }
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    let bytes_free = self.free().unwrap_or(0);
                    let why = Spare::Room { bytes_needed: needed, bytes_free };
                    guest.data.spared.push(Spared { points, why });
                }
                Err(error) if plan::is_damage(&error) => {
                    let why = Spare::Damaged { problem: Failure::from(&error) };
                    guest.data.spared.push(Spared { points, why });
                    damaged.insert(merge.chain, error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes what merges have replaced, with the anchors that only points know of that are `going`.
    fn clear_up(
        &self,
        lock: &DomainLock,
        merger: &Merger<'_>,
        going: &mut BTreeSet<PointId>,
        guest: &mut GuestPrune,
    ) -> Result<()> {
        self.forget_anchors((merger.catalog, merger.family), &std::mem::take(going), guest)?;
        guest.data.waiting |= tidy(self.repository, lock, self.observer, self.cancel)?.is_none();
        Ok(())
    }

    /// Removes the anchors that only these points know of.
    fn forget_anchors(
        &self,
        (catalog, family): (&Catalog, &Family),
        points: &BTreeSet<PointId>,
        guest: &mut GuestPrune,
    ) -> Result<()> {
        let manifests = points.iter().filter_map(|point| family.manifest(*point));
        let records = manifests.flat_map(|manifest| &manifest.disks);
        let anchored = records.filter(|record| record.anchor.is_some());
        let disks: BTreeSet<_> = anchored.map(|record| record.disk.clone()).collect();
        for disk in disks {
            let disk = DiskId { domain: guest.domain.clone(), disk };
            guest.data.anchors += inventory::forget(catalog, &disk, points, self.observer)?;
        }
        Ok(())
    }

    fn remove_machine_files(&self, lock: &DomainLock) -> Result<u64> {
        match self.repository.clear(lock, self.wait())? {
            Some(clearance) => {
                self.repository.remove_unnamed_machine_files(lock, &clearance, self.cancel)
            }
            None => Ok(0),
        }
    }

    /// Says what would be done, as far as the points are marked now.
    fn rehearse_all(&self, guests: &mut [GuestPrune]) -> Result<()> {
        for &reach in self.reaches() {
            let mut free = self.free();
            for guest in guests.iter_mut().filter(|it| it.error.is_none() && !it.clock_in_doubt) {
                let rehearsed = self.rehearse(guest, reach, free);
                self.settle(guest, rehearsed)?;
                free = free.map(|free| free.saturating_add(guest.data.bytes_freed));
            }
            if self.is_enough(free) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn rehearse(&self, guest: &mut GuestPrune, reach: Reach, free: Option<u64>) -> Result<()> {
        let domain = guest.domain.clone();
        let _hold = self.repository.hold(&domain, self.wait())?;
        let catalog = self.repository.catalog();
        let family = Family::read(&catalog, &domain)?;
        let locked = self.locked(&family, guest, reach)?;
        let members = self.members(&family, guest, reach, &locked);
        let merger = self.merger(&catalog, &family);
        let limits = self.limits(reach, free);
        let Plan { drops, merges, stays } =
            plan::plan(&domain, &members, &limits, |step| merger.estimate(step))?;
        let mut data = Reclaimed::default();
        for drop in drops {
            data.dropped.extend(drop.points);
            data.bytes_freed += drop.bytes;
        }
        data.dropped.sort_unstable();
        for merge in merges {
            data.add(merger.rehearse(&merge.steps)?, room_for(merge.costs.writes));
        }
        data.spared = stays.iter().map(spared).collect();
        guest.data = data;
        Ok(())
    }

    fn wait(&self) -> Wait<'_> {
        Wait::by(self.observer, self.cancel)
    }

    fn merger<'m>(&'m self, catalog: &'m Catalog, family: &'m Family) -> Merger<'m> {
        let Self { request, observer, cancel, .. } = *self;
        Merger { catalog, family, options: &request.merging, observer, cancel }
    }

    /// The points of a guest, and which of them may go.
    fn members(
        &self,
        family: &Family,
        guest: &GuestPrune,
        reach: Reach,
        locked: &BTreeMap<PointId, Timestamp>,
    ) -> Vec<Member> {
        let verdicts: BTreeMap<PointId, Fate> =
            guest.points.iter().map(|it| (it.point, it.fate)).collect();
        let member = |manifest: &Manifest| Member {
            point: manifest.point,
            gone: !locked.contains_key(&manifest.point)
                && self.may_go(manifest, verdicts.get(&manifest.point).copied(), reach),
            archives: manifest
                .disks
                .iter()
                .map(|record| Archive {
                    disk: record.disk.clone(),
                    parent: record.parent_point(),
                    bytes: record.bytes_written,
                })
                .collect(),
        };
        family.manifests().map(member).collect()
    }

    /// The points whose data may go and that the store does not let go of before some time.
    fn locked(
        &self,
        family: &Family,
        guest: &GuestPrune,
        reach: Reach,
    ) -> Result<BTreeMap<PointId, Timestamp>> {
        let verdict = |point| guest.points.iter().find(|it| it.point == point).map(|it| it.fate);
        let may_go = |it: &&Manifest| self.may_go(it, verdict(it.point), reach);
        self.repository.locked_points(family.manifests().filter(may_go))
    }

    /// Whether the data of a point may go. Its mark decides, as it is now: since the verdicts were made,
    /// somebody may have brought the point back. Only in a dry run no mark says what a verdict does.
    fn may_go(&self, manifest: &Manifest, verdict: Option<Fate>, reach: Reach) -> bool {
        let Policy { grace, now, .. } = &self.request.policy;
        let is_over = match &manifest.removed {
            // Removed by a clock that stood ahead: its grace begins now.
            Some(removal) if removal.at > *now => grace.is_none(),
            Some(removal) => removal.is_over(*now),
            None if self.request.dry_run && verdict == Some(Fate::Remove) => grace.is_none(),
            None => return false,
        };
        !manifest.is_pinned(*now) && (is_over || reach == Reach::AnyGrace)
    }
}

impl Reclaimed {
    /// Adds a merge that was done, or would be.
    fn add(&mut self, reports: Vec<MergeReport>, room: u64) {
        for report in &reports {
            self.bytes_read += report.bytes_read;
            self.bytes_written += report.bytes_written;
            self.bytes_freed += report.bytes_freed;
        }
        self.room_needed = self.room_needed.max(room);
        self.merges.extend(reports);
    }
}

/// The points that become part of others.
fn absorbed(merge: &Merge) -> Vec<PointId> {
    merge.steps.iter().flat_map(|step| step.absorbed.iter().copied()).collect()
}

fn spared(stays: &Stays) -> Spared {
    let why = match &stays.why {
        Why::Share(costs) => Spare::Share { bytes_written: costs.writes, bytes_freed: costs.frees },
        Why::Branches(by) => Spare::NeededBy { by: by.clone() },
        Why::Room { costs, free } => {
            Spare::Room { bytes_needed: room_for(costs.writes), bytes_free: *free }
        }
        Why::Enough => Spare::Enough,
        Why::Damaged(error) => Spare::Damaged { problem: Failure::from(error) },
    };
    Spared { points: stays.points.clone(), why }
}

/// Points that wait for the end of their locks, as they are told of.
fn waiting(locked: &BTreeMap<PointId, Timestamp>) -> impl Iterator<Item = Spared> {
    locked
        .iter()
        .map(|(point, until)| Spared { points: vec![*point], why: Spare::Locked { until: *until } })
}
