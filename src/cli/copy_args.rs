//! What can be typed of second copies.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use qdelta::flows::backup::LEVEL_DEFAULT;
use qdelta::vault::repository::{Keep, Wanted};

use super::args::Engine;
use super::{examples, values};

/// Copy recovery points to another repository.
///
/// Only what the other repository lacks is brought. Each archive is proved where it has arrived, block by
/// block, before its point is shown there; a copy that was stopped goes on with the next archive. The other
/// repository may keep other points: one that is not wanted there becomes part of the next one that is, on the
/// way. Pins, the files of machines and hosts' configuration come along; anchors don't. What is removed or
/// damaged here takes nothing away there.
#[derive(Debug, Args)]
#[command(after_help = examples::of("copy"), after_long_help = examples::long(Some("copy")))]
pub struct Copy {
    /// Whose points [default: of every guest]
    #[arg(value_name = "GUEST", value_parser = values::wanted)]
    pub guests: Vec<Wanted>,

    /// The other repository: a folder, or s3://BUCKET/PREFIX; qdelta init makes it
    #[arg(long, value_name = "REPO2", value_hint = ValueHint::DirPath)]
    pub to: PathBuf,

    /// Only the points that these rules keep, in the words of [keep]: as daily=7,monthly=all; monthly alone
    /// means all of them
    #[arg(long, value_name = "RULES", value_parser = values::keep)]
    pub points: Option<Keep>,

    /// Only show what would be copied
    #[arg(long)]
    pub dry_run: bool,

    /// What is there under the guest's name is the same guest, though it shares no point
    #[arg(long)]
    pub same_guest: bool,

    /// Write to the other repository, and read from it, at most so many bytes a second, as 20M
    #[arg(long, value_name = "SIZE", value_parser = values::rate)]
    pub limit_rate: Option<u64>,

    /// Copy so many guests at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::threads)]
    pub at_once: usize,

    /// The other repository's key, and how to work.
    #[command(flatten)]
    pub with: Carrying,
}

/// How archives are brought from one repository into another.
#[derive(Debug, Args)]
pub struct Carrying {
    /// Compression level of zstd for what must be packed anew
    #[arg(long, value_name = "N", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(-7..=19), allow_negative_numbers = true)]
    pub level: i32,

    /// The key of the other repository.
    #[command(flatten)]
    pub key: OtherKey,

    /// How to work.
    #[command(flatten)]
    pub work: Engine,
}

/// The key of the second repository of a command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Encryption")]
pub struct OtherKey {
    /// The file with the key of the other repository, if that is encrypted
    /// [default: the key that is given for the first one]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub other_key_file: Option<PathBuf>,

    /// The command of the shell that writes that key to its standard output
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub other_key_command: Option<String>,
}

/// Mend what is damaged or lost from another repository.
///
/// Reads everything of the guests, as qdelta verify does. For each archive that is damaged or missing one of the
/// same point is brought from the other repository and proved; then it takes the place of the old one, which
/// goes. A manifest comes back with the archives that are there. What the other repository does not have stays as
/// it is. Whole points that are only there, qdelta copy brings: if some are later than the newest one here, or of a
/// guest that is lost here, status 17 says so.
#[derive(Debug, Args)]
#[command(after_help = examples::of("repair"), after_long_help = examples::long(Some("repair")))]
pub struct Repair {
    /// Which guests [default: every guest]
    #[arg(value_name = "GUEST", value_parser = values::wanted)]
    pub guests: Vec<Wanted>,

    /// The other repository: a folder, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "REPO2", value_hint = ValueHint::DirPath)]
    pub from: PathBuf,

    /// Only show what would be mended
    #[arg(long)]
    pub dry_run: bool,

    /// The other repository's key, and how to work.
    #[command(flatten)]
    pub with: Carrying,
}
