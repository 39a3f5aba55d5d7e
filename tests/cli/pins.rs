//! `pin`, `unpin`, and what a list shows of marks.

use qdelta::formats::archive::Kind;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{Marks, PointId, Removal, Repository};
use serde_json::Value;

use super::points::Shelf;
use super::{Run, json, qdelta};

/// Runs a command on the repository of a shelf.
pub(super) fn on(shelf: &Shelf, words: &[&str]) -> Run {
    let mut command = qdelta();
    command.args(words).env("QDELTA_REPO", shelf.path()).env("TZ", "UTC");
    command.output().unwrap().into()
}

#[track_caller]
pub(super) fn done(shelf: &Shelf, words: &[&str]) -> String {
    let run = on(shelf, words);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{words:?}: {}", run.stdout);
    run.stdout
}

#[track_caller]
pub(super) fn refused(shelf: &Shelf, status: i32, words: &[&str]) -> String {
    let run = on(shelf, words);
    assert_eq!((run.status, run.stdout.as_str()), (status, ""), "{words:?}: {}", run.stderr);
    run.stderr
}

/// Marks a point as removed, as pruning does.
fn remove(repository: &Repository, domain: &str, point: PointId) {
    let lock = repository.lock(&domain.parse().unwrap(), Wait::UNHEARD).unwrap();
    let mark = |marks: &mut Marks| {
        let at = point.time();
        let until = "2999-01-01T00:00:00Z".parse().unwrap();
        marks.removed = Some(Removal { at, until, reason: "no rule keeps it".to_owned() });
        Ok(())
    };
    repository.mark(&lock, point, mark).unwrap();
}

#[test]
fn a_pin_is_shown_and_taken_away() {
    let shelf = Shelf::new();
    let first = shelf.add("vm/disk", 0, Kind::Full, None);
    shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    let pin = &["pin", "vm@2026-11-20", "--reason", "the audit", "--until", "2998-06", "--json"];
    let pinned: Value = serde_json::from_str(&done(&shelf, pin)).unwrap();
    assert_eq!(pinned["point"], first.to_string());
    assert_eq!(pinned["pins"][0]["until"], "2998-06-30T23:59:59.999Z");
    let list = done(&shelf, &["points"]);
    assert!(list.contains("full, pinned") && !list.contains("incremental, pinned"), "{list}");
    let listed: Value = serde_json::from_str(&done(&shelf, &["points", "--json"])).unwrap();
    assert_eq!(listed["disks"][0]["points"][0]["pins"][0]["reason"], "the audit");
    let of_tape = ["pin", "vm@2026-11-20", "--holder", "tape", "--json"];
    let pinned: Value = serde_json::from_str(&done(&shelf, &of_tape)).unwrap();
    let kept = done(&shelf, &["unpin", &first.to_string()]);
    assert!(kept.contains("stays pinned: --holder tape"), "{kept}");
    let unpinned = done(&shelf, &["unpin", &first.to_string(), "--holder", "tape"]);
    assert!(unpinned.contains("no more"), "{unpinned}");
    assert!(done(&shelf, &["unpin", "vm@2026-11-20"]).contains("was not pinned"));
    assert!(!done(&shelf, &["points"]).contains("pinned"));
    json::compare("pin, unpin, undelete", &[&pinned], &[]);
}

/// A guest is one: its point is pinned with all its disks, and stays so for each of them.
#[test]
fn who_means_no_point_is_told_so() {
    let shelf = Shelf::new();
    let point = shelf.add("vm/disk", 0, Kind::Full, None);
    shelf.add("web/disk", 0, Kind::Full, None);
    for (status, words, said) in [
        (2, &["pin", "vm"] as &[&str], "GUEST@POINT"),
        (2, &["pin", &point.to_string()], "2 guests"),
        (6, &["pin", "20261120T120000.001Z"], "no guest"),
        (6, &["pin", "vm@20261121"], "has no point"),
        (6, &["pin", "other@latest"], "other"),
        (2, &["pin", "vm@latest", "--holder", "a tape"], "letters, digits"),
        (2, &["pin", "vm@latest", "--until", "2001"], "is past"),
        (2, &["pin", "vm@latest", "--until", "yesterday"], "is past"),
        (2, &["pin", "vm@latest", "--until", "soon"], "is no date"),
        (2, &["pin", "vm@latest", "--reason", &"x".repeat(201)], "fewer words"),
    ] {
        let stderr = refused(&shelf, status, words);
        assert!(stderr.contains(said), "{words:?}: {stderr}");
    }
    done(&shelf, &["pin", &format!("vm@{point}")]);
    let lock = shelf.repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    refused(&shelf, 5, &["unpin", &format!("vm@{point}")]);
    drop(lock);
}

/// A list said "1 point in 0 chains": rules had removed the full, and a chain was counted by its full.
#[test]
fn a_chain_counts_without_its_full() {
    let shelf = Shelf::new();
    let full = shelf.add("vm/disk", 0, Kind::Full, None);
    let second = shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    shelf.add("vm/disk", 2, Kind::Differential, Some(0));
    shelf.add("vm/disk", 3, Kind::Incremental, Some(1));
    remove(&shelf.repository, "vm", full);
    let list = done(&shelf, &["points"]);
    assert!(list.starts_with("vm/disk: 3 points in 1 chain,"), "{list}");
    remove(&shelf.repository, "vm", second);
    let other = shelf.add("vm/disk", 4, Kind::Full, None);
    let chains = || {
        let listed: Value = serde_json::from_str(&done(&shelf, &["points", "--json"])).unwrap();
        listed["totals"]["chains"].as_u64()
    };
    assert_eq!(chains(), Some(2));
    remove(&shelf.repository, "vm", other);
    assert_eq!(chains(), Some(1));
}

#[test]
fn removed_points_are_shown_only_to_who_asks() {
    let shelf = Shelf::new();
    shelf.add("vm/disk", 0, Kind::Full, None);
    let second = shelf.add("vm/disk", 1, Kind::Incremental, Some(0));
    shelf.add("vm/disk", 2, Kind::Incremental, Some(1));
    remove(&shelf.repository, "vm", second);
    let list = done(&shelf, &["points"]);
    assert!(list.starts_with("vm/disk: 2 points in 1 chain"), "{list}");
    assert!(!list.contains("2026-11-21"), "{list}");
    // Nothing said why the repository was larger than its list.
    assert!(list.contains("beside them 1 removed point of 1023 MiB"), "{list}");
    // The third still hangs below the first.
    assert_eq!(list.lines().filter(|line| line.contains("2026-11-2")).count(), 2, "{list}");
    let all = done(&shelf, &["points", "--removed"]);
    assert!(all.contains("incremental, removed") && all.contains("3 points in 1 chain"), "{all}");
    assert!(!all.contains("beside them"), "{all}");
    let count = |words: &[&str]| {
        let listed: Value = serde_json::from_str(&done(&shelf, words)).unwrap();
        listed["disks"][0]["points"].as_array().unwrap().len()
    };
    assert_eq!(count(&["points", "--json"]), 2);
    assert_eq!(count(&["points", "--json", "--removed"]), 3);
    assert_eq!(refused(&shelf, 6, &["pin", "vm@20261121"]).lines().count(), 2);
    let id = format!("vm@{second}");
    assert!(refused(&shelf, 2, &["pin", &id]).contains("undelete"));
}
