//! Another manifest in the place of one: the same point, shown by other archives.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use super::manifest::{self, Manifest};
use super::names::DomainName;
use super::point::PointId;
use super::storage::{Outcome, Publish, Unpublished};
use super::{DiskId, DomainLock, Repository};
use crate::base::error::{Error, ErrorKind, Result};

/// Which manifest stands there: the digest of the very bytes of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(blake3::Hash);

impl Version {
    fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }
}

/// What a lock says that could not be proved.
fn doubt(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Busy => "somebody else may have written there meanwhile",
        _ => "nobody can tell whether somebody else has written there meanwhile",
    }
}

/// What to do where somebody else may have written as well.
const LOOK: &str = "see what is there with qdelta verify";

impl Repository {
    /// The manifest of a point, and its version.
    ///
    /// # Errors
    /// It can't be read, or is damaged.
    pub(crate) fn versioned(
        &self,
        domain: &DomainName,
        point: PointId,
    ) -> Result<(Manifest, Version)> {
        let name = self.points_dir(domain).join(&Manifest::file_name(point));
        let bytes = self.storage().read(&name, manifest::LEN_MAX)?;
        let manifest = Manifest::decode(&bytes, &self.describe(&name), domain, point)?;
        Ok((manifest, Version::of(&bytes)))
    }

    /// Puts `manifest` in the place of the one of its point, if that one still has the version
    /// `expected`: at every moment one of the two stands there. Its archives must have their names, but
    /// for those that the other named, too; those of the manifest that goes stay.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the two do not show the same disks with the same roots, or an archive is
    /// missing. [`ErrorKind::Busy`]: another manifest stands there, or somebody else has had the lock until the new one
    /// did. Others: something can't be written, synced or renamed; only after the very last sync has failed the new one
    /// stands there, perhaps not for ever.
    pub(crate) fn replace(
        &self,
        lock: &DomainLock,
        expected: Version,
        manifest: &Manifest,
    ) -> Result<Version> {
        let version = self.put_over(lock, expected, manifest, Publish::Replace)?;
        lock.prove().map_err(|error| {
            let text = format!(
                "the manifest of point {} of {} is replaced, and {}",
                manifest.point,
                manifest.domain,
                doubt(&error)
            );
            error.within(text).advise(LOOK)
        })?;
        Ok(version)
    }

    /// As [`Self::replace`], with a manifest that names other archives than `before`, which stands there. Whoever had the
    /// lock meanwhile, though nobody should, may have removed those archives, which no manifest named yet: then `before`
    /// comes back. `done` says in a word what becomes of the point.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub(crate) fn replace_archives(
        &self,
        lock: &DomainLock,
        expected: Version,
        manifest: &Manifest,
        before: Option<&Manifest>,
        done: &str,
    ) -> Result<()> {
        let put = self.put_over(lock, expected, manifest, Publish::Replace)?;
        let Err(error) = lock.prove() else { return Ok(()) };
        let point = manifest.point;
        let is_back = match before.filter(|_| error.kind() == ErrorKind::Busy) {
            Some(before) => self.take_back(lock, put, manifest, before),
            None => Ok(false),
        };
        Err(match is_back {
            Ok(true) => error.within(format!("point {point} is not {done}")),
            Ok(false) => {
                let text = format!("point {point} is {done}, and {}", doubt(&error));
                error.within(text).advise(LOOK)
            }
            Err(failed) => error
                .within(format!("the archives of point {point} may be missing: {}", failed.chain()))
                .advise(LOOK),
        })
    }

    /// Puts `before`, which stood there, in the place of `merged`, which was put over it, if that one still has the version
    /// `expected`: also for whoever has lost the lock meanwhile. Only if an archive that `merged` names is missing, and
    /// all is there that `before` needs: whoever has the lock now may be about to remove what the merge has replaced.
    /// Whether it did.
    ///
    /// # Errors
    /// As [`Self::replace`]; it can't be told what is there.
    fn take_back(
        &self,
        lock: &DomainLock,
        expected: Version,
        merged: &Manifest,
        before: &Manifest,
    ) -> Result<bool> {
        if self.has_archives(merged)? || !self.has_chain(before)? {
            return Ok(false);
        }
        self.put_over(lock, expected, before, Publish::Back)?;
        Ok(true)
    }

    /// Whether every archive is there that a manifest names, whatever a list says.
    fn has_archives(&self, manifest: &Manifest) -> Result<bool> {
        for record in &manifest.disks {
            let id = DiskId { domain: manifest.domain.clone(), disk: record.disk.clone() };
            match self.storage().open(&self.archive(&id, &record.archive)) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                // Whatever else is wrong with it, it is there.
                Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Whether every archive is there that a manifest and those that it builds on name, and each of those manifests.
    fn has_chain(&self, manifest: &Manifest) -> Result<bool> {
        if !self.has_archives(manifest)? {
            return Ok(false);
        }
        let parents = |manifest: &Manifest| -> Vec<(DomainName, PointId)> {
            let parents = manifest.disks.iter().filter_map(|record| record.parent.as_ref());
            parents.map(|parent| (parent.domain.clone(), parent.point)).collect()
        };
        let (mut open, mut seen) = (parents(manifest), BTreeSet::new());
        while let Some((domain, point)) = open.pop() {
            if !seen.insert((domain.clone(), point)) {
                continue;
            }
            let parent = match self.versioned(&domain, point) {
                Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                Err(_) => return Ok(false),
                Ok((parent, _)) => parent,
            };
            if !self.has_archives(&parent)? {
                return Ok(false);
            }
            open.extend(parents(&parent));
        }
        Ok(true)
    }

    fn put_over(
        &self,
        lock: &DomainLock,
        expected: Version,
        manifest: &Manifest,
        how: Publish,
    ) -> Result<Version> {
        let (domain, point) = (&manifest.domain, manifest.point);
        if !Arc::ptr_eq(lock.storage(), self.storage()) || lock.domain() != domain {
            let text = format!("the lock of {} does not cover {domain}", lock.domain());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let (old, found) = self.versioned(domain, point)?;
        if found != expected {
            let text = format!("the manifest of point {point} was replaced meanwhile");
            return Err(Error::new(ErrorKind::Busy, text).advise("read it again"));
        }
        check_same(&old, manifest)?;
        for record in &manifest.disks {
            let id = DiskId { domain: domain.clone(), disk: record.disk.clone() };
            let archive = self.disk_dir(&id).join(&record.archive);
            let was_named = old.disk(&record.disk).is_some_and(|it| it.archive == record.archive);
            if !was_named && !self.is_there(&archive)? {
                let text = format!("the archive {} is missing", self.describe(&archive).display());
                return Err(Error::new(ErrorKind::Usage, text));
            }
        }
        let bytes = manifest.encode()?;
        let version = Version::of(&bytes);
        let name = self.points_dir(domain).join(&Manifest::file_name(point));
        let mut staged = self.storage().stage_anew(&name)?;
        let failed = |error| Error::io("write", &self.describe(&name), error);
        staged.write_all(&bytes).map_err(failed)?;
        staged.seal()?;
        match staged.publish(how) {
            Ok(()) => Ok(version),
            Err(Unpublished { error, outcome: Outcome::Volatile }) => Err(error.within(format!(
                "the manifest of point {point} is replaced, but the system does not promise that \
                 this survives a power cut"
            ))),
            Err(Unpublished { error, .. }) => Err(error),
        }
    }
}

/// Fails unless both manifests show the same disks, byte for byte.
fn check_same(old: &Manifest, new: &Manifest) -> Result<()> {
    let refused = |what: String| {
        let text = format!("no manifest can replace that of point {}: {what}", old.point);
        Err(Error::new(ErrorKind::Usage, text))
    };
    if old.disks.len() != new.disks.len() {
        return refused(format!("it has {} disks and not {}", new.disks.len(), old.disks.len()));
    }
    for before in &old.disks {
        let Some(after) = new.disk(&before.disk) else {
            return refused(format!("it has no disk {}", before.disk));
        };
        if before.root != after.root {
            let (disk, root) = (&before.disk, &before.root);
            return refused(format!("disk {disk} has the root {} and not {root}", after.root));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::cancel::Cancel;
    use crate::formats::archive::{ArchiveId, Digest, Kind};
    use crate::vault::repository::storage::Wait;
    use crate::vault::repository::storage::durable::faults::{self, Mode};
    use crate::vault::repository::tests::{back_up, disk, fresh};
    use crate::vault::repository::{Point, Removed};

    const OTHER: ArchiveId = ArchiveId([9; 16]);

    /// A repository with a full and an increment, and the manifest that shows the increment's point by
    /// a full of its own.
    fn merged() -> (tempfile::TempDir, Repository, Manifest, Version) {
        let (dir, repository) = fresh();
        let id = disk("vm/vda");
        back_up(&repository, &id, Kind::Full).unwrap();
        let point = back_up(&repository, &id, Kind::Incremental).unwrap();
        let (mut manifest, version) = repository.versioned(&id.domain, point).unwrap();
        manifest.replaces.extend(manifest.archives().collect::<Vec<_>>());
        let record = &mut manifest.disks[0];
        (record.kind, record.parent, record.archive_id) = (Kind::Full, None, OTHER);
        record.archive = manifest::archive_name(point, Kind::Full, OTHER);
        let archive = repository.describe(&repository.disk_dir(&id).join(&record.archive));
        fs::write(archive, "merged").unwrap();
        (dir, repository, manifest, version)
    }

    #[test]
    fn two_archives_of_a_point_lie_side_by_side_and_the_manifest_says_which_counts() {
        let (_dir, repository, manifest, version) = merged();
        let id = disk("vm/vda");
        let file = |point: &Point| repository.describe(&point.archive);
        let old = file(&repository.catalog().points(&id).unwrap().points[1]);
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let replaced = repository.replace(&lock, version, &manifest).unwrap();
        let (read, again) = repository.versioned(&id.domain, manifest.point).unwrap();
        assert_eq!((&read, again), (&manifest, replaced));
        let catalog = repository.catalog();
        let point = &catalog.points(&id).unwrap().points[1];
        assert!(file(point).is_file() && old.is_file() && file(point) != old);
        assert_eq!(catalog.chain_of(point).unwrap(), std::slice::from_ref(&point.archive));
        // Whoever read the first manifest does not know what became of it.
        let error = repository.replace(&lock, version, &manifest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        // What is replaced is nobody's to remove but the merge's.
        repository.clean(&lock).unwrap();
        assert!(old.is_file() && catalog.strays(&id).unwrap().is_empty());
        let clearance = repository.clear(&lock, Wait::UNHEARD).unwrap().unwrap();
        let removed = repository.remove_replaced(&lock, &clearance, &Cancel::default()).unwrap();
        assert_eq!((removed.points, removed.archives), (0, 1));
        let (read, _) = repository.versioned(&id.domain, manifest.point).unwrap();
        assert!(!old.is_file() && read.replaces.is_empty());
        assert!(
            repository.remove_replaced(&lock, &clearance, &Cancel::default()).unwrap()
                == Removed::default()
        );
    }

    /// What a merge had replaced went though somebody else had got the lock meanwhile, as from a server of files that let
    /// go of it, and though what had replaced it was gone.
    #[test]
    fn what_was_replaced_goes_by_the_holder_alone_and_only_if_the_other_is_there() {
        let (_dir, repository, manifest, version) = merged();
        let id = disk("vm/vda");
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        repository.replace(&lock, version, &manifest).unwrap();
        let clearance = repository.clear(&lock, Wait::UNHEARD).unwrap().unwrap();
        let refused = |expected: ErrorKind| {
            let error =
                repository.remove_replaced(&lock, &clearance, &Cancel::default()).unwrap_err();
            assert_eq!(error.kind(), expected, "{}", error.chain());
        };
        let merged = repository.describe(&repository.archive(&id, &manifest.disks[0].archive));
        let aside = merged.with_extension("aside");
        fs::rename(&merged, &aside).unwrap();
        refused(ErrorKind::Damaged);
        fs::rename(&aside, &merged).unwrap();
        let file = repository.describe(&repository.domain_dir(&id.domain).join(".lock"));
        let note = fs::read(&file).unwrap();
        fs::write(&file, "process 1 on another\n").unwrap();
        refused(ErrorKind::Busy);
        fs::write(&file, note).unwrap();
        assert_eq!(
            repository.remove_replaced(&lock, &clearance, &Cancel::default()).unwrap().archives,
            1
        );
    }

    /// A merge was killed after its archive had a name and before the manifest named it: nobody knew the
    /// archive, and nobody removed it.
    #[test]
    fn an_archive_that_no_manifest_came_to_name_is_removed() {
        let (_dir, repository, manifest, _) = merged();
        let id = disk("vm/vda");
        let merged = repository.describe(&repository.archive(&id, &manifest.disks[0].archive));
        assert!(merged.is_file() && repository.catalog().strays(&id).unwrap().is_empty());
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let (cleaned, _) = repository.clean(&lock).unwrap();
        assert!(cleaned.removed.len() == 1 && cleaned.kept.is_empty() && !merged.is_file());
        let points = repository.catalog().points(&id).unwrap().points;
        assert!(points.iter().all(|point| point.archive_present));
    }

    #[test]
    fn only_a_manifest_of_the_same_disks_and_roots_can_replace_one() {
        let (_dir, repository, manifest, version) = merged();
        let lock = repository.lock(&manifest.domain, Wait::UNHEARD).unwrap();
        let mut root = manifest.clone();
        root.disks[0].root = Digest([8; 32]);
        let mut name = manifest.clone();
        name.disks[0].disk = "vdb".parse().unwrap();
        let mut fewer = manifest.clone();
        fewer.disks.clear();
        let mut missing = manifest.clone();
        missing.disks[0].archive_id = ArchiveId([7; 16]);
        missing.disks[0].archive =
            manifest::archive_name(manifest.point, Kind::Full, ArchiveId([7; 16]));
        for broken in [root, name, fewer, missing] {
            let error = repository.replace(&lock, version, &broken).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.chain());
        }
        let (_, found) = repository.versioned(&manifest.domain, manifest.point).unwrap();
        assert_eq!(found, version);
        let other = repository.lock(&"other".parse().unwrap(), Wait::UNHEARD).unwrap();
        assert!(repository.replace(&other, version, &manifest).is_err());
    }

    /// Whatever fails, or wherever the program dies: one of the two manifests stands there, whole.
    #[test]
    fn at_every_moment_one_of_the_two_stands_there() {
        for mode in [Mode::Fail, Mode::Kill] {
            let (mut at, mut replaced) = (0, 0);
            loop {
                let (_dir, repository, manifest, version) = merged();
                let (old, _) = repository.versioned(&manifest.domain, manifest.point).unwrap();
                let lock = repository.lock(&manifest.domain, Wait::UNHEARD).unwrap();
                faults::arm(at, mode);
                let result = repository.replace(&lock, version, &manifest);
                let steps = faults::disarm();
                let (found, _) = repository.versioned(&manifest.domain, manifest.point).unwrap();
                assert!(found == old || found == manifest, "{mode:?} at step {at}");
                replaced += u32::from(found == manifest);
                if result.is_ok() {
                    assert!(found == manifest && steps <= at);
                    break;
                }
                let folder = repository.describe(&repository.points_dir(&manifest.domain));
                let names = fs::read_dir(folder).unwrap().count();
                assert!(mode == Mode::Kill || names == 2, "litter after a failure at step {at}");
                repository.clean(&lock).unwrap();
                let (kept, _) = repository.versioned(&manifest.domain, manifest.point).unwrap();
                assert_eq!(kept, found, "cleaning up changes nothing");
                at += 1;
            }
            assert!(at >= 3 && replaced >= 1, "{mode:?}: {at} steps, {replaced} times replaced");
        }
    }
}
