//! What a server has to give.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::vault::repository::PointId;

/// What is served, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeReport {
    /// The socket; none if another program has made one without a path.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub socket: Option<PathBuf>,
    /// Every point of the repository is served, and none of them is listed here.
    pub on_demand: bool,
    /// The address of an export, with `GUEST/DISK@POINT` in the place of its name.
    pub uri: String,
    /// The exports.
    pub exports: Vec<ExportReport>,
}

/// A point that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReport {
    /// What clients call it: `GUEST/DISK@ID`.
    pub name: String,
    /// Its address.
    pub uri: String,
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The point.
    pub point: PointId,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Whether clients can write to it: into the scratch file.
    pub writable: bool,
}
