//! Until when points are safe: a storage that locks files refuses to remove them, whoever asks.
//!
//! What is written is locked at once, for the period that `qdelta.toml` says. Each backup, copy, merge, prune and
//! repair locks anew what belongs to points that are not removed: what their chains need stays locked as long as
//! they do.
//! The files of points that the rules of retention no longer keep are not locked anew, so those can go when
//! their locks end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::config::CONFIG;
use super::manifest::{self, DiskRecord, Manifest};
use super::names::DomainName;
use super::storage::{Name, Storage};
use super::{Catalog, DiskId, PointId, Repository};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::period::Period;
use crate::base::warning::{Code, Warning};

/// A lock is made longer when so much of its time is over, as a share: one request for each file and night
/// would be more than backups take.
const OVER: i32 = 10;

/// The longest period: nobody can take a lock back, and whoever can write `qdelta.toml` could have all that is
/// written then paid for by the owner until the end of his days.
const YEARS_MAX: i64 = 10;

/// Fails if nobody should lock files for so long.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub(super) fn check_period(period: Period) -> Result<()> {
    let now = Timestamp::UNIX_EPOCH;
    let until = period.after(now, &TimeZone::UTC);
    if period.is_none() {
        return Err(Error::new(ErrorKind::Usage, "a lock of no time is none"));
    }
    if until.duration_since(now).as_hours() > YEARS_MAX * 366 * 24 {
        let text = format!("a lock of {period} is longer than {YEARS_MAX} years");
        return Err(Error::new(ErrorKind::Usage, text)
            .because("nobody can end it earlier, whatever it costs")
            .advise("say less: it is renewed as long as points need their files"));
    }
    Ok(())
}

impl Repository {
    /// For how long what is written is locked; none if it is not.
    pub fn lock_period(&self) -> Option<Period> {
        self.locked
    }

    /// Locks anew what the points of a domain need that are not removed, where the store locks. Whatever adds
    /// points, or lets points need other files, ends with this; what it can't do is a warning.
    pub(crate) fn keep_safe(&self, domain: &DomainName, observer: &dyn Observer) {
        match self.lock_anew(domain) {
            Ok(written_over) => {
                if let Some(warning) = self.told_of(domain, &written_over) {
                    observer.warn(warning);
                }
            }
            Err(error) => {
                let text = format!("points of {domain} could not be locked for longer");
                observer.warn(Warning::failed(Code::NotLocked, &error).within(&text));
            }
        }
    }

    /// What to say of files that are written once, and were written over.
    fn told_of(&self, domain: &DomainName, written_over: &[PathBuf]) -> Option<Warning> {
        let first = written_over.first()?.display();
        let more = match written_over.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let text = format!(
            "files of {domain} that are written once have been written over, by a repair or by somebody else: {first}{more}"
        );
        Some(Warning::new(Code::WrittenOver, text).advise(
            "what was there before is locked for as long; see what is wrong with qdelta verify, what was there with \
             --as-of TIME, and take new credentials for the store if it was no repair",
        ))
    }

    /// Gives the files that are written once and were written over.
    fn lock_anew(&self, domain: &DomainName) -> Result<Vec<PathBuf>> {
        let Some(period) = self.locked else { return Ok(Vec::new()) };
        let now = self.storage.now()?;
        let until = period.after(now, &TimeZone::UTC);
        let enough = until - until.duration_since(now) / OVER;
        let (config, points) = (Name::top().join(CONFIG), self.points_dir(domain));
        let is_written_once =
            |name: &Name| *name != config && name.folder().is_none_or(|folder| folder != points);
        let mut written_over = Vec::new();
        let mut lock = |storage: &dyn Storage, names: &[Name]| -> Result<()> {
            let extended = storage.extend_locks(names, until, enough)?;
            let count = extended.iter().filter(|it| it.is_new).count();
            tracing::debug!(files = names.len(), extended = count, "locked anew");
            let over = names
                .iter()
                .zip(extended)
                .filter(|(name, it)| it.is_written_over && is_written_once(name));
            written_over.extend(over.map(|(name, _)| storage.describe(name)));
            Ok(())
        };
        if let Some(encryption) = &self.encryption {
            let (storage, names) = encryption.ring().files()?;
            lock(storage, &names)?;
        }
        lock(&*self.storage, &self.needed_files(domain)?)?;
        Ok(written_over)
    }

    /// Every file that it takes to restore the points of a domain that are not removed.
    fn needed_files(&self, domain: &DomainName) -> Result<Vec<Name>> {
        let catalog = self.catalog();
        let mut names = BTreeSet::from([Name::top().join(CONFIG)]);
        let mut is_known = true;
        for (point, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) if manifest.removed.is_some() => {}
                Ok(manifest) => names.extend(self.files_of(&catalog, &manifest)),
                // Nobody knows what it needs: it may be mended, and whoever has the whole key reads it.
                Err(_) => {
                    names.insert(self.points_dir(domain).join(&Manifest::file_name(point)));
                    is_known = false;
                }
            }
        }
        if !is_known {
            names.extend(self.all_files_of(&catalog, domain)?);
        }
        Ok(names.into_iter().collect())
    }

    /// Every archive of a domain, and every file of its machine.
    fn all_files_of(&self, catalog: &Catalog, domain: &DomainName) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        for disk in catalog.disks_of(domain)? {
            let folder = catalog.domain(domain).folder(&disk.disk);
            let listed = &folder.as_ref().as_ref().map_err(Error::clone)?.names;
            let archives = listed.iter().filter(|it| manifest::parse_archive_name(it).is_some());
            names.extend(archives.map(|name| self.archive(&disk, name)));
        }
        let machine = self.machine_dir(domain);
        let files = self.machine_digests(domain)?;
        names.extend(files.iter().map(|digest| machine.join(&format!("{digest}.zst"))));
        Ok(names)
    }

    /// Fails if files are locked: `qdelta.toml` is lost, which said for how long new ones are to be.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]; the storage can't be read.
    pub(super) fn check_unlocked(&self) -> Result<()> {
        let catalog = self.catalog();
        for domain in self.domains()? {
            let Some((point, _)) = catalog.manifests(&domain)?.into_iter().next_back() else {
                continue;
            };
            let name = self.points_dir(&domain).join(&Manifest::file_name(point));
            let Some(until) = self.storage.locked_until(&[name])?.into_iter().flatten().next()
            else {
                continue;
            };
            let text = format!("files of {} are locked, until {until}", self.root.display());
            return Err(Error::new(ErrorKind::Usage, text)
                .because(
                    "for how long new ones are to be locked stood in the qdelta.toml that is lost",
                )
                .advise("say it: qdelta init --repair --lock 30d"));
        }
        Ok(())
    }

    /// Every file that it takes to restore the points that a manifest makes, itself included.
    fn files_of(&self, catalog: &Catalog, manifest: &Manifest) -> Vec<Name> {
        let mut names = self.own_files_of(manifest);
        for record in &manifest.disks {
            let disk = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            let selector = super::Selector::Id(manifest.point.to_string());
            if let Ok(point) = catalog.resolve(&disk, &selector) {
                names.extend(catalog.remains_of(&point).archives);
            }
        }
        names
    }

    /// The manifest, its archives, and the files of its machine.
    fn own_files_of(&self, manifest: &Manifest) -> Vec<Name> {
        let domain = &manifest.domain;
        let mut names = vec![self.points_dir(domain).join(&Manifest::file_name(manifest.point))];
        for record in &manifest.disks {
            let disk = DiskId { domain: domain.clone(), disk: record.disk.clone() };
            names.push(self.archive(&disk, &record.archive));
        }
        let files = manifest.machine.iter().flat_map(|machine| &machine.files);
        names.extend(files.map(|file| self.machine_file_name(domain, file)));
        names
    }

    /// Until when the archives of points are locked, of those of which one still is: they can't be removed
    /// before.
    ///
    /// # Errors
    /// The storage does not tell.
    pub(crate) fn locked_points<'a>(
        &self,
        manifests: impl Iterator<Item = &'a Manifest>,
    ) -> Result<BTreeMap<PointId, Timestamp>> {
        let mut locked = BTreeMap::new();
        if self.locked.is_none() {
            return Ok(locked);
        }
        let now = self.storage.now()?;
        for manifest in manifests {
            let names = self.own_files_of(manifest);
            let until = self.storage.locked_until(&names)?.into_iter().flatten().max();
            locked.extend(until.filter(|it| *it > now).map(|it| (manifest.point, it)));
        }
        Ok(locked)
    }
}

impl Catalog {
    /// Until when nobody can remove anything that points of a domain need, of each for which that can be said. Of a
    /// file that was written over, what was there before counts.
    ///
    /// # Errors
    /// The storage does not tell.
    pub fn safe_until(
        &self,
        domain: &DomainName,
        points: impl IntoIterator<Item = PointId>,
    ) -> Result<BTreeMap<PointId, Timestamp>> {
        let repository = self.repository();
        if repository.locked.is_none() {
            return Ok(BTreeMap::new());
        }
        let reading = self.domain(domain);
        let mut needed: BTreeMap<PointId, BTreeSet<Name>> = BTreeMap::new();
        for point in points {
            if let Some(Ok(manifest)) = reading.manifest(point) {
                needed.insert(point, repository.files_of(self, manifest).into_iter().collect());
            }
        }
        let lens = self.lens(domain);
        let manifests = repository.points_dir(domain);
        let is_manifest = |name: &Name| name.folder().is_some_and(|folder| folder == manifests);
        let all: BTreeSet<&Name> = needed.values().flatten().collect();
        let (replaced, once): (Vec<Name>, Vec<Name>) =
            all.into_iter().cloned().partition(is_manifest);
        let with_len = |name: &Name| (name.clone(), lens.get(name).copied());
        let storage = repository.storage();
        let newest = storage.locked_until(&replaced)?;
        let locks = storage.locks_of(&once.iter().map(with_len).collect::<Vec<_>>())?;
        let times: BTreeMap<&Name, Option<Timestamp>> =
            replaced.iter().zip(newest).chain(once.iter().zip(locks)).collect();
        let now = storage.now()?;
        let safe = needed.iter().filter_map(|(point, names)| {
            let first = names.iter().map(|name| times.get(name).copied().flatten()).min()??;
            (first.duration_since(now) > SignedDuration::ZERO).then_some((*point, first))
        });
        Ok(safe.collect())
    }

    /// How long the archives of a domain are, as manifests say.
    fn lens(&self, domain: &DomainName) -> BTreeMap<Name, u64> {
        let reading = self.domain(domain);
        let records = reading.good().flat_map(|manifest| &manifest.disks);
        let len = |record: &DiskRecord| {
            let disk = DiskId { domain: domain.clone(), disk: record.disk.clone() };
            (self.repository().archive(&disk, &record.archive), record.bytes_written)
        };
        records.map(len).collect()
    }

    /// What to tell of files of a domain that are written once and were written over; nothing if there are none, or if
    /// the storage does not lock.
    ///
    /// # Errors
    /// The storage does not tell.
    pub(crate) fn told_of_written_over(&self, domain: &DomainName) -> Result<Option<Warning>> {
        let repository = self.repository();
        if repository.locked.is_none() {
            return Ok(None);
        }
        let manifests = repository.points_dir(domain);
        let good = self.domain(domain);
        let files = good.good().flat_map(|manifest| repository.own_files_of(manifest));
        let once = files.filter(|name| name.folder().is_none_or(|folder| folder != manifests));
        let (once, lens) = (once.collect::<BTreeSet<_>>(), self.lens(domain));
        let with_len = |name: Name| (name.clone(), lens.get(&name).copied());
        let once: Vec<(Name, Option<u64>)> = once.into_iter().map(with_len).collect();
        let is_over = repository.storage().written_over(&once)?;
        let over = once.iter().zip(is_over).filter(|(_, is_over)| *is_over);
        let over: Vec<PathBuf> = over.map(|((name, _), _)| repository.describe(name)).collect();
        Ok(repository.told_of(domain, &over))
    }
}
