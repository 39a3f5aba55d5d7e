//! FAT12, FAT16 and FAT32.

use crate::FormatError;
use crate::fields::Little;

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

/// What an entry of the table says of the cluster behind a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The chain goes on here.
    Cluster(u32),
    /// The chain ends.
    End,
    /// The entry is none that a chain has: free, bad or outside the volume.
    Broken,
}

impl Parameters {
    /// Where the entry of a cluster lies, in bytes from the volume's beginning, and how many bytes hold it.
    pub fn entry_at(&self, cluster: u32) -> (u64, usize) {
        let cluster = u64::from(cluster);
        match self.width {
            Width::Fat12 => (self.table + cluster + cluster / 2, 2),
            Width::Fat16 => (self.table + cluster * 2, 2),
            Width::Fat32 => (self.table + cluster * 4, 4),
        }
    }

    /// What the entry of a cluster says, by the bytes that hold it.
    pub fn next(&self, cluster: u32, bytes: &[u8]) -> Next {
        let value = bytes.iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        let (value, end) = match self.width {
            Width::Fat12 if cluster % 2 == 1 => (value >> 4, 0xff8),
            Width::Fat12 => (value & 0xfff, 0xff8),
            Width::Fat16 => (value, 0xfff8),
            Width::Fat32 => (value & 0x0fff_ffff, 0x0fff_fff8),
        };
        match value {
            value if value >= end => Next::End,
            value if self.has(value) => Next::Cluster(value),
            _ => Next::Broken,
        }
    }

    /// Whether there is such a cluster.
    pub fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster - 2 < self.clusters
    }

    /// Where a cluster lies, in bytes from the volume's beginning.
    pub fn cluster_at(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster.saturating_sub(2)) * self.cluster
    }
}

/// Bytes of an entry of a folder.
pub const ENTRY_LEN: usize = 32;

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the entry lies in its folder, in bytes.
    pub at: u64,
    /// The long name, or the short one where there is none.
    pub name: String,
    /// What else the entry says.
    pub file: Facts,
}

/// What an entry says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Whether nobody should write to it.
    pub is_read_only: bool,
    /// The first cluster; 0 of an empty file.
    pub cluster: u32,
    /// Size in bytes; 0 of a folder.
    pub size: u32,
    /// Last change, in seconds since 1970, as if the clock of the guest had been UTC.
    pub modified: i64,
    /// Day of the last access, if it is kept.
    pub accessed: Option<i64>,
}

mod attribute {
    pub(super) const READ_ONLY: u8 = 0x01;
    pub(super) const VOLUME: u8 = 0x08;
    pub(super) const FOLDER: u8 = 0x10;
    pub(super) const LONG_NAME: u8 = 0x0f;
}

impl Facts {
    /// Reads an entry of a folder.
    ///
    /// # Errors
    /// The bytes are too few.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        let attributes = fields.u8(11, "attributes")?;
        let accessed = match fields.u16(18, "day of the last access")? {
            0 => None,
            day => Some(seconds(day, 0)),
        };
        let low = u32::from(fields.u16(26, "first cluster")?);
        let high = u32::from(fields.u16(20, "first cluster")?) << 16;
        let is_folder = attributes & attribute::FOLDER != 0;
        let size = fields.u32(28, "size")?;
        let (day, time) = (fields.u16(24, "day")?, fields.u16(22, "time")?);
        Ok(Self {
            is_folder,
            is_read_only: attributes & attribute::READ_ONLY != 0,
            cluster: low | high,
            size: if is_folder { 0 } else { size },
            modified: seconds(day, time),
            accessed,
        })
    }
}

/// Reads entries of folders one after the other: several of them hold a long name.
#[derive(Debug, Default)]
pub struct Entries {
    /// The long name that is being read, its last part first; and the checksum of the short one.
    long: Vec<[u16; 13]>,
    checksum: u8,
    /// The number of the part that comes next.
    wanted: u8,
}

/// What an entry of a folder is.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// The folder ends here.
    End,
    /// It is no file: free, a part of a name, the volume's label, `.` or `..`.
    Nothing,
    /// A file.
    Entry(Entry),
}

impl Entries {
    /// Reads the next entry, which lies at byte `at` of its folder.
    ///
    /// # Errors
    /// The bytes are too few.
    pub fn read(&mut self, bytes: &[u8], at: u64) -> Result<Read, FormatError> {
        let fields = Little::new(bytes, at);
        let short = fields.slice(0, 11, "name")?;
        let first = fields.u8(0, "name")?;
        let attributes = fields.u8(11, "attributes")?;
        if first == 0 {
            return Ok(Read::End);
        }
        if first != 0xe5 && attributes & 0x3f == attribute::LONG_NAME {
            self.part(first, &fields)?;
            return Ok(Read::Nothing);
        }
        let long = self.take(short);
        if first == 0xe5 || first == b'.' || attributes & attribute::VOLUME != 0 {
            return Ok(Read::Nothing);
        }
        let name = long.unwrap_or_else(|| short_name(short, bytes.get(12).copied()));
        Ok(Read::Entry(Entry { at, name, file: Facts::parse(bytes)? }))
    }

    fn part(&mut self, order: u8, fields: &Little<'_>) -> Result<(), FormatError> {
        let number = order & 0x1f;
        let checksum = fields.u8(13, "checksum of the short name")?;
        if order & 0x40 != 0 {
            self.long.clear();
            self.wanted = number;
            self.checksum = checksum;
        }
        if number == 0 || number != self.wanted || checksum != self.checksum {
            self.long.clear();
            self.wanted = 0;
            return Ok(());
        }
        let mut part = [0; 13];
        for (index, unit) in part.iter_mut().enumerate() {
            let at = match index {
                0..5 => 1 + index * 2,
                5..11 => 14 + (index - 5) * 2,
                _ => 28 + (index - 11) * 2,
            };
            *unit = fields.u16(at, "part of a name")?;
        }
        self.long.push(part);
        self.wanted -= 1;
        Ok(())
    }

    /// The long name that stands before an entry with this short one, if it is whole.
    fn take(&mut self, short: &[u8]) -> Option<String> {
        let parts = std::mem::take(&mut self.long);
        let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if parts.is_empty() || self.wanted != 0 || sum != self.checksum {
            return None;
        }
        let units: Vec<u16> =
            parts.iter().rev().flatten().copied().take_while(|unit| *unit != 0).collect();
        let name = String::from_utf16_lossy(&units);
        is_name(&name).then_some(name)
    }
}

/// Whether a name is one for a file, and leads nowhere else.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// A short name as Linux shows it: in small letters where the entry says so.
fn short_name(bytes: &[u8], flags: Option<u8>) -> String {
    let flags = flags.unwrap_or_default();
    let (stem, end) = bytes.split_at(bytes.len().min(8));
    let part = |bytes: &[u8], small: bool| -> String {
        let len = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let bytes = bytes.iter().take(len);
        // What is no ASCII depends on a code page that nobody wrote down.
        let letters = bytes.map(|byte| match byte {
            b'/' | 0..0x20 => '_',
            byte if byte.is_ascii() => char::from(*byte),
            _ => '\u{fffd}',
        });
        letters.map(|letter| if small { letter.to_ascii_lowercase() } else { letter }).collect()
    };
    let (stem, end) = (part(stem, flags & 0x08 != 0), part(end, flags & 0x10 != 0));
    match end.as_str() {
        "" => stem,
        end => format!("{stem}.{end}"),
    }
}

/// Seconds since 1970 of a day and a time of FAT.
fn seconds(day: u16, time: u16) -> i64 {
    let (year, month) = (1980 + i64::from(day >> 9), i64::from(day >> 5 & 15).clamp(1, 12));
    let date = i64::from(day & 31).max(1);
    let clock =
        i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    days(year, month, date) * 86400 + clock
}

/// Days since 1970 of a date, by the calendar that is in use.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have the odd day at their end.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 2, 29), 11_016);
        assert_eq!(days(2026, 11, 29), 20_786);
        assert_eq!(seconds((46 << 9) | (11 << 5) | 29, (12 << 11) | (30 << 5) | 5), 1_795_955_410);
    }

    #[test]
    fn a_short_name_has_its_letters() {
        assert_eq!(short_name(b"README  TXT", Some(0x18)), "readme.txt");
        assert_eq!(short_name(b"README  TXT", Some(0)), "README.TXT");
        assert_eq!(short_name(b"A/B        ", None), "A_B");
    }

    #[test]
    fn the_beginning_of_anything_is_no_fat() {
        assert!(Parameters::parse(&[0; 512]).is_err());
        assert!(Parameters::parse(&[0xeb; 512]).is_err());
        assert!(Parameters::parse(&[]).is_err());
    }
}
