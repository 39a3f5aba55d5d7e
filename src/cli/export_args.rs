//! What can be typed about points that are shown or tried without being restored.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use qdelta::DiskAt;

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
