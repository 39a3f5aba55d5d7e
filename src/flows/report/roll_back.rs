//! What roll backs did.

use std::path::PathBuf;

use qdelta_formats::archive::Digest;
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::Warning;
use crate::vault::repository::PointId;

/// What a roll back did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InPlaceReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The recovery point whose content the image has now.
    pub point: PointId,
    /// The image.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub image: PathBuf,
    /// The safety point, which holds what was there before; none if it was not wanted.
    pub safety_point: Option<PointId>,
    /// The last safety point of an earlier roll back that `latest` or a time passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<PointId>,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that differed, in whole blocks, and were written.
    pub bytes_changed: u64,
    /// Digest of what the image shows now, which is the point's.
    #[serde(with = "text")]
    pub root: Digest,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What the roll back of a guest did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineInPlaceReport {
    /// The domain's name, as the repository has it.
    pub domain: String,
    /// The recovery point whose content the disks have now.
    pub point: PointId,
    /// The safety point, which holds what was there before; none if it was not wanted.
    pub safety_point: Option<PointId>,
    /// The last safety point of an earlier roll back that `latest` or a time passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<PointId>,
    /// Its disks.
    pub disks: Vec<InPlaceReport>,
    /// What the admin should know; what is about one disk stands there.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}
