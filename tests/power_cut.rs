//! Power cuts on XFS and ext4, by way of the file systems' shutdown call: what was not made durable
//! is gone, names included. A backup that said it was done is there afterwards; one that did not
//! get that far has hurt nothing.

use std::path::PathBuf;

use crate::harness::content::Guest;
use crate::harness::faults::{Fault, Injection, count_calls, plan, run_with};
use crate::harness::files::{Mount, assert_same, copy_tree};
use crate::harness::images::{create, guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, args, sweep};
use crate::prunes::{nights, set_share};

const MIB: u64 = 1 << 20;
/// Cuts in the middle of a backup, for each file system.
const CUTS: u64 = 3;

/// A guest, its disk, and what the disk was at each point.
struct Life {
    guest: Guest,
    image: PathBuf,
    points: Vec<(String, PathBuf)>,
}

impl Life {
    fn new(lab: &Lab) -> Self {
        let image = lab.path("disk.qcow2");
        create(&image, "", 2 * MIB);
        Self { guest: Guest::new(lab.dir(), 11), image, points: Vec::new() }
    }

    /// The guest writes; gives what the disk is now.
    fn go_on(&mut self, lab: &Lab) -> PathBuf {
        let acts = self.guest.fill(2 * MIB, 3);
        guest_io(&self.image, "qcow2", &acts);
        let expected = lab.path(format!("expected{}.raw", self.guest.random.next()));
        oracle(args!["-f", "qcow2", self.image.as_path()], &expected);
        expected
    }

    #[track_caller]
    fn assert_points(&self, lab: &Lab, repo: &Repo) {
        let ids: Vec<String> = self.points.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(repo.points("disk"), ids);
        repo.verify();
        for (id, expected) in &self.points {
            repo.assert_restores_raw(lab, &format!("disk@{id}"), expected);
        }
    }
}

fn survives(kind: &str) {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), kind, 400 * MIB);
    let repo = Repo::init(mount.dir.join("repo"));
    let mut life = Life::new(&lab);

    // Said to be done, then the power goes: all of it is there, the repository itself included.
    for log_flushed in [false, true, false] {
        let expected = life.go_on(&lab);
        let done = repo.backup(&life.image, "disk", &[]);
        mount.cut_power(log_flushed);
        life.points.push((point_of(&done), expected));
        life.assert_points(&lab, &repo);
    }

    // Killed in the middle, and the power goes.
    let arguments = repo.args(args![
        "backup",
        life.image.as_path(),
        "--disk",
        "disk",
        "--json",
        "--io",
        "threads",
        "--threads",
        "1"
    ]);
    let expected = life.go_on(&lab);
    let counts = count_calls(&lab, arguments.clone());
    life.points.push((repo.points("disk").pop().unwrap(), expected));
    let mut counts = counts;
    // Until a file is created nothing can be lost.
    counts.retain(|call, _| !["openat", "flock"].contains(&call.as_str()));
    for (number, injection) in plan(&counts, &[Fault::Kill], CUTS * sweep()).iter().enumerate() {
        let Injection { call, when, .. } = injection;
        println!("cut at {call} number {when}");
        let expected = life.go_on(&lab);
        let outcome = run_with(injection, arguments.clone()).sane();
        mount.cut_power(number % 2 == 0);
        let later = repo.points("disk").split_off(life.points.len());
        assert!(later.len() <= 1);
        if outcome.code() == Some(0) {
            assert_eq!(later, [point_of(&outcome.json())], "it said that it was done");
        }
        life.points.extend(later.into_iter().map(|id| (id, expected.clone())));
        repo.verify();
        let done = repo.backup(&life.image, "disk", &[]);
        life.points.push((point_of(&done), expected));
        repo.assert_no_leftovers();
    }
    life.assert_points(&lab, &repo);

    // A restored disk that has its final name is whole, too.
    for format in ["raw", "qcow2"] {
        let output = mount.dir.join(format!("restored.{format}"));
        let copy = lab.path("copy");
        repo.restore("disk", &output, &["--format", format]).ok();
        std::fs::copy(&output, &copy).unwrap();
        mount.cut_power(format == "raw");
        assert_same(&copy, &output, "a restored disk after a power cut");
    }
}

/// Pruning and merging: what stays is whole after a cut at every kind of call, and the next run goes on.
fn prune_survives(kind: &str) {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), kind, 400 * MIB);
    let kept = Repo::init(lab.path("kept"));
    set_share(&kept, 1);
    let points = nights(&lab, &kept, "vm", 4);
    let repo = kept.copy_at(mount.dir.join("repo")).without_ring();
    let words = ["prune", "--keep-last=2", "--grace=0", "--io=threads", "--threads=1"];
    let arguments = repo.args(words.iter().map(Into::into).collect());
    copy_tree(&kept.path, &repo.path);
    let mut counts = count_calls(&lab, arguments.clone());
    counts.retain(|call, _| !["openat", "flock"].contains(&call.as_str()));
    for (number, injection) in plan(&counts, &[Fault::Kill], CUTS * sweep()).iter().enumerate() {
        println!("cut at {injection}");
        std::fs::remove_dir_all(&repo.path).unwrap();
        copy_tree(&kept.path, &repo.path);
        // All of it is old.
        mount.unmount();
        mount.mount();
        run_with(injection, arguments.clone()).sane();
        mount.cut_power(number % 2 == 0);
        for run in 0..2 {
            let listed = repo.points("vm/disk");
            assert!(listed.ends_with(&[points[2].0.clone(), points[3].0.clone()]), "{listed:?}");
            repo.verify();
            for (point, expected) in &points[2..] {
                repo.assert_restores_raw(&lab, &format!("vm/disk@{point}"), expected);
            }
            if run == 0 {
                repo.run(words.iter().map(Into::into).collect()).ok();
            }
        }
        repo.assert_no_leftovers();
    }
}

#[test]
fn a_power_cut_of_a_prune_on_xfs() {
    prune_survives("xfs");
}

#[test]
fn a_power_cut_of_a_prune_on_ext4() {
    prune_survives("ext4");
}

#[test]
fn a_power_cut_on_xfs() {
    survives("xfs");
}

#[test]
fn a_power_cut_on_ext4() {
    survives("ext4");
}
