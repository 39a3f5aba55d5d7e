//! What a mount shows.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a mount shows, told once it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReport {
    /// The folder that it is mounted on.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub folder: PathBuf,
    /// How many guests.
    pub guests: u64,
    /// How many disks.
    pub disks: u64,
    /// How many points of these disks.
    pub points: u64,
}
