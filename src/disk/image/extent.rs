//! The value that an image hands to the reader: where the bytes of a guest range come from.

use std::ops::Range;

/// Which of an image's open files holds the bytes: an index into `Image::files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u16);

/// A range of the guest's disk whose bytes all come from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts on the guest's disk, in bytes.
    pub guest_offset: u64,
    /// How long it is, in bytes. Never zero.
    pub len: u64,
    /// How many layers below the top the bytes (or the zeros) were found. An extent that no layer
    /// holds has the depth of the last layer that was asked: the last of all, or the one whose
    /// backing file ends before.
    pub depth: u16,
    /// Where the bytes come from.
    pub source: Source,
}

impl Extent {
    /// The guest bytes it covers, as a half-open range.
    pub fn range(&self) -> Range<u64> {
        self.guest_offset..self.guest_offset + self.len
    }
}

/// Where the bytes of an [`Extent`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No layer maps the range: it reads as zeros.
    Unallocated,
    /// A layer says that the range is zero. `host_offset` is where clusters are preallocated for
    /// it, if they are.
    Zero {
        /// The preallocated place, if there is one.
        host_offset: Option<u64>,
    },
    /// Plain bytes, one for one.
    Data {
        /// The file that holds them.
        file: FileIndex,
        /// Where they start in that file.
        host_offset: u64,
    },
    /// Part of one compressed cluster.
    Compressed(CompressedCluster),
}

/// A compressed cluster, and which part of it an [`Extent`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedCluster {
    /// The file that holds it.
    pub file: FileIndex,
    /// Where its compressed bytes start in that file.
    pub host_offset: u64,
    /// How many bytes may belong to it; trailing ones may be padding or a neighbour's.
    pub compressed_len: u32,
    /// Size of the cluster when decompressed, in bytes.
    pub cluster_size: u32,
    /// Where the extent starts within the decompressed cluster.
    pub offset_in_cluster: u32,
    /// How it is compressed.
    pub compression: Compression,
}

/// How a qcow2 image compresses its clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate, without a zlib header.
    Deflate,
    /// Zstandard.
    Zstd,
}
