//! Faults at every write-like system call of a backup and of a restore: the program is killed
//! there, or the call fails. Whatever the moment, earlier points stay whole, the next run goes on,
//! and after it nothing is left over.

use std::path::PathBuf;
use std::time::Instant;

use crate::harness::content::{Guest, Random};
use crate::harness::faults::{Fault, Injection, count_calls, plan, run_with};
use crate::harness::files::{assert_same, copy_tree, tree};
use crate::harness::images::{create, guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::{describe, finish, start};
use crate::harness::{Lab, Outcome, args, qdelta, run, sweep};

const MIB: u64 = 1 << 20;
/// Of calls that one thread makes more often, only about so many are tried.
const EACH: u64 = 12;
const FAULTS: &[Fault] = &[Fault::Kill, Fault::InputOutputError, Fault::NoSpace];

/// A repository with two points, and an image that has changed since.
struct Scene {
    lab: Lab,
    /// The repository as it is before each try; never written to again.
    kept: Repo,
    /// The one that is tried on.
    repo: Repo,
    image: PathBuf,
    points: Vec<(String, PathBuf)>,
    now: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let image = lab.path("disk.qcow2");
        create(&image, "", 3 * MIB);
        let kept = Repo::init(lab.path("kept"));
        let mut guest = Guest::new(lab.dir(), 5);
        let mut points = Vec::new();
        for name in ["first.raw", "second.raw"] {
            guest_io(&image, "qcow2", &guest.fill(3 * MIB, 4));
            let expected = lab.path(name);
            oracle(args!["-f", "qcow2", image.as_path()], &expected);
            points.push((point_of(&kept.backup(&image, "disk", &[])), expected));
        }
        guest_io(&image, "qcow2", &guest.fill(3 * MIB, 4));
        let now = lab.path("now.raw");
        oracle(args!["-f", "qcow2", image.as_path()], &now);
        let repo = kept.copy_at(lab.path("repo")).without_ring();
        Self { kept, repo, image, points, now, lab }
    }

    fn reset(&self) {
        copy_tree(&self.kept.path, &self.repo.path);
    }

    /// Both earlier points are there and whole. Gives the ids of later ones.
    #[track_caller]
    fn assert_earlier_points(&self) -> Vec<String> {
        let mut ids = self.repo.points("disk");
        let later = ids.split_off(self.points.len().min(ids.len()));
        let expected: Vec<String> = self.points.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids, expected, "earlier points");
        for (id, expected) in &self.points {
            self.repo.assert_restores_raw(&self.lab, &format!("disk@{id}"), expected);
        }
        later
    }
}

/// Prints which fault was being tried if the thread dies of it.
struct Trying<'a>(&'a Injection);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the fault was: {}", self.0);
        }
    }
}

/// A run under a fault was killed, failed with a status that says so, or got over it.
#[track_caller]
fn ended_well(injection: &Injection, outcome: Outcome) -> Outcome {
    let outcome = outcome.sane();
    if injection.fault == Fault::Kill {
        return outcome;
    }
    // 127 is the dynamic loader's: it could not open a library.
    let expected = matches!(outcome.code(), Some(0 | 1 | 8 | 127));
    assert!(expected, "{injection}:\n{}", outcome.report());
    let wrote = ["pwrite64", "fallocate", "ftruncate"].contains(&injection.call.as_str());
    if wrote && injection.fault == Fault::NoSpace && outcome.code() != Some(0) {
        assert_eq!(outcome.code(), Some(8), "{injection}:\n{}", outcome.report());
    }
    if outcome.code() != Some(0) {
        assert!(!outcome.stderr.trim().is_empty(), "{injection}: it said nothing");
    }
    outcome
}

fn backup_survives(options: &[&str]) {
    let scene = Scene::new();
    scene.reset();
    let mut arguments = scene.repo.args(args![
        "backup",
        scene.image.as_path(),
        "--disk",
        "disk",
        "--json",
        "--io",
        "threads",
        "--threads",
        "1"
    ]);
    arguments.extend(options.iter().map(std::ffi::OsString::from));
    let counts = count_calls(&scene.lab, arguments.clone());
    let tries = plan(&counts, FAULTS, EACH * sweep());
    println!("{} tries: {counts:?}", tries.len());
    for injection in &tries {
        let _trying = Trying(injection);
        scene.reset();
        let outcome = ended_well(injection, run_with(injection, arguments.clone()));
        scene.repo.verify();
        let later = scene.assert_earlier_points();
        assert!(later.len() <= 1, "one run, at most one point: {later:?}");
        if outcome.code() == Some(0) {
            assert_eq!(later, [point_of(&outcome.json())], "it said that it was done");
        }
        for id in later {
            scene.repo.assert_restores_raw(&scene.lab, &format!("disk@{id}"), &scene.now);
        }
        let next = scene.repo.backup(&scene.image, "disk", &[]);
        let id = point_of(&next);
        scene.repo.assert_restores_raw(&scene.lab, &format!("disk@{id}"), &scene.now);
        scene.repo.verify();
        scene.repo.assert_no_leftovers();
    }
}

#[test]
fn an_incremental_backup_survives_every_fault() {
    backup_survives(&["--kind", "incremental"]);
}

#[test]
fn a_full_backup_survives_every_fault() {
    backup_survives(&["--kind", "full"]);
}

/// strace does not see what goes through a ring. There the moments are chosen by the clock.
#[test]
fn a_backup_on_the_ring_survives_being_killed() {
    let scene = Scene::new();
    let mut random = Random::new(21);
    let backup = || {
        let arguments = args!["backup", scene.image.as_path(), "--disk", "disk", "--kind", "full"];
        qdelta(scene.repo.args(arguments))
    };
    scene.reset();
    let begin = Instant::now();
    run(backup()).ok();
    let mut took = begin.elapsed();
    let mut killed = 0;
    for number in 0..24 * sweep() {
        scene.reset();
        let begin = Instant::now();
        let mut child = start(&mut backup());
        std::thread::sleep(took.mul_f64(random.below(110) as f64 / 100.0));
        let _ = child.kill();
        let outcome = finish(child, format!("backup number {number}, killed")).sane();
        killed += u64::from(outcome.killed());
        if !outcome.killed() {
            // The machine was slower when the time was taken.
            took = took.min(begin.elapsed());
        }
        scene.repo.verify();
        for id in scene.assert_earlier_points() {
            scene.repo.assert_restores_raw(&scene.lab, &format!("disk@{id}"), &scene.now);
        }
        scene.repo.backup(&scene.image, "disk", &[]);
        scene.repo.assert_restores_raw(&scene.lab, "disk", &scene.now);
        scene.repo.assert_no_leftovers();
    }
    assert!(killed > 0, "every backup was faster than its killer");
}

fn restore_survives(format: &str) {
    let scene = Scene::new();
    scene.reset();
    let before = tree(&scene.repo.path);
    let folder = scene.lab.path("out");
    let output = folder.join("disk.img");
    let arguments = scene.repo.args(args![
        "restore",
        "disk",
        output.as_path(),
        "--format",
        format,
        "--io",
        "threads",
        "--threads",
        "1"
    ]);
    let expected = scene.lab.path("expected.img");
    std::fs::create_dir(&folder).unwrap();
    let counts = count_calls(&scene.lab, arguments.clone());
    std::fs::rename(&output, &expected).unwrap();
    let tries = plan(&counts, FAULTS, EACH * sweep());
    println!("{} tries: {counts:?}", tries.len());
    for injection in &tries {
        let _trying = Trying(injection);
        let outcome = ended_well(injection, run_with(injection, arguments.clone()));
        // The final name appears with the whole content, or not at all.
        if output.exists() {
            assert_same(&expected, &output, "the output of a run that did not go well");
            std::fs::remove_file(&output).unwrap();
        } else {
            assert_ne!(outcome.code(), Some(0), "it said that it was done");
        }
        if injection.fault != Fault::Kill
            && injection.call != "unlink"
            && injection.call != "unlinkat"
        {
            assert!(tree(&folder).is_empty(), "litter: {:?}", tree(&folder));
        }
        scene.repo.restore("disk", &output, &["--format", format]).ok();
        assert_same(&expected, &output, "the next restore");
        std::fs::remove_file(&output).unwrap();
        assert!(tree(&folder).is_empty(), "the next restore leaves litter: {:?}", tree(&folder));
    }
    assert_eq!(tree(&scene.repo.path), before, "a restore changes nothing in the repository");
    scene.repo.verify();
}

#[test]
fn a_raw_restore_survives_every_fault() {
    restore_survives("raw");
}

#[test]
fn a_qcow2_restore_survives_every_fault() {
    restore_survives("qcow2");
}

/// A sector that can't be read ends the backup with the place, and leaves no point.
#[test]
fn a_read_error_of_the_image_is_named() {
    let scene = Scene::new();
    let arguments = |repo: &Repo| {
        repo.args(args![
            "backup",
            scene.image.as_path(),
            "--disk",
            "disk",
            "--io",
            "threads",
            "--threads",
            "1"
        ])
    };
    let mut failed = 0;
    for when in 1..=20 * sweep() {
        scene.reset();
        let fault = Fault::InputOutputError;
        let injection = Injection { call: "pread64".to_owned(), when, fault };
        let _trying = Trying(&injection);
        let outcome = run_with(&injection, arguments(&scene.repo)).sane();
        let later = scene.assert_earlier_points();
        match outcome.code() {
            Some(0) => scene.repo.assert_restores_raw(&scene.lab, "disk", &scene.now),
            code => {
                assert!(matches!(code, Some(1 | 127)), "{}", outcome.report());
                assert!(later.is_empty(), "a point after a failure: {later:?}");
                failed += 1;
            }
        }
        scene.repo.assert_no_leftovers();
    }
    assert!(failed > 0, "no read was ever hit");
}

/// A restore right after one that was killed said that the file was being written: the kernel was still
/// letting go of the dead one's locks.
#[test]
fn what_follows_a_kill_at_once_need_not_be_tried_again() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("disk.qcow2");
    create(&image, "", 64 << 20);
    guest_io(&image, "qcow2", &["write -q -P 7 0 48M".to_owned()]);
    repo.backup(&image, "disk", &[]);
    let output = lab.path("disk.raw");
    for round in 0..6_u64 {
        let mut command = qdelta(repo.args(args!["restore", "disk", output.as_path(), "--force"]));
        let child = start(&mut command);
        std::thread::sleep(std::time::Duration::from_millis(40 + round * 25));
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        repo.restore("disk", &output, &["--force"]).ok();
        finish(child, describe(&command));
    }
}
