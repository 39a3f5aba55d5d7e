//! Damage on one side: what is copied all the same, what two repositories say of each other, and what comes back.

use std::path::PathBuf;

use serde_json::Value;

use super::{Scene, hows, with_other};
use crate::cli::json::compare;
use crate::harness::files::assert_same;
use crate::harness::repo::Repo;
use crate::harness::stored::Stored;

/// The archive of a point.
pub(super) fn archive(repo: &Repo, point: &str) -> Stored {
    let is_it = |name: &PathBuf| name.file_name().unwrap().to_string_lossy().starts_with(point);
    repo.stored_as(repo.archives().into_iter().find(is_it).unwrap())
}

pub(super) fn manifest(repo: &Repo, point: &str) -> Stored {
    repo.stored_as(format!("web/points/{point}.json"))
}

/// Flips a byte in the middle of a file.
fn flip(file: &Stored) {
    let middle = file.bytes().len() / 3;
    file.patch(middle as u64, &[file.bytes()[middle] ^ 0x40]);
}

/// A damaged point was copied, or stopped all that came after it.
#[test]
fn a_damaged_point_is_named_and_the_others_go_on() {
    let mut scene = Scene::new();
    for kind in ["full", "incremental", "incremental", "full", "incremental"] {
        scene.night(&["--kind", kind]);
    }
    flip(&archive(&scene.repo, &scene.points[1].0));
    let outcome = scene.try_copy(&[]);
    let report = outcome.json();
    outcome.fails_with(4);
    let failed = report["guests"][0]["failed"].as_array().unwrap();
    let failed: Vec<&str> = failed.iter().map(|it| it["point"].as_str().unwrap()).collect();
    assert_eq!(failed[0], scene.ids()[1], "{report}");
    // The point after it comes where none of the damaged blocks shows through.
    let mut ids = scene.ids();
    ids.retain(|id| !failed.contains(id));
    assert!(ids.len() >= 3, "{report}");
    scene.assert_points(&scene.other, &ids);
    compare("copy", &[&report], super::RARE_BUT_FAILED);
    // What was copied before the damage is what later points build on.
    let mut scene = Scene::new();
    scene.night(&[]);
    scene.night(&[]);
    scene.copy(&[]);
    flip(&archive(&scene.repo, &scene.points[1].0));
    scene.night(&["--kind", "full"]);
    assert_eq!(hows(&scene.copy(&[])), ["copied"]);
    scene.assert_points(&scene.other, &scene.ids());
}

/// Each kind of damage at each point of a chain: everything comes back, and nothing else changes.
#[test]
fn what_is_damaged_or_lost_comes_back_from_the_other_side() {
    let mut scene = Scene::new();
    for _ in 0..4 {
        scene.night(&[]);
    }
    let points: Vec<String> = scene.ids().into_iter().map(str::to_owned).collect();
    scene.copy(&[]);
    // The other side shows two of the points by a merged archive.
    let range = format!("web@{}..{}", points[1], points[2]);
    scene.other.run(crate::harness::args!["merge", range.as_str()]).ok();
    let kept = scene.lab.path("kept");
    scene.repo.copy_to(&kept);
    assert_eq!(scene.against().code(), Some(17));
    assert!(scene.repair(&[]).ok().json()["guests"].as_array().unwrap().is_empty());
    type Break = fn(&Repo, &str);
    let breaks: [(&str, Break); 5] = [
        ("a flipped bit", |repo, point| flip(&archive(repo, point))),
        ("a lost archive", |repo, point| archive(repo, point).remove()),
        ("a damaged manifest", |repo, point| flip(&manifest(repo, point))),
        ("a lost manifest", |repo, point| manifest(repo, point).remove()),
        ("both damaged", |repo, point| {
            flip(&archive(repo, point));
            flip(&manifest(repo, point));
        }),
    ];
    for (what, damage) in breaks {
        for number in [0, 2, 3] {
            scene.repo.put_back(&kept);
            damage(&scene.repo, &points[number]);
            let planned = scene.repair(&["--dry-run"]).ok().json();
            let mended = scene.repair(&[]).ok().json();
            let count = |report: &Value| report["guests"][0]["mended"].as_array().unwrap().len();
            assert!(count(&mended) >= 1, "{what} of point {number}: {mended}");
            assert_eq!(count(&planned), count(&mended), "{what}: {planned} {mended}");
            // A backup removes what a manifest that came back does not name.
            scene.repo.run(crate::harness::args!["prune", "--keep-last", "9"]).ok();
            scene.assert_points(&scene.repo, &scene.ids());
        }
    }
}

/// The record of an archive that lay there when its manifest came had no copy of its first bytes: one flipped byte
/// among them cost all of it.
#[test]
fn the_beginning_of_an_archive_that_was_found_is_in_its_manifest() {
    for by_repair in [false, true] {
        let mut scene = Scene::of(|path| Repo::init(path), |path| Repo::encrypted(path));
        let point = scene.night(&[]);
        scene.copy(&[]);
        manifest(&scene.other, &point).remove();
        match by_repair {
            true => drop(scene.other.run(with_other("repair", "--from", &scene.repo, &[])).ok()),
            false => drop(scene.copy(&[])),
        }
        let found = archive(&scene.other, &point);
        found.patch(180, &[found.bytes()[180] ^ 1]);
        let output = scene.lab.path("salvaged.raw");
        scene.other.restore("web/vda", &output, &["--salvage"]).ok();
        assert_same(&scene.points[0].1, &output, "salvaged by the copy of its beginning");
        // Nobody was told that the archive is damaged.
        let told = scene.other.run(crate::harness::args!["points"]).stderr;
        assert!(told.contains(found.name()), "{told}");
    }
}

/// What both sides have lost stays as it is, and is named.
#[test]
fn what_neither_side_has_is_named() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.night(&[]);
    }
    let points: Vec<String> = scene.ids().into_iter().map(str::to_owned).collect();
    scene.copy(&[]);
    scene.night(&[]);
    flip(&archive(&scene.repo, &points[1]));
    flip(&archive(&scene.repo, &scene.points[3].0));
    flip(&archive(&scene.other, &points[0]));
    let outcome = scene.repair(&[]);
    let report = outcome.json();
    outcome.fails_with(4);
    let guest = &report["guests"][0];
    assert_eq!(guest["mended"][0]["point"], points[1].as_str(), "{report}");
    assert_eq!(guest["failed"][0]["point"], scene.points[3].0.as_str(), "{report}");
    let rare = [".guests[].error", ".guests[].failed[].error.advice", ".guests[].only_there[]"];
    compare("repair", &[&report], &rare);
    for (point, disk) in &scene.points[..3] {
        scene.repo.assert_restores_raw(&scene.lab, &format!("web/vda@{point}"), disk);
    }
}

#[test]
fn two_repositories_say_what_each_one_has() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.night(&[]);
    }
    scene.copy(&[]);
    assert_eq!(scene.against().ok().json()["same"], 3);
    let only_here = scene.night(&[]);
    std::mem::swap(&mut scene.repo, &mut scene.other);
    let only_there = scene.night(&[]);
    std::mem::swap(&mut scene.repo, &mut scene.other);
    let one = scene.against();
    assert_eq!(one.code(), Some(17));
    assert_eq!(one.json()["guests"][0]["only_here"][0], only_here.as_str());
    archive(&scene.repo, &scene.points[1].0).remove();
    archive(&scene.other, &only_there).remove();
    let outcome = scene.against();
    let report = outcome.json();
    assert_eq!(outcome.code(), Some(4), "{report}");
    assert_eq!(report["same"], 1);
    let rare =
        [".guests[].different[]", ".guests[].different[].point", ".guests[].different[].what"];
    compare("verify --against", &[&one.json(), &report], &rare);
}

/// Whoever was killed while replacing the manifest of a point left a staged one, and no pin could be set any more:
/// "File exists".
#[test]
fn a_staged_manifest_of_a_point_that_has_one_is_in_nobodys_way() {
    let mut scene = Scene::new();
    let point = scene.night(&[]);
    scene.copy(&[]);
    let staged = |repo: &Repo| {
        let manifest = manifest(repo, &point);
        let staged = format!(".{}.partial", manifest.name());
        repo.stored(manifest.file.with_file_name(staged)).write(b"half");
    };
    let pin = format!("web@{point}");
    staged(&scene.repo);
    scene.repo.run(crate::harness::args!["pin", pin.as_str(), "--reason", "the audit"]).ok();
    staged(&scene.other);
    scene.copy(&[]);
    flip(&archive(&scene.repo, &point));
    staged(&scene.repo);
    scene.repair(&[]).ok();
    scene.assert_points(&scene.repo, &[&point]);
    scene.assert_points(&scene.other, &[&point]);
}

/// A point whose manifest was lost or damaged got that of another guest's point of the same id, though its own
/// archive lay there, or a later one built on it: restores showed the other guest's disk, and the next backup
/// removed the sound archive.
#[test]
fn no_other_content_comes_under_a_lost_manifest() {
    let (mut scene, mut stranger) = (Scene::new(), Scene::stranger());
    for hour in ["10", "11"] {
        let time = format!("2026-11-01 {hour}:00:00");
        assert_eq!(scene.night_at(&time), stranger.night_at(&time));
    }
    scene.night(&[]);
    let points: Vec<String> = scene.ids().into_iter().map(str::to_owned).collect();
    std::mem::swap(&mut scene.other, &mut stranger.repo);
    let kept = scene.lab.path("kept");
    scene.repo.copy_to(&kept);
    type Break = fn(&Repo, &str);
    let breaks: [Break; 3] = [
        |repo, point| manifest(repo, point).remove(),
        |repo, point| flip(&manifest(repo, point)),
        // What it was is told by the next point alone.
        |repo, point| {
            flip(&manifest(repo, point));
            archive(repo, point).remove();
        },
    ];
    for (damage, status) in breaks.into_iter().zip([7, 7, 12]) {
        for point in &points[..2] {
            scene.repo.put_back(&kept);
            damage(&scene.repo, point);
            let now =
                || Some(manifest(&scene.repo, point)).filter(Stored::is_there).map(|it| it.bytes());
            let before = now();
            for options in [&["--dry-run"][..], &[]] {
                let outcome = scene.repair(options);
                let report = outcome.json();
                outcome.fails_with(status);
                let said = report["guests"][0]["failed"][0]["error"]["text"].as_str().unwrap();
                assert!(said.contains("shows another disk"), "{report}");
            }
            assert_eq!(now(), before);
            // And the same by a copy of the other one.
            let copied =
                scene.other.run(with_other("copy", "--to", &scene.repo, &["--same-guest"]));
            assert_ne!(copied.code(), Some(0), "{}", copied.report());
            assert_eq!(now(), before);
        }
    }
}

/// A point that was removed came back living when its manifest was damaged: with all that its owner had asked to
/// be removed, and a pinned one without its pin.
#[test]
fn a_removed_point_whose_manifest_is_mended_stays_removed() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.night(&[]);
    }
    scene.copy(&[]);
    let points: Vec<String> = scene.ids().into_iter().map(str::to_owned).collect();
    scene.repo.run(crate::harness::args!["prune", "--keep-last", "1", "--grace", "7d"]).ok();
    let pin = format!("web@{}", points[2]);
    scene.repo.run(crate::harness::args!["pin", pin.as_str(), "--reason", "the audit"]).ok();
    for point in &points {
        flip(&manifest(&scene.repo, point));
    }
    assert_eq!(scene.repair(&[]).ok().json()["guests"][0]["mended"].as_array().unwrap().len(), 3);
    assert_eq!(scene.repo.points("web/vda"), [points[2].as_str()]);
    let list = scene.repo.run(crate::harness::args!["points", "--removed", "--json"]).ok().json();
    let listed = list["disks"][0]["points"].as_array().unwrap();
    assert_eq!(listed.len(), 3, "{list}");
    assert_eq!(listed[2]["pins"][0]["reason"], "the audit", "{list}");
    let removed = format!("web@{}", points[0]);
    scene.repo.run(crate::harness::args!["undelete", removed.as_str()]).ok();
    scene.assert_points(&scene.repo, &[&points[0], &points[2]]);
}
