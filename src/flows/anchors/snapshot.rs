//! Internal snapshots as anchors: what a guest writes after one goes to other clusters.

use std::time::SystemTime;

use crate::base::error::Result;
use crate::disk::edit::{self, ImageFile};
use crate::vault::repository::AnchorKind;

/// Makes a snapshot called `name` in the image of `file`, and gives what recognises this very snapshot
/// again.
pub(super) fn create(file: &ImageFile, name: &str) -> Result<AnchorKind> {
    let snapshot = edit::snapshot::create(file, name, SystemTime::now())?;
    Ok(AnchorKind::Snapshot {
        id: String::from_utf8_lossy(&snapshot.id).into_owned(),
        date_s: snapshot.date_s,
        date_ns: snapshot.date_ns,
    })
}

/// Removes the snapshot with this name, id and date (in seconds and nanoseconds) from an image, if it is
/// still there.
pub(super) fn remove(file: &ImageFile, name: &str, id: &str, date: (u32, u32)) -> Result<()> {
    let ours = edit::snapshot::list(file)?.into_iter().find(|it| {
        it.name == name.as_bytes() && it.id == id.as_bytes() && (it.date_s, it.date_ns) == date
    });
    ours.map_or(Ok(()), |snapshot| edit::snapshot::delete(file, &snapshot.id))
}
