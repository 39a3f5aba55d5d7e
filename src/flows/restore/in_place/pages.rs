//! Which pages of a raw image are written: a block that is to be written is mostly holes in many a disk,
//! and zeros that are written over a hole take room.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use roaring::RoaringTreemap;

use super::write::Wanted;
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::disk::create::ImageWriter;
use crate::vault::chain::Chain;
use crate::vault::frames::pack::is_zero;

/// The most bytes in a page: what most filesystems allocate at once.
const SIZE_MAX: u64 = 4096;

/// Pages of a disk, at most one bit each.
#[derive(Debug)]
pub(super) struct Pages {
    size: u64,
    numbers: RoaringTreemap,
}

impl Default for Pages {
    fn default() -> Self {
        Self::of(SIZE_MAX)
    }
}

impl Pages {
    /// None yet, of pages of `size` bytes.
    pub fn of(size: u64) -> Self {
        Self { size, numbers: RoaringTreemap::new() }
    }

    /// Bytes in a page.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the pages that lie in `range` as a whole.
    pub fn insert_inner(&mut self, range: Range<u64>) {
        self.numbers.insert_range(range.start.div_ceil(self.size)..range.end / self.size);
    }

    /// Neighbouring pages as ranges of bytes, ascending; the last one may be cut by the disk's end.
    pub fn runs(&self, disk_size: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut numbers = self.numbers.iter().peekable();
        std::iter::from_fn(move || {
            let first = numbers.next()?;
            let mut end = first + 1;
            while numbers.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(first * self.size..(end * self.size).min(disk_size))
        })
    }

    /// The same of those in `range`, which begins with a page.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces(range, true)
    }

    /// The parts of `range`, which begins with a page, that are in no page, ascending.
    pub fn gaps_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces(range, false)
    }

    fn pieces(&self, range: Range<u64>, inside: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut numbers = range.start / self.size..range.end.div_ceil(self.size);
        std::iter::from_fn(move || {
            let is_meant = |number: &u64| self.numbers.contains(*number) == inside;
            let first = numbers.by_ref().find(is_meant)?;
            let mut end = first + 1;
            while end < numbers.end && is_meant(&end) {
                end += 1;
            }
            numbers.start = end;
            Some(first * self.size..(end * self.size).min(range.end))
        })
    }
}

impl Wanted {
    /// The ranges of a raw image that are to be zero and may not be, ascending.
    pub fn zeros<'a>(&'a self, chain: &Chain) -> impl Iterator<Item = Range<u64>> + 'a {
        let geometry = chain.geometry();
        let (size, end) = (u64::from(geometry.block_size()), geometry.virtual_size());
        let mut blocks = self.differing.iter();
        let runs = std::iter::from_fn(move || blocks.next_range());
        runs.flat_map(move |run| {
            let last = (u64::from(*run.end()) + 1) * size;
            self.pages.gaps_in(u64::from(*run.start()) * size..last.min(end))
        })
    }
}

/// A range in pieces of at most `size` bytes.
pub(super) fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let starts = (range.start..end).step_by(size as usize);
    starts.map(move |start| start..(start + size).min(end))
}

/// Takes what would be written, and remembers which pages are not zero.
pub(super) struct Rehearsal {
    pages: Mutex<Pages>,
    /// Pages of zeros are not written.
    skips_zeros: bool,
}

impl Rehearsal {
    pub fn new(block_size: u32, skips_zeros: bool) -> Self {
        let pages = Pages::of(SIZE_MAX.min(block_size.into()));
        Self { pages: Mutex::new(pages), skips_zeros }
    }

    pub fn pages(self) -> Pages {
        self.pages.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageWriter for Rehearsal {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let size = pages.size;
        if !self.skips_zeros {
            pages.insert_inner(guest_offset..guest_offset + bytes.len() as u64);
            return Ok(());
        }
        for (page, number) in bytes.chunks(size as usize).zip(guest_offset / size..) {
            if !is_zero(page) {
                pages.numbers.insert(number);
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, cancel: &Cancel, _: &dyn Observer) -> Result<()> {
        cancel.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_gaps_are_what_is_written_and_what_is_zero() {
        let mut pages = Pages::of(4096);
        pages.insert_inner(1..3 * 4096 + 4095);
        pages.numbers.insert(7);
        let runs: Vec<_> = pages.runs(7 * 4096 + 5).collect();
        assert_eq!(runs, [4096..3 * 4096, 7 * 4096..7 * 4096 + 5]);
        let end = 9 * 4096 + 1;
        let runs: Vec<_> = pages.runs_in(2 * 4096..end).collect();
        assert_eq!(runs, [2 * 4096..3 * 4096, 7 * 4096..8 * 4096]);
        let gaps: Vec<_> = pages.gaps_in(0..end).collect();
        assert_eq!(gaps, [0..4096, 3 * 4096..7 * 4096, 8 * 4096..end]);
        assert_eq!(pieces(5..25, 10).collect::<Vec<_>>(), [5..15, 15..25]);
    }
}
