//! One reading of a repository, which every question about its points is put to.
//!
//! A folder is listed once and a manifest is read once, each when somebody first asks for it. A
//! domain of ten thousand points so costs a backup or a restore only the manifests that it needs,
//! and nobody more than one reading of each.
//!
//! A catalog shows the repository as it was when it was looked at. Whoever commits a point, or
//! waits for a lock, takes a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::manifest::{self, DiskRecord, Manifest, ParentRecord};
use super::marks::{Pin, Removal};
use super::names::{DiskId, DiskName, DomainName};
use super::point::PointId;
use super::storage::Entry;
use super::{
    DamagedFolder, DamagedManifest, DomainLock, Name, NextPoint, PointList, Repository, Survey,
};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::Consistency;

/// One reading of the manifests and folders of a repository.
#[derive(Debug)]
pub struct Catalog {
    repository: Repository,
    domains: Mutex<BTreeMap<DomainName, Arc<DomainReading>>>,
}

/// One reading of a domain.
#[derive(Debug)]
pub(super) struct DomainReading {
    repository: Repository,
    domain: DomainName,
    /// The points that have a manifest, whatever is in it, ascending.
    names: Result<Vec<PointId>>,
    /// The manifest of each of `names`, once somebody asked for it.
    manifests: Vec<OnceLock<Box<Result<Manifest>>>>,
    /// The points whose manifest is staged: it is being written, or its writer was killed.
    staged: Vec<PointId>,
    /// The points whose archives were here without a manifest before somebody staged one.
    lost: BTreeSet<PointId>,
    /// The points of which somebody was killed before that could be said.
    lost_staged: Vec<PointId>,
    /// What the folders of the disks hold, once somebody asked for it.
    folders: Mutex<BTreeMap<DiskName, Arc<Result<Folder>>>>,
    /// How many archives were looked at one by one.
    looks: AtomicU32,
}

/// What the folder of a disk holds.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// The names of its files.
    pub names: BTreeSet<String>,
    /// The names that its staged files were to get.
    pub staged: Vec<String>,
}

/// A disk at one recovery point, as its manifest tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The point's id.
    pub id: PointId,
    /// The disk.
    pub disk: DiskId,
    /// When it was made.
    pub created: Timestamp,
    /// In what state the guest was.
    pub consistency: Consistency,
    /// Why its filesystems were not frozen although they should have been; none if it was as asked for.
    pub fell_back: Option<String>,
    /// How long its filesystems can have been frozen, in milliseconds; none if they were not.
    pub freeze_ms: Option<u64>,
    /// How many filesystems were frozen; none if none were.
    pub frozen_filesystems: Option<u32>,
    /// Whether it has the guest's memory, and resumes.
    pub resumes: bool,
    /// How long making it took, in milliseconds.
    pub elapsed_ms: u64,
    /// It is a safety point: it holds what was there before a roll back.
    pub safety: bool,
    /// Its pins.
    pub pins: Vec<Pin>,
    /// It is removed: only who names it whole means it.
    pub removed: Option<Removal>,
    /// What the manifest says of the disk.
    pub record: DiskRecord,
    /// What its archive is called.
    pub archive: Name,
    /// Whether a file lies there.
    pub archive_present: bool,
}

impl Point {
    /// Whether it holds an internal snapshot of the image, and not the state that the disk had then.
    pub fn is_of_snapshot(&self) -> bool {
        self.record.snapshot.is_some()
    }

    /// What the next archive calls this point if it is made against it.
    pub fn as_parent(&self) -> ParentRecord {
        ParentRecord {
            domain: self.disk.domain.clone(),
            disk: self.disk.disk.clone(),
            point: self.id,
            root: self.record.root,
        }
    }
}

impl Repository {
    /// A reading of the repository as it is now.
    pub fn catalog(&self) -> Catalog {
        Catalog { repository: self.clone(), domains: Mutex::default() }
    }
}

impl Catalog {
    /// The repository that is read.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// What is to be told of files and folders that were seen under names that nobody of the repository has
    /// given; none if there are none.
    pub fn strangers(&self) -> Option<String> {
        let all = self.repository.storage().strangers();
        let (first, more) = (all.first()?, all.len() - 1);
        let (them, have) = match more {
            0 => (String::new(), "has a name"),
            more => (format!(" and {more} more"), "have names"),
        };
        Some(format!("{}{them} {have} that nobody of this repository has given", first.display()))
    }

    /// The reading of a domain.
    pub(super) fn domain(&self, domain: &DomainName) -> Arc<DomainReading> {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = domains
            .entry(domain.clone())
            .or_insert_with(|| Arc::new(DomainReading::new(&self.repository, domain)));
        Arc::clone(reading)
    }

    /// The recovery points of a disk. A damaged manifest hides no other, and a folder that can't be
    /// listed hides nothing beside it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the repository has nothing of the disk's domain.
    pub fn points(&self, id: &DiskId) -> Result<PointList> {
        self.check_domain(id)?;
        let domain = self.domain(&id.domain);
        let mut list = PointList::default();
        list.unreadable.extend(domain.unreadable());
        for (point, manifest) in domain.all() {
            match manifest {
                Ok(manifest) => list.points.extend(domain.point(manifest, id)),
                Err(error) => list.damaged.push(domain.damaged(point, error)),
            }
        }
        if let Err(error) = &*domain.folder(&id.disk) {
            let path = self.repository.describe(&self.repository.disk_dir(id));
            list.unreadable.push(DamagedFolder { path, error: error.clone() });
        }
        self.ask_for_missing(id, &mut list)?;
        Ok(list)
    }

    /// Asks for each archive by itself that seems to be missing: a list may lag behind, or be cut.
    fn ask_for_missing(&self, id: &DiskId, list: &mut PointList) -> Result<()> {
        let mut missing: Vec<&mut Point> =
            list.points.iter_mut().filter(|point| !point.archive_present).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|point| point.record.archive.as_str()).collect();
        let found = self.repository.storage().ask_for(&self.repository.disk_dir(id), &names)?;
        for (point, _) in missing.iter_mut().zip(&found).filter(|(_, found)| found.is_some()) {
            point.archive_present = true;
            list.unlisted.push(point.archive.clone());
        }
        Ok(())
    }

    /// The points of a disk whose manifests can be read and that are not removed, the latest first. Only
    /// the manifests that are walked over are read.
    ///
    /// # Errors
    /// As [`Self::points`].
    pub fn latest_first(&self, id: &DiskId) -> Result<impl Iterator<Item = Point>> {
        self.check_domain(id)?;
        let (domain, id) = (self.domain(&id.domain), id.clone());
        Ok((0..domain.points().len()).rev().filter_map(move |index| {
            let (_, manifest) = domain.at(index)?;
            let is_kept = |manifest: &&Manifest| manifest.removed.is_none();
            domain.point(manifest.as_ref().ok().filter(is_kept)?, &id)
        }))
    }

    /// The newest point of a disk as this host has made it, where somebody has changed its manifest since, and this
    /// host can't open it: what its archive builds on and gives never changes, so the next backup can be made
    /// against it. None where there is a later one, or where that archive is not there any more.
    pub(crate) fn newest_own(&self, id: &DiskId) -> Option<Point> {
        let domain = self.domain(&id.domain);
        let newest = *domain.points().last()?;
        let name = domain.manifest_name(newest);
        let bytes = self.repository.storage().read_own(&name, manifest::LEN_MAX)?;
        let path = self.repository.describe(&name);
        let manifest = Manifest::decode(&bytes, &path, &id.domain, newest).ok()?;
        let is_there = |point: &Point| {
            point.archive_present
                || self.repository.is_really_there(&point.archive).unwrap_or(false)
        };
        domain
            .point(&manifest, id)
            .filter(|point| point.removed.is_none() && !point.is_of_snapshot() && is_there(point))
    }

    /// What the manifest of the latest point of a disk says of it, as [`Self::latest_first`] finds it but for points of
    /// snapshots; none if it has none. Whether its archive is there is not looked at.
    ///
    /// # Errors
    /// It can't be told whether the repository has anything of the disk's domain.
    pub(crate) fn latest_record(&self, id: &DiskId) -> Result<Option<(PointId, DiskRecord)>> {
        match self.check_domain(id) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            checked => checked?,
        }
        let domain = self.domain(&id.domain);
        Ok((0..domain.points().len()).rev().find_map(|index| {
            let (point, manifest) = domain.at(index)?;
            let manifest = manifest.as_ref().ok().filter(|it| it.removed.is_none())?;
            let record = manifest.disk(&id.disk).filter(|it| it.snapshot.is_none())?;
            Some((point, record.clone()))
        }))
    }

    /// The newest point of a domain that has a manifest, whatever is in it; none if it has none, or if they
    /// can't be listed.
    pub(crate) fn newest_of(&self, domain: &DomainName) -> Option<PointId> {
        self.domain(domain).points().last().copied()
    }

    /// The points of a domain that have a manifest, whatever is in it, ascending; no manifest is read.
    pub(crate) fn points_of(&self, domain: &DomainName) -> Vec<PointId> {
        self.domain(domain).points().to_vec()
    }

    /// Whether the newest point of a domain is none that this host has made or seen: another one makes its points now.
    pub(crate) fn is_made_elsewhere(&self, domain: &DomainName) -> bool {
        let seen = self.repository.newest_seen(domain);
        self.newest_of(domain).is_some_and(|newest| seen.is_none_or(|seen| seen < newest))
    }

    /// Every disk that has an archive or is named by a manifest, as far as folders can be listed.
    ///
    /// # Errors
    /// The repository's own folder can't be listed.
    pub fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        for domain in self.repository.domains()? {
            self.survey_domain(&domain, &mut survey);
        }
        Ok(survey)
    }

    /// The disks of a domain, as `survey_domain` finds them.
    ///
    /// # Errors
    /// None is found, and a folder can't be listed.
    pub fn disks_of(&self, domain: &DomainName) -> Result<Vec<DiskId>> {
        let mut survey = Survey::default();
        self.survey_domain(domain, &mut survey);
        match survey.unreadable.pop().filter(|_| survey.disks.is_empty()) {
            Some(folder) => Err(folder.error),
            None => Ok(survey.disks),
        }
    }

    /// Adds the disks of a domain that have an archive or are named by a manifest, sorted. Where a
    /// folder can't be listed, the disk that it is called after is one.
    pub(super) fn survey_domain(&self, domain: &DomainName, survey: &mut Survey) {
        let reading = self.domain(domain);
        survey.unreadable.extend(reading.unreadable());
        let mut disks = BTreeSet::new();
        for manifest in reading.good() {
            disks.extend(manifest.disks.iter().map(|record| record.disk.clone()));
        }
        let dir = self.repository.domain_dir(domain);
        let names = self.repository.names_in(&dir).unwrap_or_else(|error| {
            // Some stores tell of a folder in which nothing is any more.
            if error.kind() == ErrorKind::NotFound {
                return Vec::new();
            }
            let path = self.repository.describe(&dir);
            survey.unreadable.push(DamagedFolder { path, error });
            Vec::new()
        });
        let named = names.iter().filter_map(|name| name.parse::<DiskName>().ok());
        disks.extend(named.filter(|disk| reading.holds_archives(disk)));
        survey.disks.extend(disks.into_iter().map(|disk| DiskId { domain: domain.clone(), disk }));
    }

    /// The id for a new point of a domain that is locked: the time, unless the clock was set back.
    ///
    /// # Errors
    /// A folder can't be read, or the clock stands outside the years 1970 to 9999.
    pub fn next_point(&self, lock: &DomainLock) -> Result<NextPoint> {
        self.next_point_at(lock, PointId::now()?)
    }

    /// The id for a new point of a domain if it is `now`.
    pub(super) fn next_point_at(&self, lock: &DomainLock, now: PointId) -> Result<NextPoint> {
        let domain = lock.domain();
        let reading = self.domain(domain);
        if let Some(folder) = reading.unreadable() {
            return Err(folder.error);
        }
        // Every damaged manifest counts as well: the names are all that matters.
        let mut latest = reading.points().last().copied();
        // Also the archives that have no manifest: their names are taken.
        for name in self.repository.names_in(&self.repository.domain_dir(domain))? {
            let Ok(disk) = name.parse::<DiskName>() else { continue };
            // Another disk's folder that can't be listed is no matter of this point.
            let folder = reading.folder(&disk);
            let Ok(folder) = &*folder else { continue };
            let points = folder.names.iter().filter_map(|archive| {
                manifest::parse_archive_name(archive).map(|(point, _)| point)
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

    /// Fails unless the repository has the folder of the disk's domain, or can't tell.
    pub(super) fn check_domain(&self, id: &DiskId) -> Result<()> {
        // Where there are points, there is a folder: the question would cost another way to a store.
        if !self.domain(&id.domain).points().is_empty()
            || self.repository.may_be_folder(&self.repository.domain_dir(&id.domain))
        {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no disk {id} in the repository {}", self.repository.path().display()),
        ))
    }
}

impl DomainReading {
    /// Lists the manifests of a domain.
    pub(super) fn new(repository: &Repository, domain: &DomainName) -> Self {
        let (mut lost, mut lost_staged) = (BTreeSet::new(), Vec::new());
        let (names, staged) = match repository.listing(&repository.points_dir(domain)) {
            Ok((named, staged)) => {
                let points = |entries: &[Entry]| -> Vec<PointId> {
                    let points = entries.iter().map(|it| manifest::parse_file_name(&it.name));
                    points.flatten().collect()
                };
                let mut names = points(&named);
                names.sort_unstable();
                let marks = |it: &Entry| manifest::parse_lost_name(&it.name);
                lost.extend(named.iter().filter_map(marks));
                lost_staged.extend(staged.iter().filter_map(marks));
                (Ok(names), points(&staged))
            }
            Err(error) => (Err(error), Vec::new()),
        };
        let mut manifests = Vec::new();
        manifests.resize_with(names.as_ref().map_or(0, Vec::len), OnceLock::new);
        Self {
            repository: repository.clone(),
            domain: domain.clone(),
            names,
            manifests,
            staged,
            lost,
            lost_staged,
            folders: Mutex::default(),
            looks: AtomicU32::new(0),
        }
    }

    /// The points that have a manifest, whatever is in it, ascending; none if the folder can't be
    /// listed.
    pub(super) fn points(&self) -> &[PointId] {
        self.names.as_deref().unwrap_or_default()
    }

    /// The points whose manifest is staged.
    pub(super) fn staged(&self) -> &[PointId] {
        &self.staged
    }

    /// Whether a point's staged manifest explains archives of it: they have come since it was staged.
    pub(super) fn announces(&self, point: PointId) -> bool {
        self.staged.contains(&point) && !self.lost.contains(&point)
    }

    /// The points that are marked as having lost their manifest.
    pub(super) fn lost(&self) -> &BTreeSet<PointId> {
        &self.lost
    }

    /// The points whose mark was never finished.
    pub(super) fn lost_staged(&self) -> &[PointId] {
        &self.lost_staged
    }

    /// The folder of the manifests, if it can't be listed.
    pub(super) fn unreadable(&self) -> Option<DamagedFolder> {
        let error = self.names.as_ref().err()?.clone();
        let path = self.repository.describe(&self.repository.points_dir(&self.domain));
        Some(DamagedFolder { path, error })
    }

    /// The manifest of one of the points, if it has one.
    pub(super) fn manifest(&self, point: PointId) -> Option<&Result<Manifest>> {
        let index = self.points().binary_search(&point).ok()?;
        self.at(index).map(|(_, manifest)| manifest)
    }

    /// The manifest of this number.
    fn at(&self, index: usize) -> Option<(PointId, &Result<Manifest>)> {
        let (point, manifest) = (*self.points().get(index)?, self.manifests.get(index)?);
        Some((point, manifest.get_or_init(|| Box::new(self.read(point)))))
    }

    fn manifest_name(&self, point: PointId) -> Name {
        self.repository.points_dir(&self.domain).join(&Manifest::file_name(point))
    }

    fn read(&self, point: PointId) -> Result<Manifest> {
        let name = self.manifest_name(point);
        let bytes = self.repository.storage().read(&name, manifest::LEN_MAX)?;
        let path = self.repository.describe(&name);
        Manifest::decode(&bytes, &path, &self.domain, point)
    }

    /// All manifests, the oldest first.
    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = (PointId, &Result<Manifest>)> {
        let unread = self.points().iter().zip(&self.manifests).filter(|(_, it)| it.get().is_none());
        let names: Vec<Name> = unread.map(|(point, _)| self.manifest_name(*point)).collect();
        self.repository.storage().expect(&names);
        (0..self.points().len()).filter_map(|index| self.at(index))
    }

    /// The manifests that can be read, the oldest first.
    pub(super) fn good(&self) -> impl DoubleEndedIterator<Item = &Manifest> {
        self.all().filter_map(|(_, manifest)| manifest.as_ref().ok())
    }

    /// The manifests up to that of `last` that can be read, the oldest first.
    pub(super) fn good_until(&self, last: PointId) -> impl DoubleEndedIterator<Item = &Manifest> {
        let end = self.points().partition_point(|point| *point <= last);
        (0..end).filter_map(|index| self.at(index)?.1.as_ref().ok())
    }

    /// A manifest that can't be used.
    pub(super) fn damaged(&self, point: PointId, error: &Error) -> DamagedManifest {
        let path = self.repository.describe(&self.manifest_name(point));
        DamagedManifest { point, path, error: error.clone() }
    }

    /// What the folder of a disk holds: nothing if it is not there.
    pub(super) fn folder(&self, disk: &DiskName) -> Arc<Result<Folder>> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let list = || Arc::new(self.repository.folder(&self.disk_dir(disk)));
        Arc::clone(folders.entry(disk.clone()).or_insert_with(list))
    }

    fn disk_dir(&self, disk: &DiskName) -> Name {
        self.repository.disk_dir(&DiskId { domain: self.domain.clone(), disk: disk.clone() })
    }

    /// Whether the folder of a disk holds an archive. One that can't be listed may hold some.
    pub(super) fn holds_archives(&self, disk: &DiskName) -> bool {
        let is_archive = |name: &String| manifest::parse_archive_name(name).is_some();
        match &*self.folder(disk) {
            Ok(folder) => folder.names.iter().any(is_archive),
            Err(_) => self.repository.may_be_folder(&self.disk_dir(disk)),
        }
    }

    /// The point of a disk that a manifest tells of, if it has that disk.
    pub(super) fn point(&self, manifest: &Manifest, id: &DiskId) -> Option<Point> {
        let record = manifest.disk(&id.disk)?.clone();
        let archive = self.repository.disk_dir(id).join(&record.archive);
        let machine = manifest.machine.as_ref();
        Some(Point {
            id: manifest.point,
            disk: id.clone(),
            created: manifest.created,
            consistency: manifest.consistency,
            fell_back: machine.and_then(|machine| machine.fell_back.clone()),
            freeze_ms: machine.and_then(|machine| machine.freeze_ms),
            frozen_filesystems: machine.and_then(|machine| machine.frozen_filesystems),
            resumes: machine.is_some_and(|machine| machine.memory.is_some()),
            elapsed_ms: manifest.elapsed_ms,
            safety: manifest.safety,
            pins: manifest.pins.clone(),
            removed: manifest.removed.clone(),
            archive_present: self.is_present(&id.disk, &record.archive, &archive),
            archive,
            record,
        })
    }

    /// Whether an archive is there. A folder that can't be listed does not make it missing. For the sake
    /// of a few archives no folder of thousands is listed.
    fn is_present(&self, disk: &DiskName, name: &str, archive: &Name) -> bool {
        let is_listed =
            self.folders.lock().unwrap_or_else(PoisonError::into_inner).contains_key(disk);
        if !is_listed
            && self.looks.fetch_add(1, Ordering::Relaxed) < self.repository.storage().looks_max()
        {
            return self.repository.is_there(archive).unwrap_or(true);
        }
        match &*self.folder(disk) {
            Ok(folder) => folder.names.contains(name),
            Err(_) => self.repository.is_there(archive).unwrap_or(true),
        }
    }
}
