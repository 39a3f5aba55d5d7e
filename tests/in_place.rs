//! Rolling an image back where it lies: exactly the point's disk comes of it, QEMU finds it sound, and
//! what was there before is in a safety point.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::harness::content::{Guest, Random};
use super::harness::images::{create, filled_raw, guest_io, overlay, patch, qemu_img, read_u64};
use super::harness::repo::Repo;
use super::harness::run::{describe, finish, start};
use super::harness::{Lab, Outcome, args, qdelta, run, sweep};

const MIB: u64 = 1 << 20;

fn roll_back(repo: &Repo, selector: &str, path: &Path, options: &[&str]) -> Outcome {
    let mut words = repo.args(args!["restore", selector, path, "--in-place", "--json"]);
    words.extend(options.iter().map(std::ffi::OsString::from));
    run(qdelta(words))
}

/// The bytes of the disk, as QEMU reads them.
fn content(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("content");
    qemu_img(args!["convert", "-f", format, "-O", "raw", path, raw.as_path()]).ok();
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

#[track_caller]
fn check(path: &Path) {
    let outcome = qemu_img(args!["check", "-f", "qcow2", path]);
    assert_eq!(outcome.code(), Some(0), "{}", outcome.report());
}

/// An image of a random make, in a format.
fn image(lab: &Lab, random: &mut Random, format: &str) -> PathBuf {
    let path = lab.path(format!("disk.{format}"));
    let size = (1 + random.below(12)) * MIB + random.below(8) * 512;
    if format == "raw" {
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        return path;
    }
    let options = [
        "",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10,cluster_size=8k",
    ];
    let options = options[random.below(options.len() as u64) as usize];
    if random.one_in(2) {
        filled_raw(lab, "backing.raw", size, random.next());
        overlay(&path, "backing.raw", "raw", Some(size), options);
    } else {
        create(&path, options, size);
    }
    path
}

/// Points of a disk with a random history; then back to each of them, in any order.
#[test]
fn back_to_any_point() {
    for seed in 0..6 * sweep() {
        let format = if seed % 4 == 3 { "raw" } else { "qcow2" };
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let mut random = Random::new(seed + 1);
        let path = image(&lab, &mut random, format);
        let size = content(&path, format).len() as u64;
        let mut guest = Guest::new(lab.dir(), seed);
        let mut states = Vec::new();
        for _ in 0..3 {
            guest_io(&path, format, &guest.fill(size, 6));
            if format == "qcow2" && random.one_in(2) {
                let name = format!("s{}", states.len());
                qemu_img(args!["snapshot", "-c", name, path.as_path()]).ok();
            }
            let report = repo.backup(&path, "vm/disk", &["--format", format]);
            states.push((report["point"].as_str().unwrap().to_owned(), content(&path, format)));
        }
        guest_io(&path, format, &guest.fill(size, 6));
        for _ in 0..3 {
            let now = content(&path, format);
            let (point, expected) = &states[random.below(3) as usize];
            let report = roll_back(&repo, &format!("vm/disk@{point}"), &path, &[]).ok().json();
            assert!(content(&path, format) == *expected, "seed {seed}: {report}");
            if format == "qcow2" {
                check(&path);
            }
            // What was there before is a point, and nothing differs any more.
            let kept = report["safety_point"].as_str().unwrap().to_owned();
            let output = lab.path("kept.raw");
            repo.restore(&format!("vm/disk@{kept}"), &output, &["--format", "raw"]).ok();
            assert!(fs::read(&output).unwrap() == now, "seed {seed}: what was kept");
            fs::remove_file(output).unwrap();
            let again =
                roll_back(&repo, &format!("vm/disk@{point}"), &path, &["--no-point"]).ok().json();
            assert_eq!(again["bytes_changed"], 0, "seed {seed}");
            assert_eq!(again["safety_point"], Value::Null);
        }
        // Life goes on: the next increment is that of the disk as it is.
        guest_io(&path, format, &guest.fill(size, 3));
        repo.backup(&path, "vm/disk", &["--format", format]);
        let output = lab.path("last.raw");
        repo.restore("vm/disk", &output, &["--format", "raw"]).ok();
        assert!(fs::read(output).unwrap() == content(&path, format), "seed {seed}");
    }
}

#[test]
fn only_what_differs_is_written() {
    for format in ["qcow2", "raw"] {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo"));
        let path = lab.path("disk");
        qemu_img(args!["create", "-q", "-f", format, path.as_path(), "64M"]).ok();
        guest_io(&path, format, &["write -q -P 1 0 32M".to_owned()]);
        let report = repo.backup(&path, "vm/disk", &["--format", format]);
        let point = report["point"].as_str().unwrap().to_owned();
        let writes = ["write -q -P 2 1M 64k", "write -q -z 8M 64k", "write -q -P 3 40M 64k"];
        guest_io(&path, format, &writes.map(str::to_owned));
        let before = fs::metadata(&path).unwrap().len();
        let report =
            roll_back(&repo, &format!("vm/disk@{point}"), &path, &["--no-point"]).ok().json();
        assert_eq!(report["bytes_changed"], 3 * 65536, "{format}");
        assert!(fs::metadata(&path).unwrap().len() <= before + MIB, "{format}");
    }
}

#[test]
fn an_image_that_is_used_or_of_another_size_is_left_alone() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let path = lab.path("disk.qcow2");
    create(&path, "", 4 * MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 0 1M".to_owned()]);
    repo.backup(&path, "vm/disk", &[]);
    guest_io(&path, "qcow2", &["write -q -P 2 0 1M".to_owned()]);
    let before = fs::read(&path).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let lock = qdelta::disk::files::image_lock::ImageLock::exclusive(&file, &path).unwrap();
    for options in [&["--no-point"][..], &[]] {
        roll_back(&repo, "vm/disk", &path, options).fails_with(5);
    }
    drop(lock);
    assert!(fs::read(&path).unwrap() == before);
    qemu_img(args!["resize", "-q", path.as_path(), "8M"]).ok();
    let said = roll_back(&repo, "vm/disk", &path, &[]).fails_with(3);
    assert!(said.contains("qemu-img resize"), "{said}");
    roll_back(&repo, "vm/disk", &path, &["--force"]).fails_with(2);
    let words = args!["restore", "vm/disk", "x", "--no-point"];
    run(qdelta(repo.args(words))).fails_with(2);
}

/// A program that reads the image was noticed after what is there had been kept, and the next try went
/// back to that: `latest` was what the try before had kept.
#[test]
fn the_same_command_again_goes_back_to_the_same_point() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let path = lab.path("disk.qcow2");
    create(&path, "", 4 * MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 0 1M".to_owned()]);
    let report = repo.backup(&path, "vm/disk", &[]);
    let old = content(&path, "qcow2");
    guest_io(&path, "qcow2", &["write -q -P 2 0 1M".to_owned()]);
    let file = fs::File::open(&path).unwrap();
    let reader = qdelta::disk::files::image_lock::ImageLock::shared_read(&file, &path).unwrap();
    let before = fs::read(&path).unwrap();
    let points = || {
        let list = run(qdelta(repo.args(args!["points", "vm/disk", "--json"]))).ok().json();
        list["disks"][0]["points"].as_array().unwrap().clone()
    };
    roll_back(&repo, "vm/disk", &path, &[]).fails_with(5);
    assert_eq!(points().len(), 1, "a point was kept in vain");
    assert!(fs::read(&path).unwrap() == before);
    drop(reader);
    let tomorrow = "vm/disk@2999-12-31";
    for selector in ["vm/disk", "vm/disk", tomorrow] {
        let again = roll_back(&repo, selector, &path, &[]).ok().json();
        assert_eq!(again["point"], report["point"], "{selector}");
        assert!(content(&path, "qcow2") == old);
    }
    let kept: Vec<bool> = points().iter().map(|it| it["safety"].as_bool().unwrap()).collect();
    assert_eq!(kept, [false, true, true, true]);
    // It is a point like any other where nobody rolls back, and by its id.
    let id = points()[1]["point"].as_str().unwrap().to_owned();
    roll_back(&repo, &format!("vm/disk@{id}"), &path, &["--no-point"]).ok();
    assert!(content(&path, "qcow2") != old);
    // What latest means is the same wherever it is asked for: the backup, and not the state that was
    // rolled back from.
    let output = lab.path("latest.raw");
    for selector in ["vm/disk", tomorrow] {
        let words = args!["restore", selector, output.as_path(), "--force", "--json"];
        let latest = run(qdelta(repo.args(words))).ok().json();
        assert_eq!(latest["point"], report["point"], "{selector}");
        assert_eq!(latest["passed_over"], points()[3]["point"], "{selector}");
        assert!(fs::read(&output).unwrap() == old, "{selector}");
    }
    let verified = run(qdelta(repo.args(args!["verify", "vm/disk@latest", "--json"]))).ok().json();
    // The full alone: a safety point has another archive.
    assert_eq!((&verified["points"], &verified["archives"]), (&Value::from(1), &Value::from(1)));
    let words = args!["restore", format!("vm/disk@{id}"), output.as_path(), "--force"];
    let said = run(qdelta(repo.args(words))).ok().text();
    assert!(said.contains("safety point"), "{said}");
    let table = run(qdelta(repo.args(args!["points", "vm/disk"]))).ok().text();
    assert_eq!(table.matches(", safety").count(), 3, "{table}");
    assert!(table.contains("CONSISTENCY") && table.contains("offline"), "{table}");
    // Only a backup that somebody asked for is another latest point.
    let new = repo.backup(&path, "vm/disk", &[]);
    let again = roll_back(&repo, "vm/disk", &path, &[]).ok().json();
    assert_eq!((&again["point"], &again["bytes_changed"]), (&new["point"], &Value::from(0)));
}

/// The anchor stood for the point before the one that was kept: no backup would ever use it again, and a
/// snapshot holds on to what it has.
#[test]
fn the_anchor_of_the_point_before_goes() {
    for anchor in ["bitmap", "snapshot"] {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo"));
        let path = lab.path("disk.qcow2");
        create(&path, "", 4 * MIB);
        guest_io(&path, "qcow2", &["write -q -P 1 0 1M".to_owned()]);
        let report = repo.backup(&path, "vm/disk", &["--anchor", anchor]);
        let name = report["anchor"].as_str().unwrap();
        let old = content(&path, "qcow2");
        guest_io(&path, "qcow2", &["write -q -P 2 0 1M".to_owned()]);
        let info = || qemu_img(args!["info", path.as_path()]).ok().text();
        assert!(info().contains(name), "{anchor}");
        roll_back(&repo, "vm/disk", &path, &[]).ok();
        assert!(content(&path, "qcow2") == old && !info().contains(name), "{}", info());
        check(&path);
    }
}

/// A manifest can name any file of the host, and any file is a raw image of its size.
#[test]
fn a_raw_image_that_only_the_point_names_is_left_alone() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    for format in ["raw", "qcow2"] {
        let path = lab.path(format!("disk.{format}"));
        qemu_img(args!["create", "-q", "-f", format, path.as_path(), "1M"]).ok();
        repo.backup(&path, format, &["--format", format]);
        guest_io(&path, format, &["write -q -P 2 0 64k".to_owned()]);
        let before = fs::read(&path).unwrap();
        let outcome = run(qdelta(repo.args(args!["restore", format, "--in-place"])));
        if format == "raw" {
            let said = outcome.fails_with(2);
            assert!(said.contains("IMAGE --in-place"), "{said}");
            assert!(fs::read(&path).unwrap() == before);
            continue;
        }
        assert!(outcome.ok().stderr.contains(path.to_str().unwrap()), "it is not said which");
        assert!(content(&path, format) == vec![0; MIB as usize]);
        fs::write(&path, vec![7; MIB as usize]).unwrap();
        run(qdelta(repo.args(args!["restore", format, "--in-place"]))).fails_with(3);
    }
}

/// Persistent bitmaps were gone before it was seen that the image can't be changed.
#[test]
fn an_image_that_cannot_be_changed_keeps_its_bitmaps() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let path = lab.path("disk.qcow2");
    let options = format!("data_file={}", lab.path("disk.data").display());
    create(&path, &options, MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 0 64k".to_owned()]);
    let report = repo.backup(&path, "vm/disk", &[]);
    guest_io(&path, "qcow2", &["write -q -P 2 0 64k".to_owned()]);
    qemu_img(args!["bitmap", "--add", path.as_path(), "nightly"]).ok();
    let before = fs::read(&path).unwrap();
    let said = roll_back(&repo, "vm/disk", &path, &["--no-point"]).fails_with(3);
    assert!(said.contains("external data file"), "{said}");
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(report["kind"], "full");
}

/// Two guest clusters lay in one host cluster that was counted once. Rolled back, one of them gave it
/// back as free, and the roll back said "proved": the next writes of the guest destroyed the other.
#[test]
fn an_image_that_is_not_sound_is_left_alone() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let path = lab.path("disk.qcow2");
    create(&path, "", 20 * MIB);
    guest_io(&path, "qcow2", &["write -q -P 1 1M 3M".to_owned()]);
    repo.backup(&path, "vm/disk", &[]);
    guest_io(&path, "qcow2", &["write -q -P 2 1M 64k".to_owned()]);
    let l2 = read_u64(&path, read_u64(&path, 40)) & 0x00ff_ffff_ffff_fe00;
    let entry = read_u64(&path, l2 + 8 * 16);
    patch(&path, l2 + 8 * 170, &entry.to_be_bytes());
    let (before, points) = (fs::read(&path).unwrap(), repo.points("vm/disk").len());
    for options in [&["--no-point"][..], &[]] {
        let said = roll_back(&repo, "vm/disk", &path, options).fails_with(3);
        assert!(said.contains("is used 2 times, and its reference count is 1"), "{said}");
        assert!(fs::read(&path).unwrap() == before);
        assert_eq!(repo.points("vm/disk").len(), points);
    }
    // Repaired, it can be.
    qemu_img(args!["check", "-q", "-r", "all", path.as_path()]);
    roll_back(&repo, "vm/disk", &path, &["--no-point"]).ok();
    check(&path);
}

/// Killed at any moment: a qcow2 image is the one or the other; and running it again ends well.
#[test]
fn killed_at_any_moment_it_can_be_run_again() {
    let mut killed = 0;
    for round in 0..12 * sweep() {
        let format = if round % 3 == 2 { "raw" } else { "qcow2" };
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let path = lab.path("disk");
        qemu_img(args!["create", "-q", "-f", format, path.as_path(), "48M"]).ok();
        guest_io(&path, format, &["write -q -P 1 0 40M".to_owned()]);
        let report = repo.backup(&path, "vm/disk", &["--format", format]);
        let old = content(&path, format);
        guest_io(
            &path,
            format,
            &["write -q -P 2 0 30M".to_owned(), "discard -q 30M 4M".to_owned()],
        );
        let new = content(&path, format);
        let selector = format!("vm/disk@{}", report["point"].as_str().unwrap());
        let words = args!["restore", selector.as_str(), path.as_path(), "--in-place", "--no-point"];
        let mut command = qdelta(repo.args(words));
        let child = start(&mut command);
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 17 % 220));
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        killed += u32::from(finish(child, describe(&command)).killed());
        if format == "qcow2" {
            check_leaks(&path);
            let now = content(&path, format);
            assert!(now == old || now == new, "round {round}: half of each");
        }
        roll_back(&repo, &selector, &path, &["--no-point"]).ok();
        assert!(content(&path, format) == old, "round {round}");
    }
    assert!(killed > 0, "nothing was ever killed");
}

/// QEMU finds it no worse than leaking.
#[track_caller]
fn check_leaks(path: &Path) {
    let outcome = qemu_img(args!["check", "-f", "qcow2", path]);
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.report());
}
