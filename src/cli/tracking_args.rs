//! What can be typed about trackers and anchors.

use clap::{Args, ValueEnum};
use qdelta::flows::backup::{AnchorChoice, SAMPLE_DEFAULT};

use super::values::{Words, one_of};

use super::values;

/// How to find what has changed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Finding what has changed")]
pub struct Tracking {
    /// How to find the changed blocks; the backup fails if the named tracker can't be proved valid
    #[arg(long, value_enum, default_value_t)]
    pub track: Track,

    /// Which anchor to leave, so that the next backup need not read everything
    #[arg(long, value_name = "ANCHOR", value_parser = one_of::<AnchorChoice>(ANCHORS), default_value = "auto")]
    pub anchor: AnchorChoice,

    /// The bitmap of the NBD export that counts from the moment that is read, or goes on to count if the
    /// point before had it. What the one of the point before has is trusted then, and no other time
    #[arg(long, value_name = "NAME", value_parser = values::bitmap, conflicts_with = "anchor")]
    pub live_bitmap: Option<String>,

    /// How many random blocks to read of those that the tracker calls unchanged, to check the
    /// tracker; 0 for none. The default finds a miss of one in a thousand with a probability of
    /// 99 %
    #[arg(long, value_name = "N", default_value_t = SAMPLE_DEFAULT)]
    pub sample: u64,
}

/// How the changed blocks are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Track {
    /// The best of these that can be proved valid
    #[default]
    Auto,
    /// QEMU's persistent bitmap, left by --anchor bitmap
    Bitmap,
    /// An internal snapshot, left by --anchor snapshot
    Snapshot,
    /// Clusters allocated in overlays above the image of the point before
    Overlay,
    /// A clone of the image's file, left by --anchor reflink
    Reflink,
    /// A dirty bitmap that an NBD server tells of, named with --live-bitmap
    LiveBitmap,
    /// Read everything
    Scan,
}

/// What can be left behind for the next backup to compare with.
const ANCHORS: Words = &[
    ("auto", "What the point before left; nothing the first time"),
    ("none", "Nothing"),
    ("bitmap", "A persistent bitmap in the qcow2 image, in which QEMU records what it writes"),
    (
        "snapshot",
        "An internal snapshot of the qcow2 image; it keeps overwritten data until the next backup",
    ),
    (
        "reflink",
        "A clone of the image's file, beside it (XFS, Btrfs); it keeps overwritten data until the next backup",
    ),
];
