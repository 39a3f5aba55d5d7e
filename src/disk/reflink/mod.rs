//! Clones of files that share their blocks (`FICLONE`), and which bytes of two of them differ by
//! where they lie on the device (`FIEMAP`). Works on XFS and Btrfs.
//!
//! A clone is the moment of a file: made in milliseconds, read at leisure. A clone that is *kept*
//! is an anchor: as long as it exists, none of its blocks can be given to something else, so a
//! later clone with the same block at the same place has the same bytes there.

mod clone;
mod extents;
mod folder;

pub use clone::{extent_count, try_clone_in};
pub use extents::{ByteRanges, differing, exclusive_bytes};
pub use folder::{ANCHOR_FOLDER, Kept, kept_beside, open_kept, remove_kept};
