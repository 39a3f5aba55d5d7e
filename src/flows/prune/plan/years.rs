//! Three years of nights under many policies, in memory: what merging writes and what the repository takes
//! stay bounded, every night.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::Limits;
use super::model::{Guest, size};
use crate::vault::repository::PointId;

const NIGHTS: u64 = 3 * 365;
const SHARE: u8 = 25;
/// Blocks of a disk. The first third of them is hot: nine of ten writes go there.
const BLOCKS: u32 = 300;

/// What is kept: how many of the newest points, and for how many periods of so many days the newest.
#[derive(Debug, Clone)]
struct Policy {
    last: usize,
    within: u64,
    periods: Vec<(u64, usize)>,
}

impl Policy {
    fn of(last: usize, within: u64, [daily, weekly, monthly, yearly]: [usize; 4]) -> Self {
        let periods = vec![(1, daily), (7, weekly), (30, monthly), (365, yearly)];
        Self { last, within, periods }
    }

    fn random(rng: &mut Rng) -> Self {
        let mut count = |most| rng.usize(..=most) * rng.usize(..2);
        let periods = [count(20), count(10), count(15), count(3)];
        Self::of(1 + count(5), count(60) as u64, periods)
    }

    /// The nights that are kept, of these.
    fn keep(&self, nights: &[u64]) -> BTreeSet<u64> {
        let newest = nights.last().copied().unwrap_or(0);
        let latest = nights.iter().rev().take(self.last.max(1));
        let mut kept: BTreeSet<_> = latest.copied().collect();
        kept.extend(nights.iter().filter(|night| newest - **night < self.within));
        for &(days, count) in &self.periods {
            let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
            nights.iter().for_each(|&night| _ = newest.insert(night / days, night));
            kept.extend(newest.into_values().rev().take(count));
        }
        kept
    }
}

fn id(night: u64) -> PointId {
    PointId::from_ms((night + 1) * 86_400_000).unwrap()
}

/// A guest with a backup every night, and what the rules said of its points.
struct Life {
    guest: Guest,
    disks: &'static [&'static str],
    /// By disk: the blocks that each night has changed.
    changed: Vec<Vec<Vec<u32>>>,
    /// The points that no rule keeps, with the night that said so.
    removed: BTreeMap<u64, u64>,
    /// What the archive of a needed night takes if it was made against that of an earlier one.
    sizes: BTreeMap<(Option<u64>, u64), u64>,
    rng: Rng,
}

impl Life {
    fn new(disks: &'static [&'static str], seed: u64) -> Self {
        Self {
            guest: Guest::new(),
            disks,
            changed: vec![Vec::new(); disks.len()],
            removed: BTreeMap::new(),
            sizes: BTreeMap::new(),
            rng: Rng::with_seed(seed),
        }
    }

    fn back_up(&mut self, night: u64) {
        for (index, disk) in self.disks.iter().enumerate() {
            let blocks: Vec<u32> = match night {
                0 => (0..BLOCKS).collect(),
                _ => (0..BLOCKS / 100).map(|_| self.write()).collect(),
            };
            let parent = night.checked_sub(1).map(id);
            let versions = blocks.iter().map(|block| (*block, night)).collect();
            self.guest.back_up(id(night), disk, parent, versions);
            self.changed[index].push(blocks);
        }
    }

    fn write(&mut self) -> u32 {
        match self.rng.u8(..10) {
            0 => self.rng.u32(..BLOCKS),
            _ => self.rng.u32(..BLOCKS / 3),
        }
    }

    /// Prunes, and tells which points are kept, without those that are only in their grace.
    fn prune(&mut self, night: u64, policy: &Policy, grace: u64) -> BTreeSet<u64> {
        let is_shown = |night: &u64| !self.removed.contains_key(night);
        let shown: Vec<u64> = self.there().filter(is_shown).collect();
        let kept = policy.keep(&shown);
        self.removed.extend(shown.iter().filter(|it| !kept.contains(it)).map(|it| (*it, night)));
        let is_over = |it: &u64| self.removed.get(it).is_some_and(|at| at + grace <= night);
        self.guest.gone = self.there().filter(is_over).map(id).collect();
        let plan = self.guest.plan(&Limits { share: SHARE, ..Limits::default() }).unwrap();
        self.guest.apply(&plan);
        kept
    }

    /// The nights whose points are there.
    fn there(&self) -> impl Iterator<Item = u64> {
        self.guest.points.keys().map(|point| point.as_ms() / 86_400_000 - 1)
    }

    /// The least that these nights need: what has changed from each to the next.
    fn least(&mut self, needed: impl Iterator<Item = u64>) -> u64 {
        let (mut least, mut before) = (0, None);
        for night in needed {
            least += *self.sizes.entry((before, night)).or_insert_with(|| {
                let first = before.map_or(0, |before| before as usize + 1);
                let of_disk = |changed: &Vec<Vec<u32>>| {
                    let nights = changed[first..=night as usize].iter().flatten();
                    size(nights.copied().collect::<BTreeSet<_>>().into_iter())
                };
                self.changed.iter().map(of_disk).sum()
            });
            before = Some(night);
        }
        least
    }

    /// The nights that are kept or in their grace.
    fn needed(&self, grace: u64, tonight: u64) -> Vec<u64> {
        let is_needed =
            |night: &u64| self.removed.get(night).is_none_or(|removed| removed + grace > tonight);
        self.there().filter(is_needed).collect()
    }

    /// Proves what every needed point holds.
    fn prove(&self, needed: &[u64]) {
        for (index, disk) in self.disks.iter().enumerate() {
            let (mut content, mut next) = (BTreeMap::new(), 0);
            for &night in needed {
                for blocks in &self.changed[index][next..=night as usize] {
                    content.extend(blocks.iter().map(|block| (*block, next as u64)));
                    next += 1;
                }
                let disk = disk.parse().unwrap();
                assert_eq!(self.guest.content(id(night), &disk), content, "night {night}");
            }
        }
    }
}

/// The worst of all nights, in parts of the bound.
#[derive(Debug, Default)]
struct Worst {
    /// Bytes of merges for each byte of backups.
    written: f64,
    /// Bytes in the repository for each that kept points and those in their grace need.
    stored: f64,
    /// Bytes in the repository for each that kept points need.
    stored_for_kept: f64,
}

fn live(policy: &Policy, grace: u64, disks: &'static [&'static str], seed: u64) -> Worst {
    let mut life = Life::new(disks, seed);
    let proofs: BTreeSet<u64> = (0..50).map(|_| life.rng.u64(..NIGHTS)).collect();
    let mut worst = Worst::default();
    for night in 0..NIGHTS {
        life.back_up(night);
        let kept = life.prune(night, policy, grace);
        let needed = life.needed(grace, night);
        if night == NIGHTS - 1 || proofs.contains(&night) {
            life.prove(&needed);
        }
        let stored = life.guest.bytes() as f64;
        let least = life.least(needed.into_iter()) as f64;
        let least_for_kept = life.least(kept.into_iter()) as f64;
        worst.written = worst.written.max(life.guest.merged as f64 / life.guest.backed_up as f64);
        worst.stored = worst.stored.max(stored / least);
        worst.stored_for_kept = worst.stored_for_kept.max(stored / least_for_kept);
    }
    worst
}

#[test]
fn what_merging_writes_and_what_is_stored_stay_bounded_every_night() {
    let mut policies = vec![
        Policy::of(1, 0, [7, 4, 12, 3]),
        Policy::of(1, 0, [7, 0, 0, 0]),
        Policy::of(1, 0, [0; 4]),
        Policy::of(1, 0, [0, 4, 0, 0]),
        Policy::of(1, 0, [0, 0, 12, 0]),
        Policy::of(1, 30, [0; 4]),
    ];
    const NAMED: u64 = 6;
    let mut rng = Rng::with_seed(13);
    policies.extend((0..2).map(|_| Policy::random(&mut rng)));
    for (seed, policy) in (0..).zip(&policies) {
        for grace in [0, 7] {
            let disks: &[&str] = if seed == 0 { &["vda", "vdb"] } else { &["vda"] };
            let worst = live(policy, grace, disks, seed);
            assert!(worst.written <= 4.0, "{policy:?}, grace {grace}: {worst:?}");
            assert!(worst.stored <= 1.26, "{policy:?}, grace {grace}: {worst:?}");
            // What is in its grace may be much where few large points are kept.
            if seed < NAMED || grace == 0 {
                assert!(worst.stored_for_kept <= 1.35, "{policy:?}, grace {grace}: {worst:?}");
            }
        }
    }
}
