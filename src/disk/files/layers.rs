//! What a block device is made of, as far as the kernel tells: two names may lead to the same bytes.

use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

use crate::disk::io::Opener;
use crate::disk::sys::FileId;

/// Devices lie on devices no deeper than this.
const DEPTH_MAX: u32 = 8;
/// The longest path of a loop device's file, in bytes.
const PATH_LEN_MAX: u64 = 64 << 10;
/// The longest number that the kernel tells, in bytes.
const NUMBER_LEN_MAX: u64 = 4096;

/// Whether `above` is `below`, or lies on it: a loop device on its file, a partition on its disk, a mapped device on
/// what it maps to.
pub(crate) fn lies_on(above: FileId, below: FileId) -> bool {
    lies_within(above, below, DEPTH_MAX)
}

fn lies_within(above: FileId, below: FileId, depth: u32) -> bool {
    if above == below {
        return true;
    }
    let FileId::BlockDevice(device) = above else { return false };
    depth > 0 && parts(device).into_iter().any(|part| lies_within(part, below, depth - 1))
}

/// Whether both are the same bytes: one file or block device, or a loop device and its file.
pub(crate) fn is_same_disk(one: FileId, other: FileId) -> bool {
    without_loop(one) == without_loop(other)
}

/// Whether what is written to one changes the other: they are the same bytes, or one lies on the other.
pub(crate) fn share_bytes(one: FileId, other: FileId) -> bool {
    let (one, other) = (without_loop(one), without_loop(other));
    lies_on(one, other) || lies_on(other, one)
}

/// Whether the kernel lets nobody write to a block device.
pub(crate) fn is_read_only(device: FileId) -> bool {
    let FileId::BlockDevice(device) = device else { return false };
    // A partition has it, too (Linux, `Documentation/ABI/stable/sysfs-block`).
    let said = Opener::READ.read_text(&folder_of(device).join("ro"), NUMBER_LEN_MAX);
    said.is_ok_and(|text| text.trim() == "1")
}

/// The file behind a loop device that shows it from its first byte; anything else itself.
fn without_loop(id: FileId) -> FileId {
    let FileId::BlockDevice(device) = id else { return id };
    let folder = folder_of(device);
    let offset = Opener::READ.read_text(&folder.join("loop/offset"), NUMBER_LEN_MAX);
    let is_from_begin = offset.is_ok_and(|text| text.trim() == "0");
    file_of_loop(&folder).filter(|_| is_from_begin).unwrap_or(id)
}

/// Linux, `Documentation/ABI/testing/sysfs-block-loop`.
fn file_of_loop(folder: &Path) -> Option<FileId> {
    let name = Opener::READ.read_text(&folder.join("loop/backing_file"), PATH_LEN_MAX).ok()?;
    FileId::at(Path::new(name.trim_end_matches('\n'))).ok()
}

fn folder_of(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// The file of a loop device, the whole disk of a partition, what a mapped device maps to.
fn parts(device: u64) -> Vec<FileId> {
    let folder = folder_of(device);
    let number = |folder: &Path| {
        let text = Opener::READ.read_text(&folder.join("dev"), NUMBER_LEN_MAX).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(FileId::BlockDevice(makedev(major.parse().ok()?, minor.parse().ok()?)))
    };
    let mut parts = Vec::from_iter(file_of_loop(&folder));
    if folder.join("partition").exists() {
        let whole = folder.canonicalize().ok().and_then(|it| number(it.parent()?));
        parts.extend(whole);
    }
    let slaves = std::fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    parts.extend(slaves.filter_map(|slave| number(&slave.path())));
    parts
}
