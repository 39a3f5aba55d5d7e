//! The GUID partition table of UEFI.

use crate::fields::Little;
use crate::{FormatError, Problem};

/// Bytes of the header that are looked at.
pub const HEADER_LEN: usize = 92;
/// The most bytes that the entries of a table may take. UEFI asks for room for 16 KiB.
pub const ENTRIES_LEN_MAX: u64 = 1 << 20;
/// The most bytes of one entry; UEFI has 128.
const ENTRY_LEN_MAX: u64 = 4096;
const MAGIC: &[u8] = b"EFI PART";
/// Bytes of a partition's name: 36 units of UTF-16.
const NAME: usize = 56;
const NAME_LEN: usize = 72;

/// A header whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where the other copy lies, in sectors.
    pub other: u64,
    /// Where the entries begin, in sectors.
    pub entries_at: u64,
    /// How many entries there are.
    pub entries: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// Checksum of all entries.
    entries_crc: u32,
}

/// An entry in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the table, from 0.
    pub slot: u32,
    /// What the partition is for: a GUID as it lies on the disk.
    pub kind: [u8; 16],
    /// Its first sector.
    pub first: u64,
    /// Its last sector.
    pub last: u64,
    /// Its name; what is no UTF-16 is replaced.
    pub name: String,
}

impl Header {
    /// Reads the header at sector `sector`, or none if these are not the bytes of one.
    ///
    /// # Errors
    /// The header is damaged, or its table is larger than [`ENTRIES_LEN_MAX`].
    pub fn parse(bytes: &[u8], sector: u64) -> Result<Option<Self>, FormatError> {
        let fields = Little::new(bytes, 0);
        if fields.slice(0, MAGIC.len(), "signature")? != MAGIC {
            return Ok(None);
        }
        let len = fields.u32(12, "header size")? as usize;
        if len < HEADER_LEN || len > bytes.len() {
            return Err(fields.invalid(12, "header size", format!("{len} bytes")));
        }
        let stored = fields.u32(16, "header checksum")?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(fields.slice(0, 16, "header")?);
        crc.update(&[0; 4]);
        crc.update(fields.slice(20, len - 20, "header")?);
        let computed = crc.finalize();
        if stored != computed {
            let problem = Problem::Checksum { stored, computed };
            return Err(FormatError::new(16, "header checksum", problem));
        }
        if fields.u64(24, "own sector")? != sector {
            return Err(fields.invalid(24, "own sector", "the header lies elsewhere"));
        }
        let header = Self {
            other: fields.u64(32, "sector of the other header")?,
            entries_at: fields.u64(72, "sector of the entries")?,
            entries: fields.u32(80, "number of entries")?,
            entry_len: fields.u32(84, "size of an entry")?,
            entries_crc: fields.u32(88, "checksum of the entries")?,
        };
        let len = u64::from(header.entry_len);
        if !(128..=ENTRY_LEN_MAX).contains(&len) || !len.is_power_of_two() {
            return Err(fields.invalid(84, "size of an entry", format!("{len} bytes")));
        }
        if header.entries_len() > ENTRIES_LEN_MAX {
            let text = format!("{} entries are more than a table has", header.entries);
            return Err(fields.invalid(80, "number of entries", text));
        }
        Ok(Some(header))
    }

    /// Bytes of all entries.
    pub fn entries_len(&self) -> u64 {
        u64::from(self.entries) * u64::from(self.entry_len)
    }

    /// Reads the entries in use from the [`Self::entries_len`] bytes of the table.
    ///
    /// # Errors
    /// The table's checksum is not that of the header.
    pub fn parse_entries(&self, bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
        let computed = crc32fast::hash(bytes);
        if computed != self.entries_crc {
            let problem = Problem::Checksum { stored: self.entries_crc, computed };
            return Err(FormatError::new(0, "entries of the GPT", problem));
        }
        let mut entries = Vec::new();
        for (slot, bytes) in bytes.chunks_exact(self.entry_len.max(1) as usize).enumerate() {
            let fields = Little::new(bytes, slot as u64 * u64::from(self.entry_len));
            let kind: [u8; 16] =
                fields.slice(0, 16, "partition type")?.try_into().unwrap_or_default();
            if kind == [0; 16] {
                continue;
            }
            let units = fields.slice(NAME, NAME_LEN, "name")?.chunks_exact(2);
            let units = units.map(|unit| u16::from_le_bytes(unit.try_into().unwrap_or_default()));
            let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            entries.push(Entry {
                slot: slot as u32,
                kind,
                first: fields.u64(32, "first sector")?,
                last: fields.u64(40, "last sector")?,
                name: String::from_utf16_lossy(&units),
            });
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(entries: u32, entry_len: u32, entries_crc: u32) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&92u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&1u64.to_le_bytes());
        bytes[72..80].copy_from_slice(&2u64.to_le_bytes());
        bytes[80..84].copy_from_slice(&entries.to_le_bytes());
        bytes[84..88].copy_from_slice(&entry_len.to_le_bytes());
        bytes[88..92].copy_from_slice(&entries_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..92]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_table_is_read_with_its_names() {
        let mut table = vec![0; 256];
        table[128] = 1;
        table[128 + 32] = 40;
        table[128 + 40] = 49;
        table[128 + 56..128 + 60].copy_from_slice(&[b'h', 0, b'i', 0]);
        let header = Header::parse(&header(2, 128, crc32fast::hash(&table)), 1).unwrap().unwrap();
        assert_eq!(header.entries_len(), 256);
        let entries = header.parse_entries(&table).unwrap();
        let found: Vec<_> = entries.iter().map(|e| (e.slot, e.first, e.last, &*e.name)).collect();
        assert_eq!(found, [(1, 40, 49, "hi")]);
        table[0] = 1;
        assert!(header.parse_entries(&table).is_err());
    }

    #[test]
    fn four_billion_entries_are_refused() {
        assert!(Header::parse(&header(u32::MAX, 128, 0), 1).is_err());
        assert!(Header::parse(&header(4, 100, 0), 1).is_err());
        assert!(Header::parse(&header(4, 1 << 30, 0), 1).is_err());
    }

    #[test]
    fn damage_is_told_from_absence() {
        assert_eq!(Header::parse(&[0; 512], 1).unwrap(), None);
        let mut bytes = header(4, 128, 0);
        assert!(Header::parse(&bytes, 2).is_err(), "a header at another place");
        bytes[72] ^= 1;
        assert!(Header::parse(&bytes, 1).is_err());
    }
}
