//! What backups did: of an image, of a guest, of many guests.

use std::path::PathBuf;

use jiff::Timestamp;
use qdelta_formats::archive::{Consistency, Digest, Kind, Tracker};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::base::error::ErrorKind;
use crate::base::json::text;
use crate::base::warning::{Code, Warning};
use crate::disk::io::Backend;
use crate::vault::repository::{LeftOut, PointId, Refusal};

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    /// The new recovery point.
    pub point: PointId,
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// `full`, `incremental` or `differential`.
    #[serde(with = "text")]
    pub kind: Kind,
    /// The point that it was made against; none for a full.
    pub parent: Option<PointId>,
    /// How the changed blocks were found.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// Why by this tracker, in one line.
    pub why: String,
    /// Which trackers could not be used, and why.
    pub refused: Vec<Refusal>,
    /// In what state the guest was.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes.
    pub block_size: u32,
    /// Bytes read from the image's data.
    pub bytes_read: u64,
    /// Bytes of these that were read only to check that they have not changed.
    pub bytes_sampled: u64,
    /// Bytes of the disk that differ from the parent (for a full: that are not zero).
    pub bytes_changed: u64,
    /// Length of the archive, in bytes.
    pub bytes_written: u64,
    /// Digest of what the guest sees.
    #[serde(with = "text")]
    pub root: Digest,
    /// The archive.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub archive: PathBuf,
    /// The name of what was left behind for the next backup to compare with.
    pub anchor: Option<String>,
    /// How the image was read: `uring` or `threads`.
    pub io: Backend,
    /// The chain before is damaged, so that this full had to begin a new one: `warnings` says what
    /// is wrong with it.
    pub broken_chain: bool,
    /// The internal snapshots of the image that became points of their own before this one.
    pub snapshots: Vec<StoredSnapshot>,
    /// What the admin should know, though the backup is sound.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// An internal snapshot that has become a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// The point.
    pub point: PointId,
    /// Its id in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken.
    #[serde(with = "text")]
    pub taken: Timestamp,
    /// `full` or `incremental`.
    #[serde(with = "text")]
    pub kind: Kind,
    /// The point that it was made against; none for a full.
    pub parent: Option<PointId>,
    /// Bytes read from the image's data.
    pub bytes_read: u64,
    /// Bytes of the disk that differ from the parent (for a full: that are not zero).
    pub bytes_changed: u64,
    /// Length of the archive, in bytes.
    pub bytes_written: u64,
}

/// What the backup of a guest did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// The domain's name, as libvirt has it.
    pub domain: String,
    /// The new recovery point.
    pub point: PointId,
    /// In what state the guest was: `offline`, `filesystem-quiesced`, `crash-consistent` or `unknown`.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Why its filesystems were not frozen although they should have been (`quiesced-or-crash`); none if it was as
    /// asked for.
    pub fell_back: Option<String>,
    /// How long its filesystems can have been frozen, in milliseconds; none if they were not.
    pub freeze_ms: Option<u64>,
    /// How many filesystems were frozen; none if none were.
    pub frozen_filesystems: Option<u32>,
    /// Whether the point has its memory, and resumes where it stood.
    pub resumes: bool,
    /// Its disks; its memory is the last of them, if the point has it.
    pub disks: Vec<BackupReport>,
    /// The disks that are not in the point, and why.
    pub left_out: Vec<LeftOut>,
    /// How many files of the machine are in the point: XML, firmware variables and the like.
    pub machine_files: usize,
    /// What of the machine could not be taken, and why.
    pub missing: Vec<String>,
    /// What the admin should know, though the backup is sound; what is about one disk stands there.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What became of several guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestsReport {
    /// What became of all: the gravest of all outcomes.
    pub outcome: Outcome,
    /// Each guest whose turn came, in that order.
    pub domains: Vec<GuestOutcome>,
    /// The guests that were left out, as asked for.
    pub excluded: Vec<String>,
}

/// What became of one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestOutcome {
    /// The domain's name, as libvirt has it.
    pub domain: String,
    /// What became of it, in a word.
    pub outcome: Outcome,
    /// Why it was not backed up; none if it was.
    pub error: Option<Failure>,
    /// The backup; none if there is none.
    pub result: Option<GuestReport>,
}

/// How a backup of guests ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The points are made.
    Done,
    /// The points are made, and what a snapshot command made for them may still be there.
    NotReleased,
    /// The points are made, and a disk's chain before is damaged: a full had to begin a new one.
    BrokenChain,
    /// The guest was not backed up.
    Failed,
    /// Some of several guests, or all of them, were not backed up.
    SomeFailed,
    /// Somebody asked to stop: what is left was not begun.
    Interrupted,
    /// A guest may still be frozen.
    Alarm,
}

impl GuestOutcome {
    /// The backup of a guest that was made.
    pub fn made(report: GuestReport) -> Self {
        let outcome = if report.disks.iter().any(|disk| disk.broken_chain) {
            Outcome::BrokenChain
        } else if report.warnings.iter().any(|warning| warning.code == Code::NotReleased) {
            Outcome::NotReleased
        } else {
            Outcome::Done
        };
        Self { domain: report.domain.clone(), outcome, error: None, result: Some(report) }
    }

    /// A guest that was not backed up.
    pub fn failed(domain: &str, failure: Failure) -> Self {
        let outcome = match failure.kind {
            ErrorKind::Alarm => Outcome::Alarm,
            ErrorKind::Interrupted => Outcome::Interrupted,
            _ => Outcome::Failed,
        };
        Self { domain: domain.to_owned(), outcome, error: Some(failure), result: None }
    }
}

impl GuestsReport {
    /// What became of all these guests.
    pub fn new(domains: Vec<GuestOutcome>, excluded: Vec<String>) -> Self {
        Self { outcome: Outcome::of_all(&domains), domains, excluded }
    }

    /// How many guests were backed up.
    pub fn made(&self) -> usize {
        self.domains.iter().filter(|guest| guest.result.is_some()).count()
    }
}

impl Outcome {
    /// The outcome of all: the only guest's own; an alarm if there is one; or the gravest of the rest.
    fn of_all(guests: &[GuestOutcome]) -> Self {
        let has = |outcome| guests.iter().any(|guest| guest.outcome == outcome);
        match guests {
            [only] => only.outcome,
            _ if has(Self::Alarm) => Self::Alarm,
            _ if has(Self::Interrupted) => Self::Interrupted,
            _ if has(Self::Failed) => Self::SomeFailed,
            _ if has(Self::BrokenChain) => Self::BrokenChain,
            _ if has(Self::NotReleased) => Self::NotReleased,
            _ => Self::Done,
        }
    }
}
