//! The plan of an output: which blocks will be written, known before the first byte is written.

use std::ops::Range;

use roaring::RoaringBitmap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{BlockIndex, Geometry};

/// A disk, and which of its blocks hold anything but zeros.
#[derive(Debug, Clone)]
pub struct Plan {
    geometry: Geometry,
    data: RoaringBitmap,
}

impl Plan {
    /// The disk that `geometry` cuts into blocks; the blocks in `data` will be written, all other
    /// blocks are zero.
    ///
    /// # Errors
    /// `Usage` if there is a block beyond the end of the disk.
    pub fn new(geometry: Geometry, mut data: RoaringBitmap) -> Result<Self> {
        let last = data.max().map_or(0, |block| u64::from(block) + 1);
        if last > geometry.block_count() {
            let text = format!("{last} blocks on a disk of {}", geometry.block_count());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        data.optimize();
        Ok(Self { geometry, data })
    }

    /// How the disk is cut into blocks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size()
    }

    /// The blocks that will be written.
    pub fn data(&self) -> &RoaringBitmap {
        &self.data
    }

    /// How many bytes of the disk will be written.
    pub fn data_bytes(&self) -> u64 {
        let whole = self.data.len() * u64::from(self.geometry.block_size());
        let last = self.data.max().map_or(0, |last| {
            u64::from(self.geometry.block_size()) - self.geometry.block_len(BlockIndex(last))
        });
        whole - last
    }

    /// How many separate runs these blocks form.
    pub(crate) fn pieces(&self) -> u64 {
        let mut runs = self.data.iter();
        std::iter::from_fn(|| runs.next_range()).count() as u64
    }

    /// The bytes of the disk outside of `blocks`, as ascending ranges.
    pub(super) fn outside<'a>(
        &'a self,
        blocks: &'a RoaringBitmap,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let size = u64::from(self.geometry.block_size());
        let end = self.virtual_size();
        let mut runs = blocks.iter();
        let mut from = Some(0);
        std::iter::from_fn(move || {
            let start = from?;
            let Some(run) = runs.next_range() else {
                from = None;
                return Some(start..end);
            };
            from = Some((u64::from(*run.end()) + 1) * size);
            Some(start..u64::from(*run.start()) * size)
        })
        .filter(|gap| gap.start < gap.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(size: u64, blocks: &[u32]) -> Plan {
        Plan::new(Geometry::new(size, 4096).unwrap(), blocks.iter().copied().collect()).unwrap()
    }

    #[test]
    fn bytes_and_gaps_end_with_the_disk() {
        let gaps = |plan: &Plan| -> Vec<(u64, u64)> {
            plan.outside(plan.data()).map(|gap| (gap.start, gap.end)).collect()
        };
        let partial = plan(3 * 4096 + 5, &[0, 3]);
        assert_eq!(partial.data_bytes(), 4096 + 5);
        assert_eq!(gaps(&partial), [(4096, 3 * 4096)]);
        let open = plan(3 * 4096 + 5, &[1, 2]);
        assert_eq!(open.data_bytes(), 2 * 4096);
        assert_eq!(gaps(&open), [(0, 4096), (3 * 4096, 3 * 4096 + 5)]);
        assert_eq!(gaps(&plan(5, &[])), [(0, 5)]);
        assert_eq!(gaps(&plan(5, &[0])), []);
        assert_eq!((gaps(&plan(0, &[])), plan(0, &[]).data_bytes()), (vec![], 0));
    }

    #[test]
    fn a_block_beyond_the_end_is_refused() {
        let geometry = Geometry::new(4096, 4096).unwrap();
        let error = Plan::new(geometry, [1].into_iter().collect()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}
