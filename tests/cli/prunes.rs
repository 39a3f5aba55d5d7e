//! `prune` on the points alone, and `undelete`: what stays is shown with its reasons, and what goes can
//! be brought back.

use std::fs;
use std::ops::Range;

use qdelta::formats::archive::Kind;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{Marks, PointId, Removal};
use serde_json::Value;

use super::pins::{done, on, refused};
use super::points::Shelf;
use super::{json, word};
use crate::harness::content::Random;
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, args};

/// So many nights of one guest.
fn nights(count: u64) -> Shelf {
    let shelf = Shelf::new();
    shelf.add("vm/disk", 0, Kind::Full, None);
    for day in 1..count {
        shelf.add("vm/disk", day, Kind::Incremental, Some(day - 1));
    }
    shelf
}

fn of(shelf: &Shelf, words: &[&str]) -> Value {
    let words: Vec<&str> = words.iter().chain(&["--json", "--trust-clock"]).copied().collect();
    serde_json::from_str(&done(shelf, &words)).unwrap()
}

/// The days of the points that stay, as the ids have them.
fn kept(report: &Value) -> Vec<String> {
    let points = report["guests"][0]["points"].as_array().unwrap();
    let stays = points.iter().filter(|point| point["fate"] == "keep");
    stays.map(|point| point["point"].as_str().unwrap()[..8].to_owned()).collect()
}

#[test]
fn a_dry_run_shows_every_point_and_does_nothing() {
    let shelf = nights(6);
    done(&shelf, &["pin", "vm@2026-11-21", "--reason", "the audit"]);
    let manifests = || {
        let files = fs::read_dir(shelf.path().join("vm/points")).unwrap();
        let mut all: Vec<_> = files.map(|it| fs::read(it.unwrap().path()).unwrap()).collect();
        all.sort();
        all
    };
    let before = manifests();
    let words = ["prune", "--dry-run", "--keep-daily", "2", "--keep-monthly", "2", "--trust-clock"];
    for columns in [80, 60] {
        let mut command = super::qdelta();
        command.args(words).env("QDELTA_REPO", shelf.path()).env("COLUMNS", columns.to_string());
        let list = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(list.starts_with("vm: 4 points stay, 2 would be removed\n"), "{list}");
        assert!(list.lines().skip(1).all(|line| line.chars().count() <= columns), "{list}");
        for said in ["no rule keeps it", "pinned (the audit)", "oldest (monthly)", "daily"] {
            assert!(list.contains(said), "no {said} in\n{list}");
        }
    }
    let report = of(&shelf, &words[..6]);
    assert_eq!(kept(&report), ["20261120", "20261121", "20261124", "20261125"]);
    assert_eq!(manifests(), before);
    // And data that goes: a full that nothing builds on, and one that the next night wrote over; but not
    // a night whose blocks all stand.
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let (image, mut bytes) = (lab.path("disk.raw"), vec![0; 1 << 20]);
    let mut random = Random::new(1);
    let mut night = |kind, half: Range<usize>| {
        bytes[half.clone()].copy_from_slice(&random.noise(half.len()));
        fs::write(&image, &bytes).unwrap();
        point_of(&repo.backup(&image, "vm/disk", &["--format", "raw", "--kind", kind]))
    };
    night("full", 0..1 << 20);
    night("full", 0..1 << 20);
    let pinned = night("incremental", 0..1 << 20);
    night("incremental", 0..1 << 19);
    night("incremental", 1 << 19..1 << 20);
    repo.run(args!["pin", format!("vm@{pinned}")]).ok();
    let words = args!["prune", "--keep-daily=1", "--grace=0", "--json"];
    let planned = repo.run([words.clone(), args!["--dry-run"]].concat()).ok().json();
    let done = repo.run(words).ok().json();
    json::compare(
        "prune",
        &[&report, &planned, &done],
        &[
            ".guests[].data.spared[].problem",
            ".guests[].data.spared[].problem.advice",
            ".guests[].error",
            ".guests[].error.advice",
            ".guests[].error.kind",
            ".guests[].error.text",
            ".guests[].points[].reasons[].instead_of",
            ".guests[].points[].reasons[].until",
            ".keep.hourly",
            ".keep.last",
            ".keep.safety",
            ".keep.weekly",
            ".keep.within",
            ".keep.yearly",
        ],
    );
}

#[test]
fn what_is_removed_can_be_brought_back() {
    let shelf = nights(4);
    let report = of(&shelf, &["prune", "vm", "--keep-last", "2", "--grace", "3d"]);
    assert_eq!((&report["guests"][0]["removed"], kept(&report).len()), (&2.into(), 2));
    assert!(done(&shelf, &["points"]).starts_with("vm/disk: 2 points"));
    // Again: nothing more goes, and those that went are told.
    let again = of(&shelf, &["prune", "vm", "--keep-last", "2"]);
    assert_eq!(again["guests"][0]["removed"], 0);
    assert_eq!(again["guests"][0]["removed_before"], 2);
    let id = again["guests"][0]["points"][1]["point"].as_str().unwrap();
    let back = done(&shelf, &["undelete", &format!("vm@{id}")]);
    assert!(back.contains("is back"), "{back}");
    assert!(done(&shelf, &["points"]).starts_with("vm/disk: 3 points"));
    let stderr = refused(&shelf, 2, &["undelete", &format!("vm@{id}")]);
    assert!(stderr.contains("is not removed"), "{stderr}");
}

/// A script that lost its options must not take everything away.
#[test]
fn a_policy_that_keeps_nothing_is_refused() {
    let shelf = nights(3);
    for words in [
        &["prune"] as &[&str],
        &["prune", "--dry-run"],
        &["prune", "--keep-safety", "1d"],
        &["prune", "--keep-last", "0"],
        &["prune", "--keep-daily", "-1"],
        &["prune", "--keep-within", "7m"],
        &["prune", "vm/disk", "--keep-last", "1"],
    ] {
        refused(&shelf, 2, words);
    }
    refused(&shelf, 6, &["prune", "other", "--keep-last", "1"]);
    assert!(done(&shelf, &["points"]).starts_with("vm/disk: 3 points"));
}

#[test]
fn the_settings_hold_where_no_rule_is_typed() {
    let shelf = nights(4);
    let toml = shelf.path().join("qdelta.toml");
    let text = fs::read_to_string(&toml).unwrap().replace("[keep]", "[keep]\nlast = 1");
    fs::write(&toml, &text).unwrap();
    assert_eq!(kept(&of(&shelf, &["prune", "--dry-run"])).len(), 1);
    assert_eq!(kept(&of(&shelf, &["prune", "--dry-run", "--keep-daily", "3"])).len(), 3);
    fs::write(&toml, text.replace("last = 1", "lost = 1")).unwrap();
    let stderr = refused(&shelf, 2, &["prune", "--dry-run"]);
    assert!(stderr.contains("lost") && stderr.contains("line"), "{stderr}");
    // Nothing but pruning minds.
    done(&shelf, &["points"]);
}

/// One guest that is being backed up, or is damaged, is no reason to leave the others as they are.
#[test]
fn a_guest_that_is_busy_stops_no_other() {
    let shelf = nights(3);
    for day in 0..3 {
        shelf.add("web/disk", day, Kind::Full, None);
    }
    let lock = shelf.repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let run = on(&shelf, &["prune", "--keep-last", "1", "--json", "--trust-clock"]);
    drop(lock);
    assert_eq!(run.status, 5, "{}", run.stderr);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["guests"][0]["error"]["kind"], "busy");
    assert_eq!(report["guests"][1]["removed"], 2);
}

/// The clock stood years ahead for a night, or nobody backed up for long: that must be said first.
#[test]
fn nothing_goes_by_a_clock_that_jumped() {
    let shelf = nights(4);
    let day = |year: u64| 365 * year;
    let (ahead, before) = (day(60), 3);
    shelf.add("vm/disk", ahead, Kind::Incremental, Some(before));
    // Everything but the last point is past; that one lies ahead of the clock.
    let report = of(&shelf, &["prune", "--keep-last", "2", "--dry-run"]);
    assert_eq!(kept(&report).len(), 3, "{report:#}");
    assert!(report.to_string().contains("future"));
}

/// A point that was removed while the clock stood in 2990 could be brought back for a thousand years, and
/// took room as long.
#[test]
fn a_grace_by_a_clock_that_stood_ahead_begins_anew() {
    let shelf = nights(2);
    let points = of(&shelf, &["prune", "--keep-last", "2", "--dry-run"]);
    let first: PointId =
        points["guests"][0]["points"][0]["point"].as_str().unwrap().parse().unwrap();
    let lock = shelf.repository.lock(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let mark = |marks: &mut Marks| {
        let [at, until] =
            ["2990-01-01T00:00:00Z", "2991-01-01T00:00:00Z"].map(|it| it.parse().unwrap());
        marks.removed = Some(Removal { at, until, reason: "no rule keeps it".to_owned() });
        Ok(())
    };
    shelf.repository.mark(&lock, first, mark).unwrap();
    drop(lock);
    let until = || {
        let list: Value =
            serde_json::from_str(&done(&shelf, &["points", "--removed", "--json"])).unwrap();
        list["disks"][0]["points"][0]["removed"]["until"].as_str().unwrap().to_owned()
    };
    of(&shelf, &["prune", "--keep-last", "2", "--dry-run"]);
    assert_eq!(until(), "2991-01-01T00:00:00Z");
    of(&shelf, &["prune", "--keep-last", "2"]);
    let anew = until();
    assert!(anew.as_str() < "2990", "{anew}");
    of(&shelf, &["prune", "--keep-last", "2"]);
    assert_eq!(until(), anew, "a grace that has begun goes on");
}

/// A point whose archive is cut short took the place of the good one before it.
#[test]
fn a_point_that_cant_be_restored_is_told_and_displaces_no_other() {
    let shelf = Shelf::new();
    for day in 0..4 {
        shelf.add("vm/disk", day, Kind::Full, None);
    }
    let archives = fs::read_dir(shelf.path().join("vm/disk")).unwrap();
    let last = archives.map(|it| it.unwrap().path()).max().unwrap();
    fs::File::options().write(true).open(last).unwrap().set_len(100).unwrap();
    let report = of(&shelf, &["prune", "--keep-daily", "1"]);
    assert_eq!(kept(&report), ["20261122", "20261123"], "{report:#}");
    assert_eq!(report["guests"][0]["points"][3]["damaged"], true);
}

/// The rules of a repository mean the same wherever `prune` runs.
#[test]
fn days_are_those_of_the_zone_that_init_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    let made = super::done(&["init", word(&repo), "--time-zone", "Asia/Tokyo", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["time_zone"], "Asia/Tokyo");
    assert!(fs::read_to_string(repo.join("qdelta.toml")).unwrap().contains("\"Asia/Tokyo\""));
    let other = dir.path().join("other");
    let stderr = super::refused(2, &["init", word(&other), "--time-zone", "Mars/Olympus"]);
    assert!(stderr.contains("Mars/Olympus") && !other.exists(), "{stderr}");
}
