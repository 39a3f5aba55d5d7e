//! Writing into an image: internal snapshots and persistent bitmaps, as QEMU would make them.
//!
//! The image must not be in use: an [`ImageFile`] holds QEMU's locks for as long as it lives.
//!
//! Nothing that the image's header leads to is ever written over. A change (`change`) builds new
//! tables in free clusters, with reference counts of their own that count them already, syncs, and
//! then writes the header's first sector, which leads to the new tables instead of the old ones.
//! A disk writes a sector as a whole or not at all. So whenever the power fails, the image is
//! either the old one or the new one, and both are sound; what was written in vain lies in
//! clusters that are free. Only a bitmap extension behind the first sector needs a second step,
//! and a failure between the two leaks the clusters of the directory that is not in use.

pub mod bitmap;
mod change;
mod file;
mod metadata;
mod proof;
mod reclaim;
mod refcounts;
mod rewrite;
pub mod snapshot;
mod tree;

pub use bitmap::NewBitmap;
pub use change::prove;
pub use file::{ImageFile, open_to_change};
pub use reclaim::reclaim;
pub use rewrite::{Rewrite, Spare, check_rewrite, give_back_room, rewrite};
