//! What can be typed about files out of a point.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::{examples, values};

/// List, copy, pack and compare files of a guest, without restoring its disk.
///
/// qdelta reads the guest's filesystem itself: nothing is mounted, no root is needed, and no byte of the
/// guest reaches the host's kernel as a filesystem. ext2, ext3, ext4, NTFS and FAT are read, on partitions (MBR,
/// GPT) and on linear volumes of LVM. For other filesystems, qdelta mount shows each volume as a file.
#[derive(Debug, Args)]
#[command(after_help = examples::of("files"), after_long_help = examples::long(Some("files")))]
pub struct Files {
    /// What to do.
    #[command(subcommand)]
    pub action: FilesAction,
}

/// What to do with files.
#[derive(Debug, Subcommand)]
pub enum FilesAction {
    Ls(FilesLs),
    Get(FilesGet),
    Tar(FilesTar),
    Diff(FilesDiff),
}

/// Where the files are.
#[derive(Debug, Args)]
pub struct FilesAt {
    /// Which disk at which point; of a guest with one disk, the guest [default point: the latest]
    #[arg(value_name = "DISK[@POINT]", value_parser = values::disk_at)]
    pub disk: values::DiskAt,

    /// The volume of the disk: p1 for a partition, VG/LV for a volume of LVM, disk for an undivided
    /// disk [default: the only one that has the paths]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
}

/// List files, or the volumes of a disk.
///
/// Of a folder its files are listed, of any other file itself. Without PATH, the volumes of the disk are.
#[derive(Debug, Args)]
pub struct FilesLs {
    /// Where they are.
    #[command(flatten)]
    pub at: FilesAt,

    /// A path from the root of its volume
    #[arg(value_hint = ValueHint::Other)]
    pub path: Option<PathBuf>,

    /// List also what is in the folders below
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// Copy files and folders out of a point.
///
/// Each path is copied with all that is below it: modes and times, holes, links, and, for root, owners,
/// devices and extended attributes. A link at the end of a path is followed; others are copied as links. A copy
/// gets its name when it is complete; nothing that exists is replaced without --force.
#[derive(Debug, Args)]
pub struct FilesGet {
    /// Where they are.
    #[command(flatten)]
    pub at: FilesAt,

    /// Paths from the root of their volume
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::Other)]
    pub paths: Vec<PathBuf>,

    /// Where to: a folder, the name of the copy, or - for the content of one file on standard output
    #[arg(long, value_name = "TARGET", default_value = ".", value_hint = ValueHint::AnyPath)]
    pub to: PathBuf,

    /// Replace files that exist, and copy into folders that exist
    #[arg(long)]
    pub force: bool,
}

/// Write files and folders of a point as a tar archive.
///
/// The archive is in the form of POSIX (pax) and holds owners, modes, times to the nanosecond, extended
/// attributes and ACLs, links, devices and holes; GNU tar --xattrs --xattrs-include='*' gets all of it back.
/// Links are not followed.
#[derive(Debug, Args)]
pub struct FilesTar {
    /// Where they are.
    #[command(flatten)]
    pub at: FilesAt,

    /// Paths from the root of their volume
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::Other)]
    pub paths: Vec<PathBuf>,

    /// The archive; - for standard output
    #[arg(long, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    pub to: PathBuf,

    /// Replace an archive that exists
    #[arg(long)]
    pub force: bool,
}

/// Compare the files of a disk at two points.
///
/// Each file that differs is listed: + added, - removed, M with another content, m with other attributes alone
/// (owner, mode, time, extended attributes). Names and attributes are read at both points, and of contents
/// only what lies in blocks that differ.
#[derive(Debug, Args)]
pub struct FilesDiff {
    /// Which disk (of a guest with one disk, the guest), and two of its points
    #[arg(value_name = "DISK@A..B", value_parser = values::points_of)]
    pub points: values::PointsOf,

    /// The volume of the disk, as qdelta files ls has it [default: the only one that has the path]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,

    /// A path from the root of its volume
    #[arg(default_value = "/", value_hint = ValueHint::Other)]
    pub path: PathBuf,
}
