//! What merging did.

use std::path::PathBuf;

use qdelta_formats::archive::Kind;
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::Warning;
use crate::vault::repository::PointId;

/// What a merge did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The guest, as the repository calls it.
    pub domain: String,
    /// The point whose archives stand for the others now.
    pub point: PointId,
    /// The points that became part of it, the oldest first.
    pub absorbed: Vec<PointId>,
    /// Its disks whose archives were merged.
    pub disks: Vec<MergedDisk>,
    /// Nothing was done: this is what would be, by the indexes.
    pub dry_run: bool,
    /// Bytes read from archives.
    pub bytes_read: u64,
    /// Length of the merged archives, in bytes.
    pub bytes_written: u64,
    /// How many bytes the repository becomes smaller by: at once, or when what was replaced is gone.
    pub bytes_freed: u64,
    /// Whether what was replaced is still there, and the next merge removes it: its points are being read, or, as a warning
    /// says then, it could not be removed.
    pub waiting: bool,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// A disk whose archives were merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergedDisk {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// How many archives became one.
    pub archives: u64,
    /// What the merged archive is: `full`, `incremental` or `differential`.
    #[serde(with = "text")]
    pub kind: Kind,
    /// The merged archive; none in a dry run.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub archive: Option<PathBuf>,
    /// Bytes read from archives.
    pub bytes_read: u64,
    /// Length of the merged archive, in bytes.
    pub bytes_written: u64,
    /// Frames that were copied as they were; none in a dry run.
    pub frames_copied: u64,
    /// Frames that were packed anew, because some of their blocks were superseded.
    pub frames_packed: u64,
}
