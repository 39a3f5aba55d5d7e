//! What can be typed about points that stay, go, or become part of others.

use clap::Args;
use qdelta::flows::backup::LEVEL_DEFAULT;

use super::args::Engine;
use super::{examples, values};

/// Keep a recovery point whatever the rules say.
///
/// A pinned point stays until its pin ends or is taken away, and counts for no rule of qdelta prune. A
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
}

/// Take the pin of a recovery point away.
#[derive(Debug, Args)]
#[command(after_help = examples::of("unpin"), after_long_help = examples::long(Some("unpin")))]
pub struct Unpin {
    /// Which point of which guest; a guest need not be named if no other has a point of this id
    ///
    /// GUEST is a guest or a disk, POINT as qdelta restore --help has it.
    #[arg(value_name = "GUEST@POINT", value_parser = values::disk_at)]
    pub point: values::DiskAt,
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
