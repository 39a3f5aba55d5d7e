//! In which ranges of the disk two states of an image may differ, from their tables alone.

use std::ops::Range;

use super::layer::Layer;
use super::tables::L2Finder;
use super::{Image, Mapper};
use crate::base::error::Result;
use crate::disk::image::extent::{CompressedCluster, Extent, FileIndex, Source};

/// Bytes of the disk whose extents are in memory at a time, unless one entry more covers more.
const WINDOW: u64 = 64 << 20;

/// What is known about the bytes of a file of the older state.
pub trait SameBytes {
    /// The file of the newer state that has the same bytes, except where [`Self::differing`] says
    /// otherwise; `None` if there is none.
    fn counterpart(&self, older: FileIndex) -> Option<FileIndex>;
    /// The parts of the bytes `range` of the file that may be others in the newer state, ascending.
    fn differing(
        &self,
        older: FileIndex,
        range: Range<u64>,
    ) -> Box<dyn Iterator<Item = Range<u64>> + '_>;
    /// Whether no byte of any file differs, and every file is its own counterpart.
    fn is_identity(&self) -> bool;
}

/// Both states have the same files, and nobody has written over bytes that the older one uses:
/// what holds for an internal snapshot and the current state of an image.
#[derive(Debug)]
pub struct Unwritten;

impl SameBytes for Unwritten {
    fn counterpart(&self, older: FileIndex) -> Option<FileIndex> {
        Some(older)
    }

    fn differing(
        &self,
        _older: FileIndex,
        _range: Range<u64>,
    ) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        Box::new(std::iter::empty())
    }

    fn is_identity(&self) -> bool {
        true
    }
}

/// Calls `each` with every range of the disk, in bytes, ascending, that may differ between two
/// states of an image. No data is read, only tables. What one disk has beyond the end of the other
/// is not compared.
///
/// Where both states refer to the same L2 table, or to none, and all files have the same bytes,
/// nothing below is looked at.
///
/// # Errors
/// A table of either can't be read or is damaged; whatever `each` fails with.
pub fn differences(
    older: &Image,
    newer: &Image,
    bytes: &dyn SameBytes,
    mut each: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let end = older.virtual_size().min(newer.virtual_size());
    let mut shared = SharedTables::new(older, newer, bytes);
    let mut sides = [older.mapper(), newer.mapper()].map(|mapper| (mapper, Vec::new()));
    let mut at = 0;
    while at < end {
        let next = match &mut shared {
            Some(shared) => shared.skip(at, end)?,
            None => at,
        };
        if next > at {
            at = next;
            continue;
        }
        let window = at..end.min((at / WINDOW + 1) * WINDOW);
        for (mapper, extents) in &mut sides {
            load(mapper, &window, extents)?;
        }
        let [(_, old), (_, new)] = &sides;
        compare(old, new, bytes, &mut each)?;
        at = window.end;
    }
    Ok(())
}

fn load(mapper: &mut Mapper, range: &Range<u64>, extents: &mut Vec<Extent>) -> Result<()> {
    extents.clear();
    mapper.extents(range.clone(), extents)
}

/// Compares two lists of extents that cover the same range.
fn compare(
    old: &[Extent],
    new: &[Extent],
    bytes: &dyn SameBytes,
    each: &mut impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    while let (Some(older), Some(newer)) = (old.peek(), new.peek()) {
        let start = older.guest_offset.max(newer.guest_offset);
        let end = older.range().end.min(newer.range().end);
        compare_part(older, newer, start..end, bytes, each)?;
        if older.range().end == end {
            old.next();
        }
        if new.peek().is_some_and(|newer| newer.range().end == end) {
            new.next();
        }
    }
    Ok(())
}

/// Calls `each` with what may differ between two extents in `range`, which both cover.
fn compare_part(
    older: &Extent,
    newer: &Extent,
    range: Range<u64>,
    bytes: &dyn SameBytes,
    each: &mut impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let zeros = |source| matches!(source, Source::Unallocated | Source::Zero { .. });
    let skipped = |extent: &Extent| range.start - extent.guest_offset;
    let same = match (older.source, newer.source) {
        (
            Source::Data { file: old_file, host_offset: old_host },
            Source::Data { file: new_file, host_offset: new_host },
        ) => {
            let host = old_host + skipped(older);
            let same =
                host == new_host + skipped(newer) && bytes.counterpart(old_file) == Some(new_file);
            if same {
                for part in bytes.differing(old_file, host..host + (range.end - range.start)) {
                    each(range.start + (part.start - host)..range.start + (part.end - host))?;
                }
            }
            same
        }
        (Source::Compressed(old), Source::Compressed(new)) => {
            let part = |cluster: &CompressedCluster, extent: &Extent| {
                u64::from(cluster.offset_in_cluster) + skipped(extent)
            };
            let host = old.host_offset..old.host_offset + u64::from(old.compressed_len);
            part(&old, older) == part(&new, newer)
                && (old.host_offset, old.compressed_len) == (new.host_offset, new.compressed_len)
                && (old.cluster_size, old.compression) == (new.cluster_size, new.compression)
                && bytes.counterpart(old.file) == Some(new.file)
                && bytes.differing(old.file, host).next().is_none()
        }
        (old, new) => zeros(old) && zeros(new),
    };
    if same { Ok(()) } else { each(range) }
}

/// Finds the L2 tables that two states share: everything below is the same.
struct SharedTables<'a> {
    sides: [L2Finder<'a>; 2],
    coverage: u64,
}

impl<'a> SharedTables<'a> {
    /// `None` if sharing a table would prove nothing.
    fn new(older: &'a Image, newer: &'a Image, bytes: &dyn SameBytes) -> Option<Self> {
        let (Some(Layer::Qcow2(old)), Some(Layer::Qcow2(new))) =
            (older.layers.first(), newer.layers.first())
        else {
            return None;
        };
        // What neither of them maps is looked up below: there, too, must be the same.
        let same = bytes.is_identity()
            && older.layers.len() == newer.layers.len()
            && old.format == new.format
            && old.format.table_coverage() > 0;
        same.then(|| Self {
            sides: [L2Finder::new(old), L2Finder::new(new)],
            coverage: old.format.table_coverage(),
        })
    }

    /// Up to where, from `at` on, both have the same L2 tables, at most `end`. Moves by whole tables
    /// but for the first.
    fn skip(&mut self, at: u64, end: u64) -> Result<u64> {
        let mut at = at;
        while at < end {
            let index = at / self.coverage;
            let [old, new] = &mut self.sides;
            if old.table(index)? != new.table(index)? {
                break;
            }
            at = (index + 1).saturating_mul(self.coverage).min(end);
        }
        Ok(at)
    }
}
