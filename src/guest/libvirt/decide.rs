//! What becomes of each disk of a domain: a decision with its reason, never silence.

use std::path::PathBuf;

use super::{Device, Disk, StorageSource};
use crate::disk::image::Format;

/// What becomes of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The disk is backed up.
    Take {
        /// The image.
        image: PathBuf,
        /// Its format.
        format: Format,
        /// The image is a block device: no filesystem can clone it.
        block: bool,
    },
    /// The disk is left out, as it should be.
    LeaveOut(Reason),
    /// The disk belongs to the machine and can't be backed up: no point is made unless the disk is
    /// excluded.
    Refuse(Reason),
}

/// Why a disk is not backed up, as a sentence without its subject: "is a CD-ROM drive".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(pub String);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Decides what becomes of a disk. `excluded` are the targets that the administrator leaves out.
pub fn decide(disk: &Disk, excluded: &[String]) -> Choice {
    let reason = |text: &str| Reason(text.to_owned());
    if excluded.contains(&disk.target) {
        return Choice::LeaveOut(reason("was excluded"));
    }
    match &disk.device {
        Device::Cdrom => return Choice::LeaveOut(reason("is a CD-ROM drive")),
        Device::Floppy => return Choice::LeaveOut(reason("is a floppy drive")),
        Device::Lun => {
            return Choice::Refuse(reason("is a SCSI device passed through to the guest"));
        }
        Device::Other(kind) => {
            return Choice::Refuse(Reason(format!("is a device of the unknown kind {kind:?}")));
        }
        Device::Disk => {}
    }
    if disk.readonly {
        return Choice::LeaveOut(reason("is read-only for the guest"));
    }
    if disk.transient {
        return Choice::LeaveOut(reason(
            "is transient: what the guest writes to it is thrown away",
        ));
    }
    take(disk).unwrap_or_else(Choice::Refuse)
}

/// What reading a disk of the machine needs.
fn take(disk: &Disk) -> Result<Choice, Reason> {
    let (image, block) = match &disk.source {
        StorageSource::File(path) => (path.clone(), false),
        StorageSource::Block(path) => (path.clone(), true),
        StorageSource::Network(protocol) => {
            return Err(Reason(format!("lies on a server (protocol {protocol}), not in a file")));
        }
        StorageSource::Volume { pool, volume, why } => {
            return Err(Reason(format!(
                "is volume {volume:?} of the storage pool {pool:?}, and it is not known which file \
                 that is: {why}"
            )));
        }
        StorageSource::Other(kind) => {
            return Err(Reason(format!("is a disk of type {kind:?}, no file")));
        }
        StorageSource::Nothing => return Err(Reason("has no source".to_owned())),
    };
    if !image.is_absolute() {
        return Err(Reason(format!("has the relative path {}", image.display())));
    }
    if let Some(special) = disk.special {
        return Err(Reason(format!("can't be read as it is: {special}")));
    }
    let format = match disk.format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw") => Format::Raw,
        // libvirt assumes the same format, and a guest can't influence this assumption.
        None => Format::Raw,
        Some(other) => return Err(Reason(format!("has the format {other:?}, not qcow2 or raw"))),
    };
    if format == Format::Qcow2
        && let Err(why) = disk.chain.links()
    {
        return Err(Reason(format!("can't be read as the guest sees it: {why}")));
    }
    Ok(Choice::Take { image, format, block })
}
