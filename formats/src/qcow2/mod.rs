//! qcow2, as `docs/interop/qcow2.rst` of QEMU specifies it and QEMU's `block/qcow2*.c` enforce it.
//!
//! Reading starts with [`HeaderPrefix`], which says how long the header may be, then [`Header`].
//! [`L1Entry`] leads to L2 tables, whose entries [`L2Format::decode`] turns into [`Mapping`]s.
//! Limits are QEMU's: what it refuses to open is refused here.

pub mod bitmap;
mod edit;
mod extension;
mod features;
mod header;
mod l1;
mod l2;
mod refcount;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod units;

pub use bitmap::{Bitmap, BitmapTableEntry};
pub use edit::{FirstCluster, Linked};
pub use extension::{
    BITMAP_DIRECTORY_SIZE_MAX, BITMAPS_MAX, BitmapsExtension, EncryptionHeader, Extensions,
    FeatureName, UnknownExtension,
};
pub use features::{Autoclear, Compatible, Incompatible};
pub use header::{
    BACKING_NAME_LEN_MAX, CompressionType, Encryption, Header, HeaderPrefix, L1_SIZE_MAX, MAGIC,
    REFCOUNT_TABLE_SIZE_MAX, VIRTUAL_SIZE_MAX, Version, has_magic,
};
pub use l1::{L1_ENTRY_SIZE, L1Entry};
pub use l2::{
    CompressedDescriptor, L2Format, Mapping, Reference, SUBCLUSTERS, Subcluster, SubclusterMap,
};
pub use refcount::{RefcountOrder, RefcountTableEntry};
pub use snapshot::Snapshot;
pub use units::{ClusterSize, GuestOffset, HostOffset, SECTOR_SIZE, Table};
