//! What a copy and a comparison say of what is not as it should be: a status of 0 is what people look at.

use std::fs;
use std::os::unix::fs::symlink;

use qdelta::base::printable::shell_word;

use super::mended::{archive, manifest};
use super::{Scene, hows, with_other};
use crate::harness::args;
use crate::harness::repo::Repo;
use crate::harness::stored::Stored;

/// A link to the repository passed as a second copy of it: "nothing is missing there".
#[test]
fn a_link_to_the_repository_is_no_copy() {
    let mut scene = Scene::new();
    scene.night(&[]);
    let link = scene.lab.path("link");
    symlink(&scene.repo.path, &link).unwrap();
    scene.other = Repo::at(link).without_ring();
    for outcome in [scene.try_copy(&[]), scene.against(), scene.repair(&[])] {
        let said = outcome.fails_with(2);
        assert!(said.contains("the repository itself"), "{said}");
    }
}

/// Archives of the copy were gone, points were removed there, and a manifest was lost here: each time the copy
/// said that nothing was missing, and the comparison that all was the same.
#[test]
fn what_the_copy_has_lost_is_told() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.night(&[]);
    }
    scene.copy(&[]);
    let lost = archive(&scene.other, scene.ids()[1]);
    let kept = lost.bytes();
    lost.remove();
    for options in [&[][..], &["--dry-run"]] {
        let outcome = scene.try_copy(options);
        let report = outcome.json();
        let said = outcome.fails_with(4);
        assert_eq!(report["guests"][0]["failed"].as_array().unwrap().len(), 2, "{report}");
        assert!(said.contains("can't be restored whole"), "{said}");
        let there = shell_word(scene.other.path.to_str().unwrap());
        let mend = format!("qdelta repair --repo {there}");
        assert!(said.contains(&mend), "{said}");
    }
    lost.write(&kept);
    scene.copy(&[]);
    // Removed there, and still there for the days of grace.
    scene.other.run(args!["prune", "--keep-last", "1", "--grace", "7d"]).ok();
    let outcome = scene.against();
    let report = outcome.json();
    assert_eq!(outcome.code(), Some(17), "{report}");
    assert_eq!(report["guests"][0]["only_here"].as_array().unwrap().len(), 2, "{report}");
    // Here a manifest is lost, and its archive is not.
    manifest(&scene.repo, scene.ids()[2]).remove();
    let outcome = scene.try_copy(&[]);
    let report = outcome.json();
    outcome.fails_with(4);
    assert_eq!(report["guests"][0]["failed"][0]["point"], scene.ids()[2], "{report}");
    let outcome = scene.against();
    let report = outcome.json();
    assert_eq!(outcome.code(), Some(4), "{report}");
    assert_eq!(report["guests"][0]["damaged_here"][0]["point"], scene.ids()[2], "{report}");
}

/// The points of two guests of one name stood in the copy as one guest's: the latest of the one was restored for
/// the other, and a prune removed the one's for the other's.
#[test]
fn two_guests_of_one_name_are_not_mixed() {
    let (mut scene, mut stranger) = (Scene::new(), Scene::stranger());
    scene.night(&[]);
    scene.copy(&[]);
    stranger.night(&[]);
    std::mem::swap(&mut scene.repo, &mut stranger.repo);
    for options in [&[][..], &["--dry-run"]] {
        let said = scene.try_copy(options).fails_with(2);
        assert!(said.contains("another guest web") && said.contains("--same-guest"), "{said}");
    }
    assert_eq!(scene.other.points("web/vda"), scene.ids());
    assert_eq!(hows(&scene.copy(&["--same-guest"])), ["copied"]);
    assert_eq!(hows(&scene.copy(&[])), [""; 0]);
    // Points that came from one repository are one guest's, though none of them is shared any more.
    std::mem::swap(&mut scene.repo, &mut stranger.repo);
    scene.night(&[]);
    scene.repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    assert_eq!(hows(&scene.copy(&[])).len(), 1);
}

/// Points that somebody slipped in between those of the source took the places of the true ones by the rules of the
/// copy: no copy had said a word.
#[test]
fn points_that_were_slipped_in_are_told() {
    let (mut scene, mut stranger) = (Scene::new(), Scene::stranger());
    let codes = |report: &serde_json::Value| -> Vec<String> {
        let warnings = report["warnings"].as_array().unwrap().iter();
        warnings.map(|it| it["code"].as_str().unwrap().to_owned()).collect()
    };
    for day in ["01", "02", "03"] {
        scene.night_at(&format!("2026-11-{day} 10:00:00"));
        assert_eq!(codes(&scene.copy(&[])), [""; 0]);
    }
    // What is removed by the rules is not told of.
    scene.repo.run(args!["prune", "--keep-last", "2", "--grace", "0"]).ok();
    assert_eq!(codes(&scene.copy(&[])), [""; 0]);
    let late = stranger.night_at("2026-11-02 23:00:00");
    stranger.repo.run(with_other("copy", "--to", &scene.repo, &["--same-guest"])).ok();
    for options in [&["--dry-run"][..], &[]] {
        let report = scene.copy(options);
        assert_eq!(codes(&report), ["came-late"], "{report}");
        let text = report["warnings"][0]["text"].as_str().unwrap();
        assert!(text.contains(&format!("copied it last: {late}")), "{report}");
    }
    assert_eq!(codes(&scene.copy(&[])), [""; 0], "it was said");
}

/// A guest or its latest points were lost as a whole: "there is nothing to mend".
#[test]
fn points_that_are_lost_whole_are_told_by_a_repair() {
    let mut scene = Scene::new();
    scene.night(&[]);
    scene.night(&[]);
    scene.copy(&[]);
    let last = scene.ids()[1].to_owned();
    archive(&scene.repo, &last).remove();
    manifest(&scene.repo, &last).remove();
    let told = |scene: &Scene, words: &str| {
        let outcome = scene.repair(&[]);
        let report = outcome.json();
        assert_eq!(outcome.code(), Some(17), "{report}");
        assert_eq!(report["warnings"][0]["code"], "went-back", "{report}");
        let only_there = report["guests"][0]["only_there"].as_array().unwrap();
        assert_eq!(only_there.last(), Some(&last.as_str().into()), "{report}");
        let text = report["warnings"][0]["text"].as_str().unwrap();
        assert!(text.contains(words), "{report}");
    };
    told(&scene, "1 points of web");
    let folder = scene.repo.place_of("web");
    scene.repo.files_below("web").iter().for_each(Stored::remove);
    let folder_is_gone = fs::remove_dir_all(folder).is_ok();
    // A store may still have its locks.
    told(&scene, if folder_is_gone { "web is only in" } else { "2 points of web" });
    // And what the warning advises brings them.
    scene.other.run(with_other("copy", "--to", &scene.repo, &[])).ok();
    scene.assert_points(&scene.repo, &scene.ids());
}

/// Nothing passes at 0 bytes a second: the copy stood still for ever. The key of the second repository has an option of its own, and
/// one rule has one number.
#[test]
fn options_that_can_not_be_meant_are_refused() {
    let mut scene = Scene::of(|path| Repo::init(path), |path| Repo::encrypted(path));
    scene.night(&[]);
    let said = scene.try_copy(&["--limit-rate", "0"]).fails_with(2);
    assert!(said.contains("nothing would pass"), "{said}");
    let said = scene.try_copy(&["--points", "last=2,last=3"]).fails_with(2);
    assert!(said.contains("said twice"), "{said}");
    let words = with_other("copy", "--to", &scene.other.without_key(), &[]);
    let said = scene.repo.run(words).fails_with(16);
    assert!(said.contains("--other-key-file"), "{said}");
}

/// A guest whose folder had gone was not mentioned: nothing was missing, with status 0.
#[test]
fn a_guest_that_is_gone_here_is_told() {
    let mut scene = Scene::new();
    scene.night(&[]);
    scene.copy(&[]);
    scene.repo.backup(&scene.image, "db/vda", &[]);
    scene.copy(&[]);
    fs::rename(scene.repo.place_of("web"), scene.lab.path("away")).unwrap();
    // Also where nobody asks for it, as the job of another guest.
    for words in [&[][..], &["db"]] {
        let report = scene.copy(words);
        let warnings = report["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{report}");
        assert_eq!(warnings[0]["code"], "went-back", "{report}");
        assert!(warnings[0]["text"].as_str().unwrap().starts_with("web was in"), "{report}");
    }
}

/// A guest all of whose manifests are lost was pruned and copied with status 0.
#[test]
fn a_guest_without_any_manifest_is_a_failure() {
    let mut scene = Scene::new();
    scene.night(&[]);
    fs::rename(scene.repo.place_of("web/points"), scene.lab.path("away")).unwrap();
    for options in [&["--dry-run"][..], &[]] {
        let words = with_other("copy", "--to", &scene.other, options);
        let outcome = scene.repo.run(words);
        let report = outcome.json();
        outcome.fails_with(4);
        assert_eq!(report["guests"][0]["failed"].as_array().unwrap().len(), 1, "{report}");
        let mut prune = args!["prune", "--keep-last", "1", "--grace", "0"];
        prune.extend(options.iter().map(Into::into));
        let said = scene.repo.run(prune).fails_with(4);
        assert!(said.contains("no manifest names the archive"), "{said}");
    }
}
