//! The tracker `bitmap`: QEMU recorded every write in a bitmap inside the image.

use qdelta_formats::archive::Tracker;
use qdelta_formats::qcow2::Bitmap;
use roaring::RoaringTreemap;

use super::case::Case;
use super::changes::Claim;
use super::{Answer, Claiming};
use crate::base::error::Result;
use crate::disk::edit::{self, ImageFile};
use crate::disk::files::device_id;
use crate::disk::image::{self, Allocated};
use crate::flows::anchors::bitmap;
use crate::formats::allocation::Allocation;

pub(super) const BITMAP: Claiming =
    Claiming { tracker: Tracker::Bitmap, of_exports: false, below_new_layers: false, claim };

fn claim(case: &Case<'_>) -> Answer {
    let anchor = case.anchor(Tracker::Bitmap)?;
    let file = case.top()?;
    case.check_below()?;
    let bitmaps = edit::bitmap::list(&file).map_err(|error| error.chain())?;
    let ours = bitmaps.iter().find(|bitmap| bitmap.name == anchor.name.as_bytes());
    let ours = ours.ok_or_else(|| {
        format!(
            "the image has no valid bitmap {}: it was restored or replaced, or written to by a \
             program that knows no bitmaps",
            anchor.name
        )
    })?;
    if ours.in_use {
        return Err(format!(
            "the bitmap {} is not saved: QEMU is using it, or was killed",
            anchor.name
        ));
    }
    if !ours.auto {
        return Err(format!("the bitmap {} does not record every write", anchor.name));
    }
    case.check_sound(&file)?;
    check_same_file(case)?;
    let mut claim = Claim::none(case.geometry);
    let mut canaries = bitmap::canaries(&anchor.name, case.latest.record.virtual_size);
    let unit = match find(&bitmaps, &bitmap::end_of(&anchor.name)) {
        Some(end) => {
            check_end(case, &file, end, &mut claim)?;
            match case.image().layers().len() {
                ..=1 => 1,
                _ => add_by_allocation(case, &anchor.name, &mut claim)?,
            }
        }
        None => add_by_map(case, &file, &bitmaps, &anchor.name, &mut claim)?,
    };
    edit::bitmap::read(&file, &anchor.name, |range| {
        canaries.retain(|byte| !range.contains(byte));
        // A cluster that is written in part is filled from below, and no bit says so.
        claim.add(range.start / unit * unit..range.end.next_multiple_of(unit));
        Ok(())
    })
    .and_then(|()| case.add_holes(&mut claim))
    .and_then(|()| add_aliased(case, &mut claim))
    .map_err(|error| error.chain())?;
    if !canaries.is_empty() {
        return Err(format!(
            "the bitmap {} was cleared, or is another one, or the disk was shrunk",
            anchor.name
        ));
    }
    Ok((claim, format!("QEMU recorded every write in the bitmap {}", anchor.name)))
}

/// Whoever copies an image may copy its bitmaps along and the disk of an older state:
/// `qemu-img convert --bitmaps` does so of a snapshot. Fails if the top is another file now.
fn check_same_file(case: &Case<'_>) -> Result<(), String> {
    let recorded = case.recorded_fingerprints().into_iter().next().flatten();
    // The file itself, also if it is a clone of it that is read.
    let name = case.image().file_names().into_iter().next().unwrap_or_default();
    let now = image::identity(&name).map_err(|error| error.chain())?;
    let is_same = match (recorded.map(|it| it.identity()), now) {
        // Of a device, neither says anything: its lasting id does, if it has one.
        (None, None) => {
            let layer = case.latest.record.image.layers.first();
            layer.and_then(|layer| layer.device.clone()) == device_id(&name)
        }
        (then, now) => then == now,
    };
    is_same.then_some(()).ok_or_else(|| "the image is another file than at the point before".into())
}

/// The bitmap with this name, if it records no writes.
fn find<'a>(bitmaps: &'a [Bitmap], name: &str) -> Option<&'a Bitmap> {
    bitmaps.iter().find(|it| it.name == name.as_bytes() && !it.in_use && !it.auto)
}

/// A bitmap that was made in a running QEMU has no map, and needs none where nothing lies below: what such
/// a disk loses without a record are holes then, which are claimed, and its end shows that it did not
/// shrink. Over a backing file, this host has kept what was allocated.
fn check_end(
    case: &Case<'_>,
    file: &ImageFile,
    end: &Bitmap,
    claim: &mut Claim,
) -> Result<(), String> {
    let (name, last) =
        (String::from_utf8_lossy(&end.name), case.latest.record.virtual_size.saturating_sub(1));
    let mut is_there = false;
    edit::bitmap::read(file, &name, |range| {
        is_there |= range.contains(&last);
        // Less than its bit stands for may have been cut off.
        claim.add(range);
        Ok(())
    })
    .map_err(|error| error.chain())?;
    is_there.then_some(()).ok_or_else(|| "the disk was shrunk, which bitmaps do not record".into())
}

/// QEMU records in a bitmap what is written to the disk. It does not record what a disk loses
/// when it shrinks, nor the zeros that it writes when the disk grows again; not that a cluster is
/// filled from a backing file, which may be another one for a while, nor that a commit empties
/// the image. The map beside the bitmap called `name` shows all that: claims what was allocated
/// then or is now, and not both. Gives how many bytes are allocated at once.
fn add_by_map(
    case: &Case<'_>,
    file: &ImageFile,
    bitmaps: &[Bitmap],
    name: &str,
    claim: &mut Claim,
) -> Result<u64, String> {
    let map_name = bitmap::map_of(name);
    let Some(map) = find(bitmaps, &map_name) else {
        return Err(format!("nothing shows what was allocated: no bitmap {map_name}"));
    };
    let now = bitmap::allocated(case.image()).map_err(|error| error.chain())?;
    if map.granularity() != now.unit {
        return Err(format!("the bitmap {map_name} is of other clusters"));
    }
    let mut then = RoaringTreemap::new();
    edit::bitmap::read(file, &map_name, |range| {
        then.insert_range(range.start / now.unit..range.end.div_ceil(now.unit));
        Ok(())
    })
    .map_err(|error| error.chain())?;
    let last = case.latest.record.virtual_size.saturating_sub(1) / now.unit;
    if !then.contains(last) {
        return Err("the disk was shrunk, which bitmaps do not record".into());
    }
    // Its bit is always set; and less than it stands for may have been cut off.
    claim.add(last * now.unit..(last + 1) * now.unit);
    let unit = now.unit;
    add_difference(then, now, claim);
    Ok(unit)
}

/// The same by what this host has kept of the latest point, at which the bitmap called `name` began. That the disk did
/// not shrink, the bitmap's end shows.
fn add_by_allocation(case: &Case<'_>, name: &str, claim: &mut Claim) -> Result<u64, String> {
    let size = case.latest.record.virtual_size;
    // Of a disk that has no more units than it should.
    let is_its = |then: &Allocation| {
        then.anchor == name && then.units.max().is_none_or(|last| last < size.div_ceil(then.unit))
    };
    let then = case.repository.allocation(&case.latest.disk).filter(is_its);
    let Some(then) = then else {
        return Err(
            "nothing shows what was allocated over its backing file when the bitmap began: that is kept in the state \
             folder of the host that made the point before"
                .into(),
        );
    };
    let now = bitmap::allocated(case.image()).map_err(|error| error.chain())?;
    let unit = now.unit;
    if then.unit != unit {
        return Err("the image has other clusters than when the bitmap began".into());
    }
    add_difference(then.units, now, claim);
    Ok(unit)
}

/// Claims what was allocated then or is now, and not both.
fn add_difference(then: RoaringTreemap, now: Allocated, claim: &mut Claim) {
    for number in then ^ now.units {
        claim.add(number * now.unit..(number + 1) * now.unit);
    }
}

/// Where two guest clusters shared a host cluster that was counted once, QEMU wrote to both and recorded
/// one. `qemu-img check -r all` corrects the count, and the image is sound from then on; that they
/// share it still shows. QEMU itself lets none share without a snapshot.
fn add_aliased(case: &Case<'_>, claim: &mut Claim) -> Result<()> {
    case.image().aliased(|range| {
        claim.add(range);
        Ok(())
    })
}
