//! Whether what a roll back writes has room where the images are.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use roaring::RoaringBitmap;

use super::ready::Ready;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};

/// Bytes of an entry of an L2 table.
const L2_ENTRY: u64 = 8;

/// Fails if the filesystems have no room for what is to be written to the images.
pub(super) fn check(all: &[Ready<'_>]) -> Result<()> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for ready in all {
        let data = ready.metadata()?;
        if !data.is_file() {
            continue;
        }
        let more = match (ready.job.format, ready.job.cluster) {
            (Format::Qcow2, Some(cluster)) => growth(ready, cluster),
            _ => filled_holes(ready)?,
        };
        let sum = needed.entry(data.dev()).or_default();
        *sum = sum.saturating_add(more);
        let Ok(space) = rustix::fs::statvfs(&ready.job.path) else { continue };
        let root = rustix::process::geteuid().is_root();
        let blocks = if root { space.f_bfree } else { space.f_bavail };
        let free = blocks.saturating_mul(space.f_frsize);
        if space.f_blocks == 0 || free >= *sum {
            continue;
        }
        let text = format!(
            "{} needs {} and its filesystem has {} free",
            ready.job.path.display(),
            bytesize::ByteSize(*sum),
            bytesize::ByteSize(free)
        );
        return Err(Error::new(ErrorKind::NoSpace, text));
    }
    Ok(())
}

/// By how much a qcow2 image grows: new clusters and L2 tables come before old ones go.
fn growth(ready: &Ready<'_>, cluster: u64) -> u64 {
    let chain = &ready.job.chain;
    let block_size = u64::from(chain.geometry().block_size());
    let data = &ready.wanted & chain.nonzero();
    let bytes = match cluster > block_size {
        true => units(&data, cluster / block_size) * cluster,
        false => data.len() * block_size,
    };
    let table_coverage = cluster / L2_ENTRY * cluster;
    let tables = units(&ready.wanted, (table_coverage / block_size).max(1)) * cluster;
    (bytes + tables).saturating_sub(ready.free)
}

/// How many runs of `size` blocks have one of these.
fn units(blocks: &RoaringBitmap, size: u64) -> u64 {
    let mut last = None;
    let mut count = 0;
    for unit in blocks.iter().map(|block| u64::from(block) / size) {
        count += u64::from(last.replace(unit) != Some(unit));
    }
    count
}

/// By how much a raw image takes more room: what is written into its holes.
fn filled_holes(ready: &Ready<'_>) -> Result<u64> {
    let chain = &ready.job.chain;
    let block_size = u64::from(chain.geometry().block_size());
    let mut holes = RoaringBitmap::new();
    Image::open(&ready.job.path, &ready.job.open)?.holes(|range| {
        // A disk has at most 2^32 blocks.
        let last = (range.end.max(1) - 1) / block_size;
        holes.insert_range((range.start / block_size) as u32..=last as u32);
        Ok(())
    })?;
    Ok((&(&ready.wanted & chain.nonzero()) & &holes).len() * block_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_one_unit_counts_once() {
        let blocks: RoaringBitmap = [0, 1, 3, 8, u32::MAX].into_iter().collect();
        assert_eq!(units(&blocks, 4), 3);
        assert_eq!(units(&blocks, 1), 5);
        assert_eq!(units(&RoaringBitmap::new(), 4), 0);
    }
}
