//! What is needed elsewhere when a site is lost.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, KeyRecord};
use crate::base::duration::Stretch;
use crate::base::json::text;
use crate::vault::repository::PointId;

/// A kit: what is in its folder, and what it says of the site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KitReport {
    /// Its folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub output: PathBuf,
    /// When it was made.
    #[serde(with = "text")]
    pub made: Timestamp,
    /// The name of the host.
    pub host: String,
    /// The version of the program.
    pub version: String,
    /// Whether the program needs no library of the system that it runs on.
    pub program_is_static: bool,
    /// The names of its files.
    pub files: Vec<String>,
    /// The repositories of the site.
    pub repositories: Vec<KitRepository>,
    /// The guests in the order in which they are to be restored; images, and the host's configuration.
    pub guests: Vec<KitGuest>,
    /// What of the site is not in the kit, and what would not come back as it is now.
    pub problems: Vec<Failure>,
}

/// A repository of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitRepository {
    /// Its name in the file of jobs.
    pub repository: String,
    /// As `--repo` takes it.
    pub place: String,
    /// To whom it is encrypted; none if it is not.
    pub recipient: Option<String>,
    /// The keys that open it.
    pub keys: Vec<KeyRecord>,
    /// Whether it could be opened when the kit was written.
    pub opened: bool,
    /// Whether a key is needed: as the file of jobs says, where it could not be opened.
    pub with_key: bool,
    /// Whether it lies on a disk of this host, and is lost with it; none if nobody knows.
    pub on_this_host: Option<bool>,
}

/// What kind of thing is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KitKind {
    /// A guest of libvirt's, with its machine.
    Guest,
    /// Disks alone.
    Disks,
    /// The configuration of a host.
    Host,
}

/// A guest of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitGuest {
    /// What it is called here, or the path of an image.
    pub guest: String,
    /// What it is called in its repository.
    pub domain: String,
    /// How it comes back.
    pub kind: KitKind,
    /// The job that backs it up: its class. Empty if no job covers the guest.
    pub job: String,
    /// The repository that it comes back from: one that is not lost with this host, if there is one.
    pub repository: String,
    /// The others that have it, too.
    pub others: Vec<String>,
    /// How long it may take until it is back.
    #[serde(with = "text::optional")]
    pub rto: Option<Stretch>,
    /// How old its newest good point may be.
    #[serde(with = "text::optional")]
    pub rpo: Option<Stretch>,
    /// The newest point there, or in one of the others if it could not be opened; none if there is none.
    pub point: Option<PointId>,
    /// When that was made.
    #[serde(with = "text::optional")]
    pub made: Option<Timestamp>,
    /// Its disks, by name.
    pub disks: Vec<KitDisk>,
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitDisk {
    /// Its name.
    pub disk: String,
    /// Its size in bytes.
    pub bytes: u64,
}
