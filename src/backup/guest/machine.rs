//! Collecting the machine around the disks.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Flow;
use super::moment::Moment;
use crate::domain::{Source, XmlFile};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Opener, not_opened};
use crate::repository::{MachineFile, MachineRecord, Role};

/// The most files of a folder and all below it that are taken.
const FILES_MAX: usize = 10_000;
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
        uuid: domain.uuid.clone(),
        freeze_ms: moment.freeze.as_ref().map(|freeze| freeze.freeze_ms),
        frozen_filesystems: moment.freeze.as_ref().map(|freeze| freeze.filesystems),
        files: Vec::new(),
        left_out: flow.plan.left_out.clone(),
        missing: Vec::new(),
    };
    let xml = [(Role::DomainXml, &flow.found.persistent), (Role::LiveXml, &flow.found.live)];
    for (role, file) in xml {
        if let Some(XmlFile { path, text }) = file {
            record.files.push(store(flow, role, path, XML_MODE, text.as_bytes())?);
        }
    }
    nvram(flow, moment, &mut record)?;
    if let Some(tpm) = &domain.tpm
        && let Some(place) = flow.request.libvirt.tpm_place(domain, tpm)
    {
        take_folder(flow, Role::Tpm, &place, &mut record)?;
    }
    if flow.request.host_config {
        take_folder(flow, Role::HostConfig, &flow.request.libvirt.config, &mut record)?;
    }
    Ok(record)
}

/// Takes the firmware's variables. A domain that has not run yet has none.
fn nvram(flow: &Flow<'_>, moment: &mut Moment, record: &mut MachineRecord) -> Result<()> {
    let path = match flow.found.domain.nvram.as_ref().map(|nvram| &nvram.source) {
        None | Some(Source::Nothing) => return Ok(()),
        Some(Source::File(path)) => path,
        Some(other) => {
            record
                .missing
                .push(format!("the firmware's variables: they are in no file, but {other}"));
            return Ok(());
        }
    };
    let opened = open(path);
    let mode = opened.as_ref().map(|(_, mode)| *mode).unwrap_or(XML_MODE);
    let file = match (moment.nvram.take(), opened) {
        (Some(bytes), _) => store(flow, Role::Nvram, path, mode, &bytes[..])?,
        (None, Ok((file, mode))) => store(flow, Role::Nvram, path, mode, file)?,
        (None, Err(error)) => {
            record.missing.push(format!("the firmware's variables: {}", error.chain()));
            return Ok(());
        }
    };
    record.files.push(file);
    Ok(())
}

/// Takes the regular files in a folder and in those below it; or the only file, if it is one.
fn take_folder(
    flow: &Flow<'_>,
    role: Role,
    folder: &Path,
    record: &mut MachineRecord,
) -> Result<()> {
    for path in files_in(folder, &mut record.missing) {
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

/// The regular files in a folder and in those below it, sorted. What can't be listed is noted.
fn files_in(folder: &Path, missing: &mut Vec<String>) -> Vec<PathBuf> {
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
        if files.len() + folders.len() > FILES_MAX {
            missing.push(format!("{} has more than {FILES_MAX} files", folder.display()));
            break;
        }
    }
    files.sort_unstable();
    files.truncate(FILES_MAX);
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
    content: impl Read,
) -> Result<MachineFile> {
    let (digest, length) =
        flow.disks.repository.store_machine_file(flow.disks.lock, content, path)?;
    Ok(MachineFile { role, path: path.to_path_buf(), length, mode, digest })
}
