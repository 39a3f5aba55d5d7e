//! Rolling back where there is hardly any room: it is counted before anything is written, zeros take none,
//! and what is not needed any more is given back, however it ends.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::harness::faults::{Fault, Injection, run_with};
use super::harness::files::{Mount, disk_usage, sha256};
use super::harness::images::{create, guest_io, qemu_img};
use super::harness::repo::{Repo, point_of};
use super::harness::run::{as_root, describe, finish, start};
use super::harness::{Lab, Outcome, args, qdelta, run, tool};

const MIB: u64 = 1 << 20;

/// A filesystem that keeps nothing for root.
fn mount(lab: &Lab, kind: &str, size: u64) -> Mount {
    let options: &[&str] = if kind == "ext4" { &["-m", "0"] } else { &[] };
    Mount::on_loop_with(lab.dir(), kind, size, options)
}

/// What of a filesystem is free.
fn free(path: &Path) -> u64 {
    run(tool("sync", args!["-f", path])).ok();
    let space = rustix::fs::statvfs(path).unwrap();
    space.f_bavail * space.f_frsize
}

/// Leaves this much room and no more.
fn fill_up(mount: &Mount, left: u64) -> PathBuf {
    let filler = mount.dir.join("filler");
    // Of what it says is free, a filesystem needs some for itself.
    let mut len = free(&mount.dir).saturating_sub(left);
    while run(tool("fallocate", args!["-l", len.to_string(), filler.as_path()])).code() != Some(0) {
        len -= 4 * MIB;
    }
    filler
}

fn roll_back(repo: &Repo, point: &str, path: &Path, options: &[&str]) -> Outcome {
    let selector = format!("vm/disk@{point}");
    let mut words = repo.args(args!["restore", selector, path, "--in-place", "--io", "threads"]);
    words.extend(options.iter().map(OsString::from));
    run(qdelta(words))
}

/// Writes 4 KiB in each of `count` blocks of 64 KiB from `first` on.
fn scatter(path: &Path, first: u64, count: u64, byte: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for block in first..first + count {
        file.write_all_at(&[byte; 4096], block * 65536 + block % 16 * 4096).unwrap();
    }
    file.sync_all().unwrap();
}

/// Whole blocks of zeros were written over the holes inside them, which nobody had counted: the
/// filesystem was full in the middle, and running it again failed alike.
#[test]
fn zeros_take_no_room_in_a_sparse_raw_image() {
    for kind in ["ext4", "xfs"] {
        let lab = Lab::new();
        let mount = mount(&lab, kind, 400 * MIB);
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = mount.dir.join("disk.raw");
        File::create(&path).unwrap().set_len(128 * MIB).unwrap();
        let empty = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
        scatter(&path, 0, 1000, 1);
        let other = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
        let expected = sha256(&path);
        scatter(&path, 1000, 1000, 2);
        let before = disk_usage(&path);
        fill_up(&mount, MIB);
        // Two thousand pages go, a thousand of them come back: what goes makes room for what comes.
        roll_back(&repo, &empty, &path, &["--no-point"]).ok();
        assert!(disk_usage(&path) < before / 8, "{kind}: {} of {before}", disk_usage(&path));
        roll_back(&repo, &other, &path, &["--no-point"]).ok();
        assert_eq!(sha256(&path), expected, "{kind}");
        assert!(disk_usage(&path) <= before * 5 / 8, "{kind}: {} of {before}", disk_usage(&path));
    }
}

/// What is written where there is a hole is counted, to the page, before anything is written.
#[test]
fn holes_that_get_data_are_counted_first() {
    let lab = Lab::new();
    let mount = mount(&lab, "ext4", 100 * MIB);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let path = mount.dir.join("disk.raw");
    File::create(&path).unwrap().set_len(256 * MIB).unwrap();
    scatter(&path, 0, 1024, 1);
    let full = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
    let expected = sha256(&path);
    run(tool("fallocate", args!["-p", "-l", "64M", path.as_path()])).ok();
    let before = sha256(&path);
    let filler = fill_up(&mount, 3 * MIB);
    let room = free(&mount.dir);
    let said = roll_back(&repo, &full, &path, &[]).fails_with(8);
    assert!(said.contains("free") && said.contains("nothing is written yet"), "{said}");
    assert_eq!((sha256(&path), free(&mount.dir)), (before, room));
    assert_eq!(repo.points("vm/disk").len(), 1, "a safety point was made in vain");
    // Four MiB of pages in 64 MiB of blocks: half a MiB more than they need is enough.
    fs::remove_file(filler).unwrap();
    fill_up(&mount, 9 * MIB / 2);
    roll_back(&repo, &full, &path, &[]).ok();
    assert_eq!(sha256(&path), expected);
}

/// A file that somebody has reserved all places for keeps them.
#[test]
fn a_file_without_holes_stays_without() {
    let lab = Lab::new();
    let mount = mount(&lab, "ext4", 100 * MIB);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let path = mount.dir.join("disk.raw");
    run(tool("fallocate", args!["-l", "32M", path.as_path()])).ok();
    let point = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
    guest_io(&path, "raw", &["write -q -P 3 1M 20M".to_owned()]);
    let before = disk_usage(&path);
    fill_up(&mount, MIB / 2);
    roll_back(&repo, &point, &path, &[]).ok();
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    assert!(disk_usage(&path) >= 32 * MIB, "{} of {before}", disk_usage(&path));
}

/// What a clone shares was taken for the image's own: its first write needs room.
#[test]
fn what_a_clone_shares_is_counted_and_the_clone_of_the_point_before_goes_first() {
    let lab = Lab::new();
    let mount = mount(&lab, "xfs", 400 * MIB);
    let repo = Repo::init(lab.path("repo")).without_ring();
    let path = mount.dir.join("disk.raw");
    run(tool("fallocate", args!["-l", "64M", path.as_path()])).ok();
    guest_io(&path, "raw", &["write -q -P 1 0 64M".to_owned()]);
    let old = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
    let expected = sha256(&path);
    guest_io(&path, "raw", &["write -q -P 2 0 64M".to_owned()]);
    // Somebody's own clone: nobody but him lets go of it.
    let clone = mount.dir.join("clone");
    run(tool("cp", args!["--reflink=always", path.as_path(), clone.as_path()])).ok();
    let before = sha256(&path);
    let filler = fill_up(&mount, 16 * MIB);
    let room = free(&mount.dir);
    roll_back(&repo, &old, &path, &["--no-point"]).fails_with(8);
    assert_eq!((sha256(&path), free(&mount.dir)), (before, room));
    fs::remove_file(clone).unwrap();
    fs::remove_file(filler).unwrap();
    // The clone that is the anchor of the point before goes when the safety point is there.
    repo.backup(&path, "vm/disk", &["--format", "raw", "--anchor", "reflink"]);
    assert!(mount.dir.join(".qdelta").is_dir());
    fill_up(&mount, 16 * MIB);
    roll_back(&repo, &old, &path, &[]).ok();
    assert_eq!(sha256(&path), expected);
    assert!(free(&mount.dir) + MIB >= 16 * MIB, "{}", free(&mount.dir));
}

/// Btrfs writes nothing over, unless the file is marked so: then a write takes none.
#[test]
fn a_filesystem_that_writes_nothing_over_needs_room_for_all() {
    for nocow in [false, true] {
        let lab = Lab::new();
        let mount = mount(&lab, "btrfs", 400 * MIB);
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = mount.dir.join("disk.raw");
        File::create(&path).unwrap();
        if nocow {
            run(as_root("chattr", args!["+C", path.as_path()])).ok();
        }
        guest_io(&path, "raw", &["truncate 64M".to_owned(), "write -q -P 1 0 64M".to_owned()]);
        let old = point_of(&repo.backup(&path, "vm/disk", &["--format", "raw"]));
        let expected = sha256(&path);
        guest_io(&path, "raw", &["write -q -P 2 0 64M".to_owned()]);
        let before = sha256(&path);
        fill_up(&mount, 40 * MIB);
        let outcome = roll_back(&repo, &old, &path, &["--no-point"]);
        match nocow {
            true => drop(outcome.ok()),
            false => drop(outcome.fails_with(8)),
        }
        assert_eq!(sha256(&path), if nocow { expected } else { before }, "{nocow}");
    }
}

/// Free clusters of an image that are holes in its file were taken for room; and the old disk's clusters
/// stayed in the file.
#[test]
fn a_qcow2_image_takes_what_is_a_hole_in_its_file_and_gives_back_what_was() {
    for options in ["", "extended_l2=on,cluster_size=16k", "cluster_size=2M"] {
        let lab = Lab::new();
        let mount = mount(&lab, "ext4", 200 * MIB);
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = mount.dir.join("disk.qcow2");
        create(&path, options, 64 * MIB);
        guest_io(&path, "qcow2", &["write -q -P 1 0 40M".to_owned()]);
        let old = point_of(&repo.backup(&path, "vm/disk", &[]));
        // A discard leaves free clusters that are holes.
        let acts = ["discard -q 0 64M", "write -q -P 2 0 20M"].map(str::to_owned);
        guest_io(&path, "qcow2", &acts);
        let (before, usage) = (sha256(&path), disk_usage(&path));
        let filler = fill_up(&mount, 12 * MIB);
        let room = free(&mount.dir);
        roll_back(&repo, &old, &path, &[]).fails_with(8);
        assert_eq!((sha256(&path), free(&mount.dir)), (before, room), "{options}");
        fs::remove_file(filler).unwrap();
        roll_back(&repo, &old, &path, &[]).ok();
        let outcome = qemu_img(args!["check", "-f", "qcow2", path.as_path()]);
        assert_eq!(outcome.code(), Some(0), "{options}: {}", outcome.report());
        guest_io(&path, "qcow2", &["read -q -P 1 0 40M".to_owned()]);
        // Twice as much data is in it, and nothing of what it had.
        let now = disk_usage(&path);
        assert!(now <= usage + 23 * MIB, "{options}: {now}, and {usage} before");
    }
}

/// Whatever a run fails with, others have the room that they had.
#[test]
fn a_run_that_fails_gives_back_what_it_took() {
    for (format, calls) in [("qcow2", [40, 300, 500]), ("raw", [3, 40, 80])] {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = lab.path("disk");
        qemu_img(args!["create", "-q", "-f", format, path.as_path(), "64M"]).ok();
        guest_io(&path, format, &["write -q -P 1 0 32M".to_owned()]);
        let old = point_of(&repo.backup(&path, "vm/disk", &["--format", format]));
        guest_io(&path, format, &["discard -q 0 32M".to_owned(), "write -q -P 2 0 64k".to_owned()]);
        run(tool("sync", args!["-f", path.as_path()])).ok();
        let before = disk_usage(&path);
        let mut failed = 0;
        for when in calls {
            let words = repo.args(args![
                "restore",
                format!("vm/disk@{old}"),
                path.as_path(),
                "--in-place",
                "--no-point",
                "--io",
                "threads",
                "--threads",
                "1"
            ]);
            let injection = Injection { call: "pwrite64".to_owned(), when, fault: Fault::NoSpace };
            let outcome = run_with(&injection, words).sane();
            if outcome.code() == Some(0) {
                break;
            }
            failed += 1;
            assert_eq!(outcome.code(), Some(8), "{format} {when}: {}", outcome.report());
            run(tool("sync", args!["-f", path.as_path()])).ok();
            let now = disk_usage(&path);
            assert!(now <= before + 128 * 1024, "{format} {when}: {now}, and {before} before");
        }
        assert!(failed > 0, "{format}: nothing ever failed");
        roll_back(&repo, &old, &path, &["--no-point"]).ok();
        guest_io(&path, format, &["read -q -P 1 0 32M".to_owned()]);
    }
}

/// Killed again and again, the image grows no further than by one run.
#[test]
fn what_a_killed_run_took_the_next_one_takes_over() {
    for format in ["qcow2", "raw"] {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = lab.path("disk");
        qemu_img(args!["create", "-q", "-f", format, path.as_path(), "64M"]).ok();
        guest_io(&path, format, &["write -q -P 1 0 32M".to_owned()]);
        let old = point_of(&repo.backup(&path, "vm/disk", &["--format", format]));
        let usual = disk_usage(&path);
        guest_io(&path, format, &["write -q -P 2 0 32M".to_owned()]);
        for round in 0..4 {
            let words = args!["restore", format!("vm/disk@{old}"), path.as_path(), "--in-place"];
            let mut command = qdelta(repo.args([words, args!["--no-point"]].concat()));
            let child = start(&mut command);
            std::thread::sleep(Duration::from_millis(100 + round * 60));
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            finish(child, describe(&command));
        }
        roll_back(&repo, &old, &path, &["--no-point"]).ok();
        guest_io(&path, format, &["read -q -P 1 0 32M".to_owned()]);
        run(tool("sync", args!["-f", path.as_path()])).ok();
        let now = disk_usage(&path);
        assert!(now <= usual + MIB, "{format}: {now}, and {usual} usually");
    }
}

/// A roll back that was killed when the disk was the old one already gave nothing back, and the next one
/// found nothing to do: the image kept the room of two disks for good.
#[test]
fn what_was_killed_behind_the_switch_is_given_back_by_the_next_run() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let path = lab.path("disk.qcow2");
    create(&path, "", 32 * MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 0 8M".to_owned()]);
    let old = point_of(&repo.backup(&path, "vm/disk", &[]));
    let usual = disk_usage(&path);
    let words = args!["restore", format!("vm/disk@{old}"), path.as_path(), "--in-place"];
    let words = repo.args([words, args!["--no-point", "--io", "threads"]].concat());
    let mut killed = 0;
    for when in 1.. {
        guest_io(&path, "qcow2", &["write -q -P 2 0 8M".to_owned()]);
        let injection = Injection { call: "fallocate".to_owned(), when, fault: Fault::Kill };
        if run_with(&injection, words.clone()).code() == Some(0) {
            break;
        }
        killed += 1;
        assert!(disk_usage(&path) > usual + 4 * MIB, "it was killed before it had written");
        guest_io(&path, "qcow2", &["read -q -P 1 0 8M".to_owned()]);
        roll_back(&repo, &old, &path, &["--no-point"]).ok();
        run(tool("sync", args!["-f", path.as_path()])).ok();
        let now = disk_usage(&path);
        assert!(now <= usual + MIB, "{when}: {now}, and {usual} usually");
    }
    assert!(killed > 0, "no call gives back room");
}

/// A limit on the size of files was met in the middle.
#[test]
fn a_limit_on_the_size_of_files_is_found_first() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let path = lab.path("disk.qcow2");
    create(&path, "", 32 * MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 0 16M".to_owned()]);
    let old = point_of(&repo.backup(&path, "vm/disk", &[]));
    guest_io(&path, "qcow2", &["write -q -P 2 0 16M".to_owned()]);
    let before = sha256(&path);
    let words = args!["restore", format!("vm/disk@{old}"), path.as_path(), "--in-place"];
    let all = [args!["--fsize=20971520", super::harness::run::binary()], repo.args(words)].concat();
    let said = run(tool("prlimit", all)).fails_with(8);
    assert!(said.contains("ulimit"), "{said}");
    assert_eq!(sha256(&path), before);
    let words = args!["restore", format!("vm/disk@{old}"), lab.path("new.raw")];
    let all = [args!["--fsize=20971520", super::harness::run::binary()], repo.args(words)].concat();
    let begin = Instant::now();
    let said = run(tool("prlimit", all)).fails_with(8);
    assert!(said.contains("ulimit") && !lab.path("new.raw").exists(), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}
