//! What was once missed without a sign, or could have been: each of these showed in the restored
//! disk alone.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::{MIB, Scene, reason};
use crate::harness::faults::{Fault, Injection, run_with};
use crate::harness::files::Mount;
use crate::harness::images::{
    create, create_raw, guest_io, oracle, overlay, patch, qemu_img, read_u64,
};
use crate::harness::run::as_root;
use crate::harness::{Lab, args, run, temp_dir, tool};

#[track_caller]
fn assert_refused(scene: &Scene, tracker: &str, why: &str) {
    let done = scene.tracked("scan", &[]);
    let reason = reason(&done, tracker);
    assert!(reason.contains(why), "{tracker} was refused because {reason}");
}

/// The bitmap that a backup has left, and a write that it has recorded.
fn recorded() -> (Scene, String) {
    let scene = Scene::new();
    let done = scene.backup(&["--anchor", "bitmap"]);
    let name = done["anchor"].as_str().unwrap().to_owned();
    scene.guest(&["write -q -P 3 2M 100k"]);
    (scene, name)
}

/// `qemu-img convert --bitmaps` copies the bitmaps of now, also when it converts what a snapshot
/// holds: that the disk went back is in none of them. Here it is the anchor of another repository.
#[test]
fn an_older_state_with_the_bitmaps_of_now() {
    let scene = Scene::new();
    scene.guest(&["write -q -P 2 1M 1M"]);
    scene.backup(&["--anchor", "bitmap"]);
    qemu_img(args!["snapshot", "-c", "qdelta-older", scene.image.as_path()]).ok();
    scene.guest(&["write -q -P 3 1M 1M"]);
    let converted = scene.lab.path("converted.qcow2");
    let arguments = args!["convert", "-l", "qdelta-older", "--bitmaps", "-O", "qcow2"];
    let files = args![scene.image.as_path(), converted.as_path()];
    qemu_img([arguments, files].concat()).ok();
    fs::rename(&converted, &scene.image).unwrap();
    assert_refused(&scene, "bitmap", "the image is another file");
}

/// qemu-img writes over a file that is there: it stays the same one. So no bitmap may lie beside a
/// snapshot that is older than it, whoever called it what.
#[test]
fn an_older_state_in_the_same_file() {
    let scene = Scene::new();
    qemu_img(args!["snapshot", "-c", "qdelta-older", scene.image.as_path()]).ok();
    scene.guest(&["write -q -P 2 1M 1M"]);
    let done = scene.backup(&["--anchor", "bitmap"]);
    assert!(done["anchor"].is_null(), "{done:#}");
    let copy = scene.lab.path("copy.qcow2");
    fs::copy(&scene.image, &copy).unwrap();
    let arguments = args!["convert", "-l", "qdelta-older", "--bitmaps", "-O", "qcow2"];
    qemu_img([arguments, args![copy.as_path(), scene.image.as_path()]].concat()).ok();
    scene.tracked("scan", &[]);
}

/// As long as an image has a bitmap, `qemu-img check -r` deletes all its snapshots.
#[test]
fn a_bitmap_would_cost_somebody_s_snapshots() {
    let scene = Scene::new();
    qemu_img(args!["snapshot", "-c", "somebody's", scene.image.as_path()]).ok();
    let done = scene.backup(&["--anchor", "bitmap"]);
    assert!(done["anchor"].is_null(), "{done:#}");
    let warning = done["warnings"][0]["text"].as_str().unwrap();
    assert!(warning.contains("internal snapshot 'somebody's'"), "{warning}");
    qemu_img(args!["check", "-q", "-r", "all", scene.image.as_path()]).ok();
    let list = qemu_img(args!["snapshot", "-l", scene.image.as_path()]).ok().text();
    assert!(list.contains("somebody's"), "{list}");
    // That of an anchor gives way to the bitmap.
    let scene = Scene::new();
    scene.backup(&["--anchor", "snapshot"]);
    scene.guest(&["write -q -P 3 2M 100k"]);
    scene.tracked("snapshot", &["--anchor", "bitmap"]);
    scene.guest(&["write -q -P 4 2M 100k"]);
    scene.tracked("bitmap", &[]);
}

/// A bitmap that was cleared looks like one that has recorded nothing, as long as it is empty when
/// it is made.
#[test]
fn a_bitmap_that_was_cleared() {
    let (scene, name) = recorded();
    qemu_img(args!["bitmap", "--clear", scene.image.as_path(), name.as_str()]).ok();
    assert_refused(&scene, "bitmap", "was cleared");
}

/// So does one that was cleared, and whose marks a guest then wrote over, as it does with a new file
/// of some size: they were near each other once.
#[test]
fn a_bitmap_that_was_cleared_before_a_guest_wrote_much() {
    let scene = Scene::new();
    qemu_img(args!["resize", "-q", scene.image.as_path(), "1G"]).ok();
    let name = scene.backup(&["--anchor", "bitmap"])["anchor"].as_str().unwrap().to_owned();
    scene.guest(&["write -q -P 3 0 64k"]);
    qemu_img(args!["bitmap", "--clear", scene.image.as_path(), name.as_str()]).ok();
    scene.guest(&["write -q -P 4 1M 512M"]);
    assert_refused(&scene, "bitmap", "was cleared");
}

/// The same for another one in its place.
#[test]
fn a_bitmap_that_was_made_anew() {
    let (scene, name) = recorded();
    for act in ["--remove", "--add"] {
        qemu_img(args!["bitmap", act, scene.image.as_path(), name.as_str()]).ok();
    }
    assert_refused(&scene, "bitmap", "was cleared");
}

/// An image with clusters of this size, backed up with a bitmap, over a template that is for a while
/// another one; or over none, otherwise.
fn over_template(cluster: &str, has_one: bool) -> Scene {
    let scene = Scene::new();
    for (name, pattern) in [("template.raw", 9), ("other.raw", 8)] {
        let template = scene.lab.path(name);
        create_raw(&template, 8 * MIB);
        guest_io(&template, "raw", &[format!("write -q -P {pattern} 0 8M")]);
    }
    let options = format!("cluster_size={cluster}");
    fs::remove_file(&scene.image).unwrap();
    if has_one {
        overlay(&scene.image, "template.raw", "raw", None, &options);
    } else {
        create(&scene.image, &options, 8 * MIB);
    }
    scene.guest(&["write -q -P 1 0 1M"]);
    scene.backup(&["--anchor", "bitmap"]);
    scene
}

/// The image gets this template, or none, and is not told so.
fn rebase(scene: &Scene, template: &str) {
    let format: &[&str] = if template.is_empty() { &[] } else { &["-F", "raw"] };
    let mut arguments = args!["rebase", "-u", "-b", template];
    arguments.extend(format.iter().map(Into::into));
    qemu_img([arguments, args![scene.image.as_path()]].concat()).ok();
}

/// What a guest does not write of a cluster comes from the backing file. That it was another one
/// shows in no bitmap: the first version missed it where clusters are larger than what a bit stands
/// for.
#[test]
fn a_cluster_that_was_filled_from_another_template() {
    for (cluster, template) in [("128k", "template.raw"), ("2M", "template.raw"), ("256k", "")] {
        let scene = over_template(cluster, !template.is_empty());
        rebase(&scene, "other.raw");
        scene.guest(&["write -q -P 2 4M 512"]);
        rebase(&scene, template);
        scene.tracked("bitmap", &[]);
    }
}

/// A guest that reads fills clusters, too, if it copies what it reads; and QEMU sets no bit for it.
#[test]
fn a_cluster_that_was_copied_on_reading() {
    for cluster in ["4k", "64k", "2M", "16k,extended_l2=on"] {
        let scene = over_template(cluster, true);
        rebase(&scene, "other.raw");
        let read = args!["-C", "-f", "qcow2", "-c", "read -q 5M 100k", scene.image.as_path()];
        run(tool("qemu-io", read)).ok();
        rebase(&scene, "template.raw");
        scene.tracked("bitmap", &[]);
    }
}

/// A commit empties the image, and QEMU sets no bit for it. Here it went into a copy of the template.
#[test]
fn an_image_that_a_commit_has_emptied() {
    for cluster in ["4k", "64k", "2M", "16k,extended_l2=on"] {
        let scene = over_template(cluster, true);
        let (template, aside) = (scene.lab.path("template.raw"), scene.lab.path("aside.raw"));
        fs::rename(&template, &aside).unwrap();
        fs::copy(&aside, &template).unwrap();
        qemu_img(args!["commit", "-q", scene.image.as_path()]).ok();
        fs::rename(&aside, &template).unwrap();
        // Half of a cluster that is filled anew.
        scene.guest(&["write -q -P 2 2k 1k"]);
        scene.tracked("bitmap", &[]);
    }
}

/// An entry is damaged, and `qemu-img check -r` makes a hole of it. No bitmap records that; and
/// where the table is the snapshot's, too, both have the hole: the first version took that for
/// unchanged.
#[test]
fn a_cluster_that_was_repaired_to_a_hole() {
    for tracker in ["bitmap", "snapshot"] {
        let scene = Scene::new();
        scene.backup(&["--anchor", tracker]);
        const MASK: u64 = 0x00ff_ffff_ffff_fe00;
        const HEADER_L1_OFFSET: u64 = 40;
        let l1 = read_u64(&scene.image, HEADER_L1_OFFSET);
        let entry = (read_u64(&scene.image, l1) & MASK) + 8 * 5;
        // All zeros, with room in a place that is no cluster's.
        let damaged = read_u64(&scene.image, entry) | 0x201;
        patch(&scene.image, entry, &damaged.to_be_bytes());
        let check = qemu_img(args!["check", "-r", "all", scene.image.as_path()]);
        assert!(check.stderr.contains("not properly aligned"), "{}", check.report());
        let done = scene.tracked(tracker, &[]);
        assert_eq!(done["bytes_changed"].as_u64(), Some(64 << 10), "{done:#}");
    }
}

/// A guest writes over something in place and flushes, and the power is cut. Gives whether that took
/// back the time of the write: not if the filesystem has written its log in between, as it does now and
/// then.
fn lose_time_of_a_write(mount: &Mount, raw: &Path) -> bool {
    let modified = || fs::metadata(raw).unwrap().modified().unwrap();
    let before = modified();
    let write = args!["-f", "raw", "-t", "none", "-c", "write -q -P 7 1M 64k", "-c", "flush"];
    run(as_root("qemu-io", [write, args![raw]].concat())).ok();
    assert_ne!(modified(), before);
    mount.cut_power(false);
    modified() == before
}

/// Tries until the time of the write was lost.
#[track_caller]
fn until_it_is_lost(attempt: impl Fn() -> bool) {
    assert!((0..5).any(|_| attempt()), "the time of the write was kept each time");
}

/// A power cut takes back the time of a write, and not the write: a guest that flushes makes its
/// data durable, and what it wrote over in place changes nothing else of the file. The machine has
/// another boot afterwards.
fn a_write_whose_time_is_lost(filesystem: &str) -> bool {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), filesystem, 400 * MIB);
    let scene = Scene::within(&mount.dir);
    let raw = scene.lab.path("raw.raw");
    create_raw(&raw, 4 * MIB);
    guest_io(&raw, "raw", &["write -q -P 1 0 4M".to_owned()]);
    run(as_root("sync", args!["-f", mount.dir.as_path()])).ok();
    let options = ["--format", "raw", "--sample", "0"];
    scene.repo.backup(&raw, "raw", &options);
    if !lose_time_of_a_write(&mount, &raw) {
        return false;
    }
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "raw", raw.as_path()], &expected);
    let done = scene.repo.backup(&raw, "raw", &options);
    let why = reason(&done, "overlay");
    assert!(why.contains("was mounted anew"), "{done:#}");
    scene.repo.assert_restores_raw(&lab, "raw", &expected);
    // From then on the time counts again, until the machine is started anew.
    let done = scene.repo.backup(&raw, "raw", &options);
    assert_eq!(done["tracker"], "overlay", "{done:#}");
    let done = backup_after_a_start(&scene, &raw, &options);
    let why = reason(&done, "overlay");
    assert!(why.contains("the machine was started anew"), "{done:#}");
    true
}

/// The same of a backing file: neither bitmap nor snapshot nor clone is of what lies below.
fn a_write_below_whose_time_is_lost(anchor: &str) -> bool {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "xfs", 400 * MIB);
    let scene = Scene::within(&mount.dir);
    let (base, top) = (scene.lab.path("base.raw"), scene.lab.path("top.qcow2"));
    create_raw(&base, 4 * MIB);
    guest_io(&base, "raw", &["write -q -P 1 0 4M".to_owned()]);
    overlay(&top, "base.raw", "raw", None, "");
    let options = ["--anchor", anchor, "--sample", "0"];
    scene.repo.backup(&top, "top", &options);
    run(as_root("sync", args!["-f", mount.dir.as_path()])).ok();
    if !lose_time_of_a_write(&mount, &base) {
        return false;
    }
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", top.as_path()], &expected);
    let done = scene.repo.backup(&top, "top", &options);
    assert!(reason(&done, anchor).contains("was mounted anew"), "{done:#}");
    scene.repo.assert_restores_raw(&lab, "top", &expected);
    true
}

/// A backup in which the kernel has another name for its start.
fn backup_after_a_start(scene: &Scene, image: &Path, options: &[&str]) -> serde_json::Value {
    let boot = scene.lab.path("boot_id");
    fs::write(&boot, "00000000-0000-4000-8000-000000000001\n").unwrap();
    let arguments = scene.repo.args(args!["--json", "backup", image, "--disk", "raw"]);
    let arguments = [arguments, options.iter().map(Into::into).collect()].concat();
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let command = args!["--mount", "--propagation", "private", "sh", "-c", script, boot.as_path()];
    let command = [command, args![env!("CARGO_BIN_EXE_qdelta")], arguments].concat();
    run(as_root("unshare", command)).ok().json()
}

#[test]
fn a_write_whose_time_is_lost_on_xfs() {
    until_it_is_lost(|| a_write_whose_time_is_lost("xfs"));
}

#[test]
fn a_write_whose_time_is_lost_on_ext4() {
    until_it_is_lost(|| a_write_whose_time_is_lost("ext4"));
}

#[test]
fn a_write_to_a_backing_file_whose_time_is_lost() {
    for anchor in ["bitmap", "snapshot", "reflink"] {
        until_it_is_lost(|| a_write_below_whose_time_is_lost(anchor));
    }
}

/// Another disk of the same size comes into the same file, with the time of the one before: golden
/// images often have one time. What `cp -p` can't set back is when the file itself was changed.
#[test]
fn a_disk_that_was_copied_over_with_its_time() {
    let scene = Scene::new();
    let other = scene.lab.path("other.qcow2");
    fs::copy(&scene.image, &other).unwrap();
    guest_io(&other, "qcow2", &["write -q -P 2 1M 1M".to_owned()]);
    let touch = args!["-d", "2024-01-01", other.as_path(), scene.image.as_path()];
    run(tool("touch", touch)).ok();
    scene.backup(&[]);
    run(tool("cp", args!["-p", other.as_path(), scene.image.as_path()])).ok();
    assert_refused(&scene, "overlay", "a file of the image has changed");
}

/// Here files have times in whole seconds. A backup begins when another write would show, so a
/// write right behind it does; and what it left is recognised.
#[test]
fn a_filesystem_that_counts_in_seconds() {
    let lab = Lab::new();
    // No room in an inode for more of a time than that.
    let mount = Mount::on_loop_with(lab.dir(), "ext4", 100 * MIB, &["-I", "128"]);
    let scene = Scene::within(&mount.dir);
    let modified = fs::metadata(&scene.image).unwrap().modified().unwrap();
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(since.subsec_nanos(), 0, "this filesystem has finer times");
    scene.backup(&[]);
    for round in 2..5 {
        scene.guest(&[format!("write -q -P {round} 2M 100k").as_str()]);
        scene.tracked("scan", &[]);
        scene.tracked("overlay", &[]);
    }
    scene.guest(&["write -q -P 8 2M 100k"]);
    scene.tracked("scan", &["--anchor", "bitmap"]);
    scene.guest(&["write -q -P 9 2M 100k"]);
    scene.tracked("bitmap", &[]);
}

/// A program that has mapped a file and writes to it. The kernel sets the file's time only for the first
/// of its writes to a page, until that is written back (and in memory it sets none).
struct Mapper {
    program: Child,
    file: File,
}

impl Mapper {
    fn of(path: &Path) -> Self {
        let mut program = tool("xfs_io", args![path]).stdin(Stdio::piped()).spawn().unwrap();
        writeln!(program.stdin.as_mut().unwrap(), "mmap -rw 0 1m").unwrap();
        Self { program, file: File::open(path).unwrap() }
    }

    /// Returns when it is written.
    fn write(&mut self, pattern: u8) {
        const PLACE: u64 = 5 << 16;
        let stdin = self.program.stdin.as_mut().unwrap();
        writeln!(stdin, "mwrite -S {pattern} {PLACE} 1").unwrap();
        let mut byte = [0];
        for _ in 0..3000 {
            self.file.read_exact_at(&mut byte, PLACE).unwrap();
            if byte == [pattern] {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("xfs_io writes nothing");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// It lies on a disk, where the time shows every write once the file is written back, and where it
/// never does.
#[test]
fn what_a_program_writes_to_a_file_that_it_has_mapped() {
    let lab = Lab::new();
    let memory = Mount::in_memory(lab.dir(), 64 * MIB);
    let volatile = Mount::volatile(lab.dir());
    for (folder, why) in [
        (temp_dir(), "has changed"),
        (memory.dir.clone(), "proves nothing"),
        (volatile.dir.clone(), "proves nothing"),
    ] {
        for anchor in ["none", "bitmap", "snapshot"] {
            let scene = Scene::within(&folder);
            let (raw, top) = (scene.lab.path("template.raw"), scene.image.clone());
            create_raw(&raw, MIB);
            guest_io(&raw, "raw", &["write -q -P 9 0 1M".to_owned()]);
            fs::remove_file(&top).unwrap();
            overlay(&top, "template.raw", "raw", None, "");
            let mut mapper = Mapper::of(&raw);
            mapper.write(1);
            scene.backup(&["--anchor", anchor]);
            mapper.write(2);
            let done = scene.tracked("scan", &[]);
            let tracker = if anchor == "none" { "overlay" } else { anchor };
            let reason = reason(&done, tracker);
            assert!(reason.contains(why), "{tracker} in {folder:?} was refused because {reason}");
        }
    }
}

/// Btrfs notes the time of a write at once, and its bytes later: a snapshot of a subvolume can have
/// the one and not the other, and its files are the same in all else. Here it has other bytes.
#[test]
fn a_snapshot_of_a_subvolume_in_its_place() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "btrfs", 400 * MIB);
    for anchor in ["none", "bitmap", "snapshot", "reflink"] {
        let scene = Scene::within(&mount.dir);
        let [templates, other, old] =
            ["templates", "other", "old"].map(|name| scene.lab.path(name));
        run(tool("btrfs", args!["subvolume", "create", templates.as_path()])).ok();
        let raw = templates.join("template.raw");
        create_raw(&raw, MIB);
        guest_io(&raw, "raw", &["write -q -P 9 0 1M".to_owned()]);
        fs::remove_file(&scene.image).unwrap();
        overlay(&scene.image, "templates/template.raw", "raw", None, "");
        scene.backup(&["--anchor", anchor]);

        let paths = args![templates.as_path(), other.as_path()];
        run(tool("btrfs", [args!["subvolume", "snapshot"], paths].concat())).ok();
        let changed = other.join("template.raw");
        guest_io(&changed, "raw", &["write -q -P 8 0 64k".to_owned()]);
        run(tool("touch", args!["-r", raw.as_path(), changed.as_path()])).ok();
        fs::rename(&templates, &old).unwrap();
        fs::rename(&other, &templates).unwrap();

        let done = scene.tracked("scan", &[]);
        let reason = reason(&done, if anchor == "none" { "overlay" } else { anchor });
        assert!(reason.contains("has changed since"), "{anchor} was refused because {reason}");
    }
}

/// Nothing can be written back where nothing can be written: that is no reason to doubt a time.
#[test]
fn a_template_that_can_only_be_read() {
    let lab = Lab::new();
    let tree = lab.path("tree");
    fs::create_dir(&tree).unwrap();
    create_raw(&tree.join("template.raw"), MIB);
    guest_io(&tree.join("template.raw"), "raw", &["write -q -P 9 0 1M".to_owned()]);
    let mount = Mount::read_only(lab.dir(), &tree);
    let scene = Scene::new();
    fs::remove_file(&scene.image).unwrap();
    overlay(&scene.image, mount.dir.join("template.raw").to_str().unwrap(), "raw", None, "");
    let root = ["--image-root", mount.dir.to_str().unwrap()];
    scene.backup(&[&root[..], &["--anchor", "bitmap"]].concat());
    scene.guest(&["write -q -P 3 512k 64k"]);
    let done = scene.tracked("bitmap", &root);
    assert_eq!(done["warnings"], serde_json::json!([]), "{done:#}");
}

/// What a disk did not take can be gone when it is read again, and no tracker knows: that is a point,
/// since it may be the last one, and what follows reads everything.
#[test]
fn an_image_that_can_not_be_written_back() {
    for anchor in ["none", "bitmap", "snapshot"] {
        let scene = Scene::new();
        // The anchor before is written back without a failure.
        let made = scene.backup(&["--anchor", anchor]);
        assert_eq!(made["anchor"].is_string(), anchor != "none", "{made:#}");
        let calls = if anchor == "none" { 1..2 } else { 1..8 };
        let warned = calls.into_iter().any(|when| {
            let call = "fdatasync".to_owned();
            let fault = Injection { call, when, fault: Fault::InputOutputError };
            let arguments = args!["backup", scene.image.as_path(), "--disk", "disk", "--json"];
            let outcome = run_with(&fault, scene.repo.args(arguments));
            let is_told = outcome.stderr.contains("cannot write back what is in memory of");
            if is_told {
                let done = outcome.ok().json();
                assert!(done["anchor"].is_null(), "{done:#}");
            }
            is_told
        });
        assert!(warned, "no call of fdatasync is for the image");
        scene.tracked("scan", &[]);
        let done = scene.tracked("scan", &["--track", "scan"]);
        assert_eq!(done["anchor"].is_string(), anchor != "none", "{done:#}");
    }
}
