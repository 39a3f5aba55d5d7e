//! The flow that makes a recovery point of a whole machine, running or not.
//!
//! ```text
//! stopped   libvirt's files → every disk, held by its locks → one point
//! running   libvirt's files → freeze → the moment (clones, or what a command makes) → thaw
//!                           → every disk, read at leisure → one point
//! ```

mod exchanged;
mod machine;
mod memory;
mod moment;
mod plan;
mod snapshots;
mod still;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use qdelta_formats::archive::Consistency;

use super::disk::Written;
use super::together::{Ready, Together};
use super::{Options, clean, commit, next_points, same_disk, snapshot_pins, synthesize};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::flows::capture::Captured;
use crate::flows::report::GuestReport;
use crate::guest::libvirt::{Found, Libvirt};
use crate::guest::quiesce::{self, Freeze, Program, Virsh};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskName, DomainName, Repository};
use memory::Memory;
use moment::Moment;
use plan::{DiskPlan, Plan, Use};
use snapshots::Snapshots;

pub use plan::repository_name;
pub(crate) use plan::{open_options, stated_chain};

/// How far a running guest is brought to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsistencyChoice {
    /// Its filesystems are frozen while the moment is made, by clones or by a command.
    #[default]
    Quiesced,
    /// The same if its agent can freeze them, else what a power cut would leave.
    QuiescedOrCrash,
    /// Its filesystems are frozen while what has changed is read: no clone is needed.
    FreezeCopy,
    /// Not at all: what a power cut would leave.
    Crash,
}

/// Which guest to back up, and how.
#[derive(Debug, Clone)]
pub struct GuestRequest {
    /// The domain's name, as libvirt has it.
    pub domain: String,
    /// Targets of disks to leave out.
    pub excluded: Vec<String>,
    /// How.
    pub how: GuestOptions,
}

/// What becomes of the configuration of the host when a guest is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostConfig {
    /// It is not kept.
    LeftOut,
    /// Libvirt's folder is part of the guest's point.
    InPoint,
    /// It is a disk of its own: the point does without.
    ByItself,
}

/// How to back up a guest.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Where libvirt keeps its files.
    pub libvirt: Libvirt,
    /// It is the guest of the points before, though its UUID or the image of a disk is another.
    pub same_guest: bool,
    /// How far it is brought to rest if it runs.
    pub consistency: ConsistencyChoice,
    /// How long it may be frozen.
    pub freeze_max: Duration,
    /// How long a thaw is tried again before it is an alarm.
    pub thaw_tries: Duration,
    /// The program that makes a moment where the filesystem can't.
    pub snapshot_command: Option<PathBuf>,
    /// What becomes of the host's configuration.
    pub host_config: HostConfig,
    /// The guest's memory is taken along, if libvirt has saved it.
    pub with_memory: bool,
    /// How `virsh` is called.
    pub virsh: Virsh,
    /// How the watchdog is started.
    pub watchdog: Program,
    /// Folders besides the images' own into which names inside images may lead.
    pub image_roots: Vec<PathBuf>,
    /// How to back up the disks.
    pub options: Options,
}

/// What all parts of the flow need.
struct Flow<'a> {
    request: &'a GuestRequest,
    found: &'a Found,
    plan: &'a Plan,
    disks: Together<'a>,
    cancel: &'a Cancel,
}

/// Makes a recovery point of a libvirt domain.
///
/// # Errors
/// Nothing that the repository held is changed by a failure, and nothing new is in it. `Guest` if
/// the guest can't be brought to rest as asked for; `Alarm` if it may still be frozen.
pub fn run_guest(
    repository: &Repository,
    request: &GuestRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<GuestReport> {
    let started = Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let may_be_empty = request.how.options.may_be_empty || request.how.same_guest;
    let options = &Options { may_be_empty, ..request.how.options.clone() };
    let found = request.how.libvirt.find(&request.domain)?;
    let name = repository_name(&found.domain)?;
    repository.check_names(&name, [])?;
    let mark = freeze(repository, request, &found, &name)?;
    // Before anything that can fail: a guest that was left frozen waits.
    let thawed = quiesce::thaw_marked(&mark, found.live.is_some(), observer);
    // In this order: what was made of the disks goes after everything that has it open, and while nobody
    // else writes to the domain.
    let lock;
    let mut snapshots = None;
    let (early, found) = match &request.how.snapshot_command {
        None => (None, found),
        Some(program) => {
            let lock = repository.lock(&name, Wait::by(observer, cancel))?;
            let about = (&repository.catalog(), &name);
            snapshots =
                Some(Snapshots::begin(program, (&found, request), about, observer, cancel)?);
            // The guest may have been brought back to its own images.
            (Some(lock), request.how.libvirt.find(&request.domain)?)
        }
    };
    let plan = match (thawed, Plan::new(&found, request, name)) {
        (Ok(_), plan) => plan?,
        // libvirt's file of a guest that runs no more was left over.
        (Err(_), Ok(plan)) if plan.usage == Use::Stopped => {
            quiesce::thaw_marked(&mark, false, observer)?;
            plan
        }
        (Err(alarm), _) => return Err(alarm),
    };
    for warning in &plan.warnings {
        observer.warn(warning.clone());
    }
    repository.check_names(&plan.name, plan.disks.iter().map(|disk| &disk.id.disk))?;
    let catalog = repository.catalog();
    if !request.how.same_guest {
        same_disk::check_guest(&catalog, &plan.name, &found.domain)?;
    }
    same_disk::warn_of_gone(&catalog, &plan.name, &found.domain, observer);
    if options.with_snapshots {
        let has_disk =
            |disk: &DiskName| found.domain.disks.iter().any(|it| it.target == disk.as_str());
        snapshot_pins::warn_of_held(&catalog, &plan.name, has_disk, observer)?;
    }
    lock = match early {
        Some(lock) => lock,
        None => repository.lock(&plan.name, Wait::by(observer, cancel))?,
    };
    // From here on nobody else writes to the domain.
    let catalog = clean(repository, &lock, observer)?;
    catalog.warn_of_damage(plan.disks.iter().map(|disk| &disk.id), observer);
    let looked = plan.disks.iter().map(|disk| (&disk.id, disk.image.as_path(), &disk.open));
    let (point, inner) = next_points(&catalog, &lock, options, looked, observer)?;
    let disks = Together {
        catalog: &catalog,
        lock: &lock,
        point,
        options,
        observer,
        snapshots: inner.filter(|_| can_store_snapshots(&plan, request, observer)),
    };
    let flow = Flow { request, found: &found, plan: &plan, disks, cancel };
    let ready = flow.get_ready()?;
    if !request.how.same_guest {
        same_disk::check_guest_images(&ready)?;
    }
    let (written, mut moment) = match plan.usage {
        Use::Stopped => flow.in_place(ready)?,
        _ if request.how.consistency == ConsistencyChoice::FreezeCopy => {
            flow.freeze_copy(ready, mark)?
        }
        _ => flow.at_a_moment(ready, mark, snapshots.as_mut())?,
    };
    let record = machine::collect(&flow, &mut moment)?;
    let (files, missing) = (record.files.len(), record.missing.clone());
    let resumes = record.memory.is_some();
    for warning in std::mem::take(&mut moment.warnings) {
        observer.warn(warning);
    }
    for what in &missing {
        observer.warn(Warning::new(Code::Machine, format!("not in the point: {what}")));
    }
    let consistency = moment.consistency;
    let mut disks =
        commit(written, consistency, Some(record), options.safety, started, repository, &recorder)?;
    snapshots.iter_mut().for_each(Snapshots::keep);
    // Before the warnings are gathered: that something could not be released is one. And before archives are
    // merged, so that a guest is not left on an overlay for longer than it must.
    drop(snapshots);
    synthesize(repository, &lock, options, &mut disks, observer, cancel);
    Ok(GuestReport {
        domain: request.domain.clone(),
        point,
        consistency: moment.consistency,
        fell_back: moment.fell_back,
        freeze_ms: moment.freeze.as_ref().map(|freeze| freeze.freeze_ms),
        frozen_filesystems: moment.freeze.as_ref().map(|freeze| freeze.filesystems),
        resumes,
        disks,
        left_out: plan.left_out.clone(),
        machine_files: files,
        missing,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Whether the snapshots in the images can be read at leisure; says so if not.
fn can_store_snapshots(plan: &Plan, request: &GuestRequest, observer: &dyn Observer) -> bool {
    if plan.usage == Use::Stopped || request.how.consistency != ConsistencyChoice::FreezeCopy {
        return true;
    }
    if request.how.options.with_snapshots {
        let text = "the snapshots in its images are not stored: with freeze-copy the guest would be \
                    frozen all the while";
        let warning = Warning::new(Code::SnapshotLeftOut, text);
        observer.warn(warning.advise("store them with --with-snapshots while it is stopped"));
    }
    false
}

/// What is needed to freeze the guest, and to thaw it.
fn freeze(
    repository: &Repository,
    request: &GuestRequest,
    found: &Found,
    name: &DomainName,
) -> Result<Freeze> {
    let file = found.persistent.as_ref().or(found.live.as_ref());
    let none = || Error::new(ErrorKind::NotFound, format!("no file defines {}", found.domain.name));
    Ok(Freeze {
        virsh: request.how.virsh.clone(),
        guest: found.domain.handle().to_owned(),
        name: found.domain.name.clone(),
        mark: repository.frozen_mark(name)?,
        definition: file.ok_or_else(none)?.path.clone(),
        freeze_max: request.how.freeze_max,
        thaw_tries: request.how.thaw_tries,
        late_max: quiesce::LATE_MAX_DEFAULT,
    })
}

impl<'a> Flow<'a> {
    fn get_ready(&self) -> Result<Vec<Ready<'a>>> {
        let ready = |plan: &'a DiskPlan| {
            let options = &self.request.how.options;
            Ready::new(self.disks.catalog, &plan.id, &plan.image, &plan.open, options)
        };
        self.plan.disks.iter().map(ready).collect()
    }

    /// Backs up a guest that is stopped: nobody can start it as long as its disks are read.
    fn in_place(&self, ready: Vec<Ready<'a>>) -> Result<(Vec<Written<'a>>, Moment)> {
        let memory = Memory::open(self)?;
        let sources = self.disks.take(&ready)?;
        if let Err(error) = memory.as_ref().map_or(Ok(()), Memory::check_still) {
            sources.into_iter().for_each(Captured::discard);
            return Err(error);
        }
        let mut moment = Moment::offline();
        let is_in_use = sources.iter().any(Captured::is_in_use);
        if memory.is_some() {
            moment.consistency = Consistency::CrashConsistent;
        } else if self.request.how.libvirt.managed_save(&self.found.domain.name).is_some() {
            // Its filesystems are as they were in the middle of its work.
            moment.consistency = Consistency::CrashConsistent;
            let text = "its memory is saved (virsh managedsave): what it had not written yet is there, and \
                        not in the point";
            let warning = Warning::new(Code::MemoryLeftOut, text);
            moment.warnings.push(warning.advise("--with-memory takes it along"));
        }
        if is_in_use {
            moment.consistency = Consistency::Unknown;
        }
        let mut written = self.disks.write(ready, sources, moment.consistency, self.cancel)?;
        if let Some(memory) = memory {
            match memory.write(self, moment.consistency, self.cancel) {
                Ok((done, record)) => {
                    written.push(done);
                    moment.memory = Some(record);
                }
                Err(error) => {
                    written.into_iter().for_each(|done| done.rest.discard());
                    return Err(error.within("cannot back up its saved memory"));
                }
            }
        }
        // libvirt gives QEMU device nodes of its own, so that neither sees the other's locks there.
        let devices = self.plan.disks.iter().any(|disk| disk.block);
        if devices && self.request.how.libvirt.find(&self.request.domain)?.live.is_some() {
            written.into_iter().for_each(|done| done.rest.discard());
            let text = format!("{} was started while its disks were read", self.request.domain);
            return Err(Error::new(ErrorKind::Busy, text).advise("no point was made: try again"));
        }
        Ok((written, moment))
    }
}

/// A guest that can't be brought to rest as it was asked for.
fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Guest, what)
}
