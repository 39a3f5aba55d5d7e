//! Recognising the files of an image again: whether one is still what it was.

use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, FsWord, Statx, StatxFlags, StatxTimestamp, fstatfs, statx,
};
use rustix::io::Errno;

use super::Image;
use super::layer::Layer;
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use qdelta_formats::qcow2::L1_ENTRY_SIZE;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8, statx(2)): an older kernel passes over it.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(MOUNT_ID_UNIQUE);

/// The types of filesystems that note no time when a program writes to a file that it has mapped:
/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (statfs(2)). They know no page fault for it (mm/shmem.c).
const UNNOTED: [FsWord; 2] = [0x0102_1994, 0x8584_58F6];

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

/// Inode and time of birth of the regular file called `path`; nothing of another kind of file. A
/// copy in its place has others, whatever its content.
///
/// # Errors
/// The system fails to tell.
pub fn identity(path: &Path) -> Result<Option<(u64, Option<i64>)>> {
    let stat = statx(CWD, path, AtFlags::empty(), WANTED)
        .map_err(|error| Error::io("look at", path, error.into()))?;
    Ok(is_regular(&stat).then(|| (stat.stx_ino, born_ns(&stat))))
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
    let stat = statx(fd, "", AtFlags::EMPTY_PATH, WANTED).map_err(failed)?;
    if !is_regular(&stat) {
        return Ok(None);
    }
    let filesystem = fstatfs(fd).map_err(failed)?.f_type;
    Ok(Some(Fingerprint {
        inode: stat.stx_ino,
        length: stat.stx_size,
        modified_ns: (!UNNOTED.contains(&filesystem)).then(|| ns(stat.stx_mtime)),
        changed_ns: Some(ns(stat.stx_ctime)),
        born_ns: born_ns(&stat),
        mount: (stat.stx_mask & MOUNT_ID_UNIQUE.bits() != 0).then_some(stat.stx_mnt_id),
        tables,
    }))
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
