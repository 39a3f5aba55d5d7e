//! Entries of L1 tables.

use byteorder::{BigEndian, ByteOrder};

use super::units::{ClusterSize, HostOffset};
use crate::{FormatError, Problem};

/// Bytes in an L1 entry.
pub const L1_ENTRY_SIZE: u64 = 8;

/// Bits 9–55 of L1, L2 and bitmap table entries: where a cluster lies.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Bit 63 of L1 and standard L2 entries: the refcount is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;

/// An entry of an L1 table as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// An entry for the L2 table at `l2_table`, or for none. `sole_owner` says that the table's
    /// refcount is exactly one.
    pub fn new(l2_table: Option<HostOffset>, sole_owner: bool) -> Self {
        match l2_table {
            Some(offset) => Self((offset.0 & OFFSET_MASK) | if sole_owner { COPIED } else { 0 }),
            None => Self(0),
        }
    }

    /// The entries of a table, or of a part of one. A rest of less than an entry is ignored.
    pub fn read_all(table: &[u8]) -> impl Iterator<Item = Self> + '_ {
        table.chunks_exact(L1_ENTRY_SIZE as usize).map(|bytes| Self(BigEndian::read_u64(bytes)))
    }

    /// The entry as it goes into the file.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The bits that name the L2 table, aligned to a cluster or not; zero if there is none.
    pub fn raw_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Where the L2 table lies; nothing if all its clusters are unallocated. Reserved bits are
    /// ignored, as QEMU does.
    ///
    /// `position` is where the entry itself lies, for the error.
    ///
    /// # Errors
    /// The L2 table does not start at a cluster.
    pub fn l2_table(
        self,
        cluster: ClusterSize,
        position: HostOffset,
    ) -> Result<Option<HostOffset>, FormatError> {
        let offset = self.raw_offset();
        if !cluster.is_aligned(offset) {
            return Err(FormatError::new(
                position.0,
                "L1 entry (offset of an L2 table)",
                Problem::Misaligned { value: offset, alignment: cluster.bytes() },
            ));
        }
        Ok((offset != 0).then_some(HostOffset(offset)))
    }

    /// Whether the entry says that the L2 table's refcount is exactly one. True only in the active
    /// L1 table.
    pub fn is_sole_owner(self) -> bool {
        self.0 & COPIED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(bits: u32) -> ClusterSize {
        ClusterSize::from_bits(bits).unwrap()
    }

    #[test]
    fn reserved_bits_and_the_refcount_bit_do_not_move_the_table() {
        let entry = L1Entry(0xff00_0000_0001_01ff);
        let table = entry.l2_table(clusters(16), HostOffset(0)).unwrap();
        assert_eq!(table, Some(HostOffset(0x1_0000)));
        assert!(entry.is_sole_owner());
        assert_eq!(L1Entry(COPIED).l2_table(clusters(16), HostOffset(0)).unwrap(), None);
    }

    #[test]
    fn unaligned_table_is_refused_with_the_place_of_the_entry() {
        let error = L1Entry(0x1_0200).l2_table(clusters(16), HostOffset(0x3_0008)).unwrap_err();
        assert_eq!(error.offset, 0x3_0008);
        assert!(matches!(error.problem, Problem::Misaligned { value: 0x1_0200, .. }));
        // The same offset is fine where clusters are that small.
        assert!(L1Entry(0x1_0200).l2_table(clusters(9), HostOffset(0)).is_ok());
    }

    #[test]
    fn what_is_written_is_read() {
        let entries = [L1Entry::new(Some(HostOffset(0x5_0000)), true), L1Entry::new(None, true)];
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        assert_eq!(L1Entry::read_all(&bytes).collect::<Vec<_>>(), entries);
        assert_eq!(entries[1].0, 0);
    }
}
