//! Backups into storages that fail, or die, at each call in turn.

use std::io::Write;
use std::sync::Arc;

use super::storage::faulty::{Fault, Faulty};
use super::storage::memory::Memory;
use super::storage::{KeyText, Local, Storage};
use super::tests::{back_up, disk};
use super::*;
use crate::vault::age::Identity;

const FAULTS: [Fault; 4] = [
    Fault { works: false, kills: false },
    Fault { works: true, kills: false },
    Fault { works: false, kills: true },
    Fault { works: true, kills: true },
];

/// The key of the repository; none of one that is not encrypted.
type Key<'a> = Option<&'a KeyText>;

/// The points of the disk, each proved to be whole.
fn points(storage: &Arc<dyn Storage>, key: Key<'_>, id: &DiskId) -> Vec<PointId> {
    let repository = Repository::open_in_with(Arc::clone(storage), key).unwrap();
    let catalog = repository.catalog();
    let list = catalog.points(id).unwrap();
    assert!(list.damaged.is_empty() && list.unreadable.is_empty(), "{list:?}");
    for point in &list.points {
        let chain = catalog.chain_of(point).unwrap();
        for archive in chain {
            assert_eq!(repository.storage().read(&archive, 10).unwrap(), b"data", "{archive}");
        }
    }
    list.points.iter().map(|point| point.id).collect()
}

/// An incremental backup over `before`, a storage with one full, with `fault` at call number `at`.
/// `settle` is what happens before somebody looks again. Gives whether the call was reached.
fn interrupt(
    before: &Arc<dyn Storage>,
    key: Key<'_>,
    faulty: &Arc<Faulty>,
    settle: impl FnOnce(),
    story: &str,
) -> bool {
    let id = disk("vm/vda");
    let full = points(before, key, &id);
    assert_eq!(full.len(), 1, "{story}");
    let storage: Arc<dyn Storage> = Arc::clone(faulty) as Arc<dyn Storage>;
    let outcome = Repository::open_in_with(storage, key)
        .and_then(|repository| back_up(&repository, &id, Kind::Incremental));
    let reached = faulty.reached();
    settle();

    let after = points(before, key, &id);
    assert_eq!(after.first(), full.first(), "{story}: the full is lost");
    match outcome {
        Ok(point) => assert_eq!(after.last(), Some(&point), "{story}: promised and lost"),
        Err(error) => assert!(reached, "{story}: {}", error.chain()),
    }

    // Whatever is left is no obstacle, and the next backup removes what belongs to nothing.
    let repository = Repository::open_in_with(Arc::clone(before), key).unwrap();
    let last = back_up(&repository, &id, Kind::Incremental).unwrap();
    assert_eq!(points(before, key, &id).last(), Some(&last), "{story}");
    let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
    let (cleaned, _) = repository.clean(&lock).unwrap();
    assert!(cleaned.removed.is_empty(), "{story}: {cleaned:?}");
    assert!(cleaned.kept.is_empty(), "{story}: {cleaned:?}");
    reached
}

/// Sweeps over all calls of a backup. `fresh` makes a storage, and what cuts its power.
fn sweep(identity: Option<&Identity>, fresh: impl Fn() -> (Arc<dyn Storage>, Box<dyn Fn()>)) {
    let key = identity.map(|identity| KeyText::Identities(vec![identity.clone()]));
    for fault in FAULTS {
        for cuts in [false, true] {
            let mut calls = 0;
            loop {
                let (storage, cut) = fresh();
                let keys = identity.map(|identity| NewKeys { identity, wraps: Vec::new() });
                let (begun, settings) = (Arc::clone(&storage), Settings::default());
                let repository = Repository::init_in_with(begun, &settings, keys.as_ref()).unwrap();
                back_up(&repository, &disk("vm/vda"), Kind::Full).unwrap();
                let faulty = Arc::new(Faulty::new(Arc::clone(&storage), calls, fault));
                let story = format!("call {calls}, {fault:?}, power cut: {cuts}");
                let settle = || {
                    if cuts && fault.kills {
                        cut();
                    }
                };
                if !interrupt(&storage, key.as_ref(), &faulty, settle, &story) {
                    break;
                }
                calls += 1;
            }
            assert!(calls > 15, "only {calls} calls were tried");
        }
    }
}

#[test]
fn a_backup_into_memory_survives_a_fault_at_every_call() {
    sweep(None, || {
        let memory = Memory::default();
        let cut = memory.clone();
        (Arc::new(memory), Box::new(move || cut.cut_power()))
    });
}

#[test]
fn a_backup_into_a_folder_survives_a_fault_at_every_call() {
    sweep(None, || {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path());
        // It lives as long as the storage is looked at.
        (Arc::new(local), Box::new(move || assert!(dir.path().exists())))
    });
}

#[test]
fn a_backup_that_is_encrypted_survives_a_fault_at_every_call() {
    sweep(Some(&Identity::new().unwrap()), || {
        let memory = Memory::default();
        let cut = memory.clone();
        (Arc::new(memory), Box::new(move || cut.cut_power()))
    });
}

/// A sweep finds nothing if a storage forgets nothing.
#[test]
fn a_power_cut_takes_what_was_not_sealed() {
    let memory = Memory::default();
    let name = Name::top().join("file");
    let mut staged = memory.stage(&name).unwrap();
    staged.write_all(b"first").unwrap();
    staged.seal().unwrap();
    staged.announce().unwrap();
    staged.write_all(b"second").unwrap();
    memory.cut_power();
    staged.publish(storage::Publish::New).unwrap();
    assert_eq!(memory.read(&name, 100).unwrap(), b"first");
    assert_eq!(memory.names(), std::slice::from_ref(&name));

    let mut staged = memory.stage(&Name::top().join("other")).unwrap();
    staged.seal().unwrap();
    memory.cut_power();
    assert!(staged.publish(storage::Publish::New).is_err(), "it was never announced");
}

/// Readers share a domain with a writer, and nobody removes what they read.
#[test]
fn readers_keep_what_they_read_and_writers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let storages: [Arc<dyn Storage>; 2] =
        [Arc::new(Memory::default()), Arc::new(Local::new(dir.path()))];
    for storage in storages {
        let repository = Repository::init_in(storage, &Settings::default()).unwrap();
        let domain: DomainName = "web".parse().unwrap();
        let busy = |outcome: Result<()>| {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Busy);
        };
        let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
        busy(repository.lock(&domain, Wait::UNHEARD).map(drop));
        let holds = [
            repository.hold(&domain, Wait::UNHEARD).unwrap(),
            repository.hold(&domain, Wait::UNHEARD).unwrap(),
        ];
        assert!(repository.clear(&lock, Wait::UNHEARD).unwrap().is_none());
        drop(holds);
        let clearance = repository.clear(&lock, Wait::UNHEARD).unwrap().unwrap();
        busy(repository.hold(&domain, Wait::UNHEARD).map(drop));
        drop(clearance);
        repository.hold(&domain, Wait::UNHEARD).unwrap();
        drop(lock);
        repository.lock(&domain, Wait::UNHEARD).unwrap();
    }
}
