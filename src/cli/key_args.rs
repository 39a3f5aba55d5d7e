//! What can be typed of keys.

use std::path::PathBuf;

use clap::{Args, ValueHint};

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
