//! What can be typed about trackers and anchors.

use clap::{Args, ValueEnum};
use qdelta::flows::backup::SAMPLE_DEFAULT;

/// How to find what has changed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Finding what has changed")]
pub struct Tracking {
    /// How to find the changed blocks; the backup fails if the named tracker can't be proved valid
    #[arg(long, value_enum, default_value_t)]
    pub track: Track,

    /// Which anchor to leave, so that the next backup need not read everything
    #[arg(long, value_enum, default_value_t)]
    pub anchor: Anchor,

    /// The bitmap of the NBD export that counts from the moment that is read, or goes on to count if the
    /// point before had it. What the one of the point before has is trusted then, and no other time
    #[arg(long, value_name = "NAME", conflicts_with = "anchor")]
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

/// What to leave behind for the next backup to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Anchor {
    /// What the point before left; nothing the first time
    #[default]
    Auto,
    /// Nothing
    None,
    /// A persistent bitmap in the qcow2 image, in which QEMU records what it writes
    Bitmap,
    /// An internal snapshot of the qcow2 image; it keeps overwritten data until the next backup
    Snapshot,
    /// A clone of the image's file, beside it (XFS, Btrfs); it keeps overwritten data until the
    /// next backup
    Reflink,
}
