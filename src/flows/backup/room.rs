//! Whether the repository has room for what a disk's archive will take, as far as anybody can say before
//! the disk is read.
//!
//! Nobody can say for certain: a disk that was wiped yesterday compresses to nothing. A refusal could so
//! stop a backup that fits, and one that does not fit fails without harm. So this is a warning, hours
//! before the failure.

use bytesize::ByteSize;

use super::data_path::Selection;
use super::meter::Whole;
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::formats::archive::Geometry;
use crate::vault::point::Base;
use crate::vault::repository::{DiskRecord, Repository};

/// An archive of less data says nothing of how the disk's data compresses, in bytes.
const TELLING: u64 = 1 << 20;

/// Warns if the archive of a disk will probably not fit the repository.
pub(super) fn warn(
    repository: &Repository,
    base: &Base,
    selection: Option<&Selection>,
    whole: Whole,
    geometry: Geometry,
    observer: &dyn Observer,
) {
    let data = match (selection, whole) {
        (Some(selection), _) => selection.claim.len() * u64::from(geometry.block_size()),
        (None, Whole::File(data)) if base.before().is_none() => data,
        // How much of all that is read has changed, the reading tells.
        _ => return,
    };
    let Some(free) = repository.bytes_free() else { return };
    let latest = base.latest.as_ref().map(|latest| &latest.record);
    let (expected, how) = match latest.and_then(|record| compressed(data, record)) {
        Some(expected) => (expected, "if it compresses as at the latest point"),
        None => (data, "unless it compresses well"),
    };
    if expected <= free {
        return;
    }
    let text = format!(
        "{} of data may have to be stored, which take {} {how}; the repository has {} free",
        ByteSize(data),
        ByteSize(expected),
        ByteSize(free)
    );
    let advice = "make room, or begin with another repository; a backup that finds no room fails and \
                  leaves the points before as they are";
    observer.warn(Warning::new(Code::LittleRoom, text).advise(advice));
}

/// What data takes in an archive if it compresses as that of an earlier archive did; nothing if that one is
/// too small to tell.
fn compressed(data: u64, earlier: &DiskRecord) -> Option<u64> {
    let (changed, written) = (earlier.bytes_changed, earlier.bytes_written);
    let scaled = || u128::from(data) * u128::from(written.min(changed)) / u128::from(changed);
    (changed >= TELLING).then(|| scaled() as u64)
}
