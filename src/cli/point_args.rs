//! What can be typed about points that stay, go, or become part of others.

use clap::Args;
use qdelta::base::period::Period;
use qdelta::flows::backup::LEVEL_DEFAULT;
use qdelta::vault::repository::{Count, Keep, Wanted};

use super::args::Engine;
use super::{examples, values};

/// Keep a recovery point whatever the rules say.
///
/// A pinned point stays until its last pin ends or is taken away, and counts for no rule of qdelta prune. A
/// point of a guest is pinned with all its disks.
#[derive(Debug, Args)]
#[command(after_help = examples::of("pin"), after_long_help = examples::long(Some("pin")))]
pub struct Pin {
    /// Which point of which guest; a guest need not be named if no other has a point of this id
    ///
    /// GUEST is a guest or a disk, POINT as qdelta restore --help has it.
    #[arg(value_name = "GUEST@POINT", value_parser = values::disk_at)]
    pub point: values::DiskAt,

    /// Why, for those who read the list of points
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Until the end of this day (or month, or year) of the repository's time zone, or until a time
    /// [default: for ever]
    #[arg(long, value_name = "DATE")]
    pub until: Option<String>,

    /// Whose pin it is: each holder has one of its own
    ///
    /// Without it, the pin is the admin's. Programs that need a point for a while pin it under their own name, and
    /// nobody else's pin is changed or taken away by them.
    #[arg(long, value_name = "NAME", value_parser = values::holder)]
    pub holder: Option<String>,
}

/// Take a pin of a recovery point away.
///
/// The point stays pinned while another holder has one: a guest may be running on it.
#[derive(Debug, Args)]
#[command(after_help = examples::of("unpin"), after_long_help = examples::long(Some("unpin")))]
pub struct Unpin {
    /// Which point of which guest; a guest need not be named if no other has a point of this id
    ///
    /// GUEST is a guest or a disk, POINT as qdelta restore --help has it.
    #[arg(value_name = "GUEST@POINT", value_parser = values::disk_at)]
    pub point: values::DiskAt,

    /// Whose pin is taken away [default: the admin's]
    #[arg(long, value_name = "NAME", value_parser = values::holder)]
    pub holder: Option<String>,
}

/// Show what the points of guests take, and when the room is full.
///
/// STORED is what a guest's archives take, FULLS the fulls among them, OF REMOVED the archives of its
/// removed points: qdelta prune gives that back when their grace is over. A DAY is what the guest's points of the
/// last 30 days took, without its very first one; the day on which the filesystem is full follows from the sum.
/// With guests, each of their points is listed with what the repository would shrink by if that point alone went: a
/// version of a block that a later point needs goes into that point and frees nothing.
#[derive(Debug, Args)]
#[command(after_help = examples::of("space"), after_long_help = examples::long(Some("space")))]
pub struct Space {
    /// Which guests, point by point [default: all guests, one line each]
    #[arg(value_name = "GUEST", value_parser = values::wanted)]
    pub guests: Vec<Wanted>,
}

/// Merge points into a later one, which stays; the others go.
///
/// The points from A up to before B become part of B: of each block B's archive gets the newest
/// version, and B and all later points stay what they are. Compressed blocks are copied as they
/// are. Before anything goes, the merged archives are proved by the roots of their points. A point
/// that another one builds on, besides those that are merged, can't go.
#[derive(Debug, Args)]
#[command(after_help = examples::of("merge"), after_long_help = examples::long(Some("merge")))]
pub struct Merge {
    /// Which points of which guest or disk: from A on, up to B, which stays
    ///
    /// DISK is DOMAIN/DISK, or a guest: by its name in the repository or in libvirt, or by its UUID. A
    /// point is a point of all its disks. A and B are said like POINT of qdelta restore.
    #[arg(value_name = "DISK@A..B", value_parser = values::points_of)]
    pub points: values::PointsOf,

    /// Say what would be read, written and freed, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Compression level of zstd for what must be packed anew
    #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub level: i32,

    /// How to work.
    #[command(flatten)]
    pub work: Engine,
}

/// Remove the points that no rule keeps.
///
/// Every rule sees every point of a guest, and a point stays if one of them keeps it: the newest of each of
/// the last so many hours, days, weeks, months or years that have a point. A point is of all disks of its
/// guest. Pinned points stay and count for no rule; so do safety points for their own time. What is
/// removed can be brought back with qdelta undelete until its grace is over. Then its data goes: at once
/// where nothing builds on it, or by a merge with the point that does, as soon as that frees a share of
/// what it writes (merge_share in qdelta.toml). Without rules on the command line, those of [keep] in
/// qdelta.toml hold.
#[derive(Debug, Args)]
#[command(after_help = examples::of("prune"), after_long_help = examples::long(Some("prune")))]
pub struct Prune {
    /// Whose points [default: of every guest]
    #[arg(value_name = "GUEST", value_parser = values::wanted)]
    pub guests: Vec<Wanted>,

    /// Only show what stays and what goes, and why, and what would be merged
    #[arg(long)]
    pub dry_run: bool,

    /// Go on until SIZE is free on the repository's filesystem: whatever a merge frees, then whatever
    /// grace is left. What the rules keep stays
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub until_free: Option<u64>,

    /// The rules.
    #[command(flatten)]
    pub keep: KeepRules,

    /// How long a removed point can be brought back, as 7d; 0 for not at all
    /// [default: grace in the repository's qdelta.toml]
    #[arg(long, value_name = "TIME", value_parser = values::period)]
    pub grace: Option<Period>,

    /// Remove also where the clock stands far after the points before: else it may be wrong, and nothing
    /// of that guest is removed
    #[arg(long)]
    pub trust_clock: bool,

    /// Compression level of zstd for what must be packed anew
    #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub level: i32,

    /// How to work.
    #[command(flatten)]
    pub work: Engine,
}

/// The rules of `prune`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rules (instead of those in qdelta.toml)")]
pub struct KeepRules {
    /// Keep the N newest points; all means all, here and below
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_last: Option<Count>,

    /// Keep the newest point of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_hourly: Option<Count>,

    /// Keep the newest point of each of the last N days that have one
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_daily: Option<Count>,

    /// Keep the newest point of each of the last N weeks (from Monday on) that have one
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_weekly: Option<Count>,

    /// Keep the newest point of each of the last N months that have one
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_monthly: Option<Count>,

    /// Keep the newest point of each of the last N years that have one
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub keep_yearly: Option<Count>,

    /// Keep every point less than so much older than the newest: 48h, 14d, 6mo, 1y
    #[arg(long, value_name = "TIME", value_parser = values::period)]
    pub keep_within: Option<Period>,

    /// Keep safety points for so long from now [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = values::period)]
    pub keep_safety: Option<Period>,
}

impl KeepRules {
    /// The rules that were given, if any was.
    pub fn given(&self) -> Option<Keep> {
        let keep = Keep {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            safety: self.keep_safety,
        };
        (keep != Keep::default()).then_some(keep)
    }
}

/// Bring a removed point back.
///
/// This works as long as the point's data is there: for certain until its grace is over.
#[derive(Debug, Args)]
#[command(after_help = examples::of("undelete"), after_long_help = examples::long(Some("undelete")))]
pub struct Undelete {
    /// Which point of which guest: the whole id, or the time as qdelta points --removed shows it
    #[arg(value_name = "GUEST@POINT", value_parser = values::disk_at)]
    pub point: values::DiskAt,
}
