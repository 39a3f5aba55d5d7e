//! What there is to know of anchors.

use std::path::PathBuf;

use qdelta_formats::archive::Tracker;
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::{Code, Warning};

/// The anchors of some disks, and those that were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorsReport {
    /// The anchors that there are.
    pub anchors: Vec<AnchorReport>,
    /// The anchors that were removed.
    pub removed: Vec<AnchorReport>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
}

impl AnchorsReport {
    /// Whether the whole repository could be read.
    pub fn is_whole(&self) -> bool {
        self.warnings.iter().all(|warning| warning.code != Code::Unreadable)
    }
}

/// An anchor of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Its name.
    pub name: String,
    /// The tracker that uses it.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// What the next backup can do with it.
    pub state: AnchorState,
    /// Where it is: the image that it is in, or the folder of its clones.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub place: PathBuf,
    /// Bytes that nothing else keeps and that removing it would give back, for clones. Left out of
    /// others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_held: Option<u64>,
}

/// What the next backup can do with an anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorState {
    /// It belongs to the latest point: the next backup compares with it.
    Current,
    /// An interrupted backup has left it, or the image was in use when it should have gone. The
    /// next backup that leaves an anchor removes it.
    LeftOver,
    /// It belongs to the latest point, and is not there any more: the next backup can't use it.
    Missing,
}

impl AnchorState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::LeftOver => "left-over",
            Self::Missing => "missing",
        }
    }
}
