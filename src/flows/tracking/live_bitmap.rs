//! The tracker `live-bitmap`: the server of an export tells what a bitmap of QEMU's has as written to.

use qdelta_formats::archive::Tracker;

use super::case::Case;
use super::changes::Claim;
use super::{Answer, Claiming};
use crate::base::error::Result;
use crate::flows::capture::Captured;
use crate::vault::repository::{AnchorKind, Point, PointId};

pub(super) const LIVE_BITMAP: Claiming =
    Claiming { tracker: Tracker::LiveBitmap, of_exports: true, below_new_layers: false, claim };

/// The largest cluster of a qcow2 image, in bytes.
const CLUSTER_MAX: u64 = 2 << 20;

fn claim(case: &Case<'_>) -> Answer {
    let anchor = case.anchor(Tracker::LiveBitmap)?;
    let (Some(export), Some(began)) =
        (&case.source.options.export, began(case.latest, case.source))
    else {
        return Err("the image is read from its file, and no server tells what was written".into());
    };
    let of_command = case.source.counted.is_some();
    let name = match &case.source.counted {
        None if case.source.anchor.is_none() => {
            return Err("no bitmap is named for this run (--live-bitmap NAME)".into());
        }
        None => anchor.name.as_str(),
        Some(counted) if counted.since == anchor.name => counted.bitmap.as_str(),
        Some(counted) => {
            return Err(format!(
                "the bitmap {} counts from {}, and the point before from {}",
                counted.bitmap, counted.since, anchor.name
            ));
        }
    };
    let mut claim = Claim::none(case.geometry);
    let disk = export.open().map_err(|error| error.chain())?;
    let mut marks = case.source.counted.as_ref().map(|it| it.marks.clone()).unwrap_or_default();
    disk.written(name, |range| {
        marks.retain(|byte| !range.contains(byte));
        claim.add(range);
    })
    .map_err(|error| error.chain())?;
    if !marks.is_empty() {
        return Err(format!(
            "the bitmap {} was cleared, or is another one, or the disk was shrunk",
            anchor.name
        ));
    }
    let mut since = Claim::none(case.geometry);
    case.add_since(began, &mut since)?;
    // A command vouches for what its bitmap counts from.
    if !of_command && !since.blocks().is_subset(claim.blocks()) {
        return Err(format!(
            "the bitmap {name} began at point {began}, and no more has all that had changed then: it was cleared or \
             made anew, or the disk is another one or an older state"
        ));
    }
    claim.add_blocks(since.blocks());
    add_unrecorded(case, &mut claim).map_err(|error| error.chain())?;
    let why = match of_command {
        true => format!("QEMU recorded every write in the bitmap {}", anchor.name),
        false => format!(
            "trusted: the bitmap {name} has what was written, unless somebody cleared it, shrank the disk or \
             exchanged its backing file"
        ),
    };
    Ok((claim, why))
}

/// The point at which the bitmap began that the latest point has as its anchor, if a server is asked for it.
pub(super) fn began(latest: &Point, source: &Captured) -> Option<PointId> {
    source.options.export.as_ref()?;
    match latest.record.anchor.as_ref()?.what {
        AnchorKind::LiveBitmap { began } => Some(began),
        _ => None,
    }
}

/// QEMU records in no bitmap what a disk loses when it shrinks, nor that the rest of the last cluster becomes
/// zero when it grows again. So what was not zero, is zero now and was not written to is claimed, with what a
/// cluster may reach before it; and the last cluster of the disk always, which may be zero without a hole.
fn add_unrecorded(case: &Case<'_>, claim: &mut Claim) -> Result<()> {
    let mut holes = Claim::none(case.geometry);
    case.add_holes(&mut holes)?;
    let size = case.geometry.virtual_size();
    claim.add(size.saturating_sub(CLUSTER_MAX)..size);
    let block_size = u64::from(case.geometry.block_size());
    let lost = holes.blocks() - claim.blocks();
    for block in lost {
        let start = u64::from(block) * block_size;
        claim.add(start.saturating_sub(CLUSTER_MAX)..start + block_size);
    }
    Ok(())
}
