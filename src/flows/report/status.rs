//! Whether everything is all right.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Act, End};
use crate::base::duration::Stretch;
use crate::base::json::text;
use crate::vault::repository::{Climb, PointId};

/// Whether everything is all right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// When this was found.
    #[serde(with = "text")]
    pub at: Timestamp,
    /// The gravest of all findings.
    pub level: Level,
    /// Everything that somebody should do something about, the gravest first.
    pub findings: Vec<OpenFinding>,
    /// The guests and images of jobs, by name.
    pub guests: Vec<GuestStatus>,
    /// The jobs, by name.
    pub jobs: Vec<JobStatus>,
    /// The repositories, by name.
    pub repositories: Vec<RepositoryStatus>,
    /// Whether the timer that starts runs is on.
    pub timer: Timer,
}

/// How grave something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Everything is all right.
    #[default]
    Ok,
    /// Somebody should look at it on a working day.
    Warning,
    /// A guest could not be brought back as it should, or something is wrong that leads there.
    Critical,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        })
    }
}

/// What a finding is about. Scripts match it; the text is for people and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingCode {
    /// A guest may still be frozen.
    Frozen,
    /// A repository can't be opened.
    Repository,
    /// A guest has no good point.
    NoPoint,
    /// The newest good point of a guest is older than its RPO.
    Rpo,
    /// An act has failed, and did not succeed since.
    Failed,
    /// The newest point of a guest that this host has made or seen is not there any more.
    Lost,
    /// Another repository is behind a name than before.
    Replaced,
    /// A point is damaged.
    Damaged,
    /// Points were not proved for longer than a job allows.
    Unproved,
    /// The second copy of a guest has no point, or none that is new enough.
    Copy,
    /// A drill of a guest failed, missed its target, or could not go as far as a job asks.
    Drill,
    /// Less is free than is to stay free.
    Room,
    /// The room will be full soon.
    RoomSoon,
    /// A job is overdue: nobody has started it.
    Overdue,
    /// The timer that starts runs is off.
    Timer,
    /// A run ended without a word.
    Cut,
    /// A guest has points, is no more in libvirt, and no job means it.
    Gone,
    /// No job covers a guest.
    NotCovered,
    /// A disk is not in the points of its guest.
    LeftOut,
    /// The newest backup of a guest has warnings.
    Warned,
    /// The clock stands before something that was done.
    Clock,
    /// Something of libvirt's or of the history can't be read.
    Unreadable,
    /// Somebody who is to be told can't be reached.
    Notifier,
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Frozen => "frozen",
            Self::Repository => "repository",
            Self::NoPoint => "no-point",
            Self::Rpo => "rpo",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Replaced => "replaced",
            Self::Damaged => "damaged",
            Self::Unproved => "unproved",
            Self::Copy => "copy",
            Self::Drill => "drill",
            Self::Room => "room",
            Self::RoomSoon => "room-soon",
            Self::Overdue => "overdue",
            Self::Timer => "timer",
            Self::Cut => "cut",
            Self::Gone => "gone",
            Self::NotCovered => "not-covered",
            Self::LeftOut => "left-out",
            Self::Warned => "warned",
            Self::Clock => "clock",
            Self::Unreadable => "unreadable",
            Self::Notifier => "notifier",
        })
    }
}

/// Something that somebody should do something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFinding {
    /// How grave it is.
    pub level: Level,
    /// What it is about.
    pub code: FindingCode,
    /// The guest, the image, the job, the repository or the notifier.
    pub subject: String,
    /// The job that it belongs to; none if it belongs to no single one.
    pub job: Option<String>,
    /// The part of the job that failed or is overdue.
    pub act: Option<Act>,
    /// What is the matter, for people.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// Since when, where that is known.
    #[serde(with = "text::optional")]
    pub since: Option<Timestamp>,
}

/// How a guest stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The guest, or the path of an image.
    pub guest: String,
    /// The job with the strictest RPO that backs it up.
    pub job: String,
    /// The gravest of its findings.
    pub level: Level,
    /// Its points that are not removed; none if nobody can look.
    pub points: Option<usize>,
    /// The newest good point; none if there is none.
    pub newest: Option<PointId>,
    /// When the newest good point was made.
    #[serde(with = "text::optional")]
    pub newest_at: Option<Timestamp>,
    /// Until when the store refuses to remove anything that the newest good point needs; none if it does not.
    #[serde(with = "text::optional")]
    pub safe_until: Option<Timestamp>,
    /// When the oldest point was made.
    #[serde(with = "text::optional")]
    pub oldest_at: Option<Timestamp>,
    /// How long its filesystems can have been frozen for the newest good point, in milliseconds; none if
    /// they were not.
    pub frozen_ms: Option<u64>,
    /// How old the newest good point may be.
    #[serde(with = "text::optional")]
    pub rpo: Option<Stretch>,
    /// When a point was proved last on this host.
    #[serde(with = "text::optional")]
    pub proved_at: Option<Timestamp>,
    /// How many of the points were never proved on this host; none if nobody can look.
    pub never_proved: Option<usize>,
    /// When the last drill that passed began; none if none did.
    #[serde(with = "text::optional")]
    pub drilled_at: Option<Timestamp>,
    /// What the last drill came to, whether it passed or not.
    pub drilled: Option<Climb>,
    /// How long it took in the last drill until the guest was back, in seconds.
    pub recovery: Option<f64>,
    /// How long it may take.
    #[serde(with = "text::optional")]
    pub rto: Option<Stretch>,
    /// Its second copies.
    pub copies: Vec<CopyStatus>,
}

/// How a second copy of a guest stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The name of the repository that it is in.
    pub repository: String,
    /// The newest point there; none if there is none, or if it can't be opened.
    pub newest: Option<PointId>,
    /// When that was made.
    #[serde(with = "text::optional")]
    pub newest_at: Option<Timestamp>,
    /// Until when the store there refuses to remove anything that it needs; none if it does not.
    #[serde(with = "text::optional")]
    pub safe_until: Option<Timestamp>,
    /// How old it may be.
    #[serde(with = "text::optional")]
    pub rpo: Option<Stretch>,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: String,
    /// Its parts.
    pub acts: Vec<ActStatus>,
}

/// How a part of a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActStatus {
    /// The part.
    pub act: Act,
    /// When it was begun last.
    #[serde(with = "text::optional")]
    pub last: Option<Timestamp>,
    /// How that ended.
    pub end: Option<End>,
    /// When it was done last without a failure.
    #[serde(with = "text::optional")]
    pub success: Option<Timestamp>,
    /// The next time; none without a schedule.
    #[serde(with = "text::optional")]
    pub next: Option<Timestamp>,
}

/// How a repository stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name in the file of jobs.
    pub repository: String,
    /// Its folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub place: PathBuf,
    /// Bytes that can still be written there; none if that is not known.
    pub bytes_free: Option<u64>,
    /// So many bytes are to stay free.
    pub keep_free: Option<u64>,
    /// What the archives of all guests take, in bytes; none if that is not known.
    pub bytes_stored: Option<u64>,
    /// By how many bytes a day it grows; none if it is known for too few days to tell.
    pub bytes_per_day: Option<u64>,
    /// How many days the room lasts at the rate of the last weeks; none if that is not known.
    pub days_left: Option<f64>,
}

/// Whether the timer that starts runs is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// It is on.
    On,
    /// It is off, or there is none of that name.
    Off,
    /// There is no systemd to ask, or it did not answer.
    Unknown,
    /// The file of jobs says that another program starts runs.
    NotUsed,
}
