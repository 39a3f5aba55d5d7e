//! The repository: a folder of archives and manifests that a power cut can't hurt.
//!
//! ```text
//! REPO/qdelta.toml                               what makes the folder a repository
//! REPO/<domain>/.lock                            held by whoever writes to the domain
//! REPO/<domain>/.keep                            shared by whoever reads its points
//! REPO/<domain>/<disk>/<point>-<kind>-<id>.qdelta  archives
//! REPO/<domain>/points/<point>.json              manifests
//! REPO/<domain>/machine/<digest>.zst             files of the machine around the disks
//! ```
//!
//! Every file is written under another name, synced, and given its own name, durably: [`storage`] says
//! how. The manifest comes last: what has no manifest did not happen. Nothing is changed after that;
//! readers hold a lock only so that nothing is removed while they read.

mod arrival;
mod case;
mod catalog;
mod chain;
mod config;
mod drills;
mod find;
mod health;
mod history;
mod keys;
mod leftovers;
mod listed;
mod lock;
mod locks_seen;
mod machine;
mod manifest;
mod manifest_digest;
mod marks;
mod names;
mod pending;
mod point;
mod removal;
mod replace;
mod safe;
mod select;
mod settings;
mod sizes;
mod snapshot;
pub mod storage;
mod trust;
mod unnamed;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::base::printable::shell_word;
use crate::disk::files::paths::absolute;
use crate::disk::files::{Durability, make_private_folder, replace_file};
use crate::disk::io::Opener;
use crate::formats::allocation::{self, Allocation};
use crate::formats::archive::{ArchiveId, Kind};
use config::CONFIG;

use catalog::Folder;
pub use catalog::{Catalog, Point};
pub use chain::{Gap, Remains};
pub(crate) use chain::{Link, Needed};
pub use config::Repair;
pub use drills::{Climb, Drill, Drilled, Part, Root, Rung, Step};
pub use find::{DiskAt, Wanted};
pub use health::Health;
pub use history::{History, Stamp, Verdict};
pub use keys::{Encryption, KeyEntry, KeyRing, NewKeys};
pub use leftovers::{Cleaned, Leftover};
pub use lock::{Clearance, DomainLock, Hold};
pub use machine::{
    LeftOut, MACHINE_FILE_MAX, MACHINE_FILES_MAX, MEMORY, MachineFile, MachineRecord, MemoryRecord,
    Role,
};
pub use manifest::{
    Anchor, AnchorKind, CloneRecord, DiskRecord, ImageRecord, LayerRecord, Manifest, ParentRecord,
    Refusal, Replaced,
};
pub use marks::{Marks, Pin, Removal};
pub use names::{DiskId, DiskName, DiskSpec, DomainName};
pub(crate) use pending::Beside;
pub use pending::Pending;
pub use point::{PointId, Selector};
pub use removal::Removed;
pub(crate) use replace::Version;
pub use settings::{Count, Keep, SAFETY, Settings, Targets};
pub use sizes::Size;
pub(crate) use snapshot::pin as snapshot_pin;
pub use snapshot::{SNAPSHOT_HOLDER, SnapshotRecord};
use storage::{Entry, EntryKind, Limited, Name, S3, Storage, Wait};

/// Only whoever makes backups reads the digests of what disks hold.
const SUMMARY_MODE: u32 = 0o600;

/// The longest list of the points of a domain that makes sense, in bytes.
const POINTS_SEEN_LEN_MAX: u64 = 4 << 20;

/// The longest summary that is read, in bytes.
const SUMMARY_LEN_MAX: u64 = 64 << 20;

/// How long what a backup has left for the next one stays that none renews.
const SUMMARY_AGE_MAX: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// A repository that is open.
#[derive(Debug, Clone)]
pub struct Repository {
    root: PathBuf,
    storage: Arc<dyn Storage>,
    /// Empty if `qdelta.toml` is lost, and no manifest knows it.
    id: String,
    /// What is wrong with `qdelta.toml`.
    trouble: Option<Error>,
    /// Where this host keeps what belongs to itself and not to the repository.
    state: Option<PathBuf>,
    /// None if its files are as they are.
    encryption: Option<Encryption>,
    /// For how long the storage locks what is written.
    locked: Option<Period>,
    /// The moment as of which it is read; none for now.
    past: Option<Timestamp>,
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
    /// Archives that the list of the disk's folder lacks, and that are there all the same.
    pub unlisted: Vec<Name>,
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

    /// What names the repository from every folder: its folder's absolute path, or its address.
    pub fn place(&self) -> PathBuf {
        match S3::is_address(&self.root) {
            true => self.root.clone(),
            false => absolute(&self.root),
        }
    }

    /// What names it for a shell, in commands that somebody is to type.
    pub(crate) fn shell_word(&self) -> String {
        shell_word(&self.root.to_string_lossy())
    }

    /// What to call its `qdelta.toml`.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.describe(&Name::top().join(CONFIG))
    }

    /// Where its files are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The repository's id: 32 hexadecimal digits that no other repository has.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is known of its encryption; none if it is not encrypted.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }

    /// The domains that have a folder, sorted; also those whose folder can't be looked at.
    ///
    /// # Errors
    /// The repository's folder can't be listed.
    pub fn domains(&self) -> Result<Vec<DomainName>> {
        let mut domains = Vec::new();
        for entry in self.storage.list(&Name::top())? {
            if let Ok(domain) = entry.name.parse()
                && entry.may_be_folder()
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
    /// `qdelta.toml` is lost or damaged; [`ErrorKind::Interrupted`]: somebody asked to stop while it was waited for.
    pub fn lock(&self, domain: &DomainName, wait: Wait<'_>) -> Result<DomainLock> {
        self.check_writable()?;
        DomainLock::take(&self.storage, domain.clone(), self.id.clone(), wait)
    }

    /// Keeps the archives of a domain in their places, for as long as the hold lives.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another process is removing some.
    pub fn hold(&self, domain: &DomainName, wait: Wait<'_>) -> Result<Hold> {
        lock::hold(&*self.storage, domain, wait)
    }

    /// Takes the right to remove archives of a domain, for as long as the clearance lives; nothing if somebody reads them.
    ///
    /// # Errors
    /// The lock can't be taken, or nobody can tell whether somebody reads.
    pub fn clear(&self, lock: &DomainLock, wait: Wait<'_>) -> Result<Option<Clearance>> {
        lock::clear(lock, wait)
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

    /// Removes what a backup that was killed left in a domain, and reads what is there then.
    ///
    /// # Errors
    /// A folder can't be read, or a file can't be removed.
    pub fn clean(&self, lock: &DomainLock) -> Result<(Cleaned, Catalog)> {
        leftovers::clean(self, lock, &BTreeSet::new())
    }

    /// Cleans as [`Self::clean`] does, and leaves what has arrived of points that are `expected`.
    ///
    /// # Errors
    /// As [`Self::clean`].
    pub(crate) fn clean_but(
        &self,
        lock: &DomainLock,
        expected: &BTreeSet<PointId>,
    ) -> Result<(Cleaned, Catalog)> {
        leftovers::clean(self, lock, expected)
    }

    /// The same repository, written and read at most so fast until somebody asks to stop.
    #[must_use]
    pub fn limited(mut self, bytes_per_second: u64, cancel: &Cancel) -> Self {
        self.storage = Arc::new(Limited::new(self.storage, bytes_per_second, cancel));
        self
    }

    /// The folder of a domain.
    fn domain_dir(&self, domain: &DomainName) -> Name {
        domain.folder()
    }

    /// The folder of a disk's archives.
    fn disk_dir(&self, id: &DiskId) -> Name {
        self.domain_dir(&id.domain).join(id.disk.as_str())
    }

    /// The folder of a domain's manifests.
    fn points_dir(&self, domain: &DomainName) -> Name {
        self.domain_dir(domain).join(names::POINTS)
    }

    /// What to call the manifest of a point where people read of it.
    pub(crate) fn manifest_path(&self, domain: &DomainName, point: PointId) -> PathBuf {
        self.describe(&self.points_dir(domain).join(&Manifest::file_name(point)))
    }

    /// What changes whenever a manifest of a domain is made, replaced or removed, where the storage knows
    /// it.
    pub(crate) fn manifests_version(&self, domain: &DomainName) -> Option<String> {
        self.storage.entry(&self.points_dir(domain)).ok()??.version
    }

    /// The summary of a disk's chain that the last backup left on this host, if there is one that can
    /// be read.
    pub(crate) fn summary(&self, id: &DiskId) -> Option<Vec<u8>> {
        let path = self.state.as_ref()?.join(summary_name(id));
        Opener::READ.read(&path, SUMMARY_LEN_MAX).ok()
    }

    /// What the image of a disk had allocated at its latest point, if the backup has left that on this host.
    pub(crate) fn allocation(&self, id: &DiskId) -> Option<Allocation> {
        let path = self.state.as_ref()?.join(allocation_name(id));
        Allocation::decode(&Opener::READ.read(&path, allocation::LEN_MAX).ok()?).ok()
    }

    /// The newest point of a domain that this host has made or seen.
    pub(crate) fn newest_seen(&self, domain: &DomainName) -> Option<PointId> {
        let path = self.memory()?.join(seen_name(domain));
        Opener::READ.read_text(&path, 64).ok()?.trim().parse().ok()
    }

    /// The file of this host's state that says so: without it, nobody misses the point.
    pub(crate) fn seen_path(&self, domain: &DomainName) -> Option<PathBuf> {
        Some(self.memory()?.join(seen_name(domain)))
    }

    /// Where this host remembers what it has seen in the repository; of one that is shown as it was, nothing is missed.
    fn memory(&self) -> Option<&Path> {
        self.state.as_deref().filter(|_| self.past.is_none())
    }

    /// The domains that this host has made or seen points of.
    pub(crate) fn domains_seen(&self) -> Vec<DomainName> {
        let entries = self.memory().and_then(|state| fs::read_dir(state).ok());
        let domain = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(SEEN)?.parse().ok()
        };
        entries.into_iter().flatten().flatten().filter_map(domain).collect()
    }

    /// Remembers the newest point of a domain. Nothing depends on it: who can't remember is not warned.
    pub(crate) fn saw(&self, domain: &DomainName, newest: PointId) {
        let Some(path) = self.seen_path(domain) else { return };
        let put =
            replace_file(&path, SUMMARY_MODE, Durability::None, |file| writeln!(file, "{newest}"));
        if let Err(error) = put {
            tracing::debug!("{}: {error}", path.display());
        }
    }

    /// The points that a domain had when this host copied it last.
    pub(crate) fn points_seen(&self, domain: &DomainName) -> Option<BTreeSet<PointId>> {
        let path = self.state.as_ref()?.join(points_seen_name(domain));
        let text = Opener::READ.read_text(&path, POINTS_SEEN_LEN_MAX).ok()?;
        text.lines().map(|line| line.parse().ok()).collect()
    }

    /// Remembers the points that a domain has. Nothing depends on it: who can't remember is not warned.
    pub(crate) fn saw_points(&self, domain: &DomainName, points: &BTreeSet<PointId>) {
        let Some(folder) = self.state.as_ref() else { return };
        let path = folder.join(points_seen_name(domain));
        let put = replace_file(&path, SUMMARY_MODE, Durability::None, |file| {
            points.iter().try_for_each(|point| writeln!(file, "{point}"))
        });
        if let Err(error) = put {
            tracing::debug!("{}: {error}", path.display());
        }
    }

    /// Leaves a summary of a disk's chain for the next backup on this host. Nothing depends on the
    /// summary, so nothing is synced: one that a power cut tore is not believed.
    ///
    /// # Errors
    /// The summary can't be written.
    pub(crate) fn write_summary(&self, id: &DiskId, bytes: &[u8]) -> Result<()> {
        self.write_state(&summary_name(id), bytes)
    }

    /// Leaves what the image of a disk had allocated for the next backup on this host, as [`Allocation::encode`] has
    /// it. As of a summary, nothing depends on it.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn write_allocation(&self, id: &DiskId, bytes: &[u8]) -> Result<()> {
        self.write_state(&allocation_name(id), bytes)
    }

    fn write_state(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(folder) = self.state.as_ref() else { return Ok(()) };
        let path = folder.join(name);
        let is_new = !path.exists();
        replace_file(&path, SUMMARY_MODE, Durability::None, |file| file.write_all(bytes))
            .map_err(|error| Error::io("write", &path, error).advise(state_advice(folder)))?;
        if is_new {
            forget_old_files(folder, &path);
        }
        Ok(())
    }

    /// The archive of this file name of a disk.
    pub(crate) fn archive(&self, id: &DiskId, name: &str) -> Name {
        self.disk_dir(id).join(name)
    }

    /// The same repository, for a host that keeps its own state in `folder`: marks of frozen guests, and
    /// tables that are too large for memory while an archive is written. Each repository has a folder
    /// in it.
    #[must_use]
    pub fn with_state(mut self, folder: &Path) -> Self {
        let folder = folder.join(Name::top().join(&self.id).as_str());
        if let Some(encryption) = self.encryption.as_ref().filter(|it| it.identity().is_none()) {
            self.storage = encryption.storage_with(folder.join("known"));
        }
        self.state = Some(folder);
        self
    }

    /// The file that says that a guest may be frozen, for [`DomainLock`]'s holder to make.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if nobody said where the state of this host is kept.
    pub fn frozen_mark(&self, domain: &DomainName) -> Result<PathBuf> {
        let folder = self.state.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "there is no place for the mark of a frozen guest")
                .advise("say where this host keeps its state: --state DIR")
        })?;
        Ok(folder.join(format!("{domain}.frozen")))
    }

    /// Where tables go that are too large for memory; none if that is the system's place for temporary
    /// files.
    pub fn spool_folder(&self) -> Option<&Path> {
        let folder = self.state.as_deref()?;
        make_private_folder(folder).is_ok().then_some(folder)
    }

    /// How many bytes can still be written into the repository; nothing if its filesystem does not know.
    pub fn bytes_free(&self) -> Option<u64> {
        self.storage.bytes_free()
    }

    /// How many bytes the repository's filesystem has, free or not; nothing if it does not know.
    pub fn bytes_whole(&self) -> Option<u64> {
        self.storage.bytes_whole()
    }

    /// What to call a file where people read of it.
    pub fn describe(&self, name: &Name) -> PathBuf {
        self.storage.describe(name)
    }

    /// What lies anywhere in an encrypted repository under a name that nobody of it has given. A folder that
    /// can't be listed is told of by whoever needs what is in it.
    pub(crate) fn all_strangers(&self) -> Vec<PathBuf> {
        if self.encryption.is_some() {
            for domain in self.domains().unwrap_or_default() {
                let folder = self.domain_dir(&domain);
                for entry in self.storage.list(&folder).unwrap_or_default() {
                    if entry.may_be_folder() {
                        let _ = self.storage.list(&folder.join(&entry.name));
                    }
                }
            }
        }
        self.storage.strangers()
    }

    /// Whether something has this name.
    fn is_there(&self, name: &Name) -> Result<bool> {
        Ok(self.storage.entry(name)?.is_some())
    }

    /// As [`Self::is_there`], whatever a list says: before what is not there decides what goes, or begins anew.
    fn is_really_there(&self, name: &Name) -> Result<bool> {
        if self.is_there(name)? {
            return Ok(true);
        }
        let Some(folder) = name.folder() else { return Ok(false) };
        Ok(self.storage.ask_for(&folder, &[name.last()])?.iter().any(Option::is_some))
    }

    /// Whether there is a folder of this name, or something that may be one.
    fn may_be_folder(&self, name: &Name) -> bool {
        self.storage.entry(name).map_or(true, |entry| entry.is_some_and(|it| it.may_be_folder()))
    }

    /// The names in a folder, without those of staged files.
    fn names_in(&self, folder: &Name) -> Result<Vec<String>> {
        let entries = self.storage.list(folder)?.into_iter();
        Ok(entries.filter(|it| it.kind != EntryKind::Staged).map(|it| it.name).collect())
    }

    /// What a folder holds, in one listing: what has a name, and what is staged; nothing if it is not there.
    fn listing(&self, name: &Name) -> Result<(Vec<Entry>, Vec<Entry>)> {
        let entries = match self.storage.list(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            entries => entries?,
        };
        Ok(entries.into_iter().partition(|entry| entry.kind != EntryKind::Staged))
    }

    /// The names in a folder; none if it is not there.
    fn folder(&self, name: &Name) -> Result<Folder> {
        let (named, staged) = self.listing(name)?;
        let names = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.name);
        Ok(Folder { names: names(named).collect(), staged: names(staged).collect() })
    }
}

/// What to do where the folder of this host's state can't be written to.
fn state_advice(folder: &Path) -> String {
    let state = folder.parent().unwrap_or(folder).display();
    format!("make room in {state} and let qdelta write there, or name another folder: --state DIR")
}

/// Removes what no backup has renewed for long, of all repositories of this host: of disks that are gone,
/// and of repositories that are gone. A file that is missed costs one reading of a chain or a disk, so no
/// failure matters.
fn forget_old_files(folder: &Path, newest: &Path) {
    let time_of = |path: &Path| path.symlink_metadata().and_then(|file| file.modified());
    let (Some(state), Ok(now)) = (folder.parent(), time_of(newest)) else { return };
    let is_old = |path: &Path| {
        let age = time_of(path).ok().and_then(|then| now.duration_since(then).ok());
        age.is_some_and(|age| age > SUMMARY_AGE_MAX)
    };
    let paths_in = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    for repository in paths_in(state) {
        // Nothing else: the mark of a frozen guest counts, however old it is.
        let left = paths_in(&repository).into_iter().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.strip_suffix(".partial").unwrap_or(&name);
            name.ends_with(SUMMARY) || name.ends_with(ALLOCATION)
        });
        let mut old = left.filter(|path| is_old(path)).peekable();
        if old.peek().is_some() {
            old.for_each(|path| drop(fs::remove_file(path)));
            // Succeeds only if nothing else is in it.
            let _ = fs::remove_dir(&repository);
        }
    }
}

/// The newest point of a domain, in the folder of this host's state.
fn seen_name(domain: &DomainName) -> String {
    format!("{domain}{SEEN}")
}

/// What the name of that file ends with: no name of a domain has a plus.
const SEEN: &str = "+newest";

/// The points of a domain, in the folder of this host's state.
fn points_seen_name(domain: &DomainName) -> String {
    format!("{domain}+points")
}

/// The summary of a disk's chain, in the folder of this host's state.
fn summary_name(id: &DiskId) -> String {
    // No name of a domain or a disk has a plus.
    format!("{}+{}{SUMMARY}", id.domain, id.disk)
}

/// What the image of a disk had allocated, in the folder of this host's state.
fn allocation_name(id: &DiskId) -> String {
    format!("{}+{}{ALLOCATION}", id.domain, id.disk)
}

/// What the names of these files end with.
const SUMMARY: &str = ".summary";
const ALLOCATION: &str = ".allocated";

#[cfg(test)]
mod limits;
#[cfg(test)]
mod sweep;
#[cfg(test)]
mod tests;
