//! What can be typed of new repositories, and of keys.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::examples;
use super::values::{self, LockFor};

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

    /// Have the object store lock every file for so long after it was written, and for as long as its
    /// points are kept: nobody can remove it earlier, whatever key he has. 30d, or bucket for what the
    /// bucket does by itself; docs/object-lock.md says what that costs
    #[arg(long, value_name = "TIME", value_parser = values::lock_for)]
    pub lock: Option<LockFor>,

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

/// The keys of an encrypted repository.
///
/// The repository's identity opens every file. It lies in the repository's folder keys, each time
/// encrypted to an admin's recipient or by a passphrase. Hosts that only make backups need less: the key
/// that qdelta key host writes adds points and opens none.
#[derive(Debug, Args)]
#[command(after_help = examples::of("key"), after_long_help = examples::long(Some("key")))]
pub struct Key {
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    List(KeyList),
    Add(KeyAdd),
    Remove(KeyRemove),
    Verify(KeyVerify),
    Host(KeyHost),
    Paper(KeyPaper),
}

/// List what can open the repository; needs no key.
#[derive(Debug, Args)]
pub struct KeyList {}

/// Encrypt the repository's identity to one more recipient, or by one more passphrase.
#[derive(Debug, Args)]
pub struct KeyAdd {
    /// What to call it
    pub name: String,

    /// The recipient of age (age1…) who is to open the repository
    #[arg(long, value_name = "AGE1…", required_unless_present = "passphrase_file")]
    pub recipient: Option<String>,

    /// The file with the passphrase that is to open the repository
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "recipient")]
    pub passphrase_file: Option<PathBuf>,
}

/// Remove what can open the repository; whoever has opened it before keeps its identity.
#[derive(Debug, Args)]
pub struct KeyRemove {
    /// What it is called
    pub name: String,
}

/// Tell what the key that is given opens.
#[derive(Debug, Args)]
pub struct KeyVerify {}

/// Write the key of a host that adds points and can open none.
#[derive(Debug, Args)]
pub struct KeyHost {
    /// The new file
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Show the repository's identity, to be printed: as text and as a QR code.
#[derive(Debug, Args)]
pub struct KeyPaper {}
