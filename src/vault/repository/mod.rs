//! The repository: a folder of archives and manifests that a power cut can't hurt.
//!
//! ```text
//! REPO/qdelta.toml                               what makes the folder a repository
//! REPO/<domain>/.lock                            held by whoever writes to the domain
//! REPO/<domain>/<disk>/<point>-<kind>.qdelta     archives
//! REPO/<domain>/points/<point>.json              manifests
//! REPO/<domain>/machine/<digest>.zst             files of the machine around the disks
//! ```
//!
//! Every file is written beside its place under a name that starts with a dot and ends in
//! `.partial`, synced, renamed, and its folder synced. The manifest comes last: what has no
//! manifest did not happen. Nothing is changed after its rename, so readers need no lock.

mod case;
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

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::OpenFiles;
use crate::formats::archive::Kind;
use config::CONFIG;

pub use chain::{Gap, Remains};
pub use config::Repair;
pub use find::Wanted;
pub use health::Health;
pub use leftovers::{Cleaned, Leftover};
pub use lock::DomainLock;
pub use machine::{LeftOut, MACHINE_FILE_MAX, MACHINE_FILES_MAX, MachineFile, MachineRecord, Role};
pub use manifest::{
    Anchor, AnchorKind, CloneRecord, DiskRecord, ImageRecord, LayerRecord, Manifest, Point, Refusal,
};
pub use names::{DiskId, DiskName, DiskSpec, DomainName};
pub use pending::Pending;
use point::Among;
pub use point::{PointId, Selector};

/// The file in a domain's folder that says that its guest may be frozen.
const FROZEN: &str = ".frozen";

/// A repository that is open.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
    /// Empty if `qdelta.toml` is lost, and no manifest knows it.
    id: String,
    /// What is wrong with `qdelta.toml`.
    trouble: Option<String>,
    /// Its archives are opened through this.
    files: Arc<OpenFiles>,
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

/// The manifests of a domain.
#[derive(Debug, Default)]
struct ManifestList {
    good: Vec<Manifest>,
    damaged: Vec<DamagedManifest>,
    /// The folder of the manifests, if it can't be listed.
    unreadable: Option<DamagedFolder>,
}

impl Repository {
    /// The repository's folder.
    pub fn path(&self) -> &Path {
        &self.root
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

    /// Every disk that has an archive or is named by a manifest, as far as folders can be listed.
    ///
    /// # Errors
    /// The repository's own folder can't be listed.
    pub fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        for domain in self.domains()? {
            self.survey_domain(&domain, &mut survey);
        }
        Ok(survey)
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

    /// The recovery points of a disk. A damaged manifest hides no other, and a folder that can't be
    /// listed hides nothing beside it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the repository has nothing of the disk's domain.
    pub fn points(&self, id: &DiskId) -> Result<PointList> {
        if !is_folder(&self.domain_dir(&id.domain)).unwrap_or(true) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no disk {id} in the repository {}", self.root.display()),
            ));
        }
        let manifests = self.manifests(&id.domain);
        let mut unreadable: Vec<_> = manifests.unreadable.into_iter().collect();
        let dir = self.disk_dir(id);
        let present = folder_names_if_any(&dir);
        // A folder that can't be listed does not make what is in it missing.
        let is_present = |name: &String| match &present {
            Ok(names) => names.contains(name),
            Err(_) => is_there(&dir.join(name)).unwrap_or(true),
        };
        let point = |manifest: &Manifest| {
            let record = manifest.disk(&id.disk)?.clone();
            Some(Point {
                id: manifest.point,
                disk: id.clone(),
                created: manifest.created,
                consistency: manifest.consistency,
                freeze_ms: manifest.machine.as_ref().and_then(|machine| machine.freeze_ms),
                frozen_filesystems: manifest
                    .machine
                    .as_ref()
                    .and_then(|machine| machine.frozen_filesystems),
                elapsed_ms: manifest.elapsed_ms,
                safety: manifest.safety,
                archive_path: dir.join(&record.archive),
                archive_present: is_present(&record.archive),
                record,
            })
        };
        let points = manifests.good.iter().filter_map(point).collect();
        unreadable.extend(present.err().map(|error| DamagedFolder { path: dir.clone(), error }));
        Ok(PointList { points, damaged: manifests.damaged, unreadable })
    }

    /// The point of a disk that a selector means: an id, or the very millisecond of a point, means any
    /// point; the latest or another time means backups alone, and no safety point.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Usage`] if an id's beginning fits
    /// several, [`ErrorKind::Damaged`] if the answer may be a point whose manifest is damaged: an
    /// older one is never given in its place.
    pub fn resolve(&self, id: &DiskId, selector: &Selector) -> Result<Point> {
        self.resolve_among(id, selector, Among::Backups)
    }

    /// The last safety point that a selector passed over when it meant `point`, if there is one.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn passed_over(
        &self,
        id: &DiskId,
        selector: &Selector,
        point: PointId,
    ) -> Result<Option<PointId>> {
        if matches!(selector, Selector::Id(_)) {
            return Ok(None);
        }
        let last = self.resolve_among(id, selector, Among::All)?.id;
        Ok((last > point).then_some(last))
    }

    /// The newest point of a disk, of whatever kind it is: what the next backup builds on.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn newest(&self, id: &DiskId) -> Result<Point> {
        self.resolve_among(id, &Selector::Latest, Among::All)
    }

    fn resolve_among(&self, id: &DiskId, selector: &Selector, among: Among) -> Result<Point> {
        let PointList { mut points, damaged, unreadable } = self.points(id)?;
        let manifests = self.points_dir(&id.domain);
        if let Some(folder) = unreadable.into_iter().find(|folder| folder.path == manifests) {
            return Err(folder.error.within(format!("the points of {id} can't be told")).advise(
                "qdelta replay restores from the archives alone: the full first, in order",
            ));
        }
        let is_id = matches!(selector, Selector::Id(_));
        // What a list shows of a safety point must mean that point.
        let is_named = |point: &Point| is_id || *selector == Selector::At(point.id.time());
        let is_meant = |point: &Point| among == Among::All || is_named(point) || !point.safety;
        let last_safety = points.iter().rev().find(|point| point.safety).map(|point| point.id);
        points.retain(is_meant);
        let fits = |candidate: PointId| match selector {
            Selector::Latest => true,
            Selector::At(time) => candidate.time() <= *time,
            Selector::Id(prefix) => candidate.to_string().starts_with(prefix.as_str()),
        };
        let found: Vec<_> = points.iter().filter(|point| fits(point.id)).collect();
        if let Selector::Id(prefix) = selector
            && found.len() > 1
        {
            return Err(ambiguous(prefix, found.iter().map(|point| point.id)));
        }
        // Of an id's beginning, any damaged manifest that fits; otherwise one that may hold a
        // later point of this disk.
        let last = match selector {
            Selector::Id(_) => None,
            _ => found.last().map(|point| point.id),
        };
        let in_doubt = damaged
            .into_iter()
            .filter(|manifest| fits(manifest.point))
            .max_by_key(|manifest| manifest.point);
        if let Some(manifest) = in_doubt
            && last.is_none_or(|last| last < manifest.point)
        {
            return Err(manifest
                .error
                .within(format!("point {} of {id} can't be told", manifest.point))
                .advise("name another point by its id: qdelta points lists them"));
        }
        found.last().map(|&point| point.clone()).ok_or_else(|| {
            let what = match (selector, points.first()) {
                (_, None) if !self.strays(id).unwrap_or_default().is_empty() => {
                    return Error::new(
                        ErrorKind::Damaged,
                        format!("the manifests of {id} are gone, though there are archives"),
                    )
                    .advise("qdelta replay restores from the archives: the full first, in order");
                }
                (_, None) => match last_safety {
                    None => format!("{id} has no points yet"),
                    Some(safety) => {
                        let text = format!("{id} has no backup, only safety points of roll backs");
                        return Error::new(ErrorKind::NotFound, text)
                            .advise(format!("name the one that is meant: {id}@{safety}"));
                    }
                },
                (Selector::At(time), Some(first)) => {
                    format!("{id} has no point at or before {time}; its first is {}", first.id)
                }
                _ => format!("{id} has no point {selector}"),
            };
            Error::new(ErrorKind::NotFound, what).advise("qdelta points lists the points")
        })
    }

    /// The archives that it takes to restore a point, its chain's full first and its own last.
    ///
    /// Where the manifest of an earlier point is damaged or gone, its archive's header says which
    /// archive comes before it: a lost manifest costs its own point and no other.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if an archive is missing, naming the point that needs it.
    pub fn chain_of(&self, point: &Point) -> Result<Vec<PathBuf>> {
        chain::of(self, point)
    }

    /// What is left of the archives that [`Self::chain_of`] names; `list` are the disk's points.
    pub fn remains_of(&self, list: &PointList, point: &Point) -> Remains {
        chain::remains(self, list, point)
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
    ) -> Result<Pending<'lock>> {
        Pending::begin(self, lock, id, point, kind)
    }

    /// Removes what a backup that was killed left in a domain.
    ///
    /// # Errors
    /// A folder can't be read, or a file can't be removed.
    pub fn clean(&self, lock: &DomainLock) -> Result<Cleaned> {
        leftovers::clean(self, lock)
    }

    /// The archives of a disk that no manifest names, and the points that they are called after.
    /// Their manifests were lost, or left behind by whoever copied the repository. What a backup
    /// is just finishing, or was killed at finishing, is not among them.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn strays(&self, id: &DiskId) -> Result<Vec<(PathBuf, PointId)>> {
        leftovers::strays(self, id)
    }

    /// What can be seen to be wrong with a disk's points without reading an archive.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn health(&self, id: &DiskId, list: &PointList) -> Result<Health> {
        health::of(self, id, list)
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

    /// The disks of a domain, as [`Self::survey_domain`] finds them.
    ///
    /// # Errors
    /// None is found, and a folder can't be listed.
    fn disks_of(&self, domain: &DomainName) -> Result<Vec<DiskId>> {
        let mut survey = Survey::default();
        self.survey_domain(domain, &mut survey);
        match survey.unreadable.pop().filter(|_| survey.disks.is_empty()) {
            Some(folder) => Err(folder.error),
            None => Ok(survey.disks),
        }
    }

    /// Adds the disks of a domain that have an archive or are named by a manifest, sorted. Where a
    /// folder can't be listed, the disk that it is called after is one.
    fn survey_domain(&self, domain: &DomainName, survey: &mut Survey) {
        let manifests = self.manifests(domain);
        survey.unreadable.extend(manifests.unreadable);
        let records = manifests.good.into_iter().flat_map(|manifest| manifest.disks);
        let mut disks: Vec<DiskName> = records.map(|record| record.disk).collect();
        let dir = self.domain_dir(domain);
        let names = folder_names(&dir).unwrap_or_else(|error| {
            survey.unreadable.push(DamagedFolder { path: dir.clone(), error });
            Vec::new()
        });
        for name in names {
            let Ok(disk) = name.parse::<DiskName>() else { continue };
            let path = dir.join(&name);
            let is_archive = |name: &String| manifest::parse_archive_name(name).is_some();
            let holds_some =
                || folder_names(&path).map_or(true, |names| names.iter().any(is_archive));
            if is_folder(&path).unwrap_or(true) && holds_some() {
                disks.push(disk);
            }
        }
        disks.sort_unstable();
        disks.dedup();
        survey.disks.extend(disks.into_iter().map(|disk| DiskId { domain: domain.clone(), disk }));
    }

    /// The points of a domain that have a manifest, whatever is in it.
    fn manifest_names(&self, domain: &DomainName) -> Result<Vec<PointId>> {
        let names = folder_names_if_any(&self.points_dir(domain))?;
        let mut points: Vec<PointId> =
            names.iter().filter_map(|name| manifest::parse_file_name(name)).collect();
        points.sort_unstable();
        Ok(points)
    }

    /// The manifests of a domain, oldest first, as far as they can be read.
    fn manifests(&self, domain: &DomainName) -> ManifestList {
        let mut list = ManifestList::default();
        let points = self.manifest_names(domain).unwrap_or_else(|error| {
            list.unreadable = Some(DamagedFolder { path: self.points_dir(domain), error });
            Vec::new()
        });
        for point in points {
            let path = self.points_dir(domain).join(Manifest::file_name(point));
            let manifest = durable::read_small(&path, manifest::LEN_MAX)
                .and_then(|bytes| Manifest::decode(&bytes, &path, domain, point));
            match manifest {
                Ok(manifest) => list.good.push(manifest),
                Err(error) => list.damaged.push(DamagedManifest { point, path, error }),
            }
        }
        list
    }
}

/// The beginning of an id that several points have.
fn ambiguous(prefix: &str, found: impl ExactSizeIterator<Item = PointId>) -> Error {
    let count = found.len();
    let shown: Vec<_> = found.take(3).map(|point| point.to_string()).collect();
    let more = match count - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = shown.join(", ");
    Error::new(
        ErrorKind::Usage,
        format!("{prefix} is the beginning of several points: {shown}{more}"),
    )
    .advise("give more of the id")
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
