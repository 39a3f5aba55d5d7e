//! The partition table of a PC's master boot record, and of the extended boot records behind it.

use crate::FormatError;
use crate::fields::Little;

/// Bytes of a boot record.
pub const LEN: usize = 512;
/// Where the four entries begin.
const ENTRIES: usize = 446;
const ENTRY_LEN: usize = 16;
const SIGNATURE: usize = 510;
/// The type of the one partition of a disk that has a GPT.
const PROTECTIVE: u8 = 0xee;

/// An entry of a boot record that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the table, from 0.
    pub slot: u32,
    /// The type of the partition.
    pub kind: u8,
    /// Its first sector; in an extended boot record, relative to a place that depends on the entry.
    pub start: u32,
    /// How many sectors it has.
    pub sectors: u32,
}

impl Entry {
    /// Whether it is the container of logical partitions.
    pub fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// Whether it says that the disk has a GPT.
    pub fn is_protective(&self) -> bool {
        self.kind == PROTECTIVE
    }
}

/// The entries in use of a boot record, or none if the sector is not one: no signature, or an entry
/// whose status is no status. The code of other boot sectors lies where the entries would be.
///
/// # Errors
/// The bytes are fewer than [`LEN`].
pub fn parse(sector: &[u8]) -> Result<Option<Vec<Entry>>, FormatError> {
    let bytes = Little::new(sector, 0);
    if bytes.slice(SIGNATURE, 2, "signature")? != [0x55, 0xaa] {
        return Ok(None);
    }
    let mut entries = Vec::new();
    for slot in 0..4 {
        let at = ENTRIES + slot * ENTRY_LEN;
        if !matches!(bytes.u8(at, "status")?, 0 | 0x80) {
            return Ok(None);
        }
        let kind = bytes.u8(at + 4, "partition type")?;
        let start = bytes.u32(at + 8, "first sector")?;
        let sectors = bytes.u32(at + 12, "number of sectors")?;
        if kind != 0 && sectors != 0 {
            entries.push(Entry { slot: slot as u32, kind, start, sectors });
        }
    }
    Ok(Some(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(entries: &[(u8, u8, u32, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        for (slot, (status, kind, start, sectors)) in entries.iter().enumerate() {
            let at = ENTRIES + slot * ENTRY_LEN;
            bytes[at] = *status;
            bytes[at + 4] = *kind;
            bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        bytes[SIGNATURE..].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    #[test]
    fn entries_in_use_are_found_by_their_slots() {
        let bytes = record(&[(0x80, 0x83, 2048, 100), (0, 0, 0, 0), (0, 5, 4096, 200)]);
        let entries = parse(&bytes).unwrap().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].slot, entries[0].start, entries[0].sectors), (0, 2048, 100));
        assert!(entries[1].is_extended() && entries[1].slot == 2);
    }

    #[test]
    fn boot_code_is_no_table() {
        assert_eq!(parse(&record(&[(0x21, 0x83, 1, 1)])).unwrap(), None);
        let mut unsigned = record(&[(0, 0x83, 1, 1)]);
        unsigned[SIGNATURE] = 0;
        assert_eq!(parse(&unsigned).unwrap(), None);
        assert!(parse(&unsigned[..100]).is_err());
    }
}
