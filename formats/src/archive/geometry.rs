//! How a disk is cut into blocks, and blocks into groups.

use crate::{FormatError, Problem};

/// Blocks in a group: the unit of the digest tree's middle level, and of one step of every scan.
pub const GROUP_BLOCKS: u32 = 1024;

/// The number of a block, counted from the start of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

/// The number of a group of [`GROUP_BLOCKS`] blocks, counted from the start of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIndex(pub u32);

/// The size of a disk and of its blocks. The last block may reach past the end of the disk; what
/// lies there reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    virtual_size: u64,
    block_size: u32,
}

impl Geometry {
    /// The smallest block, in bytes.
    pub const BLOCK_SIZE_MIN: u32 = 4 << 10;
    /// The largest block, in bytes.
    pub const BLOCK_SIZE_MAX: u32 = 2 << 20;
    /// The block size of a new chain, in bytes, unless told otherwise.
    pub const BLOCK_SIZE_DEFAULT: u32 = 64 << 10;

    /// The geometry of a disk of `virtual_size` bytes in blocks of `block_size` bytes.
    ///
    /// # Errors
    /// `block_size` is no power of two within the limits, or the disk has more than 2³² blocks.
    pub fn new(virtual_size: u64, block_size: u32) -> Result<Self, FormatError> {
        if !block_size.is_power_of_two()
            || !(Self::BLOCK_SIZE_MIN..=Self::BLOCK_SIZE_MAX).contains(&block_size)
        {
            return Err(FormatError::new(
                0,
                "block size",
                Problem::Invalid(
                    format!("{block_size} is no power of two from 4 KiB to 2 MiB").into(),
                ),
            ));
        }
        let max = u64::from(block_size) << 32;
        if virtual_size > max {
            return Err(FormatError::new(
                0,
                "virtual size",
                Problem::OutOfRange { value: virtual_size, min: 0, max },
            ));
        }
        Ok(Self { virtual_size, block_size })
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Size of a block in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many blocks the disk has, the last one counted even if it is partial.
    pub fn block_count(&self) -> u64 {
        self.virtual_size.div_ceil(u64::from(self.block_size))
    }

    /// How many groups the disk has, the last one counted even if it is partial.
    pub fn group_count(&self) -> u32 {
        // At most 2^32 blocks in groups of 2^10: at most 2^22 groups.
        self.block_count().div_ceil(u64::from(GROUP_BLOCKS)) as u32
    }

    /// Bytes of the disk that a full group covers.
    pub fn group_size(&self) -> u64 {
        u64::from(self.block_size) * u64::from(GROUP_BLOCKS)
    }

    /// Where `block` starts, in bytes from the start of the disk.
    pub fn block_offset(&self, block: BlockIndex) -> u64 {
        u64::from(block.0) * u64::from(self.block_size)
    }

    /// The part of `block` that lies on the disk, in bytes: the block size, except at the end.
    pub fn block_len(&self, block: BlockIndex) -> u64 {
        self.virtual_size.saturating_sub(self.block_offset(block)).min(u64::from(self.block_size))
    }

    /// The blocks of `group` that the disk has, as a half-open range of block numbers.
    ///
    /// The numbers are `u64` because the end may be 2³².
    pub fn group_blocks(&self, group: GroupIndex) -> std::ops::Range<u64> {
        let start = u64::from(group.0) * u64::from(GROUP_BLOCKS);
        let end = (start + u64::from(GROUP_BLOCKS)).min(self.block_count());
        start.min(end)..end
    }

    /// The bytes of the disk that `group` covers, as a half-open range.
    pub fn group_range(&self, group: GroupIndex) -> std::ops::Range<u64> {
        let start = u64::from(group.0) * self.group_size();
        let end = (start + self.group_size()).min(self.virtual_size);
        start.min(end)..end
    }
}
