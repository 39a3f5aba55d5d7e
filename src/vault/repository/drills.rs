//! What drills of a guest have shown, as this host remembers it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::history::History;
use super::names::{DiskId, DiskName, DomainName};
use super::point::PointId;
use super::{Catalog, Point, Repository};
use crate::base::json::text;
use crate::formats::archive::Digest;

/// So many drills of a guest are remembered.
const DRILLS_MAX: usize = 100;

/// A step of a drill's ladder. Each needs those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Every byte of the point is what was written.
    Bytes,
    /// The partition tables hold together.
    Partitions,
    /// The superblocks of the filesystems are sound.
    Filesystems,
    /// The system's own tools find nothing wrong with the filesystems.
    Check,
    /// The guest starts.
    Boot,
    /// Its agent answers.
    Agent,
    /// The admin's check within the guest passes.
    Service,
}

impl Rung {
    /// All of them, from the lowest on.
    pub const ALL: [Self; 7] = [
        Self::Bytes,
        Self::Partitions,
        Self::Filesystems,
        Self::Check,
        Self::Boot,
        Self::Agent,
        Self::Service,
    ];

    /// Its name in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Partitions => "partitions",
            Self::Filesystems => "filesystems",
            Self::Check => "check",
            Self::Boot => "boot",
            Self::Agent => "agent",
            Self::Service => "service",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What became of a rung, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Climb {
    /// It was proved.
    Passed,
    /// It could not be tried: nothing is known of it.
    NotTried,
    /// It was tried, and is not so.
    Failed,
}

impl fmt::Display for Climb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::NotTried => "not tried",
            Self::Failed => "failed",
        })
    }
}

/// What became of a rung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The rung.
    pub rung: Rung,
    /// What became of it.
    pub result: Climb,
    /// What was seen, or why it failed or was not tried.
    pub text: String,
    /// How long it took.
    pub seconds: f64,
    /// What became of each disk or volume, where it is about several.
    pub parts: Vec<Part>,
}

/// What became of a rung at a disk or a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// `vda`, or `vda/p1`.
    pub name: String,
    /// What became of it.
    pub result: Climb,
    /// What was seen.
    pub text: String,
}

/// A drill of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    /// When it began.
    #[serde(with = "text")]
    pub began: Timestamp,
    /// The point.
    pub point: PointId,
    /// The root of each disk at the point: with the point it says what was proved.
    pub roots: BTreeMap<DiskName, Root>,
    /// Every rung, from the lowest on.
    pub steps: Vec<Step>,
    /// The highest rung that passed; none if not even the lowest did.
    pub reached: Option<Rung>,
    /// How far it was to climb.
    pub wanted: Rung,
    /// What became of it: passed if the wanted rung did, nothing failed and no target was missed.
    pub result: Climb,
    /// How old the point was when the drill began, in seconds.
    pub age: f64,
    /// The time between the point and the one before it, in seconds; none if there is none before it.
    pub gap: Option<f64>,
    /// How long it took from the command's start until the agent answered, in seconds; none if it did not.
    pub recovery: Option<f64>,
    /// The targets that were missed, in words.
    pub missed: Vec<String>,
    /// A picture of the guest's screen.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub screenshot: Option<PathBuf>,
    /// The end of what the guest wrote to its console.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub console: Option<PathBuf>,
    /// How long it took.
    pub seconds: f64,
}

/// The root of a disk, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Root(#[serde(with = "text")] pub Digest);

/// What the last drill of a point says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// When the drill began.
    #[serde(with = "text")]
    pub began: Timestamp,
    /// What became of it.
    pub result: Climb,
    /// The highest rung that passed.
    pub reached: Option<Rung>,
}

impl History {
    /// Remembers a drill. The oldest make room.
    pub fn note_drill(&mut self, drill: Drill) {
        self.drills.push(drill);
        let surplus = self.drills.len().saturating_sub(DRILLS_MAX);
        self.drills.drain(..surplus);
    }

    /// The drills that are remembered, the oldest first.
    pub fn drills(&self) -> &[Drill] {
        &self.drills
    }
}

impl Repository {
    /// The drills of a guest that this host remembers, the oldest first.
    pub fn drills(&self, domain: &DomainName) -> Vec<Drill> {
        self.history(domain).drills
    }
}

impl Catalog {
    /// What the last drill of each point of a disk says, as long as the point holds what it held then.
    pub fn drilled(&self, disk: &DiskId, points: &[Point]) -> BTreeMap<PointId, Drilled> {
        let mut drilled = BTreeMap::new();
        for drill in self.repository().drills(&disk.domain) {
            let Some(root) = drill.roots.get(&disk.disk) else { continue };
            let index = points.binary_search_by_key(&drill.point, |point| point.id).ok();
            let point = index.and_then(|index| points.get(index));
            if point.is_some_and(|point| point.record.root == root.0) {
                let Drill { began, result, reached, .. } = drill;
                drilled.insert(drill.point, Drilled { began, result, reached });
            }
        }
        drilled
    }
}
