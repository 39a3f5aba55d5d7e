//! An archive on its way into the repository.
//!
//! The order of [`Pending::commit_all`] makes every moment of it readable: the archives are sealed; the
//! manifest is staged and sealed; only then the archives get their names, and last the manifest gets
//! its. So an archive that has its name and no manifest is explained by a staged manifest, or it is
//! not ours to remove.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::manifest::{self, Manifest};
use super::names::DiskId;
use super::point::PointId;
use super::storage::{Name, Outcome, Publish, Staged, Storage, Unpublished};
use super::{DomainLock, Repository};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::age::base64;
use crate::formats::archive::{ArchiveId, Kind};

/// An archive that is being written, under a name that nobody takes for an archive. Dropped, it
/// is gone.
#[derive(Debug)]
pub struct Pending<'lock> {
    lock: &'lock DomainLock,
    disk: DiskId,
    point: PointId,
    staged: SharedFile,
    archive: Name,
    path: PathBuf,
}

/// A staged file: whoever writes it, and whoever publishes it afterwards, share it.
#[derive(Debug, Clone)]
struct SharedFile(Arc<Mutex<Box<dyn Staged>>>);

impl SharedFile {
    fn get(&self) -> MutexGuard<'_, Box<dyn Staged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for SharedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.get().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.get().flush()
    }
}

/// A merged archive that has its name, and that its point's manifest does not name yet. It is removed
/// when this is dropped, unless it was kept.
pub(crate) struct Beside<'lock>(Litter<'lock>, Option<String>);

impl Beside<'_> {
    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// What its record in the manifest says of the archive's first bytes.
    pub fn opening(&self) -> Option<String> {
        self.1.clone()
    }

    /// The archive stays.
    pub fn keep(self) {
        self.0.release();
    }
}

/// An archive that has its name, and no manifest yet. It is removed when this is dropped, unless it
/// was released.
struct Litter<'lock> {
    storage: &'lock dyn Storage,
    name: Name,
    /// Nobody else gives this name. A copied archive is called as its source, also by another host that copies it.
    is_own: bool,
    released: bool,
}

impl Litter<'_> {
    /// The archive stays.
    fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Litter<'_> {
    fn drop(&mut self) {
        if !self.released {
            // What can't be removed now is removed by the next run.
            let _ = match self.is_own {
                true => self.storage.remove_own(&self.name),
                false => self.storage.remove(&self.name),
            };
        }
    }
}

impl<'lock> Pending<'lock> {
    /// Begins the archive of a disk at a point.
    pub(super) fn begin(
        repository: &Repository,
        lock: &'lock DomainLock,
        disk: &DiskId,
        point: PointId,
        kind: Kind,
        id: ArchiveId,
    ) -> Result<Self> {
        if !Arc::ptr_eq(lock.storage(), repository.storage()) || *lock.domain() != disk.domain {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the lock of {} does not cover {disk}", lock.domain()),
            ));
        }
        let archive = repository.disk_dir(disk).join(&manifest::archive_name(point, kind, id));
        let path = repository.describe(&archive);
        if repository.is_there(&archive)? {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("there is an archive {} already", path.display()),
            ));
        }
        let staged = SharedFile(Arc::new(Mutex::new(repository.storage().stage(&archive)?)));
        Ok(Self { lock, disk: disk.clone(), point, staged, archive, path })
    }

    /// What to write the archive to. All writers share one position.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(self.staged.clone())
    }

    /// What to call the archive where people read of it.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The point it belongs to.
    pub fn point(&self) -> PointId {
        self.point
    }

    /// The disk it belongs to.
    pub fn disk(&self) -> &DiskId {
        &self.disk
    }

    /// The file name it will have: what its record in the manifest says.
    pub fn archive_name(&self) -> String {
        self.archive.last().to_owned()
    }

    /// What its record in the manifest says of the archive's first bytes.
    pub fn opening(&self) -> Option<String> {
        self.staged.get().opening().map(|bytes| base64::encode(&bytes))
    }

    /// Gives the archive its name, beside another one of its point that the manifest names. Where the
    /// program ends before the manifest names this one, the next run removes it.
    ///
    /// # Errors
    /// It can't be sealed or published, and is gone.
    pub(crate) fn publish(self) -> Result<Beside<'lock>> {
        let storage = &**self.lock.storage();
        let opening = self.opening();
        let mut staged = self.staged.get();
        staged.seal()?;
        let published = staged.publish(Publish::New);
        let refused = matches!(&published, Err(Unpublished { outcome: Outcome::Refused, .. }));
        let beside = Litter {
            storage,
            name: self.archive.clone(),
            // Where another host has the lock, its next run removes it.
            is_own: false,
            released: refused,
        };
        published.map_err(|unpublished| unpublished.error)?;
        Ok(Beside(beside, opening))
    }

    /// Makes the archive and `manifest`, which names it and no other, a point.
    ///
    /// # Errors
    /// As [`Self::commit_all`].
    pub fn commit(self, manifest: &Manifest) -> Result<()> {
        Self::commit_all(vec![self], manifest)
    }

    /// Makes archives of several disks of one domain, and `manifest`, which names exactly them,
    /// one point.
    ///
    /// # Errors
    /// Something can't be written, sealed or published: then nothing happened and the archives are
    /// gone, or the next backup removes them, where nobody can tell whether they have got their names. Only if the point has
    /// its name and may lose it in a power cut, or somebody else has had the lock meanwhile, it is there.
    pub fn commit_all(archives: Vec<Self>, manifest: &Manifest) -> Result<()> {
        let lock = check_commit(&archives, manifest)?;
        let storage = &**lock.storage();
        let manifest =
            &Manifest { repository: Some(lock.repository().to_owned()), ..manifest.clone() };
        for pending in &archives {
            pending.staged.get().seal()?;
        }

        let folder = manifest.domain.folder().join(super::names::POINTS);
        let name = folder.join(&Manifest::file_name(manifest.point));
        let bytes = manifest.encode()?;
        // Made before the archives' names, so dropped after them: it explains them.
        let mut staged = storage.stage(&name)?;
        let failed = |error| Error::io("write", &storage.describe(&name), error);
        staged.write_all(&bytes).map_err(failed)?;
        staged.seal()?;
        staged.announce()?;

        let mut named = Vec::new();
        for pending in archives {
            let published = pending.staged.get().publish(Publish::New);
            if !matches!(&published, Err(Unpublished { outcome: Outcome::Refused, .. })) {
                let name = pending.archive;
                // Whoever has taken the lock may have removed what explains it.
                named.push(Litter { storage, name, is_own: true, released: false });
            }
            if let Err(Unpublished { error, outcome }) = published {
                if outcome == Outcome::Unknown {
                    // The archive may still get its name: what explains it is left, as if the program was killed.
                    std::mem::forget(staged);
                }
                return Err(error);
            }
        }

        // Of a point whose archives somebody has removed no manifest is to be made, as far as that is known by now.
        lock.prove_lately()?;
        let published = staged.publish(Publish::New);
        if matches!(&published, Err(Unpublished { outcome: Outcome::Refused, .. })) {
            return published.map_err(|unpublished| unpublished.error);
        }
        // The point is there, or nobody can tell: what is too much, the next backup removes.
        named.into_iter().for_each(Litter::release);
        published.map_err(|Unpublished { error, outcome }| match outcome {
            Outcome::Volatile => error.within(format!(
                "point {} is made, but the system does not promise that it survives a power cut",
                manifest.point
            )),
            Outcome::Refused | Outcome::Unknown => error,
        })?;
        // Where it was not, the point stays: whoever has the lock may have replaced its manifest.
        lock.prove_made(manifest.point)
    }
}

/// Fails unless the manifest names exactly these archives.
fn check_commit<'lock>(
    archives: &[Pending<'lock>],
    manifest: &Manifest,
) -> Result<&'lock DomainLock> {
    let Some(first) = archives.first() else {
        return Err(Error::new(ErrorKind::Usage, "a point needs a disk"));
    };
    let fits = |pending: &Pending<'_>| {
        std::ptr::eq(pending.lock, first.lock)
            && pending.point == manifest.point
            && pending.disk.domain == manifest.domain
            && manifest
                .disk(&pending.disk.disk)
                .is_some_and(|record| record.archive == pending.archive_name())
    };
    if !archives.iter().all(fits) || archives.len() != manifest.disks.len() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the manifest of point {} names other archives", manifest.point),
        ));
    }
    Ok(first.lock)
}
