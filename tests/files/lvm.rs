//! Logical volumes as LVM's own tools made them, without device mapper: metadata alone is written.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Guest, args, make_ext, needs_root, run, tool};
use crate::harness::run::as_root;

const MIB: u64 = 1 << 20;

/// A loop device over a part of a disk.
struct Loop(PathBuf);

impl Loop {
    #[track_caller]
    fn over(disk: &Path, offset: u64, len: u64) -> Self {
        let place = [format!("--offset={offset}"), format!("--sizelimit={len}")];
        let mut arguments = args!["--find", "--show"];
        arguments.extend(place.map(OsString::from));
        arguments.push(disk.into());
        let shown = run(as_root("losetup", arguments)).ok();
        Self(PathBuf::from(String::from_utf8(shown.stdout).unwrap().trim()))
    }
}

/// Runs one of LVM's tools, which sees these devices alone.
#[track_caller]
fn lvm(devices: &[Loop], name: &str, arguments: &[&str]) {
    let seen = devices.iter().map(|device| format!("\"a|^{}$|\",", device.0.display()));
    let config = format!(
        "devices {{ filter=[{} \"r|.*|\"] use_devicesfile=0 }} \
         activation {{ udev_sync=0 udev_rules=0 }} backup {{ backup=0 archive=0 }}",
        seen.collect::<String>()
    );
    let mut all = args!["-q", "--config", config, "--driverloaded", "n"];
    all.extend(arguments.iter().map(Into::into));
    run(as_root(name, all)).ok();
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = as_root("losetup", args!["--detach", self.0.as_path()]).status();
    }
}

/// The volume of the guest's root grew behind another one, so it lies in two pieces, in the second
/// partition. A striped volume is named, and not read.
#[test]
fn a_volume_in_two_pieces_is_read() {
    needs_root();
    let guest = Guest::new(250 * MIB);
    let lines = guest.lab.path("partitions");
    let table = "label: gpt\nstart=1MiB, size=20MiB\nstart=21MiB, size=220MiB\n";
    std::fs::write(&lines, table).unwrap();
    let shell = format!("sfdisk -q {} < {}", guest.image.display(), lines.display());
    run(tool("sh", args!["-c", shell])).ok();
    {
        let parts = [(MIB, 20 * MIB), (21 * MIB, 220 * MIB)];
        let devices = parts.map(|(offset, len)| Loop::over(&guest.image, offset, len));
        let [small, large] = [&devices[0], &devices[1]].map(|device| device.0.to_str().unwrap());
        let inactive = ["-an", "-Zn", "-Wn"];
        lvm(&devices, "pvcreate", &[small, large]);
        lvm(&devices, "vgcreate", &["-s", "4M", "vg-1", small, large]);
        let create = |words: &[&str]| lvm(&devices, "lvcreate", &[&inactive, words].concat());
        create(&["-L", "64M", "-n", "root", "vg-1", large]);
        create(&["-L", "32M", "-n", "swap", "vg-1", large]);
        lvm(&devices, "lvextend", &["-L", "+16M", "vg-1/root", large]);
        create(&["-i", "2", "-L", "8M", "-n", "wide", "vg-1"]);
    }
    let tree = guest.lab.path("tree");
    std::fs::create_dir(&tree).unwrap();
    let content: Vec<u8> =
        (0..66 * MIB / 4).flat_map(|number| (number as u32).to_le_bytes()).collect();
    std::fs::write(tree.join("large"), &content).unwrap();
    let part = guest.lab.path("part");
    std::fs::File::create(&part).unwrap().set_len(80 * MIB).unwrap();
    make_ext(&part, &["-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", tree.to_str().unwrap()]);
    let bytes = std::fs::read(&part).unwrap();
    let disk = std::fs::File::options().write(true).open(&guest.image).unwrap();
    // Extents begin behind LVM's first MiB; the second piece behind the other volume's 32 MiB.
    let (first, second) = bytes.split_at(64 << 20);
    disk.write_all_at(first, 22 * MIB).unwrap();
    disk.write_all_at(second, (22 + 64 + 32) * MIB).unwrap();
    guest.backup();
    let volumes = guest.files("ls", &["--json"]).ok().json();
    let volumes = volumes["volumes"].as_array().unwrap();
    let names = volumes.iter().map(|volume| volume["volume"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["p1", "p2", "vg-1/root", "vg-1/swap", "vg-1/wide"]);
    assert!(guest.files("ls", &["/", "--volume", "vg-1/wide"]).fails_with(3).contains("striped"));
    let got = guest.files("get", &["/large", "--to", "-"]).ok();
    assert!(got.stdout == content);
}
