//! The value that a tracker hands over: which blocks may have changed; and the random sample of
//! all others that is read to check it.

use std::ops::Range;

use qdelta_formats::archive::Geometry;
use roaring::RoaringBitmap;

/// The sample finds a miss of one block in a thousand with a probability of 99 %:
/// 1 − 0.999⁴⁶⁰³ > 0.99. Of few blocks, fewer are enough.
pub const SAMPLE_DEFAULT: u64 = 4603;

/// Of how many blocks a miss that must be found is one.
const MISS: u64 = 1000;
/// The most that a sample may fail to find such a miss.
const DOUBT: f64 = 0.01;

/// The blocks of a disk that may differ from what they were at the parent. It may have too many of
/// them, never too few.
#[derive(Debug, Clone)]
pub struct Claim {
    geometry: Geometry,
    blocks: RoaringBitmap,
}

impl Claim {
    /// No block has changed.
    pub fn none(geometry: Geometry) -> Self {
        Self { geometry, blocks: RoaringBitmap::new() }
    }

    /// Every block that has a byte of `range` may have changed. What lies behind the end of the
    /// disk does not count.
    pub fn add(&mut self, range: Range<u64>) {
        let block_size = u64::from(self.geometry.block_size());
        let end = range.end.min(self.geometry.virtual_size()).div_ceil(block_size);
        let start = range.start / block_size;
        if start < end {
            // A disk has at most 2^32 blocks, so the last one's number fits.
            self.blocks.insert_range(start as u32..=(end - 1) as u32);
        }
    }

    /// The disk had this size at the parent: what lies behind the shorter of both ends may have
    /// changed.
    pub fn add_resize(&mut self, parent_size: u64) {
        let size = self.geometry.virtual_size();
        if parent_size != size {
            // The last block may be a partial one.
            self.add(parent_size.min(size).saturating_sub(1)..size);
        }
    }

    /// These may have changed, too.
    pub fn add_blocks(&mut self, blocks: &RoaringBitmap) {
        self.blocks |= blocks;
        let count = self.geometry.block_count();
        if count <= u64::from(u32::MAX) {
            self.blocks.remove_range(count as u32..);
        }
    }

    /// The blocks.
    pub fn blocks(&self) -> &RoaringBitmap {
        &self.blocks
    }

    /// A random sample of the unclaimed blocks: up to `count` that held data at the parent (those in
    /// `nonzero`) and up to `count` that were zero; up to the default no more than are [`enough`].
    pub fn sample(&self, nonzero: &RoaringBitmap, count: u64, seed: u64) -> RoaringBitmap {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rest = RoaringBitmap::new();
        if let Some(last) = self.geometry.block_count().checked_sub(1) {
            rest.insert_range(0..=last as u32);
        }
        rest -= &self.blocks;
        let zero = &rest - nonzero;
        rest -= &zero;
        let bounded = |set: &RoaringBitmap| match count > SAMPLE_DEFAULT {
            true => count,
            false => count.min(enough(set.len())),
        };
        let mut sample = pick(&rest, bounded(&rest), &mut random);
        sample |= pick(&zero, bounded(&zero), &mut random);
        sample
    }
}

/// How many of `len` blocks a sample must have to find a miss of one in a thousand of them with a probability
/// of 99 %: without repetition, that is fewer the fewer there are. One miss in all is found in all alone.
fn enough(len: u64) -> u64 {
    if len <= MISS {
        return len;
    }
    let missed = len.div_ceil(MISS);
    // None of the missed blocks is among those that are drawn.
    let fails = |drawn: u64| {
        let mut doubt = 1.0;
        for index in 0..missed {
            doubt *= (len - drawn).saturating_sub(index) as f64 / (len - index) as f64;
            if doubt <= DOUBT {
                return false;
            }
        }
        true
    };
    let (mut low, mut high) = (0, SAMPLE_DEFAULT.min(len));
    while low < high {
        let middle = low.midpoint(high);
        match fails(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// `count` members of a set, each subset of that many as likely as any other; all if there are no
/// more.
fn pick(set: &RoaringBitmap, count: u64, random: &mut fastrand::Rng) -> RoaringBitmap {
    let len = set.len();
    if len <= count {
        return set.clone();
    }
    // R. Floyd's way to draw without repetition: at each step one rank more can be drawn, and it
    // is taken in place of one that was drawn before.
    let mut ranks = RoaringBitmap::new();
    for limit in len - count..len {
        let rank = random.u64(0..=limit);
        // Ranks of a set of 32-bit numbers, of which not all are in it.
        if !ranks.insert(rank as u32) {
            ranks.insert(limit as u32);
        }
    }
    ranks.iter().filter_map(|rank| set.select(rank)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(blocks: u64) -> Geometry {
        Geometry::new(blocks * 65536 - 100, 65536).unwrap()
    }

    #[test]
    fn ranges_become_every_block_that_they_touch() {
        let mut claim = Claim::none(geometry(10));
        claim.add(65535..65537);
        claim.add(9 * 65536 + 1..u64::MAX);
        claim.add(5..5);
        assert_eq!(claim.blocks().iter().collect::<Vec<_>>(), [0, 1, 9]);
    }

    #[test]
    fn a_resize_claims_the_partial_block_and_all_behind_it() {
        let size = geometry(10).virtual_size();
        let claimed = |parent| {
            let mut claim = Claim::none(geometry(10));
            claim.add_resize(parent);
            claim.blocks().iter().collect::<Vec<_>>()
        };
        assert!(claimed(size).is_empty());
        assert_eq!(claimed(8 * 65536 + 1), [8, 9]);
        assert_eq!(claimed(8 * 65536), [7, 8, 9]);
        assert_eq!(claimed(size + 1), [9]);
        assert_eq!(claimed(0), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn samples_lie_outside_the_claim_in_both_strata() {
        let mut claim = Claim::none(geometry(1000));
        claim.add(0..100 * 65536);
        let nonzero: RoaringBitmap = (50..500).collect();
        let sample = claim.sample(&nonzero, 20, 7);
        assert_eq!(sample.len(), 40);
        assert_eq!((&sample & &nonzero).len(), 20);
        assert!((&sample & claim.blocks()).is_empty());
        assert!(sample.max().unwrap() < 1000);
        assert_ne!(sample, claim.sample(&nonzero, 20, 8));
        assert_eq!(claim.sample(&nonzero, 10_000, 7).len(), 900);
        assert!(claim.sample(&nonzero, 0, 7).is_empty());
    }

    #[test]
    fn of_few_blocks_fewer_are_enough() {
        // One in a thousand of so few is one, which only the sample of all is sure to have.
        assert_eq!([0, 1, 999, 1000].map(enough), [0, 1, 999, 1000]);
        // By hand: of 2000, two are missed; (2000 − n)(1999 − n) / (2000 · 1999) ≤ 0.01.
        assert_eq!(enough(2000), 1800);
        assert!((3300..3400).contains(&enough(7680)), "{}", enough(7680));
        assert!((1..40_000).step_by(7).all(|len| enough(len) <= len.min(SAMPLE_DEFAULT)));
        assert!((4590..=SAMPLE_DEFAULT).contains(&enough(2_000_000)), "{}", enough(2_000_000));
        assert_eq!(enough(u64::from(u32::MAX)), SAMPLE_DEFAULT);
        // A sample that was asked for is no larger, and one beyond the default is what was asked for.
        let (claim, nonzero) = (Claim::none(geometry(8000)), (0..8000).collect());
        let drawn = |count| claim.sample(&nonzero, count, 1).len();
        assert_eq!([100, SAMPLE_DEFAULT, 5000].map(drawn), [100, enough(8000), 5000]);
    }

    /// What the default promises: of many samples, at most one in a hundred misses a change of one
    /// block in a thousand. Counted over fixed seeds, so it does not depend on chance.
    #[test]
    fn the_default_finds_one_in_a_thousand() {
        let blocks = 100_000;
        let claim = Claim::none(geometry(blocks));
        let nonzero: RoaringBitmap = (0..blocks as u32).collect();
        let missed: RoaringBitmap = (0..blocks as u32).step_by(1000).collect();
        let misses = (0..300)
            .filter(|&seed| (claim.sample(&nonzero, SAMPLE_DEFAULT, seed) & &missed).is_empty())
            .count();
        assert!(misses <= 6, "{misses} of 300");
        let (claim, nonzero) = (Claim::none(geometry(4000)), (0..4000).collect());
        let missed: RoaringBitmap = (0..4000).step_by(1000).collect();
        let misses = (0..1000)
            .filter(|&seed| (claim.sample(&nonzero, SAMPLE_DEFAULT, seed) & &missed).is_empty())
            .count();
        assert!((1..=20).contains(&misses), "{misses} of 1000");
    }
}
