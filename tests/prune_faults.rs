//! A fault at every call of the storage while points are pruned, and whoever dies of it: every point that
//! stays is whole at every moment, the next run goes on, and afterwards nothing is left over.

use std::sync::Arc;

use qdelta::flows::merge::MergeOptions;
use qdelta::flows::prune::{self, PruneRequest};
use qdelta::flows::report::Spare;
use qdelta::vault::repository::storage::Storage;
use qdelta::vault::repository::storage::faulty::{Fault, Faulty};
use qdelta::{Cancel, Error, ErrorKind, PointId, Repository, Silent};

use crate::harness::sweep;
use crate::merge_faults::{FAULTS, Scene, resources};
use crate::prunes::request;

/// Prunes down to the newest so many points, without grace. What is spared but for its share fails.
fn prune(storage: Arc<dyn Storage>, last: u32) -> qdelta::Result<()> {
    let repository = Repository::open_in(storage)?;
    let request = PruneRequest {
        domains: vec!["vm".parse()?],
        merging: MergeOptions { level: 1, resources: resources() },
        ..request(last)
    };
    let report = prune::run(&repository, &request, &Silent, &Cancel::default())?;
    let guest = &report.guests[0];
    if let Some(failure) = &guest.error {
        return Err(Error::new(failure.kind, failure.text.clone()));
    }
    for spared in &guest.data.spared {
        if !matches!(spared.why, Spare::Share { .. }) {
            return Err(Error::new(ErrorKind::Io, format!("{spared:?}")));
        }
    }
    Ok(())
}

/// One try: a fault at call number `call`. Gives whether that many calls were made.
fn try_at(scene: &Scene, last: u32, (call, fault): (u64, Fault), cuts: bool) -> bool {
    let story = format!("keep {last}, call {call}, {fault:?}, power cut: {cuts}");
    let stay: Vec<PointId> = scene.points[scene.points.len() - last as usize..].to_vec();
    let memory = scene.copy();
    let faulty = Arc::new(Faulty::new(Arc::new(memory.clone()), call, fault));
    let outcome = prune(Arc::clone(&faulty) as Arc<dyn Storage>, last);
    let reached = faulty.reached();
    drop(faulty);
    if cuts {
        memory.cut_power();
    }
    let listed = scene.check(&memory, &stay, &story);
    if !reached {
        outcome.unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
        assert_eq!(listed, stay, "{story}");
    }
    prune(Arc::new(memory.clone()), last)
        .unwrap_or_else(|error| panic!("{story}: {}", error.chain()));
    assert_eq!(scene.check(&memory, &stay, &story), stay, "{story}");
    scene.verify(&memory, &story);
    let archives = memory.names().into_iter();
    let archives = archives.filter(|name| name.last().ends_with(".qdelta")).count();
    let disks = scene.states.iter().filter(|state| stay.contains(&state.point)).count();
    assert_eq!(archives, disks, "{story}: {:?}", memory.names());
    reached
}

/// `QDELTA_SWEEP=9` tries every fault at every call; otherwise each call is tried by some.
fn sweep_over(full: Option<usize>, last: u32) {
    let scene = Scene::new(full);
    let step = 9_u64.div_ceil(sweep());
    let variants = FAULTS.into_iter().flat_map(|fault| {
        let cuts = [false, true].into_iter().filter(move |cuts| fault.kills || !cuts);
        cuts.map(move |cuts| (fault, cuts))
    });
    for (phase, (fault, cuts)) in (0..).zip(variants) {
        let mut call = phase % step;
        while try_at(&scene, last, (call, fault), cuts) {
            call += step;
        }
        assert!(call > 40, "only {call} calls were made");
    }
}

#[test]
fn a_prune_that_merges_survives_a_fault_at_every_call() {
    sweep_over(None, 2);
}

/// A chain of which nothing is kept goes without a merge.
#[test]
fn a_prune_that_drops_survives_a_fault_at_every_call() {
    sweep_over(Some(3), 2);
}

/// The oldest points go with their chain, and one more becomes part of the next.
#[test]
fn a_prune_that_drops_and_merges_survives_a_fault_at_every_call() {
    sweep_over(Some(2), 2);
}
