//! Faults at the write-like system calls of backups that leave anchors: the program is killed
//! there, or the call fails. Whatever the moment, the image is sound and has the guest's bytes, and
//! the next backup is right and sweeps up what was left.

use std::path::Path;

use super::{MIB, Scene};
use crate::harness::content::Guest;
use crate::harness::faults::{Fault, count_calls, plan, run_with};
use crate::harness::files::Mount;
use crate::harness::images::{guest_io, oracle, qemu_img};
use crate::harness::{Lab, args, sweep, temp_dir};

const FAULTS: &[Fault] = &[Fault::Kill, Fault::InputOutputError, Fault::NoSpace];
/// Of calls of one kind, about so many are tried.
const EACH: u64 = 5;

fn backup_survives(anchor: &str, folder: &Path) {
    let scene = Scene::within(folder);
    let mut guest = Guest::new(scene.lab.dir(), 23);
    scene.backup(&["--anchor", anchor]);
    let arguments = scene.repo.args(args![
        "backup",
        scene.image.as_path(),
        "--disk",
        "disk",
        "--anchor",
        anchor,
        "--sample",
        "0",
        "--io",
        "threads",
        "--threads",
        "1"
    ]);
    let counts = count_calls(&scene.lab, arguments.clone());
    let expected = scene.lab.path("now.raw");
    for injection in plan(&counts, FAULTS, EACH * sweep()) {
        guest_io(&scene.image, "qcow2", &[guest.act(8 * MIB), guest.act(8 * MIB)]);
        oracle(args!["-f", "qcow2", scene.image.as_path()], &expected);
        let outcome = run_with(&injection, arguments.clone()).sane();
        let context = format!("{injection}\n{}", outcome.report());
        // Clean, or at worst with leaked clusters.
        let check = qemu_img(args!["check", "-q", scene.image.as_path()]);
        assert!(matches!(check.code(), Some(0 | 3)), "{context}\n{}", check.report());
        let same = args!["compare", "-q", "-F", "raw", scene.image.as_path(), expected.as_path()];
        assert_eq!(qemu_img(same).code(), Some(0), "{context}");
        // The next one, which may well be killed, too, only in the next round.
        scene.backup(&["--anchor", anchor]);
        scene.assert_restores();
        scene.repo.assert_no_leftovers();
        let list = scene.repo.run(args!["anchors", "disk", "--json"]).ok().json();
        let states: Vec<&str> = list["anchors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["state"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["current"], "{context}\n{list:#}");
    }
    // What it was all for: the anchor works.
    scene.guest(&["write -q -P 3 1M 100k"]);
    scene.tracked(anchor, &[]);
    let check = qemu_img(args!["check", "-r", "leaks", scene.image.as_path()]);
    assert_eq!(check.code(), Some(0), "{}", check.report());
}

#[test]
fn a_backup_that_leaves_a_bitmap() {
    backup_survives("bitmap", &temp_dir());
}

#[test]
fn a_backup_that_leaves_a_snapshot() {
    backup_survives("snapshot", &temp_dir());
}

#[test]
fn a_backup_that_leaves_a_clone() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    backup_survives("reflink", &mount.dir);
}
