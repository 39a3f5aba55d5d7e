//! A point that is brought from another repository, archive by archive.
//!
//! Its manifest is staged, durably, before the first archive gets its name, and gets its own when all have
//! arrived: an archive without a manifest is explained until then, and whoever brings the point goes on
//! with those that are there.
//!
//! Where archives of the point are there already, because its manifest was lost, nothing explains them, and they
//! must stay whoever dies. So a file beside the manifests says that first, durably, and goes last: while
//! it is there, a staged manifest of the point explains nothing.

use std::io::Write;
use std::sync::Arc;

use super::manifest::{self, Manifest};
use super::names::DiskId;
use super::point::PointId;
use super::storage::{Name, Publish, Staged, Unpublished};
use super::{Catalog, DomainLock, Repository};
use crate::base::error::{Error, ErrorKind, Result};

/// What the file says, for people, that marks a point as having lost its manifest.
const LOST: &[u8] = b"The manifest of this point was lost, and is being brought back.\n";

/// A point on its way. Dropped, nothing says any more that archives of it are expected.
#[derive(Debug)]
pub(crate) struct Arrival<'lock> {
    repository: Repository,
    lock: &'lock DomainLock,
    point: PointId,
    name: Name,
    staged: Box<dyn Staged>,
    /// Archives of it were there before, and no manifest.
    is_lost: bool,
}

impl Repository {
    /// Says, durably, that archives of a point are about to come; `is_lost` says that some are there
    /// already, and that it has no manifest.
    ///
    /// # Errors
    /// The lock does not cover the repository; it can't be said.
    pub(crate) fn arrive<'lock>(
        &self,
        lock: &'lock DomainLock,
        point: PointId,
        is_lost: bool,
    ) -> Result<Arrival<'lock>> {
        let mut arrival = self.expect_point(lock, point, is_lost)?;
        arrival.staged.announce()?;
        Ok(arrival)
    }

    /// Puts the manifest of a point back that was lost, or is damaged: its archives are there.
    ///
    /// # Errors
    /// As [`Arrival::commit`]; nothing of the manifest is left.
    pub(crate) fn put_back(
        &self,
        lock: &DomainLock,
        manifest: &Manifest,
        how: Publish,
    ) -> Result<()> {
        let mut arrival = self.expect_point(lock, manifest.point, how == Publish::New)?;
        arrival.publish(manifest, how)
    }

    fn expect_point<'lock>(
        &self,
        lock: &'lock DomainLock,
        point: PointId,
        is_lost: bool,
    ) -> Result<Arrival<'lock>> {
        if !Arc::ptr_eq(lock.storage(), self.storage()) {
            let text = format!("the lock of {} is another repository's", lock.domain());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        if is_lost {
            self.note_lost(lock, point)?;
        }
        let name = self.points_dir(lock.domain()).join(&Manifest::file_name(point));
        let staged = self.storage().stage_anew(&name)?;
        Ok(Arrival { repository: self.clone(), lock, point, name, staged, is_lost })
    }

    /// Says, durably, that a point has archives and no manifest.
    fn note_lost(&self, lock: &DomainLock, point: PointId) -> Result<()> {
        let name = self.points_dir(lock.domain()).join(&manifest::lost_name(point));
        if self.is_there(&name)? {
            return Ok(());
        }
        let mut staged = self.storage().stage_anew(&name)?;
        let failed = |error| Error::io("write", &self.describe(&name), error);
        staged.write_all(LOST).map_err(failed)?;
        staged.seal()?;
        staged.publish(Publish::New).map_err(|Unpublished { error, .. }| error)
    }

    /// Takes back that a point has no manifest, where its manifest is there or nothing is staged of it any more. Where
    /// that can't be taken back, as by credentials that can only add, it does no harm.
    pub(super) fn forget_lost(&self, lock: &DomainLock, point: PointId) {
        let folder = self.points_dir(lock.domain());
        if let Err(error) = self.storage().remove_all(&folder, &[manifest::lost_name(point)]) {
            tracing::debug!("{folder}: {}", error.chain());
        }
    }
}

impl Arrival<'_> {
    /// Leaves everything as it is, for the next one who brings the point: as if the program was killed.
    pub fn leave(self) {
        std::mem::forget(self.staged);
    }

    /// Makes the archives that `manifest` names a point. Its archives must have their names.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: it is another point's, or an archive is missing. Others: it can't be
    /// written; only after the very last sync has failed the point is there, perhaps not for ever. What has
    /// arrived is left for the next one.
    pub fn commit(mut self, manifest: &Manifest, how: Publish) -> Result<()> {
        let done = self.publish(manifest, how);
        if done.is_err() {
            self.leave();
        }
        done
    }

    fn publish(&mut self, manifest: &Manifest, how: Publish) -> Result<()> {
        let repository = &self.repository;
        let own = self.lock.repository();
        let first = manifest.origin.as_ref().or(manifest.repository.as_ref());
        let manifest = &Manifest {
            repository: Some(own.to_owned()),
            origin: first.filter(|first| *first != own).cloned(),
            ..manifest.clone()
        };
        if manifest.point != self.point || manifest.domain != *self.lock.domain() {
            let (point, found) = (self.point, manifest.point);
            let text = format!("the manifest of point {found} is not that of {point}");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        for record in &manifest.disks {
            let disk = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            let archive = repository.archive(&disk, &record.archive);
            if !repository.is_there(&archive)? {
                let path = repository.describe(&archive);
                let text = format!("the archive {} is missing", path.display());
                return Err(Error::new(ErrorKind::Usage, text));
            }
        }
        // Files of its machine may have lain there already, unnamed.
        for file in manifest.machine.iter().flat_map(|machine| &machine.files) {
            repository.name_again(self.lock.domain(), file.digest)?;
        }
        let bytes = manifest.encode()?;
        let failed = |error| Error::io("write", &repository.describe(&self.name), error);
        self.staged.write_all(&bytes).map_err(failed)?;
        self.staged.seal()?;
        self.lock.prove_lately()?;
        self.staged.publish(how).map_err(|Unpublished { error, .. }| {
            error.within(format!("point {} of {} can't be finished", self.point, manifest.domain))
        })?;
        self.lock.prove_made(self.point)?;
        if self.is_lost {
            repository.forget_lost(self.lock, self.point);
        }
        Ok(())
    }
}

impl Catalog {
    /// The archives of a disk that are called after a point, whether a manifest names them or not.
    ///
    /// # Errors
    /// The folder of the disk can't be listed.
    pub(crate) fn archives_at(&self, disk: &DiskId, point: PointId) -> Result<Vec<Name>> {
        let folder = self.domain(&disk.domain).folder(&disk.disk);
        let names = &folder.as_ref().as_ref().map_err(Error::clone)?.names;
        let is_of =
            |name: &&String| manifest::parse_archive_name(name).is_some_and(|(of, _)| of == point);
        Ok(names.iter().filter(is_of).map(|name| self.repository().archive(disk, name)).collect())
    }

    /// The archives of a disk whose points have no sound manifest, but for those that are still on their way.
    ///
    /// # Errors
    /// The folder of the disk can't be listed.
    pub(crate) fn archives_alone(&self, disk: &DiskId) -> Result<Vec<(Name, PointId)>> {
        let domain = self.domain(&disk.domain);
        let folder = domain.folder(&disk.disk);
        let names = &folder.as_ref().as_ref().map_err(Error::clone)?.names;
        let parsed = names.iter().filter_map(|name| {
            let (point, _) = manifest::parse_archive_name(name)?;
            Some((self.repository().archive(disk, name), point))
        });
        let is_alone = |point: PointId| match domain.manifest(point) {
            None => !domain.announces(point),
            Some(manifest) => manifest.is_err(),
        };
        Ok(parsed.filter(|(_, point)| is_alone(*point)).collect())
    }
}
