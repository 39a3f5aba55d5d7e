//! Random lives of a disk: a guest writes, zeroes, discards; an admin resizes, snapshots, converts
//! and commits; in between come backups of every kind. In the end every point must restore to what
//! the disk was at that moment.
//!
//! A failure prints its seed. `QDELTA_SEED=0x… cargo test histories` repeats that life alone,
//! `QDELTA_SWEEP=10` lives ten times as many.

use std::path::{Path, PathBuf};

use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::files::assert_same;
use crate::harness::images::{guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, qdelta, run, seeds};

/// Lives in a run without `QDELTA_SWEEP`, for each of the two tests.
const LIVES: u64 = 8;
/// Recovery points in a life.
const POINTS: u64 = 6;

/// One life. Gives nothing: it ends well or panics.
fn live(seed: u64, format: &'static str) {
    let lab = Lab::new();
    let mut story = Story { seed, told: vec![format!("a {format} disk")] };
    let mut random = Random::new(seed);
    let mut disk = Disk::new(&lab, &mut random, format);
    let mut guest = Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, format, &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));

    let repo = Repo::of_a_life(lab.path("repo"), seed);
    let block = random.pick(&["4K", "64K", "1M"]);
    let mut points = Vec::new();
    for number in 0..POINTS {
        let kind = if number == 0 {
            "full"
        } else {
            random.pick(&["auto", "incremental", "incremental", "differential", "full"])
        };
        let mut options = vec!["--kind", kind, "--io", random.pick(&["auto", "threads"])];
        if kind == "full" {
            options.extend(["--block-size", block]);
        }
        let expected = lab.path(format!("expected{number}.raw"));
        oracle(args!["-f", format, disk.path.as_path()], &expected);
        let done = repo.backup(&disk.path, "disk", &options);
        story.tell(format!("backup {done}"));
        points.push((point_of(&done), expected));
        for _ in 0..random.below(5) {
            let what = disk.change(&lab, &mut guest);
            story.tell(what);
        }
    }

    repo.verify();
    let ids: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(repo.points("disk"), ids, "points, oldest first");
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        repo.assert_restores(&lab, &format!("disk@{id}"), expected);
    }
    repo.assert_no_leftovers();
    replay_the_last(&lab, &repo, &points.last().unwrap().1);
}

/// Bare archives do without a repository. The last chain: from its full on, increments in order;
/// of differentials only the newest one, and what came after it.
fn replay_the_last(lab: &Lab, repo: &Repo, expected: &Path) {
    let mut chain: Vec<PathBuf> = Vec::new();
    for file in repo.archives() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name.contains("-full-") {
            chain.clear();
        } else if name.contains("-differential-") {
            chain.truncate(1);
        }
        chain.push(repo.bare(&file, lab));
    }
    let output = lab.path("replayed.raw");
    let mut arguments = args!["replay"];
    arguments.extend(chain.into_iter().map(PathBuf::into_os_string));
    arguments.extend(args!["--output", output.as_path()]);
    run(qdelta(arguments)).ok();
    assert_same(expected, &output, "replay of the last chain");
}

/// Lives all lives of this run.
fn live_all(first_seed: u64, format: &'static str) {
    for seed in seeds(first_seed, LIVES) {
        live(seed, format);
    }
}

#[test]
fn every_point_of_a_qcow2_disk_restores() {
    live_all(0x1000, "qcow2");
}

#[test]
fn every_point_of_another_qcow2_disk_restores() {
    live_all(0x10_0000, "qcow2");
}

#[test]
fn every_point_of_a_raw_disk_restores() {
    live_all(0x2000, "raw");
}
