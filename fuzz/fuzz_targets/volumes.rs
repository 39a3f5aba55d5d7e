#![no_main]
//! Bytes as a disk: its volumes are found, and those that can be opened are read at both ends. No panic,
//! bounded work, and no byte from outside the disk.
//!
//! What is between tables is zero: the input is pieces of a disk of a few MiB, each with its place.

use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use qdelta::ReadAt;
use qdelta::disk::io::in_memory::Bytes;
use qdelta::inside::volumes::{VOLUMES_MAX, survey};

fuzz_target!(|data: &[u8]| {
    let mut disk = vec![0; 4 << 20];
    let mut rest = data;
    // A sector number, and the bytes of the sector.
    while let Some((head, behind)) = rest.split_first_chunk::<2>() {
        let at = usize::from(u16::from_le_bytes(*head)) * 512 % disk.len();
        let len = behind.len().min(512).min(disk.len() - at);
        disk[at..at + len].copy_from_slice(&behind[..len]);
        rest = &behind[len..];
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

/// Checksums of GPT's headers are made right, so that what is behind them is reached.
fn mend_checksums(disk: &mut [u8]) {
    let last = disk.len() - 512;
    for at in [512, last, 4096] {
        if disk[at..].starts_with(b"EFI PART") {
            let number = |from: usize| {
                u64::from(u32::from_le_bytes(disk[from..from + 4].try_into().unwrap()))
            };
            let entries_at = (number(at + 72) * 512) as usize;
            let len = (number(at + 80) * number(at + 84)) as usize;
            if let Some(entries) = disk.get(entries_at..entries_at.saturating_add(len)) {
                let crc = crc32fast::hash(entries).to_le_bytes();
                disk[at + 88..at + 92].copy_from_slice(&crc);
            }
            disk[at + 12..at + 16].copy_from_slice(&92u32.to_le_bytes());
            disk[at + 16..at + 20].fill(0);
            let crc = crc32fast::hash(&disk[at..at + 92]).to_le_bytes();
            disk[at + 16..at + 20].copy_from_slice(&crc);
        }
    }
}
