//! Clones on real filesystems: what the page cache holds, what defragmenting moves, what is kept.

use std::fs;
use std::os::unix::fs::FileExt;

use super::{MIB, Scene};
use crate::harness::files::Mount;
use crate::harness::images::oracle;
use crate::harness::repo::number;
use crate::harness::{Lab, args, run, tool};

fn on(kind: &str, what: impl Fn(&Scene)) {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), kind, 400 * MIB);
    what(&Scene::within(&mount.dir));
}

/// An overwrite that is only in the page cache has its old place on the device still: a comparison
/// that did not write it first would miss it.
fn dirty_pages(scene: &Scene) {
    let raw = scene.lab.path("raw.raw");
    fs::write(&raw, vec![1; 4 << 20]).unwrap();
    let backup = || {
        scene.repo.backup(&raw, "raw", &["--anchor", "reflink", "--format", "raw", "--sample", "0"])
    };
    backup();
    for round in 0..5u8 {
        let file = fs::File::options().write(true).open(&raw).unwrap();
        // Not synced, not closed.
        file.write_all_at(&[round + 2; 4096], u64::from(round) * 500_000).unwrap();
        let done = backup();
        assert_eq!(done["tracker"], "reflink", "{done:#}");
        let expected = scene.lab.path("expected.raw");
        oracle(args!["-f", "raw", raw.as_path()], &expected);
        scene.repo.assert_restores_raw(&scene.lab, "raw", &expected);
    }
}

#[test]
fn dirty_pages_are_not_missed_on_xfs() {
    on("xfs", dirty_pages);
}

#[test]
fn dirty_pages_are_not_missed_on_btrfs() {
    on("btrfs", dirty_pages);
}

/// Moves the bytes of a file without changing them.
fn defragmented(scene: &Scene, program: &str, arguments: Vec<std::ffi::OsString>) {
    for round in 0..8 {
        scene.guest(&[format!("write -q -P {} {}k 4k", round + 2, round * 300).as_str()]);
    }
    scene.backup(&["--anchor", "reflink"]);
    scene.guest(&["write -q -P 77 3M 64k"]);
    run(tool(program, arguments)).ok();
    scene.tracked("reflink", &[]);
    run(tool("sync", vec![])).ok();
    // Nothing has moved since.
    let done = scene.tracked("reflink", &[]);
    assert_eq!(number(&done, "bytes_changed"), 0);
}

#[test]
fn a_file_that_xfs_fsr_has_moved() {
    on("xfs", |scene| defragmented(scene, "xfs_fsr", args!["-v", scene.image.as_path()]));
}

#[test]
fn a_file_that_btrfs_has_defragmented() {
    on("btrfs", |scene| {
        let arguments = args!["filesystem", "defragment", "-t", "32M", scene.image.as_path()];
        defragmented(scene, "btrfs", arguments);
    });
}

/// One clone is kept, its cost shows, and the one before is gone.
fn one_clone_is_kept(scene: &Scene) {
    for round in 1..4 {
        scene.guest(&[format!("write -q -P {round} 1M 1M").as_str()]);
        let done = scene.backup(&["--anchor", "reflink"]);
        let kept: Vec<_> = fs::read_dir(scene.lab.path(".qdelta")).unwrap().collect();
        assert_eq!(kept.len(), 1);
        let name = kept[0].as_ref().unwrap().file_name();
        assert_eq!(name.to_str(), done["anchor"].as_str());
    }
    let held = || {
        run(tool("sync", vec![])).ok();
        let list = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
        assert_eq!(list["anchors"][0]["state"], "current", "{list:#}");
        list["anchors"][0]["bytes_held"].as_u64().unwrap()
    };
    assert_eq!(held(), 0);
    scene.guest(&["write -q -P 9 1M 1M"]);
    assert!((MIB..2 * MIB).contains(&held()), "{}", held());
    let points = scene.repo.run(args!["points", "disk"]).ok().text();
    assert!(points.contains("reflink, current, holds 1"), "{points}");
    // A failed backup leaves the kept clone alone and none of its own.
    let archives: Vec<_> =
        scene.repo.files_below("disk/disk").into_iter().map(|it| (it.bytes(), it)).collect();
    archives.iter().for_each(|(_, archive)| archive.remove());
    scene.repo.backup_run(&scene.image, "disk", &["--kind", "incremental"]).fails_with(4);
    archives.iter().for_each(|(bytes, archive)| archive.write(bytes));
    assert_eq!(fs::read_dir(scene.lab.path(".qdelta")).unwrap().count(), 1);
    scene.tracked("reflink", &[]);
}

#[test]
fn one_clone_is_kept_on_xfs() {
    on("xfs", one_clone_is_kept);
}

#[test]
fn one_clone_is_kept_on_btrfs() {
    on("btrfs", one_clone_is_kept);
}

/// A file marked NOCOW on Btrfs clones only to another one that is.
#[test]
fn a_nocow_file_is_cloned_too() {
    on("btrfs", |scene| {
        let copy = scene.lab.path("copy.qcow2");
        fs::write(&copy, "").unwrap();
        run(tool("chattr", args!["+C", copy.as_path()])).ok();
        let bytes = fs::read(&scene.image).unwrap();
        fs::write(&copy, bytes).unwrap();
        fs::rename(&copy, &scene.image).unwrap();
        let done = scene.backup(&["--anchor", "reflink"]);
        assert!(done["anchor"].is_string(), "{done:#}");
        scene.guest(&["write -q -P 5 2M 100k"]);
        scene.tracked("reflink", &[]);
    });
}

/// The image is read from its clone: QEMU may write to it while the backup goes on.
#[test]
fn a_backing_chain_with_clones() {
    on("xfs", |scene| {
        let base = scene.lab.path("base.qcow2");
        fs::rename(&scene.image, &base).unwrap();
        crate::harness::images::overlay(&scene.image, "base.qcow2", "qcow2", None, "");
        scene.guest(&["write -q -P 3 1M 100k"]);
        scene.backup(&["--anchor", "reflink"]);
        scene.guest(&["write -q -P 4 2M 100k", "discard -q 1M 64k"]);
        scene.tracked("reflink", &[]);
        // A new layer on top of the one that was cloned.
        let middle = scene.lab.path("middle.qcow2");
        fs::rename(&scene.image, &middle).unwrap();
        crate::harness::images::overlay(&scene.image, "middle.qcow2", "qcow2", None, "");
        scene.guest(&["write -q -P 5 3M 100k"]);
        let done = scene.backup(&[]);
        scene.assert_restores();
        // It was renamed, so its clone is of another file by name.
        assert!(["reflink", "scan"].contains(&done["tracker"].as_str().unwrap()));
        scene.guest(&["write -q -P 6 3M 50k"]);
        scene.tracked("reflink", &[]);
    });
}

/// The data file became a link to a copy of itself. The first version then found no clone of it,
/// took it for a backing file, and those are known not to have changed: what the guest wrote into
/// the copy was missed.
#[test]
fn a_data_file_that_became_a_link() {
    on("xfs", |scene| {
        let (data, copy) = (scene.lab.path("disk.data"), scene.lab.path("copy.data"));
        let options = format!("data_file={}", data.display());
        crate::harness::images::create(&scene.image, &options, 8 * MIB);
        scene.guest(&["write -q -P 1 0 4M"]);
        scene.backup(&["--anchor", "reflink"]);
        fs::copy(&data, &copy).unwrap();
        fs::remove_file(&data).unwrap();
        std::os::unix::fs::symlink("copy.data", &data).unwrap();
        scene.guest(&["write -q -P 7 1M 64k"]);
        let done = scene.tracked("scan", &[]);
        let reason = super::reason(&done, "reflink");
        assert!(reason.contains("the image had its bytes in"), "{reason}");
        scene.guest(&["write -q -P 8 2M 64k"]);
        scene.tracked("reflink", &[]);
    });
}

/// Each kind of anchor is believed while the next one is left. A bitmap was not once: the file that
/// was looked at was the clone, which is another one.
#[test]
fn the_kind_of_anchor_changes() {
    on("xfs", |scene| {
        scene.backup(&["--anchor", "bitmap"]);
        let kinds = ["bitmap", "reflink", "snapshot", "reflink", "bitmap", "snapshot", "bitmap"];
        for (number, pair) in kinds.windows(2).enumerate() {
            scene.guest(&[format!("write -q -P {} 1M 100k", number + 2).as_str()]);
            scene.tracked(pair[0], &["--anchor", pair[1]]);
        }
    });
}
