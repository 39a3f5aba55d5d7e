//! An archive on its way into the repository.
//!
//! The order of [`Pending::commit_all`] makes every moment of it readable: the archives are
//! synced; the manifest is written under its partial name and synced; only then the archives get
//! their names, and last the manifest gets its. So an archive that has its name and no manifest
//! is explained by a partial manifest beside it, or it is not ours to remove.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::durable;
use super::manifest::{self, Manifest};
use super::names::DiskId;
use super::point::PointId;
use super::{DomainLock, Repository, is_there};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{ArchiveId, Kind};

/// An archive that is being written, under a name that nobody takes for an archive. Dropped, it
/// is gone.
#[derive(Debug)]
pub struct Pending<'lock> {
    lock: &'lock DomainLock,
    disk: DiskId,
    point: PointId,
    file: File,
    partial: Litter,
    archive: PathBuf,
}

/// A file that is removed when this is dropped, unless it was released.
#[derive(Debug)]
pub(super) struct Litter {
    pub(super) path: PathBuf,
    released: bool,
}

impl Litter {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, released: false }
    }

    /// The file stays, or is called differently now.
    pub(super) fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Litter {
    fn drop(&mut self) {
        if !self.released {
            // What can't be removed now is removed by the next run.
            let _ = durable::remove(&self.path);
        }
    }
}

impl<'lock> Pending<'lock> {
    /// Makes the disk's folder if it is missing, and the file.
    pub(super) fn begin(
        repository: &Repository,
        lock: &'lock DomainLock,
        disk: &DiskId,
        point: PointId,
        kind: Kind,
        id: ArchiveId,
    ) -> Result<Self> {
        if lock.dir() != repository.domain_dir(&disk.domain) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the lock of {} does not cover {disk}", lock.domain()),
            ));
        }
        let dir = repository.disk_dir(disk);
        durable::create_dir(&dir)?;
        let name = manifest::archive_name(point, kind, id);
        let archive = dir.join(&name);
        if is_there(&archive)? {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("there is an archive {} already", archive.display()),
            ));
        }
        let partial = dir.join(partial_name(&name));
        let file = durable::create_new(&partial)?;
        let partial = Litter::new(partial);
        Ok(Self { lock, disk: disk.clone(), point, file, partial, archive })
    }

    /// A handle to write the archive with. All handles share one position.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|error| Error::io("open", self.path(), error))
    }

    /// Where the file is while it is written.
    pub fn path(&self) -> &Path {
        &self.partial.path
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
        self.archive.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    /// Something can't be written, synced or renamed: then nothing happened and the archives are
    /// gone. Only if the very last sync fails the point is there, perhaps not for ever.
    pub fn commit_all(archives: Vec<Self>, manifest: &Manifest) -> Result<()> {
        let lock = check_commit(&archives, manifest)?;
        let manifest =
            &Manifest { repository: Some(lock.repository().to_owned()), ..manifest.clone() };
        for pending in &archives {
            durable::sync_file(&pending.file, pending.path())?;
        }

        let dir = lock.points_dir();
        let name = Manifest::file_name(manifest.point);
        let partial = dir.join(partial_name(&name));
        let bytes = manifest.encode()?;
        // Made before the archives' names, so dropped after them: it explains them.
        let partial = Litter::new(partial);
        durable::write_new(&partial.path, &bytes)?;
        durable::sync_dir(&dir)?;

        let mut named = Vec::new();
        for pending in archives {
            durable::rename_new(pending.path(), &pending.archive)?;
            pending.partial.release();
            named.push(Litter::new(pending.archive));
        }
        for archive in &named {
            durable::sync_dir(archive.path.parent().unwrap_or(Path::new(".")))?;
        }

        if let Err(error) = durable::rename_new(&partial.path, &dir.join(&name)) {
            // A server that lost its first answer reports a rename that has happened as failed: the
            // point is there then, and its archives must stay.
            match (is_there(&partial.path), is_there(&dir.join(&name))) {
                (Ok(true), _) => return Err(error),
                (_, Ok(true)) => {}
                _ => {
                    // Nobody can tell. What is too much, the next backup removes.
                    named.into_iter().for_each(Litter::release);
                    return Err(error);
                }
            }
        }
        // From here on the point is there.
        partial.release();
        named.into_iter().for_each(Litter::release);
        durable::sync_dir(&dir).map_err(|error| {
            error.within(format!(
                "point {} is made, but the system does not promise that it survives a power cut",
                manifest.point
            ))
        })
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
        pending.lock.dir() == first.lock.dir()
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

/// What a file is called until it is complete.
pub(super) fn partial_name(name: &str) -> String {
    format!(".{name}.partial")
}

/// The name that a file with a partial name would have got.
pub(super) fn whole_name(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".partial")
}
