//! A forward pass over a bitmap, one group at a time.

use std::ops::Range;

use roaring::RoaringBitmap;

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

/// A position in a bitmap that only moves forward.
pub(super) struct Runs<'a> {
    bitmap: &'a RoaringBitmap,
    iter: roaring::bitmap::Iter<'a>,
    /// The run that is looked at: its first and last number.
    run: Option<(u32, u32)>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(bitmap: &'a RoaringBitmap) -> Self {
        let mut runs = Self { bitmap, iter: bitmap.iter(), run: None };
        runs.pull();
        runs
    }

    fn pull(&mut self) {
        self.run = self.iter.next_range().map(|range| (*range.start(), *range.end()));
    }

    /// The next number.
    pub(super) fn next(&self) -> Option<u32> {
        self.run.map(|(first, _)| first)
    }

    /// Skips the numbers below `number`; says how many there were.
    pub(super) fn skip_to(&mut self, number: u32) -> u64 {
        let Some((first, last)) = self.run else { return 0 };
        if first >= number {
            return 0;
        }
        let skipped = self.bitmap.range_cardinality(first..number);
        if last >= number {
            self.run = Some((number, last));
        } else {
            self.iter.advance_to(number);
            self.pull();
        }
        skipped
    }

    /// Takes the numbers in `numbers`, none of which were passed, as bits from its start on.
    pub(super) fn take(&mut self, numbers: Range<u64>) -> GroupBits {
        let mut bits = [0; 16];
        while let Some((first, last)) = self.run {
            if u64::from(first) >= numbers.end {
                break;
            }
            let end = (u64::from(last) + 1).min(numbers.end);
            let start = u64::from(first).max(numbers.start);
            set(&mut bits, start - numbers.start..end.max(start) - numbers.start);
            if u64::from(last) >= numbers.end {
                self.run = Some((numbers.end as u32, last));
                break;
            }
            self.pull();
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_become_bits() {
        assert_eq!(bits_of(0..1024), [u64::MAX; 16]);
        assert_eq!(bits_of(5..5), [0; 16]);
        let bits = bits_of(63..66);
        assert_eq!(bits[..3], [1 << 63, 3, 0]);
        assert_eq!(bits_of(1000..5000)[15], u64::MAX << 40);
    }

    proptest! {
        /// Any mix of skipping and taking sees what the bitmap holds.
        #[test]
        fn a_pass_sees_what_the_bitmap_holds(
            runs in prop::collection::vec((0u32..300_000, 1u32..5_000), 0..20),
            singles in prop::collection::vec(0u32..300_000, 0..200),
            optimize: bool,
            steps in prop::collection::vec((0u32..40, any::<bool>()), 1..60),
        ) {
            let mut bitmap: RoaringBitmap = singles.into_iter().collect();
            for (start, len) in runs {
                bitmap.insert_range(start..start + len);
            }
            if optimize {
                bitmap.optimize();
            }
            let mut pass = Runs::new(&bitmap);
            let (mut group, mut rank) = (0u32, 0u64);
            for (skip, take) in steps {
                group += skip;
                let start = group * 1024;
                rank += pass.skip_to(start);
                let below = start.checked_sub(1).map_or(0, |last| bitmap.rank(last));
                prop_assert_eq!(rank, below);
                prop_assert_eq!(pass.next(), bitmap.range(start..).next());
                if take {
                    let bits = pass.take(u64::from(start)..u64::from(start) + 1024);
                    for block in 0..1024u32 {
                        let set = bits[block as usize / 64] >> (block % 64) & 1 == 1;
                        prop_assert_eq!(set, bitmap.contains(start + block));
                        rank += u64::from(set);
                    }
                    group += 1;
                }
            }
        }
    }
}
