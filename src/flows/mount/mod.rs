//! The flow that shows points as files: `GUEST/DISK/TIME.raw`, and beside each a folder with its volumes.
//!
//! Points never change, so the kernel may keep what it has read. What is read is proved; what is
//! damaged is an I/O error of that range.

mod attach;
mod files;
mod listing;
mod names;
mod patience;
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::observer::Observer;
use crate::base::warning::Warning;
use crate::flows::report::MountReport;
use crate::vault::point::OpenPoints;
use crate::vault::repository::{DiskAt, DiskId, PointId, Repository};
use attach::Attached;
use listing::Lister;
use server::{Server, Serving};

/// How long somebody who reads a file waits for the repository before the read is an error.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a mount that nobody reads looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);
/// How long reads that are being answered get when a mount ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it may take from then on to give back the locks: a lock in a store outlives the program that has it.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// What to show, and where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// An empty folder.
    pub folder: PathBuf,
    /// Guests, disks and points; everything if none is named.
    pub wanted: Vec<DiskAt>,
    /// How long a read may take.
    pub patience: Duration,
}

/// A mount that is there until it is dropped.
#[derive(Debug)]
pub struct Mount {
    attached: Attached,
    session: Option<fuser::BackgroundSession>,
    serving: Arc<Serving>,
    warnings: Receiver<Warning>,
    report: MountReport,
}

impl Mount {
    /// Shows points as files.
    ///
    /// # Errors
    /// The repository can't be listed, or has nothing of what is named; the folder can't be mounted on.
    pub fn new(repository: &Repository, request: &MountRequest, cancel: &Cancel) -> Result<Self> {
        let lister = Lister::new(repository.clone(), request.wanted.clone())?;
        let guests = lister.guests();
        let disks = guests.values().flat_map(|disks| disks.values());
        let (device, attached) = attach::attach(&request.folder)?;
        let report = MountReport {
            folder: attached.folder().to_owned(),
            guests: guests.len() as u64,
            disks: disks.clone().count() as u64,
            points: disks.map(|points| points.len() as u64).sum(),
        };
        let (told, warnings) = mpsc::sync_channel(64);
        let points = OpenPoints::new(repository.clone(), cancel);
        let server = Server::new(points, lister, request.patience, told, cancel);
        let serving = server.serving();
        // The kernel lets nobody in but who has mounted it; it asks on behalf of others, too.
        let session = Session::from_fd(server, device, SessionACL::All, Config::default());
        let session = session.and_then(Session::spawn).map_err(|error| {
            let _ = attached.detach();
            Error::io("serve", attached.folder(), error)
        })?;
        Ok(Self { attached, session: Some(session), serving, warnings, report })
    }

    /// What is shown.
    pub fn report(&self) -> &MountReport {
        &self.report
    }

    /// Where the file of a point is, or that of one of its volumes; none if no file is called so.
    pub fn file(&self, disk: &DiskId, point: PointId, volume: Option<&str>) -> Option<PathBuf> {
        let folder = self.attached.folder().join(disk.to_string());
        match volume {
            None => Some(folder.join(names::file_of(point))),
            Some(volume) => Some(folder.join(point.to_string()).join(names::volume_file(volume)?)),
        }
    }

    /// Waits until somebody unmounts it, or asks to stop.
    pub fn wait(&self, observer: &dyn Observer, cancel: &Cancel) {
        while !self.is_over() && !cancel.is_cancelled() {
            match self.warnings.recv_timeout(TICK) {
                Ok(warning) => observer.warn(warning),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody serves it any more.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What could not be read since somebody asked last.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        self.warnings.try_iter()
    }

    /// Unmounts. Who has a file open gets errors from then on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end(mut self) -> Result<()> {
        self.unmount()
    }

    fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.guard.is_finished())
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.serving.close();
        let is_over = || session.guard.is_finished();
        // Where somebody else has unmounted it, what is mounted there now is none of ours.
        let detached = if is_over() { Ok(()) } else { self.attached.detach() };
        let started = Instant::now();
        while !is_over() && started.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.serving.end(GIVING_BACK);
        // Somebody else may have been faster.
        if is_over() { Ok(()) } else { detached }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What can't be unmounted shows itself to whoever looks.
        let _ = self.unmount();
    }
}

/// Takes away what a mount on a folder of our own left behind whose program was killed.
pub(crate) fn clean_up(folder: &Path) {
    // What is none, or in use, stays.
    let _ = Attached::left_on(folder).detach();
}

/// Shows points as files until somebody unmounts them or asks to stop; `ready` is told when they are
/// there.
///
/// # Errors
/// As [`Mount::new`] and [`Mount::end`]; those of `ready`.
pub fn run(
    repository: &Repository,
    request: &MountRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
    ready: impl FnOnce(&MountReport) -> Result<()>,
) -> Result<()> {
    let mount = Mount::new(repository, request, cancel)?;
    ready(mount.report())?;
    mount.wait(observer, cancel);
    mount.end()
}
