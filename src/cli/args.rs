//! What can be typed: the one definition that parser, help, man pages and completions come from.
//!
//! Arguments are read in two stages. Here every word gets its type; what words mean together,
//! `combination.rs` checks; with what is on disk, the commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use jiff::Timestamp;
use qdelta::Result;
use qdelta::base::cancel::Cancel;
use qdelta::base::period::Period;
use qdelta::disk::flow::pipeline::Resources;
use qdelta::disk::image::{self, OpenOptions};
use qdelta::disk::io::{self, Backend};
use qdelta::disk::nbd::Export;
use qdelta::flows::backup::LEVEL_DEFAULT;
use qdelta::flows::verify::Budget;
use qdelta::vault::repository::{DiskSpec, Wanted};

use super::copy_args::{Copy, OtherKey, Repair};
use super::export_args::{Drill, Mount};
use super::files_args::Files;
use super::guest_args::{Folders, Guests, Machine};
use super::job_args::{Config, ExportKit, History, Notify, Report, Run, Status};
use super::key_args::{Init, Key};
use super::point_args::{Merge, Pin, Prune, Space, Undelete, Unpin};
use super::serve_args::Serve;
use super::tracking_args::Tracking;
use super::{examples, values};

/// The ways to call `backup`: clap would show one alone, and nothing of guests.
const BACKUP_USAGE: &str = "qdelta backup [OPTIONS] <IMAGE>
       qdelta backup [OPTIONS] --domain <NAME>...
       qdelta backup [OPTIONS] --all";

/// The ways to call `restore`.
const RESTORE_USAGE: &str = "qdelta restore [OPTIONS] <DISK[@POINT]> <OUTPUT>
       qdelta restore [OPTIONS] <DISK[@POINT]> --in-place [OUTPUT]
       qdelta restore [OPTIONS] --domain <NAME> --to <DIR>
       qdelta restore [OPTIONS] --domain <NAME> --in-place
       qdelta restore [OPTIONS] --host-config --to <DIR>";

/// Incremental backup of qcow2 and raw disk images.
///
/// qdelta backs up virtual disks block by block: the first backup of a disk is a full, later
/// backups hold only the blocks that changed. Every backup is a recovery point: the disk of that
/// moment can be restored from it, and its digest proves that the restored disk is equal. Points
/// are kept in a repository, a folder of plain files that you can list, copy and synchronise.
#[derive(Debug, Parser)]
#[command(
    name = "qdelta",
    version,
    arg_required_else_help = true,
    subcommand_help_heading = "Commands",
    max_term_width = 100,
    after_help = examples::short(),
    after_long_help = examples::long(None),
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The repository: a folder, or s3://BUCKET/PREFIX
    #[arg(long, global = true, env = "QDELTA_REPO", value_name = "DIR", value_hint = ValueHint::DirPath, hide_env_values = true)]
    pub repo: Option<PathBuf>,

    /// The folder for this host's own files: marks of frozen guests, summaries of chains, the history
    /// of what was proved, tables too large for memory. Name the same one every time: a guest that was
    /// left frozen is found by its mark
    /// [default: $STATE_DIRECTORY, /var/lib/qdelta for root, $XDG_STATE_HOME/qdelta for others]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<PathBuf>,

    /// The file with the key of an encrypted repository: an identity of age, the key of a host, or a
    /// passphrase [default: $QDELTA_KEY_FILE, or qdelta.key of systemd's credentials]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,

    /// The command of the shell that writes that key to its standard output
    /// [default: $QDELTA_KEY_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub key_command: Option<String>,

    /// Read the repository as it was at this time, by the versions that an object store keeps: after
    /// somebody has hidden or written over what is there. Nothing can be written then
    #[arg(long, global = true, value_name = "TIME", value_parser = values::moment)]
    pub as_of: Option<Timestamp>,

    /// Write the result as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more on the way; twice for even more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Show no summary and no progress bar: only warnings, errors and what was asked for (a list,
    /// JSON)
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What to do. What each command is for stands with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(Init),
    Key(Key),
    Backup(Backup),
    Restore(Restore),
    Replay(Replay),
    Files(Files),
    Mount(Mount),
    Drill(Drill),
    Run(Run),
    Status(Status),
    Notify(Notify),
    Report(Report),
    History(History),
    Config(Config),
    ExportKit(ExportKit),
    Verify(Verify),
    Copy(Copy),
    Repair(Repair),
    Serve(Serve),
    Points(Points),
    Prune(Prune),
    Undelete(Undelete),
    Merge(Merge),
    Pin(Pin),
    Unpin(Unpin),
    Space(Space),
    Anchors(Anchors),
    Info(Info),
    Map(Map),
    Bench(Bench),
    Completions(Completions),
    /// Complete a word of a command line; only completions start this.
    #[command(hide = true)]
    Complete(Complete),
    Man(Man),
    /// Freeze and thaw a guest for another qdelta; only qdelta itself starts this.
    #[command(hide = true)]
    Watchdog,
}

impl Command {
    /// Whether it does no more than read what the repository holds, or may be asked to.
    pub fn reads_only(&self) -> bool {
        matches!(
            self,
            Self::Points(_)
                | Self::Restore(_)
                | Self::Verify(_)
                | Self::Files(_)
                | Self::Mount(_)
                | Self::Serve(_)
                | Self::Drill(_)
                | Self::Copy(_)
                | Self::Space(_)
        )
    }
}

/// Back up a disk image, or all disks of a guest: everything the first time, then what has changed.
///
/// The image is read with its backing files; no running guest may use it. A URI names the disk behind
/// an NBD server in place of an image. --domain backs up a
/// libvirt guest, running or not, with all its disks as they were at one moment. A running guest is
/// frozen for the milliseconds that it takes to clone its images. Blocks that did not change since
/// the point before are not stored again. A backup that fails or is stopped leaves the repository
/// as it was.
#[derive(Debug, Args)]
#[command(override_usage = BACKUP_USAGE, after_help = examples::of("backup"), after_long_help = examples::long(Some("backup")))]
pub struct Backup {
    /// The image: a qcow2 or raw file, or a block device; or an NBD export, as nbd://HOST:PORT/EXPORT
    /// or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_hint = ValueHint::FilePath, required_unless_present_any = ["domains", "all"])]
    pub image: Option<PathBuf>,

    /// The disk's name in the repository, as NAME or DOMAIN/DISK; also confirms that the image is
    /// that disk [default: the image's file name]
    #[arg(long, value_name = "NAME", value_parser = values::disk)]
    pub disk: Option<DiskSpec>,

    /// What to compare the image with
    #[arg(long, value_enum, default_value_t)]
    pub kind: Kind,

    /// Make a full of what has changed and the chain before it: a new chain begins, and no more is
    /// read of the image
    #[arg(long)]
    pub synthetic: bool,

    /// Compression level of zstd: 1 is fast, 19 gives small archives
    #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub level: i32,

    /// Block size of a new chain, the unit in which changes are found and stored: 4K to 2M
    /// [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = values::block_size)]
    pub block_size: Option<u32>,

    /// Back up this internal snapshot of the image (a name or an id) instead of its current state
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<String>,

    /// Make a point of each internal snapshot, too, but of those that have one: before that of the state
    #[arg(long, conflicts_with_all = ["snapshot", "as_file"])]
    pub with_snapshots: bool,

    /// How to open the image.
    #[command(flatten)]
    pub source: ImageArgs,

    /// Back up the bytes of the file itself, whatever its format; for encrypted images
    #[arg(long, conflicts_with_all = ["format", "snapshot"])]
    pub as_file: bool,

    /// How to find what has changed.
    #[command(flatten)]
    pub tracking: Tracking,

    /// Which guests, and how.
    #[command(flatten)]
    pub guests: Guests,

    /// How to work.
    #[command(flatten)]
    pub work: Work,
}

/// How to open an image.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Format of the image [default: what its first bytes say; to a backup, the format at the
    /// disk's latest point counts more]
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// Allow backing and data files in this folder, too, besides the image's own; can be repeated
    #[arg(long = "image-root", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub image_roots: Vec<PathBuf>,
}

impl ImageArgs {
    /// How the library is to open the image.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            format: self.format.map(Format::to_image),
            image_roots: self.image_roots.clone(),
            ..OpenOptions::default()
        }
    }

    /// How the library is to open what `path` names, which may be the URI of an export.
    pub fn options_for(&self, path: &Path, cancel: &Cancel) -> Result<OpenOptions> {
        let uri = path.to_str().filter(|_| values::is_uri(path));
        let export = uri.map(|uri| Export::new(uri, cancel)).transpose()?;
        Ok(OpenOptions { export: export.map(Arc::new), ..self.options() })
    }
}

/// How to work with archives alone, or with more.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning")]
pub struct Engine {
    /// Threads that compress, decompress and compare [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = values::threads)]
    pub threads: Option<usize>,

    /// How to read and write
    #[arg(long, value_enum, default_value_t)]
    pub io: Io,
}

impl Engine {
    /// What the library is to use.
    pub fn resources(&self) -> Resources {
        let defaults = Resources::default();
        Resources {
            threads: self.threads.unwrap_or(defaults.threads),
            backend: match self.io {
                Io::Auto => Backend::Auto,
                Io::Uring => Backend::Uring,
                Io::Threads => Backend::Threads,
            },
            ..defaults
        }
    }
}

/// How to work with an image or a restored disk.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tuning")]
pub struct Work {
    /// Threads, and how to read and write.
    #[command(flatten)]
    pub engine: Engine,

    /// Whether to go past the page cache (O_DIRECT) with the image and the restored disk
    #[arg(long, value_enum, default_value_t)]
    pub direct: Direct,
}

impl Work {
    /// What the library is to use.
    pub fn resources(&self) -> Resources {
        Resources {
            direct: match self.direct {
                Direct::Auto => io::Direct::Auto,
                Direct::On => io::Direct::On,
                Direct::Off => io::Direct::Off,
            },
            ..self.engine.resources()
        }
    }
}

/// Restore a disk, or a whole guest, as it was at a recovery point.
///
/// The output gets its name only after it was proved against the point's digest: a restore that
/// fails leaves nothing behind. Zeros take no space in the output. --domain restores a whole guest
/// into the folder --to: its disks, its firmware variables and a definition for virsh define.
/// --in-place rolls back the images of a stopped guest, and writes only the blocks that differ.
#[derive(Debug, Args)]
#[command(override_usage = RESTORE_USAGE, after_help = examples::of("restore"), after_long_help = examples::long(Some("restore")))]
pub struct Restore {
    /// Which disk, and which point of it
    ///
    /// DISK is a name that qdelta points shows: DOMAIN/DISK, or DOMAIN if it has one disk. POINT is
    /// one of: latest (the default); an id of a point or its beginning; a time like 2026-11,
    /// 2026-11-22, "2026-11-22 15:38" or 2026-11-22T15:38:23Z, which means the last point not after
    /// it; or how long ago: 90m, 12h, 3d, 2w, 6mo, 1y, yesterday. Every time and id that qdelta
    /// points shows can be given. Times are local unless they end in Z or an offset, and stand for
    /// the end of what they name: 2026-11-22 is the last point of that day, or of the days before.
    #[arg(value_name = "DISK[@POINT]", value_parser = values::disk_at, required_unless_present_any = ["domain", "host_config"])]
    pub disk: Option<values::DiskAt>,

    /// Where to: a new file, a block device, or - for standard output
    #[arg(value_hint = ValueHint::FilePath, required_unless_present_any = ["domain", "in_place", "host_config"])]
    pub output: Option<PathBuf>,

    /// Roll the image back where it lies: write only the blocks that differ
    ///
    /// The image is the one that the guest has as this disk now, or OUTPUT, or the qcow2 image that
    /// the point was made from. Nobody may use it. First, a safety point keeps the disk as it is
    /// now; latest and times pass over safety points, so the same command means the same point
    /// again. A qcow2 image is changed as a whole or not at all. A raw image is half old and half
    /// new after an interruption: give the same command again, with --no-point.
    #[arg(long)]
    pub in_place: bool,

    /// Roll back without making a safety point first
    #[arg(long)]
    pub no_point: bool,

    /// Allow backing files in this folder, too, besides the image's own; can be repeated
    #[arg(long = "image-root", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub image_roots: Vec<PathBuf>,

    /// How to write.
    #[command(flatten)]
    pub target: Target,

    /// Which guest, and where to.
    #[command(flatten)]
    pub machine: Machine,

    /// Where libvirt is.
    #[command(flatten)]
    pub libvirt: Folders,

    /// How to work.
    #[command(flatten)]
    pub work: Work,
}

/// How to write a restored disk.
#[derive(Debug, Args)]
pub struct Target {
    /// Format of the output [default: qcow2 if its name ends in .qcow2, raw otherwise]
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// Replace the output if it exists, or write to a block device that may hold something
    #[arg(long)]
    pub force: bool,

    /// Restore what can be read of a damaged point, with zeros for the rest, and list what is lost
    #[arg(long)]
    pub salvage: bool,
}

/// Restore a disk from bare archive files, without a repository.
///
/// For emergencies: give the full and then every later archive of the chain up to the wanted point,
/// oldest first. qdelta checks that they belong together.
#[derive(Debug, Args)]
#[command(after_help = examples::of("replay"), after_long_help = examples::long(Some("replay")))]
pub struct Replay {
    /// The archives, the full first
    #[arg(required = true, value_name = "ARCHIVE", value_hint = ValueHint::FilePath)]
    pub archives: Vec<PathBuf>,

    /// Where to: a new file, a block device, or - for standard output
    #[arg(short, long, required = true, value_hint = ValueHint::FilePath)]
    pub output: PathBuf,

    /// How to write.
    #[command(flatten)]
    pub target: Target,

    /// How to work.
    #[command(flatten)]
    pub work: Work,
}

/// Prove that recovery points can be restored.
///
/// Reads each archive that the points need once and checks every checksum and digest. Then it
/// computes the root of each point (the digest of the whole disk) and compares it with the root
/// that the backup computed. Nothing is restored for that.
#[derive(Debug, Args)]
#[command(after_help = examples::of("verify"), after_long_help = examples::long(Some("verify")))]
pub struct Verify {
    /// Which disks or guests, or which points of them [default: every point of every disk]
    ///
    /// DISK is DOMAIN/DISK, or a guest: by its name in the repository or in libvirt, or by its UUID.
    /// POINT is as qdelta restore --help has it.
    #[arg(value_name = "DISK[@POINT]", value_parser = values::disk_at)]
    pub disks: Vec<values::DiskAt>,

    /// Check only the checksums: this finds damaged files and takes less time
    #[arg(long)]
    pub quick: bool,

    /// Leave out archives that were proved within this time, such as 30d
    ///
    /// What was proved longest ago, or never, comes first. When each archive was proved is noted in the
    /// host's state folder (--state), and shown by qdelta points.
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<Period>,

    /// Stop after so much time (2h, 90min) or so many bytes (200G); the next run goes on
    ///
    /// What was proved longest ago, or never, comes first. The archive at hand is finished. Indexes are
    /// read beside the budget: they are small.
    #[arg(long, value_name = "TIME|SIZE", value_parser = values::budget)]
    pub budget: Option<Budget>,

    /// Compare with another repository, and read no archive: which points only one of the two has, and which are
    /// different. Whether each one's archives hold what they should, qdelta verify says of each
    #[arg(long, value_name = "REPO2", value_hint = ValueHint::DirPath)]
    pub against: Option<PathBuf>,

    /// The key of the other repository.
    #[command(flatten)]
    pub key: OtherKey,

    /// How to work.
    #[command(flatten)]
    pub work: Engine,
}

/// List the recovery points.
///
/// Each full begins a chain; the points below it need it. CHANGED is how much of the disk differs
/// from the point that this one was compared with, STORED is the size of its archive, PROVED is how
/// long ago qdelta verify read on this host what it has read least lately of all that the point needs:
/// a new point of an old chain rests on old proofs. Times are local, with their
/// offset from UTC; with --utc they are the ids of the points. Both forms can be given after @ to
/// name that very point. ID is shown where there is room.
#[derive(Debug, Args)]
#[command(after_help = examples::of("points"), after_long_help = examples::long(Some("points")))]
pub struct Points {
    /// Which disk, or which guest's disks [default: all]
    ///
    /// DISK is DOMAIN/DISK, or a guest: by its name in the repository or in libvirt, or by its UUID.
    #[arg(value_name = "DISK", value_parser = values::wanted)]
    pub disk: Option<Wanted>,

    /// Show times in UTC, not in the local zone
    #[arg(long)]
    pub utc: bool,

    /// Show the removed points, too
    #[arg(long)]
    pub removed: bool,
}

/// List the anchors that backups have left for later backups, or remove them.
///
/// An anchor is a bitmap or a snapshot in an image, or a clone of the image's file in the folder
/// .qdelta beside it; qdelta backup --anchor leaves one. HOLDS is the space that the clone alone
/// occupies: it grows with what the guest writes, up to the size of the image, until the next
/// backup replaces the clone. A backup without an anchor reads more, and is as good.
#[derive(Debug, Args)]
#[command(after_help = examples::of("anchors"), after_long_help = examples::long(Some("anchors")))]
pub struct Anchors {
    /// Which disk, or which guest's disks [default: all]
    ///
    /// DISK is DOMAIN/DISK, or a guest: by its name in the repository or in libvirt, or by its UUID.
    #[arg(value_name = "DISK", value_parser = values::wanted)]
    pub disk: Option<Wanted>,

    /// Remove this anchor of the disk; can be repeated
    #[arg(long, value_name = "ANCHOR")]
    pub remove: Vec<String>,

    /// Remove all anchors of the disk
    #[arg(long, conflicts_with = "remove")]
    pub remove_all: bool,
}

/// Describe an image or an archive.
#[derive(Debug, Args)]
#[command(after_help = examples::of("info"), after_long_help = examples::long(Some("info")))]
pub struct Info {
    /// An image, an archive, or an NBD export (its URI)
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,

    /// How to open an image.
    #[command(flatten)]
    pub source: ImageArgs,
}

/// Show where an image keeps the data of its disk.
///
/// Lists the ranges of the disk that hold data, with the file and the place in it; with --json
/// every range, in the words of qemu-img map.
#[derive(Debug, Args)]
#[command(after_help = examples::of("map"), after_long_help = examples::long(Some("map")))]
pub struct Map {
    /// The image: a qcow2 or raw file, or a block device; or an NBD export (its URI)
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,

    /// Show this internal snapshot of the image (a name or an id) instead of its current state
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<String>,

    /// How to open the image.
    #[command(flatten)]
    pub source: ImageArgs,
}

/// Measure how fast this machine backs up an image, and what limits it.
///
/// Measures every stage alone (reading by length, depth and page cache; the zero test; hashing;
/// compression by level; writing) and then the whole data path, and says which stage is the limit
/// and how close the whole comes to it. The image is only read; writing is measured with a file
/// that has no name. Measure when the machine has nothing else to do.
#[derive(Debug, Args)]
#[command(after_help = examples::of("bench"), after_long_help = examples::long(Some("bench")))]
pub struct Bench {
    /// The image: a qcow2 or raw file, or a block device; or an NBD export (its URI)
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,

    /// Where to measure writing: a folder of the disk that backups go to [default: the system's
    /// place for temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub folder: Option<PathBuf>,

    /// How much of the image's data to use
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, default_value = "1G")]
    pub bytes: u64,

    /// The zstd level of the whole data path
    #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub level: i32,

    /// Draw the result into this new file, as SVG
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub plot: Option<PathBuf>,

    /// How to open the image.
    #[command(flatten)]
    pub source: ImageArgs,

    /// How to work.
    #[command(flatten)]
    pub work: Work,
}

/// Write the completions of a shell.
#[derive(Debug, Args)]
#[command(after_help = examples::of("completions"), after_long_help = examples::long(Some("completions")))]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// What a shell wants completed.
#[derive(Debug, Args)]
pub struct Complete {
    /// The command line up to the cursor
    #[arg(allow_hyphen_values = true)]
    pub line: String,
}

/// Write the man pages.
#[derive(Debug, Args)]
#[command(after_help = examples::of("man"), after_long_help = examples::long(Some("man")))]
pub struct Man {
    /// The folder, which is made if it is missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// What a backup is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Kind {
    /// Incremental if there is a point, full otherwise
    #[default]
    Auto,
    /// Nothing: a new chain begins
    Full,
    /// The latest point
    Incremental,
    /// The latest full
    Differential,
}

/// A format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Only the bytes of the disk
    Raw,
    /// QEMU's format
    Qcow2,
}

impl Format {
    /// What the library calls it.
    pub fn to_image(self) -> image::Format {
        match self {
            Self::Raw => image::Format::Raw,
            Self::Qcow2 => image::Format::Qcow2,
        }
    }
}

/// How to read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Io {
    /// io_uring, and threads where it is refused
    #[default]
    Auto,
    /// io_uring or nothing
    Uring,
    /// Plain reads and writes on threads
    Threads,
}

/// Whether to go past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Direct {
    /// To read an image that is not in the cache, and to write a restored disk
    #[default]
    Auto,
    /// Always, or fail
    On,
    /// Never
    Off,
}

/// A shell that completes words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// The friendly interactive shell
    Fish,
}
