//! Locks in a store that knows none: who may do what beside whom, who is dead, and what a sleeper can do.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qdelta::ErrorKind;
use qdelta::vault::repository::storage::{LockMode, Locked, Name, Publish, S3, Storage};

use crate::harness::images::filled;
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::Repo;
use crate::harness::store::{address, endpoint, fresh_place, storage};
use crate::harness::{Lab, args};

/// A place whose locks hold for some seconds, as one host sees it.
fn host(endpoint: &str, place: &str, lease: u64) -> S3 {
    storage(format!("{}&lease={lease}", address(endpoint, place).display()).as_ref())
}

fn name(last: &str) -> Name {
    Name::top().join("vm").join(last)
}

fn put(store: &S3, name: &Name, how: Publish) -> Result<(), qdelta::Error> {
    let mut staged = store.stage(name)?;
    staged.write_all(b"content").unwrap();
    staged.seal()?;
    staged.publish(how).map_err(|unpublished| unpublished.error)
}

fn is_held(locked: &Locked) -> bool {
    matches!(locked, Locked::Held(_))
}

#[test]
fn one_has_a_lock_alone_or_several_share_it() {
    use LockMode::{Exclusive, Shared};
    let place = fresh_place();
    let [one, other] = [(); 2].map(|()| host(endpoint(), &place, 60));
    for (first, second, expected) in [
        (Exclusive, Exclusive, false),
        (Exclusive, Shared, false),
        (Shared, Exclusive, false),
        (Shared, Shared, true),
    ] {
        let held = one.lock(&name(".keep"), first).unwrap();
        assert!(is_held(&held));
        let busy = other.lock(&name(".keep"), second).unwrap();
        assert_eq!(is_held(&busy), expected, "{second:?} beside {first:?}");
        if let Locked::Busy(who) = &busy {
            assert!(who.contains(&format!("process {} on", std::process::id())), "{who}");
        }
        drop((held, busy));
        // No trace of either is left.
        assert!(other.list(&Name::top().join("vm")).is_err());
        assert!(is_held(&other.lock(&name(".keep"), second).unwrap()));
    }
}

/// Of many who reach for a lock at the same moment one has it: again and again.
#[test]
fn of_many_who_reach_for_a_lock_one_has_it() {
    let place = fresh_place();
    let barrier = Arc::new(std::sync::Barrier::new(6));
    for _ in 0..10 {
        let held = std::thread::scope(|scope| {
            let reach = |number: usize| {
                let (barrier, store) = (Arc::clone(&barrier), host(endpoint(), &place, 60));
                let mode = if number < 4 { LockMode::Exclusive } else { LockMode::Shared };
                scope.spawn(move || {
                    barrier.wait();
                    let locked = store.lock(&name(".lock"), mode).unwrap();
                    barrier.wait();
                    (mode, is_held(&locked))
                })
            };
            let threads: Vec<_> = (0..6).map(reach).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let count = |mode| held.iter().filter(|it| **it == (mode, true)).count();
        let (alone, shared) = (count(LockMode::Exclusive), count(LockMode::Shared));
        assert!(alone <= 1 && (alone == 0 || shared == 0), "{held:?}");
    }
}

/// A holder that lives keeps its lock however long it takes; one that the store hears nothing of loses it when
/// its lease is over, and not before. What it changes then is refused, and the other one's work stands.
#[test]
fn a_host_that_went_silent_loses_its_lock_and_can_change_nothing() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let (sleeper, other) = (host(&proxy.endpoint, &place, 4), host(endpoint(), &place, 4));
    let held = sleeper.lock(&name(".lock"), LockMode::Exclusive).unwrap();
    assert!(is_held(&held));
    put(&sleeper, &name("first"), Publish::New).unwrap();
    // Renewed all the while.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        assert!(!is_held(&other.lock(&name(".lock"), LockMode::Exclusive).unwrap()));
        std::thread::sleep(Duration::from_millis(300));
    }
    // Its process lives on this host, so nothing but the lease says that it is dead.
    proxy.judge(|_, _| Fate::Lost);
    let taken = loop {
        match other.lock(&name(".lock"), LockMode::Exclusive).unwrap() {
            Locked::Busy(_) => std::thread::sleep(Duration::from_millis(100)),
            held => break held,
        }
    };
    put(&other, &name("second"), Publish::New).unwrap();
    proxy.pass();
    for (last, how) in [("third", Publish::New), ("second", Publish::Replace)] {
        let error = put(&sleeper, &name(last), how).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
    }
    assert_eq!(sleeper.remove(&name("first")).unwrap_err().kind(), ErrorKind::Busy);
    // The loser's end does not end the lock of the other.
    drop(held);
    assert!(!is_held(&sleeper.lock(&name(".lock"), LockMode::Exclusive).unwrap()));
    let mut names: Vec<_> = other.list(&Name::top().join("vm")).unwrap().into_iter().collect();
    names.retain(|entry| !entry.name.starts_with('.'));
    let names: Vec<&str> = names.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    drop(taken);
}

/// A host that could not reach the store for longer than its lease, and whose lock nobody has taken, goes on.
#[test]
fn a_host_that_comes_back_in_time_keeps_its_lock() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive).unwrap();
    proxy.judge(|_, _| Fate::Lost);
    std::thread::sleep(Duration::from_secs(4));
    proxy.pass();
    put(&store, &name("first"), Publish::New).unwrap();
    drop(held);
}

/// The store itself refuses a change that was signed while the lock was held and comes when it may not be.
#[test]
fn a_change_that_is_delayed_past_the_lease_is_refused_by_the_store() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive).unwrap();
    // On its way for longer than the lease; whatever is sent after that passes.
    let mut was_slow = false;
    proxy.judge(move |_, seen| {
        let is_change = seen.method == "PUT" && seen.target.contains("/vm/late");
        if is_change && !std::mem::replace(&mut was_slow, true) {
            return Fate::Slow(5000);
        }
        match is_change {
            true => Fate::Lost,
            false => Fate::Pass,
        }
    });
    let error = put(&store, &name("late"), Publish::New).unwrap_err();
    assert!(error.chain().contains("403"), "{}", error.chain());
    proxy.pass();
    drop(held);
    assert_eq!(host(endpoint(), &place, 3).entry(&name("late")).unwrap(), None);
}

/// Two hosts that replace what both have read: one of them is told.
#[test]
fn what_was_replaced_meanwhile_is_not_replaced_again() {
    let place = fresh_place();
    let [one, other] = [(); 2].map(|()| host(endpoint(), &place, 60));
    put(&one, &name("a"), Publish::New).unwrap();
    for store in [&one, &other] {
        assert_eq!(store.read(&name("a"), 100).unwrap(), b"content");
    }
    let mut staged = other.stage(&name("a")).unwrap();
    staged.write_all(b"of the other").unwrap();
    staged.seal().unwrap();
    staged.publish(Publish::Replace).unwrap();
    let error = put(&one, &name("a"), Publish::Replace).unwrap_err();
    assert!(error.chain().contains("another process"), "{}", error.chain());
    assert_eq!(put(&one, &name("a"), Publish::New).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(one.read(&name("a"), 100).unwrap(), b"of the other");
    put(&one, &name("a"), Publish::Replace).unwrap();
}

/// A backup is refused while another one runs, as in a folder.
#[test]
fn commands_are_refused_beside_each_other_as_in_a_folder() {
    let lab = Lab::new();
    let place = fresh_place();
    let repo = Repo::init(address(endpoint(), &place));
    let image = filled(&lab, "disk.qcow2", "", 1 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    let store = host(endpoint(), &place, 60);
    let output = lab.path("restored.raw");
    let backup = args!["backup", image.as_path(), "--disk", "vm/disk"];
    let restore = args!["restore", "vm/disk", output.as_path(), "--force"];
    let writes = store.lock(&name(".lock"), LockMode::Exclusive).unwrap();
    let said = repo.run(backup.clone()).fails_with(5);
    assert!(said.contains("is being written to by process"), "{said}");
    repo.run(restore.clone()).ok();
    let removes = store.lock(&name(".keep"), LockMode::Exclusive).unwrap();
    repo.run(restore.clone()).fails_with(5);
    drop((writes, removes));
    let reads = store.lock(&name(".keep"), LockMode::Shared).unwrap();
    repo.run(backup).ok();
    repo.run(restore).ok();
    drop(reads);
    repo.assert_no_leftovers();
}
