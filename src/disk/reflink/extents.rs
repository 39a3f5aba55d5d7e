//! Comparing where the bytes of two files lie.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::fstat;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::kernel::fiemap::{self, RawExtent};

/// More ranges than this are no claim that pays: 256 MiB of them.
const RANGES_MAX: usize = 1 << 24;

/// Ranges of bytes, ascending and apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteRanges(Vec<Range<u64>>);

impl ByteRanges {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// How many bytes they have.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Calls `each` with the parts of `range` that lie in these ranges, ascending.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.0.partition_point(|it| it.end <= range.start);
        let end = range.end;
        self.0
            .iter()
            .skip(first)
            .take_while(move |it| it.start < end)
            .map(move |it| it.start.max(range.start)..it.end.min(range.end))
    }

    /// Adds a range that does not begin before the last one.
    fn push(&mut self, range: Range<u64>) -> bool {
        if let Some(last) = self.0.last_mut()
            && range.start <= last.end
        {
            last.end = last.end.max(range.end);
            return true;
        }
        let fits = self.0.len() < RANGES_MAX;
        if fits && !range.is_empty() {
            self.0.push(range);
        }
        fits
    }
}

/// The ranges in which two files of one filesystem may differ: where the same byte does not lie at
/// the same place of the device, or where the filesystem can't say. That the blocks are shared is
/// not asked, and how they are cut into extents does not matter.
///
/// Both must be clones that nobody writes to, or files that nobody writes to; the older one must
/// have existed all the time since the newer one was the same. What is dirty in the page cache is
/// written first.
///
/// # Errors
/// [`ErrorKind::Usage`] if the files are on different filesystems, or too fragmented to compare;
/// [`ErrorKind::Io`] if the filesystem does not tell where its files lie.
pub fn differing(older: BorrowedFd<'_>, newer: BorrowedFd<'_>, path: &Path) -> Result<ByteRanges> {
    let failed = |error| Error::io("find the extents of", path, error);
    let stat = |file| fstat(file).map_err(|errno| failed(errno.into()));
    let (old, new) = (stat(older)?, stat(newer)?);
    if old.st_dev != new.st_dev {
        let text = format!("{} is on another filesystem than its clone", path.display());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let end = old.st_size.max(new.st_size).unsigned_abs();
    let mut pieces = [Pieces::new(older, end), Pieces::new(newer, end)];
    let mut ranges = ByteRanges::default();
    let mut at = 0;
    while at < end {
        let [older, newer] = &mut pieces;
        let (old_end, old) = older.at(at).map_err(failed)?;
        let (new_end, new) = newer.at(at).map_err(failed)?;
        let next = old_end.min(new_end);
        let same = match (old, new) {
            (Place::Zeros, Place::Zeros) => true,
            (Place::Device(old), Place::Device(new)) => old == new,
            _ => false,
        };
        if !same && !ranges.push(at..next) {
            let text = format!("{} lies in too many pieces to compare", path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        at = next;
    }
    Ok(ranges)
}

/// How many bytes of the device only this file keeps: what deleting it would give back.
///
/// # Errors
/// The filesystem does not tell.
pub fn exclusive_bytes(file: BorrowedFd<'_>, path: &Path) -> Result<u64> {
    let failed = |error| Error::io("find the extents of", path, error);
    let mut batch = Vec::new();
    let (mut at, mut bytes) = (0, 0);
    loop {
        fiemap::extents(file, at, &mut batch).map_err(failed)?;
        let Some(last) = batch.last() else { return Ok(bytes) };
        let own = batch.iter().filter(|extent| extent.flags & fiemap::EXTENT_SHARED == 0);
        bytes += own.map(|extent| extent.length).sum::<u64>();
        let end = last.logical.saturating_add(last.length);
        if last.flags & fiemap::EXTENT_LAST != 0 || end <= at {
            return Ok(bytes);
        }
        at = end;
    }
}

/// Where a byte of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zero.
    Zeros,
    /// At this byte of the device.
    Device(u64),
    /// The filesystem does not say, or what it says does not tell one content from another.
    Unknown,
}

/// Walks forward over the extents of a file.
struct Pieces<'a> {
    file: BorrowedFd<'a>,
    batch: Vec<RawExtent>,
    /// The extent that is next.
    index: usize,
    /// From here on nothing was asked yet.
    asked: u64,
    done: bool,
    end: u64,
}

impl<'a> Pieces<'a> {
    fn new(file: BorrowedFd<'a>, end: u64) -> Self {
        Self { file, batch: Vec::new(), index: 0, asked: 0, done: false, end }
    }

    /// Where byte `at` lies, and up to where the bytes behind it follow there. `at` never goes
    /// back.
    fn at(&mut self, at: u64) -> std::io::Result<(u64, Place)> {
        loop {
            while let Some(extent) = self.batch.get(self.index) {
                let extent_end = extent.logical.saturating_add(extent.length);
                if extent_end <= at {
                    self.index += 1;
                    continue;
                }
                if extent.logical > at {
                    return Ok((extent.logical.min(self.end), Place::Zeros));
                }
                return Ok((extent_end.min(self.end), place(extent, at)));
            }
            if self.done {
                return Ok((self.end, Place::Zeros));
            }
            self.fetch()?;
        }
    }

    fn fetch(&mut self) -> std::io::Result<()> {
        fiemap::extents(self.file, self.asked, &mut self.batch)?;
        self.index = 0;
        match self.batch.last() {
            None => self.done = true,
            Some(last) => {
                let end = last.logical.saturating_add(last.length);
                // A filesystem that gives the same extents again would keep us here for ever.
                self.done = last.flags & fiemap::EXTENT_LAST != 0 || end <= self.asked;
                self.asked = end;
            }
        }
        Ok(())
    }
}

/// Flags that say nothing about where and what the bytes are. Any other one but these makes the
/// place unknown: encoded (compressed) pieces at different offsets report the same place, inline
/// ones none, delayed ones have none yet.
const HARMLESS: u32 =
    fiemap::EXTENT_LAST | fiemap::EXTENT_SHARED | fiemap::EXTENT_UNWRITTEN | EXTENT_MERGED;
/// Extents that the filesystem does not keep, joined from blocks.
const EXTENT_MERGED: u32 = 0x1000;

fn place(extent: &RawExtent, at: u64) -> Place {
    if extent.flags & !HARMLESS != 0 {
        Place::Unknown
    } else if extent.flags & fiemap::EXTENT_UNWRITTEN != 0 {
        Place::Zeros
    } else {
        Place::Device(extent.physical.wrapping_add(at - extent.logical))
    }
}
