//! The blocks of a group as bits.

use std::ops::Range;

use roaring::RoaringBitmap;

use crate::formats::archive::GROUP_BLOCKS;

/// One bit for each block of a group.
pub(super) type GroupBits = [u64; 16];

/// The bits `range` of a group set, the others clear. The range is cut to 0..1024.
pub(super) fn bits_of(range: Range<u64>) -> GroupBits {
    let mut bits = [0; 16];
    set(&mut bits, range);
    bits
}

fn set(bits: &mut GroupBits, range: Range<u64>) {
    for (word, start) in bits.iter_mut().zip((0u64..).step_by(64)) {
        let from = range.start.clamp(start, start + 64) - start;
        let to = range.end.clamp(start, start + 64) - start;
        if from < to {
            // `to - from` is 1 to 64, so the shift stays below 64.
            *word |= (u64::MAX >> (64 - (to - from))) << from;
        }
    }
}

/// The bits that both have.
pub(super) fn and(one: &GroupBits, other: &GroupBits) -> GroupBits {
    let mut both = *one;
    for (word, mask) in both.iter_mut().zip(other) {
        *word &= mask;
    }
    both
}

/// How many bits are set.
pub(super) fn count(bits: &GroupBits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// The set bits, ascending.
pub(super) fn ones(bits: &GroupBits) -> impl Iterator<Item = usize> + '_ {
    bits.iter().zip((0..).step_by(64)).flat_map(|(word, start)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros() as usize;
            left &= left.checked_sub(1)?;
            Some(start + bit)
        })
    })
}

/// The numbers of `bitmap` in the group of blocks that starts at `start`.
pub(super) fn bits_in(bitmap: &RoaringBitmap, start: u64) -> GroupBits {
    let mut bits = [0; 16];
    let Ok(first) = u32::try_from(start) else { return bits };
    // A group's last block is below 2^32.
    for block in bitmap.range(first..=first + (GROUP_BLOCKS - 1)) {
        let at = block - first;
        if let Some(word) = bits.get_mut(at as usize / 64) {
            *word |= 1 << (at % 64);
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_bits() {
        assert_eq!(bits_of(0..1024), [u64::MAX; 16]);
        assert_eq!(bits_of(5..5), [0; 16]);
        let bits = bits_of(63..66);
        assert_eq!(bits[..3], [1 << 63, 3, 0]);
        assert_eq!(bits_of(1000..5000)[15], u64::MAX << 40);
    }
}
