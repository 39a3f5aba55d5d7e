//! Images whose reference counts are wrong, and what is left in an image that nothing leads to.

use std::fs;

use super::{MIB, Scene, reason};
use crate::harness::args;
use crate::harness::images::{check_is_silent, create, patch, qemu_img, read_u64};

const COPIED: u64 = 1 << 63;
const CLUSTER: u64 = 64 << 10;

/// Where the L2 entry of a guest cluster lies, and what it says.
fn entry(scene: &Scene, guest: u64) -> (u64, u64) {
    let l1 = read_u64(&scene.image, 40);
    let l2 = read_u64(&scene.image, l1) & 0x00ff_ffff_ffff_fe00;
    let at = l2 + guest / CLUSTER * 8;
    (at, read_u64(&scene.image, at))
}

/// Lets the guest cluster at `to` be in the same place as the one at `from`.
fn alias(scene: &Scene, from: u64, to: u64) {
    let (_, value) = entry(scene, from);
    patch(&scene.image, entry(scene, to).0, &value.to_be_bytes());
}

/// Two guest clusters lay in one host cluster, counted once. QEMU wrote to one of them in place, and
/// both changed: the bitmap had the one, and the other was missing in the increment.
#[test]
fn a_bitmap_has_one_of_two_guest_clusters() {
    let scene = Scene::new();
    scene.backup(&["--anchor", "bitmap"]);
    alias(&scene, MIB, 7 * MIB);
    let done = scene.backup(&["--anchor", "none", "--track", "scan"]);
    assert_eq!(done["tracker"], "scan");
    scene.guest(&["write -q -P 9 1M 64k"]);

    let done = scene.tracked("scan", &[]);
    assert!(reason(&done, "bitmap").contains("left no anchor"), "{done:#}");
    // As it is when the point before has the anchor.
    let scene = Scene::new();
    scene.backup(&["--anchor", "bitmap"]);
    alias(&scene, MIB, 7 * MIB);
    scene.guest(&["write -q -P 9 1M 64k"]);
    let done = scene.tracked("scan", &[]);
    let why = reason(&done, "bitmap");
    assert!(why.contains("is used 2 times, and its reference count is 1"), "{why}");
    // Nothing is written into it, and the next backup is told why.
    assert_eq!(done["anchor"], serde_json::Value::Null);
    assert!(done["warnings"].to_string().contains("is used 2 times"), "{done:#}");
    let said = qemu_img(args!["check", scene.image.as_path()]);
    assert!(said.report().contains("refcount=1 reference=2"), "{}", said.report());
}

/// Before the next backup came, `qemu-img check -r all` had corrected the count: the image was sound, and the
/// bitmap was believed, though QEMU had changed two clusters and recorded a write to one.
#[test]
fn a_bitmap_has_one_of_two_guest_clusters_after_a_repair() {
    let run = CLUSTER * 3;
    for (from, to, write) in [
        (MIB, 7 * MIB, MIB),
        (7 * MIB, MIB, 7 * MIB),
        (MIB, 7 * MIB, 7 * MIB),
        (MIB, MIB + run, MIB + run),
    ] {
        let scene = Scene::new();
        scene.guest(&["write -q -P 3 1M 1M", "write -q -P 4 7M 1M"]);
        scene.backup(&["--anchor", "bitmap"]);
        alias(&scene, from, to);
        scene.guest(&[&format!("write -q -P 9 {write} 64k")]);
        run_check(&scene);
        check_is_silent(&scene.image);
        // No sample is taken here: it is the claim that must be right.
        let done = scene.backup(&[]);
        assert_eq!(done["tracker"], "bitmap", "{done:#}");
        scene.assert_restores();
    }
}

/// Lets QEMU correct the counts.
fn run_check(scene: &Scene) {
    let said = qemu_img(args!["check", "-q", "-r", "all", scene.image.as_path()]);
    assert!(said.code().is_some(), "{}", said.report());
}

/// A table of the disk said that nobody else uses a cluster that a snapshot uses. QEMU wrote to it in
/// place: the tables of now and then were the same.
#[test]
fn a_snapshot_shares_what_the_disk_calls_its_own() {
    let scene = Scene::new();
    scene.backup(&["--anchor", "snapshot"]);
    // The table becomes the disk's alone.
    scene.guest(&["write -q -P 8 0 64k"]);
    let (at, value) = entry(&scene, MIB);
    assert_eq!(value & COPIED, 0);
    patch(&scene.image, at, &(value | COPIED).to_be_bytes());
    scene.guest(&["write -q -P 9 1M 64k"]);
    let done = scene.tracked("scan", &[]);
    let why = reason(&done, "snapshot");
    assert!(why.contains("is used 2 times, and a table of the disk says once"), "{why}");
}

/// Nothing is written into an unsound image, whichever anchor is asked for, and nothing of the one
/// that it has is removed: that dropped the count of a cluster in use to zero.
#[test]
fn no_anchor_comes_or_goes() {
    for kind in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        alias(&scene, MIB, 7 * MIB);
        let before = fs::read(&scene.image).unwrap();
        let done = scene.tracked("scan", &["--anchor", kind]);
        assert_eq!(done["anchor"], serde_json::Value::Null);
        assert!(done["warnings"].to_string().contains("is used 2 times"), "{done:#}");
        assert!(fs::read(&scene.image).unwrap() == before);

        let scene = Scene::new();
        scene.backup(&["--anchor", kind]);
        alias(&scene, MIB, 7 * MIB);
        let before = fs::read(&scene.image).unwrap();
        let said = scene.repo.run(args!["anchors", "disk", "--remove-all"]).fails_with(3);
        assert!(said.contains("is used"), "{said}");
        scene.tracked("scan", &["--anchor", "none"]);
        assert!(fs::read(&scene.image).unwrap() == before);
    }
}

/// What a program without bitmaps leaves of an image: the bit that says they are valid is cleared; and
/// with `all`, the extension is dropped, too.
fn pass_by(scene: &Scene, all: bool) {
    let mut bytes = fs::read(&scene.image).unwrap();
    bytes[95] &= !1;
    let kind = 0x2385_2875_u32.to_be_bytes();
    let at = bytes[..CLUSTER as usize].windows(4).position(|it| it == kind).unwrap();
    if all {
        bytes[at..at + 32].fill(0);
    }
    fs::write(&scene.image, bytes).unwrap();
}

/// A program that knows no bitmaps wrote between two backups: night by night, five clusters leaked.
#[test]
fn a_program_without_bitmaps_costs_no_clusters() {
    for (options, all) in
        [("", false), ("", true), ("cluster_size=4k", false), ("cluster_size=512", true)]
    {
        let scene = Scene::new();
        create(&scene.image, options, 8 * MIB);
        scene.guest(&["write -q -P 1 0 4M"]);
        scene.backup(&["--anchor", "bitmap"]);
        let mut lengths = Vec::new();
        for night in 0..5 {
            pass_by(&scene, all);
            scene.guest(&[&format!("write -q -P {} {}M 64k", night + 3, night % 4)]);
            assert_eq!(qemu_img(args!["check", scene.image.as_path()]).code(), Some(3));
            scene.tracked("scan", &["--anchor", "bitmap"]);
            check_is_silent(&scene.image);
            lengths.push(fs::metadata(&scene.image).unwrap().len());
        }
        assert!(lengths[4] <= lengths[1], "{options}: it grows: {lengths:?}");
        // Also if no anchor is to be left any more.
        for end in [&["backup", "--anchor", "none"][..], &["anchors"]] {
            scene.backup(&["--anchor", "bitmap"]);
            pass_by(&scene, all);
            match end {
                ["backup", options @ ..] => drop(scene.backup(options)),
                _ => drop(scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok()),
            }
            check_is_silent(&scene.image);
        }
    }
}

/// Such a program may have given the clusters back itself, and a guest may have them by now.
#[test]
fn what_a_guest_has_by_now_stays_his() {
    for all in [false, true] {
        let scene = Scene::new();
        scene.backup(&["--anchor", "bitmap"]);
        pass_by(&scene, all);
        // Once more with the directory where it was, after its clusters were given back.
        let with_extension = fs::read(&scene.image).unwrap()[..512].to_vec();
        qemu_img(args!["check", "-q", "-r", "leaks", scene.image.as_path()]).ok();
        scene.guest(&["write -q -P 7 4M 2M"]);
        patch(&scene.image, 104, &with_extension[104..]);
        scene.tracked("scan", &["--anchor", "bitmap"]);
        check_is_silent(&scene.image);
        scene.guest(&["read -q -P 7 4M 2M"]);
    }
}

/// A guest writes what looks like a directory of bitmaps, in a cluster that leaks, and names clusters
/// that are in use: none of these is given back.
#[test]
fn a_directory_that_a_guest_made_up() {
    let scene = Scene::new();
    let name = b"qdelta-20260101T000000.000Z-12345678";
    let (_, host) = entry(&scene, 2 * MIB);
    let mut directory = (host & !COPIED).to_be_bytes().to_vec();
    directory.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, name.len() as u8, 0, 0, 0, 0]);
    directory.extend_from_slice(name);
    let file = scene.lab.path("directory");
    fs::write(&file, &directory).unwrap();
    let len = directory.len();
    scene.guest(&[&format!("write -q -s {} 1M {len}", file.display())]);
    let (at, value) = entry(&scene, MIB);
    // It leaks: no guest cluster is there any more, and it is still counted.
    patch(&scene.image, at, &[0; 8]);
    assert_eq!(qemu_img(args!["check", scene.image.as_path()]).code(), Some(3));
    assert_eq!(value & COPIED, COPIED);
    scene.tracked("scan", &["--anchor", "bitmap"]);
    check_is_silent(&scene.image);
    scene.guest(&["read -q -P 1 2M 64k"]);
}
