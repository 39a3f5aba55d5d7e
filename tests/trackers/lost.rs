//! What the repository has lost of the points before: a tracker that rests on it is refused, and
//! nothing that the next points need is forgotten.

use super::{Scene, reason};
use crate::harness::args;
use crate::harness::images::qemu_img;
use crate::harness::repo::point_of;

/// A full and an increment, with a bitmap, and a write behind both.
fn two_points() -> (Scene, serde_json::Value) {
    let scene = Scene::new();
    scene.backup(&["--anchor", "bitmap"]);
    scene.guest(&["write -q -P 2 1M 100k"]);
    let done = scene.tracked("bitmap", &[]);
    scene.guest(&["write -q -P 3 2M 100k"]);
    (scene, done)
}

/// A differential needs the full alone; but what changed up to the last point is in its archive. The
/// first version failed every night.
#[test]
fn an_increment_behind_a_sound_full() {
    for harm in ["gone", "cut", "index"] {
        let (scene, done) = two_points();
        let archive = scene.repo.stored_at(done["archive"].as_str().unwrap());
        let bytes = archive.bytes();
        match harm {
            "gone" => archive.remove(),
            "cut" => archive.write(&bytes[..bytes.len() / 2]),
            // In the directory of its index.
            _ => {
                let mut bytes = bytes;
                let middle = bytes.len() - 200;
                bytes[middle] ^= 1;
                archive.write(&bytes);
            }
        }
        let forced = ["--kind", "differential", "--track", "bitmap", "--sample", "0"];
        let said = scene.repo.backup_run(&scene.image, "disk", &forced).fails_with(2);
        assert!(said.contains("what lies between can't be read"), "{harm}: {said}");
        let done = scene.tracked("scan", &["--kind", "differential"]);
        for tracker in ["bitmap", "snapshot", "overlay", "reflink"] {
            let reason = reason(&done, tracker);
            assert!(reason.contains("what lies between can't be read"), "{harm}: {reason}");
        }
        // From then on it is that point that anchors belong to.
        scene.guest(&["write -q -P 4 3M 100k"]);
        scene.tracked("bitmap", &["--kind", "differential"]);
    }
}

/// The manifest of a point becomes unreadable.
fn harm_manifest(scene: &Scene, done: &serde_json::Value) {
    scene.repo.stored_as(format!("disk/points/{}.json", point_of(done))).write(b"{}");
}

/// Harms the manifest of the last point, and gives the name of the anchor that it alone knew.
fn with_unreadable_manifest() -> (Scene, String) {
    let (scene, done) = two_points();
    harm_manifest(&scene, &done);
    (scene, done["anchor"].as_str().unwrap().to_owned())
}

/// The new anchor is there, the one that nobody knows of is not, and the next increment uses it.
#[track_caller]
fn assert_goes_on(scene: &Scene, done: &serde_json::Value, lost: &str) {
    assert_eq!(done["kind"], "full", "{done:#}");
    let anchor = done["anchor"].as_str().unwrap_or_else(|| panic!("no anchor: {done:#}"));
    let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
    assert!(info.contains(anchor) && !info.contains(lost), "{info}");
    scene.assert_restores();
    scene.guest(&["write -q -P 4 3M 100k"]);
    let done = scene.tracked("bitmap", &[]);
    assert_eq!(done["kind"], "incremental", "{done:#}");
    // The archive whose manifest is lost is said every time, and nothing else.
    let warnings = done["warnings"].as_array().unwrap();
    assert!(warnings.iter().all(|warning| warning["code"] == "stray"), "{done:#}");
}

/// `--kind auto` failed every night, though a damaged archive would have got a new full; and the full
/// that was advised forgot which anchor was wanted, without a sign.
#[test]
fn an_unreadable_manifest() {
    let (scene, lost) = with_unreadable_manifest();
    let begun = scene.repo.backup_run(&scene.image, "disk", &["--sample", "0"]);
    assert_eq!(begun.code(), Some(4), "{}", begun.report());
    let done = begun.sane().json();
    assert_eq!(done["broken_chain"], true, "{done:#}");
    let warning = done["warnings"][0]["text"].as_str().unwrap();
    assert!(warning.contains("a full begins a new chain"), "{warning}");
    assert_goes_on(&scene, &done, &lost);

    let (scene, lost) = with_unreadable_manifest();
    for kind in ["incremental", "differential"] {
        let options = ["--kind", kind, "--sample", "0"];
        let said = scene.repo.backup_run(&scene.image, "disk", &options).fails_with(4);
        assert!(said.contains("--kind full"), "{said}");
    }
    let done = scene.backup(&["--kind", "full"]);
    assert_eq!(done["broken_chain"], false, "{done:#}");
    assert_goes_on(&scene, &done, &lost);
}

/// Where no manifest is left that says which anchor is wanted, the admin is asked.
#[test]
fn no_readable_manifest() {
    let scene = Scene::new();
    let done = scene.backup(&["--anchor", "bitmap"]);
    harm_manifest(&scene, &done);
    let begun = scene.repo.backup_run(&scene.image, "disk", &["--sample", "0"]);
    assert_eq!(begun.code(), Some(4), "{}", begun.report());
    let done = begun.sane().json();
    let warnings = done["warnings"].as_array().unwrap();
    let is_said =
        |text: &str| warnings.iter().any(|it| it["text"].as_str().unwrap().contains(text));
    assert!(is_said("which kind it had is not known"), "{done:#}");
    assert!(is_said("a full begins a new chain"), "{done:#}");
    scene.assert_restores();
}
