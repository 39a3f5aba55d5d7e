//! FAT12, FAT16 and FAT32.

use crate::FormatError;
use crate::little::Little;

/// Bytes of a boot sector that are looked at.
pub const BOOT_LEN: usize = 512;

/// Which of the three it is: how many bits an entry of the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// FAT12.
    Fat12,
    /// FAT16.
    Fat16,
    /// FAT32.
    Fat32,
}

/// Where everything lies, by the boot sector; all in bytes from the volume's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Which FAT it is.
    pub width: Width,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Where the first table begins.
    pub table: u64,
    /// Where the root folder of FAT12 and FAT16 begins.
    pub root: u64,
    /// Bytes of that root folder.
    pub root_len: u64,
    /// The first cluster of the root folder of FAT32.
    pub root_cluster: u32,
    /// Where cluster 2, the first one, begins.
    pub data: u64,
    /// How many clusters there are.
    pub clusters: u32,
    /// Size of the volume in bytes.
    pub size: u64,
}

impl Parameters {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// These are not the parameters of a FAT.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        if !matches!(fields.slice(0, 3, "jump")?, [0xeb, _, 0x90] | [0xe9, _, _]) {
            return Err(fields.invalid(0, "jump", "not that of a boot sector"));
        }
        let sector = u64::from(fields.u16(11, "bytes of a sector")?);
        let per_cluster = u64::from(fields.u8(13, "sectors of a cluster")?);
        if !(512..=4096).contains(&sector)
            || !sector.is_power_of_two()
            || !per_cluster.is_power_of_two()
        {
            return Err(fields.invalid(11, "size of sectors and clusters", "not a power of two"));
        }
        let reserved = u64::from(fields.u16(14, "reserved sectors")?);
        let tables = u64::from(fields.u8(16, "number of tables")?);
        if reserved == 0 || !(1..=8).contains(&tables) || fields.u8(21, "media")? < 0xf0 {
            return Err(fields.invalid(14, "boot sector", "not that of a FAT"));
        }
        let root_len = u64::from(fields.u16(17, "entries of the root folder")?) * 32;
        let sectors = match fields.u16(19, "number of sectors")? {
            0 => u64::from(fields.u32(32, "number of sectors")?),
            small => small.into(),
        };
        let table_sectors = match fields.u16(22, "sectors of a table")? {
            0 => u64::from(fields.u32(36, "sectors of a table")?),
            small => small.into(),
        };
        let root = (reserved + tables * table_sectors) * sector;
        let data = (root + root_len).next_multiple_of(sector);
        let size = sectors * sector;
        let clusters = size.saturating_sub(data) / (per_cluster * sector);
        if table_sectors == 0 || clusters == 0 {
            return Err(fields.invalid(32, "number of sectors", "no room for a cluster"));
        }
        let width = match clusters {
            _ if root_len == 0 => Width::Fat32,
            ..=4084 => Width::Fat12,
            4085..=65524 => Width::Fat16,
            _ => return Err(fields.invalid(17, "entries of the root folder", "of a FAT32")),
        };
        // A table that is too short for the clusters bounds them.
        let bits = table_sectors * sector * 8;
        let entries = match width {
            Width::Fat12 => bits / 12,
            Width::Fat16 => bits / 16,
            Width::Fat32 => bits / 32,
        };
        let clusters = clusters.min(entries.saturating_sub(2)).min(0x0fff_fff5);
        let root_cluster = match width {
            Width::Fat32 => fields.u32(44, "cluster of the root folder")?,
            _ => 0,
        };
        Ok(Self {
            width,
            cluster: per_cluster * sector,
            table: reserved * sector,
            root,
            root_len,
            root_cluster,
            data,
            clusters: clusters as u32,
            size,
        })
    }
}
