//! What is done by itself on this host: what the file of jobs means, and what became of each run.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DrillReport, Event, Failure, GuestCopy, GuestPrune, GuestReport, Level, VerifyReport};
use crate::base::json::text;
use crate::base::warning::Warning;
use crate::flows::report::BackupReport;

/// What a host's file of jobs means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub config: PathBuf,
    /// The zone of all schedules.
    pub time_zone: String,
    /// The jobs, by name.
    pub jobs: Vec<JobPlan>,
    /// Every guest that libvirt has, by name, and the images.
    pub guests: Vec<GuestFate>,
    /// Who is told of what, by name.
    pub notifiers: Vec<NotifierPlan>,
    /// What makes no sense, or can't be done as it is now.
    pub problems: Vec<Failure>,
}

/// What a job means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobPlan {
    /// Its name.
    pub job: String,
    /// The name of its repository.
    pub repository: String,
    /// Its guests and images, as they are called in messages.
    pub subjects: Vec<String>,
    /// What it does, in this order.
    pub acts: Vec<ActPlan>,
    /// How old the newest good point of a guest may be.
    #[serde(with = "text::optional")]
    pub rpo: Option<crate::base::duration::Stretch>,
    /// How long it may take until a guest is back.
    #[serde(with = "text::optional")]
    pub rto: Option<crate::base::duration::Stretch>,
}

/// When a part of a job is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActPlan {
    /// The part.
    pub act: Act,
    /// When, in calendar words; empty if it follows the backup, or (the backup) is done only when the job
    /// is named.
    pub schedule: Vec<String>,
    /// The next time; none without a schedule.
    #[serde(with = "text::optional")]
    pub next: Option<Timestamp>,
}

/// Who is told of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotifierPlan {
    /// Its name in the file.
    pub notifier: String,
    /// Whom it tells, without what may be secret.
    pub to: String,
    /// What it is told of.
    pub on: Vec<Event>,
    /// Only what is at least so grave; none for everything.
    pub level: Option<Level>,
    /// Only of these jobs; empty for all.
    pub jobs: Vec<String>,
    /// When it is told of all of it, in calendar words; none if it is not.
    pub digest: Option<String>,
    /// The next time of that.
    #[serde(with = "text::optional")]
    pub next: Option<Timestamp>,
}

/// What becomes of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFate {
    /// The guest, or the path of an image.
    pub guest: String,
    /// Its UUID, where libvirt has one.
    pub uuid: Option<String>,
    /// The jobs that back it up.
    pub jobs: Vec<String>,
    /// Whether the file says that no job need cover it.
    pub ignored: bool,
}

/// A part of a job, or of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// The run itself.
    Run,
    /// A backup.
    Backup,
    /// A second copy of points.
    Copy,
    /// Proof of points.
    Verify,
    /// Removal of points.
    Prune,
    /// Drills.
    Drill,
    /// A hook.
    Hook,
    /// Telling somebody.
    Notify,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Run => "run",
            Self::Backup => "backup",
            Self::Copy => "copy",
            Self::Verify => "verify",
            Self::Prune => "prune",
            Self::Drill => "drill",
            Self::Hook => "hook",
            Self::Notify => "notify",
        })
    }
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It has begun; nothing is known of its end.
    Begun,
    /// A schedule was seen for the first time: its times count from here on.
    Seen,
    /// It was done.
    Done,
    /// It was done, and somebody should look at its warnings.
    Warned,
    /// It failed.
    Failed,
    /// It was not tried, because something that it needs had failed.
    NotTried,
    /// Somebody asked to stop; it is due again.
    Interrupted,
    /// It ended without a word: the program was killed, or the power was cut. It is due again.
    Cut,
    /// Another run was at work.
    Refused,
    /// The guest is no more in libvirt.
    Gone,
}

impl End {
    /// Whether the work was done.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Done | Self::Warned)
    }

    /// Whether it tells of trouble.
    pub fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::Failed
                | Self::NotTried
                | Self::Interrupted
                | Self::Cut
                | Self::Refused
                | Self::Gone
        )
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Begun => "begun",
            Self::Seen => "seen",
            Self::Done => "done",
            Self::Warned => "warned",
            Self::Failed => "failed",
            Self::NotTried => "not tried",
            Self::Interrupted => "interrupted",
            Self::Cut => "cut",
            Self::Refused => "refused",
            Self::Gone => "gone",
        })
    }
}

/// Something that was done by itself, as the history has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The run that it is part of: the time at which that began.
    #[serde(with = "text")]
    pub run: Timestamp,
    /// The job; none if it is about the run.
    pub job: Option<String>,
    /// What was done.
    pub act: Act,
    /// The guest, the image or the hook; none if it is about the whole act.
    pub subject: Option<String>,
    /// When it began.
    #[serde(with = "text")]
    pub began: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub end: End,
    /// What became of it, in a line.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// What the act gave back; none if it gave nothing, or if that was too long for the history.
    pub result: Option<ActResult>,
}

impl Record {
    /// Whether work was not done that should have been. A drill that could not go so far as it should has failed at
    /// nothing.
    pub fn is_failure(&self) -> bool {
        match self.end {
            End::NotTried => self.act != Act::Drill,
            end => matches!(end, End::Failed | End::Interrupted),
        }
    }
}

/// What an act gave back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActResult {
    /// The backup of a guest.
    Guest(Box<GuestReport>),
    /// The backup of an image.
    Image(Box<BackupReport>),
    /// What was copied of a guest.
    Copy(Box<GuestCopy>),
    /// A verification, without what it says of single points and archives.
    Verify(Box<VerifyReport>),
    /// What was pruned: the guests of which something went or could not go, without their points.
    Prune(Vec<GuestPrune>),
    /// The drill of a guest.
    Drill(Box<DrillReport>),
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// When it began: the name of the run in the history.
    #[serde(with = "text")]
    pub run: Timestamp,
    /// How it ended.
    pub end: End,
    /// Whether a guest may still be frozen.
    pub alarm: bool,
    /// What was done, in the order in which it ended.
    pub records: Vec<Record>,
    /// The next time at which something is due; none if no job has a schedule.
    #[serde(with = "text::optional")]
    pub next: Option<Timestamp>,
    /// How long it took.
    pub seconds: f64,
}

/// What was done by itself on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunHistory {
    /// The records, the oldest first.
    pub records: Vec<Record>,
    /// Lines of the history that can't be read: a power cut may have torn the last one.
    pub torn: usize,
}
