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
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::archive::Kind;

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

/// The file that makes a folder a repository.
const CONFIG: &str = "qdelta.toml";

/// The file in a domain's folder that says that its guest may be frozen.
const FROZEN: &str = ".frozen";

/// The longest configuration that is read, in bytes.
const CONFIG_LEN_MAX: u64 = 64 << 10;

/// The newest repository format that this program writes and reads.
const FORMAT: u32 = 1;

/// A repository that is open.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
    config: Config,
}

/// What `qdelta.toml` says. Fields that a later version adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Config {
    /// Version of the layout of the repository: 1.
    format: u32,
    /// 32 hexadecimal digits that no other repository has.
    id: String,
    /// When it was made, for people.
    created: String,
}

/// What a disk's recovery points are, as far as the manifests can be read.
#[derive(Debug, Default)]
pub struct PointList {
    /// The points, oldest first.
    pub points: Vec<Point>,
    /// The manifests of the disk's domain that can't be read or are not what was written. Which
    /// disks they hold is not known.
    pub damaged: Vec<DamagedManifest>,
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
}

impl Repository {
    /// Makes an empty repository of the folder `root`, which is made if it is missing (but not
    /// the folder around it).
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if `root` is a repository already or has other things in it.
    pub fn init(root: &Path) -> Result<Self> {
        match fs::metadata(root) {
            Ok(_) => check_empty(root)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                durable::create_dir(root).map_err(|error| {
                    error.advise("is the disk mounted? If it is, make the folder around it first")
                })?;
            }
            Err(error) => return Err(Error::io("look at", root, error)),
        }
        let config = Config { format: FORMAT, id: new_id()?, created: now_for_people() };
        let text = toml::to_string(&config).map_err(|error| {
            Error::new(ErrorKind::Io, "cannot write qdelta.toml").because(error)
        })?;
        let partial = root.join(format!(".{CONFIG}.partial"));
        // Left by an init that was killed; whoever made it is gone or loses the rename.
        if is_there(&partial)? {
            durable::remove(&partial)?;
        }
        let text = format!("# A repository of qdelta. Please do not edit.\n{text}");
        durable::write_new(&partial, text.as_bytes())?;
        durable::rename_new(&partial, &root.join(CONFIG))?;
        durable::sync_dir(root)?;
        Ok(Self { root: root.to_owned(), config })
    }

    /// Opens the repository in the folder `root`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the folder is missing or no repository: a backup disk that
    /// isn't mounted must not fill the disk below. [`ErrorKind::Damaged`] if its configuration
    /// makes no sense, [`ErrorKind::Usage`] if a newer program made it.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join(CONFIG);
        let bytes = durable::read_small(&path, CONFIG_LEN_MAX).map_err(|error| {
            let what = match fs::metadata(root) {
                Ok(metadata) if !metadata.is_dir() => "not a folder",
                _ if error.kind() != ErrorKind::NotFound => return error,
                Ok(_) => "not a repository",
                Err(_) => "no such folder",
            };
            Error::new(ErrorKind::NotFound, format!("{}: {what}", root.display())).advise(format!(
                "mount the disk it is on, or make a new repository: qdelta init {}",
                root.display()
            ))
        })?;
        let damaged = || {
            Error::new(ErrorKind::Damaged, format!("{} makes no sense", path.display()))
                .advise("the archives and manifests beside it are not touched by that")
        };
        let text = std::str::from_utf8(&bytes).map_err(|error| damaged().because(error))?;
        let config: Config = toml::from_str(text).map_err(|error| damaged().because(error))?;
        if config.format > FORMAT {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: repository format {}", root.display(), config.format),
            )
            .because(format!("this qdelta knows formats up to {FORMAT}"))
            .advise("use the qdelta that made it, or a newer one"));
        }
        Ok(Self { root: root.to_owned(), config })
    }

    /// The repository's folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The repository's id: 32 hexadecimal digits that no other repository has.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// The domains that have a folder, sorted.
    pub fn domains(&self) -> Result<Vec<DomainName>> {
        let mut domains = Vec::new();
        for name in folder_names(&self.root)? {
            if let Ok(domain) = name.parse()
                && is_folder(&self.root.join(&name))?
            {
                domains.push(domain);
            }
        }
        domains.sort_unstable();
        Ok(domains)
    }

    /// Every disk that has an archive or is named by a manifest, sorted.
    pub fn disks(&self) -> Result<Vec<DiskId>> {
        let mut disks = Vec::new();
        for domain in self.domains()? {
            disks.extend(self.disks_of(&domain)?);
        }
        Ok(disks)
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
    /// [`ErrorKind::Busy`] if another process has it.
    pub fn lock(&self, domain: &DomainName) -> Result<DomainLock> {
        DomainLock::take(self.domain_dir(domain), domain.clone())
    }

    /// The recovery points of a disk. A damaged manifest hides no other.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the repository has nothing of the disk's domain, anything else
    /// if a folder can't be read.
    pub fn points(&self, id: &DiskId) -> Result<PointList> {
        if !is_folder(&self.domain_dir(&id.domain))? {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no disk {id} in the repository {}", self.root.display()),
            ));
        }
        let manifests = self.manifests(&id.domain)?;
        let present = folder_names_if_any(&self.disk_dir(id))?;
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
                archive_path: self.disk_dir(id).join(&record.archive),
                archive_present: present.contains(&record.archive),
                record,
            })
        };
        let points = manifests.good.iter().filter_map(point).collect();
        Ok(PointList { points, damaged: manifests.damaged })
    }

    /// The point of a disk that a selector means: an id means any point, the latest or a time means
    /// backups alone, and no safety point.
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
        let PointList { mut points, damaged } = self.points(id)?;
        let is_id = matches!(selector, Selector::Id(_));
        let is_meant = |point: &Point| among == Among::All || is_id || !point.safety;
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

    /// What is left of the archives that [`Self::chain_of`] names, for a salvage, and a line for
    /// each that is missing.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn remains_of(&self, point: &Point) -> Result<(Vec<PathBuf>, Vec<String>)> {
        chain::remains_of(self, point)
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
            if !is_folder(&dir)? {
                continue;
            }
            let points = folder_names(&dir)?.into_iter().filter_map(|archive| {
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

    /// The disks of a domain that have an archive or are named by a manifest, sorted.
    fn disks_of(&self, domain: &DomainName) -> Result<Vec<DiskId>> {
        let mut disks: Vec<DiskName> = Vec::new();
        for manifest in self.manifests(domain)?.good {
            disks.extend(manifest.disks.into_iter().map(|record| record.disk));
        }
        let dir = self.domain_dir(domain);
        for name in folder_names(&dir)? {
            let Ok(disk) = name.parse::<DiskName>() else { continue };
            let dir = dir.join(&name);
            let is_archive = |name: &String| manifest::parse_archive_name(name).is_some();
            if is_folder(&dir)? && folder_names(&dir)?.iter().any(is_archive) {
                disks.push(disk);
            }
        }
        disks.sort_unstable();
        disks.dedup();
        Ok(disks.into_iter().map(|disk| DiskId { domain: domain.clone(), disk }).collect())
    }

    /// The points of a domain that have a manifest, whatever is in it.
    fn manifest_names(&self, domain: &DomainName) -> Result<Vec<PointId>> {
        let names = folder_names_if_any(&self.points_dir(domain))?;
        let mut points: Vec<PointId> =
            names.iter().filter_map(|name| manifest::parse_file_name(name)).collect();
        points.sort_unstable();
        Ok(points)
    }

    /// The manifests of a domain, oldest first.
    fn manifests(&self, domain: &DomainName) -> Result<ManifestList> {
        let mut list = ManifestList::default();
        for point in self.manifest_names(domain)? {
            let path = self.points_dir(domain).join(Manifest::file_name(point));
            let manifest = durable::read_small(&path, manifest::LEN_MAX)
                .and_then(|bytes| Manifest::decode(&bytes, &path, domain, point));
            match manifest {
                Ok(manifest) => list.good.push(manifest),
                Err(error) => list.damaged.push(DamagedManifest { point, path, error }),
            }
        }
        Ok(list)
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

/// Fails unless nothing that matters is in a folder that becomes a repository.
fn check_empty(root: &Path) -> Result<()> {
    let names = folder_names(root)?;
    let exists = |what| Error::new(ErrorKind::Exists, format!("{}: {what}", root.display()));
    if names.iter().any(|name| name == CONFIG) {
        return Err(exists("is a repository already"));
    }
    // A fresh filesystem may be mounted there; an init may have been killed there.
    let ours = format!(".{CONFIG}.partial");
    if names.iter().any(|name| name != "lost+found" && *name != ours) {
        return Err(exists("the folder is not empty").advise("name a new folder inside it"));
    }
    Ok(())
}

/// 32 hexadecimal digits at random.
fn new_id() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot get random numbers").because(error.to_string())
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The time as `qdelta.toml` shows it.
fn now_for_people() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod limits;
#[cfg(test)]
mod tests;
