//! What restores did: of a disk, of a whole guest.

use std::path::PathBuf;

use qdelta_formats::archive::{Consistency, Digest};
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::Warning;
use crate::disk::image::Format;
use crate::disk::io::Backend;
use crate::vault::repository::PointId;

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The recovery point.
    pub point: String,
    /// It is a safety point, made before a roll back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety: bool,
    /// The last safety point that `latest` or a time passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<PointId>,
    /// Where it is now; `-` is standard output.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub output: PathBuf,
    /// `raw` or `qcow2`.
    #[serde(with = "text")]
    pub format: Format,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// How many archives the chain has.
    pub archives: usize,
    /// Bytes read from them.
    pub bytes_read: u64,
    /// Bytes of the disk that were written; the rest is zero and takes no space.
    pub bytes_written: u64,
    /// Digest of what was written; it is the one that the backup computed. None if a salvage could
    /// not prove it.
    #[serde(with = "text::optional")]
    pub root: Option<Digest>,
    /// What a salvage found; none if there was no need for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salvage: Option<SalvageReport>,
    /// How the archives were read: `uring` or `threads`.
    pub io: Backend,
    /// What the admin should know, though the disk is as it was.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// What a salvage could and could not do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SalvageReport {
    /// Ranges of the disk that are lost. They read as zeros.
    pub lost: Vec<GuestRange>,
    /// Ranges of the disk that may hold an earlier point's content: an archive that is damaged or
    /// missing may have changed them, and nobody can tell any more.
    pub unsure: Vec<GuestRange>,
    /// What is damaged or missing, and where.
    pub problems: Vec<String>,
}

impl SalvageReport {
    /// Whether everything was saved after all.
    pub fn is_complete(&self) -> bool {
        self.lost.is_empty() && self.unsure.is_empty()
    }
}

/// A range of the guest's disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRange {
    /// Where it starts.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

/// What the restore of a machine did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    /// The domain's name now.
    pub domain: String,
    /// Its UUID now.
    pub uuid: Option<String>,
    /// The name of the guest that the point is of, as libvirt had it.
    pub guest: String,
    /// The UUID of that guest.
    pub guest_uuid: Option<String>,
    /// The UUID of the guest that has this name here, if there is one.
    pub uuid_here: Option<String>,
    /// The recovery point.
    pub point: PointId,
    /// It is a safety point, made before a roll back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety: bool,
    /// The last safety point that `latest` or a time passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<PointId>,
    /// In what state the guest was.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Its disks, if they were copied.
    pub disks: Vec<RestoreReport>,
    /// How it runs on the point, if nothing was copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instant: Option<InstantReport>,
    /// The definition.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub xml: PathBuf,
    /// The firmware's variables.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub nvram: Option<PathBuf>,
    /// The file of its memory, with which it goes on where it stood; none if it begins anew.
    #[serde(serialize_with = "crate::base::json::optional::serialize")]
    pub memory: Option<PathBuf>,
    /// What is left to do, as commands for a shell.
    pub commands: Vec<String>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
}

/// How a guest runs on its point until its disks are at home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstantReport {
    /// Where the server of its disks is to listen.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub socket: PathBuf,
    /// Its disks.
    pub disks: Vec<ServedDisk>,
    /// The server's units for systemd.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub units: Vec<PathBuf>,
    /// What starts the server without systemd.
    pub serve: String,
    /// Whether the point was pinned.
    pub pinned: bool,
    /// What brings its disks home while it runs, as commands for a shell.
    pub home: Vec<String>,
    /// What is left to do when all of them are at home, as commands for a shell.
    pub after: Vec<String>,
}

/// A disk that a guest reads out of its point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServedDisk {
    /// Its name in the definition.
    pub target: String,
    /// The file that takes what the guest writes.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub overlay: PathBuf,
    /// The name by which the server gives it out.
    pub export: String,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
}
