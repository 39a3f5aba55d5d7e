//! Locks in a store that knows none: who may do what beside whom, who is dead, and what a sleeper can do.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qdelta::ErrorKind;
use qdelta::vault::repository::storage::{
    Local, LockMode, Locked, Name, Publish, S3, Storage, Wait,
};

use crate::harness::images::filled;
use crate::harness::proxy::{Fate, NONE, Proxy, Seen};
use crate::harness::repo::Repo;
use crate::harness::run::{as_root, binary, in_tests};
use crate::harness::store::{BUCKET, address, ask, endpoint, fresh_place, storage};
use crate::harness::{Lab, args, qdelta, run, tool};

/// A place whose locks hold for some seconds, as one host sees it.
pub(super) fn host(endpoint: &str, place: &str, lease: u64) -> S3 {
    storage(&address(endpoint, place)).with_lease(Duration::from_secs(lease))
}

pub(super) fn name(last: &str) -> Name {
    Name::top().join("vm").join(last)
}

fn put(store: &S3, name: &Name, how: Publish) -> Result<(), qdelta::Error> {
    let mut staged = store.stage(name)?;
    staged.write_all(b"content").unwrap();
    staged.seal()?;
    staged.publish(how).map_err(|unpublished| unpublished.error)
}

pub(super) fn is_held(locked: &Locked) -> bool {
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
        let held = one.lock(&name(".keep"), first, Wait::UNHEARD).unwrap();
        assert!(is_held(&held));
        let busy = other.lock(&name(".keep"), second, Wait::UNHEARD).unwrap();
        assert_eq!(is_held(&busy), expected, "{second:?} beside {first:?}");
        if let Locked::Busy(who) = &busy {
            assert!(who.contains(&format!("process {} on", std::process::id())), "{who}");
        }
        drop((held, busy));
        // No trace of either is left.
        assert!(other.list(&Name::top().join("vm")).is_err());
        assert!(is_held(&other.lock(&name(".keep"), second, Wait::UNHEARD).unwrap()));
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
                    let locked = store.lock(&name(".lock"), mode, Wait::UNHEARD).unwrap();
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
    let held = sleeper.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    assert!(is_held(&held));
    put(&sleeper, &name("first"), Publish::New).unwrap();
    // Renewed all the while.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        assert!(!is_held(&other.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()));
        std::thread::sleep(Duration::from_millis(300));
    }
    // Its process lives on this host, so nothing but the lease says that it is dead.
    proxy.judge(|_, _| Fate::Lost);
    let taken = loop {
        match other.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap() {
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
    assert!(!is_held(&sleeper.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()));
    let mut names: Vec<_> = other.list(&Name::top().join("vm")).unwrap().into_iter().collect();
    names.retain(|entry| !entry.name.starts_with('.'));
    let names: Vec<&str> = names.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    drop(taken);
}

/// The age of a lock was the `Date` of an answer minus its `Last-Modified`. Where something in front of the store wrote a
/// `Date` that was ahead by more than the lease, every lock was dead the moment that somebody looked at it.
#[test]
fn a_wrong_date_in_front_of_the_store_makes_no_lock_dead() {
    use LockMode::{Exclusive, Shared};
    let place = fresh_place();
    let proxies = [(); 2].map(|()| Proxy::new(endpoint()));
    for proxy in &proxies {
        proxy.date_ahead.store(60, Ordering::SeqCst);
    }
    let hosts = |lease| [0, 1].map(|number| host(&proxies[number].endpoint, &place, lease));
    let [one, other] = hosts(12);
    for (first, second) in [(Exclusive, Exclusive), (Exclusive, Shared), (Shared, Exclusive)] {
        let held = one.lock(&name(".keep"), first, Wait::UNHEARD).unwrap();
        let busy = other.lock(&name(".keep"), second, Wait::UNHEARD).unwrap();
        assert!(is_held(&held) && !is_held(&busy), "{second:?} beside {first:?}");
        drop((busy, held));
    }
    // Whoever is silent for a whole lease is dead all the same.
    let [one, other] = hosts(6);
    let (alone, shared) = (
        one.lock(&name(".lock"), Exclusive, Wait::UNHEARD).unwrap(),
        one.lock(&name(".keep"), Shared, Wait::UNHEARD).unwrap(),
    );
    proxies[0].judge(|_, _| Fate::Lost);
    for lock in [".lock", ".keep"] {
        assert!(is_held(&other.lock(&name(lock), Exclusive, Wait::UNHEARD).unwrap()), "{lock}");
    }
    proxies[0].pass();
    drop((alone, shared));
}

/// A lock that somebody else has had is no proof of anything, and one that was always its holder's is.
#[test]
fn a_holder_knows_whether_its_lock_was_taken() {
    let place = fresh_place();
    let lab = Lab::new();
    for in_a_store in [true, false] {
        let storage = || -> Box<dyn Storage> {
            match in_a_store {
                true => Box::new(host(endpoint(), &place, 60)),
                false => Box::new(Local::new(lab.dir())),
            }
        };
        let holder = storage();
        let Locked::Held(lock) =
            holder.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()
        else {
            panic!("nobody has it")
        };
        lock.prove(Duration::ZERO).unwrap();
        match in_a_store {
            true => drop(ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok()),
            false => std::fs::remove_file(lab.path("vm/.lock")).unwrap(),
        }
        let thief = storage();
        assert!(is_held(&thief.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()));
        // What was proved a moment ago is not looked at.
        lock.prove(Duration::from_secs(3600)).unwrap_or_else(|_| assert!(!in_a_store));
        let error = lock.prove(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
    }
}

/// A holder that can't look at its lock knows nothing of it: it has not lost it.
#[test]
fn a_lock_that_cannot_be_looked_at_is_held_all_the_same() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let impatient = format!("{}&patience=1", address(&proxy.endpoint, &place).display());
    let store = storage(impatient.as_ref());
    let Locked::Held(lock) =
        store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()
    else {
        panic!("nobody has it")
    };
    proxy.judge(|_, _| Fate::Throttle);
    let error = lock.prove(Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.chain());
    proxy.pass();
    lock.prove(Duration::ZERO).unwrap();
    put(&store, &name("first"), Publish::New).unwrap();
}

/// A host that could not reach the store for longer than its lease, and whose lock nobody has taken, goes on.
#[test]
fn a_host_that_comes_back_in_time_keeps_its_lock() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    proxy.judge(|_, _| Fate::Lost);
    std::thread::sleep(Duration::from_secs(4));
    proxy.pass();
    put(&store, &name("first"), Publish::New).unwrap();
    drop(held);
}

/// Whoever waited for a renewal that was tried for longer than a lease took the end of what it gave for one to come: work
/// failed though nobody had taken the lock and the store was back.
#[test]
fn a_lock_that_was_renewed_late_holds_on() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    let begin = Instant::now();
    proxy.judge(move |_, seen| {
        let is_renewal = seen.method == "PUT" && seen.target.contains("/vm/.lock");
        match is_renewal && begin.elapsed() < Duration::from_secs(6) {
            true => Fate::Throttle,
            false => Fate::Pass,
        }
    });
    // The renewal has begun.
    std::thread::sleep(Duration::from_millis(1500));
    put(&store, &name("first"), Publish::New).unwrap();
    drop(held);
}

/// A `404` of a balancer at one renewal was taken for a lock that was gone.
#[test]
fn one_answer_that_a_lock_is_missing_loses_it_not() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    let Locked::Held(lock) = &held else { panic!("nobody has it") };
    for method in ["PUT", "GET"] {
        let mut was_missing = false;
        proxy.judge(move |_, seen| {
            let is_it = seen.method == method && seen.target.contains("/vm/.lock");
            match is_it && !std::mem::replace(&mut was_missing, true) {
                true => Fate::Missing,
                false => Fate::Pass,
            }
        });
        std::thread::sleep(Duration::from_millis(1500));
        lock.prove(Duration::ZERO).unwrap();
        put(&store, &name(method), Publish::New).unwrap();
    }
    drop(held);
}

/// One renewal whose connection hung held up whoever used the lock for as long as the store may say nothing to others,
/// and the lock was lost of a host whom the store answered all the time.
#[test]
fn a_renewal_that_hangs_loses_no_lock() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let (store, other) = (host(&proxy.endpoint, &place, 8), host(endpoint(), &place, 8));
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    let Locked::Held(lock) = &held else { panic!("nobody has it") };
    let mut renewals = 0;
    proxy.judge(move |_, seen| {
        renewals += usize::from(seen.method == "PUT" && seen.target.contains("/vm/.lock"));
        match (seen.method.as_str(), renewals) {
            // For ever.
            ("PUT", 1) if seen.target.contains("/vm/.lock") => Fate::Slow(600_000),
            // It comes when the lock was written once more.
            ("PUT", 3) if seen.target.contains("/vm/.lock") => Fate::Slow(3000),
            _ => Fate::Pass,
        }
    });
    std::thread::sleep(Duration::from_secs(3));
    put(&store, &name("first"), Publish::New).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let busy = other.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    assert!(!is_held(&busy), "the lock of a host that lives was taken");
    lock.prove(Duration::ZERO).unwrap();
    put(&store, &name("second"), Publish::New).unwrap();
    drop(held);
}

/// Where something takes the `Date` away, changes were signed to end by the clock of this host: where it was ahead, the store
/// took what came long after the lease.
#[test]
fn without_a_date_a_change_ends_by_the_clock_of_the_store() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(NONE, Ordering::SeqCst);
    // This host is ahead by so much.
    proxy.modified_ahead.store(-600, Ordering::SeqCst);
    let store = host(&proxy.endpoint, &place, 60);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    let is_change = |seen: &Seen| seen.method == "PUT" && seen.target.contains("/vm/late");
    proxy.judge(move |_, seen| if is_change(seen) { Fate::Nod } else { Fate::Pass });
    put(&store, &name("late"), Publish::New).unwrap();
    let change = proxy.seen().into_iter().find(is_change).unwrap().target;
    let signed = |field: &str| {
        let value = change.split(['?', '&']).find_map(|it| it.strip_prefix(field)).unwrap();
        value.strip_prefix('=').unwrap().to_owned()
    };
    let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", signed("X-Amz-Date")).unwrap();
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    let ends = at + jiff::SignedDuration::from_secs(signed("X-Amz-Expires").parse().unwrap());
    let most = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(600 - 60);
    assert!(ends <= most, "{ends} is after {most}");
    drop(held);
}

/// Somebody of another host leaves a lock.
pub(super) fn leave_lock(place: &str, lock: &str, lease: u64) {
    leave_lock_of("vm", place, lock, lease);
}

/// The same in the folder of any guest.
pub(super) fn leave_lock_of(guest: &str, place: &str, lock: &str, lease: u64) {
    let text = format!(
        r#"{{"owner":"aa","holder":"process 7 on other","process":{{"boot":"b","namespace":"n","id":7,"began":"5"}},"renewals":3,"lease":{lease}}}"#
    );
    ask("PUT", &format!("/{BUCKET}/{place}/{guest}/{lock}"), args!["--data-binary", text]).ok();
}

/// A lock whose age the clocks did not tell was never watched: one that was left was somebody's for ever.
#[test]
fn a_lock_whose_age_nobody_knows_is_watched() {
    for ahead in [60, NONE] {
        let place = fresh_place();
        let proxy = Proxy::new(endpoint());
        proxy.modified_ahead.store(ahead, Ordering::SeqCst);
        leave_lock(&place, ".lock", 3);
        let store = host(&proxy.endpoint, &place, 3);
        assert!(
            is_held(&store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()),
            "{ahead}"
        );
    }
}

/// Behind something that takes the `Date` away no lock could be taken: it was said to be that of this very process.
#[test]
fn a_store_that_tells_no_date_has_locks() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(NONE, Ordering::SeqCst);
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    assert!(is_held(&held));
    std::thread::sleep(Duration::from_secs(2));
    put(&store, &name("first"), Publish::New).unwrap();
    drop(held);
    assert!(is_held(
        &host(endpoint(), &place, 3)
            .lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD)
            .unwrap()
    ));
}

/// Where the nodes that date objects have another clock than those that judge signatures, every change was refused, and
/// `init` refused the store.
#[test]
fn either_clock_of_a_store_may_judge_signatures() {
    for ahead in [-60, 60] {
        let place = fresh_place();
        let proxy = Proxy::new(endpoint());
        proxy.modified_ahead.store(ahead, Ordering::SeqCst);
        let store = host(&proxy.endpoint, &place, 8);
        let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
        put(&store, &name("first"), Publish::New).unwrap();
        put(&store, &name("second"), Publish::New).unwrap();
        store.remove(&name("first")).unwrap();
        drop(held);
    }
    let proxy = Proxy::new(endpoint());
    proxy.modified_ahead.store(1200, Ordering::SeqCst);
    run(qdelta(args!["init", address(&proxy.endpoint, &fresh_place())])).ok();
}

/// Anybody who may write in the bucket may leave a lock that says that it holds for an hour: it was watched for so long.
#[test]
fn a_lock_that_holds_for_long_is_not_watched() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(7200, Ordering::SeqCst);
    leave_lock(&place, ".lock", 3600);
    let store = host(&proxy.endpoint, &place, 3);
    let Locked::Busy(who) = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap()
    else {
        panic!("somebody may have it")
    };
    assert!(who.contains("longer than this host waits"), "{who}");
}

/// The store itself refuses a change that was signed while the lock was held and comes when it may not be.
#[test]
fn a_change_that_is_delayed_past_the_lease_is_refused_by_the_store() {
    delay_a_change(0);
}

/// The end of a lease was counted by the `Date` of answers: where something in front of the store wrote one that was
/// ahead, the store took what came too late.
#[test]
fn a_change_that_is_delayed_is_refused_behind_a_wrong_date_too() {
    delay_a_change(60);
}

/// A change that was refused as late failed, though the lock was held all the time: with a short lease or clocks that
/// differ, now and then.
#[test]
fn a_change_that_came_late_is_made_once_more_under_a_lock_that_holds() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    let store = host(&proxy.endpoint, &place, 6);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    put(&store, &name("old"), Publish::New).unwrap();
    let mut were_slow = std::collections::BTreeSet::new();
    proxy.judge(move |_, seen| {
        let is_change = seen.target.contains("/vm/late") || seen.target.contains("/vm/old");
        match is_change && were_slow.insert(seen.method.clone()) {
            true => Fate::Slow(7000),
            false => Fate::Pass,
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| put(&store, &name("late"), Publish::New).unwrap());
        store.remove(&name("old")).unwrap();
    });
    drop(held);
    let seen = host(endpoint(), &place, 3);
    assert!(seen.entry(&name("late")).unwrap().is_some());
    assert!(seen.entry(&name("old")).unwrap().is_none());
}

/// Delays a change behind a proxy whose `Date` is so many seconds ahead, until the lock is gone.
fn delay_a_change(ahead: i64) {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(ahead, Ordering::SeqCst);
    let store = host(&proxy.endpoint, &place, 3);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    // On its way for longer than the lease; whatever is sent after that passes.
    let mut was_slow = false;
    let lock = format!("/{BUCKET}/{place}/vm/.lock");
    proxy.judge(move |_, seen| {
        let is_change = seen.method == "PUT" && seen.target.contains("/vm/late");
        if is_change && !std::mem::replace(&mut was_slow, true) {
            ask("DELETE", &lock, Vec::new()).ok();
            return Fate::Slow(5000);
        }
        // Nor does a renewal bring it back that was just on its way.
        if was_slow && seen.method == "PUT" && seen.target.contains("/vm/.lock") {
            return Fate::Missing;
        }
        match is_change {
            true => Fate::Lost,
            false => Fate::Pass,
        }
    });
    let error = put(&store, &name("late"), Publish::New).unwrap_err();
    assert!(error.chain().contains("403"), "{}", error.chain());
    // It was said that the access key may be wrong.
    let advice = error.advice().unwrap_or_default();
    assert!(error.kind() == ErrorKind::Busy && advice.contains("clock"), "{advice}");
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

/// Where `/proc` hides the processes of others (`hidepid`), a living holder of another user's was taken for dead, and its
/// lock was taken at once.
#[test]
fn a_holder_that_proc_hides_is_alive() {
    let lab = Lab::new();
    let place = fresh_place();
    // In the plain: the folder of its lock is called as the guest is.
    run(qdelta(args!["init", address(endpoint(), &place)])).ok();
    let repo = Repo::at(address(endpoint(), &place));
    let image = filled(&lab, "disk.qcow2", "", 1 << 20, 1);
    // The program may lie where only its owner looks.
    let program = lab.path("qdelta");
    run(tool("install", args!["-m", "755", binary(), program.as_path()])).ok();
    run(as_root("chown", args!["-R", "65534:65534", lab.dir()])).ok();
    let store = host(endpoint(), &place, 60);
    let held = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    assert!(is_held(&held));
    let script = "mount -t proc -o hidepid=2 proc /proc && \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups \
                  sh -c 'test ! -e /proc/1 && exec \"$0\" \"$@\"' \"$@\"";
    let mut all = args!["--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    all.push(program.into());
    all.extend(repo.args(args!["backup", image.as_path(), "--disk", "vm/disk"]));
    let mut command = as_root("unshare", all);
    in_tests(&mut command);
    let own = lab.path("state");
    command.env("STATE_DIRECTORY", &own).env("CACHE_DIRECTORY", own.join("cache"));
    let said = run(command).fails_with(5);
    assert!(said.contains("is being written to by process"), "{said}");
    drop(held);
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
    let writes = store.lock(&name(".lock"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    let said = repo.run(backup.clone()).fails_with(5);
    assert!(said.contains("is being written to by process"), "{said}");
    repo.run(restore.clone()).ok();
    let removes = store.lock(&name(".keep"), LockMode::Exclusive, Wait::UNHEARD).unwrap();
    repo.run(restore.clone()).fails_with(5);
    drop((writes, removes));
    let reads = store.lock(&name(".keep"), LockMode::Shared, Wait::UNHEARD).unwrap();
    repo.run(backup).ok();
    repo.run(restore).ok();
    drop(reads);
    repo.assert_no_leftovers();
}
