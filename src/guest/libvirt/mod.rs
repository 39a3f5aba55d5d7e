//! Virtual machines as libvirt's own files describe them: `/etc/libvirt/qemu/NAME.xml` for a domain
//! that is defined, `/run/libvirt/qemu/NAME.xml` for one that runs.
//!
//! This module asks no daemon and opens no image. It turns the files into plain values, and for
//! each disk into a decision with its reason. The files belong to the administrator, but reading
//! them is bounded in size, in depth and in number of elements, as for a stranger's files.

mod chain;
mod decide;
mod devices;
mod files;
mod limits;
mod parse;
mod pools;
mod resources;
mod rewrite;
mod saved;

use std::path::PathBuf;

pub use chain::{Link, Links};
pub use decide::{Choice, Reason, decide};
pub use files::{Found, Libvirt, Listing, XmlFile, is_session};
pub use limits::XML_LEN_MAX;
pub use pools::{Pool, Volumes};
pub use resources::{Fate, Firmware, Resource, resources};
pub use rewrite::{Changes, Place, RestoredDisk, Served, rewrite};
pub use saved::saved_definition;

use crate::base::error::{Error, ErrorKind, Result};

/// What libvirt's XML says of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, as libvirt writes it.
    pub uuid: Option<String>,
    /// The libosinfo id of the guest's system, where the domain's metadata has one.
    pub os: Option<String>,
    /// All its disk devices, in the order of the XML.
    pub disks: Vec<Disk>,
    /// Its firmware's variables.
    pub nvram: Option<Nvram>,
    /// Where the variables are, if they are elsewhere.
    pub firmware: Firmware,
    /// libvirt's secret that the emulated TPM's state is encrypted with.
    pub tpm_secret: Option<String>,
    /// Its emulated TPM.
    pub tpm: Option<Tpm>,
    /// The way to the guest agent.
    pub agent: Agent,
    /// What the guest is doing; only the file of a running domain says so.
    pub state: Option<State>,
    /// The process that runs the guest; only the file of a running domain says so.
    pub pid: Option<i32>,
}

/// A disk device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its target, such as `vda`.
    pub target: String,
    /// What it is for the guest.
    pub device: Device,
    /// Where its content is.
    pub source: StorageSource,
    /// The format of the image, such as `qcow2`; nothing if the XML does not say. It is never taken
    /// from the image: a guest writes what it likes into a raw one.
    pub format: Option<String>,
    /// The guest may not write to it.
    pub readonly: bool,
    /// What the guest writes to it is thrown away when it stops.
    pub transient: bool,
    /// A block job copies it to another place at this moment.
    pub mirrored: bool,
    /// The content is encrypted by QEMU or lies in a slice of its source.
    pub special: Option<&'static str>,
    /// What the XML says of the image's backing chain: it counts more than the image's header.
    pub chain: Chain,
    /// Where a block job copies it to, and what lies below that.
    pub mirror: Vec<StorageSource>,
}

/// The backing chain of a disk as the XML describes it: `<backingStore>` and `<dataStore>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// The external data file of the disk's own image, if the XML names it.
    pub data: Option<Box<Store>>,
    /// The images below it, the next one first, as far as the XML names them.
    pub below: Vec<Store>,
    /// The XML ends the chain there (an empty `<backingStore>`). Otherwise the header of the last image
    /// says what lies below.
    pub is_whole: bool,
}

/// An image of a backing chain, or an external data file, as the XML describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Where it is.
    pub source: StorageSource,
    /// Its format; nothing if the XML does not say.
    pub format: Option<String>,
    /// What keeps its bytes from being the image.
    pub special: Option<&'static str>,
    /// Its external data file, if the XML names it.
    pub data: Option<Box<Store>>,
}

/// What a disk device is for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk,
    /// A SCSI device of the host, passed through.
    Lun,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// Something else.
    Other(String),
}

/// Where the content of a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageSource {
    /// A file.
    File(PathBuf),
    /// A block device of the host.
    Block(PathBuf),
    /// A server, by this protocol.
    Network(String),
    /// A volume of a storage pool.
    Volume {
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
        /// Why it is not known which file or device that is; [`Libvirt::find`] finds out.
        why: String,
    },
    /// Another type that libvirt knows.
    Other(String),
    /// Nowhere: an empty drive.
    Nothing,
}

impl StorageSource {
    /// The file or block device, if it is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            _ => None,
        }
    }
}

impl std::fmt::Display for StorageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) | Self::Block(path) => path.display().fmt(f),
            Self::Network(protocol) => write!(f, "its source on a server ({protocol})"),
            Self::Volume { pool, volume, .. } => {
                let (pool, volume) = (parse::short(pool), parse::short(volume));
                write!(f, "volume {volume} of pool {pool}")
            }
            Self::Other(kind) => write!(f, "its source ({kind})"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// The firmware's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// Where they are: [`StorageSource::Nothing`] if libvirt is yet to choose a file.
    pub source: StorageSource,
    /// Their format: `raw` unless the XML says otherwise.
    pub format: String,
}

/// An emulated TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tpm {
    /// Version `1.2` or `2.0`.
    pub version: String,
    /// The folder or file of its state, if the XML says so; otherwise libvirt has a folder for it.
    pub path: Option<PathBuf>,
}

/// The way to the guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Agent {
    /// The domain has no channel for one.
    #[default]
    None,
    /// There is a channel; whether an agent listens is not known.
    Channel,
    /// An agent listens.
    Connected,
    /// No agent listens.
    Disconnected,
}

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest runs, or is about to.
    Running,
    /// The guest is paused: it does nothing until somebody resumes it.
    Paused,
    /// The guest has ended, and its file has not gone yet.
    Off,
}

impl Domain {
    /// Whether the guest is paused.
    pub fn is_paused(&self) -> bool {
        self.state == Some(State::Paused)
    }

    /// What a command line of `virsh` calls the guest: its UUID, which is never mistaken for
    /// another guest's id or for an option.
    pub fn handle(&self) -> &str {
        self.uuid.as_deref().unwrap_or(&self.name)
    }
}

/// What is wrong with a file. The caller puts the file's path in front.
fn malformed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Image, what)
}

/// Takes a domain from the text of one of libvirt's files.
///
/// # Errors
/// [`ErrorKind::Image`] if it is no domain's XML, or goes beyond the limits.
pub fn parse(text: &str) -> Result<Domain> {
    parse::parse(text)
}

#[cfg(test)]
mod tests;
