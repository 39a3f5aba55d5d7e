//! Files out of a point.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::base::warning::Warning;

/// A volume of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Its name: `disk`, `p1`, `vg/lv`.
    pub volume: String,
    /// What it holds, by its magic bytes: `ext`, `ntfs`, `swap`.
    pub content: String,
    /// The name of a GPT's partition.
    pub label: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether its files can be read here.
    pub readable: bool,
}

/// The volumes of a disk at a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesReport {
    /// The disk and the point.
    pub source: String,
    /// The volumes.
    pub volumes: Vec<VolumeReport>,
    /// What was found damaged, and others.
    pub warnings: Vec<Warning>,
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device of characters.
    CharacterDevice,
    /// A device of blocks.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A path of a guest: any bytes. As text, bytes that are no UTF-8 are U+FFFD; the exact ones stand beside
/// it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPath {
    /// The path as text.
    pub path: String,
    /// The exact bytes in hexadecimal, if they are no UTF-8.
    pub path_hex: Option<String>,
}

impl GuestPath {
    /// The path of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let path = String::from_utf8_lossy(bytes).into_owned();
        let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let path_hex = if path.as_bytes() == bytes { None } else { Some(hex()) };
        Self { path, path_hex }
    }

    /// The exact bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let Some(hex) = &self.path_hex else { return self.path.clone().into_bytes() };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or_default() as u8;
        let pair = |pair: &[u8]| pair.iter().fold(0, |byte, half| byte << 4 | digit(half));
        hex.as_bytes().chunks(2).map(pair).collect()
    }

    /// The same as a path of this system.
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.bytes()))
    }
}

/// A file of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path from the root of its volume.
    #[serde(flatten)]
    pub name: GuestPath,
    /// What kind of file it is.
    pub kind: FileKind,
    /// Permissions, as `chmod` takes them: `0644`.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// How many names it has.
    pub links: u32,
    /// Last change of the content.
    #[serde(with = "text::optional")]
    pub modified: Option<Timestamp>,
    /// The target of a link.
    pub target: Option<GuestPath>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
}

/// The files below a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesReport {
    /// The disk and the point.
    pub source: String,
    /// The volume.
    pub volume: String,
    /// What can't be read, and others.
    pub warnings: Vec<Warning>,
    /// The files.
    pub files: Vec<FileEntry>,
}

/// How a file differs between two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is at the second point alone.
    Added,
    /// It is at the first point alone.
    Removed,
    /// Its content is another one, or the target of a link.
    Content,
    /// Its content is the same; owner, mode, time or extended attributes are not.
    Attributes,
}

/// A file that differs between two points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// How it differs.
    pub change: Change,
    /// Its path from the root of its volume.
    #[serde(flatten)]
    pub name: GuestPath,
    /// What kind of file it is.
    pub kind: FileKind,
}

/// What differs between the files of a disk at two points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// The disk and the first point.
    pub from: String,
    /// The disk and the second point.
    pub to: String,
    /// The volume.
    pub volume: String,
    /// What can't be read, and others.
    pub warnings: Vec<Warning>,
    /// The files that differ, by their paths.
    pub changes: Vec<FileChange>,
}

/// Files that were written to a folder or an archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakenReport {
    /// The disk and the point.
    pub source: String,
    /// The volume.
    pub volume: String,
    /// Where they were written to; `-` for standard output.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub output: PathBuf,
    /// How many files, folders, links and others.
    pub files: u64,
    /// Bytes of content, with the holes.
    pub bytes: u64,
    /// How many could not be read or written: each has a warning, up to a hundred of them.
    pub left_out: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was left out, and others.
    pub warnings: Vec<Warning>,
}

impl TakenReport {
    /// Nothing yet, from a volume to standard output.
    pub(crate) fn of(source: String, volume: String) -> Self {
        let output = PathBuf::from("-");
        let (files, bytes, left_out) = (0, 0, 0);
        Self { source, volume, output, files, bytes, left_out, seconds: 0.0, warnings: Vec::new() }
    }
}
