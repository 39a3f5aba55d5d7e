//! What is on a disk, and in a folder.

use jiff::Timestamp;

use super::{LeftOut, OpenDisk, OpenVolume};
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::flows::report::{FileEntry, FileKind, GuestPath, VolumeReport, VolumesReport};
use crate::inside::filesystem::{self, Filesystem, Found, Id, Node, Step, Time, walk};

/// The volumes of a disk.
pub fn volumes(disk: &OpenDisk, observer: &dyn Observer) -> VolumesReport {
    let recorder = Recorder::new(observer);
    let source = disk.name().display().to_string();
    for note in &disk.survey().notes {
        (&recorder as &dyn Observer).warn(Warning::new(Code::Volume, note.clone()).of(&source));
    }
    let volumes = disk.survey().volumes.iter().map(|volume| VolumeReport {
        volume: volume.name.clone(),
        content: volume.content.name().to_owned(),
        label: volume.label.clone(),
        bytes: volume.size,
        readable: filesystem::is_readable(volume.content),
    });
    VolumesReport { source, volumes: volumes.collect(), warnings: recorder.take() }
}

/// Tells of the files in a folder, or of another file alone; of all that is below, if `deep` says so.
/// `show` says whether more is wanted. Gives how many could not be read.
///
/// # Errors
/// There is no such path; the volume can't be read; somebody asked to stop; those of `show`.
pub fn list(
    volume: &OpenVolume,
    path: &[u8],
    deep: bool,
    show: &mut dyn FnMut(FileEntry) -> Result<bool>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<u64> {
    let found = volume.find(path, false)?;
    let filesystem = &*volume.filesystem;
    let base = trimmed(path);
    let mut left_out = LeftOut::new(observer);
    let mut goes_on = true;
    let is_folder = found.node.kind == filesystem::FileKind::Folder;
    walk(filesystem, &found, &mut |step| {
        cancel.check()?;
        match step {
            Step::Item(item) => {
                let is_start = item.path.is_empty();
                if goes_on && !(is_start && is_folder) {
                    let path = joined(&base, item.path);
                    goes_on = show(entry_of(filesystem, &path, item.id, item.node)?)?;
                }
                Ok(goes_on && (deep || is_start))
            }
            Step::Problem(path, error) => {
                left_out.add(&joined(&base, path), &error);
                Ok(false)
            }
        }
    })?;
    Ok(left_out.count)
}

/// A file as results show it.
///
/// # Errors
/// The volume can't be read. The target of a damaged link is shown as unknown.
fn entry_of(filesystem: &dyn Filesystem, path: &[u8], id: Id, node: &Node) -> Result<FileEntry> {
    let is_link = node.kind == filesystem::FileKind::Link;
    let target = if is_link { filesystem.target(id).ok() } else { None };
    let is_device = node.device != (0, 0);
    Ok(FileEntry {
        name: GuestPath::new(path),
        kind: kind_of(node.kind),
        mode: format!("{:04o}", node.mode),
        uid: node.uid,
        gid: node.gid,
        bytes: node.size,
        links: node.links,
        modified: timestamp(node.modified),
        target: target.map(|target| GuestPath::new(&target)),
        device: is_device.then_some(node.device),
    })
}

pub(super) fn kind_of(kind: filesystem::FileKind) -> FileKind {
    match kind {
        filesystem::FileKind::File => FileKind::File,
        filesystem::FileKind::Folder => FileKind::Folder,
        filesystem::FileKind::Link => FileKind::Link,
        filesystem::FileKind::CharacterDevice => FileKind::CharacterDevice,
        filesystem::FileKind::BlockDevice => FileKind::BlockDevice,
        filesystem::FileKind::Fifo => FileKind::Fifo,
        filesystem::FileKind::Socket => FileKind::Socket,
    }
}

/// A time, if it is one that people have names for.
fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanoseconds.try_into().ok()?).ok()
}

/// The path with a slash before each of its names, and none behind. A `..` takes away the name before it: an
/// archive whose names lead upwards is refused by those who unpack it.
pub(super) fn trimmed(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.into_iter().flat_map(|name| [b"/", name].concat()).collect()
}

/// The path of what lies at `below` in the folder `base`.
pub(super) fn joined(base: &[u8], below: &[u8]) -> Vec<u8> {
    match (base, below) {
        (b"", b"") => b"/".to_vec(),
        (base, b"") => base.to_vec(),
        (base, below) => [base, b"/", below].concat(),
    }
}

/// The last name of a found file, for a copy of it.
pub(super) fn last_name(found: &Found, path: &[u8]) -> Option<Vec<u8>> {
    let typed = path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
    match typed {
        Some(b"." | b"..") | None => found.name.clone(),
        Some(name) => Some(name.to_vec()),
    }
}
