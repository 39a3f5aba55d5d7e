//! Whether what a roll back writes has room where the images are: counted in full before anything is
//! written, for a disk that fills up in the middle is half of each, and stops other guests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use roaring::RoaringBitmap;

use super::ready::Ready;
use super::write::Held;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::Spare;
use crate::disk::files::{Allocation, Zeroes, room};

/// What an image takes of its filesystem's room, and what it gives before that.
#[derive(Default)]
struct Need {
    given: u64,
    taken: u64,
    /// Where the last byte is written.
    end: u64,
}

/// Fails if the filesystems have no room for what is to be written to the images.
pub(super) fn check(all: &[Ready<'_>]) -> Result<()> {
    // One image after the other: what a filesystem has given and taken so far.
    let mut sums: BTreeMap<u64, i128> = BTreeMap::new();
    for ready in all {
        let path = &ready.job.path;
        let data = ready.metadata()?;
        let failed = |error| Error::io("look at", path, error);
        let need = match (&ready.held, &ready.spare) {
            (_, Some(spare)) => {
                let blocks = new_blocks(ready, spare)?;
                qcow2(ready, spare, &blocks, data.is_file()).map_err(failed)?
            }
            (Held::Raw { store, .. }, _) if data.is_file() => {
                let allocation = || ready.allocation(Allocation::of(store.file().as_fd()));
                let gives = Zeroes::in_file(store).map_err(failed)?.gives_room();
                raw(ready, [allocation(), allocation()], gives).map_err(failed)?
            }
            _ => Need::default(),
        };
        if !data.is_file() {
            check_device(ready, need.end)?;
            continue;
        }
        room::check_limit(path, need.end)?;
        let sum = sums.entry(data.dev()).or_default();
        *sum = sum.saturating_sub(need.given.into()).saturating_add(need.taken.into());
        let needed = u64::try_from((*sum).max(0)).unwrap_or(u64::MAX);
        room::check(path, needed, &path.display().to_string()).map_err(|error| {
            error.advise(
                "make room there, or restore to a new file on another filesystem: nothing is written yet",
            )
        })?;
    }
    Ok(())
}

/// An image on a device can't grow.
fn check_device(ready: &Ready<'_>, end: u64) -> Result<()> {
    let path = &ready.job.path;
    let len = ready.held.store().len().map_err(|error| Error::io("measure", path, error))?;
    if end <= len {
        return Ok(());
    }
    let text = format!("{} is to have {end} bytes, and the device has {len}", path.display());
    Err(Error::new(ErrorKind::NoSpace, text).advise(
        "make the device larger (lvextend), or restore to a new file: nothing is written yet",
    ))
}

/// The blocks for which a rewrite of a qcow2 image takes clusters.
fn new_blocks<'a>(ready: &'a Ready<'_>, spare: &Spare) -> Result<Cow<'a, RoaringBitmap>> {
    let blocks = &ready.wanted.blocks;
    Ok(match spare.zeros_are_written(ready.job.is_overlay) {
        true => Cow::Borrowed(blocks),
        false => Cow::Owned(blocks & ready.job.chain.nonzero()?),
    })
}

/// What a rewrite of a qcow2 image takes: new clusters and tables come before old ones go.
fn qcow2(
    ready: &Ready<'_>,
    spare: &Spare,
    new: &RoaringBitmap,
    is_file: bool,
) -> std::io::Result<Need> {
    let block_size = u64::from(ready.job.chain.geometry().block_size());
    let blocks = &ready.wanted.blocks;
    let data = clusters(new, block_size, spare.cluster_size);
    let count = spare.needed(data, units(blocks, (spare.table_coverage / block_size).max(1)));
    let store = ready.held.store();
    let len = store.len()?;
    let mut need = Need::default();
    let mut allocation = store.fd().filter(|_| is_file).map(Allocation::of);
    allocation = allocation.map(|allocation| ready.allocation(allocation));
    for place in spare.places(count) {
        need.end = place.end;
        need.taken += match &mut allocation {
            Some(allocation) if place.end <= len => allocation.needed(place)?,
            _ => place.end - place.start,
        };
    }
    Ok(need)
}

/// What is written to a raw image takes: pages in holes, and pages that a clone shares. Zeros give what
/// they are in the place of.
fn raw(
    ready: &Ready<'_>,
    [mut for_pages, mut for_zeros]: [Allocation<'_>; 2],
    gives: bool,
) -> std::io::Result<Need> {
    let (mut need, mut pieces) = (Need::default(), 0);
    for run in ready.wanted.pages.runs(ready.job.chain.geometry().virtual_size()) {
        need.end = run.end;
        let more = for_pages.needed(run)?;
        need.taken += more;
        pieces += u64::from(more > 0);
    }
    for zeros in ready.wanted.zeros(&ready.job.chain) {
        // A hole in the middle makes two pieces of one. What keeps its place may be shared.
        match gives {
            true => {
                let given = for_zeros.given(zeros)?;
                need.given += given;
                pieces += u64::from(given > 0);
            }
            false => need.taken += for_zeros.needed(zeros)?,
        }
    }
    need.taken = room::with_pieces(need.taken, pieces);
    Ok(need)
}

/// In how many clusters these blocks lie.
fn clusters(blocks: &RoaringBitmap, block_size: u64, cluster_size: u64) -> u64 {
    match cluster_size > block_size {
        true => units(blocks, cluster_size / block_size),
        false => blocks.len() * (block_size / cluster_size),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_one_unit_counts_once() {
        let blocks: RoaringBitmap = [0, 1, 3, 8, u32::MAX].into_iter().collect();
        assert_eq!(units(&blocks, 4), 3);
        assert_eq!(units(&blocks, 1), 5);
        assert_eq!(units(&RoaringBitmap::new(), 4), 0);
        assert_eq!(clusters(&blocks, 65536, 65536 * 4), 3);
        assert_eq!(clusters(&blocks, 65536, 512), 5 * 128);
    }
}
