//! How everything stands and how it came to that: what the page of `qdelta report` is drawn from.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StatusReport;
use crate::base::json::text;
use crate::vault::repository::{Drill, PointId};

/// How everything stands, and how it came to that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetReport {
    /// This host.
    pub host: String,
    /// When the first thing of its history was done; none if it has none.
    #[serde(with = "text::optional")]
    pub since: Option<Timestamp>,
    /// The zone of the days.
    pub time_zone: String,
    /// Whether everything is all right now.
    pub status: StatusReport,
    /// The days that are looked at, the oldest first; the last one is today, and none is before the history.
    pub days: Vec<Day>,
    /// The guests and images of jobs, by name.
    pub guests: Vec<FleetGuest>,
    /// The repositories, by name.
    pub repositories: Vec<FleetRepository>,
    /// What would be lost if a site was.
    pub sites: Vec<SiteLoss>,
}

/// What was done on a day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// The day, as `2026-11-24`.
    pub day: String,
    /// Backups of guests that were made.
    pub made: usize,
    /// Those of them that have warnings.
    pub warned: usize,
    /// Backups of guests that were not made.
    pub failed: usize,
    /// Other pieces of work that came to no good end: proofs, pruning, drills, hooks.
    pub others_failed: usize,
}

/// How a guest came to where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetGuest {
    /// The guest, or the path of an image.
    pub guest: String,
    /// The name of its repository.
    pub repository: String,
    /// A letter for each day: `d` its backup was made, `w` with warnings, `f` it failed, `-` nothing was
    /// tried.
    pub days: String,
    /// The longest time between two points of these days, until now, in seconds; none without a point.
    pub gap: Option<f64>,
    /// Its latest points, the oldest first.
    pub points: Vec<FleetPoint>,
    /// How many older points are not among them.
    pub older: usize,
    /// How often it was frozen in these days.
    pub freezes: usize,
    /// How long it was frozen at most, in milliseconds; none if it was not.
    pub frozen_ms_max: Option<u64>,
    /// Its last drill.
    pub drill: Option<Drill>,
}

/// A point of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetPoint {
    /// The point.
    pub point: PointId,
    /// Whether it needs no other: all its disks are fulls.
    pub full: bool,
    /// Whether it can be restored whole, as far as is known.
    pub good: bool,
    /// Whether it was proved on this host.
    pub proved: bool,
    /// What its archives take, in bytes.
    pub bytes: u64,
}

/// How a repository came to where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetRepository {
    /// Its name in the file of jobs.
    pub repository: String,
    /// Whether it lies on a disk of this host; none if that is not known.
    pub on_this_host: Option<bool>,
    /// For each day, what all archives took at the most, in bytes, as far as that is known.
    pub bytes: Vec<u64>,
    /// When it is full at the rate of the last weeks; none if that is not known.
    #[serde(with = "text::optional")]
    pub full_at: Option<Timestamp>,
}

/// What would be lost if a site was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteLoss {
    /// This host, or the name of a repository.
    pub site: String,
    /// Whether it is this host.
    pub host: bool,
    /// The repositories that would be lost with it.
    pub repositories: Vec<String>,
    /// The guests of which no good point would be left anywhere.
    pub nothing_left: Vec<String>,
    /// The guests that would have a good point elsewhere, and what they would lose.
    pub left: Vec<Left>,
}

/// What would be left of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// The guest.
    pub guest: String,
    /// Where.
    pub repository: String,
    /// How old the newest good point is there, in seconds; with several disks, that of the disk that is oldest.
    pub age: f64,
    /// Disks that jobs take, and that no point which is left has.
    pub without: Vec<String>,
}
