//! Freeing the clusters of lost bitmaps.
//!
//! A program that knows no bitmaps takes back the bit that says they are valid, or drops the header
//! extension that leads to them. QEMU ignores them from then on, and their clusters stay counted with
//! nothing that leads to them: a directory, and two clusters or more for each bitmap. A power cut at
//! the wrong moment leaves a directory, too.

use std::ops::Range;

use qdelta_formats::qcow2::bitmap::parse_entries;
use qdelta_formats::qcow2::{Bitmap, BitmapTableEntry, Linked};
use roaring::RoaringTreemap;

use super::change::{Change, change};
use super::file::ImageFile;
use super::metadata;
use crate::base::error::Result;

/// How many unreferenced clusters are searched for a directory.
const LOOKED_AT_MAX: usize = 16 << 10;
/// Bytes in which the first entry of a directory shows.
const GLANCE: u64 = 4 << 10;
/// Bytes of a directory that are looked at.
const DIRECTORY_MAX: u64 = 64 << 10;

/// Frees the clusters of bitmaps that nothing refers to any more: the clusters of each directory
/// that has a bitmap with a name for which `is_ours` is true. Only a cluster that is counted once
/// and used by nothing is freed, so the image stays sound whatever these clusters hold. Gives the
/// number of freed clusters.
///
/// # Errors
/// As [`super::prove`]; or writing fails.
pub fn reclaim(image: &ImageFile, is_ours: impl Fn(&[u8]) -> bool) -> Result<u64> {
    super::prove(image)?;
    if image.leaked().is_none_or(|leaked| leaked.is_empty()) {
        return Ok(0);
    }
    let mut change_of_counts = Change::begin(image)?;
    let found = leftovers(&mut change_of_counts, &is_ours)?;
    drop(change_of_counts);
    if found.is_empty() {
        return Ok(0);
    }
    change(image, |change| {
        for number in &found {
            change.counts.add(number, -1)?;
        }
        Ok((unlink(change, &found)?, ()))
    })?;
    Ok(found.len())
}

/// Removes a header extension that leads to a directory among the clusters of `gone`: QEMU warns of
/// such an extension at each start.
fn unlink(change: &mut Change<'_>, gone: &RoaringTreemap) -> Result<Linked> {
    let header = change.header();
    let invalid = header.extensions.bitmaps.filter(|it| {
        metadata::bitmaps_extension(header).is_none()
            && gone.contains(it.directory.0 >> header.cluster.bits())
    });
    if invalid.is_none() {
        return Ok(Linked::default());
    }
    change.first.link_bitmaps(None).map_err(|error| change.file.wrong(error))
}

/// The clusters of unreferenced directories, and of their bitmaps.
fn leftovers(change: &mut Change<'_>, is_ours: &dyn Fn(&[u8]) -> bool) -> Result<RoaringTreemap> {
    let mut found = RoaringTreemap::new();
    let header = change.header();
    let is_known = header.extensions.unknown.is_empty()
        && header.compatible.unknown().is_empty()
        && header.autoclear.unknown().is_empty();
    // Clusters that belong to an unknown feature look unreferenced.
    let Some(leaked) = change.file.leaked().filter(|_| is_known) else { return Ok(found) };
    for number in leaked.iter().take(LOOKED_AT_MAX) {
        let start = number << change.format.cluster.bits();
        if entries(change, start, GLANCE)?.0.is_empty() {
            continue;
        }
        let (bitmaps, len) = entries(change, start, DIRECTORY_MAX)?;
        if !bitmaps.iter().any(|bitmap| is_ours(&bitmap.name)) {
            continue;
        }
        let mut numbers = RoaringTreemap::new();
        numbers.insert_range(change.counts.clusters_of(start, len));
        for bitmap in &bitmaps {
            // A table that can't be read any more stays where it is.
            for range in clusters_of(change, bitmap).unwrap_or_default() {
                numbers.insert_range(range);
            }
        }
        found |= numbers & leaked.as_ref();
    }
    // Clusters that an earlier change of this file has freed are free by now, or used anew.
    let mut still = RoaringTreemap::new();
    for number in found {
        if change.counts.count(number)? == 1 {
            still.insert(number);
        }
    }
    Ok(still)
}

/// The bitmaps of a directory that may lie at `start`, as far as they can be read in `max` bytes, and
/// the length of their entries.
fn entries(change: &Change<'_>, start: u64, max: u64) -> Result<(Vec<Bitmap>, u64)> {
    let mut bytes = vec![0; max as usize];
    change.file.read(&mut bytes, start)?;
    let (bitmaps, len) = parse_entries(&bytes, start, change.format.cluster);
    Ok((bitmaps, len as u64))
}

/// The clusters of a bitmap and of its table.
fn clusters_of(change: &Change<'_>, bitmap: &Bitmap) -> Result<Vec<Range<u64>>> {
    let cluster = change.format.cluster;
    let len = u64::from(bitmap.table.entries) * 8;
    let mut ranges = vec![change.counts.clusters_of(bitmap.table.offset.0, len)];
    metadata::bitmap_table(change.file, cluster, bitmap, |_, entry| {
        if let BitmapTableEntry::Stored(place) = entry {
            ranges.push(change.counts.clusters_of(place.0, cluster.bytes()));
        }
        Ok(())
    })?;
    Ok(ranges)
}
