//! Whoever owns the folder of an image puts there what he likes: it costs him his tracker, and
//! nobody anything else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{MIB, Scene, reason};
use crate::harness::files::Mount;
use crate::harness::images::{create, guest_io, oracle, qemu_img};
use crate::harness::repo::Repo;
use crate::harness::run::as_root;
use crate::harness::{Lab, args, run, tool};

fn on_xfs(what: impl Fn(&Scene)) {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    what(&Scene::within(&mount.dir));
}

/// A folder of root's with a file in it.
fn victim(scene: &Scene, name: &str) -> PathBuf {
    let folder = scene.lab.path("victim").join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("disk.qcow2"), "of great value").unwrap();
    folder
}

/// A backup that leaves no clone and says why, touches no file of `victim`, and restores; the
/// inventory does the same.
#[track_caller]
fn assert_left_alone(scene: &Scene, victim: &Path, why: &str) {
    let valuable = || fs::read_to_string(victim.join("disk.qcow2")).unwrap();
    let done = scene.backup(&["--anchor", "reflink"]);
    assert_eq!(valuable(), "of great value");
    assert!(done["anchor"].is_null(), "{done:#}");
    let warning = done["warnings"][0]["text"].as_str().unwrap();
    assert!(warning.contains("is not qdelta's") && warning.contains(why), "{warning}");
    scene.assert_restores();
    let listed = scene.repo.run(args!["anchors", "disk", "--json"]).ok();
    assert!(listed.stderr.contains(why), "{}", listed.report());
    scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
    assert_eq!(valuable(), "of great value");
}

/// The first version emptied any folder of root's that somebody's `.qdelta` led to.
#[test]
fn a_folder_of_clones_that_is_somebody_else_s() {
    on_xfs(|scene| {
        let done = scene.backup(&["--anchor", "reflink"]);
        let name = done["anchor"].as_str().unwrap();
        let tag = name.rsplit('-').next().unwrap();
        let (own, stale) = (scene.lab.path(".qdelta"), format!("qdelta-0-{tag}"));
        let victim = victim(scene, &stale);
        fs::rename(&own, scene.lab.path("aside")).unwrap();
        fs::create_dir(&own).unwrap();
        symlink(&victim, own.join(&stale)).unwrap();
        run(as_root("chmod", args!["777", own.as_path()])).ok();
        assert_left_alone(scene, &victim, "others may write to it");
        run(as_root("chmod", args!["755", own.as_path()])).ok();
        run(as_root("chown", args!["65534", own.as_path()])).ok();
        assert_left_alone(scene, &victim, "it belongs to user 65534");
        assert!(own.join(&stale).is_symlink());
        run(as_root("rm", args!["-r", own.as_path()])).ok();
        symlink(victim.parent().unwrap(), &own).unwrap();
        assert_left_alone(scene, &victim, "it is no folder");
        fs::remove_file(&own).unwrap();
        // He has gone: all is as before.
        assert!(scene.backup(&[])["anchor"].is_string());
        scene.guest(&["write -q -P 9 1M 64k"]);
        scene.tracked("reflink", &[]);
    });
}

/// A symlink for the stale anchor in a folder that is ours, as an earlier version may have let it
/// be made: it is not followed, and not in the way of the next anchor.
#[test]
fn a_symlink_for_a_stale_anchor() {
    on_xfs(|scene| {
        let done = scene.backup(&["--anchor", "reflink"]);
        let tag = done["anchor"].as_str().unwrap().rsplit('-').next().unwrap().to_owned();
        let stale = format!("qdelta-0-{tag}");
        let victim = victim(scene, &stale);
        let link = scene.lab.path(".qdelta").join(&stale);
        symlink(&victim, &link).unwrap();
        scene.guest(&["write -q -P 9 1M 64k"]);
        scene.tracked("reflink", &[]);
        let said = scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
        assert!(said.stderr.contains("is not qdelta's"), "{}", said.report());
        assert!(victim.join("disk.qcow2").is_file() && link.is_symlink());
    });
}

/// Opening a FIFO waits for its writer, with the lock of the domain in hand.
#[test]
fn something_else_in_a_clone_s_place() {
    on_xfs(|scene| {
        for kind in ["fifo", "symlink", "folder"] {
            let done = scene.backup(&["--anchor", "reflink"]);
            let folder = scene.lab.path(".qdelta").join(done["anchor"].as_str().unwrap());
            let clone = folder.join("disk.qcow2");
            let aside = scene.lab.path("clone");
            fs::rename(&clone, &aside).unwrap();
            match kind {
                "fifo" => drop(run(tool("mkfifo", args![clone.as_path()])).ok()),
                "symlink" => symlink(&aside, &clone).unwrap(),
                _ => fs::create_dir(&clone).unwrap(),
            }
            scene.guest(&["write -q -P 9 1M 64k"]);
            scene.repo.run(args!["anchors", "disk"]).ok();
            let done = scene.tracked("scan", &["--anchor", "none"]);
            let reason = reason(&done, "reflink");
            assert!(reason.contains("not a regular file"), "{kind}: {reason}");
            fs::remove_dir_all(scene.lab.path(".qdelta")).unwrap();
        }
    });
}

/// The same where the image was: the inventory of a disk that is gone.
#[test]
fn a_fifo_in_an_image_s_place() {
    let scene = Scene::new();
    scene.backup(&["--anchor", "bitmap"]);
    fs::remove_file(&scene.image).unwrap();
    run(tool("mkfifo", args![scene.image.as_path()])).ok();
    let list = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
    assert_eq!(list["anchors"][0]["state"], "missing", "{list:#}");
}

/// A manifest is text: a clone beside such a path was never found again, and stayed for ever.
#[test]
fn a_path_that_is_no_text() {
    on_xfs(|scene| {
        let image = scene.lab.path(OsStr::from_bytes(b"odd\xff.qcow2"));
        create(&image, "", 8 * MIB);
        let write = |byte: u8| {
            guest_io(&image, "qcow2", &[format!("write -q -P {byte} 1M 1M")]);
        };
        let backup = |options: &[&str]| {
            let options = [&["--sample", "0"], options].concat();
            let done = scene.repo.backup(&image, "odd", &options);
            let expected = scene.lab.path("expected.raw");
            oracle(args!["-f", "qcow2", image.as_path()], &expected);
            scene.repo.assert_restores_raw(&scene.lab, "odd", &expected);
            done
        };
        write(1);
        for round in 2..4 {
            let done = backup(&["--anchor", "reflink"]);
            assert!(done["anchor"].is_null(), "{done:#}");
            let warning = done["warnings"][0]["text"].as_str().unwrap();
            assert!(warning.contains("is not UTF-8"), "{warning}");
            assert!(!scene.lab.path(".qdelta").exists());
            write(round);
        }
        // Also if only the name is odd that leads to it.
        let link = scene.lab.path(OsStr::from_bytes(b"link\xff"));
        symlink(&scene.image, &link).unwrap();
        let done = scene.repo.backup(&link, "link", &["--anchor", "reflink"]);
        assert!(done["anchor"].is_null(), "{done:#}");
        // What is in the image itself needs no name.
        for kind in ["bitmap", "snapshot"] {
            backup(&["--anchor", kind]);
            write(7);
            assert_eq!(backup(&[])["tracker"], kind);
            write(8);
            assert_eq!(backup(&["--anchor", "none"])["tracker"], kind);
            let info = qemu_img(args!["info", image.as_path()]).ok().text();
            assert!(!info.contains("qdelta-2"), "{info}");
        }
    });
}

/// Where no clone is wanted, it is nobody's business.
#[test]
fn a_folder_of_clones_of_somebody_who_is_not_asked() {
    let scene = Scene::new();
    let own = scene.lab.path(".qdelta");
    fs::create_dir(&own).unwrap();
    run(as_root("chown", args!["65534", own.as_path()])).ok();
    for anchor in ["none", "bitmap", "none"] {
        let done = scene.backup(&["--anchor", anchor]);
        assert_eq!(done["warnings"], serde_json::json!([]));
    }
    run(as_root("rm", args!["-r", own.as_path()])).ok();
}

/// The guest of a raw disk writes what looks like a damaged qcow2 image: nobody looks for anchors in
/// that.
#[test]
fn a_raw_disk_that_begins_like_qcow2() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let raw = lab.path("disk.raw");
    let mut bytes = vec![1; MIB as usize];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(&raw, bytes).unwrap();
    let done = repo.backup(&raw, "disk", &["--format", "raw"]);
    assert_eq!(done["warnings"], serde_json::json!([]));
}
