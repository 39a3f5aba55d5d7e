//! What a backup that was killed leaves behind, and how it is told from what must stay.
//!
//! While the domain is locked nobody writes to it, so every file under a partial name is a
//! leftover. An archive under its final name is one only if all of this says so: the partial
//! manifest of its point is still there, no manifest names it, it is newer than every manifest and
//! every other archive of its disk, and no point builds on it. An archive without a manifest and without that explanation stays
//! and is reported: perhaps its manifest was lost.

use std::path::{Path, PathBuf};

use super::catalog::DomainReading;
use super::manifest::{self, Manifest};
use super::names::{DiskId, DiskName};
use super::pending::{partial_name, whole_name};
use super::point::PointId;
use super::{
    Catalog, DomainLock, Repository, durable, folder_names, folder_names_if_any, is_folder,
    is_there,
};
use crate::base::error::{Error, Result};

/// What was found in a domain that belongs to no point.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Leftovers of backups that did not end, and are gone now.
    pub removed: Vec<Leftover>,
    /// Archives that no manifest names and that no interrupted backup explains.
    pub kept: Vec<Leftover>,
    /// The folders of disks that can't be listed: nothing was looked for in them.
    pub unreadable: Vec<Error>,
}

/// A file that belongs to no point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Where it is, or was.
    pub path: PathBuf,
    /// How long it is, in bytes.
    pub bytes: u64,
}

impl Leftover {
    fn new(path: PathBuf) -> Self {
        let bytes = path.symlink_metadata().map(|metadata| metadata.len()).unwrap_or(0);
        Self { path, bytes }
    }
}

/// What is known of a domain's points when the fate of an archive is decided.
struct Known {
    reading: DomainReading,
    /// The points whose manifest was being made when somebody was killed.
    interrupted: Vec<PointId>,
}

/// Removes what can only be a leftover.
pub(super) fn clean(repository: &Repository, lock: &DomainLock) -> Result<Cleaned> {
    let domain = lock.domain();
    let points_dir = lock.points_dir();
    let partial_manifests: Vec<(PathBuf, PointId)> = folder_names_if_any(&points_dir)?
        .iter()
        .filter_map(|name| {
            let point = manifest::parse_file_name(whole_name(name)?)?;
            Some((points_dir.join(name), point))
        })
        .collect();
    let known = Known {
        reading: DomainReading::new(repository, domain),
        interrupted: partial_manifests.iter().map(|&(_, point)| point).collect(),
    };
    if let Some(folder) = known.reading.unreadable() {
        return Err(folder.error);
    }

    let mut cleaned = Cleaned::default();
    for name in folder_names(lock.dir())? {
        let Ok(disk) = name.parse::<DiskName>() else { continue };
        let dir = repository.disk_dir(&DiskId { domain: domain.clone(), disk: disk.clone() });
        match is_folder(&dir).and_then(|_| folder_names_if_any(&dir)) {
            Ok(_) if !dir.is_dir() => {}
            Ok(names) => clean_disk(&dir, names, &disk, &known, &mut cleaned)?,
            // It keeps no other disk of the domain from being backed up.
            Err(error) => cleaned.unreadable.push(error),
        }
    }
    // Last, and after the archives are durably gone: they explained them.
    for (path, _) in partial_manifests {
        remove(&mut cleaned, path)?;
    }
    Ok(cleaned)
}

impl Catalog {
    /// The archives of a disk that no manifest names, and the points that they are called after.
    /// Their manifests were lost, or left behind by whoever copied the repository. What a backup
    /// is just finishing, or was killed at finishing, is not among them.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn strays(&self, id: &DiskId) -> Result<Vec<(PathBuf, PointId)>> {
        let (repository, domain) = (self.repository(), self.domain(&id.domain));
        let dir = repository.disk_dir(id);
        let names_it = |manifest: &Manifest, name: &str| {
            manifest.disk(&id.disk).is_some_and(|record| record.archive == name)
        };
        let mut unnamed = Vec::new();
        let folder = domain.folder(&id.disk);
        for name in folder.as_ref().as_ref().map_err(Error::clone)? {
            let Some((point, _)) = manifest::parse_archive_name(name) else { continue };
            match domain.manifest(point) {
                Some(Ok(manifest)) if names_it(manifest, name) => {}
                Some(Err(_)) => {}
                _ => unnamed.push((dir.join(name), point)),
            }
        }
        // A backup may have ended after the manifests were listed, or be about to: its manifest, at
        // least a partial one, is there before its archive is.
        let points_dir = repository.points_dir(&id.domain);
        let mut strays = Vec::new();
        for (path, point) in unnamed {
            let name = Manifest::file_name(point);
            let is_new = domain.manifest(point).is_none() && is_there(&points_dir.join(&name))?;
            let is_beginning = is_there(&points_dir.join(partial_name(&name)))?;
            if !is_new && !is_beginning && is_there(&path)? {
                strays.push((path, point));
            }
        }
        strays.sort_unstable_by_key(|&(_, point)| point);
        Ok(strays)
    }
}

/// Removes what can only be a leftover from the folder of one disk.
fn clean_disk(
    dir: &Path,
    names: Vec<String>,
    disk: &DiskName,
    known: &Known,
    cleaned: &mut Cleaned,
) -> Result<()> {
    let before = cleaned.removed.len();
    let points = names.iter().filter_map(|name| manifest::parse_archive_name(name));
    let newest = points.map(|(point, _)| point).max();
    for name in names {
        let path = dir.join(&name);
        if whole_name(&name).is_some_and(|whole| manifest::parse_archive_name(whole).is_some()) {
            remove(cleaned, path)?;
        } else if let Some((point, _)) = manifest::parse_archive_name(&name) {
            match known.fate(point, &name, disk) {
                // Whatever came later may build on it, though its manifest did not come here yet.
                Fate::Leftover if newest.is_some_and(|newest| newest > point) => {
                    cleaned.kept.push(Leftover::new(path));
                }
                Fate::Belongs => {}
                Fate::Leftover => remove(cleaned, path)?,
                Fate::Unexplained => cleaned.kept.push(Leftover::new(path)),
            }
        }
    }
    if cleaned.removed.len() > before {
        durable::sync_dir(dir)?;
    }
    Ok(())
}

/// What becomes of an archive.
enum Fate {
    /// A manifest names it.
    Belongs,
    /// Its backup was killed just before the manifest got its name.
    Leftover,
    /// Nothing says why it is there.
    Unexplained,
}

impl Known {
    /// Decides the fate of the archive `name` of `disk` at `point`.
    ///
    /// Whether a manifest is sound and names the archive is the question of a verification; here
    /// manifests are read only where an archive would be removed, so that a backup need not read
    /// those of all its points every night.
    fn fate(&self, point: PointId, name: &str, disk: &DiskName) -> Fate {
        if !self.interrupted.contains(&point) {
            let is_named = self.reading.points().binary_search(&point).is_ok();
            return if is_named { Fate::Belongs } else { Fate::Unexplained };
        }
        let names_it =
            |manifest: &Manifest| manifest.disk(disk).is_some_and(|record| record.archive == name);
        if let Some(Ok(manifest)) = self.reading.manifest(point)
            && names_it(manifest)
        {
            return Fate::Belongs;
        }
        let is_newest = self.reading.points().last().is_none_or(|newest| *newest < point);
        let mut records = self.reading.good().filter_map(|manifest| manifest.disk(disk));
        let mut is_needed = || records.any(|record| record.parent_point() == Some(point));
        match is_newest && !is_needed() {
            true => Fate::Leftover,
            false => Fate::Unexplained,
        }
    }
}

/// Removes a leftover and remembers it.
fn remove(cleaned: &mut Cleaned, path: PathBuf) -> Result<()> {
    let leftover = Leftover::new(path);
    durable::remove(&leftover.path)?;
    cleaned.removed.push(leftover);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::formats::archive::Kind;
    use crate::vault::repository::PointId;
    use crate::vault::repository::tests::{back_up, disk, fresh, manifest_path};

    /// A copy of a repository that was broken off had a partial manifest, its archive and later ones,
    /// and none of their manifests: the archive was taken for the leftover of a killed backup, though
    /// everything after it builds on it.
    #[test]
    fn an_archive_below_others_is_kept_though_no_manifest_is_there() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let full = back_up(&repository, &id, Kind::Full).unwrap();
        let last = back_up(&repository, &id, Kind::Incremental).unwrap();
        let path = manifest_path(&repository, &id, full);
        fs::rename(&path, path.with_file_name(format!(".{full}.json.partial"))).unwrap();
        fs::remove_file(manifest_path(&repository, &id, last)).unwrap();
        let lock = repository.lock(&id.domain).unwrap();
        let cleaned = repository.clean(&lock).unwrap();
        assert_eq!(cleaned.kept.len(), 2, "{cleaned:?}");
        assert!(cleaned.kept.iter().all(|kept| kept.path.is_file()));
    }

    /// With its manifests lost a repository looked empty, and `verify` had nothing to complain about.
    #[test]
    fn archives_without_manifests_are_strays() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let full = back_up(&repository, &id, Kind::Full).unwrap();
        let last = back_up(&repository, &id, Kind::Incremental).unwrap();
        let strays = || -> Vec<PointId> {
            repository.catalog().strays(&id).unwrap().into_iter().map(|(_, point)| point).collect()
        };
        assert_eq!(strays(), []);
        let path = manifest_path(&repository, &id, last);
        fs::rename(&path, path.with_file_name(format!(".{last}.json.partial"))).unwrap();
        assert_eq!(strays(), [], "a backup that is being finished");
        fs::remove_file(path.with_file_name(format!(".{last}.json.partial"))).unwrap();
        assert_eq!(strays(), [last]);
        fs::remove_dir_all(repository.points_dir(&id.domain)).unwrap();
        assert_eq!(strays(), [full, last]);
    }
}
