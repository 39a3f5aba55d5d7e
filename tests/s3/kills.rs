//! The program is killed at every request that it makes, and each request fails in every way that
//! networks know. Whatever the moment, earlier points stay whole, and the next run goes on.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::content::{Guest, Random};
use crate::harness::files::assert_same;
use crate::harness::images::{create, guest_io, oracle, qemu_img};
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::{describe, finish, start};
use crate::harness::store::{BUCKET, address, ask, endpoint, fresh_place};
use crate::harness::{Lab, Outcome, args, qdelta, sweep};

const MIB: u64 = 1 << 20;

/// A repository with two points, and an image that changes before each try.
struct Scene {
    lab: Lab,
    proxy: Proxy,
    /// By the proxy.
    repo: Repo,
    /// By nobody.
    straight: Repo,
    image: PathBuf,
    guest: Guest,
    points: Vec<(String, PathBuf)>,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let image = lab.path("disk.qcow2");
        create(&image, "", 3 * MIB);
        let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
        let straight = Repo::init(address(endpoint(), &place)).without_ring();
        let repo = Repo::at(address(&proxy.endpoint, &place)).without_ring();
        let guest = Guest::new(lab.dir(), 5);
        let mut scene = Self { lab, proxy, repo, straight, image, guest, points: Vec::new() };
        for _ in 0..2 {
            let now = scene.change();
            let done = scene.straight.backup(&scene.image, "vm/disk", &[]);
            scene.points.push((point_of(&done), now));
        }
        scene
    }

    /// The guest writes; gives what its disk holds then.
    fn change(&mut self) -> PathBuf {
        guest_io(&self.image, "qcow2", &self.guest.fill(3 * MIB, 3));
        let now = self.lab.path(format!("{}.raw", self.points.len()));
        oracle(args!["-f", "qcow2", self.image.as_path()], &now);
        now
    }

    fn backup(&self) -> Vec<OsString> {
        let mut arguments = self.repo.args(args!["backup", self.image.as_path()]);
        arguments.extend(args!["--disk", "vm/disk", "--json", "--io", "threads", "--threads", "1"]);
        arguments
    }

    /// Runs a backup whose request number `at` meets its fate.
    fn run(
        &self,
        arguments: Vec<OsString>,
        at: usize,
        fate: impl Fn(u32) -> Fate + Send + 'static,
    ) -> Outcome {
        let id = Arc::new(AtomicU32::new(0));
        let known = Arc::clone(&id);
        self.proxy.judge(move |number, _| match number == at {
            true => {
                // The first requests may come before this process has heard of its child.
                while known.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                fate(known.load(Ordering::SeqCst))
            }
            false => Fate::Pass,
        });
        let mut command = qdelta(arguments);
        let child = start(&mut command);
        id.store(child.id(), Ordering::SeqCst);
        finish(child, describe(&command)).sane()
    }

    /// Every earlier point is there and whole; gives the ids of later ones.
    #[track_caller]
    fn assert_earlier_points(&self) -> Vec<String> {
        let mut ids = self.straight.points("vm/disk");
        let later = ids.split_off(self.points.len().min(ids.len()));
        let expected: Vec<String> = self.points.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids, expected, "earlier points");
        later
    }
}

/// Tries `fate` at each request of a backup in turn; gives how many there were.
fn at_every_request(fate: impl Fn(u32) -> Fate + Copy + Send + 'static) -> usize {
    let mut scene = Scene::new();
    let mut at = 0;
    loop {
        let now = scene.change();
        let outcome = scene.run(scene.backup(), at, fate);
        let was_met = scene.proxy.seen().len() > at;
        let later = scene.assert_earlier_points();
        assert!(later.len() <= 1, "one run, at most one point: {later:?}");
        if outcome.code() == Some(0) {
            assert_eq!(later, [point_of(&outcome.json())], "it said that it was done");
        } else {
            assert!(outcome.killed() || !outcome.stderr.trim().is_empty(), "{}", outcome.report());
        }
        // The same disk once more, by whoever comes next: the lock of the dead one is no hindrance.
        let next = match later.first() {
            Some(id) => id.clone(),
            None => point_of(&scene.straight.backup(&scene.image, "vm/disk", &[])),
        };
        scene.straight.assert_restores_raw(&scene.lab, &format!("vm/disk@{next}"), &now);
        scene.points.push((next, now));
        if !was_met {
            break;
        }
        at += 1;
    }
    scene.change();
    scene
        .points
        .push((point_of(&scene.straight.backup(&scene.image, "vm/disk", &[])), PathBuf::new()));
    scene.assert_earlier_points();
    scene.straight.verify();
    scene.straight.assert_no_leftovers();
    at
}

#[test]
fn a_backup_that_is_killed_before_any_request_leaves_every_point_whole() {
    let requests = at_every_request(Fate::KillBefore);
    assert!(requests > 5, "{requests} requests");
}

#[test]
fn a_backup_that_is_killed_after_any_request_leaves_every_point_whole() {
    at_every_request(Fate::KillAfter);
}

/// A request that was done and not answered, one that was never done, one that is refused for now, an
/// answer that ends too soon: each is made good, and no backup fails of it.
#[test]
fn a_backup_gets_over_whatever_happens_to_one_request() {
    for fate in [Fate::Unanswered, Fate::Lost, Fate::Throttle, Fate::Cut] {
        let mut scene = Scene::new();
        let mut at = 0;
        loop {
            let now = scene.change();
            let outcome = scene.run(scene.backup(), at, move |_| fate);
            let id = point_of(&outcome.ok().json());
            if sweep() > 1 || at % 4 == 0 {
                scene.straight.assert_restores_raw(&scene.lab, &format!("vm/disk@{id}"), &now);
            }
            scene.points.push((id, now));
            if scene.proxy.seen().len() <= at {
                break;
            }
            at += 1;
        }
        assert_eq!(scene.assert_earlier_points(), [""; 0], "{fate:?}");
        scene.straight.verify();
        scene.straight.assert_no_leftovers();
    }
}

/// Merges and prunes, killed at one request after the other: what is listed is whole, and the next run goes
/// on from there.
#[test]
fn a_merge_or_prune_that_is_killed_at_any_request_loses_no_point() {
    let mut scene = Scene::new();
    let step = 5_usize.div_ceil(sweep() as usize);
    let prune = ["prune", "--keep-last", "2", "--grace", "0h"].map(OsString::from).to_vec();
    let mut killed = 0;
    let (mut at, mut turn) = (0, 0);
    loop {
        let now = scene.change();
        let id = point_of(&scene.straight.backup(&scene.image, "vm/disk", &[]));
        scene.points.push((id, now));
        let words = match turn % 2 {
            0 => args!["merge", "vm/disk", "--io", "threads", "--threads", "1"],
            _ => [prune.clone(), args!["--io", "threads", "--threads", "1"]].concat(),
        };
        let words = match turn % 2 {
            0 => {
                let ids = scene.straight.points("vm/disk");
                let mut words = words;
                words[1] = format!("vm/disk@{}..{}", ids[ids.len() - 3], ids[ids.len() - 2]).into();
                words
            }
            _ => words,
        };
        let fate = if at % 2 == 0 { Fate::KillBefore } else { Fate::KillAfter };
        let outcome = scene.run(scene.repo.args(words.clone()), at, fate);
        let was_met = scene.proxy.seen().len() > at;
        killed += usize::from(outcome.killed());
        assert!(outcome.killed() || outcome.code() == Some(0), "{}", outcome.report());
        let listed = scene.straight.points("vm/disk");
        for (id, expected) in scene.points.iter().rev().take(2) {
            assert!(listed.contains(id), "{id} is lost at {at}");
            scene.straight.assert_restores_raw(&scene.lab, &format!("vm/disk@{id}"), expected);
        }
        // What is left is made good by the next one.
        scene.straight.run(prune.clone()).ok();
        scene.straight.verify();
        if !was_met && turn > 1 {
            break;
        }
        (at, turn) = (at + step, turn + 1);
    }
    assert!(killed > 4, "{killed} were killed");
    scene.straight.assert_no_leftovers();
}

/// Killed between the parts of an archive: nobody completes that upload, and the next backup ends it.
#[test]
fn a_kill_between_parts_leaves_no_upload() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let straight = Repo::init(address(endpoint(), &place)).without_ring();
    let by_proxy = format!("{}&part-size=5MiB", address(&proxy.endpoint, &place).display());
    let repo = Repo::at(by_proxy.into()).without_ring();
    let raw = lab.path("disk.raw");
    let mut random = Random::new(3);
    std::fs::write(&raw, random.noise(12 << 20)).unwrap();
    let image = lab.path("disk.qcow2");
    qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), image.as_path()]).ok();
    let id = Arc::new(AtomicU32::new(0));
    let known = Arc::clone(&id);
    proxy.judge(move |_, seen| match seen.target.contains("partNumber=2") {
        true => Fate::KillAfter(known.load(Ordering::SeqCst)),
        false => Fate::Pass,
    });
    let words = args!["backup", image.as_path(), "--disk", "vm/disk", "--io", "threads"];
    let mut command = qdelta(repo.args(words));
    let child = start(&mut command);
    id.store(child.id(), Ordering::SeqCst);
    assert!(finish(child, describe(&command)).sane().killed());
    let uploads = || {
        let target = format!("/{BUCKET}?prefix={place}&uploads=");
        ask("GET", &target, Vec::new()).ok().text().matches("<UploadId>").count()
    };
    assert_eq!(uploads(), 1);
    straight.backup(&image, "vm/disk", &[]);
    assert_eq!(uploads(), 0, "an upload that nobody completes is paid for");
    let output = lab.path("restored.raw");
    straight.restore("vm/disk", &output, &[]).ok();
    assert_same(&raw, &output, "the next backup");
    straight.assert_no_leftovers();
}
