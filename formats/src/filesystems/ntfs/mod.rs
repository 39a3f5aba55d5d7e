//! NTFS.

pub mod index;
pub mod lznt1;
pub mod record;

use crate::FormatError;
use crate::fields::Little;
use crate::filesystems::Time;

/// Bytes of a boot sector that are looked at.
pub const BOOT_LEN: usize = 512;
/// The record of the table of records itself.
pub const TABLE: u64 = 0;
/// The record of the root folder.
pub const ROOT: u64 = 5;
/// The first record that is no file of the filesystem's own.
pub const FIRST_USERS: u64 = 16;

/// Where everything lies, by the boot sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Where the table of records begins, in bytes.
    pub table: u64,
    /// Bytes of a record.
    pub record: usize,
}

impl Parameters {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// These are not the parameters of an NTFS.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        if fields.slice(3, 8, "name")? != b"NTFS    " {
            return Err(fields.invalid(3, "name", "not that of NTFS"));
        }
        let sector = u64::from(fields.u16(11, "bytes of a sector")?);
        if !(256..=4096).contains(&sector) || !sector.is_power_of_two() {
            return Err(fields.invalid(11, "bytes of a sector", format!("{sector}")));
        }
        // Large clusters are told by a power of two that is counted down from 256.
        let sectors = match fields.u8(13, "sectors of a cluster")? {
            small @ ..=0x80 => u64::from(small),
            large => 1 << u32::from(large.wrapping_neg()).min(31),
        };
        let cluster = sector * sectors;
        if !cluster.is_power_of_two() || cluster > 2 << 20 {
            return Err(fields.invalid(13, "bytes of a cluster", format!("{cluster}")));
        }
        let record = match fields.u8(64, "clusters of a record")?.cast_signed() {
            clusters @ 0.. => u64::from(clusters.unsigned_abs()) * cluster,
            power => 1 << u32::from(power.unsigned_abs()).min(31),
        };
        if !(512..=65536).contains(&record) || !record.is_power_of_two() {
            return Err(fields.invalid(64, "bytes of a record", format!("{record}")));
        }
        let table = fields.u64(48, "cluster of the table")?.checked_mul(cluster);
        let table = table.ok_or_else(|| fields.invalid(48, "cluster of the table", "too large"))?;
        Ok(Self { cluster, table, record: record as usize })
    }
}

/// A reference to a record: its number, and how often it has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reference(pub u64);

impl Reference {
    /// The record's number.
    pub fn number(self) -> u64 {
        self.0 & 0xffff_ffff_ffff
    }

    /// How often the record has been used; 0 where that does not matter.
    pub fn sequence(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// Bytes of the unit at whose end two bytes were put aside.
const FIXED: usize = 512;

/// Puts the bytes back that were put aside when a record or a node was written: their places hold a number
/// that proves that all of it was written.
///
/// # Errors
/// A part was not written, or there is no list of what was put aside.
pub fn put_back(bytes: &mut [u8], magic: &[u8; 4]) -> Result<(), FormatError> {
    let fields = Little::new(bytes, 0);
    if fields.slice(0, 4, "magic")? != magic {
        return Err(fields.invalid(0, "magic", "not that of a record"));
    }
    let at = usize::from(fields.u16(4, "place of the update sequence")?);
    let count = usize::from(fields.u16(6, "length of the update sequence")?);
    if count != bytes.len() / FIXED + 1 {
        return Err(fields.invalid(6, "length of the update sequence", format!("{count}")));
    }
    let list = fields.slice(at, count * 2, "update sequence")?.to_vec();
    let (number, saved) = list.split_at(2);
    for (unit, saved) in bytes.chunks_exact_mut(FIXED).zip(saved.chunks_exact(2)) {
        let end = unit.get_mut(FIXED - 2..).unwrap_or_default();
        if end != number {
            let problem = crate::Problem::Invalid("a part was not written".into());
            return Err(FormatError::new(0, "update sequence", problem));
        }
        end.copy_from_slice(saved);
    }
    Ok(())
}

/// A time of NTFS: tenths of millionths of a second since 1601.
fn time(since_1601: u64) -> Time {
    let (seconds, rest) = (since_1601 / 10_000_000, since_1601 % 10_000_000);
    let nanoseconds = rest as u32 * 100;
    Time { seconds: seconds.cast_signed() - 11_644_473_600, nanoseconds }
}

/// A name as bytes: UTF-8, and halves of pairs, which Windows allows, as if they were letters.
fn name_of(utf16: &[u8]) -> Vec<u8> {
    let units = utf16.chunks_exact(2);
    let units = units.map(|unit| u16::from_le_bytes(unit.try_into().unwrap_or_default()));
    let mut out = Vec::new();
    for letter in char::decode_utf16(units) {
        match letter {
            Ok(letter) => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let half = half.unpaired_surrogate();
                let low = |shift: u16| 0x80 | (half >> shift & 0x3f) as u8;
                out.extend_from_slice(&[0xe0 | (half >> 12) as u8, low(6), low(0)]);
            }
        }
    }
    out
}

/// A text of UTF-16 as bytes: the target of a link, as `name_of` has it.
pub fn text_of(utf16: &[u8]) -> Vec<u8> {
    name_of(utf16)
}
