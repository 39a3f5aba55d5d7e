//! Reference counts of host clusters.

use byteorder::{BigEndian, ByteOrder};

use super::units::{ClusterSize, HostOffset};
use crate::{FormatError, Problem};

/// Bits 9–63 of a refcount table entry: where a refcount block lies.
const BLOCK_MASK: u64 = !0x1ff;

/// The width of a reference count: 2^order bits, from 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefcountOrder(u32);

impl RefcountOrder {
    /// The width in version 2 and the default in version 3: 16 bits.
    pub const DEFAULT: Self = Self(4);
    /// The largest order: 64 bits.
    pub const MAX: u32 = 6;

    /// Counts of 2^`order` bits; nothing if `order` is above 6.
    pub fn new(order: u32) -> Option<Self> {
        (order <= Self::MAX).then_some(Self(order))
    }

    /// The exponent.
    pub fn order(self) -> u32 {
        self.0
    }

    /// Width of a count in bits.
    pub fn bits(self) -> u32 {
        1 << self.0
    }

    /// The largest count that fits.
    pub fn max_count(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Counts in a refcount block, which is one cluster long.
    pub fn counts_per_block(self, cluster: ClusterSize) -> u64 {
        (cluster.bytes() * 8) >> self.0
    }

    /// Count number `index` of `block`; nothing beyond its end.
    pub fn get(self, block: &[u8], index: usize) -> Option<u64> {
        let bits = self.bits() as usize;
        if bits < 8 {
            let bit = index.checked_mul(bits)?;
            let byte = u64::from(*block.get(bit / 8)?);
            return Some(byte >> (bit % 8) & self.max_count());
        }
        let len = bits / 8;
        let start = index.checked_mul(len)?;
        block.get(start..start.checked_add(len)?).map(|bytes| BigEndian::read_uint(bytes, len))
    }

    /// Sets count number `index` of `block`.
    ///
    /// # Errors
    /// The index is beyond the block's end, or the count does not fit.
    pub fn set(self, block: &mut [u8], index: usize, count: u64) -> Result<(), FormatError> {
        let error = |problem| FormatError::new(index as u64, "refcount", problem);
        if count > self.max_count() {
            let problem = Problem::OutOfRange { value: count, min: 0, max: self.max_count() };
            return Err(error(problem));
        }
        let bits = self.bits() as usize;
        let available = block.len() as u64;
        let outside = || error(Problem::Truncated { needed: index as u64 + 1, available });
        let bit = index.checked_mul(bits).ok_or_else(outside)?;
        if bits < 8 {
            let byte = block.get_mut(bit / 8).ok_or_else(outside)?;
            // Both fit a byte: a count of fewer than 8 bits, shifted within one.
            let mask = (self.max_count() as u8) << (bit % 8);
            *byte = *byte & !mask | (count as u8) << (bit % 8);
            return Ok(());
        }
        let place = block.get_mut(bit / 8..(bit + bits) / 8).ok_or_else(outside)?;
        let count = count.to_be_bytes();
        place.copy_from_slice(count.get(8 - bits / 8..).unwrap_or(&[]));
        Ok(())
    }
}

/// An entry of the refcount table as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// The entries of a table, or of a part of one. A rest of less than an entry is ignored.
    pub fn read_all(table: &[u8]) -> impl Iterator<Item = Self> + '_ {
        table.chunks_exact(8).map(|bytes| Self(BigEndian::read_u64(bytes)))
    }

    /// Where the refcount block lies; nothing if all its counts are zero. `position` is where the
    /// entry itself lies, for the error.
    ///
    /// # Errors
    /// The block does not start at a cluster.
    pub fn block(
        self,
        cluster: ClusterSize,
        position: HostOffset,
    ) -> Result<Option<HostOffset>, FormatError> {
        let offset = self.0 & BLOCK_MASK;
        if !cluster.is_aligned(offset) {
            return Err(FormatError::new(
                position.0,
                "refcount table entry",
                Problem::Misaligned { value: offset, alignment: cluster.bytes() },
            ));
        }
        Ok((offset != 0).then_some(HostOffset(offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn narrow_counts_fill_a_byte_from_its_low_end() {
        let order = RefcountOrder::new(1).unwrap();
        assert_eq!(order.get(&[0b11_01_10_00], 1), Some(0b10));
        assert_eq!(order.get(&[0b11_01_10_00], 3), Some(0b11));
        assert_eq!(order.get(&[0], 4), None);
        assert_eq!(RefcountOrder::new(4).unwrap().get(&[0, 0, 1, 2], 1), Some(0x102));
        assert!(RefcountOrder::new(7).is_none());
    }

    #[test]
    fn counts_per_block() {
        let cluster = ClusterSize::from_bits(16).unwrap();
        assert_eq!(RefcountOrder::new(0).unwrap().counts_per_block(cluster), 524_288);
        assert_eq!(RefcountOrder::DEFAULT.counts_per_block(cluster), 32_768);
        assert_eq!(RefcountOrder::new(6).unwrap().counts_per_block(cluster), 8_192);
    }

    proptest! {
        #[test]
        fn what_is_set_is_got_and_neighbours_stay(
            order in 0..=6_u32, index in 0..64_usize, count: u64, mut block: [u8; 512],
        ) {
            let order = RefcountOrder::new(order).unwrap();
            let before: Vec<_> = (0..64).map(|i| order.get(&block, i)).collect();
            let count = count & order.max_count();
            order.set(&mut block, index, count).unwrap();
            for (i, before) in before.into_iter().enumerate() {
                let expected = if i == index { Some(count) } else { before };
                prop_assert_eq!(order.get(&block, i), expected);
            }
            if order.order() < 6 {
                prop_assert!(order.set(&mut block, index, order.max_count() + 1).is_err());
            }
            prop_assert!(order.set(&mut block, 4096, 0).is_err());
        }
    }
}
