//! What a night costs in requests, each of which costs money and a way to the store.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::harness::images::{filled, qemu_img};
use crate::harness::proxy::{Fate, NONE, Proxy, Seen};
use crate::harness::repo::Repo;
use crate::harness::store::{address, endpoint, fresh_place, locked_place};
use crate::harness::{Lab, args, qdelta, run};

/// A guest that wrote nothing since the last backup.
#[test]
fn an_unchanged_night_costs_ten_requests_at_most() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let cache = lab.path("cache");
    let repo = Repo::init(with_cache(&proxy, &place, &cache));
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    let night = |most: usize| {
        proxy.pass();
        repo.backup(&image, "vm/disk", &[]);
        let seen = proxy.seen();
        assert!(seen.len() <= most, "{} requests:\n{}", seen.len(), told(&seen));
    };
    // One of them is a look at the lock, where the night takes longer than a second.
    for _ in 0..3 {
        night(10);
    }
    // A host that has lost its cache pays for it once.
    std::fs::remove_dir_all(&cache).unwrap();
    night(12);
    night(10);
    // Without a `Date` the lock is looked at when it was written.
    proxy.date_ahead.store(NONE, Ordering::SeqCst);
    night(11);
    assert_eq!(repo.points("vm/disk").len(), 7);
    repo.verify();
}

/// Where the store locks what is written, looks at the locks of the new files come to that; nobody lists the versions
/// of what this host has made itself.
#[test]
fn an_unchanged_night_lists_no_versions() {
    let lab = Lab::new();
    let proxy = Proxy::new(endpoint());
    let place = locked_place().to_str().unwrap().replace(endpoint(), &proxy.endpoint);
    let place = PathBuf::from(format!("{place}&cache={}", lab.path("cache").display()));
    run(qdelta(args!["init", place.as_path(), "--lock", "30d"])).ok();
    let repo = Repo::at(place).without_ring();
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    repo.backup(&image, "vm/disk", &[]);
    for _ in 0..2 {
        proxy.pass();
        repo.backup(&image, "vm/disk", &[]);
        let seen = proxy.seen();
        let lists = seen.iter().filter(|it| it.target.contains("vm%2F&versions=")).count();
        assert!(lists == 0 && seen.len() <= 12, "{} requests:\n{}", seen.len(), told(&seen));
    }
}

fn with_cache(proxy: &Proxy, place: &str, cache: &std::path::Path) -> PathBuf {
    let address = address(&proxy.endpoint, place);
    PathBuf::from(format!("{}&cache={}", address.display(), cache.display()))
}

fn told(seen: &[Seen]) -> String {
    seen.iter().map(|it| format!("{} {}\n", it.method, it.target)).collect()
}

/// Somebody who has never read the chain opens it: what it takes is asked for many at a time. Counted by how
/// many are on their way at once, and not by the clock.
#[test]
fn a_chain_of_many_archives_is_opened_many_at_a_time() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let repo = Repo::init(with_cache(&proxy, &place, &lab.path("cache")));
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    for _ in 0..40 {
        repo.backup(&image, "vm/disk", &["--io", "threads"]);
    }
    std::fs::remove_dir_all(lab.path("cache")).unwrap();
    // Each answer waits for those that come with it: one after the other would be as many waits as requests.
    proxy.judge(|_, _| Fate::Slow(100));
    let most = std::sync::Arc::clone(&proxy.most_at_once);
    most.store(0, Ordering::SeqCst);
    let output = lab.path("restored.raw");
    repo.run(args!["restore", "vm/disk", output.as_path(), "--io", "threads"]).ok();
    let most = most.load(Ordering::SeqCst);
    let seen = proxy.seen();
    assert!(most >= 16, "at most {most} at once:\n{}", told(&seen));
    // A look at each archive was a list each: twelve seconds before the first byte behind a hundred. A disk that is
    // named is looked for by its points and archives alone.
    let lists = seen.iter().filter(|it| it.target.contains("list-type")).count();
    assert!(lists < 6, "{lists} lists:\n{}", told(&seen));
}

/// Whoever looks for damage reads what lies in the store, and not what this host remembers of it.
#[test]
fn verify_sees_damage_that_the_cache_would_hide() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let repo = Repo::init(with_cache(&proxy, &place, &lab.path("cache")));
    // So small that all of its archive lies in the cache.
    let (raw, image) = (lab.path("disk.raw"), lab.path("disk.qcow2"));
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), image.as_path()]).ok();
    repo.backup(&image, "vm/disk", &[]);
    repo.verify();
    // The store gives other bytes under the same ETag, as one does whose disk has gone bad.
    proxy.judge(|_, seen| {
        match seen.target.contains(".qdelta") && !seen.target.contains("prefix=") {
            true => Fate::Flipped,
            false => Fate::Pass,
        }
    });
    let outcome = repo.run(args!["verify"]).sane();
    assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
    proxy.pass();
    repo.verify();
}
