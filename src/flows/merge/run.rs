//! The order of a merge. Merged archives are published beside the old ones and proved; then the manifest
//! of the point that they stand for names them; only then something goes. Whoever is killed on the way
//! has lost nothing, and the next run goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;
use jiff::Timestamp;
use qdelta_formats::archive::ArchiveId;

use super::data_path::{self, Merged, Merging};
use super::estimate::{Estimate, estimate};
use super::metadata_of;
use super::plan::{DiskPath, Family, Step};
use super::prove;
use crate::base::cancel::Cancel;
use crate::base::error::{AGAIN, Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::base::random;
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::Resources;
use crate::flows::report::{MergeReport, MergedDisk};
use crate::vault::archive::{Reader, Writer};
use crate::vault::chain::Stretch;
use crate::vault::codec::LEVEL_DEFAULT;

use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Beside, Catalog, DiskId, DiskName, DomainLock, DomainName, Manifest, ParentRecord, PointId,
    Removed, Replaced, Repository, Version,
};

/// How to merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The zstd level of frames that are packed anew.
    pub level: i32,
    /// Threads and I/O.
    pub resources: Resources,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { level: LEVEL_DEFAULT, resources: Resources::default() }
    }
}

/// Merges archives of one guest.
pub struct Merger<'a> {
    /// The repository, as it was when the guest was locked.
    pub catalog: &'a Catalog,
    /// The points of the guest.
    pub family: &'a Family,
    /// How to merge.
    pub options: &'a MergeOptions,
    /// Whom to tell.
    pub observer: &'a dyn Observer,
    /// A request to stop.
    pub cancel: &'a Cancel,
}

/// A step whose archives are written, and that the repository does not know yet.
struct Prepared<'lock> {
    manifest: Manifest,
    version: Version,
    archives: Vec<Beside<'lock>>,
    /// When all that an archive was made of had been proved, by disk.
    proofs: Vec<(DiskId, String, Timestamp)>,
    report: MergeReport,
}

impl<'a> Merger<'a> {
    /// What a step will read, write and free.
    ///
    /// # Errors
    /// An archive can't be opened.
    pub fn estimate(&self, step: &Step) -> Result<Estimate> {
        let mut all = Estimate::default();
        for path in &step.disks {
            all = all.and(self.look(step, path)?.1);
        }
        Ok(all)
    }

    /// Opens the archives of a disk, and says what their merge costs.
    fn look(&self, step: &Step, path: &DiskPath) -> Result<(Stretch, Estimate)> {
        let stretch = self.open(step, path);
        let both = stretch.and_then(|it| estimate(&it, self.cancel).map(|costs| (it, costs)));
        both.inspect_err(|error| self.catalog.note_damage(error))
    }

    /// What these steps will do together.
    ///
    /// # Errors
    /// An archive can't be opened.
    pub fn rehearse(&self, steps: &[Step]) -> Result<Vec<MergeReport>> {
        steps.iter().map(|step| self.rehearse_one(step, steps)).collect()
    }

    fn rehearse_one(&self, step: &Step, steps: &[Step]) -> Result<MergeReport> {
        let started = Instant::now();
        let mut report = report_of(step);
        report.dry_run = true;
        for path in &step.disks {
            let (stretch, costs) = self.look(step, path)?;
            report.bytes_freed += costs.frees;
            let disk = DiskId { domain: step.domain.clone(), disk: path.disk.clone() };
            let frames = (0, 0);
            add(&mut report, &stretch, &disk, (costs.reads, costs.writes), frames);
        }
        report.bytes_freed += self.dropped(step, steps);
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Fails if the repository has no room for what a step writes: its sources stay until it is done.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`]; an archive can't be opened.
    pub fn check_room(&self, step: &Step) -> Result<()> {
        let needed = self.estimate(step)?.writes;
        match self.catalog.repository().bytes_free() {
            Some(free) if free < needed => Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the merged archives need {} of room, and {} is free",
                    ByteSize(needed),
                    ByteSize(free)
                ),
            )
            .advise("`qdelta space` tells what takes the room")),
            _ => Ok(()),
        }
    }

    /// Does steps of the guest: all of them or, if one fails before any manifest is replaced, none. What
    /// was replaced is still there afterwards: [`tidy`] removes it.
    ///
    /// # Errors
    /// An archive is damaged or can't be read or written, and nothing is changed; or a manifest can't be
    /// replaced, and the steps of older points are done.
    pub fn run(&self, lock: &DomainLock, steps: &[Step]) -> Result<Vec<MergeReport>> {
        let mut prepared = Vec::new();
        for step in steps {
            let done = self.prepare(lock, step, steps);
            prepared.push(done.inspect_err(|error| self.catalog.note_damage(error))?);
        }
        self.prove(&prepared)?;
        let mut reports = Vec::new();
        for Prepared { manifest, version, archives, proofs, report } in prepared {
            self.cancel.check()?;
            if let Err(error) = self.put(lock, version, &manifest) {
                // Where nobody can tell which manifest stands there, both archives stay.
                let stands = self.catalog.repository().versioned(lock.domain(), manifest.point);
                if !stands.is_ok_and(|(_, found)| found == version) {
                    archives.into_iter().for_each(Beside::keep);
                }
                return Err(error);
            }
            archives.into_iter().for_each(Beside::keep);
            self.inherit(lock.domain(), &proofs);
            reports.push(report);
        }
        Ok(reports)
    }

    /// Puts the manifest that names merged archives in the place of the one before.
    fn put(&self, lock: &DomainLock, version: Version, manifest: &Manifest) -> Result<()> {
        let (repository, before) =
            (self.catalog.repository(), self.family.manifest(manifest.point));
        repository.replace_archives(lock, version, manifest, before, "merged")
    }

    /// Notes of merged archives that what they hold was proved before: nobody waits anew for the proof of a point
    /// that was merged.
    fn inherit(&self, domain: &DomainName, proofs: &[(DiskId, String, Timestamp)]) {
        if proofs.is_empty() {
            return;
        }
        let repository = self.catalog.repository();
        let noted = repository.note(domain, |history| {
            for (disk, archive, time) in proofs {
                if let Some(stamp) = self.catalog.stamp(&repository.archive(disk, archive)) {
                    history.inherit(&disk.disk, archive, stamp, *time);
                }
            }
        });
        if let Err(error) = noted {
            // Nothing depends on it.
            tracing::debug!("proofs of merged archives are not noted: {}", error.chain());
        }
    }

    /// Writes the archives of one of these steps, beside those that are named.
    fn prepare<'lock>(
        &self,
        lock: &'lock DomainLock,
        step: &Step,
        steps: &[Step],
    ) -> Result<Prepared<'lock>> {
        let started = Instant::now();
        let repository = self.catalog.repository();
        let (mut manifest, version) = repository.versioned(&step.domain, step.into)?;
        if self.family.manifest(step.into) != Some(&manifest) {
            let text = format!("point {} has changed meanwhile", step.into);
            return Err(Error::new(ErrorKind::Busy, text).advise(AGAIN));
        }
        let mut replaces = Vec::new();
        for point in &step.absorbed {
            replaces.extend(self.family.manifest(*point).into_iter().flat_map(Manifest::archives));
        }
        let (mut report, mut archives, mut proofs) = (report_of(step), Vec::new(), Vec::new());
        let history = repository.history(&step.domain);
        for path in &step.disks {
            let disk = DiskId { domain: step.domain.clone(), disk: path.disk.clone() };
            let sources = path.points.iter().filter_map(|&point| {
                Some(self.family.manifest(point)?.disk(&path.disk)?.archive.as_str())
            });
            let proved = self.catalog.proved_together(&history, &disk, sources);
            let stretch = self.open(step, path)?;
            let (archive, id, merged) = self.write(lock, step.into, &disk, &stretch)?;
            let is_it = |it: &Replaced| it.point == step.into && it.disk == path.disk;
            replaces.extend(manifest.archives().filter(is_it));
            let parent = stretch.oldest().metadata().parent.as_ref();
            let parent = parent.map(ParentRecord::try_from).transpose()?;
            let name = archive.name().last().to_owned();
            if let Some(record) = manifest.disks.iter_mut().find(|it| it.disk == path.disk) {
                record.archive = name;
                record.opening = archive.opening();
                record.archive_id = id;
                record.kind = stretch.oldest().metadata().kind;
                record.parent = parent;
                record.payload_bytes = merged.summary.payload_bytes;
                record.bytes_written = merged.summary.file_len;
            }
            let lengths = stretch.archives().iter().map(|archive| archive.file_len());
            report.bytes_freed += lengths.sum::<u64>().saturating_sub(merged.summary.file_len);
            let bytes = (merged.bytes_read, merged.summary.file_len);
            let frames = (merged.copied, merged.packed);
            add(&mut report, &stretch, &disk, bytes, frames);
            if let Some(last) = report.disks.last_mut() {
                last.archive = Some(repository.describe(archive.name()));
            }
            proofs.extend(proved.map(|time| (disk, archive.name().last().to_owned(), time)));
            archives.push(archive);
        }
        for replaced in replaces {
            if !manifest.replaces.contains(&replaced) {
                manifest.replaces.push(replaced);
            }
        }
        report.bytes_freed += self.dropped(step, steps);
        report.seconds = started.elapsed().as_secs_f64();
        Ok(Prepared { manifest, version, archives, proofs, report })
    }

    /// Writes and publishes the archive of a disk, and compares it with those that it is made of.
    fn write<'lock>(
        &self,
        lock: &'lock DomainLock,
        point: PointId,
        disk: &DiskId,
        stretch: &Stretch,
    ) -> Result<(Beside<'lock>, ArchiveId, Merged)> {
        let repository = self.catalog.repository();
        let Self { options, observer, cancel, .. } = *self;
        write_merged(repository, (lock, disk, point), stretch, (options, observer, cancel))
    }

    /// Proves the roots of the points, each by its chain as it will be.
    fn prove(&self, prepared: &[Prepared<'_>]) -> Result<()> {
        let mut disks: BTreeMap<DiskId, BTreeSet<PointId>> = BTreeMap::new();
        let mut manifests = BTreeMap::new();
        for step in prepared {
            let manifest = &step.manifest;
            manifests.insert(manifest.point, manifest);
            for record in &manifest.disks {
                let id = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
                disks.entry(id).or_default().insert(manifest.point);
            }
        }
        for (disk, points) in disks {
            let record = |point| {
                let manifest = manifests.get(&point).copied();
                manifest.or_else(|| self.family.manifest(point))?.disk(&disk.disk)
            };
            prove::roots(self.catalog, &disk, &points, record, self.cancel)?;
        }
        Ok(())
    }

    /// Opens the archives of a disk that become one.
    fn open(&self, step: &Step, path: &DiskPath) -> Result<Stretch> {
        let id = DiskId { domain: step.domain.clone(), disk: path.disk.clone() };
        let mut archives = Vec::with_capacity(path.points.len());
        for &point in &path.points {
            let record = self.family.manifest(point).and_then(|it| it.disk(&path.disk));
            let record = record.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{id} has no point {point}"))
            })?;
            let archive = self.catalog.open_archive(&id, point, record)?;
            archives.push(Arc::new(archive));
        }
        Stretch::new(archives)
    }

    /// Bytes of archives that go with a step though none of these merges them: disks that no later point
    /// has.
    fn dropped(&self, step: &Step, steps: &[Step]) -> u64 {
        let paths = steps.iter().flat_map(|step| &step.disks);
        let is_merged = |point: PointId, disk: &DiskName| {
            paths.clone().any(|path| path.disk == *disk && path.points.contains(&point))
        };
        let gone = step.absorbed.iter().filter_map(|point| self.family.manifest(*point));
        let records = gone.flat_map(|it| it.disks.iter().map(move |record| (it.point, record)));
        let dropped = records.filter(|(point, record)| !is_merged(*point, &record.disk));
        dropped.map(|(_, record)| record.bytes_written).sum()
    }
}

/// Writes the archive that stands for a stretch into a repository, as that of a disk's point, publishes it,
/// and compares it with those that it is made of.
///
/// # Errors
/// An archive is damaged, or something can't be read or written: then nothing is left.
pub(crate) fn write_merged<'lock>(
    repository: &Repository,
    (lock, disk, point): (&'lock DomainLock, &DiskId, PointId),
    stretch: &Stretch,
    (options, observer, cancel): (&MergeOptions, &dyn Observer, &Cancel),
) -> Result<(Beside<'lock>, ArchiveId, Merged)> {
    // Damage is named by file and section, before anything is written.
    for archive in stretch.archives() {
        archive.check_index()?;
    }
    let id = ArchiveId(random::bytes()?);
    let kind = stretch.oldest().metadata().kind;
    let pending = repository.begin(lock, disk, point, kind, id)?;
    let spool = repository.spool_folder();
    let metadata = metadata_of(stretch, id);
    let writer = Writer::new(pending.writer(), metadata, spool)?.named(pending.path());
    let job = Merging { stretch, level: options.level, resources: &options.resources };
    let total = estimate(stretch, cancel)?.frames;
    let observer = OfDisk::new(observer, disk);
    let observer: &dyn Observer = &observer;
    observer.begin("merge", total);
    let merged = data_path::run(&job, writer, observer, cancel)?;
    observer.end();
    let archive = pending.publish()?;
    let reader = Reader::open(repository.storage().open(archive.name())?)?;
    prove::is_same(&Arc::new(reader), stretch, cancel)?;
    Ok((archive, id, merged))
}

/// Removes what merges have replaced, with the points that went with it; nothing if points of the guest
/// are being read: then the next run does it.
///
/// # Errors
/// A file can't be removed, or a manifest not be replaced: the next run goes on.
pub fn tidy(
    repository: &Repository,
    lock: &DomainLock,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Option<Removed>> {
    let Some(clearance) = repository.clear(lock, Wait::by(observer, cancel))? else {
        return Ok(None);
    };
    repository.remove_replaced(lock, &clearance, cancel).map(Some)
}

/// Tidies after a merge, and gives whether all is removed: what could not be is a warning, as the merge is done.
pub(super) fn tidy_after(
    repository: &Repository,
    lock: &DomainLock,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> bool {
    let removed = tidy(repository, lock, observer, cancel);
    removed.map(|removed| removed.is_some()).unwrap_or_else(|error| {
        let warning = Warning::failed(Code::NotMerged, &error).within(
            "the archives are merged, and those that they replaced could not be removed: the next merge or prune \
             does that",
        );
        observer.warn(warning);
        false
    })
}

fn report_of(step: &Step) -> MergeReport {
    MergeReport {
        domain: step.domain.to_string(),
        point: step.into,
        absorbed: step.absorbed.clone(),
        disks: Vec::new(),
        dry_run: false,
        bytes_read: 0,
        bytes_written: 0,
        bytes_freed: 0,
        waiting: false,
        warnings: Vec::new(),
        seconds: 0.0,
    }
}

fn add(
    report: &mut MergeReport,
    stretch: &Stretch,
    disk: &DiskId,
    (read, written): (u64, u64),
    (frames_copied, frames_packed): (u64, u64),
) {
    report.bytes_read += read;
    report.bytes_written += written;
    report.disks.push(MergedDisk {
        disk: disk.to_string(),
        archives: stretch.archives().len() as u64,
        kind: stretch.oldest().metadata().kind,
        archive: None,
        bytes_read: read,
        bytes_written: written,
        frames_copied,
        frames_packed,
    });
}
