//! An internal snapshot of an image, as the manifest of its point has it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::marks::Pin;
use crate::base::json::text;
use crate::formats::archive::Digest;

/// Who pins the points of snapshots as long as the images have the snapshots.
pub const SNAPSHOT_HOLDER: &str = "snapshot";

/// An internal snapshot of an image, and what it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its id in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, by the clock of the host that took it.
    #[serde(with = "text")]
    pub taken: Timestamp,
    /// How long the guest had run, in nanoseconds; 0 if it did not run.
    pub vm_clock_ns: u64,
    /// Bytes of the guest's memory in it, which its point has not; 0 if there is none.
    pub vm_state_bytes: u64,
    /// Digest of what its L1 table refers to.
    #[serde(with = "text")]
    pub tables: Digest,
}

impl SnapshotRecord {
    /// Whether the guest ran when it was taken: what it had not written yet is not in it.
    pub fn is_of_running(&self) -> bool {
        self.vm_clock_ns > 0 || self.vm_state_bytes > 0
    }
}

/// The pin of a snapshot's point: it stays as long as an image has the snapshot.
pub(crate) fn pin(name: &str, now: Timestamp) -> Pin {
    Pin {
        holder: Some(SNAPSHOT_HOLDER.to_owned()),
        at: now,
        reason: Some(format!("the image has the snapshot {}", name.escape_debug())),
        until: None,
    }
}
