//! Clones of files that share their blocks (`FICLONE`), and which bytes of two of them differ by
//! where they lie on the device (`FIEMAP`). Works on XFS and Btrfs.
//!
//! A clone is the moment of a file: made in milliseconds, read at leisure. A clone that is *kept*
//! is an anchor: as long as it exists, none of its blocks can be given to something else, so a
//! later clone with the same block at the same place has the same bytes there.

mod clone;
mod extents;
mod folder;

use std::path::Path;

pub use clone::{extent_count, try_clone_in};
pub use extents::{ByteRanges, differing, exclusive_bytes};
pub use folder::{ANCHOR_FOLDER, Kept, kept_beside, open_kept, remove_kept};

/// Types of filesystems that have no clones, from linux/magic.h: ext2 to ext4, tmpfs, FAT, NTFS.
const NEVER: [u64; 4] = [0xef53, 0x0102_1994, 0x4d44, 0x5346_544e];

/// Whether the filesystem of a path is known to be one that clones no file.
pub fn never_clones(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|it| NEVER.contains(&(it.f_type as u64 & 0xffff_ffff)))
}
