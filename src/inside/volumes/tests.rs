//! Volumes of small disks, and of hostile ones.

use super::*;
use crate::disk::io::in_memory::Bytes;

const SECTOR: usize = 512;

/// A disk of `sectors` sectors.
struct Disk(Vec<u8>);

impl Disk {
    fn new(sectors: usize) -> Self {
        Self(vec![0; sectors * SECTOR])
    }

    /// Writes a boot record at `sector`.
    fn record(mut self, sector: usize, entries: &[(u8, u32, u32)]) -> Self {
        let at = sector * SECTOR;
        for (slot, (kind, start, sectors)) in entries.iter().enumerate() {
            let at = at + 446 + slot * 16;
            self.0[at + 4] = *kind;
            self.0[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            self.0[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        self.0[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
        self
    }

    /// Writes the magic bytes of ext at `at`.
    fn ext(mut self, at: usize) -> Self {
        self.0[at + 1080..at + 1082].copy_from_slice(&[0x53, 0xef]);
        self
    }

    fn survey(&self) -> Survey {
        survey(&Bytes::store("disk", &self.0)).unwrap()
    }
}

fn names(survey: &Survey) -> Vec<(&str, u64, u64)> {
    let place = |volume: &Volume| volume.pieces().first().map_or(0, |piece| piece.start);
    survey.volumes.iter().map(|v| (v.name.as_str(), place(v), v.size)).collect()
}

#[test]
fn an_undivided_disk_is_one_volume() {
    let found = Disk::new(64).ext(0).survey();
    assert_eq!(names(&found), [("disk", 0, 64 * 512)]);
    assert_eq!((found.table, found.volumes[0].content), (Table::None, Content::Ext));
    assert_eq!(names(&Disk::new(0).survey()), [("disk", 0, 0)]);
}

#[test]
fn logical_partitions_count_from_five() {
    let disk = Disk::new(1000)
        .record(0, &[(0x83, 10, 20), (0x05, 100, 500)])
        .record(100, &[(0x83, 1, 30), (0x05, 50, 60)])
        .record(150, &[(0x82, 2, 40)]);
    let found = disk.survey();
    let wanted = [("p1", 10, 20), ("p5", 101, 30), ("p6", 152, 40)];
    let wanted = wanted.map(|(name, at, len)| (name, at * 512, len * 512));
    assert_eq!(names(&found), wanted);
    assert_eq!((found.table, found.notes.len()), (Table::Mbr, 0));
}

#[test]
fn a_circle_of_logical_partitions_ends() {
    let disk = Disk::new(1000)
        .record(0, &[(0x05, 100, 500)])
        .record(100, &[(0x83, 1, 30), (0x05, 50, 60)])
        .record(150, &[(0x83, 2, 40), (0x05, 0, 60)]);
    let found = disk.survey();
    assert_eq!(found.volumes.len(), 2);
    assert!(found.notes[0].contains("circle"), "{:?}", found.notes);
}

#[test]
fn what_lies_behind_the_disk_is_left_out_or_cut() {
    let disk =
        Disk::new(100).record(0, &[(0x83, 10, 200), (0x83, 200, 5), (0x83, u32::MAX, u32::MAX)]);
    let found = disk.survey();
    assert_eq!(names(&found), [("p1", 5120, 90 * 512)]);
    assert_eq!(found.notes.len(), 3);
}

#[test]
fn sectors_of_4096_bytes_are_found_by_what_partitions_hold() {
    let disk = Disk::new(1000).record(0, &[(0x83, 10, 20)]).ext(10 * 4096);
    assert_eq!(names(&disk.survey()), [("p1", 10 * 4096, 20 * 4096)]);
}

#[test]
fn the_boot_sector_of_a_filesystem_is_no_table() {
    let mut disk = Disk::new(100).record(0, &[(0x83, 10, 20)]);
    disk.0[3..11].copy_from_slice(b"NTFS    ");
    let found = disk.survey();
    assert_eq!((found.table, found.volumes[0].content), (Table::None, Content::Ntfs));
}

#[test]
fn a_volume_reads_its_own_bytes_and_no_others() {
    let mut disk = Disk::new(100).record(0, &[(0x83, 10, 2)]);
    disk.0[10 * 512..12 * 512].fill(7);
    let store = Bytes::store("disk", &disk.0);
    let volume = survey(&store).unwrap().volumes[0].open(&store).unwrap();
    let mut bytes = vec![1; 2000];
    assert_eq!(volume.read_at(&mut bytes, 0).unwrap(), 1024);
    assert!(bytes[..1024].iter().all(|byte| *byte == 7));
    assert_eq!(volume.read_at(&mut bytes, 1024).unwrap(), 0);
    assert_eq!(volume.read_at(&mut bytes, u64::MAX).unwrap(), 0);
}
