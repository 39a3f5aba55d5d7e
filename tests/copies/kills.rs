//! A copy that is killed at calls by which it changes files there: earlier points stay whole, the next copy goes
//! on, and nothing is left over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Scene, with_other};
use crate::harness::faults::{Fault, count_calls, plan, run_with};
use crate::harness::files::copy_tree;
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::Repo;
use crate::harness::run::{describe, finish, start};
use crate::harness::store::{address, endpoint, fresh_place};
use crate::harness::{qdelta, sweep};

#[test]
fn a_copy_that_is_killed_leaves_every_point_whole() {
    let mut scene = Scene::new();
    scene.night(&[]);
    scene.copy(&[]);
    scene.night(&[]);
    scene.night(&[]);
    let kept = scene.lab.path("kept");
    copy_tree(&scene.other.path, &kept);
    let mut words = scene.repo.args(with_other("copy", "--to", &scene.other, &[]));
    words.extend(crate::harness::args!["--threads", "1"]);
    let counts = count_calls(&scene.lab, words.clone());
    let tries = plan(&counts, &[Fault::Kill], 2 * sweep());
    let mut killed = 0;
    for injection in &tries {
        copy_tree(&kept, &scene.other.path);
        let outcome = run_with(injection, words.clone()).sane();
        killed += u64::from(outcome.killed());
        let listed = scene.other.points("web/vda");
        assert_eq!(listed[0], scene.points[0].0, "{injection}");
        scene.other.verify();
        scene.copy(&[]);
        assert_eq!(scene.other.points("web/vda"), scene.ids(), "{injection}");
        scene.other.verify();
        scene.other.assert_no_leftovers();
    }
    assert!(killed > 5, "{killed} of {} were killed", tries.len());
    scene.assert_points(&scene.other, &scene.ids());
}

/// The same of a copy to an object store, at requests before and after they are done: `QDELTA_SWEEP=5` tries all.
#[test]
fn a_copy_to_a_store_that_is_killed_leaves_every_point_whole() {
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let mut scene = Scene::of(|path| Repo::init(path), |_| Repo::init(address(endpoint(), &place)));
    let by_proxy = Repo::at(address(&proxy.endpoint, &place)).without_ring();
    let (mut at, mut killed) = (0, 0);
    loop {
        scene.night(&[]);
        scene.night(&[]);
        let id = Arc::new(AtomicU32::new(0));
        let known = Arc::clone(&id);
        proxy.judge(move |number, _| match number == at {
            true => {
                // The first requests may come before this process has heard of its child.
                while known.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                let child = known.load(Ordering::SeqCst);
                if at % 2 == 0 { Fate::KillBefore(child) } else { Fate::KillAfter(child) }
            }
            false => Fate::Pass,
        });
        let mut command = qdelta(scene.repo.args(with_other("copy", "--to", &by_proxy, &[])));
        let child = start(&mut command);
        id.store(child.id(), Ordering::SeqCst);
        let outcome = finish(child, describe(&command)).sane();
        killed += u32::from(outcome.killed());
        let was_met = proxy.seen().len() > at;
        let mut listed = Vec::new();
        if outcome.code() == Some(0) || killed > 1 {
            listed = scene.other.points("web/vda");
            scene.other.verify();
        }
        assert!(scene.ids().starts_with(&listed.iter().map(String::as_str).collect::<Vec<_>>()));
        scene.copy(&[]);
        assert_eq!(scene.other.points("web/vda"), scene.ids(), "request {at}");
        if !was_met {
            println!("{} requests for two points", proxy.seen().len());
            break;
        }
        at += usize::try_from(5_u64.div_ceil(sweep())).unwrap();
    }
    assert!(killed > 2, "{killed} copies were killed");
    scene.other.verify();
    scene.other.assert_no_leftovers();
}
