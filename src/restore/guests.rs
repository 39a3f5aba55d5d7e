//! What libvirt's guests have to do with an image that is about to be written over.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::backup::open_options;
use crate::domain::{Choice, Disk, Found, Libvirt, Source, decide, parse};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, OpenOptions, files_below};
use crate::observer::Observer;
use crate::repository::MachineRecord;
use crate::warning::{Code, Warning};

/// Fails if a guest would be harmed by what is written to the image at `path`: one that runs, one
/// whose memory is saved and would be resumed over the other disk, or one for which the image is only
/// a backing file by now.
///
/// # Errors
/// `Busy`, with what to do about it; also if it can't be told what a guest's disk lies on. What can't
/// be read of libvirt's files is a warning.
pub(super) fn check(libvirt: &Libvirt, path: &Path, observer: &dyn Observer) -> Result<()> {
    let Some(image) = std::fs::metadata(path).ok().map(|data| identity(&data)) else {
        return Ok(());
    };
    let is_it =
        |other: &Path| std::fs::metadata(other).is_ok_and(|other| identity(&other) == image);
    for found in all(libvirt, observer) {
        let name = &found.domain.name;
        for disk in disks(&found) {
            let own = match &disk.source {
                Source::File(own) | Source::Block(own) => own,
                Source::Volume { .. } => {
                    let text = format!(
                        "disk {} of {name} is {}: not known whether it needs the image as it is",
                        disk.target, disk.source
                    );
                    observer.warn(Warning::new(Code::Unchecked, text));
                    continue;
                }
                _ => continue,
            };
            if is_it(own) {
                check_stopped(libvirt, &found, &disk, path)?;
            } else if below(name, &disk, own, path)?.iter().any(|file| is_it(file)) {
                let text = format!(
                    "{} is a backing file of disk {} of {name}",
                    path.display(),
                    disk.target
                );
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

/// Fails if the image at `path`, which only the repository says to be a disk of `machine`, is a disk
/// of another guest.
///
/// # Errors
/// `Usage`: who means it can name it.
pub(super) fn check_owner(
    libvirt: &Libvirt,
    path: &Path,
    machine: &MachineRecord,
    observer: &dyn Observer,
) -> Result<()> {
    let Ok(image) = std::fs::metadata(path).map(|data| identity(&data)) else { return Ok(()) };
    for found in all(libvirt, observer).iter().filter(|found| found.domain.uuid != machine.uuid) {
        for disk in disks(found) {
            let (Source::File(own) | Source::Block(own)) = &disk.source else { continue };
            if std::fs::metadata(own).is_ok_and(|own| identity(&own) == image) {
                let (path, owner) = (path.display(), &found.domain.name);
                let text = format!("{path} is disk {} of {owner} now", disk.target);
                return Err(Error::new(ErrorKind::Usage, text)
                    .because(format!(
                        "the point is of {}, which libvirt does not know",
                        machine.name
                    ))
                    .advise("name the image that is meant, or restore to a new file"));
            }
        }
    }
    Ok(())
}

/// The disks that a guest has now, and those that it has at its next start.
fn disks(found: &Found) -> Vec<Disk> {
    let mut disks = found.domain.disks.clone();
    if let (Some(_), Some(file)) = (&found.live, &found.persistent) {
        // It was parsed before, or nothing would have been found.
        disks.extend(parse(&file.text).map(|domain| domain.disks).unwrap_or_default());
    }
    disks
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
    observer: &dyn Observer,
) -> Result<Option<(PathBuf, OpenOptions)>> {
    let advice = "say which image is meant, or restore to a new file";
    let found = match libvirt.find(&machine.name) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage) => {
            return Ok(None);
        }
        Err(error) => {
            unknown(&error, observer);
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

/// The targets of the disks that belong to a guest now; none if libvirt does not know it.
pub(super) fn disks_now(libvirt: &Libvirt, machine: &MachineRecord) -> Vec<String> {
    let Ok(found) = libvirt.find(&machine.name) else { return Vec::new() };
    let disks = found.domain.disks.into_iter();
    let belongs = |disk: &Disk| !matches!(decide(disk, &[]), Choice::LeaveOut(_));
    disks.filter(belongs).map(|disk| disk.target).collect()
}

/// All guests whose files can be read.
fn all(libvirt: &Libvirt, observer: &dyn Observer) -> Vec<Found> {
    let names = libvirt.list().map(|listing| listing.names).unwrap_or_else(|error| {
        unknown(&error, observer);
        Vec::new()
    });
    let mut all = Vec::new();
    for name in names {
        match libvirt.find(&name) {
            Ok(found) => all.push(found),
            // It was undefined a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => unknown(&error, observer),
        }
    }
    all
}

fn unknown(error: &Error, observer: &dyn Observer) {
    let warning = Warning::failed(Code::Unchecked, error);
    observer.warn(warning.within("not known whether a guest needs the image as it is"));
}

/// The files below the image of a disk, as its XML names them and as the image itself does. `path` is
/// what is about to be written to.
///
/// # Errors
/// `Busy` if they can't be told: `path` may be one of them.
fn below(name: &str, disk: &Disk, own: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = disk.backing.clone();
    if disk.format.as_deref() != Some("qcow2") {
        return Ok(files);
    }
    match files_below(own, Format::Qcow2) {
        Ok(more) => files.extend(more),
        // Without its image the disk is nothing that could be harmed.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            let (target, path) = (&disk.target, path.display());
            let text =
                format!("not known whether {path} is a backing file of disk {target} of {name}");
            return Err(Error::new(ErrorKind::Busy, text).because(error).advise(
                "see to it that qdelta can read that disk's images, undefine the domain if it is no \
                 more, or restore to a new file",
            ));
        }
    }
    Ok(files)
}

/// What a file or block device is recognised by, whatever it is called.
fn identity(data: &Metadata) -> (bool, u64, u64) {
    match data.file_type().is_block_device() {
        true => (true, data.rdev(), 0),
        false => (false, data.dev(), data.ino()),
    }
}
