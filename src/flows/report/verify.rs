//! What a verification found.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::Warning;
use crate::vault::repository::PointId;

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Recovery points that were looked at.
    pub points: u64,
    /// Archives that were read.
    pub archives: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Files of machines that were read: domain XML, firmware variables and the like.
    pub machine_files: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of blocks that were proved (or, if quick, whose checksums were).
    pub bytes_verified: u64,
    /// Whether checksums alone were looked at.
    pub quick: bool,
    /// Whether everything that was looked at is proved: by digests and roots, and nothing was found.
    pub proved: bool,
    /// What is left to prove, if this was a scrub.
    pub scrub: Option<ScrubReport>,
    /// Everything that is not as it was written. Empty if all is well.
    pub findings: Vec<Finding>,
    /// Disk by disk: which points can be restored, and which archives are sound.
    pub disks: Vec<DiskVerdict>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What a scrub left for the next one: archives that are due, and that its budget did not reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// How many archives.
    pub archives_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// How many of them were never proved on this host.
    pub never_proved: u64,
    /// When the one of the others was proved that was proved longest ago.
    #[serde(with = "text::optional")]
    pub oldest_proof: Option<Timestamp>,
}

/// How a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileState {
    /// It is what was written.
    Sound,
    /// It is there, and not what was written.
    Damaged,
    /// It is not there.
    Missing,
    /// No manifest names it, or nobody of the repository has given its name. It may well be sound.
    Stray,
    /// The system can't read it, or can't list it.
    Unreadable,
}

/// What a verification says of a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskVerdict {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Its points that were looked at, oldest first.
    pub points: Vec<PointVerdict>,
    /// The archives that these need.
    pub archives: Vec<ArchiveVerdict>,
}

/// What a verification says of a point of a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointVerdict {
    /// The point.
    pub point: PointId,
    /// Whether the disk can be restored whole to it.
    pub restorable: bool,
    /// The files because of which it can't.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub because: Vec<PathBuf>,
}

/// What a verification says of an archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchiveVerdict {
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// How it was found.
    pub state: FileState,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The file or folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// What the file is called in an encrypted repository, where its path says nothing; none in others, and
    /// if its name can't be told.
    pub name: Option<String>,
    /// How it was found.
    pub state: FileState,
    /// The recovery points that can't be restored whole because of it.
    pub points: Vec<PointId>,
    /// What is wrong, and where.
    pub problem: String,
}
