//! Shapes of forests, each with what becomes of it; and random ones.

use std::collections::BTreeMap;
use std::ops::Range;

use fastrand::Rng;

use super::model::Guest;
use super::{Limits, Plan, Why, plan};
use crate::base::error::{Error, ErrorKind};
use crate::flows::merge::Estimate;
use crate::vault::repository::{DiskName, PointId};

const SHARE: Limits = Limits { share: 25, free: None, until_free: None };

fn id(number: u64) -> PointId {
    PointId::from_ms(number * 1000).unwrap()
}

/// These blocks, in the version of a point.
fn blocks(range: Range<u32>, point: u64) -> BTreeMap<u32, u64> {
    range.map(|block| (block, point)).collect()
}

/// A guest with points 1, 2, … of a disk: each with its parent (0 for a full) and its blocks.
fn guest(points: &[(u64, Range<u32>)], gone: &[u64]) -> Guest {
    let mut guest = Guest::new();
    for (number, (parent, range)) in (1..).zip(points) {
        let parent = (*parent > 0).then(|| id(*parent));
        guest.back_up(id(number), "vda", parent, blocks(range.clone(), number));
    }
    guest.gone = gone.iter().map(|&number| id(number)).collect();
    guest
}

/// Plans, does what was planned, and proves that no point that is needed has changed.
fn prune(guest: &mut Guest, limits: &Limits) -> Plan {
    let before = guest.needed();
    let plan = guest.plan(limits).unwrap();
    guest.apply(&plan);
    assert_eq!(guest.needed(), before);
    plan
}

/// The numbers of points.
fn numbers(points: &[PointId]) -> Vec<u64> {
    points.iter().map(|point| point.as_ms() / 1000).collect()
}

fn drops(plan: &Plan) -> Vec<Vec<u64>> {
    plan.drops.iter().map(|drop| numbers(&drop.points)).collect()
}

/// What each step absorbs, into which point.
fn merges(plan: &Plan) -> Vec<(Vec<u64>, u64)> {
    let steps = plan.merges.iter().flat_map(|merge| &merge.steps);
    steps.map(|step| (numbers(&step.absorbed), step.into.as_ms() / 1000)).collect()
}

fn stays(plan: &Plan) -> Vec<(Vec<u64>, &Why)> {
    plan.stays.iter().map(|stays| (numbers(&stays.points), &stays.why)).collect()
}

#[test]
fn nothing_happens_where_every_point_is_needed() {
    let mut guest = guest(&[(0, 0..100), (1, 0..10), (2, 0..10)], &[]);
    let plan = prune(&mut guest, &SHARE);
    assert!(plan.drops.is_empty() && plan.merges.is_empty() && plan.stays.is_empty());
}

#[test]
fn a_run_in_the_middle_becomes_part_of_the_point_behind_it() {
    // The same blocks night after night: two thirds of the run are of no use.
    let mut guest = guest(&[(0, 0..100), (1, 0..10), (2, 0..10), (3, 0..10), (4, 0..10)], &[3, 4]);
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(merges(&plan), [(vec![3, 4], 5)]);
    assert_eq!(plan.merges[0].chain, id(1));
    assert_eq!(guest.points.len(), 3);
}

#[test]
fn a_run_whose_blocks_all_stand_waits() {
    // Other blocks every night: a merge would write all and free nothing.
    let mut guest =
        guest(&[(0, 0..100), (1, 0..10), (2, 10..20), (3, 20..30), (4, 30..40)], &[3, 4]);
    let plan = prune(&mut guest, &SHARE);
    assert!(plan.merges.is_empty());
    let [(points, Why::Share(costs))] = &stays(&plan)[..] else { panic!("{plan:?}") };
    assert_eq!(*points, [3, 4]);
    assert!(costs.frees * 4 < costs.writes && costs.writes > 0);
}

#[test]
fn the_base_of_a_chain_waits_until_a_share_of_it_has_gathered() {
    let nights = |last: u64| -> Vec<(u64, Range<u32>)> {
        (0..last).map(|it| (it, if it == 0 { 0..100 } else { 0..10 })).collect()
    };
    // The last point is needed: all before it are gone. Each night overwrites a tenth of the disk.
    let waits = guest(&nights(3), &[1, 2]).plan(&SHARE).unwrap();
    assert!(waits.merges.is_empty() && waits.drops.is_empty());
    let mut guest = guest(&nights(4), &[1, 2, 3]);
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(merges(&plan), [(vec![1, 2, 3], 4)]);
    let last = &guest.points[&id(4)].values().next().unwrap();
    assert!(last.parent.is_none() && last.blocks.len() == 100);
}

#[test]
fn what_nothing_builds_on_goes_with_its_whole_tree_and_the_newest_first() {
    // Two chains, of which the first one is gone as a whole; and the newest points of the second.
    let mut guest = guest(
        &[(0, 0..100), (1, 0..9), (2, 0..9), (0, 0..100), (4, 0..9), (5, 0..9)],
        &[1, 2, 3, 5, 6],
    );
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(drops(&plan), [vec![3, 2, 1], vec![6, 5]]);
    assert!(plan.merges.is_empty());
    assert_eq!(guest.points.len(), 1);
}

#[test]
fn a_full_that_differentials_build_on_stays_until_one_is_left() {
    let points = [(0, 0..100), (1, 0..40), (1, 0..60), (1, 0..80)];
    let mut both = guest(&points, &[1, 2]);
    let plan = prune(&mut both, &SHARE);
    assert_eq!(drops(&plan), [[2]]);
    let [(stays, Why::Branches(builders))] = &stays(&plan)[..] else { panic!("{plan:?}") };
    assert_eq!((stays, numbers(builders)), (&vec![1], vec![3, 4]));
    let mut one = guest(&points, &[1, 2, 3]);
    let plan = prune(&mut one, &SHARE);
    assert_eq!((drops(&plan), merges(&plan)), (vec![vec![2], vec![3]], vec![(vec![1], 4)]));
}

#[test]
fn below_a_branch_a_run_becomes_part_of_the_point_that_branches() {
    // A roll back: 5 and 6 were made against 4, which is gone as 1 to 3 are.
    let mut guest = guest(
        &[(0, 0..100), (1, 0..50), (2, 0..50), (3, 0..50), (4, 0..10), (4, 10..20)],
        &[1, 2, 3, 4],
    );
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(merges(&plan), [(vec![1, 2, 3], 4)]);
    assert!(matches!(&stays(&plan)[..], [(points, Why::Branches(_))] if *points == [4]));
    // When one of the branches goes, the other takes in what both stood on.
    guest.gone.insert(id(5));
    let plan = prune(&mut guest, &Limits { share: 5, ..SHARE });
    assert_eq!((drops(&plan), merges(&plan)), (vec![vec![5]], vec![(vec![4], 6)]));
}

#[test]
fn a_disk_whose_archive_is_a_full_lets_the_older_ones_go() {
    let mut guest = guest(&[(0, 0..100), (1, 0..50), (2, 0..50)], &[1, 2]);
    for (point, parent) in [(1, None), (2, Some(id(1))), (3, None)] {
        guest.back_up(id(point), "vdb", parent, blocks(0..40, point));
    }
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(merges(&plan), [(vec![1, 2], 3)]);
    let step = &plan.merges[0].steps[0];
    assert_eq!(step.disks.len(), 1, "nothing of vdb is written");
    assert_eq!(guest.points[&id(3)].len(), 2);
}

#[test]
fn what_a_disk_that_is_gone_frees_counts_too() {
    // The blocks of vda all stand: alone, it would not be worth its while.
    let mut guest = guest(&[(0, 0..100), (1, 0..10), (2, 10..20)], &[2]);
    assert!(guest.plan(&SHARE).unwrap().merges.is_empty());
    guest.back_up(id(2), "vdb", None, blocks(0..40, 2));
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(merges(&plan), [(vec![2], 3)]);
}

#[test]
fn points_whose_disks_build_on_different_points_go_together() {
    // Disk vdb was left out at point 3: that of point 4 builds on point 2, and vda of point 3 too.
    let mut guest = guest(&[(0, 0..100), (1, 0..50), (2, 0..50), (3, 0..50)], &[2]);
    for (point, parent) in [(1, None), (2, Some(id(1))), (4, Some(id(2)))] {
        guest.back_up(id(point), "vdb", parent, blocks(0..40, point));
    }
    let plan = prune(&mut guest, &SHARE);
    assert_eq!(plan.merges.len(), 1);
    assert_eq!(merges(&plan), [(vec![], 3), (vec![2], 4)]);
    assert_eq!(guest.points.len(), 3);
}

#[test]
fn what_has_no_room_stays_and_what_needs_least_is_first() {
    let mut points = vec![(0, 0..4000)];
    points.extend((1..=40).map(|it| (it, 0..400)));
    points.push((0, 0..200));
    points.extend((42..=50).map(|it| (it, 0..100)));
    let gone: Vec<u64> = (1..41).chain(42..51).collect();
    let all = guest(&points, &gone).plan(&SHARE).unwrap();
    assert_eq!(all.merges.iter().map(|it| it.steps[0].into).collect::<Vec<_>>(), [id(51), id(41)]);
    let [small, large] = [&all.merges[0], &all.merges[1]].map(|merge| merge.costs);
    // Just what the small one needs: what that frees is not enough for the large one.
    let free = Some(super::room_for(small.writes));
    let plan = guest(&points, &gone).plan(&Limits { free, ..SHARE }).unwrap();
    assert_eq!(plan.merges.len(), 1);
    let [(_, Why::Room { costs, free })] = &stays(&plan)[..] else { panic!("{plan:?}") };
    assert_eq!((*costs, *free), (large, super::room_for(small.writes) + small.frees));
    // What the small one frees counts for the large one.
    let free = Some(super::room_for(large.writes) - small.frees);
    let plan = guest(&points, &gone).plan(&Limits { free, ..SHARE }).unwrap();
    assert_eq!(plan.merges.len(), 2);
    let none = guest(&points, &gone).plan(&Limits { free: Some(0), ..SHARE }).unwrap();
    assert_eq!((none.merges.len(), none.stays.len()), (0, 2));
}

#[test]
fn until_so_much_is_free_the_oldest_go_whatever_they_free() {
    let points = [(0, 0..100), (1, 0..9), (2, 0..9), (0, 0..100), (4, 0..9), (5, 0..9), (0, 0..9)];
    let gone = [2, 5];
    let until = |free, until| Limits { share: 25, free: Some(free), until_free: Some(until) };
    let plenty = 1 << 40;
    let plan = guest(&points, &gone).plan(&until(plenty, plenty + 1)).unwrap();
    assert_eq!(merges(&plan), [(vec![2], 3)]);
    assert!(matches!(&stays(&plan)[..], [(points, Why::Enough)] if *points == [5]));
    let plan = guest(&points, &gone).plan(&until(plenty, 2 * plenty)).unwrap();
    assert_eq!(merges(&plan), [(vec![2], 3), (vec![5], 6)]);
    // Enough is free already, or when the first ones are dropped.
    let gone = [1, 2, 3, 7];
    let plan = guest(&points, &gone).plan(&until(plenty, plenty)).unwrap();
    assert!(plan.drops.is_empty() && plan.merges.is_empty());
    let plan = guest(&points, &gone).plan(&until(plenty, plenty + 1)).unwrap();
    assert_eq!(drops(&plan), [[3, 2, 1]]);
}

#[test]
fn damage_stops_the_merges_that_it_concerns() {
    let points = [(0, 0..9), (1, 0..9), (2, 0..9), (0, 0..9), (4, 0..9), (5, 0..9)];
    let guest = guest(&points, &[2, 5]);
    let members = guest.members();
    let plan_with = |kind| {
        plan(&guest.domain, &members, &SHARE, |step| match step.into == id(3) {
            true => Err(Error::new(kind, "broken")),
            false => {
                let mut costs = Estimate::default();
                (costs.writes, costs.frees) = (1, 1);
                Ok(costs)
            }
        })
    };
    for kind in [ErrorKind::Damaged, ErrorKind::NotFound, ErrorKind::Io] {
        let plan = plan_with(kind).unwrap();
        assert_eq!(merges(&plan), [(vec![5], 6)]);
        assert!(matches!(&stays(&plan)[..], [(points, Why::Damaged(_))] if *points == [2]));
    }
    assert_eq!(plan_with(ErrorKind::Interrupted).unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn a_point_that_builds_on_nothing_is_damage() {
    let mut lost = guest(&[(0, 0..9), (1, 0..9), (2, 0..9), (3, 0..9)], &[3]);
    lost.points.remove(&id(2));
    let plan = lost.plan(&SHARE).unwrap();
    let [(points, Why::Damaged(error))] = &stays(&plan)[..] else { panic!("{plan:?}") };
    assert_eq!(*points, [3]);
    assert!(error.chain().contains(&id(2).to_string()), "{error:?}");
}

/// A guest with three disks that come and go, now and then a full, a differential or a branch.
fn random_guest(rng: &mut Rng) -> Guest {
    let mut guest = Guest::new();
    let count = rng.u64(1..16);
    for number in 1..=count {
        for disk in ["vda", "vdb", "vdc"] {
            if rng.u8(..4) == 0 {
                continue;
            }
            let disk_name: DiskName = disk.parse().unwrap();
            let has_disk = guest
                .points
                .iter()
                .filter(|(point, disks)| **point < id(number) && disks.contains_key(&disk_name));
            let earlier: Vec<_> = has_disk.map(|(point, _)| *point).collect();
            let parent = match rng.u8(..8) {
                0 => None,
                1 | 2 => earlier.get(rng.usize(..=earlier.len())).copied(),
                _ => earlier.last().copied(),
            };
            let blocks = match parent {
                None => blocks(0..64, number),
                Some(_) => (0..rng.u32(..24)).map(|_| (rng.u32(..64), number)).collect(),
            };
            guest.back_up(id(number), disk, parent, blocks);
        }
    }
    let points: Vec<_> = guest.points.keys().copied().collect();
    guest.gone = points.into_iter().filter(|_| rng.u8(..3) > 0).collect();
    guest
}

/// Whatever the forest: what is needed stays as it was, nothing is removed that something builds on,
/// costs are what they were said to be (the model checks all that), every point that is gone goes or has
/// its reason to stay, and a second run finds nothing more to do.
#[test]
fn random_forests_keep_what_is_needed() {
    for seed in 0..3000 {
        let mut rng = Rng::with_seed(seed);
        let mut guest = random_guest(&mut rng);
        let limits = Limits { share: [1, 25, 100][rng.usize(..3)], ..SHARE };
        let gone = guest.gone.clone();
        let plan = prune(&mut guest, &limits);
        let mut told: Vec<_> = plan.drops.iter().flat_map(|it| it.points.clone()).collect();
        told.extend(plan.stays.iter().flat_map(|it| it.points.clone()));
        let steps = plan.merges.iter().flat_map(|merge| &merge.steps);
        told.extend(steps.flat_map(|step| step.absorbed.clone()));
        told.sort_unstable();
        assert_eq!(told, gone.into_iter().collect::<Vec<_>>(), "seed {seed}");
        let again = guest.plan(&limits).unwrap();
        assert!(again.drops.is_empty(), "seed {seed}: {again:?}");
        for merge in &plan.merges {
            assert!(merge.costs.frees * 100 >= merge.costs.writes * u64::from(limits.share));
        }
        // Without a share only branches are left.
        prune(&mut guest, &Limits { share: 0, ..SHARE });
        let left = guest.plan(&Limits { share: 0, ..SHARE }).unwrap();
        assert!(left.stays.iter().all(|it| matches!(it.why, Why::Branches(_))), "seed {seed}");
    }
}
