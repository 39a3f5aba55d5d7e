//! What libvirt's guests have to do with an image that is about to be written over.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::backup::open_options;
use crate::domain::{Choice, Disk, Found, Libvirt, Source, decide};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, OpenOptions};
use crate::repository::MachineRecord;

/// Fails if a guest would be harmed by what is written to the image at `path`: one that runs, one
/// whose memory is saved and would be resumed over the other disk, or one for which the image is only
/// a backing file by now.
///
/// # Errors
/// `Busy`, with what to do about it. What can't be read of libvirt's files is a warning.
pub(super) fn check(libvirt: &Libvirt, path: &Path, roots: &[PathBuf]) -> Result<()> {
    let Some(image) = std::fs::metadata(path).ok().map(|data| identity(&data)) else {
        return Ok(());
    };
    let is_it =
        |other: &Path| std::fs::metadata(other).is_ok_and(|other| identity(&other) == image);
    for found in all(libvirt) {
        for disk in &found.domain.disks {
            let (Source::File(own) | Source::Block(own)) = &disk.source else { continue };
            if is_it(own) {
                check_stopped(libvirt, &found, disk, path)?;
            } else if below(&found, disk, roots).iter().any(|file| is_it(file)) {
                let (target, name) = (&disk.target, &found.domain.name);
                let text =
                    format!("{} is a backing file of disk {target} of {name}", path.display());
                return Err(Error::new(ErrorKind::Busy, text)
                    .because("what is written to it would damage that disk")
                    .advise(format!(
                        "its image is {} now: roll that back, or merge the snapshot first (virsh \
                         blockcommit)",
                        own.display()
                    )));
            }
        }
    }
    Ok(())
}

/// Fails if the guest that has the image runs, or its memory is saved.
fn check_stopped(libvirt: &Libvirt, found: &Found, disk: &Disk, path: &Path) -> Result<()> {
    let name = &found.domain.name;
    let what = format!("{} is disk {} of {name}", path.display(), disk.target);
    if found.live.is_some() {
        return Err(Error::new(ErrorKind::Busy, format!("{what}, which runs"))
            .advise(format!("shut it down first: virsh shutdown {name}")));
    }
    let Some(saved) = libvirt.managed_save(name) else { return Ok(()) };
    Err(Error::new(ErrorKind::Busy, format!("{what}, whose memory is saved"))
        .because(format!("the next start would resume {} over another disk", saved.display()))
        .advise(format!(
            "start and shut down the guest, or give its memory up: virsh managedsave-remove {name}"
        )))
}

/// The image that a disk of a guest has now, and how it is opened. None if libvirt does not know the
/// guest.
///
/// # Errors
/// `NotFound` if the guest has no such disk in an image any more; `Usage` if it is another guest with
/// the same name.
pub(super) fn image_now(
    libvirt: &Libvirt,
    machine: &MachineRecord,
    target: &str,
    roots: &[PathBuf],
) -> Result<Option<(PathBuf, OpenOptions)>> {
    let advice = "say which image is meant, or restore to a new file";
    let found = match libvirt.find(&machine.name) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage) => {
            return Ok(None);
        }
        Err(error) => {
            unknown(&error);
            return Ok(None);
        }
    };
    let name = &machine.name;
    if found.domain.uuid != machine.uuid {
        let text = format!("{name} has another UUID now: it is not the guest of the point");
        return Err(Error::new(ErrorKind::Usage, text).advise(advice));
    }
    let disk = found.domain.disks.iter().find(|disk| disk.target == target);
    let gone = |why: String| {
        Error::new(ErrorKind::NotFound, format!("disk {target} of {name} {why}")).advise(advice)
    };
    let disk = disk.ok_or_else(|| gone("is no more".to_owned()))?;
    match decide(disk, &[]) {
        Choice::Take { image, format, .. } => Ok(Some((image, open_options(disk, format, roots)?))),
        Choice::LeaveOut(reason) | Choice::Refuse(reason) => Err(gone(reason.0)),
    }
}

/// All guests whose files can be read.
fn all(libvirt: &Libvirt) -> Vec<Found> {
    let names = libvirt.list().map(|listing| listing.names).unwrap_or_else(|error| {
        unknown(&error);
        Vec::new()
    });
    let mut all = Vec::new();
    for name in names {
        match libvirt.find(&name) {
            Ok(found) => all.push(found),
            // It was undefined a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => unknown(&error),
        }
    }
    all
}

fn unknown(error: &Error) {
    tracing::warn!("not known whether a guest needs the image as it is: {}", error.chain());
}

/// The files below the image of a disk: as the image has it, or, if it can't be opened, as the XML
/// does.
fn below(found: &Found, disk: &Disk, roots: &[PathBuf]) -> Vec<PathBuf> {
    let Choice::Take { image, format, .. } = decide(disk, &[]) else {
        return disk.backing.clone();
    };
    let opened = open_options(disk, format, roots).and_then(|open| Image::open(&image, &open));
    match opened {
        Ok(opened) => opened
            .layers()
            .iter()
            .filter(|layer| layer.depth > 0)
            .flat_map(|layer| [Some(layer.path.clone()), layer.data_file.clone()])
            .flatten()
            .collect(),
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                let (target, name) = (&disk.target, &found.domain.name);
                tracing::warn!(
                    "not known what disk {target} of {name} is above: {}",
                    error.chain()
                );
            }
            disk.backing.clone()
        }
    }
}

/// What a file or block device is recognised by, whatever it is called.
fn identity(data: &Metadata) -> (bool, u64, u64) {
    match data.file_type().is_block_device() {
        true => (true, data.rdev(), 0),
        false => (false, data.dev(), data.ino()),
    }
}
