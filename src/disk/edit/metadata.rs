//! Reading the tables of snapshots and bitmaps.

use qdelta_formats::qcow2::bitmap::parse_directory;
use qdelta_formats::qcow2::snapshot::{FIXED_LEN, SNAPSHOT_TABLE_SIZE_MAX};
use qdelta_formats::qcow2::{
    Autoclear, Bitmap, BitmapTableEntry, BitmapsExtension, ClusterSize, Header, HostOffset,
    Snapshot,
};

use super::file::ImageFile;
use crate::base::error::Result;

/// Bytes of a bitmap table that are read at a time.
const WINDOW: u64 = 64 << 10;
/// Bytes in an entry of a bitmap table.
const BITMAP_TABLE_ENTRY_SIZE: u64 = 8;

/// The snapshots of the image, and the length of their table in bytes.
///
/// # Errors
/// The table lies outside the file or is too long, or an entry breaks the rules.
pub(super) fn snapshots(file: &ImageFile, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let start = header.snapshots.offset.0;
    let file_len = file.len()?;
    let mut snapshots = Vec::new();
    let mut at = start;
    for _ in 0..header.snapshots.entries {
        if at >= file_len {
            return Err(file.damaged(format!("its snapshot table at {start:#x} is cut short")));
        }
        let mut fixed = [0; FIXED_LEN];
        file.read(&mut fixed, at)?;
        let len = Snapshot::entry_len(&fixed, at).map_err(|error| file.wrong(error))?;
        // At most 1 KiB of extra data and two strings of 64 KiB.
        let mut entry = vec![0; len];
        file.read(&mut entry, at)?;
        snapshots.push(Snapshot::parse(&entry, at).map_err(|error| file.wrong(error))?);
        at += (len as u64).next_multiple_of(8);
        if at - start > SNAPSHOT_TABLE_SIZE_MAX {
            return Err(file.damaged("its snapshot table is longer than QEMU reads"));
        }
    }
    Ok((snapshots, at - start))
}

/// The bitmaps extension, if it can be trusted.
pub(super) fn bitmaps_extension(header: &Header) -> Option<BitmapsExtension> {
    header.extensions.bitmaps.filter(|_| header.autoclear.contains(Autoclear::BITMAPS))
}

/// The bitmaps of the image; none if their extension can't be trusted.
///
/// # Errors
/// The directory lies outside the file, or QEMU would not load it.
pub(super) fn bitmaps(file: &ImageFile, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(extension) = bitmaps_extension(header) else { return Ok(Vec::new()) };
    let (start, len) = (extension.directory.0, extension.directory_len);
    if start.saturating_add(len) > file.len()?.next_multiple_of(header.cluster.bytes()) {
        return Err(file.damaged(format!("its bitmap directory at {start:#x} is cut short")));
    }
    // At most 64 MiB, as the header's parser saw to.
    let mut bytes = vec![0; len as usize];
    file.read(&mut bytes, start)?;
    parse_directory(&bytes, start, extension.count, header.cluster, header.virtual_size())
        .map_err(|error| file.wrong(error))
}

/// Calls `each` with the number of each entry of the bitmap's table and what it says.
///
/// # Errors
/// The table or a cluster that it names lies outside the file, an entry breaks the rules, or
/// `each` fails.
pub(super) fn bitmap_table(
    file: &ImageFile,
    cluster: ClusterSize,
    bitmap: &Bitmap,
    mut each: impl FnMut(u64, BitmapTableEntry) -> Result<()>,
) -> Result<()> {
    let start = bitmap.table.offset.0;
    let len = u64::from(bitmap.table.entries) * BITMAP_TABLE_ENTRY_SIZE;
    let file_len = file.len()?;
    if start.saturating_add(len) > file_len.next_multiple_of(cluster.bytes()) {
        return Err(file.damaged(format!("the bitmap table at {start:#x} is cut short")));
    }
    let mut bytes = Vec::new();
    let mut at = start;
    let mut number = 0;
    while at < start + len {
        bytes.resize((start + len - at).min(WINDOW) as usize, 0);
        file.read(&mut bytes, at)?;
        for entry in bytes.chunks_exact(BITMAP_TABLE_ENTRY_SIZE as usize) {
            let entry = BitmapTableEntry::parse(entry, cluster, HostOffset(at));
            let entry = entry.map_err(|error| file.wrong(error))?;
            if let BitmapTableEntry::Stored(place) = entry
                && place.0 >= file_len
            {
                return Err(file.damaged(format!("the cluster of a bitmap at {place} is missing")));
            }
            each(number, entry)?;
            number += 1;
            at += BITMAP_TABLE_ENTRY_SIZE;
        }
    }
    Ok(())
}
