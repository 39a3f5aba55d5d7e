//! The repository: a folder of archives and manifests that a power cut can't hurt.
//!
//! ```text
//! REPO/qdelta.toml                               what makes the folder a repository
//! REPO/<domain>/.lock                            held by whoever writes to the domain
//! REPO/<domain>/<disk>/<point>-<kind>-<id>.qdelta  archives
//! REPO/<domain>/points/<point>.json              manifests
//! REPO/<domain>/machine/<digest>.zst             files of the machine around the disks
//! ```
//!
//! Every file is written beside its place under a name that starts with a dot and ends in
//! `.partial`, synced, renamed, and its folder synced. The manifest comes last: what has no
//! manifest did not happen. Nothing is changed after its rename, so readers need no lock.

mod case;
mod catalog;
mod chain;
mod config;
mod durable;
mod find;
mod health;
mod leftovers;
mod lock;
mod machine;
mod manifest;
mod names;
mod pending;
mod point;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "merging calls it, which is the next step and not written yet")
)]
mod replace;
mod select;
pub mod storage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{ArchiveId, Kind};
use config::CONFIG;

pub use catalog::Catalog;
pub use chain::{Gap, Remains};
pub use config::Repair;
pub use find::Wanted;
pub use health::Health;
pub use leftovers::{Cleaned, Leftover};
pub use lock::DomainLock;
pub use machine::{LeftOut, MACHINE_FILE_MAX, MACHINE_FILES_MAX, MachineFile, MachineRecord, Role};
pub use manifest::{
    Anchor, AnchorKind, CloneRecord, DiskRecord, ImageRecord, LayerRecord, Manifest, ParentRecord,
    Point, Refusal,
};
pub use names::{DiskId, DiskName, DiskSpec, DomainName};
pub use pending::Pending;
pub use point::{PointId, Selector};
use storage::Storage;

/// The file in a domain's folder that says that its guest may be frozen.
const FROZEN: &str = ".frozen";

/// A repository that is open.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
    storage: Arc<dyn Storage>,
    /// Empty if `qdelta.toml` is lost, and no manifest knows it.
    id: String,
    /// What is wrong with `qdelta.toml`.
    trouble: Option<String>,
}

/// What a disk's recovery points are, as far as the manifests can be read.
#[derive(Debug, Default)]
pub struct PointList {
    /// The points, oldest first.
    pub points: Vec<Point>,
    /// The manifests of the disk's domain that can't be read or are not what was written. Which
    /// disks they hold is not known.
    pub damaged: Vec<DamagedManifest>,
    /// The folders of the disk and of its domain that can't be listed. What is in them is not known.
    pub unreadable: Vec<DamagedFolder>,
}

/// The disks of a repository, as far as its folders can be listed.
#[derive(Debug, Default)]
pub struct Survey {
    /// The disks, sorted.
    pub disks: Vec<DiskId>,
    /// The folders that can't be listed. Which disks they hold is not known.
    pub unreadable: Vec<DamagedFolder>,
}

/// A folder of the repository that can't be listed.
#[derive(Debug)]
pub struct DamagedFolder {
    /// Where it is.
    pub path: PathBuf,
    /// Why it can't be listed.
    pub error: Error,
}

/// A manifest that can't be used.
#[derive(Debug)]
pub struct DamagedManifest {
    /// The point it is called after.
    pub point: PointId,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: Error,
}

/// The id for a new point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextPoint {
    /// The id, greater than every other of the domain.
    pub id: PointId,
    /// How far the clock is behind the latest point, if it is: then the id is not the time.
    pub clock_behind: Option<Duration>,
}

impl Repository {
    /// The repository's folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where its files are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The repository's id: 32 hexadecimal digits that no other repository has.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The domains that have a folder, sorted; also those whose folder can't be looked at.
    ///
    /// # Errors
    /// The repository's folder can't be listed.
    pub fn domains(&self) -> Result<Vec<DomainName>> {
        let mut domains = Vec::new();
        for name in folder_names(&self.root)? {
            if let Ok(domain) = name.parse()
                && is_folder(&self.root.join(&name)).unwrap_or(true)
            {
                domains.push(domain);
            }
        }
        domains.sort_unstable();
        Ok(domains)
    }

    /// Fails if the folder of a domain, or of one of these disks of it, would be another one's: on a
    /// filesystem for which `Web` and `web` are one name. Nothing is written.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], with the name that is there; or a folder can't be read.
    pub fn check_names<'a>(
        &self,
        domain: &DomainName,
        disks: impl IntoIterator<Item = &'a DiskName>,
    ) -> Result<()> {
        case::check(self, domain, disks)
    }

    /// Takes the right to write to a domain, for as long as the lock lives. Makes the domain's
    /// folder if it is missing: so open what is to be backed up first.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another process has it; [`ErrorKind::Damaged`] if the repository's
    /// `qdelta.toml` is lost or damaged.
    pub fn lock(&self, domain: &DomainName) -> Result<DomainLock> {
        self.check_writable()?;
        DomainLock::take(self.domain_dir(domain), domain.clone(), self.id.clone())
    }

    /// The id for a new point of a domain: the time, unless the clock was set back.
    ///
    /// # Errors
    /// A folder can't be read, or the clock stands outside the years 1970 to 9999.
    pub fn next_point(&self, lock: &DomainLock) -> Result<NextPoint> {
        let now = PointId::now()?;
        self.next_point_at(lock, now)
    }

    /// The id for a new point of a domain if it is `now`.
    fn next_point_at(&self, lock: &DomainLock, now: PointId) -> Result<NextPoint> {
        let domain = lock.domain();
        // Every damaged manifest counts as well: the names are all that matters.
        let mut latest = self.manifest_names(domain)?.into_iter().max();
        // Also the archives that have no manifest: their names are taken.
        for name in folder_names(&self.domain_dir(domain))? {
            let Ok(disk) = name.parse::<DiskName>() else { continue };
            let dir = self.disk_dir(&DiskId { domain: domain.clone(), disk });
            // Another disk's folder that can't be listed is no matter of this point.
            let Ok(names) = folder_names(&dir) else { continue };
            let points = names.into_iter().filter_map(|archive| {
                manifest::parse_archive_name(&archive).map(|(point, _)| point)
            });
            latest = latest.into_iter().chain(points).max();
        }
        match latest {
            Some(latest) if latest >= now => {
                let id = latest.next().ok_or_else(|| {
                    Error::new(ErrorKind::Io, format!("no id comes after point {latest}"))
                })?;
                let behind = Duration::from_millis(latest.as_ms() - now.as_ms());
                Ok(NextPoint { id, clock_behind: Some(behind) })
            }
            _ => Ok(NextPoint { id: now, clock_behind: None }),
        }
    }

    /// Begins the archive of a disk at a new point.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if there is one already; anything else if it can't be made.
    pub fn begin<'lock>(
        &self,
        lock: &'lock DomainLock,
        id: &DiskId,
        point: PointId,
        kind: Kind,
        archive: ArchiveId,
    ) -> Result<Pending<'lock>> {
        Pending::begin(self, lock, id, point, kind, archive)
    }

    /// Removes what a backup that was killed left in a domain.
    ///
    /// # Errors
    /// A folder can't be read, or a file can't be removed.
    pub fn clean(&self, lock: &DomainLock) -> Result<Cleaned> {
        leftovers::clean(self, lock)
    }

    /// The folder of a domain.
    fn domain_dir(&self, domain: &DomainName) -> PathBuf {
        self.root.join(domain.as_str())
    }

    /// The folder of a disk's archives.
    fn disk_dir(&self, id: &DiskId) -> PathBuf {
        self.domain_dir(&id.domain).join(id.disk.as_str())
    }

    /// The folder of a domain's manifests.
    fn points_dir(&self, domain: &DomainName) -> PathBuf {
        self.domain_dir(domain).join(names::POINTS)
    }

    /// The file that says that a guest may be frozen, for [`DomainLock`]'s holder to make.
    pub fn frozen_mark(&self, domain: &DomainName) -> PathBuf {
        self.domain_dir(domain).join(FROZEN)
    }

    /// The points of a domain that have a manifest, whatever is in it.
    fn manifest_names(&self, domain: &DomainName) -> Result<Vec<PointId>> {
        let names = folder_names_if_any(&self.points_dir(domain))?;
        let mut points: Vec<PointId> =
            names.iter().filter_map(|name| manifest::parse_file_name(name)).collect();
        points.sort_unstable();
        Ok(points)
    }
}

/// Whether a folder lies at `path`.
fn is_folder(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

/// Whether anything lies at `path`.
fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

/// The names in a folder that are text; all names of the repository are.
fn folder_names(path: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io("list", path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// The names in a folder, none if the folder is not there.
fn folder_names_if_any(path: &Path) -> Result<Vec<String>> {
    match folder_names(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => names,
    }
}

#[cfg(test)]
mod limits;
#[cfg(test)]
mod tests;
