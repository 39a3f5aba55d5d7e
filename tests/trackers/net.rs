//! The net below the trackers, and what a tracked backup costs.

use serde_json::Value;

use super::{MIB, Scene, reason};
use crate::harness::args;
use crate::harness::images::{create, qemu_img};
use crate::harness::repo::number;

/// Somebody switches qdelta's bitmap off and on again: QEMU has not recorded what was written in
/// between, and nothing shows it. No tracker can notice that; the sample must.
fn plant_a_miss(scene: &Scene, act: &str) {
    let first = scene.backup(&["--anchor", "bitmap"]);
    let name = first["anchor"].as_str().unwrap();
    qemu_img(args!["bitmap", "--disable", scene.image.as_path(), name]).ok();
    scene.guest(&[act]);
    qemu_img(args!["bitmap", "--enable", scene.image.as_path(), name]).ok();
}

const ACT: &str = "write -q -P 7 1M 100k";

#[test]
fn a_claim_that_has_too_little_is_discarded() {
    let scene = Scene::new();
    plant_a_miss(&scene, ACT);
    let done = scene.repo.backup_run(&scene.image, "disk", &[]).ok();
    assert!(done.stderr.contains("its claim is wrong"), "{}", done.report());
    let done = done.json();
    assert_eq!(done["tracker"], "scan");
    assert!(reason(&done, "bitmap").contains("its claim is wrong"), "{done:#}");
    assert!(
        done["warnings"][0]["text"].as_str().unwrap().contains("its claim is wrong"),
        "{done:#}"
    );
    scene.assert_restores();
    scene.repo.assert_no_leftovers();
    // The manifest remembers it.
    let points = scene.repo.run(args!["points", "disk", "--json"]).ok().json();
    assert!(points.to_string().contains("its claim is wrong"));
}

/// Without the sample the miss goes through: it is the sample that catches it, and nothing else.
#[test]
fn without_the_sample_it_would_not_show() {
    let scene = Scene::new();
    plant_a_miss(&scene, ACT);
    let done = scene.backup(&[]);
    assert_eq!(done["tracker"], "bitmap");
    // Unless one of the bits that the bitmap has from the beginning is in there.
    assert!(number(&done, "bytes_changed") < 100 << 10);
}

/// What was zero and is not any more is looked for, too.
#[test]
fn a_miss_in_a_hole_is_found() {
    let scene = Scene::new();
    // Allocated: the map would show a cluster that is new.
    scene.guest(&["write -q -z 6M 1M"]);
    plant_a_miss(&scene, "write -q -P 7 6M 1M");
    let done = scene.repo.backup(&scene.image, "disk", &[]);
    assert_eq!(done["tracker"], "scan", "{done:#}");
    scene.assert_restores();
}

/// With 1 % changed, what is read is what changed. 64 KiB are written for each block, so nothing
/// depends on where in a block a write falls.
#[test]
fn what_is_read_is_what_changed() {
    for anchor in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        create(&scene.image, "", 128 * MIB);
        scene.guest(&["write -q -P 1 0 128M"]);
        scene.backup(&["--anchor", anchor]);
        let acts: Vec<String> =
            (0..20).map(|n| format!("write -q -P {} {} 64k", n + 2, n * 97 * 65536)).collect();
        scene.guest(&acts.iter().map(String::as_str).collect::<Vec<_>>());
        let done = scene.tracked(anchor, &[]);
        assert_eq!(number(&done, "bytes_changed"), 20 * 65536);
        // A bitmap has some bits from the beginning, and its mark says nothing about the last block
        // of the disk: these are read, too.
        let more = if anchor == "bitmap" { 17 * 65536 } else { 0 };
        let read_more = |done: &Value, least: u64| {
            let read = number(done, "bytes_read");
            assert!((least..=least + more).contains(&read), "{done:#}");
        };
        read_more(&done, 20 * 65536);
        assert_eq!(number(&done, "bytes_sampled"), 0);
        // Nothing changed: nothing else is read.
        let done = scene.tracked(anchor, &[]);
        read_more(&done, 0);
        // The sample is bounded.
        let done = scene.repo.backup(&scene.image, "disk", &["--sample", "10"]);
        read_more(&done, 10 * 65536);
        assert_eq!(number(&done, "bytes_sampled"), 10 * 65536);
    }
}
