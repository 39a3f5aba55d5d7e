//! Whether what is about to be backed up is the disk of the points before: the same guest, the same
//! image, read in the same way. A point of another disk in the chain would be sound, and found on the day
//! when the right one is needed.

use std::iter::once;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use qdelta_formats::archive::{Digest, Geometry, RootHasher, zero_group_digest};

use super::together::Ready;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::device_id;
use crate::disk::files::paths::{absolute, is_same_place, is_uri};
use crate::disk::image::{self, Format, OpenOptions, files_below};
use crate::flows::capture::Captured;
use crate::guest::libvirt::Domain;
use crate::vault::point::Base;
use crate::vault::repository::{Catalog, DiskId, DiskRecord, DomainName, LayerRecord};

/// Gives an image that comes without a format the one that its disk had at the latest point: a guest
/// writes what it likes into a raw disk, and a qcow2 image that lost its header is no raw disk. Gives
/// what the admin should know of it.
///
/// # Errors
/// The image has lost all that it had; it or the repository can't be read.
pub(super) fn settle_format(
    catalog: &Catalog,
    disk: &DiskId,
    path: &Path,
    open: &mut OpenOptions,
) -> Result<Option<Warning>> {
    if open.format.is_some() || open.as_file || open.export.is_some() {
        return Ok(None);
    }
    let Some((_, record)) = catalog.latest_record(disk)? else { return Ok(None) };
    let record = &record;
    // What a server gives out under its own name has no format of a file.
    if is_uri(&record.image.path) {
        if !image::is_qcow2(path)? {
            return Ok(None);
        }
        let text = format!(
            "{} begins like a qcow2 image, and a guest can write that into a raw one",
            path.display()
        );
        return Err(Error::new(ErrorKind::Usage, text)
            .because(format!(
                "{disk} was read from a server at the point before, which tells no format"
            ))
            .advise("say which format it has: --format qcow2 or --format raw"));
    }
    let format = record.image.format;
    if let Some(format) = format_of_relative(record, path) {
        open.format = Some(format);
        return Ok(None);
    }
    open.format = Some(format);
    if format == Format::Raw && !is_top(record, path) && image::is_qcow2(path)? {
        let text = format!("{} is a qcow2 image, and {disk} was a raw disk", path.display());
        return Err(Error::new(ErrorKind::Image, text).advise(
            "--format qcow2 says that the disk was converted, --format raw that the file's bytes are \
             the disk",
        ));
    }
    if format == Format::Qcow2 {
        return Ok(None);
    }
    let size = record.virtual_size;
    let is_empty = std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() == 0);
    if is_empty && size > 0 {
        let text = format!("{} is empty", path.display());
        return Err(Error::new(ErrorKind::Image, text)
            .because(format!("{disk} had {} at the point before", shown(size)))
            .advise("if it is to be so, say it with --format raw"));
    }
    Ok(image::container(path)?.map(|what| {
        let path = path.display();
        let text = format!("{path} looks like {what}, and is read as raw, as at the point before");
        Warning::new(Code::OtherFormat, text).advise(
            "if it was converted, give its --format; if not, --format raw ends this warning",
        )
    }))
}

/// The same failure, with what is known of an image that is no qcow2 image any more.
pub(super) fn explained(error: Error, catalog: &Catalog, disk: &DiskId, path: &Path) -> Error {
    let Ok(Some((id, record))) = catalog.latest_record(disk) else { return error };
    let is_lost =
        record.image.format == Format::Qcow2 && matches!(image::is_qcow2(path), Ok(false));
    if !is_lost {
        return error;
    }
    error.within(format!("{disk} was a qcow2 image at point {id}")).advise(format!(
        "if it is damaged, qdelta restore {disk}@{id} brings that point back; if it has another format \
         now, say so with --format"
    ))
}

/// Fails if another image than at the point before is behind the name of a disk.
///
/// # Errors
/// `Usage`: who means it can say so.
pub(super) fn check_image(ready: &Ready<'_>) -> Result<()> {
    let Some(before) = &ready.base.latest else { return Ok(()) };
    if is_same_image(&before.record, ready.image, ready.open) {
        return Ok(());
    }
    let disk = ready.disk;
    Err(another_image(ready, &before.record).advise(format!(
        "say --disk {disk} if it is the same disk, moved or restored; otherwise give it a name of its \
         own: --disk NAME"
    )))
}

/// Fails if another image than at the point before is behind a guest's disk. All its disks are looked at
/// together: they may have been exchanged.
///
/// # Errors
/// `Usage`: who means it can say so.
pub(super) fn check_guest_images(all: &[Ready<'_>]) -> Result<()> {
    for (number, ready) in all.iter().enumerate() {
        let Some(before) = &ready.base.latest else { continue };
        let others = all.iter().enumerate().filter(|(other, _)| *other != number);
        let is_others = |record: &DiskRecord| is_file_of(ready.image, record.image.layers.first());
        let mut others = others.filter_map(|(_, other)| Some(&other.base.latest.as_ref()?.record));
        let is_exchanged =
            others.any(is_others) && !is_file_of(ready.image, before.record.image.layers.first());
        // A revert to an external snapshot puts a new overlay over the old base. Of the same guest, that
        // is enough.
        let is_reverted = || shares_layer(&before.record, ready.image, ready.open);
        if !is_exchanged
            && (is_same_image(&before.record, ready.image, ready.open) || is_reverted())
        {
            continue;
        }
        return Err(another_image(ready, &before.record).advise(
            "say --same-guest once if it is the same disk: its storage was moved (also by a block copy or pull), or it was restored; \
             if not, give the disk another target, or the guest another repository",
        ));
    }
    Ok(())
}

fn another_image(ready: &Ready<'_>, before: &DiskRecord) -> Error {
    let text = format!("{} is another image than at the point before", ready.disk);
    let (was, now) = (before.image.path.display(), absolute(ready.image));
    Error::new(ErrorKind::Usage, text)
        .because(format!("it was {was}, and is {} now", now.display()))
}

/// Whether the image at `path` is the one that was recorded: it has its name, or it is the same file under
/// another; or one lies over the other, by a snapshot that was made or merged since.
fn is_same_image(record: &DiskRecord, path: &Path, open: &OpenOptions) -> bool {
    let recorded = &record.image.layers;
    let was_below = recorded.iter().skip(1).any(|layer| is_file_of(path, Some(layer)));
    is_top(record, path)
        || was_below
        || below(path, open).iter().any(|file| is_file_of(file, recorded.first()))
}

/// Whether the file at `path` has the name of the image that was recorded, or is it under another.
fn is_top(record: &DiskRecord, path: &Path) -> bool {
    if let Some(is_same) = is_device_of(device_id(path), record.image.layers.first()) {
        return is_same;
    }
    // As a manifest holds it, which need not be all of it.
    absolute(path).to_string_lossy() == record.image.path.to_string_lossy()
        || is_same_place(path, &record.image.path)
        || is_file_of(path, record.image.layers.first())
}

/// The format of the file at `path`, if it is a base of the image that was recorded, or a snapshot over it:
/// of a raw disk, too, that is a qcow2 image.
fn format_of_relative(record: &DiskRecord, path: &Path) -> Option<Format> {
    if is_top(record, path) {
        return None;
    }
    let mut bases = record.image.layers.iter().skip(1);
    if let Some(base) = bases.find(|layer| is_file_of(path, Some(layer))) {
        return Some(base.format);
    }
    let format = Some(Format::Qcow2);
    let open = OpenOptions { format, ..OpenOptions::default() };
    let is_over = || is_same_image(record, path, &open);
    format.filter(|_| matches!(image::is_qcow2(path), Ok(true)) && is_over())
}

/// Whether any file of the image was one of it at the point before.
fn shares_layer(record: &DiskRecord, path: &Path, open: &OpenOptions) -> bool {
    let mut now = once(path.to_path_buf()).chain(below(path, open));
    now.any(|file| record.image.layers.iter().any(|layer| is_file_of(&file, Some(layer))))
}

/// The files below an image; nothing where they can't be told: whoever opens the image says why.
fn below(path: &Path, open: &OpenOptions) -> Vec<PathBuf> {
    match open.format {
        Some(format) if !open.as_file => files_below(path, format, &open.chain).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Whether the file at `path` is the one that was recorded as `layer`, under whatever name. Of two
/// filesystems that don't note when a file was made, any two files may have the same inode.
fn is_file_of(path: &Path, layer: Option<&LayerRecord>) -> bool {
    let Some(layer) = layer else { return false };
    if let Some(is_same) = is_device_of(device_id(path), Some(layer)) {
        return is_same;
    }
    if is_same_place(path, &layer.path) {
        return true;
    }
    let recorded = layer.fingerprint.as_ref().filter(|it| it.born_ns.is_some());
    let now = || image::identity(path).ok().flatten();
    recorded.is_some_and(|recorded| now() == Some(recorded.identity()))
}

/// Whether a device with this id is the one that was recorded as `layer`, whatever both are called; nothing where
/// one of them has no id.
fn is_device_of(now: Option<String>, layer: Option<&LayerRecord>) -> Option<bool> {
    Some(now? == *layer?.device.as_ref()?)
}

/// Fails if the guest is another one than that of the latest point of its name: one of another host, or
/// one that was made anew.
///
/// # Errors
/// `Usage`: who means it can say so.
pub(super) fn check_guest(catalog: &Catalog, name: &DomainName, domain: &Domain) -> Result<()> {
    let Some((point, before)) = catalog.last_machine(name) else { return Ok(()) };
    let (Some(then), Some(now)) = (&before.uuid, &domain.uuid) else { return Ok(()) };
    if is_same_uuid(then, now) {
        return Ok(());
    }
    let text = format!("{} is another guest than at point {point}", domain.name);
    Err(Error::new(ErrorKind::Usage, text)
        .because(format!("that one has the UUID {then}, and this one {now}"))
        .advise(
            "say --same-guest once if it was defined anew; if it is another guest, rename it or back it \
             up into another repository",
        ))
}

/// Warns of disks that the guest had at its latest point and has no more: each further point is sound, and
/// lacks them.
pub(super) fn warn_of_gone(
    catalog: &Catalog,
    name: &DomainName,
    domain: &Domain,
    observer: &dyn Observer,
) {
    for disk in catalog.disks_of_machine(name) {
        if domain.disks.iter().any(|now| now.target == disk.as_str()) {
            continue;
        }
        let text = format!("the guest has no disk {disk} any more, which was in the point before");
        let advice = format!("qdelta points {name}/{disk} lists what there is of it");
        observer.warn(Warning::new(Code::DiskGone, text).advise(advice));
    }
}

/// Whether two texts are the same UUID: tools write it in capitals, and without dashes.
pub(crate) fn is_same_uuid(one: &str, other: &str) -> bool {
    let digits = |uuid: &str| uuid.replace('-', "").to_ascii_lowercase();
    digits(one) == digits(other)
}

/// Warns of what is not as it was at the latest point, though somebody said that it is the same disk.
pub(super) fn warn(base: &Base, source: &Captured, observer: &dyn Observer) {
    let Some(before) = base.latest.as_ref().map(|latest| &latest.record) else { return };
    let (path, was) = (source.path.display(), before.image.format);
    let is_export = source.options.export.is_some() || before.image.is_export();
    if let Some(is) = source.image.layers().first().map(|top| top.format)
        && is != was
        && !is_export
    {
        let text = format!("{path} is read as {is} now, and was as {was} at the point before");
        observer.warn(Warning::new(Code::OtherFormat, text));
    }
    let (then, now) = (before.virtual_size, source.image.virtual_size());
    if now < then {
        let (now, then) = (shown(now), shown(then));
        let text = format!("the disk in {path} has {now} now, and had {then} at the point before");
        observer.warn(Warning::new(Code::Smaller, text));
    }
}

/// Fails if a disk has no bytes now and had some at the latest point: its file was emptied, or what its device
/// leads to is gone.
///
/// # Errors
/// `Image`: who means it can say so.
pub(super) fn check_not_empty(base: &Base, source: &Captured) -> Result<()> {
    let Some(before) = base.latest.as_ref().map(|latest| &latest.record) else { return Ok(()) };
    if source.image.virtual_size() > 0 || before.virtual_size == 0 {
        return Ok(());
    }
    let path = source.path.display();
    let text = format!("{path} is empty");
    Err(Error::new(ErrorKind::Image, text)
        .because(format!("the disk had {} at the point before", shown(before.virtual_size)))
        .advise(
            "if it is to be so, say --same-guest for a guest's disk, and --format raw for an image or an export",
        ))
}

/// Warns if everything on the disk is zero, and was not at the latest point.
pub(super) fn warn_of_zeros(
    base: &Base,
    root: Digest,
    geometry: Geometry,
    observer: &dyn Observer,
) {
    let Some(before) = base.latest.as_ref().map(|latest| &latest.record) else { return };
    let Ok(then) = Geometry::new(before.virtual_size, before.block_size) else { return };
    let is_news = root == root_of_zeros(geometry) && before.root != root_of_zeros(then);
    if is_news && geometry.virtual_size() > 0 {
        let text = "everything on the disk is zero now, and was not at the point before";
        observer.warn(Warning::new(Code::AllZero, text));
    }
}

fn root_of_zeros(geometry: Geometry) -> Digest {
    let mut root = RootHasher::new(geometry);
    root.push_many(zero_group_digest(geometry.block_size()), geometry.group_count());
    root.finish()
}

fn shown(bytes: u64) -> String {
    match bytes {
        0 => "no bytes".to_owned(),
        bytes => format!("{} ({bytes} bytes)", ByteSize(bytes).display().iec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A logical volume that was renamed was refused as another disk; and `/dev/sdb` was taken for the disk that had
    /// been called so before the host was started anew.
    #[test]
    fn a_device_is_known_by_its_id_and_not_by_its_name() {
        let layer = LayerRecord {
            path: "/dev/vg/web".into(),
            data_file: None,
            format: Format::Raw,
            virtual_size: 0,
            fingerprint: None,
            device: Some("dm:LVM-1".to_owned()),
        };
        let is_of = |id: Option<&str>, layer: &LayerRecord| {
            is_device_of(id.map(str::to_owned), Some(layer))
        };
        assert_eq!(is_of(Some("dm:LVM-1"), &layer), Some(true));
        assert_eq!(is_of(Some("dm:LVM-2"), &layer), Some(false));
        assert_eq!(is_of(None, &layer), None);
        assert_eq!(is_of(Some("dm:LVM-1"), &LayerRecord { device: None, ..layer }), None);
    }
}
