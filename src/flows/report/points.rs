//! What there is to restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use qdelta_formats::archive::{ArchiveId, Consistency, Digest, Kind, Tracker};
use serde::{Deserialize, Serialize};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::json::text;
use crate::base::observer::{Observer, Recorder};
use crate::base::warning::Warning;
use crate::vault::repository::{
    Anchor, Catalog, DamagedManifest, DiskId, DomainName, Drilled, ImageRecord, Pin, Point,
    PointId, Refusal, Removal, SnapshotRecord, Survey, Wanted,
};

/// The points of some disks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointsReport {
    /// The repository's folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub repository: PathBuf,
    /// Its disks.
    pub disks: Vec<DiskPointsReport>,
    /// What all the listed disks come to.
    pub totals: PointsTotals,
    /// Files of points that can't be used.
    pub damaged: Vec<DamagedReport>,
    /// Points that are there and that the given key can't open: nothing of them is listed.
    pub locked: Vec<LockedReport>,
    /// Folders that can't be listed, and a `qdelta.toml` that can't be used.
    pub unreadable: Vec<UnreadableReport>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
}

/// What the listed disks come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointsTotals {
    /// Domains: guests, and single images on their own.
    pub domains: usize,
    /// Disks.
    pub disks: usize,
    /// Points, each counted for each of its disks, as the list has them.
    pub points: usize,
    /// Chains.
    pub chains: usize,
    /// What the archives take, in bytes.
    pub bytes_written: u64,
    /// Points that are removed and can be brought back, listed or not.
    pub removed: usize,
    /// What the archives of those take, in bytes. Points that stay may build on some of them.
    pub bytes_removed: u64,
}

/// One disk and its points, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskPointsReport {
    /// The disk, as `domain/disk`.
    #[serde(with = "text")]
    pub disk: DiskId,
    /// How many chains its points lie in. A chain counts also where the full that it begins with is
    /// removed or lost.
    pub chains: usize,
    /// Its points.
    pub points: Vec<PointReport>,
}

/// One point of a disk. The names of its fields are those of a backup's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointReport {
    /// The point.
    pub point: PointId,
    /// When it was made.
    #[serde(with = "text")]
    pub created: Timestamp,
    /// Against what it was made.
    #[serde(with = "text")]
    pub kind: Kind,
    /// The point that it was made against; none for a full.
    pub parent: Option<PointId>,
    /// How the changed blocks were found.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// What the tracker said was trusted: nothing but the sample has proved it.
    pub trusted: bool,
    /// In what state the guest was.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// Why the guest's filesystems were not frozen although they should have been; none if it was as asked for.
    pub fell_back: Option<String>,
    /// How long the guest's filesystems can have been frozen, in milliseconds; none if they were not.
    pub freeze_ms: Option<u64>,
    /// How many filesystems were frozen; none if none were.
    pub frozen_filesystems: Option<u32>,
    /// Whether it has the guest's memory, and resumes where the guest stood.
    pub resumes: bool,
    /// It is a safety point, made before a roll back.
    pub safety: bool,
    /// The internal snapshot of the image that it holds; none if it holds the disk's state.
    pub snapshot: Option<SnapshotRecord>,
    /// Its pins.
    pub pins: Vec<Pin>,
    /// It is removed; none if it is not. Removed points are listed only where they are asked for.
    pub removed: Option<Removal>,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes.
    pub block_size: u32,
    /// Bytes read from the image's data.
    pub bytes_read: u64,
    /// Bytes of these that were read only to check that they have not changed.
    pub bytes_sampled: u64,
    /// Bytes of the disk that differ from the parent (for a full: that are not zero).
    pub bytes_changed: u64,
    /// Length of the archive, in bytes.
    pub bytes_written: u64,
    /// Digest of what the guest sees.
    #[serde(with = "text")]
    pub root: Digest,
    /// The archive.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub archive: PathBuf,
    /// Whether the archive's file is there.
    pub archive_present: bool,
    /// Whether every archive that the point needs is there, with the length that it had.
    pub restorable: bool,
    /// When the point was proved last on this host: each archive that it needs was, then or later; none
    /// if one never was.
    #[serde(with = "text::optional")]
    pub proved: Option<Timestamp>,
    /// Until when the store refuses to remove anything that the point needs; none if it does not.
    #[serde(with = "text::optional")]
    pub safe_until: Option<Timestamp>,
    /// What the last drill of the point on this host says; none if there was none.
    pub drilled: Option<Drilled>,
    /// The archive's id.
    #[serde(with = "text")]
    pub archive_id: ArchiveId,
    /// The image that it was made from.
    pub image: ImageRecord,
    /// Which trackers could not be used, and why.
    pub refused: Vec<Refusal>,
    /// What was left behind for the next backup to compare with.
    pub anchor: Option<Anchor>,
    /// How long making it took.
    pub seconds: f64,
}

/// A folder that can't be listed, or a `qdelta.toml` that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableReport {
    /// The folder or file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// Points of a guest that the given key can't open: a host's key opens those that the host has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedReport {
    /// The guest, or the single image on its own.
    #[serde(with = "text")]
    pub domain: DomainName,
    /// How many points.
    pub points: usize,
}

/// A file of a point that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedReport {
    /// The point.
    pub point: PointId,
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl PointsReport {
    /// All points of the disks that are wanted, or of every disk, at the time `now`: the removed ones,
    /// too. Something damaged does not hide the rest.
    ///
    /// # Errors
    /// The wanted disk is not there; the repository's own folder can't be listed.
    pub fn read(
        catalog: &Catalog,
        wanted: Option<&Wanted>,
        now: Timestamp,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let repository = catalog.repository();
        let Survey { disks, unreadable } = match wanted {
            Some(wanted) => Survey { disks: catalog.find_disks(wanted)?, unreadable: Vec::new() },
            None => catalog.survey()?,
        };
        let mut report = Self {
            repository: repository.path().to_owned(),
            disks: Vec::new(),
            totals: PointsTotals::default(),
            damaged: Vec::new(),
            locked: Vec::new(),
            unreadable: Vec::new(),
            warnings: Vec::new(),
        };
        if let Some(error) = repository.trouble() {
            report.add_unreadable(repository.config_path(), &error);
        }
        for folder in unreadable {
            report.add_unreadable(folder.path, &folder.error);
        }
        for disk in disks.clone() {
            let list = catalog.points(&disk)?;
            let health = catalog.health(&disk, &list)?;
            let proofs = catalog.proofs(&disk, &list.points, now);
            let drilled = catalog.drilled(&disk, &list.points);
            let ids = list.points.iter().map(|point| point.id);
            let safe = catalog.safe_until(&disk.domain, ids)?;
            let points = list.points.iter().map(|point| {
                let proved = proofs.get(&point.id).copied();
                let restorable = health.restorable.contains(&point.id);
                let archive = repository.describe(&point.archive);
                let drilled = drilled.get(&point.id).copied();
                let safe_until = safe.get(&point.id).copied();
                let report = PointReport::new(point, archive, restorable, proved);
                PointReport { drilled, safe_until, ..report }
            });
            let points: Vec<_> = points.collect();
            let (locked, damaged): (Vec<_>, Vec<_>) =
                list.damaged.into_iter().partition(|it| it.error.kind() == ErrorKind::Key);
            report.add_locked(&disk.domain, locked.len());
            let chains = chains_of(&points, |_| true);
            report.disks.push(DiskPointsReport { disk, chains, points });
            for folder in list.unreadable {
                report.add_unreadable(folder.path, &folder.error);
            }
            for damaged in damaged.into_iter().chain(health.problems) {
                report.add_damaged(damaged);
            }
        }
        report.totals = PointsTotals::of(&report.disks);
        // Last: what has a strange name is seen where folders are listed.
        let recorder = Recorder::new(observer);
        catalog.warn_of_damage(&disks, &recorder);
        let observer: &dyn Observer = &recorder;
        let domains: BTreeSet<&DomainName> = disks.iter().map(|disk| &disk.domain).collect();
        for domain in domains {
            if let Some(warning) = catalog.told_of_written_over(domain)? {
                observer.warn(warning);
            }
        }
        report.warnings = recorder.take();
        Ok(report)
    }

    /// Leaves out the points that are removed.
    pub fn hide_removed(&mut self) {
        for disk in &mut self.disks {
            disk.chains = chains_of(&disk.points, |point| point.removed.is_none());
            disk.points.retain(|point| point.removed.is_none());
        }
        let PointsTotals { removed, bytes_removed, .. } = self.totals;
        self.totals = PointsTotals { removed, bytes_removed, ..PointsTotals::of(&self.disks) };
    }

    /// Adds points of a guest that can't be opened. Every disk of a guest has the same manifests.
    fn add_locked(&mut self, domain: &DomainName, points: usize) {
        if points > 0 && self.locked.iter().all(|known| known.domain != *domain) {
            self.locked.push(LockedReport { domain: domain.clone(), points });
        }
    }

    /// Whether all that is to be said of a disk is that its points can't be opened.
    pub fn is_locked(&self, disk: &DiskPointsReport) -> bool {
        disk.points.is_empty() && self.locked.iter().any(|it| it.domain == disk.disk.domain)
    }

    /// Adds a folder or file that can't be read. Several disks may share it.
    fn add_unreadable(&mut self, path: PathBuf, error: &Error) {
        if self.unreadable.iter().all(|known| known.path != path) {
            let advice = error.advice().map(str::to_owned);
            self.unreadable.push(UnreadableReport { path, error: error.chain(), advice });
        }
    }

    /// Adds a file that can't be used. Every disk of a domain has the same manifests.
    fn add_damaged(&mut self, damaged: DamagedManifest) {
        if self.damaged.iter().all(|known| known.path != damaged.path) {
            self.damaged.push(DamagedReport {
                point: damaged.point,
                path: damaged.path,
                error: damaged.error.chain(),
                advice: damaged.error.advice().map(str::to_owned),
            });
        }
    }

    /// Whether everything could be read.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.unreadable.is_empty()
    }
}

impl PointsTotals {
    fn of(disks: &[DiskPointsReport]) -> Self {
        let domains: BTreeSet<_> = disks.iter().map(|it| &it.disk.domain).collect();
        let points = disks.iter().flat_map(|disk| &disk.points);
        let removed: Vec<_> = points.filter(|point| point.removed.is_some()).collect();
        Self {
            domains: domains.len(),
            disks: disks.len(),
            points: disks.iter().map(|disk| disk.points.len()).sum(),
            chains: disks.iter().map(|disk| disk.chains).sum(),
            bytes_written: disks.iter().map(DiskPointsReport::bytes_written).sum(),
            removed: removed.len(),
            bytes_removed: removed.iter().map(|point| point.bytes_written).sum(),
        }
    }
}

/// How many chains those of a disk's points lie in that `is_shown` says.
fn chains_of(points: &[PointReport], is_shown: impl Fn(&PointReport) -> bool) -> usize {
    let mut firsts: BTreeMap<PointId, PointId> = BTreeMap::new();
    let mut shown = BTreeSet::new();
    // Parents come before their children.
    for point in points {
        let first = point.parent.map_or(point.point, |it| firsts.get(&it).copied().unwrap_or(it));
        firsts.insert(point.point, first);
        if is_shown(point) {
            shown.insert(first);
        }
    }
    shown.len()
}

impl DiskPointsReport {
    /// What the archives of the listed points take, in bytes.
    pub fn bytes_written(&self) -> u64 {
        self.points.iter().map(|point| point.bytes_written).sum()
    }
}

impl PointReport {
    /// What is known of a point, whose archive is the file `archive`; `restorable` says whether all that
    /// it needs is there, `proved` when it was proved.
    fn new(point: &Point, archive: PathBuf, restorable: bool, proved: Option<Timestamp>) -> Self {
        let record = &point.record;
        Self {
            point: point.id,
            created: point.created,
            kind: record.kind,
            parent: record.parent_point(),
            tracker: record.tracker,
            trusted: record.is_trusted(),
            consistency: point.consistency,
            fell_back: point.fell_back.clone(),
            freeze_ms: point.freeze_ms,
            frozen_filesystems: point.frozen_filesystems,
            resumes: point.resumes,
            safety: point.safety,
            snapshot: record.snapshot.clone(),
            pins: point.pins.clone(),
            removed: point.removed.clone(),
            virtual_size: record.virtual_size,
            block_size: record.block_size,
            bytes_read: record.bytes_read,
            bytes_sampled: record.bytes_sampled,
            bytes_changed: record.bytes_changed,
            bytes_written: record.bytes_written,
            root: record.root,
            archive,
            archive_present: point.archive_present,
            restorable,
            proved,
            safe_until: None,
            drilled: None,
            archive_id: record.archive_id,
            image: record.image.clone(),
            refused: record.refused.clone(),
            anchor: record.anchor.clone(),
            seconds: point.elapsed_ms as f64 / 1000.0,
        }
    }
}
