//! The value by which a file of an image is recognised again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::io::Opener;

/// What tells a file that nobody has written to from one that somebody has, or from another file
/// in its place. A file that was committed into, restored or copied over has another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Its inode.
    pub inode: u64,
    /// Its length in bytes.
    pub length: u64,
    /// When it was written to, in nanoseconds since 1970; none if a later write need not show in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_ns: Option<i64>,
    /// When it, its owner, its rights or its names were changed, in nanoseconds since 1970: what
    /// `cp -p`, `rsync -t` and `touch` can't set back. But libvirt sets owners whenever a guest
    /// starts, so only of an image that was left alone is it asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_ns: Option<i64>,
    /// When it was made, in nanoseconds since 1970, where the filesystem knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<i64>,
    /// The kernel's number of the mount that it lies on, which it gives no other one (from Linux
    /// 6.8). A filesystem that went down and was mounted again may have lost the time of a write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<u64>,
    /// The subvolume of Btrfs or bcachefs that it lies in (from Linux 6.10). In a snapshot of one, files
    /// are the same in all else, and can have the time of a write without the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<u64>,
    /// BLAKE3 of the first cluster and the L1 table of a qcow2 image, as hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<String>,
}

/// What of it is the same as long as it is the same file, whoever writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    inode: u64,
    born_ns: Option<i64>,
    subvolume: Option<u64>,
}

impl Identity {
    /// Of a file with these fields of its fingerprint.
    pub fn new(inode: u64, born_ns: Option<i64>, subvolume: Option<u64>) -> Self {
        Self { inode, born_ns, subvolume }
    }
}

impl Fingerprint {
    /// Which file it is of.
    pub fn identity(&self) -> Identity {
        Identity::new(self.inode, self.born_ns, self.subvolume)
    }
}

/// The kernel's name for the time since the machine was started; none where it tells none.
pub fn boot() -> Option<String> {
    let text = Opener::READ.read_text(Path::new("/proc/sys/kernel/random/boot_id"), 4096).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}
