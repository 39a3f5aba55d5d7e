//! Which points the rules of retention keep, and why.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use qdelta_formats::archive::Consistency;
use serde::{Deserialize, Serialize};

use super::{Failure, Reclaimed};
use crate::base::json::text;
use crate::base::warning::Warning;
use crate::vault::repository::{DiskName, DomainName, Keep, PointId};

/// What the rules say of the points of some guests, and what was done about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// The repository's folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub repository: PathBuf,
    /// Nothing was done: it was only shown.
    pub dry_run: bool,
    /// The zone whose hours, days, weeks, months and years were counted.
    pub time_zone: String,
    /// The rules; those that are not set are `null`.
    pub keep: Keep,
    /// Bytes that can be written to the repository's filesystem afterwards (in a dry run: now), if that is
    /// known.
    pub bytes_free: Option<u64>,
    /// The guests.
    pub guests: Vec<GuestPrune>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// A guest's points and what the rules say of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestPrune {
    /// The guest.
    pub domain: DomainName,
    /// The clock stands far after the points before, and nobody said that it can be trusted: nothing of
    /// the guest is removed.
    pub clock_in_doubt: bool,
    /// How many of its points stay.
    pub kept: usize,
    /// How many are removed now, or would be.
    pub removed: usize,
    /// How many were removed before, and are still there.
    pub removed_before: usize,
    /// Every point, the oldest first.
    pub points: Vec<Verdict>,
    /// What became of the data of points whose grace is over, or would.
    pub data: Reclaimed,
    /// Why not everything was done, if that is so.
    pub error: Option<Failure>,
}

/// What the rules say of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The point, of all disks of the guest.
    pub point: PointId,
    /// When it was made, as far as its manifest can be read.
    #[serde(with = "text::optional")]
    pub created: Option<Timestamp>,
    /// In what state the guest was.
    #[serde(with = "text::optional")]
    pub consistency: Option<Consistency>,
    /// It is a safety point.
    pub safety: bool,
    /// Something that it needs is missing or has another length.
    pub damaged: bool,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// What becomes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It stays.
    Keep,
    /// It is removed.
    Remove,
    /// It was removed before, and its data is still there.
    Removed,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Remove => "remove",
            Self::Removed => "removed",
        })
    }
}

/// A rule that keeps a point of each of some periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// Of each hour.
    Hourly,
    /// Of each day.
    Daily,
    /// Of each week.
    Weekly,
    /// Of each month.
    Monthly,
    /// Of each year.
    Yearly,
}

impl Every {
    /// All of them, the finest first.
    pub const ALL: [Self; 5] =
        [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// Why a point stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Reason {
    /// It is the newest point of a disk: the next backup is made against it.
    Newest {
        /// The disk.
        disk: DiskName,
    },
    /// It is pinned.
    Pinned {
        /// What the pin says, or whose it is.
        reason: Option<String>,
        /// When the pin ends; none if it does not.
        #[serde(with = "text::optional")]
        until: Option<Timestamp>,
    },
    /// It is a safety point.
    Safety {
        /// When the rule for safety points lets go of it.
        #[serde(with = "text")]
        until: Timestamp,
    },
    /// It lies ahead of the clock.
    Future,
    /// The clock stood before an earlier point when it was made: its time is not known.
    ClockBehind,
    /// The clock is far after the points before, and may be wrong.
    ClockInDoubt,
    /// Its manifest can't be read.
    Unreadable,
    /// It is one of the newest.
    Last,
    /// It is the best of a period: the newest, unless that is worse.
    Period {
        /// The rule.
        rule: Every,
        /// The period: `2026-11-22T15+01:00`, `2026-11-22`, `2026-W47`, `2026-11` or `2026`.
        period: String,
        /// The newest of the period, if that one is worse: damaged, of a consistency that is unknown, or
        /// crash-consistent.
        instead_of: Option<PointId>,
    },
    /// It is the oldest, and the rule has found fewer periods than it keeps.
    Oldest {
        /// The rule.
        rule: Every,
    },
    /// It is not older than `--keep-within` says.
    Within,
    /// No rule keeps it.
    NoRule,
    /// It is a safety point whose time is over.
    SafetyOver,
    /// It was removed before.
    Removed {
        /// When.
        #[serde(with = "text")]
        at: Timestamp,
        /// Until when its data stays for certain.
        #[serde(with = "text")]
        until: Timestamp,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest { disk } => write!(f, "newest of {disk}"),
            Self::Pinned { reason: Some(reason), .. } => write!(f, "pinned ({reason})"),
            Self::Pinned { .. } => f.write_str("pinned"),
            Self::Safety { .. } => f.write_str("safety point"),
            Self::Future => f.write_str("ahead of the clock"),
            Self::ClockBehind => f.write_str("made with a wrong clock"),
            Self::ClockInDoubt => f.write_str("the clock may be wrong"),
            Self::Unreadable => f.write_str("its manifest is damaged"),
            Self::Last => f.write_str("last"),
            Self::Period { rule, instead_of: None, .. } => rule.fmt(f),
            Self::Period { rule, .. } => write!(f, "{rule} (a newer one is worse)"),
            Self::Oldest { rule } => write!(f, "oldest ({rule})"),
            Self::Within => f.write_str("within"),
            Self::NoRule => f.write_str("no rule keeps it"),
            Self::SafetyOver => f.write_str("safety point, its time is over"),
            Self::Removed { .. } => f.write_str("removed before"),
        }
    }
}

impl GuestPrune {
    /// What the rules say of a guest's points.
    pub fn new(domain: DomainName, clock_in_doubt: bool, points: Vec<Verdict>) -> Self {
        let count = |fate| points.iter().filter(|verdict| verdict.fate == fate).count();
        Self {
            domain,
            clock_in_doubt,
            kept: count(Fate::Keep),
            removed: count(Fate::Remove),
            removed_before: count(Fate::Removed),
            points,
            data: Reclaimed::default(),
            error: None,
        }
    }
}
