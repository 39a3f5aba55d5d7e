//! What libvirt's guests have to do with an image that is about to be written over.

use std::path::{Path, PathBuf};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::layers;
use crate::disk::image::{Format, OpenOptions, StatedChain, files_below};
use crate::disk::sys::FileId;
use crate::flows::backup::{is_same_uuid, open_options, stated_chain};
use crate::guest::libvirt::{Choice, Disk, Domain, Found, Libvirt, StorageSource, decide};
use crate::vault::repository::MachineRecord;

/// Fails if a guest would be harmed by what is written to the image at `path`: one that runs, one
/// whose memory is saved and would be resumed over the other disk, or one for which the image is only
/// a backing file by now.
///
/// # Errors
/// `Busy`, with what to do about it; also if it can't be told what a guest's disk is or lies on.
pub(super) fn check(libvirt: &Libvirt, path: &Path) -> Result<()> {
    if std::fs::metadata(path).is_err() {
        return Ok(());
    }
    let unknown = |error: Error| {
        let text = format!("not known whether {} is or lies below a guest's disk", path.display());
        Error::new(ErrorKind::Busy, text).because(error.chain()).advise(
            "see to it that libvirt's files can be read (root can), undefine the domain if it is no more, \
             or restore to a new file",
        )
    };
    for name in libvirt.list().map_err(unknown)?.names {
        let found = match libvirt.find(&name) {
            Ok(found) => found,
            // It was undefined a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(unknown(error)),
        };
        for disk in disks(&found) {
            Other { libvirt, found: &found, disk, path }.check()?;
        }
    }
    Ok(())
}

/// A disk of a guest, and an image that is about to be written over.
struct Other<'a> {
    libvirt: &'a Libvirt,
    found: &'a Found,
    disk: &'a Disk,
    path: &'a Path,
}

impl Other<'_> {
    fn check(&self) -> Result<()> {
        match &self.disk.source {
            StorageSource::File(own) | StorageSource::Block(own) if share_bytes(own, self.path) => {
                return check_stopped(self.libvirt, self.found, self.disk, self.path);
            }
            StorageSource::Volume { .. } => self.check_unknown()?,
            _ => {}
        }
        for source in self.disk.other_sources() {
            match source {
                StorageSource::File(file) | StorageSource::Block(file)
                    if share_bytes(file, self.path) =>
                {
                    let copied = self.disk.mirror.contains(source);
                    return Err(if copied { self.copied() } else { self.harmed() });
                }
                StorageSource::Volume { why, .. } => {
                    return Err(self.not_told(format!("{source}: {why}")));
                }
                // What lies on a server is no file of this host.
                _ => {}
            }
        }
        match self.below()?.iter().any(|file| share_bytes(file, self.path)) {
            true => Err(self.harmed()),
            false => Ok(()),
        }
    }

    /// Fails if a disk of which nobody knows which file it is may be this image in use, or lie on it.
    fn check_unknown(&self) -> Result<()> {
        let StorageSource::Volume { why, .. } = &self.disk.source else { return Ok(()) };
        let name = &self.found.domain.name;
        let used = self.found.live.is_some() || self.libvirt.managed_save(name).is_some();
        if !used && (!has_header(self.disk.format.as_deref()) || self.is_stated()) {
            return Ok(());
        }
        Err(self.not_told(format!("it is {}: {why}", self.disk.source)))
    }

    /// Whether the XML says everything about what lies below the disk's own image.
    fn is_stated(&self) -> bool {
        self.disk.chain.is_whole || !self.disk.chain.below.is_empty()
    }

    /// The files below the images of the disk that their headers name, where the XML says nothing.
    fn below(&self) -> Result<Vec<PathBuf>> {
        let (disk, chain) = (self.disk, &self.disk.chain);
        let own = (&disk.source, disk.format.as_deref(), chain.data.as_deref());
        let below = chain.below.iter();
        let below = below.map(|it| (&it.source, it.format.as_deref(), it.data.as_deref()));
        let mut files = Vec::new();
        for (depth, (source, format, data)) in std::iter::once(own).chain(below).enumerate() {
            if !has_header(format) {
                // Nothing lies below a raw image, whatever the XML says.
                break;
            }
            let (StorageSource::File(path) | StorageSource::Block(path)) = source else { continue };
            let stated = StatedChain {
                data_file: data.and_then(|data| data.source.path()).map(Path::to_path_buf),
                is_whole: chain.is_whole || depth < chain.below.len(),
                ..StatedChain::default()
            };
            files.extend(self.below_one(path, format.unwrap_or_default(), &stated)?);
        }
        Ok(files)
    }

    fn below_one(&self, path: &Path, format: &str, stated: &StatedChain) -> Result<Vec<PathBuf>> {
        let found = match format {
            "qcow2" => files_below(path, Format::Qcow2, stated),
            _ if stated.is_whole || !path.exists() => return Ok(Vec::new()),
            _ => Err(Error::new(ErrorKind::Image, format!("its format is {format}"))),
        };
        match found {
            Ok(files) => Ok(files),
            // Without its image the disk is nothing that could be harmed.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.not_told(error.chain())),
        }
    }

    fn harmed(&self) -> Error {
        let (path, target) = (self.path.display(), &self.disk.target);
        let text =
            format!("{path} is a backing file of disk {target} of {}", self.found.domain.name);
        Error::new(ErrorKind::Busy, text)
            .because("what is written to it would damage that disk")
            .advise(format!(
                "its image is {} now: roll that back, or merge the snapshot first (virsh blockcommit)",
                self.disk.source
            ))
    }

    /// A block job copies the disk into the image, or over it.
    fn copied(&self) -> Error {
        let (path, target) = (self.path.display(), &self.disk.target);
        let name = &self.found.domain.name;
        let text = format!("a block job copies disk {target} of {name} to {path}, or over it");
        Error::new(ErrorKind::Busy, text)
            .advise(format!("end the job first: virsh blockjob {name} {target} --abort"))
    }

    /// The image may be, or lie below, the disk.
    fn not_told(&self, why: String) -> Error {
        let (path, target) = (self.path.display(), &self.disk.target);
        let name = &self.found.domain.name;
        let text = format!("not known whether {path} is a backing file of disk {target} of {name}");
        Error::new(ErrorKind::Busy, text).because(why).advise(
            "see to it that qdelta can read that disk's images and its pool's definition, undefine the \
             domain if it is no more, or restore to a new file",
        )
    }
}

/// Whether an image of this format can name files in its header (libvirt, `virstoragefile.h`: all beyond
/// `VIR_STORAGE_FILE_BACKING`).
fn has_header(format: Option<&str>) -> bool {
    matches!(format, Some("qcow2" | "qcow" | "cow" | "qed" | "vmdk"))
}

/// Fails if the image at `path`, which only the repository says to be a disk of `machine`, is a disk
/// of another guest.
///
/// # Errors
/// `Usage`: who means it can name it.
pub(super) fn check_owner(libvirt: &Libvirt, path: &Path, machine: &MachineRecord) -> Result<()> {
    for found in all(libvirt).iter().filter(|found| found.domain.uuid != machine.uuid) {
        for disk in disks(found) {
            if disk.source.path().is_some_and(|own| is_same_disk(own, path)) {
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

/// Fails if the file or device at `path` is a disk of another guest than the one of this name, or of this UUID.
///
/// # Errors
/// `Busy`: nothing of another guest's is replaced.
pub(super) fn check_not_others(
    libvirt: &Libvirt,
    path: &Path,
    (name, uuid): (&str, Option<&str>),
) -> Result<()> {
    let is_own = |found: &&Found| {
        let own = found.domain.uuid.as_deref().zip(uuid);
        found.domain.name == name || own.is_some_and(|(one, other)| is_same_uuid(one, other))
    };
    for found in all(libvirt).iter().filter(|found| !is_own(found)) {
        let mut disks = disks(found);
        let is_it = |disk: &&Disk| disk.source.path().is_some_and(|own| share_bytes(own, path));
        if let Some(disk) = disks.find(is_it) {
            let (path, owner) = (path.display(), &found.domain.name);
            let text = format!("{path} is disk {} of {owner}, another guest", disk.target);
            return Err(Error::new(ErrorKind::Busy, text)
                .advise("restore to another folder, or under another name (--rename)"));
        }
    }
    Ok(())
}

/// The disks that a guest has now, and those that it has at its next start.
fn disks(found: &Found) -> impl Iterator<Item = &Disk> {
    found.domain.disks.iter().chain(&found.next_disks)
}

/// What the definition of a guest whose disk the image at `path` is says of its chain; nothing if it is
/// nobody's.
///
/// # Errors
/// The definition describes a chain that can't be read.
pub(super) fn chain_of(libvirt: &Libvirt, path: &Path) -> Result<StatedChain> {
    let all = all(libvirt);
    let mut disks = all.iter().flat_map(disks);
    let own = disks.find(|disk| {
        disk.format.as_deref() == Some("qcow2")
            && disk.source.path().is_some_and(|own| is_same_disk(own, path))
    });
    own.map_or(Ok(StatedChain::default()), stated_chain)
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
    (roots, same_guest): (&[PathBuf], bool),
    observer: &dyn Observer,
) -> Result<Option<(PathBuf, OpenOptions)>> {
    let advice = "say which image is meant, or restore to a new file";
    let found = match libvirt.find(&machine.name) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Usage) => {
            return Ok(None);
        }
        Err(error) => {
            let text = format!("not known what disk {target} of {} is now", machine.name);
            return Err(Error::new(ErrorKind::Busy, text).because(error.chain()).advise(advice));
        }
    };
    let name = &machine.name;
    if let Some(difference) = another_guest(&found.domain, machine) {
        let text = format!("{name} is another guest than that of the point: {difference}");
        if !same_guest {
            return Err(Error::new(ErrorKind::Usage, text).advise(format!(
                "--same-guest says that it is the same all the same; or {advice}"
            )));
        }
        observer.warn(Warning::new(Code::OtherGuest, text));
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

/// How the guest of a point and the one that has its name here differ, if they are two.
fn another_guest(here: &Domain, machine: &MachineRecord) -> Option<String> {
    let (then, now) = (machine.uuid.as_ref()?, here.uuid.as_ref()?);
    let differ = !is_same_uuid(then, now);
    differ.then(|| format!("that one has the UUID {then}, and the one here {now}"))
}

/// The UUID of the guest that has the name of a point's guest here. Warns if it is another one.
pub(super) fn uuid_here(
    libvirt: &Libvirt,
    machine: &MachineRecord,
    observer: &dyn Observer,
) -> Option<String> {
    let here = libvirt.find(&machine.name).ok()?.domain;
    if let Some(difference) = another_guest(&here, machine) {
        let name = &machine.name;
        let text = format!("{name} is another guest here than that of the point: {difference}");
        observer.warn(Warning::new(Code::OtherGuest, text));
    }
    here.uuid
}

/// The targets of the disks that belong to a guest now; none if libvirt does not know it.
pub(super) fn disks_now(libvirt: &Libvirt, machine: &MachineRecord) -> Vec<String> {
    let Ok(found) = libvirt.find(&machine.name) else { return Vec::new() };
    let disks = found.domain.disks.into_iter();
    let belongs = |disk: &Disk| !matches!(decide(disk, &[]), Choice::LeaveOut(_));
    disks.filter(belongs).map(|disk| disk.target).collect()
}

/// All guests whose files can be read. Before anything is written, [`check`] refuses if there are others.
fn all(libvirt: &Libvirt) -> Vec<Found> {
    let names = libvirt.list().map(|listing| listing.names).unwrap_or_default();
    names.iter().filter_map(|name| libvirt.find(name).ok()).collect()
}

/// Whether both names lead to the same bytes: one file or block device, or a loop device and its file.
fn is_same_disk(one: &Path, other: &Path) -> bool {
    are(one, other, layers::is_same_disk)
}

/// Whether what is written to the one changes the other: they are the same bytes, or one lies on the other.
pub(super) fn share_bytes(one: &Path, other: &Path) -> bool {
    are(one, other, layers::share_bytes)
}

/// Whether two names that lead somewhere lead to what `test` asks.
fn are(one: &Path, other: &Path, test: impl Fn(FileId, FileId) -> bool) -> bool {
    matches!((FileId::at(one), FileId::at(other)), (Ok(one), Ok(other)) if test(one, other))
}
