//! Offsets that must not be mixed up, and the size of a cluster.

use std::fmt;

use crate::{FormatError, Problem};

/// A place on the guest's disk, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestOffset(pub u64);

/// A place in an image file or an external data file, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostOffset(pub u64);

impl fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bytes in a sector, the unit of disk sizes and of compressed lengths.
pub const SECTOR_SIZE: u64 = 512;

/// The size of an image's clusters: a power of two from 512 bytes to 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterSize {
    bits: u32,
}

impl ClusterSize {
    /// The smallest exponent: clusters of 512 bytes.
    pub const BITS_MIN: u32 = 9;
    /// The largest exponent: clusters of 2 MiB.
    pub const BITS_MAX: u32 = 21;

    /// Clusters of 2^`bits` bytes.
    ///
    /// # Errors
    /// `bits` is outside 9..=21.
    pub fn from_bits(bits: u32) -> Result<Self, FormatError> {
        if !(Self::BITS_MIN..=Self::BITS_MAX).contains(&bits) {
            return Err(FormatError::new(
                super::header::at::CLUSTER_BITS as u64,
                "cluster_bits",
                Problem::OutOfRange {
                    value: bits.into(),
                    min: Self::BITS_MIN.into(),
                    max: Self::BITS_MAX.into(),
                },
            ));
        }
        Ok(Self { bits })
    }

    /// The exponent: a cluster has 2^`bits` bytes.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Bytes in a cluster.
    #[inline]
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// Bytes in a cluster, as a length in memory.
    pub fn len(self) -> usize {
        1 << self.bits
    }

    /// Never: a cluster has at least 512 bytes.
    pub fn is_empty(self) -> bool {
        false
    }

    /// How far `offset` lies into its cluster, in bytes.
    pub fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// Whether `offset` is where a cluster starts.
    pub fn is_aligned(self, offset: u64) -> bool {
        self.offset_in_cluster(offset) == 0
    }

    /// How many clusters `bytes` occupy, the last one counted even if it is partial.
    pub fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }
}

/// A table in an image file: where it starts and how many entries it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Where it starts; a multiple of the cluster size.
    pub offset: HostOffset,
    /// Number of entries.
    pub entries: u32,
}

impl Table {
    /// A table of `entries` entries of `entry_size` bytes each at `offset`.
    ///
    /// # Errors
    /// It is longer than `max_size` bytes, does not start at a cluster, or ends beyond the largest
    /// file. The error lies at byte `at` of the file and calls the table `name`.
    pub(crate) fn checked(
        cluster: ClusterSize,
        at: u64,
        name: &'static str,
        offset: u64,
        entries: u32,
        entry_size: u64,
        max_size: u64,
    ) -> Result<Self, FormatError> {
        let max = max_size / entry_size;
        if u64::from(entries) > max {
            let problem = Problem::OutOfRange { value: entries.into(), min: 0, max };
            return Err(FormatError::new(at, format!("number of entries of the {name}"), problem));
        }
        let field = || format!("offset of the {name}");
        if !cluster.is_aligned(offset) {
            let problem = Problem::Misaligned { value: offset, alignment: cluster.bytes() };
            return Err(FormatError::new(at, field(), problem));
        }
        let max = i64::MAX as u64 - u64::from(entries) * entry_size;
        if offset > max {
            let problem = Problem::OutOfRange { value: offset, min: 0, max };
            return Err(FormatError::new(at, field(), problem));
        }
        Ok(Self { offset: HostOffset(offset), entries })
    }
}
