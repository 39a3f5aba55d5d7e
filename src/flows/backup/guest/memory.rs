//! The memory of a guest that libvirt has saved: its file becomes one more disk of the point, which resumes where
//! the guest stood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qdelta_formats::archive::Consistency;

use super::{Flow, machine};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::image::{Format, OpenOptions};
use crate::disk::sys::Stamp;
use crate::flows::backup::disk::{self, DiskBackup, Written};
use crate::flows::backup::{AnchorChoice, Options, is_same_uuid};
use crate::flows::capture::Captured;
use crate::guest::libvirt::{self, Choice, Domain, saved_definition};
use crate::vault::point::{Base, KindChoice};
use crate::vault::repository::{DiskId, MEMORY, MemoryRecord};

/// The file of a guest's memory, open.
pub(super) struct Memory {
    id: DiskId,
    path: PathBuf,
    mode: u32,
    stamp: Stamp,
    source: Captured,
}

impl Memory {
    /// Opens it, if it is to be taken and is there. Nobody may write to it from here on.
    ///
    /// # Errors
    /// It can't be read, or libvirt has not finished it.
    pub fn open(flow: &Flow<'_>) -> Result<Option<Self>> {
        let how = &flow.request.how;
        let domain = &flow.found.domain;
        let Some(path) = how.libvirt.managed_save(&domain.name).filter(|_| how.with_memory) else {
            return Ok(None);
        };
        let unread = |error: Error| {
            error
                .within(format!("the memory of {} can't be taken along", domain.name))
                .advise("leave --with-memory out for a point without it")
        };
        check_whole(domain, &flow.request.excluded).map_err(unread)?;
        let (file, mode) = machine::open(&path).map_err(unread)?;
        let text = saved_definition(&file, &path).map_err(unread)?;
        let saved = libvirt::parse(&text).map_err(unread)?;
        check_guest(domain, &saved, &path).map_err(unread)?;
        if let Some(warning) = other_disks(flow, &saved) {
            flow.disks.observer.warn(warning);
        }
        let metadata = file.metadata().map_err(|error| Error::io("look at", &path, error))?;
        let open = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let id = DiskId { domain: flow.plan.name.clone(), disk: MEMORY.parse()? };
        if flow.plan.disks.iter().any(|disk| disk.id == id) {
            let text = format!("{} has a disk called {MEMORY}", domain.name);
            return Err(unread(Error::new(ErrorKind::Usage, text)));
        }
        let source = Captured::take(&path, &open, None).map_err(unread)?;
        Ok(Some(Self { id, path, mode, stamp: Stamp::from(&metadata), source }))
    }

    /// Fails if the guest was resumed before its disks were held: they would be of another moment.
    ///
    /// # Errors
    /// `Busy`.
    pub fn check_still(&self) -> Result<()> {
        let now = std::fs::symlink_metadata(&self.path).ok();
        if now.as_ref().map(Stamp::from).as_ref() == Some(&self.stamp) {
            return Ok(());
        }
        let text = format!("{} was resumed, or saved again, meanwhile", self.id.domain);
        Err(Error::new(ErrorKind::Busy, text).advise("no point was made: try again"))
    }

    /// Writes its archive.
    pub fn write<'a>(
        self,
        flow: &Flow<'a>,
        consistency: Consistency,
        cancel: &Cancel,
    ) -> Result<(Written<'a>, MemoryRecord)> {
        let disks = &flow.disks;
        let kind = match disks.options.kind {
            KindChoice::Full => KindChoice::Full,
            _ => KindChoice::Auto,
        };
        let how =
            Options { kind, anchor: AnchorChoice::None, track: None, ..disks.options.clone() };
        let options = Options { is_aside: true, synthetic: false, block_size: None, ..how };
        let base = Base::choose(disks.catalog, &self.id, kind)?;
        let job = DiskBackup {
            catalog: disks.catalog,
            lock: disks.lock,
            point: disks.point,
            disk: &self.id,
            consistency,
            options: &options,
            base,
            source: self.source,
            tracked: None,
            stored: Vec::new(),
        };
        let written = disk::write(job, disks.observer, cancel)?;
        let record = MemoryRecord {
            disk: self.id.disk.clone(),
            path: crate::disk::files::paths::absolute(&self.path),
            mode: self.mode,
        };
        Ok((written, record))
    }
}

/// Fails if a disk of the guest is to be left out: the memory would go on over one of another moment.
///
/// # Errors
/// `Usage`.
fn check_whole(domain: &Domain, excluded: &[String]) -> Result<()> {
    let is_taken = |disk: &libvirt::Disk, excluded: &[String]| {
        matches!(libvirt::decide(disk, excluded), Choice::Take { .. })
    };
    let missing = domain.disks.iter().find(|disk| is_taken(disk, &[]) && !is_taken(disk, excluded));
    missing.map_or(Ok(()), |disk| {
        let text = format!("disk {} is left out, and the memory goes with all disks", disk.target);
        Err(Error::new(ErrorKind::Usage, text))
    })
}

/// Fails if the memory is another guest's: libvirt would not resume it.
///
/// # Errors
/// `Usage`.
fn check_guest(domain: &Domain, saved: &Domain, path: &Path) -> Result<()> {
    let is_same = match (&domain.uuid, &saved.uuid) {
        (Some(own), Some(other)) => is_same_uuid(own, other),
        _ => domain.name == saved.name,
    };
    if is_same {
        return Ok(());
    }
    let text = format!("{} is the memory of another guest, {}", path.display(), saved.name);
    Err(Error::new(ErrorKind::Usage, text).advise(format!(
        "virsh managedsave-remove {} gives it up, if nobody needs it",
        domain.name
    )))
}

/// Warns if the guest had other images when its memory was saved than it is defined with now: it would go on with
/// those.
fn other_disks(flow: &Flow<'_>, saved: &Domain) -> Option<Warning> {
    let now: BTreeMap<&str, _> =
        flow.found.domain.disks.iter().map(|disk| (disk.target.as_str(), &disk.source)).collect();
    let is_other = |disk: &&libvirt::Disk| {
        let path = disk.source.path();
        path.is_some() && now.get(disk.target.as_str()).map(|it| it.path()) != Some(path)
    };
    let other = saved.disks.iter().find(is_other)?;
    let text = format!(
        "its memory was saved when disk {} was {}, which it is not in the definition: it would go on with that",
        other.target, other.source
    );
    let advice = "virsh managedsave-edit shows the definition that it is resumed with";
    Some(Warning::new(Code::GuestState, text).advise(advice))
}
