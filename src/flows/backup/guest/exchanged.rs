//! Whether what a snapshot command has made of two disks was exchanged: a point in which they stand for each other
//! would be sound, and found on the day when it is needed.

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::ImageReader;
use crate::flows::backup::together::Ready;
use crate::flows::capture::Captured;
use crate::formats::archive::{Digest, GROUP_BLOCKS, GroupIndex, block_digest, zero_block_digest};
use crate::vault::point::Before;

/// How many blocks of all disks of one size are looked at, and the least of each disk.
const BLOCKS: usize = 64;
const BLOCKS_OF_DISK_MIN: usize = 4;
/// Fewer blocks in which two disks differed prove nothing.
const DIFFERENT_MIN: u32 = 4;

/// A disk at the point before and now.
struct Sampled<'a> {
    name: &'a str,
    before: Vec<Digest>,
    now: Vec<Digest>,
}

/// Fails if a disk looks like another one of its size did at the point before, and that other one does not look
/// like itself. Disks that a guest has copied onto each other pass: the one that was copied stays what it was.
///
/// # Errors
/// They seem exchanged; or a disk can't be read.
pub(super) fn check(ready: &[Ready<'_>], sources: &[Captured], cancel: &Cancel) -> Result<()> {
    let all: Vec<_> = ready.iter().zip(sources).collect();
    let kin = |(ready, source): &(&Ready<'_>, &Captured)| {
        let geometry = ready.base.before().map(Before::geometry)?;
        let is_long = source.image.virtual_size() >= geometry.virtual_size();
        is_long.then(|| (geometry.virtual_size(), geometry.block_size()))
    };
    for (index, first) in all.iter().enumerate() {
        let Some(kind) = kin(first) else { continue };
        let is_first = !all.iter().take(index).any(|other| kin(other) == Some(kind));
        let alike: Vec<_> = all.iter().filter(|other| kin(other) == Some(kind)).collect();
        if is_first && alike.len() > 1 {
            let blocks = places(&alike)?;
            let sampled =
                alike.iter().map(|(ready, source)| sample(ready, source, &blocks, cancel));
            refuse_exchanged(&sampled.collect::<Result<Vec<_>>>()?)?;
        }
    }
    Ok(())
}

/// Which blocks to look at: some that were not zero of each disk, spread over it.
fn places(alike: &[&(&Ready<'_>, &Captured)]) -> Result<Vec<u64>> {
    let share = (BLOCKS / alike.len()).max(BLOCKS_OF_DISK_MIN) as u64;
    let mut blocks = Vec::new();
    for (ready, _) in alike {
        let Some(before) = ready.base.before() else { continue };
        let whole = before.geometry().virtual_size() / u64::from(before.geometry().block_size());
        let nonzero = before.nonzero()?;
        let count = nonzero.len();
        let spread = (0..share.min(count)).map(|number| number * count / share.min(count));
        let found = spread.filter_map(|rank| nonzero.select(u32::try_from(rank).ok()?));
        // The last one may be cut short.
        blocks.extend(found.map(u64::from).filter(|block| *block < whole));
    }
    blocks.sort_unstable();
    blocks.dedup();
    Ok(blocks)
}

/// What these blocks of a disk were, and are.
fn sample<'a>(
    ready: &Ready<'a>,
    source: &Captured,
    blocks: &[u64],
    cancel: &Cancel,
) -> Result<Sampled<'a>> {
    let mut sampled =
        Sampled { name: ready.disk.disk.as_str(), before: Vec::new(), now: Vec::new() };
    let Some(known) = ready.base.before() else { return Ok(sampled) };
    let block_size = known.geometry().block_size();
    let zero = zero_block_digest(block_size);
    let reader = ImageReader::new(&source.image);
    let (mut digests, mut bytes) = (known.digests(), vec![0; block_size as usize]);
    let mut last = None;
    for block in blocks {
        cancel.check()?;
        let (group, at) = (block / u64::from(GROUP_BLOCKS), block % u64::from(GROUP_BLOCKS));
        let group = GroupIndex(group as u32);
        let of_group = match last.take() {
            Some((number, known)) if number == group => known,
            _ => digests.of(group)?.map(|(blocks, _)| blocks),
        };
        let before = of_group.as_ref().and_then(|blocks| blocks.get(at as usize));
        sampled.before.push(before.copied().unwrap_or(zero));
        last = Some((group, of_group));
        reader.read(&mut bytes, block * u64::from(block_size))?;
        sampled.now.push(block_digest(&bytes));
    }
    Ok(sampled)
}

fn refuse_exchanged(disks: &[Sampled<'_>]) -> Result<()> {
    for disk in disks {
        for other in disks {
            let (is_other, stayed) = (disk.share_of(other, disk), other.share_of(other, disk));
            if is_other.is_some_and(|share| share >= 0.9)
                && stayed.is_some_and(|share| share <= 0.1)
            {
                let text = format!(
                    "what the snapshot command made of disk {} is what disk {} was at the point before",
                    disk.name, other.name
                );
                return Err(Error::new(ErrorKind::Guest, text)
                    .because(format!(
                        "and what it made of {} is not: they were exchanged",
                        other.name
                    ))
                    .advise(
                        "if the guest's disks have changed places themselves, say --same-guest",
                    ));
            }
        }
    }
    Ok(())
}

impl Sampled<'_> {
    /// In how many of the blocks in which `this` and `other` differed the disk is now what `this` was; none if
    /// there were too few.
    fn share_of(&self, this: &Self, other: &Self) -> Option<f64> {
        let (mut different, mut same) = (0_u32, 0_u32);
        for ((this, other), now) in this.before.iter().zip(&other.before).zip(&self.now) {
            if this != other {
                different += 1;
                same += u32::from(now == this);
            }
        }
        (different >= DIFFERENT_MIN).then(|| f64::from(same) / f64::from(different))
    }
}
