//! What can be typed about points that are shown or tried without being restored.

use std::path::PathBuf;

use super::args::Engine;
use clap::{Args, ValueHint};
use qdelta::DiskAt;
use qdelta::base::duration::Stretch;
use qdelta::vault::repository::Rung;

use super::values::{Words, one_of};
use super::{examples, values};

/// Show recovery points as files, without restoring them.
///
/// DIR, an empty folder, gets a folder for each guest, in it one for each disk, and in it for each point
/// the file ID.raw, which is the disk as it was, and the folder ID with a file for each partition and each volume of
/// LVM. All of it is read-only. Each byte is proved before it is given out; what is damaged is an I/O
/// error of that place. New points appear, removed ones vanish. The mount is there as long as the command runs: it
/// ends with Ctrl-C, SIGTERM, or fusermount3 -u DIR (as root: umount DIR).
#[derive(Debug, Args)]
#[command(after_help = examples::of("mount"), after_long_help = examples::long(Some("mount")))]
pub struct Mount {
    /// The folder, which must be empty
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub folder: PathBuf,

    /// Which guests, disks or points [default: all]
    ///
    /// DISK is DOMAIN/DISK, or a guest: by its name in the repository or in libvirt, or by its UUID.
    /// POINT is as qdelta restore --help has it.
    #[arg(value_name = "DISK[@POINT]", value_parser = values::disk_at)]
    pub wanted: Vec<DiskAt>,
}

/// Prove that guests come back, rung by rung.
///
/// A drill takes the latest point of a guest and climbs: every byte is proved, the partition tables and the superblocks
/// of the filesystems are read, the system's own tools check the filesystems (e2fsck, xfs_repair,
/// btrfs, fsck.fat, ntfsfix: they only read), and with --boot-command the guest is booted, its agent is asked, and a
/// check of your own is run in it. Each rung passed, failed, or was not tried, which is never
/// counted as passed. What was found is remembered on this host (--state), and shown by qdelta points and --report.
#[derive(Debug, Args)]
#[command(after_help = examples::of("drill"), after_long_help = examples::long(Some("drill")))]
pub struct Drill {
    /// Which guests [default: all]
    ///
    /// GUEST is a guest by its name in the repository or in libvirt, or by its UUID. POINT is as qdelta restore
    /// --help has it [default: latest].
    #[arg(value_name = "GUEST[@POINT]", value_parser = values::disk_at)]
    pub guests: Vec<DiskAt>,

    /// Only so many guests: those whose last drill on this host is longest ago
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pick: Option<u32>,

    /// How far to climb [default: agent with --boot-command, check without]
    #[arg(long, value_name = "RUNG", value_parser = one_of::<Rung>(RUNGS))]
    pub to: Option<Rung>,

    /// The program that boots a guest, such as scripts/drill-boot; docs/drills.md says how it is called
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::ExecutablePath)]
    pub boot_command: Option<PathBuf>,

    /// How long each program may take before it is killed
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub time_limit: Stretch,

    /// How long it may take until the agent answers [default: as qdelta.toml says]
    #[arg(long, value_name = "TIME")]
    pub rto: Option<Stretch>,

    /// How old the point may be, and how long after the one before it [default: as qdelta.toml says]
    #[arg(long, value_name = "TIME")]
    pub rpo: Option<Stretch>,

    /// Show what earlier drills on this host have found, and drill nothing
    #[arg(long)]
    pub report: bool,

    /// How to work.
    #[command(flatten)]
    pub work: Engine,
}

/// The steps of a drill.
const RUNGS: Words = &[
    ("bytes", "Every byte of the point is what was written"),
    ("partitions", "The partition tables hold together"),
    ("filesystems", "The superblocks of the filesystems are sound"),
    ("check", "The system's own tools find nothing wrong with the filesystems"),
    ("boot", "The guest starts"),
    ("agent", "Its agent answers"),
    ("service", "Your check within the guest passes"),
];
