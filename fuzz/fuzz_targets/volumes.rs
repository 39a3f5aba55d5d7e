#![no_main]
//! Bytes as a disk: its volumes are found, and those that can be opened are read at both ends. No panic,
//! bounded work, and no byte from outside the disk.
//!
//! The input says which of some real disks it is laid over, and what is written over where.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use qdelta::ReadAt;
use qdelta::disk::io::in_memory::Bytes;
use qdelta::inside::volumes::{VOLUMES_MAX, survey};

const SECTOR: usize = 512;
const DISK_LEN: usize = 4 << 20;
/// Partition tables as `sfdisk` makes them; the first disk has none.
const TABLES: &[&str] = &[
    "label: dos\nsize=1MiB,type=7\nsize=1MiB,type=5\nsize=400KiB\nsize=300KiB\n",
    "label: gpt\nsize=512KiB,name=one\nsize=1MiB,name=two\n",
];
/// A disk with a physical volume of LVM in its first partition, as LVM's own tools made it: two linear
/// volumes, one of them in two pieces. The number of each sector that is not zero (16 bits, the lowest
/// first), and the sector.
const LVM: &[u8] = include_bytes!("../seeds/lvm.sectors");

fn seeds() -> &'static [Vec<u8>] {
    static MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut made = vec![vec![0; DISK_LEN]];
        let dir = tempfile::tempdir().expect("a folder");
        let image = dir.path().join("disk");
        for table in TABLES {
            std::fs::write(&image, vec![0; DISK_LEN]).expect("an image");
            let line = format!("printf '{table}' | PATH=$PATH:/sbin:/usr/sbin sfdisk -q $IMAGE");
            let done = Command::new("sh").args(["-c", &line]).env("IMAGE", &image).output();
            let done = done.expect("sh");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            made.push(std::fs::read(&image).expect("the image"));
        }
        let mut disk = vec![0; DISK_LEN];
        write_sectors(&mut disk, LVM);
        made.push(disk);
        made
    })
}

/// Writes sectors, each behind its number.
fn write_sectors(disk: &mut [u8], mut rest: &[u8]) {
    while let Some((head, behind)) = rest.split_first_chunk::<2>() {
        let at = usize::from(u16::from_le_bytes(*head)) * SECTOR % disk.len();
        let len = behind.len().min(SECTOR);
        disk[at..at + len].copy_from_slice(&behind[..len]);
        rest = &behind[len..];
    }
}

/// Writes pieces: three bytes of a place, one of a length, and the bytes.
fn write_pieces(disk: &mut [u8], mut rest: &[u8]) {
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let [a, b, c, len] = *head;
        let at = u32::from_le_bytes([a, b, c, 0]) as usize % disk.len();
        let len = usize::from(len).min(behind.len()).min(disk.len() - at);
        disk[at..at + len].copy_from_slice(&behind[..len]);
        rest = &behind[len..];
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, edits)) = data.split_first() else { return };
    let seeds = seeds();
    let mut disk = seeds[usize::from(*which) % seeds.len()].clone();
    match which / 128 {
        0 => write_pieces(&mut disk, edits),
        _ => write_sectors(&mut disk, edits),
    }
    mend_checksums(&mut disk);
    let len = disk.len() as u64;
    let disk: Arc<dyn ReadAt> = Arc::new(Bytes::new(Arc::new(disk), PathBuf::from("disk")));
    let found = survey(&disk).expect("a disk in memory can be read");
    assert!(found.volumes.len() <= VOLUMES_MAX);
    for volume in &found.volumes {
        assert!(volume.pieces().iter().all(|piece| piece.end <= len));
        let Ok(open) = volume.open(&disk) else { continue };
        let mut buffer = [0; 4096];
        let size = open.len().expect("a length");
        let _ = open.read_at(&mut buffer, 0).expect("the beginning");
        let _ = open.read_at(&mut buffer, size.saturating_sub(100)).expect("the end");
    }
});

/// Checksums of GPT's and LVM's headers are made right, so that what is behind them is reached.
fn mend_checksums(disk: &mut [u8]) {
    let last = disk.len() - SECTOR;
    for at in [SECTOR, last, 4096] {
        if disk[at..].starts_with(b"EFI PART") {
            mend_gpt(disk, at);
        }
    }
    // A whole disk that is a physical volume, and the one in the seed.
    for start in [0, 512 * SECTOR, 2048 * SECTOR] {
        mend_lvm(&mut disk[start..]);
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

fn mend_gpt(disk: &mut [u8], at: usize) {
    let entries_at = (number(disk, at + 72) * 512) as usize;
    let len = (number(disk, at + 80) * number(disk, at + 84)) as usize;
    if let Some(entries) = disk.get(entries_at..entries_at.saturating_add(len)) {
        let crc = crc32fast::hash(entries).to_le_bytes();
        disk[at + 88..at + 92].copy_from_slice(&crc);
    }
    disk[at + 12..at + 16].copy_from_slice(&92u32.to_le_bytes());
    disk[at + 16..at + 20].fill(0);
    let crc = crc32fast::hash(&disk[at..at + 92]).to_le_bytes();
    disk[at + 16..at + 20].copy_from_slice(&crc);
}

/// The checksum of LVM: that of zip, begun otherwise and not turned over at the end.
fn lvm_crc(bytes: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new_with_initial(!0xf597_a6cf);
    hasher.update(bytes);
    (!hasher.finalize()).to_le_bytes()
}

fn mend_lvm(volume: &mut [u8]) {
    for label in (0..4 * SECTOR).step_by(SECTOR) {
        if volume[label..].starts_with(b"LABELONE") {
            let crc = lvm_crc(&volume[label + 20..label + SECTOR]);
            volume[label + 16..label + 20].copy_from_slice(&crc);
        }
    }
    // LVM's tools begin the area of metadata at the ninth sector.
    let area = 8 * SECTOR;
    if volume[area + 4..].starts_with(b" LVM2 x[5A%r0N*>") {
        let from = area + number(volume, area + 40) as usize;
        let to = from.saturating_add(number(volume, area + 48) as usize);
        if let Some(text) = volume.get(from..to) {
            let crc = lvm_crc(text);
            volume[area + 56..area + 60].copy_from_slice(&crc);
        }
        let crc = lvm_crc(&volume[area + 4..area + SECTOR]);
        volume[area..area + 4].copy_from_slice(&crc);
    }
}
