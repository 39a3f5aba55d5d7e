//! What copying points to another repository did, how two repositories compare, and what was mended.

use std::path::PathBuf;

use jiff::Timestamp;
use qdelta_formats::archive::Kind;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::base::json::text;
use crate::base::warning::Warning;
use crate::vault::repository::{DiskName, DomainName, Keep, PointId};

/// What was copied, or would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The repository that the points are of.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub from: PathBuf,
    /// The repository that has them as well now.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub to: PathBuf,
    /// Nothing was done: this is what would be.
    pub dry_run: bool,
    /// The rules that chose the points; all points that are not removed if none.
    pub points: Option<Keep>,
    /// The guests.
    pub guests: Vec<GuestCopy>,
    /// Somebody asked to stop: guests that are not listed were not looked at.
    pub interrupted: bool,
    /// Length of the archives that were written, in bytes.
    pub bytes_written: u64,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What was copied of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestCopy {
    /// The guest.
    pub domain: DomainName,
    /// The points that were copied, the oldest first.
    pub points: Vec<CopiedPoint>,
    /// How many of the points that are wanted were there before.
    pub present: u64,
    /// Points of the other repository whose pins were renewed.
    pub pinned: Vec<PointId>,
    /// The points that could not be copied, and why.
    pub failed: Vec<FailedPoint>,
    /// Why nothing more of the guest was copied, if that is so.
    pub error: Option<Failure>,
}

/// A point that was copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopiedPoint {
    /// The point.
    pub point: PointId,
    /// When it was made.
    #[serde(with = "text")]
    pub created: Timestamp,
    /// Its disks.
    pub disks: Vec<CopiedDisk>,
}

/// A disk of a point that was copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopiedDisk {
    /// The disk.
    pub disk: DiskName,
    /// What its archive is now: `full`, `incremental` or `differential`.
    #[serde(with = "text")]
    pub kind: Kind,
    /// How the archive came.
    pub how: Carried,
    /// How many archives it was made of.
    pub archives: u64,
    /// Its length, in bytes.
    pub bytes_written: u64,
}

/// How an archive came into a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carried {
    /// Byte for byte.
    Copied,
    /// Written anew, of one archive or of several.
    Merged,
    /// It was there already: an earlier run was interrupted.
    Found,
}

/// A point that was not copied or mended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedPoint {
    /// The point.
    pub point: PointId,
    /// Why.
    pub error: Failure,
}

/// How two repositories compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareReport {
    /// The repository.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub here: PathBuf,
    /// The other one.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub there: PathBuf,
    /// How many points are the same in both.
    pub same: u64,
    /// The guests with points that are not.
    pub guests: Vec<GuestCompare>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// The points of a guest that are not the same in both repositories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestCompare {
    /// The guest.
    pub domain: DomainName,
    /// Points that only this repository has.
    pub only_here: Vec<PointId>,
    /// Points that only the other one has.
    pub only_there: Vec<PointId>,
    /// Points that hold something else in the other one.
    pub different: Vec<PointCompare>,
    /// Points that can't be restored whole from this one.
    pub damaged_here: Vec<PointCompare>,
    /// Points that can't be restored whole from the other one.
    pub damaged_there: Vec<PointCompare>,
}

/// What is the matter with a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointCompare {
    /// The point.
    pub point: PointId,
    /// What.
    pub what: String,
}

/// What was mended from another repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepairReport {
    /// The repository.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub repository: PathBuf,
    /// The one that it was mended from.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub from: PathBuf,
    /// Nothing was done: this is what would be tried.
    pub dry_run: bool,
    /// The guests of which something was damaged.
    pub guests: Vec<GuestRepair>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What was mended of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestRepair {
    /// The guest.
    pub domain: DomainName,
    /// What is whole again, the oldest point first.
    pub mended: Vec<Mended>,
    /// Points that could not be mended, and why.
    pub failed: Vec<FailedPoint>,
    /// Points of the other repository that are not removed and later than the newest one here: all of a guest that
    /// is lost here as a whole. A copy brings them.
    pub only_there: Vec<PointId>,
    /// What was replaced is still there: points are being read, and the next merge, prune or repair removes
    /// it.
    pub waiting: bool,
    /// Why nothing more of the guest was mended, if that is so.
    pub error: Option<Failure>,
}

impl GuestRepair {
    /// Of a guest of which nothing was found yet.
    pub(crate) fn new(domain: DomainName) -> Self {
        Self {
            domain,
            mended: Vec::new(),
            failed: Vec::new(),
            only_there: Vec::new(),
            waiting: false,
            error: None,
        }
    }
}

/// Something that is whole again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mended {
    /// The point.
    pub point: PointId,
    /// What was wrong.
    pub what: Part,
    /// The disk whose archive it is; none of what is not of one disk.
    pub disk: Option<DiskName>,
    /// The file that is whole now.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
}

/// A part of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Its manifest.
    Manifest,
    /// The archive of a disk.
    Archive,
    /// A file of the machine.
    MachineFile,
}
