//! Block devices as what is backed up and as where a restore goes. A loop device is a real one.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::harness::content::Random;
use crate::harness::files::{assert_same, unmount};
use crate::harness::images::{filled, filled_raw, oracle};
use crate::harness::repo::Repo;
use crate::harness::run::as_root;
use crate::harness::virsh::wait_until;
use crate::harness::{Lab, args, qdelta, run, tool};

const MIB: u64 = 1 << 20;

/// A loop device over a file, detached at the end.
pub struct Device {
    pub path: PathBuf,
    file: PathBuf,
}

impl Device {
    #[track_caller]
    pub fn over(file: PathBuf) -> Self {
        let found = run(as_root("losetup", args!["--find", "--show", file.as_path()])).ok().text();
        let path = PathBuf::from(found.trim());
        run(as_root("chmod", args!["0666", path.as_path()])).ok();
        Self { path, file }
    }

    /// A device of `size` bytes that is full of what was there before.
    #[track_caller]
    fn used(lab: &Lab, size: u64) -> Self {
        let file = lab.path("device");
        std::fs::write(&file, Random::new(size).noise(size as usize)).unwrap();
        Self::over(file)
    }

    /// What is on it now, as a file.
    fn content(&self) -> &Path {
        run(as_root("blockdev", args!["--flushbufs", self.path.as_path()])).ok();
        &self.file
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = as_root("losetup", args!["--detach", self.path.as_path()]).status();
    }
}

#[test]
fn a_block_device_is_backed_up() {
    let lab = Lab::new();
    let disk = filled_raw(&lab, "disk.raw", 9 * MIB, 1);
    let copy = lab.path("copy.raw");
    std::fs::copy(&disk, &copy).unwrap();
    let device = Device::over(disk);
    let repo = Repo::init(lab.path("repo"));
    for _ in 0..2 {
        repo.backup(&device.path, "disk", &["--format", "raw"]);
        repo.assert_restores(&lab, "disk", &copy);
    }
}

/// What was on the device before must not shine through where the disk is zero.
#[test]
fn a_disk_is_restored_onto_a_block_device() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 6 * MIB, 2);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    for io in ["auto", "threads"] {
        let device = Device::used(&lab, 6 * MIB);
        repo.restore("disk", &device.path, &["--force", "--io", io]).ok();
        assert_same(&expected, device.content(), io);
    }
}

/// A device is not overwritten by accident, and not when the disk does not fit.
#[test]
fn a_block_device_is_not_overwritten_by_accident() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 6 * MIB, 3);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let before = lab.path("before");
    for (size, options, status) in [(8 * MIB, &[][..], 7), (3 * MIB, &["--force"], 8)] {
        let device = Device::used(&lab, size);
        std::fs::copy(&device.file, &before).unwrap();
        repo.restore("disk", &device.path, options).fails_with(status);
        assert_same(&before, device.content(), "an untouched device");
    }
}

/// No lock says that a device is mounted: the kernel knows, and is asked. An anchor was written into
/// one all the same, and so was a qcow2 image that was rolled back.
#[test]
fn a_block_device_that_is_in_use_is_not_changed_in_place() {
    for format in ["qcow2", "raw"] {
        let lab = Lab::new();
        let file = lab.path("device");
        run(tool("qemu-img", args!["create", "-q", "-f", format, file.as_path(), "8M"])).ok();
        std::fs::File::options().write(true).open(&file).unwrap().set_len(16 * MIB).unwrap();
        let device = Device::over(file);
        let repo = Repo::init(lab.path("repo"));
        repo.backup(&device.path, "disk", &["--format", format]);
        let before = lab.path("before");
        std::fs::copy(device.content(), &before).unwrap();
        let flags = rustix::fs::OFlags::EXCL.bits() as i32;
        let claim = File::options().read(true).custom_flags(flags).open(&device.path).unwrap();
        let words = args!["restore", "disk", device.path.as_path(), "--in-place", "--no-point"];
        let said = repo.run(words.clone()).fails_with(5);
        assert!(said.contains("mounted or otherwise in use"), "{said}");
        if format == "qcow2" {
            let options = ["--format", format, "--anchor", "bitmap"];
            let report = repo.backup(&device.path, "disk", &options);
            assert!(report["warnings"].to_string().contains("otherwise in use"), "{report}");
        }
        assert_same(&before, device.content(), "a device in use");
        drop(claim);
        // A program that another test is just starting may still have it.
        let mut outcome = None;
        wait_until("the end of the claim", || {
            let now = outcome.insert(repo.run(words.clone()));
            now.code() != Some(5)
        });
        outcome.unwrap().ok();
    }
}

/// A device that is not there, mistyped or not activated, became a file of that name in memory, and the
/// restore said "proved".
#[test]
fn no_file_is_made_where_devices_are() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", MIB, 4);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let archive = repo.bare(&repo.archives()[0], &lab);
    let link = lab.path("dev");
    std::os::unix::fs::symlink("/dev", &link).unwrap();
    let missing = [
        PathBuf::from("/dev/qdelta-is-not-here"),
        PathBuf::from("/dev/qdelta-group/volume"),
        link.join("qdelta-is-not-here"),
        PathBuf::from("/proc/qdelta-is-not-here"),
    ];
    for path in missing {
        for options in [&[][..], &["--force"], &["--format", "qcow2"]] {
            let said = repo.restore("disk", &path, options).fails_with(2);
            assert!(said.contains("is not there"), "{said}");
        }
        run(qdelta(args!["replay", archive.as_path(), "--output", path.as_path()])).fails_with(2);
        assert!(!path.exists(), "{path:?}");
    }
}

/// A device whose filesystem is mounted on the host, and written to, made an offline point without a word.
#[test]
fn a_device_that_the_host_has_mounted_is_no_offline_disk() {
    let lab = Lab::new();
    let file = lab.path("disk");
    File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    let device = Device::over(file);
    run(as_root("mkfs.ext4", args!["-q", device.path.as_path()])).ok();
    let repo = Repo::init(lab.path("repo"));
    let report = repo.backup(&device.path, "disk", &["--format", "raw"]);
    assert_eq!(
        (&report["consistency"], &report["warnings"]),
        (&"offline".into(), &serde_json::json!([]))
    );
    let folder = lab.path("mounted");
    std::fs::create_dir(&folder).unwrap();
    run(as_root("mount", args![device.path.as_path(), folder.as_path()])).ok();
    let report = repo.backup(&device.path, "disk", &["--format", "raw"]);
    unmount(&folder);
    assert_eq!(report["consistency"], "unknown");
    assert_eq!(report["warnings"][0]["code"], "writable", "{report}");
}
