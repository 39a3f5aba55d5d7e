//! Collecting the machine around the disks.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::moment::Moment;
use super::{Flow, HostConfig};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::snapshot;
use crate::disk::files::paths::absolute;
use crate::disk::image::{Format, files_below, is_qcow2};
use crate::disk::io::{Opener, not_opened};
use crate::flows::anchors::inventory::image_at;
use crate::flows::anchors::is_anchor;
use crate::guest::libvirt::{Fate, StorageSource, XmlFile, resources};
use crate::vault::repository::{MACHINE_FILES_MAX, MachineFile, MachineRecord, Role};

/// The most problems that are noted one by one: each file of a folder can have one.
const MISSING_MAX: usize = 100;
/// The mode of a file that libvirt keeps in memory only.
const XML_MODE: u32 = 0o600;

/// Stores the files of the machine, and says what they are.
///
/// # Errors
/// The XML or the firmware's variables can't be stored. What can't be read of the rest is noted.
pub(super) fn collect(flow: &Flow<'_>, moment: &mut Moment) -> Result<MachineRecord> {
    let domain = &flow.found.domain;
    let mut record = MachineRecord {
        name: domain.name.clone(),
        uuid: domain.uuid.clone().filter(|uuid| MachineRecord::is_uuid(uuid)),
        fell_back: moment.fell_back.clone(),
        freeze_ms: moment.freeze.as_ref().map(|freeze| freeze.freeze_ms),
        frozen_filesystems: moment.freeze.as_ref().map(|freeze| freeze.filesystems),
        autostart: flow.request.how.libvirt.starts_with_host(&domain.name),
        memory: moment.memory.take(),
        files: Vec::new(),
        left_out: flow.plan.left_out.clone(),
        missing: Vec::new(),
    };
    let xml = [(Role::DomainXml, &flow.found.persistent), (Role::LiveXml, &flow.found.live)];
    for (role, file) in xml {
        if let Some(XmlFile { path, text }) = file {
            record.files.push(store(flow, role, path, XML_MODE, Cursor::new(text.as_bytes()))?);
        }
    }
    variables(flow, moment, &mut record)?;
    if let Some(tpm) = &domain.tpm
        && let Some(place) = flow.request.how.libvirt.tpm_place(domain, tpm)
    {
        take_folder(flow, Role::Tpm, &place, &mut record)?;
    }
    named(flow, &mut record)?;
    note_secret(flow, &mut record);
    note_snapshots(flow, &mut record);
    if flow.request.how.host_config == HostConfig::InPoint {
        take_folder(flow, Role::HostConfig, &flow.request.how.libvirt.config, &mut record)?;
    }
    if record.missing.len() > MISSING_MAX {
        let more = record.missing.len() - MISSING_MAX;
        record.missing.truncate(MISSING_MAX);
        record.missing.push(format!("and {more} more"));
    }
    Ok(record)
}

/// Takes the firmware's variables.
fn variables(flow: &Flow<'_>, moment: &mut Moment, record: &mut MachineRecord) -> Result<()> {
    let domain = &flow.found.domain;
    let files = flow.request.how.libvirt.variables(domain);
    let elsewhere = domain.nvram.as_ref().map(|nvram| &nvram.source);
    match elsewhere {
        None | Some(StorageSource::Nothing | StorageSource::File(_)) => {}
        Some(other) => record.missing.push(format!(
            "the firmware's variables: they are in no file, but {other}: back that up by other means"
        )),
    }
    if files.is_empty() && domain.firmware.has_variables && record.missing.is_empty() {
        record.missing.push(format!(
            "the firmware's variables: libvirt has made none in {} yet, or they are elsewhere; a guest that \
             has never run has none",
            flow.request.how.libvirt.state.join("qemu/nvram").display()
        ));
    }
    for path in files {
        let at_moment = moment.variables.iter().position(|(of, _)| *of == path);
        let bytes = at_moment.map(|index| moment.variables.swap_remove(index).1);
        let opened = open(&path);
        let mode = opened.as_ref().map(|(_, mode)| *mode).unwrap_or(XML_MODE);
        let file = match (bytes, opened) {
            (Some(bytes), _) => store(flow, Role::Nvram, &path, mode, Cursor::new(bytes))?,
            (None, Ok((file, mode))) => store(flow, Role::Nvram, &path, mode, file)?,
            (None, Err(error)) => {
                record.missing.push(format!("the firmware's variables: {}", error.chain()));
                continue;
            }
        };
        record.files.push(file);
    }
    Ok(())
}

/// Takes the files that the definitions name, and notes what they name that can't be taken.
fn named(flow: &Flow<'_>, record: &mut MachineRecord) -> Result<()> {
    // The guest as it is defined may differ from the one that runs: both are in the point.
    let texts = [&flow.found.persistent, &flow.found.live].into_iter().flatten();
    let (mut seen, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for text in texts {
        for resource in resources(&text.text)? {
            if !seen.insert(resource.what.clone()) {
                continue;
            }
            let role = match resource.fate {
                Fate::Boot => Role::BootFile,
                Fate::State => Role::GuestState,
                Fate::StateAtRest(advice) if flow.found.live.is_some() => {
                    record.missing.push(format!("{}, while it runs: {advice}", resource.what));
                    continue;
                }
                Fate::StateAtRest(_) => Role::GuestState,
                Fate::TakenApart | Fate::Harmless(_) => continue,
                Fate::Missing(advice) => {
                    record.missing.push(format!("{}: {advice}", resource.what));
                    continue;
                }
            };
            let Some(path) = resource.path else { continue };
            // One file that the definition names twice, or spells in two ways, is one file of the point.
            if !taken.insert(absolute(&path)) {
                continue;
            }
            // A distribution's kernel is a link to the latest one. What a guest may write to is no link.
            let place = match role {
                Role::BootFile => path.canonicalize().unwrap_or_else(|_| path.clone()),
                _ => path.clone(),
            };
            let stored = open(&place).and_then(|(file, mode)| store(flow, role, &path, mode, file));
            match stored {
                Ok(file) => record.files.push(file),
                Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
                Err(error) => record.missing.push(format!("{}: {}", resource.what, error.chain())),
            }
        }
    }
    Ok(())
}

/// Without its secret, which libvirt keeps, the state of an encrypted TPM is worth nothing.
fn note_secret(flow: &Flow<'_>, record: &mut MachineRecord) {
    if let Some(secret) = flow
        .found
        .domain
        .tpm_secret
        .as_ref()
        .filter(|_| flow.request.how.host_config == HostConfig::LeftOut)
    {
        record.missing.push(format!(
            "the secret {secret} that encrypts the TPM's state: --with-host-config takes libvirt's secrets \
             along, or keep what virsh secret-get-value {secret} prints"
        ));
    }
}

/// How many names of snapshots are shown.
const NAMES_MAX: usize = 10;

/// Notes the guest's snapshots: a point holds what its disks show, and no state that lies beside it.
fn note_snapshots(flow: &Flow<'_>, record: &mut MachineRecord) {
    let (libvirt, name) = (&flow.request.how.libvirt, &flow.found.domain.name);
    let shown = |names: &[String]| {
        let more = if names.len() > NAMES_MAX { ", …" } else { "" };
        let names: Vec<&str> = names.iter().take(NAMES_MAX).map(String::as_str).collect();
        format!("{}{more}", names.join(", "))
    };
    let noted = libvirt.notes("snapshot", name);
    if !noted.is_empty() {
        record.missing.push(format!(
            "libvirt's notes of its snapshots ({}): a restored guest has none of them; what they hold is in \
             the images",
            shown(&noted)
        ));
    }
    let mut checkpoints = libvirt.notes("checkpoint", name);
    // Those of the snapshot command are of use for the next backup alone.
    checkpoints.retain(|name| !is_anchor(name.as_bytes()));
    if !checkpoints.is_empty() {
        record.missing.push(format!(
            "libvirt's checkpoints ({}): a program that backs up by them begins anew with a restored guest",
            shown(&checkpoints)
        ));
    }
    for disk in flow.plan.disks.iter().filter(|disk| disk.open.format == Some(Format::Qcow2)) {
        match snapshots_in(&disk.image) {
            Ok(names) if names.is_empty() => {}
            // They are points of their own, or a warning says why not.
            Ok(_) if flow.disks.snapshots.is_some() => {}
            Ok(names) => record.missing.push(format!(
                "the snapshots in the image of {} ({}): --with-snapshots makes points of them",
                disk.target,
                shown(&names)
            )),
            Err(error) => record.missing.push(format!(
                "the snapshots in the image of {}, if there are any: {}",
                disk.target,
                error.chain()
            )),
        }
        // Those of the images below are of states before the overlay was made.
        let below = files_below(&disk.image, Format::Qcow2, &disk.open.chain).unwrap_or_default();
        for file in below.iter().filter(|file| matches!(is_qcow2(file), Ok(true))) {
            let names = snapshots_in(file).unwrap_or_default();
            if !names.is_empty() {
                record.missing.push(format!(
                    "the snapshots in {}, which lies below the image of {} ({}): back that file up by itself, with \
                     --with-snapshots",
                    file.display(),
                    disk.target,
                    shown(&names)
                ));
            }
        }
    }
}

/// The names of the snapshots in an image, but for anchors.
fn snapshots_in(image: &Path) -> Result<Vec<String>> {
    let Some(image) = image_at(image)? else { return Ok(Vec::new()) };
    let names = snapshot::list(&image)?.into_iter();
    let names = names.map(|it| String::from_utf8_lossy(&it.name).into_owned());
    Ok(names.filter(|name| !is_anchor(name.as_bytes())).collect())
}

/// Takes the regular files in a folder and in those below it; or the only file, if it is one.
fn take_folder(
    flow: &Flow<'_>,
    role: Role,
    folder: &Path,
    record: &mut MachineRecord,
) -> Result<()> {
    let room = MACHINE_FILES_MAX.saturating_sub(record.files.len());
    for path in files_in(folder, room, &mut record.missing) {
        match open(&path) {
            Ok((file, mode)) => match store(flow, role, &path, mode, file) {
                Ok(file) => record.files.push(file),
                // It grew beyond what makes sense, or can't be read: the point is sound without it.
                Err(error) if error.kind() == ErrorKind::NoSpace => return Err(error),
                Err(error) => record.missing.push(error.chain()),
            },
            // Temporary files come and go.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => record.missing.push(error.chain()),
        }
    }
    Ok(())
}

/// The regular files in a folder and in those below it, sorted, at most `room`. What can't be listed, or
/// is too much, is noted.
fn files_in(folder: &Path, room: usize, missing: &mut Vec<String>) -> Vec<PathBuf> {
    if folder.is_file() {
        return vec![folder.to_path_buf()];
    }
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                missing.push(Error::io("list", &folder, error).chain());
                continue;
            }
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                // Links lead to files that are taken where they are, or are none of ours.
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
        if files.len() + folders.len() > room {
            missing.push(format!(
                "some of {}: a point takes at most {MACHINE_FILES_MAX} files",
                folder.display()
            ));
            break;
        }
    }
    files.sort_unstable();
    files.truncate(room);
    files
}

/// Opens a regular file; gives its mode, too.
pub(super) fn open(path: &Path) -> Result<(File, u32)> {
    let file = Opener::READ.itself().open(path);
    let file = file.map_err(|error| not_opened(path, error, ErrorKind::Image))?;
    let mode = file.metadata().map_err(|error| Error::io("look at", path, error))?.mode();
    Ok((file, mode & 0o777))
}

fn store(
    flow: &Flow<'_>,
    role: Role,
    path: &Path,
    mode: u32,
    content: impl Read + Seek,
) -> Result<MachineFile> {
    let (digest, length) =
        flow.disks.catalog.repository().store_machine_file(flow.disks.lock, content, path)?;
    Ok(MachineFile { role, path: absolute(path), length, mode, digest })
}
