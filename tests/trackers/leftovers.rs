//! What backups that were interrupted, that failed, or that found the image in use have left: it goes
//! with the next point, of whatever kind its anchor is.

use std::fs;

use qdelta::disk::edit::ImageFile;

use super::{MIB, Scene};
use crate::harness::files::Mount;
use crate::harness::images::{overlay, qemu_img};
use crate::harness::{Lab, args};

/// Anchors of interrupted backups do not pile up.
#[test]
fn what_an_interrupted_backup_left_is_removed() {
    for kind in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        let name = scene.backup(&["--anchor", kind])["anchor"].as_str().unwrap().to_owned();
        scene.guest(&["write -q -P 3 2M 100k"]);
        let tag = &name[name.len() - 9..];
        let left = format!("qdelta-20260101T000000.000Z{tag}");
        match kind {
            "bitmap" => {
                qemu_img(args!["bitmap", "--add", scene.image.as_path(), left.as_str()]).ok();
            }
            _ => {
                qemu_img(args!["snapshot", "-c", left.as_str(), scene.image.as_path()]).ok();
            }
        }
        let list = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
        assert_eq!(list["anchors"].as_array().unwrap().len(), 2, "{list:#}");
        assert!(list.to_string().contains("left-over"), "{list:#}");
        scene.tracked(kind, &[]);
        let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
        assert!(!info.contains(&left), "{info}");
        // A bitmap has its map beside it.
        let count = if kind == "bitmap" { 2 } else { 1 };
        assert_eq!(info.matches("qdelta-2").count(), count, "{info}");
        // And an admin can have an image without any.
        scene.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
        let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
        assert!(!info.contains("qdelta-2"), "{info}");
        let list = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
        assert_eq!(list["anchors"][0]["state"], "missing", "{list:#}");
    }
}

/// Somebody looks at the image, so its old anchor can't go when one of another kind is left. It does
/// when it can.
#[test]
fn an_anchor_of_another_kind_that_could_not_go() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    for kind in ["bitmap", "snapshot"] {
        let scene = Scene::within(&mount.dir);
        let name = scene.backup(&["--anchor", kind])["anchor"].as_str().unwrap().to_owned();
        let has_it = || qemu_img(args!["info", scene.image.as_path()]).ok().text().contains(&name);
        let mut reader = ImageFile::open(&scene.image).unwrap();
        reader.downgrade();
        let done = scene.backup(&["--anchor", "reflink"]);
        assert!(has_it());
        // A snapshot keeps what the guest writes over.
        let is_said = done["warnings"].to_string().contains("an old anchor stays for now");
        assert_eq!(is_said, kind == "snapshot", "{done:#}");
        drop(reader);
        let done = scene.tracked("reflink", &[]);
        assert_eq!(done["warnings"], serde_json::json!([]));
        assert!(!has_it());
    }
}

/// The clone of a backup that was killed, when the next one leaves none.
#[test]
fn a_clone_goes_with_a_point_that_needs_none() {
    for kind in ["bitmap", "none"] {
        let lab = Lab::new();
        let mount = Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
        let scene = Scene::within(&mount.dir);
        let name = scene.backup(&["--anchor", "reflink"])["anchor"].as_str().unwrap().to_owned();
        let folder = scene.lab.path(".qdelta");
        let left = folder.join(format!("qdelta-20260101T000000.000Z{}", &name[name.len() - 9..]));
        fs::create_dir(&left).unwrap();
        fs::copy(&scene.image, left.join("disk.qcow2")).unwrap();
        scene.backup(&["--anchor", kind]);
        assert!(!folder.exists(), "{kind}");
    }
}

/// An anchor is in the image already when it shows that the backup can't be made.
#[test]
fn a_backup_that_fails_takes_its_anchor_along() {
    for kind in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        let base = scene.lab.path("base.qcow2");
        fs::rename(&scene.image, &base).unwrap();
        overlay(&scene.image, "base.qcow2", "qcow2", None, "");
        let writer = ImageFile::open(&base).unwrap();
        scene.repo.backup_run(&scene.image, "disk", &["--anchor", kind]).fails_with(5);
        drop(writer);
        let info = qemu_img(args!["info", scene.image.as_path()]).ok().text();
        assert!(!info.contains("qdelta-2"), "{info}");
    }
}
