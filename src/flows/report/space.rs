//! What the points of guests take, and how long the rest of the room will last.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::base::json::text;
use crate::vault::repository::PointId;

/// What the points of guests take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpaceReport {
    /// The repository's folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub repository: PathBuf,
    /// Bytes that can still be written there; none if the filesystem does not know.
    pub bytes_free: Option<u64>,
    /// What the archives of these guests take, in bytes.
    pub bytes_stored: u64,
    /// How fast these guests fill the repository; none if they are known for too few days to tell.
    pub growth: Option<Growth>,
    /// The guests, by name.
    pub guests: Vec<GuestSpace>,
}

/// How fast a repository fills: what came less what went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// By how many bytes a day the most that was stored has grown.
    pub bytes_per_day: u64,
    /// Over how many days that is.
    pub days: f64,
    /// When no byte is free any more at this rate; none if that is not known, or in a hundred years.
    #[serde(with = "text::optional")]
    pub full_at: Option<Timestamp>,
    /// Whether that is within 14 days; said a week ago or less, whether it is within 21.
    pub soon: bool,
}

/// What the points of a guest take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestSpace {
    /// The guest.
    pub domain: String,
    /// Its points that are not removed.
    pub points: usize,
    /// Its points that are removed, and whose data is still there.
    pub removed: usize,
    /// Bytes of all its archives.
    pub bytes_stored: u64,
    /// Bytes of the fulls among them.
    pub bytes_full: u64,
    /// Bytes of the archives of removed points.
    pub bytes_removed: u64,
    /// By how many bytes a day it grows; none if it is known for too few days to tell.
    pub bytes_per_day: Option<u64>,
    /// Each of its points, where one guest was asked for; the oldest first.
    pub each: Vec<PointSpace>,
    /// Why nothing can be said of what removing points would free, if nothing can.
    pub error: Option<Failure>,
}

/// What a point takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointSpace {
    /// The point.
    pub point: PointId,
    /// Whether it is removed.
    pub removed: bool,
    /// Bytes of its archives.
    pub bytes_stored: u64,
    /// By how many bytes the repository would become smaller if this point alone went; none if several
    /// points build on it, so that it would stay, or if its archives can't be read.
    pub bytes_freed: Option<u64>,
}
