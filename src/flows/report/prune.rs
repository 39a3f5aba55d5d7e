//! What became of the data of points that are gone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, MergeReport};
use crate::base::json::text;
use crate::vault::repository::PointId;

/// What became of the data of a guest's points whose grace is over, or would.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Points that went without anything being written, because nothing builds on them; ascending.
    pub dropped: Vec<PointId>,
    /// What was merged.
    pub merges: Vec<MergeReport>,
    /// The points that could go and stay for now, and why.
    pub spared: Vec<Spared>,
    /// Bytes that merges read.
    pub bytes_read: u64,
    /// Bytes that merges wrote.
    pub bytes_written: u64,
    /// How many bytes the repository becomes smaller by: at once, or when what was replaced is gone.
    pub bytes_freed: u64,
    /// The most room that one of the merges needs while it writes, in bytes.
    pub room_needed: u64,
    /// Files of the guest's machine that went, because no point names them any more.
    pub machine_files: u64,
    /// Anchors that went, because only points that are gone name the images that they are in.
    pub anchors: u64,
    /// Whether what was replaced is still there: points of the guest are being read, and the next run
    /// removes it.
    pub waiting: bool,
}

/// Points that could go and stay for now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spared {
    /// The points, ascending.
    pub points: Vec<PointId>,
    /// Why.
    #[serde(flatten)]
    pub why: Spare,
}

/// Why points that could go stay for now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Spare {
    /// A merge would free too little of what it writes.
    Share {
        /// Bytes that it would write.
        bytes_written: u64,
        /// Bytes that it would free.
        bytes_freed: u64,
    },
    /// Several points build on them.
    NeededBy {
        /// Those points.
        by: Vec<PointId>,
    },
    /// A merge has no room.
    Room {
        /// Bytes that it needs.
        bytes_needed: u64,
        /// Bytes that are free.
        bytes_free: u64,
    },
    /// As much as was asked for is free without them.
    Enough,
    /// The store refuses to let go of them before this time.
    Locked {
        /// The time.
        #[serde(with = "text")]
        until: Timestamp,
    },
    /// Something that would be merged is damaged: nothing of that chain is touched.
    Damaged {
        /// What is wrong.
        problem: Failure,
    },
}
