//! The program is killed at every request that it makes, and each request fails in every way that
//! networks know. Whatever the moment, earlier points stay whole, and the next run goes on.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::content::Guest;
use crate::harness::images::{create, guest_io, oracle};
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::{describe, finish, start};
use crate::harness::store::{address, endpoint, fresh_place};
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
