//! What can't be proved valid is refused with the reason, and the next one is taken.

use std::fs;

use super::{MIB, Scene, reason};
use crate::harness::images::{create, overlay, qemu_img};
use crate::harness::{args, run, tool};

#[track_caller]
fn assert_refused(scene: &Scene, tracker: &str, why: &str) {
    let done = scene.tracked("scan", &[]);
    let reason = reason(&done, tracker);
    assert!(reason.contains(why), "{tracker} was refused because {reason}");
}

/// The anchor that the last backup has left.
fn anchored(kind: &str) -> (Scene, String) {
    let scene = Scene::new();
    let done = scene.backup(&["--anchor", kind]);
    let name = done["anchor"].as_str().unwrap().to_owned();
    scene.guest(&["write -q -P 3 2M 100k"]);
    (scene, name)
}

#[test]
fn a_bitmap_that_is_gone() {
    let (scene, name) = anchored("bitmap");
    qemu_img(args!["bitmap", "--remove", scene.image.as_path(), name.as_str()]).ok();
    assert_refused(&scene, "bitmap", "has no valid bitmap");
}

#[test]
fn a_bitmap_that_does_not_record_any_more() {
    let (scene, name) = anchored("bitmap");
    qemu_img(args!["bitmap", "--disable", scene.image.as_path(), name.as_str()]).ok();
    scene.guest(&["write -q -P 4 0 100k"]);
    assert_refused(&scene, "bitmap", "does not record every write");
}

/// A program that knows no bitmaps clears the autoclear bit, and the extension stays.
#[test]
fn a_bitmap_that_a_foreign_program_passed_by() {
    let (scene, _) = anchored("bitmap");
    let mut bytes = fs::read(&scene.image).unwrap();
    bytes[95] &= !1;
    fs::write(&scene.image, bytes).unwrap();
    assert_refused(&scene, "bitmap", "has no valid bitmap");
}

#[test]
fn a_snapshot_that_is_somebody_else_s() {
    let (scene, name) = anchored("snapshot");
    qemu_img(args!["snapshot", "-d", name.as_str(), scene.image.as_path()]).ok();
    qemu_img(args!["snapshot", "-c", name.as_str(), scene.image.as_path()]).ok();
    assert_refused(&scene, "snapshot", "is somebody else's");
    // qdelta does not delete what it has not made.
    let list = qemu_img(args!["snapshot", "-l", scene.image.as_path()]).ok().text();
    assert!(list.contains(&name), "{list}");
}

#[test]
fn a_snapshot_that_is_gone() {
    let (scene, name) = anchored("snapshot");
    qemu_img(args!["snapshot", "-d", name.as_str(), scene.image.as_path()]).ok();
    assert_refused(&scene, "snapshot", "does not have exactly one snapshot");
}

#[test]
fn an_anchor_over_a_backing_file_that_changed() {
    for kind in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        let base = scene.lab.path("base.qcow2");
        fs::rename(&scene.image, &base).unwrap();
        overlay(&scene.image, "base.qcow2", "qcow2", None, "");
        scene.guest(&["write -q -P 3 1M 100k"]);
        scene.backup(&["--anchor", kind]);
        // The overlay itself has recorded everything, and nothing of this.
        crate::harness::images::guest_io(&base, "qcow2", &["write -q -P 9 2M 1M".to_owned()]);
        assert_refused(&scene, kind, "a backing file has changed");
    }
}

#[test]
fn an_image_that_was_committed_or_replaced() {
    let scene = Scene::new();
    scene.backup(&[]);
    let top = scene.lab.path("top.qcow2");
    overlay(&top, "disk.qcow2", "qcow2", None, "");
    crate::harness::images::guest_io(&top, "qcow2", &["write -q -P 9 2M 1M".to_owned()]);
    // Above the image of the point before: what is allocated there has changed.
    let done = scene.repo.backup(&top, "disk", &["--sample", "0"]);
    assert_eq!(done["tracker"], "overlay");
    assert_eq!(done["bytes_read"].as_u64(), Some(MIB));
    qemu_img(args!["commit", "-q", "-d", top.as_path()]).ok();
    assert_refused(&scene, "overlay", "has changed since the point before");
    // Another file with the same name, as old and as long.
    let other = scene.lab.path("other.qcow2");
    create(&other, "", 8 * MIB);
    run(tool("cp", args!["-a", scene.image.as_path(), other.as_path()])).ok();
    fs::rename(&other, &scene.image).unwrap();
    assert_refused(&scene, "overlay", "has changed since the point before");
}

#[test]
fn a_clone_that_is_gone_or_was_touched() {
    let lab = crate::harness::Lab::new();
    let mount = crate::harness::files::Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    let scene = Scene::within(&mount.dir);
    let clone_of = |done: &serde_json::Value| {
        let folder = scene.lab.path(".qdelta").join(done["anchor"].as_str().unwrap());
        folder.join("disk.qcow2")
    };
    let done = scene.backup(&["--anchor", "reflink"]);
    scene.guest(&["write -q -P 3 1M 100k"]);
    fs::remove_file(clone_of(&done)).unwrap();
    let done = scene.tracked("scan", &[]);
    assert!(reason(&done, "reflink").contains("its clone"), "{done:#}");
    scene.guest(&["write -q -P 4 1M 100k"]);
    let file = fs::File::options().write(true).open(clone_of(&done)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1], 4096).unwrap();
    let done = scene.tracked("scan", &[]);
    assert!(reason(&done, "reflink").contains("not the one that was kept"), "{done:#}");
    scene.guest(&["write -q -P 5 1M 100k"]);
    scene.tracked("reflink", &[]);
}

#[test]
fn a_tracker_that_is_asked_for_and_refused_is_an_error() {
    let (scene, name) = anchored("bitmap");
    qemu_img(args!["bitmap", "--remove", scene.image.as_path(), name.as_str()]).ok();
    let outcome = scene.repo.backup_run(&scene.image, "disk", &["--track", "bitmap"]);
    let said = outcome.fails_with(2);
    assert!(said.contains("tracker bitmap can't be used: the image has no valid bitmap"), "{said}");
    scene.repo.assert_no_leftovers();
    // Nothing of the attempt stays in the image, only the map of the bitmap that is gone.
    let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
    assert!(!info.replace(&format!("{name}.map"), "").contains("qdelta-2"), "{info}");
    scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
    let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
    assert!(!info.contains("qdelta-2"), "{info}");
}

/// A filesystem without clones leaves no anchor, says so, and the backup is as good.
#[test]
fn an_anchor_that_can_t_be_left_is_a_warning() {
    let lab = crate::harness::Lab::new();
    let mount = crate::harness::files::Mount::on_loop(lab.dir(), "ext4", 100 * MIB);
    let scene = Scene::within(&mount.dir);
    let done = scene.backup(&["--anchor", "reflink"]);
    let warning = done["warnings"][0]["text"].as_str().unwrap();
    assert!(warning.contains("no anchor is left for the next backup"), "{warning}");
    assert!(done["anchor"].is_null());
    scene.assert_restores();
    assert!(!scene.lab.path(".qdelta").exists(), "the folder of clones is not left behind");
}

fn resize(scene: &Scene, sizes: &[&str], options: &[&str]) {
    for size in sizes {
        let mut arguments = args!["resize", "-q", "--shrink"];
        arguments.extend(options.iter().map(Into::into));
        arguments.extend(args![scene.image.as_path(), *size]);
        qemu_img(arguments).ok();
    }
}

/// QEMU does not record in its bitmaps that a disk lost its end and got another one: the first
/// version took the blocks there for unchanged.
#[test]
fn a_disk_that_shrank_and_grew_between_two_backups() {
    for (cluster, shrunk) in [("64k", "2M"), ("4k", "2052K"), ("512", "2099200")] {
        let scene = Scene::new();
        create(&scene.image, &format!("cluster_size={cluster}"), 8 * MIB);
        scene.guest(&["write -q -P 1 0 8M"]);
        scene.backup(&["--anchor", "bitmap"]);
        resize(&scene, &[shrunk, "8M"], &[]);
        assert_refused(&scene, "bitmap", "the disk was shrunk");
        // Also against a full that the point in between hides.
        resize(&scene, &["1M"], &[]);
        assert_refused(&scene, "bitmap", "the disk was shrunk");
        resize(&scene, &["8M"], &[]);
        scene.tracked("bitmap", &["--kind", "differential"]);
        resize(&scene, &["9M"], &[]);
        scene.guest(&["write -q -P 2 7M 2M"]);
        scene.tracked("bitmap", &[]);
    }
}

/// The same over a backing file, which must not shine through either. QEMU writes zeros up to the
/// next cluster, and does not record them: a version that claimed just holes missed them.
#[test]
fn an_overlay_that_shrank_and_grew_between_two_backups() {
    for shrunk in ["2M", "2097664"] {
        let scene = Scene::new();
        let base = scene.lab.path("base.qcow2");
        fs::rename(&scene.image, &base).unwrap();
        overlay(&scene.image, "base.qcow2", "qcow2", None, "");
        scene.guest(&["write -q -P 3 1M 5M"]);
        scene.backup(&["--anchor", "bitmap"]);
        resize(&scene, &[shrunk, "8M"], &[]);
        assert_refused(&scene, "bitmap", "the disk was shrunk");
    }
}

/// The zeros of an end that was allocated when it grew are no holes: a version that claimed just
/// holes missed them. That the guest writes to the new end does not hide that it is another one.
#[test]
fn a_disk_that_shrank_and_grew_an_allocated_end() {
    for shrunk in ["2M", "8323072"] {
        let scene = Scene::new();
        scene.guest(&["write -q -P 1 0 8M"]);
        scene.backup(&["--anchor", "bitmap"]);
        resize(&scene, &[shrunk], &[]);
        resize(&scene, &["8M"], &["--preallocation=full"]);
        scene.guest(&["write -q -P 2 8388096 512"]);
        assert_refused(&scene, "bitmap", "the disk was shrunk");
    }
    // By less than the map can show.
    let scene = Scene::new();
    scene.guest(&["write -q -P 1 0 8M"]);
    scene.backup(&["--anchor", "bitmap"]);
    resize(&scene, &["8388096"], &[]);
    resize(&scene, &["8M"], &["--preallocation=full"]);
    scene.tracked("bitmap", &[]);
}

/// Without its map, a bitmap does not say what filled a cluster, nor whether the disk was shrunk.
#[test]
fn a_bitmap_whose_map_is_gone() {
    let (scene, name) = anchored("bitmap");
    let map = format!("{name}.map");
    qemu_img(args!["bitmap", "--remove", scene.image.as_path(), map.as_str()]).ok();
    assert_refused(&scene, "bitmap", "nothing shows what was allocated");
    // And a map alone is swept up.
    let (scene, name) = anchored("bitmap");
    qemu_img(args!["bitmap", "--remove", scene.image.as_path(), name.as_str()]).ok();
    scene.tracked("scan", &[]);
    let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
    assert!(!info.contains(&name), "{info}");
}

/// The container's bytes are another disk than the one in it.
#[test]
fn an_image_that_was_read_in_another_way() {
    let lab = crate::harness::Lab::new();
    let mount = crate::harness::files::Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    let scene = Scene::within(&mount.dir);
    scene.backup(&["--anchor", "reflink", "--as-file"]);
    let done = scene.tracked("scan", &["--format", "qcow2"]);
    assert!(reason(&done, "reflink").contains("was read as raw"), "{done:#}");
    let done = scene.backup(&["--as-file"]);
    assert_eq!(done["tracker"], "scan");
}

/// A backup of `top`, an overlay over the image of the scene, which must restore.
fn backup_of(scene: &Scene, top: &std::path::Path) -> serde_json::Value {
    let done = scene.repo.backup(top, "disk", &["--sample", "0"]);
    let expected = scene.lab.path("expected.raw");
    crate::harness::images::oracle(args!["-f", "qcow2", top], &expected);
    scene.repo.assert_restores_raw(&scene.lab, "disk", &expected);
    done
}

/// The format that counts is that of the layer that was the image, not that of what lies above: the
/// first version refused every overlay on a raw image.
#[test]
fn an_overlay_on_a_raw_image() {
    let scene = Scene::new();
    let (raw, top) = (scene.lab.path("disk.raw"), scene.lab.path("top.qcow2"));
    let arguments = args!["convert", "-O", "raw", scene.image.as_path(), raw.as_path()];
    qemu_img(arguments).ok();
    scene.repo.backup(&raw, "disk", &["--format", "raw", "--sample", "0"]);
    fs::remove_file(&scene.image).unwrap();
    overlay(&scene.image, "disk.raw", "raw", None, "");
    scene.guest(&["write -q -P 3 1M 100k"]);
    scene.tracked("overlay", &[]);
    overlay(&top, "disk.qcow2", "qcow2", None, "");
    crate::harness::images::guest_io(&top, "qcow2", &["write -q -P 4 2M 100k".to_owned()]);
    let done = backup_of(&scene, &top);
    assert_eq!(done["tracker"], "overlay", "{done:#}");
}

/// A container and the disk in it are two disks, also below an overlay.
#[test]
fn an_overlay_on_an_image_that_is_read_in_another_way() {
    for (before, below, tracker) in [
        (&["--as-file"][..], "qcow2", "scan"),
        (&["--format", "raw"], "qcow2", "scan"),
        (&[], "raw", "scan"),
        // The same way as before.
        (&["--as-file"], "raw", "overlay"),
    ] {
        let scene = Scene::new();
        let top = scene.lab.path("top.qcow2");
        scene.backup(before);
        overlay(&top, "disk.qcow2", below, None, "");
        crate::harness::images::guest_io(&top, "qcow2", &["write -q -P 3 0 64k".to_owned()]);
        let done = backup_of(&scene, &top);
        assert_eq!(done["tracker"], tracker, "{before:?}, {below}: {done:#}");
        if tracker == "scan" {
            let reason = reason(&done, "overlay");
            assert!(reason.contains("was read as"), "{before:?}, {below}: {reason}");
        }
    }
    // The overlay itself as the container.
    let scene = Scene::new();
    let raw = scene.lab.path("disk.raw");
    qemu_img(args!["convert", "-O", "raw", scene.image.as_path(), raw.as_path()]).ok();
    scene.repo.backup(&raw, "disk", &["--format", "raw", "--sample", "0"]);
    fs::remove_file(&scene.image).unwrap();
    overlay(&scene.image, "disk.raw", "raw", None, "");
    scene.guest(&["write -q -P 3 1M 100k"]);
    let done = scene.backup(&["--as-file"]);
    assert_eq!(done["tracker"], "scan", "{done:#}");
    scene.repo.assert_restores_raw(&scene.lab, "disk", &scene.image);
}

/// A night on which no anchor could be left is not the end of anchors.
#[test]
fn an_anchor_is_tried_again_the_next_time() {
    let (scene, _) = anchored("bitmap");
    let snapshot = |verb: &str| {
        qemu_img(args!["snapshot", verb, "somebody's", scene.image.as_path()]).ok();
    };
    snapshot("-c");
    let done = scene.backup(&[]);
    assert!(done["anchor"].is_null() && done["warnings"][0].is_object(), "{done:#}");
    let done = scene.backup(&[]);
    assert!(done["anchor"].is_null() && done["warnings"][0].is_object(), "{done:#}");
    snapshot("-d");
    let done = scene.backup(&[]);
    assert!(done["anchor"].is_string(), "{done:#}");
    scene.guest(&["write -q -P 4 2M 100k"]);
    scene.tracked("bitmap", &[]);
    // Until none is wanted.
    assert!(scene.backup(&["--anchor", "none"])["anchor"].is_null());
    let done = scene.backup(&[]);
    assert!(done["anchor"].is_null() && done["warnings"] == serde_json::json!([]), "{done:#}");
}

/// A map of so many subclusters would cost the guest's QEMU more memory than a bitmap is worth.
#[test]
fn a_disk_that_is_too_large_for_a_map() {
    let scene = Scene::new();
    create(&scene.image, "extended_l2=on,cluster_size=16k", 300 << 30);
    let done = scene.backup(&["--anchor", "bitmap"]);
    let warning = done["warnings"][0].to_string();
    assert!(warning.contains("subclusters) of 512 bytes is too large for a bitmap"), "{warning}");
    assert!(warning.contains("--anchor snapshot needs none"), "{warning}");
    assert!(scene.backup(&["--anchor", "snapshot"])["anchor"].is_string());
}
