//! Second copies through the program: what is brought, what is the same, and what comes back from the other side.

mod faults;
mod kills;
mod lives;
mod mended;
mod pulled;
mod three;
mod told;

use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::cli::json::compare;
use crate::harness::content::Guest;
use crate::harness::images::{create, guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::faketime;
use crate::harness::{Lab, Outcome, args, qdelta, run, store};

const MIB: u64 = 1 << 20;

/// A repository, another one, and a guest's disk whose points are known.
struct Scene {
    lab: Lab,
    repo: Repo,
    other: Repo,
    image: PathBuf,
    guest: Guest,
    /// Each point, and what the disk was.
    points: Vec<(String, PathBuf)>,
}

impl Scene {
    fn new() -> Self {
        Self::of(|path| Repo::init(path), |path| Repo::init(path))
    }

    fn of(repo: impl Fn(PathBuf) -> Repo, other: impl Fn(PathBuf) -> Repo) -> Self {
        let lab = Lab::new();
        let image = lab.path("disk.qcow2");
        create(&image, "", 3 * MIB);
        let repo = repo(lab.path("repo")).without_ring();
        let other = other(lab.path("other")).without_ring();
        let guest = Guest::new(lab.dir(), 9);
        Self { lab, repo, other, image, guest, points: Vec::new() }
    }

    /// Another guest of the same name, in another pair of repositories.
    fn stranger() -> Self {
        let mut scene = Self::new();
        scene.guest = Guest::new(scene.lab.dir(), 10);
        scene
    }

    /// The guest writes, and a point is made.
    fn night(&mut self, options: &[&str]) -> String {
        self.night_by(|repo, image| repo.backup(image, "web/vda", options))
    }

    /// The same at a time, which is the point's id.
    fn night_at(&mut self, time: &str) -> String {
        self.night_by(|repo, image| {
            let words = args!["backup", image, "--disk", "web/vda", "--json", "--io", "threads"];
            let mut command = qdelta(repo.args(words));
            faketime(&mut command, time);
            run(command).ok().json()
        })
    }

    fn night_by(&mut self, back_up: impl FnOnce(&Repo, &Path) -> Value) -> String {
        guest_io(&self.image, "qcow2", &self.guest.fill(3 * MIB, 3));
        let now = self.lab.path(format!("{}.raw", self.points.len()));
        oracle(args!["-f", "qcow2", self.image.as_path()], &now);
        let point = point_of(&back_up(&self.repo, &self.image));
        self.points.push((point.clone(), now));
        point
    }

    fn copy(&self, options: &[&str]) -> Value {
        self.try_copy(options).ok().json()
    }

    fn try_copy(&self, options: &[&str]) -> Outcome {
        self.repo.run(with_other("copy", "--to", &self.other, options))
    }

    fn repair(&self, options: &[&str]) -> Outcome {
        self.repo.run(with_other("repair", "--from", &self.other, options))
    }

    fn against(&self) -> Outcome {
        let mut words = args!["verify", "--against", self.other.path.as_path(), "--json"];
        words.extend(key_of(&self.other));
        self.repo.run(words)
    }

    /// Every point that a repository has is what the disk was.
    #[track_caller]
    fn assert_points(&self, repo: &Repo, expected: &[&str]) {
        assert_eq!(repo.points("web/vda"), expected);
        for (point, disk) in self.points.iter().filter(|(id, _)| expected.contains(&id.as_str())) {
            repo.assert_restores_raw(&self.lab, &format!("web/vda@{point}"), disk);
        }
        repo.verify();
        // The names of an encrypted one tell nothing.
        if repo.key.is_none() {
            repo.assert_no_leftovers();
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.points.iter().map(|(id, _)| id.as_str()).collect()
    }
}

fn key_of(other: &Repo) -> Vec<std::ffi::OsString> {
    other.key.iter().flat_map(|key| args!["--other-key-file", key.as_path()]).collect()
}

fn with_other(command: &str, by: &str, other: &Repo, options: &[&str]) -> Vec<std::ffi::OsString> {
    let mut words = args![command, by, other.path.as_path(), "--json", "--io", "threads"];
    words.extend(key_of(other));
    words.extend(options.iter().map(Into::into));
    words
}

/// How the archives of the points came that a copy brought.
fn hows(report: &Value) -> Vec<&str> {
    let points = report["guests"][0]["points"].as_array().unwrap();
    points.iter().map(|point| point["disks"][0]["how"].as_str().unwrap()).collect()
}

#[test]
fn only_what_is_missing_is_brought_and_restores_there() {
    let mut scene = Scene::new();
    let pinned = scene.night(&[]);
    scene.night(&["--anchor", "bitmap"]);
    let pin = format!("web@{pinned}");
    scene.repo.run(args!["pin", pin.as_str(), "--reason", "the audit"]).ok();
    scene.repo.run(args!["pin", pin.as_str(), "--holder", "for-a-while"]).ok();
    let planned = scene.copy(&["--dry-run"]);
    assert_eq!(planned["guests"][0]["points"].as_array().unwrap().len(), 2, "{planned}");
    assert!(scene.other.files().len() < 3, "a dry run brings nothing");
    let first = scene.copy(&[]);
    assert_eq!(hows(&first), ["copied", "copied"]);
    assert_eq!(first["bytes_written"], planned["bytes_written"]);
    scene.assert_points(&scene.other, &scene.ids());
    let there = scene.other.run(args!["points", "--json"]).ok().json();
    let [one, two] = [0, 1].map(|number| &there["disks"][0]["points"][number]);
    assert_eq!(one["pins"][0]["reason"], "the audit");
    assert_eq!(one["pins"].as_array().unwrap().len(), 1, "what holds it here holds it here: {one}");
    assert!(two["anchor"].is_null() && !two["proved"].is_null(), "{two}");
    assert_eq!(hows(&scene.copy(&[])), [""; 0]);

    // Merged and pruned here, a pin that came later, and one more night: a single archive is brought.
    let third = scene.night(&[]);
    scene.copy(&[]);
    scene.repo.run(args!["unpin", pin.as_str()]).ok();
    scene.repo.run(args!["unpin", pin.as_str(), "--holder", "for-a-while"]).ok();
    let range = format!("web@{}..{third}", scene.points[0].0);
    scene.repo.run(args!["merge", range.as_str()]).ok();
    scene.repo.run(args!["pin", format!("web@{third}")]).ok();
    scene.night(&[]);
    let last = scene.copy(&[]);
    assert_eq!(hows(&last), ["copied"]);
    assert_eq!(last["guests"][0]["pinned"], Value::from(vec![third.as_str()]));
    scene.assert_points(&scene.other, &scene.ids());
    compare("copy", &[&first, &last], RARE);
    // The pin that was taken away here stays there.
    let there = scene.other.run(args!["points", "--json"]).ok().json();
    assert_eq!(there["disks"][0]["points"][0]["pins"][0]["reason"], "the audit");
}

/// Fields of a copy that a sound repository and no rules don't show.
const RARE: &[&str] = &[
    ".guests[].failed[]",
    ".guests[].failed[].error",
    ".guests[].failed[].error.advice",
    ".guests[].failed[].error.kind",
    ".guests[].failed[].error.text",
    ".guests[].failed[].point",
    ".points",
    ".points.last",
    ".points.monthly",
];

/// The same of a copy of which something failed.
const RARE_BUT_FAILED: &[&str] = &[
    ".guests[].failed[].error.advice",
    ".guests[].pinned[]",
    ".points",
    ".points.last",
    ".points.monthly",
];

/// The newest of each month has archives between it and the one before that are wanted nowhere: they are merged
/// on the way, and the next one builds on what the copy has.
#[test]
fn a_copy_keeps_other_points_than_its_source() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.night(&[]);
    }
    let first = scene.copy(&["--points", "last=1"]);
    assert_eq!(hows(&first), ["merged"]);
    assert_eq!(first["guests"][0]["points"][0]["disks"][0]["archives"], 3);
    assert_eq!(first["points"]["last"], 1);
    for kind in ["incremental", "differential", "incremental"] {
        scene.night(&["--kind", kind]);
    }
    let second = scene.copy(&["--points", "last=1"]);
    let disk = &second["guests"][0]["points"][0]["disks"][0];
    assert_eq!((&disk["how"], &disk["kind"]), (&"merged".into(), &"full".into()), "{second}");
    let kept = [2, 5].map(|number: usize| scene.points[number].0.clone());
    scene.assert_points(&scene.other, &[&kept[0], &kept[1]]);
    scene.night(&[]);
    scene.night(&[]);
    let third = scene.copy(&["--points", "last=1"]);
    let disk = &third["guests"][0]["points"][0]["disks"][0];
    assert_eq!((&disk["archives"], &disk["kind"]), (&2.into(), &"incremental".into()), "{third}");
    scene.assert_points(&scene.other, &[&kept[0], &kept[1], &scene.points[7].0]);
    // What lies between can still be brought.
    let all = scene.copy(&[]);
    assert_eq!(all["guests"][0]["present"], 3);
    scene.assert_points(&scene.other, &scene.ids());
    assert!(scene.try_copy(&["--points", "safety=3d"]).fails_with(2).contains("no rule"));
}

/// A backup into the copy, after the first repository was lost, knows no anchors and goes on with the chain.
#[test]
fn the_copy_takes_the_place_of_its_source() {
    let mut scene = Scene::new();
    scene.night(&["--anchor", "bitmap"]);
    scene.night(&[]);
    scene.copy(&[]);
    std::mem::swap(&mut scene.repo, &mut scene.other);
    guest_io(&scene.image, "qcow2", &["write -q -P 77 1M 64k".to_owned()]);
    scene.night(&[]);
    let last = scene.night(&[]);
    scene.assert_points(&scene.repo, &scene.ids());
    // The first one has nothing so late, and whoever copies it is told.
    let words = with_other("copy", "--to", &scene.repo, &[]);
    let behind = scene.other.run(words).ok().json();
    assert_eq!(behind["warnings"][0]["code"], "went-back", "{behind}");
    assert_eq!(hows(&behind), [""; 0]);
    // Back home: points that the first one does not have, and a notice that it is behind.
    let back = scene.copy(&[]);
    assert_eq!((hows(&back).len(), &back["guests"][0]["present"]), (2, &2.into()));
    assert_eq!(scene.other.points("web/vda").last(), Some(&last));
    scene.assert_points(&scene.other, &scene.ids());
    std::mem::swap(&mut scene.repo, &mut scene.other);
    let point = format!("web@{last}");
    let options = args!["prune", "web", "--keep-last", "9", "--grace", "0", "--json"];
    let fate = scene.repo.run(options).ok().json();
    assert_eq!(fate["guests"][0]["kept"], 4, "{point}");
}

#[test]
fn each_side_has_its_own_key_or_none() {
    let plain = |path| Repo::init(path);
    let sealed = |path| Repo::encrypted(path);
    let scenes = [Scene::of(sealed, plain), Scene::of(plain, sealed), Scene::of(sealed, sealed)];
    for mut scene in scenes {
        scene.night(&[]);
        scene.night(&[]);
        assert_eq!(hows(&scene.copy(&[])), ["copied", "copied"]);
        scene.night(&[]);
        scene.copy(&["--points", "last=1"]);
        scene.assert_points(&scene.other, &scene.ids());
        assert_eq!(scene.against().ok().json()["same"], 3);
        let other = scene.other.without_key();
        if scene.other.key.is_some() && scene.repo.key.is_none() {
            scene.repo.run(with_other("copy", "--to", &other, &[])).fails_with(16);
        }
    }
}

/// Into an object store and out of it again, and by a slow link.
#[test]
fn copies_lie_in_object_stores_and_come_from_there() {
    let mut scene = Scene::of(|path| Repo::init(path), |_| store::new_repo());
    scene.night(&[]);
    scene.night(&[]);
    assert_eq!(hows(&scene.copy(&["--limit-rate", "40M"])), ["copied", "copied"]);
    scene.night(&[]);
    scene.night(&[]);
    assert_eq!(hows(&scene.copy(&["--points", "last=1"])), ["merged"]);
    let ids = scene.ids();
    scene.assert_points(&scene.other, &[ids[0], ids[1], ids[3]]);
    std::mem::swap(&mut scene.repo, &mut scene.other);
    scene.other = Repo::init(scene.lab.path("third")).without_ring();
    assert_eq!(hows(&scene.copy(&["--at-once", "2"])).len(), 3);
    let ids = scene.ids();
    scene.assert_points(&scene.other, &[ids[0], ids[1], ids[3]]);
}

/// A repository is no copy of itself, and two copies of one guest at once do not meet.
#[test]
fn a_copy_into_itself_or_beside_another_writer_is_refused() {
    let mut scene = Scene::new();
    scene.night(&[]);
    let said = scene.repo.run(args!["copy", "--to", scene.repo.path.as_path()]).fails_with(2);
    assert!(said.contains("the repository itself"), "{said}");
    scene.copy(&[]);
    scene.night(&[]);
    let lock = std::fs::File::open(scene.other.place_of("web/.lock")).unwrap();
    // A child of another test may hold the file for a moment longer: what is dropped is not yet unlocked.
    let flock = |file: &std::fs::File, how| rustix::fs::flock(file, how).unwrap();
    flock(&lock, FlockOperation::LockExclusive);
    scene.try_copy(&[]).fails_with(5);
    // Its last line said that nothing was missing.
    let copy = args!["copy", "--to", scene.other.path.as_path()];
    let busy = scene.repo.run([copy, key_of(&scene.other)].concat());
    assert!(busy.text().contains("nothing was copied"), "{}", busy.report());
    flock(&lock, FlockOperation::Unlock);
    assert_eq!(hows(&scene.copy(&[])), ["copied"]);
    // What is read there does not wait, and what is read here keeps nobody from copying.
    scene.night(&[]);
    let keep = std::fs::File::open(scene.repo.place_of("web/.keep")).unwrap();
    flock(&keep, FlockOperation::LockShared);
    assert_eq!(hows(&scene.copy(&[])), ["copied"]);
    flock(&keep, FlockOperation::Unlock);
    // Points that are being removed here are not copied meanwhile.
    let keep = std::fs::File::open(scene.repo.place_of("web/.keep")).unwrap();
    flock(&keep, FlockOperation::LockExclusive);
    scene.try_copy(&[]).fails_with(5);
}
