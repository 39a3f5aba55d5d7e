//! Which blocks of a span are meant.

/// A set of neighbouring blocks: bit i says that block `first + i` of a span is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mask(pub u64);

impl Mask {
    /// How many blocks it has.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it has block `bit`.
    pub fn has(self, bit: u32) -> bool {
        self.0.checked_shr(bit).unwrap_or(0) & 1 != 0
    }

    /// Its bits, ascending.
    pub fn bits(self) -> impl Iterator<Item = u32> + Clone + use<> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let bit = rest.trailing_zeros();
            (rest != 0).then(|| {
                rest &= rest - 1;
                bit
            })
        })
    }

    /// Its lowest bit.
    pub fn first(self) -> Option<u32> {
        (self.0 != 0).then(|| self.0.trailing_zeros())
    }

    /// Its highest bit.
    pub fn last(self) -> Option<u32> {
        self.0.checked_ilog2()
    }

    /// Whether there is no gap between its first and its last bit.
    pub fn is_run(self) -> bool {
        let shifted = self.0.checked_shr(self.0.trailing_zeros()).unwrap_or(0);
        shifted.trailing_ones() == self.count()
    }

    /// How many of its bits are below `bit`: the rank of that block in the payload of a frame.
    pub fn rank(self, bit: u32) -> u32 {
        (self.0 & !u64::MAX.checked_shl(bit).unwrap_or(0)).count_ones()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_the_set_of_its_bits() {
        for raw in [0, 1, 0b1010, 0b0110, 1 << 63, u64::MAX, u64::MAX - 1, 0x8000_0000_0000_0001] {
            let mask = Mask(raw);
            let bits: Vec<u32> = (0..64).filter(|bit| raw >> bit & 1 == 1).collect();
            assert_eq!(mask.bits().collect::<Vec<_>>(), bits);
            assert_eq!(mask.count() as usize, bits.len());
            assert_eq!((mask.first(), mask.last()), (bits.first().copied(), bits.last().copied()));
            let is_run = bits.windows(2).all(|pair| pair[1] == pair[0] + 1);
            assert_eq!(mask.is_run(), is_run, "{raw:#x}");
            for bit in 0..70 {
                assert_eq!(mask.has(bit), bits.contains(&bit));
                assert_eq!(mask.rank(bit) as usize, bits.iter().filter(|it| **it < bit).count());
            }
        }
    }
}
