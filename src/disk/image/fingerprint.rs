//! Recognising the files of an image again: whether one is still what it was.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, StatxTimestamp, fstatfs, statx};
use rustix::io::Errno;

use super::Image;
use super::layer::Layer;
use crate::base::error::{Error, Result};
use crate::disk::files::fingerprint::{Fingerprint, Identity};
use qdelta_formats::qcow2::L1_ENTRY_SIZE;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8, statx(2)): an older kernel passes over it.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
/// `STATX_SUBVOL` (Linux 6.10).
const SUBVOLUME: StatxFlags = StatxFlags::from_bits_retain(0x8000);
const WANTED: StatxFlags =
    StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(MOUNT_ID_UNIQUE).union(SUBVOLUME);

/// Types of filesystems, from statfs(2) and linux/magic.h.
const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58F6;
const HUGETLBFS: u32 = 0x9584_58F6;
const OVERLAYFS: u32 = 0x794C_7630;
const BTRFS: u32 = 0x9123_683E;

impl Image {
    /// The fingerprint of each layer, top first; `None` for one that can't be recognised again: a
    /// block device, or an image whose data lies in another file.
    ///
    /// # Errors
    /// The system fails to tell, or a table can't be read.
    pub fn fingerprints(&self) -> Result<Vec<Option<Fingerprint>>> {
        self.layers.iter().map(fingerprint).collect()
    }
}

/// The identity of the regular file called `path`; nothing of another kind of file. A copy in its place
/// has another one, whatever its content.
///
/// # Errors
/// The system fails to tell.
pub fn identity(path: &Path) -> Result<Option<Identity>> {
    let stat = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, WANTED)
        .map_err(|error| Error::io("look at", path, error.into()))?;
    Ok(is_regular(&stat).then(|| Identity::new(stat.stx_ino, born_ns(&stat), subvolume(&stat))))
}

fn fingerprint(layer: &Layer) -> Result<Option<Fingerprint>> {
    let file = layer.file();
    let tables = match layer {
        Layer::Qcow2(qcow2) if qcow2.format.external_data => return Ok(None),
        Layer::Qcow2(qcow2) => {
            let mut hasher = blake3::Hasher::new();
            let mut bytes = vec![0; qcow2.header.cluster.len()];
            file.read_padded(&mut bytes, 0)?;
            hasher.update(&bytes);
            // At most 32 MiB.
            bytes.resize((u64::from(qcow2.l1.entries) * L1_ENTRY_SIZE) as usize, 0);
            file.read_padded(&mut bytes, qcow2.l1.offset.0)?;
            hasher.update(&bytes);
            Some(hasher.finalize().to_hex().to_string())
        }
        Layer::Raw(_) => None,
    };
    let Some(fd) = file.store.fd() else { return Ok(None) };
    let failed = |errno: Errno| Error::io("look at", &file.path, errno.into());
    let stat =
        statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, WANTED).map_err(failed)?;
    if !is_regular(&stat) {
        return Ok(None);
    }
    let has_time = notes_writes(fd, &stat).map_err(failed)?;
    Ok(Some(Fingerprint {
        inode: stat.stx_ino,
        length: stat.stx_size,
        modified_ns: has_time.then(|| ns(stat.stx_mtime)),
        changed_ns: Some(ns(stat.stx_ctime)),
        born_ns: born_ns(&stat),
        mount: (stat.stx_mask & MOUNT_ID_UNIQUE.bits() != 0).then_some(stat.stx_mnt_id),
        subvolume: subvolume(&stat),
        tables,
    }))
}

/// Whether every write to a file that was written back shows in its time, as far as its filesystem is
/// concerned.
fn notes_writes(fd: BorrowedFd<'_>, stat: &Statx) -> rustix::io::Result<bool> {
    // Kernels give it with and without a sign.
    Ok(match fstatfs(fd)?.f_type as u32 {
        // They know no page fault for a write to a file that a program has mapped (mm/shmem.c).
        TMPFS | RAMFS | HUGETLBFS => false,
        // It may lie on one of these, or write nothing back when it is asked to (`volatile`).
        OVERLAYFS => false,
        // A snapshot, in which times and data can be of different moments, is not told apart.
        BTRFS => subvolume(stat).is_some(),
        _ => true,
    })
}

fn subvolume(stat: &Statx) -> Option<u64> {
    (stat.stx_mask & SUBVOLUME.bits() != 0).then_some(stat.stx_subvol)
}

fn is_regular(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

fn born_ns(stat: &Statx) -> Option<i64> {
    (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| ns(stat.stx_btime))
}

fn ns(time: StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.into())
}
