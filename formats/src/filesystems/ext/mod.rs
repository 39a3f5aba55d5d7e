//! ext2, ext3 and ext4.

pub mod attributes;
pub mod extent;
pub mod folder;
pub mod inode;
pub mod journal;

use crate::fields::Little;
use crate::{FormatError, Problem};

/// Where the superblock lies.
pub const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of a superblock.
pub const SUPERBLOCK_LEN: usize = 1024;
/// The root folder.
pub const ROOT: u32 = 2;

/// What of a filesystem changes how it is read.
mod incompatible {
    pub(super) const FILE_TYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const EXTENTS: u32 = 0x40;
    pub(super) const SIZE_64: u32 = 0x80;
    pub(super) const MMP: u32 = 0x100;
    pub(super) const FLEX_BG: u32 = 0x200;
    pub(super) const EA_INODE: u32 = 0x400;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    pub(super) const LARGE_DIR: u32 = 0x4000;
    pub(super) const INLINE_DATA: u32 = 0x8000;
    pub(super) const ENCRYPT: u32 = 0x1_0000;
    pub(super) const CASEFOLD: u32 = 0x2_0000;

    /// Those that are understood here.
    pub(super) const KNOWN: u32 = FILE_TYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | SIZE_64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGE_DIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

const COMPAT_HAS_JOURNAL: u32 = 0x4;

/// A superblock whose fields make sense together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    /// How many blocks there are.
    pub blocks: u64,
    /// How many inodes there are.
    pub inodes: u32,
    /// Bytes of an inode.
    pub inode_len: u16,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// The journal's inode; 0 without one inside the filesystem.
    pub journal: u32,
    /// Whether the journal holds what has not been written to its place yet.
    pub needs_recovery: bool,
    /// Whether there is a journal at all.
    pub has_journal: bool,
    blocks_per_group: u32,
    first_data_block: u32,
    descriptor_len: u16,
    /// With meta_bg: the first block of descriptors that lies with its groups.
    first_meta: Option<u32>,
    has_file_types: bool,
    backups: Backups,
}

/// Which groups have a copy of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backups {
    All,
    /// 0, 1, and powers of 3, 5 and 7.
    Sparse,
    /// These two.
    Two([u32; 2]),
}

impl Superblock {
    /// Reads a superblock.
    ///
    /// # Errors
    /// A field makes no sense, or the filesystem has a feature that is not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, SUPERBLOCK_AT);
        if fields.u16(56, "s_magic")? != 0xef53 {
            return Err(fields.invalid(56, "s_magic", "not that of ext"));
        }
        let revision = fields.u32(76, "s_rev_level")?;
        let dynamic = revision > 0;
        let features = |at| if dynamic { fields.u32(at, "features") } else { Ok(0) };
        let (compatible, incompatible, read_only) = (features(92)?, features(96)?, features(100)?);
        let unknown = incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let text = format!("incompatible feature {unknown:#x}");
            return Err(FormatError::new(96, "s_feature_incompat", Problem::Unsupported(text)));
        }
        let order = fields.u32(24, "s_log_block_size")?;
        if order > 6 {
            return Err(fields.invalid(24, "s_log_block_size", format!("{order}")));
        }
        let block = 1024u64 << order;
        let wide = incompatible & incompatible::SIZE_64 != 0;
        let blocks_high = if wide { fields.u32(336, "s_blocks_count_hi")? } else { 0 };
        let blocks = u64::from(fields.u32(4, "s_blocks_count_lo")?) | u64::from(blocks_high) << 32;
        let inode_len = if dynamic { fields.u16(88, "s_inode_size")? } else { 128 };
        if !inode_len.is_power_of_two() || inode_len < 128 || u64::from(inode_len) > block {
            return Err(fields.invalid(88, "s_inode_size", format!("{inode_len} bytes")));
        }
        let descriptor_len = if wide { fields.u16(254, "s_desc_size")? } else { 32 };
        if !descriptor_len.is_power_of_two() || !(32..=1024).contains(&descriptor_len) {
            return Err(fields.invalid(254, "s_desc_size", format!("{descriptor_len} bytes")));
        }
        let meta = incompatible & incompatible::META_BG != 0;
        let backups = if compatible & 0x200 != 0 {
            let group = |at| fields.u32(at, "s_backup_bgs");
            Backups::Two([group(588)?, group(592)?])
        } else if read_only & 1 != 0 {
            Backups::Sparse
        } else {
            Backups::All
        };
        let has_journal = compatible & COMPAT_HAS_JOURNAL != 0;
        let superblock = Self {
            block,
            blocks,
            inodes: fields.u32(0, "s_inodes_count")?,
            inode_len,
            inodes_per_group: fields.u32(40, "s_inodes_per_group")?,
            journal: if has_journal { fields.u32(224, "s_journal_inum")? } else { 0 },
            needs_recovery: incompatible & incompatible::RECOVER != 0,
            has_journal,
            blocks_per_group: fields.u32(32, "s_blocks_per_group")?,
            first_data_block: fields.u32(20, "s_first_data_block")?,
            descriptor_len,
            first_meta: if meta { Some(fields.u32(260, "s_first_meta_bg")?) } else { None },
            has_file_types: incompatible & incompatible::FILE_TYPE != 0,
            backups,
        };
        if superblock.inodes_per_group == 0 || superblock.blocks_per_group == 0 {
            return Err(fields.invalid(32, "s_blocks_per_group", "no blocks or inodes"));
        }
        if superblock.first_data_block > 1 || blocks.checked_mul(block).is_none() {
            return Err(fields.invalid(4, "s_blocks_count", "out of range"));
        }
        Ok(superblock)
    }

    /// Whether entries of folders say what they stand for.
    pub fn has_file_types(&self) -> bool {
        self.has_file_types
    }

    /// Where the descriptor of a group lies, in bytes, and its length.
    pub fn descriptor_at(&self, group: u32) -> Option<(u64, usize)> {
        let len = u64::from(self.descriptor_len);
        let per_block = self.block / len;
        let table_block = u64::from(group) / per_block;
        let place = match self.first_meta {
            Some(first) if table_block >= first.into() => {
                // The first group of those whose descriptors share a block has that block itself.
                let first_group = table_block.checked_mul(per_block)?;
                let copy = u64::from(self.has_backup(u32::try_from(first_group).ok()?));
                let start = first_group.checked_mul(self.blocks_per_group.into())?;
                let start = start.checked_add(self.first_data_block.into())?;
                let boot = self.block == 1024 && self.first_data_block == 0 && table_block == 0;
                start.checked_add(copy + u64::from(boot))?
            }
            // Blocks of 1 KiB: the boot sector has the first one, the superblock the second.
            _ => u64::from(self.block == 1024) + 1 + table_block,
        };
        let within = u64::from(group) % per_block * len;
        Some((place.checked_mul(self.block)?.checked_add(within)?, len as usize))
    }

    fn has_backup(&self, group: u32) -> bool {
        match self.backups {
            _ if group == 0 => true,
            Backups::All => true,
            Backups::Two(groups) => groups.contains(&group),
            Backups::Sparse => {
                let power_of = |base: u32| {
                    let mut power = base;
                    while power < group {
                        power = power.saturating_mul(base);
                    }
                    power == group
                };
                group == 1 || power_of(3) || power_of(5) || power_of(7)
            }
        }
    }

    /// The group that an inode belongs to, and its number there.
    pub fn place_of(&self, inode: u32) -> Option<(u32, u32)> {
        let number = inode.checked_sub(1).filter(|_| inode <= self.inodes)?;
        Some((number / self.inodes_per_group, number % self.inodes_per_group))
    }
}

/// The first block of the inode table that a group's descriptor names.
///
/// # Errors
/// The bytes are too few.
pub fn inode_table(descriptor: &[u8]) -> Result<u64, FormatError> {
    let fields = Little::new(descriptor, 0);
    let low = u64::from(fields.u32(8, "bg_inode_table_lo")?);
    let high = if descriptor.len() >= 64 { fields.u32(40, "bg_inode_table_hi")? } else { 0 };
    Ok(low | u64::from(high) << 32)
}
