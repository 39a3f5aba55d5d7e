//! The pins of points that hold snapshots of images: a point is pinned as long as an image has its snapshot.

use jiff::Timestamp;
use qdelta_formats::qcow2::Snapshot;

use super::together::{Ready, Together};
use crate::base::clock;
use crate::base::error::{ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::vault::repository::{
    Catalog, DiskName, DomainName, Manifest, Marks, Pin, PointId, SnapshotRecord,
};

/// So many points are named in a warning.
const NAMED_MAX: usize = 5;

/// The entries in the images that were looked into.
#[derive(Default)]
pub(super) struct Listed {
    /// The entries of all, also of those that can't be read, with the numbers of their disks.
    pub entries: Vec<(usize, Snapshot)>,
    /// Whether those of each disk are known.
    pub is_known: Vec<bool>,
}

/// What the images say of the snapshots that a point holds.
#[derive(PartialEq)]
enum Now {
    /// One of them is in its image.
    There,
    /// None is.
    Gone,
    /// It may be in an image that nobody has looked into.
    Unknown,
}

/// When a snapshot was taken, if its entry makes sense.
pub(super) fn taken(snapshot: &Snapshot) -> Option<Timestamp> {
    let nanoseconds = i32::try_from(snapshot.date_ns).ok()?;
    Timestamp::new(i64::from(snapshot.date_s), nanoseconds).ok()
}

/// Whether an entry of an image may be the snapshot that was stored, whatever its tables are now. One whose tables
/// are damaged is not gone: its point may be all that is left of it.
fn may_be(entry: &Snapshot, stored: &SnapshotRecord) -> bool {
    entry.id == stored.id.as_bytes()
        && entry.name == stored.name.as_bytes()
        && taken(entry).is_none_or(|taken| taken == stored.taken)
}

/// What the images say of the snapshots of a point.
fn now_of(manifest: &Manifest, ready: &[Ready<'_>], listed: &Listed) -> Now {
    let mut all_gone = true;
    for record in &manifest.disks {
        let place = ready.iter().position(|it| it.disk.disk == record.disk);
        let Some(place) = place.filter(|it| listed.is_known.get(*it) == Some(&true)) else {
            all_gone = false;
            continue;
        };
        let mut entries = listed.entries.iter().filter(|(disk, _)| *disk == place);
        if entries.any(|(_, entry)| record.snapshot.as_ref().is_some_and(|it| may_be(entry, it))) {
            return Now::There;
        }
    }
    if all_gone { Now::Gone } else { Now::Unknown }
}

/// Ends the pins of points whose snapshots are gone from all images: the rules decide from then on. A pin that ended so
/// stays known, and holds again when the snapshot is in an image again: one that an admin took away does not come back.
pub(super) fn settle(
    together: &Together<'_>,
    ready: &[Ready<'_>],
    listed: &Listed,
    manifests: &[(PointId, Result<Manifest>)],
) -> Result<()> {
    let (repository, now) = (together.catalog.repository(), clock::now()?);
    let readable = || manifests.iter().filter_map(|(point, it)| Some((*point, it.as_ref().ok()?)));
    let is_replaced = |point| {
        let mut replaced = readable().filter(|(it, _)| *it != point);
        replaced.any(|(_, manifest)| manifest.replaces.iter().any(|it| it.point == point))
    };
    for (point, manifest) in readable().filter(|(_, manifest)| manifest.is_of_snapshots()) {
        let Some(pin) = manifest.pins.iter().find(|it| it.is_of_snapshot()) else { continue };
        let until = match (pin.holds(now), now_of(manifest, ready, listed)) {
            (true, Now::Gone) => Some(now),
            // Of what is being removed for good nothing may be left: the snapshot becomes a point again.
            (false, Now::There) if !is_replaced(point) => None,
            _ => continue,
        };
        let change = |marks: &mut Marks| {
            marks.pin(Pin { until, ..pin.clone() });
            if until.is_none() {
                marks.removed = None;
            }
            Ok(())
        };
        repository.mark(together.lock, point, change)?;
        tracing::debug!(%point, ?until, "the pin of its snapshot");
    }
    Ok(())
}

/// Says which points stay pinned for ever by snapshots of disks that the guest does not have any more: no backup looks
/// into their images.
pub(super) fn warn_of_held(
    catalog: &Catalog,
    domain: &DomainName,
    has_disk: impl Fn(&DiskName) -> bool,
    observer: &dyn Observer,
) -> Result<()> {
    let now = clock::now()?;
    let is_held = |manifest: &Manifest| {
        manifest.is_of_snapshots()
            && manifest.pins.iter().any(|it| it.is_of_snapshot() && it.holds(now))
            && manifest.disks.iter().all(|record| !has_disk(&record.disk))
    };
    let manifests = catalog.manifests(domain)?;
    let held: Vec<PointId> = manifests
        .iter()
        .filter(|(_, it)| it.as_ref().is_ok_and(is_held))
        .map(|(point, _)| *point)
        .collect();
    if held.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} stay pinned by snapshots of disks that the guest does not have any more: nobody looks whether their images \
         still have them",
        named(&held)
    );
    let advice = format!("qdelta unpin {domain}@POINT --holder snapshot lets the rules decide");
    observer.warn(Warning::new(Code::SnapshotHeld, text).advise(advice));
    Ok(())
}

/// Says that what was stored now may be in points already that can't be read with this host's key.
pub(super) fn warn_of_unread(
    manifests: &[(PointId, Result<Manifest>)],
    oldest_stored: Option<Timestamp>,
    observer: &dyn Observer,
) {
    let Some(taken) = oldest_stored else { return };
    let is_sealed =
        |it: &Result<Manifest>| matches!(it, Err(error) if error.kind() == ErrorKind::Key);
    // A snapshot that is newer than a point is not in it.
    let is_later =
        |point: &PointId| i128::from(point.as_ms()) >= i128::from(taken.as_millisecond());
    let unread: Vec<PointId> = manifests
        .iter()
        .filter(|(point, it)| is_sealed(it) && is_later(point))
        .map(|(point, _)| *point)
        .collect();
    if unread.is_empty() {
        return;
    }
    let text = format!(
        "{} can't be read with the key of this host: snapshots that they hold were stored a second time, and their pins \
         stay",
        named(&unread)
    );
    let advice = "with an admin's key, qdelta points shows them, and qdelta unpin GUEST@POINT --holder snapshot lets the \
                  rules decide";
    observer.warn(Warning::new(Code::SnapshotHeld, text).advise(advice));
}

/// Some points, for a warning.
fn named(points: &[PointId]) -> String {
    let shown: Vec<String> = points.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = match points.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("points {}{more}", shown.join(", "))
}
