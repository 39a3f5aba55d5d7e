//! What can be typed of new repositories, and of keys.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::examples;

/// Make a repository.
///
/// DIR must be empty or not exist yet. A backup refuses a folder that qdelta init has not prepared,
/// so it never fills the disk below a mount point when the backup disk isn't mounted.
#[derive(Debug, Args)]
#[command(after_help = examples::of("init"), after_long_help = examples::long(Some("init")))]
pub struct Init {
    /// The folder, or s3://BUCKET/PREFIX [default: the one that --repo or QDELTA_REPO names]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,

    /// Write a lost or damaged qdelta.toml anew, with the repository's id from its points and the
    /// settings that can still be read; change nothing else
    #[arg(long)]
    pub repair: bool,

    /// The time zone whose days, weeks, months and years qdelta prune counts, by IANA's name
    /// [default: this machine's]
    #[arg(long, value_name = "ZONE", conflicts_with = "repair")]
    pub time_zone: Option<String>,

    /// How to encrypt it.
    #[command(flatten)]
    pub encryption: NewEncryption,
}

/// How a new repository is encrypted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Encryption")]
pub struct NewEncryption {
    /// Encrypt everything but qdelta.toml; docs/encryption.md says against whom that helps. Needs
    /// --recovery, and --recipient or --passphrase-file
    #[arg(long)]
    pub encrypt: bool,

    /// Leave the repository's key in its folder keys, encrypted to this recipient of age (age1…): the
    /// public key that age-keygen shows. Can be given several times
    #[arg(long = "recipient", value_name = "AGE1…")]
    pub recipients: Vec<String>,

    /// Leave the repository's key in its folder keys, encrypted by the passphrase in this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub passphrase_file: Option<PathBuf>,

    /// Write the repository's key to this new file, outside of the repository. Keep it where neither
    /// fire nor thieves find it and the repository at once: without a key nobody can read anything
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub recovery: Option<PathBuf>,
}
