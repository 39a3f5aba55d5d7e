//! What a backup that was killed leaves behind, and how it is told from what must stay.
//!
//! While the domain is locked nobody writes to it, so every staged file is a leftover. An archive
//! that has its name is a leftover only if all of this says so: the staged manifest of its point is
//! still there, no manifest names the archive, no point builds on it, and of every later archive of its
//! disk a sound manifest says what it builds on. An archive without a manifest and without
//! that explanation stays and is reported: perhaps its manifest was lost. Whoever brings a lost manifest back
//! stages it beside archives that are there since long, and says so before: such a manifest explains nothing.
//!
//! Two archives of one point lie side by side while a merged one takes the other's place. One that the
//! point's manifest neither names nor has replaced is left of a merge that was killed, as long as the one
//! that is named is there.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::catalog::DomainReading;
use super::manifest::{self, Manifest};
use super::names::{DiskId, DiskName, MACHINE};
use super::point::PointId;
use super::storage::Name;
use super::{Catalog, DamagedManifest, DomainLock, Repository};
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
    /// How long it is, in bytes; 0 for one that was never published.
    pub bytes: u64,
}

/// Archives that no manifest names, and manifests that are there and that a list lacks.
type StraysAndMisshown = (Vec<(Name, PointId)>, Vec<DamagedManifest>);

/// Removes what can only be a leftover, and reads what is there then. What has arrived of points that are
/// `expected` stays, and so does what explains it.
pub(super) fn clean(
    repository: &Repository,
    lock: &DomainLock,
    expected: &BTreeSet<PointId>,
) -> Result<(Cleaned, Catalog)> {
    let catalog = repository.catalog();
    let known = catalog.domain(lock.domain());
    if let Some(folder) = known.unreadable() {
        return Err(folder.error);
    }
    let cleaned = Cleaned::default();
    let mut cleaner = Cleaner { repository, lock, known: &known, expected, cleaned };
    let domain_dir = repository.domain_dir(lock.domain());
    for entry in repository.storage().list(&domain_dir)? {
        let Ok(disk) = entry.name.parse::<DiskName>() else { continue };
        if entry.may_be_folder() {
            cleaner.clean_disk(&domain_dir.join(&entry.name), &disk)?;
        }
    }
    let machine_dir = domain_dir.join(MACHINE);
    for name in repository.folder(&machine_dir)?.staged {
        cleaner.discard(&machine_dir.join(&name))?;
    }
    // Last, and after the archives are durably gone: they explained them.
    let points_dir = repository.points_dir(lock.domain());
    let is_expected =
        |point: &PointId| expected.contains(point) && known.points().binary_search(point).is_err();
    for point in known.staged().iter().filter(|point| !is_expected(point)) {
        cleaner.discard(&points_dir.join(&Manifest::file_name(*point)))?;
    }
    for point in known.lost_staged() {
        cleaner.discard(&points_dir.join(&manifest::lost_name(*point)))?;
    }
    // And what says that they explained nothing, after they are durably gone.
    let lost: Vec<PointId> =
        known.lost().iter().filter(|point| !is_expected(point)).copied().collect();
    if !lost.is_empty() {
        repository.storage().remove_all(&points_dir, &[])?;
        lost.iter().for_each(|point| repository.forget_lost(lock, *point));
    }
    let cleaned = cleaner.cleaned;
    // What was read before something was removed is not what is there now.
    let catalog = if cleaned.removed.is_empty() { catalog } else { repository.catalog() };
    Ok((cleaned, catalog))
}

impl Catalog {
    /// The archives of a disk that no manifest names, and the points that they are called after.
    /// Their manifests were lost, or left behind by whoever copied the repository. What a backup
    /// is just finishing, or was killed at finishing, is not among them.
    ///
    /// # Errors
    /// A folder can't be read. [`ErrorKind::Io`](crate::base::error::ErrorKind::Io): the manifest of such a point is
    /// there, and the list lacks it.
    pub fn strays(&self, id: &DiskId) -> Result<Vec<(Name, PointId)>> {
        let (strays, misshown) = self.strays_and_misshown(id)?;
        misshown.into_iter().next().map_or(Ok(strays), |wrong| Err(wrong.error))
    }

    /// As [`Self::strays`]; and, in the place of an error, the manifests that are there and that the list lacks.
    ///
    /// # Errors
    /// A folder can't be read, or a manifest can't be looked for.
    pub(crate) fn strays_and_misshown(&self, id: &DiskId) -> Result<StraysAndMisshown> {
        let (repository, domain) = (self.repository(), self.domain(&id.domain));
        let dir = repository.disk_dir(id);
        let names_it = |manifest: &Manifest, name: &str| {
            manifest.disk(&id.disk).is_some_and(|record| record.archive == name)
        };
        let mut unnamed = Vec::new();
        let folder = domain.folder(&id.disk);
        let names = &folder.as_ref().as_ref().map_err(Error::clone)?.names;
        // Beside the one that the manifest names, what a merge has put in another's place or was killed at.
        let has_named = |manifest: &Manifest| {
            manifest.disk(&id.disk).is_some_and(|record| names.contains(&record.archive))
        };
        for name in names {
            let Some((point, _)) = manifest::parse_archive_name(name) else { continue };
            match domain.manifest(point) {
                Some(Ok(manifest)) if names_it(manifest, name) || has_named(manifest) => {}
                Some(Err(_)) => {}
                _ => unnamed.push((dir.join(name), point)),
            }
        }
        if unnamed.is_empty() {
            return Ok((unnamed, Vec::new()));
        }
        // Those of points that are being removed stand in a list until they are gone.
        let listed = domain.listed(&id.disk);
        unnamed.retain(|(archive, _)| !listed.contains(archive.last()));
        // A backup may have ended after the manifests were listed, or be about to: its manifest, at
        // least a staged one, is there before its archive is.
        let points_dir = repository.points_dir(&id.domain);
        let beginning = repository.folder(&points_dir)?;
        let mut strays = Vec::new();
        for (archive, point) in unnamed {
            let name = Manifest::file_name(point);
            let is_new =
                domain.manifest(point).is_none() && repository.is_there(&points_dir.join(&name))?;
            let is_announced = beginning.staged.contains(&name)
                && !beginning.names.contains(&manifest::lost_name(point));
            if !is_new && !is_announced && repository.is_there(&archive)? {
                strays.push((archive, point));
            }
        }
        strays.sort_unstable_by_key(|&(_, point)| point);
        let points = strays.iter().map(|&(_, point)| point).collect();
        let misshown = repository.misshown(&id.domain, points)?;
        strays.retain(|(_, point)| !misshown.contains_key(point));
        let of_list = |(point, error): (&PointId, &Error)| domain.damaged(*point, error);
        Ok((strays, misshown.iter().map(of_list).collect()))
    }
}

impl DomainReading {
    /// The archives of a disk that manifests list as replaced.
    fn listed(&self, disk: &DiskName) -> BTreeSet<&str> {
        let listed = self.good().flat_map(|manifest| &manifest.replaces);
        let of_disk = listed.filter(|replaced| replaced.disk == *disk);
        of_disk.map(|replaced| replaced.archive.as_str()).collect()
    }
}

/// Cleans a domain, folder by folder.
struct Cleaner<'a> {
    repository: &'a Repository,
    lock: &'a DomainLock,
    known: &'a DomainReading,
    expected: &'a BTreeSet<PointId>,
    cleaned: Cleaned,
}

impl Cleaner<'_> {
    /// Removes what can only be a leftover from the folder of one disk.
    fn clean_disk(&mut self, dir: &Name, disk: &DiskName) -> Result<()> {
        let folder = self.known.folder(disk);
        let folder = match &*folder {
            Ok(folder) => folder,
            // It keeps no other disk of the domain from being backed up.
            Err(error) => {
                self.cleaned.unreadable.push(error.clone());
                return Ok(());
            }
        };
        for name in &folder.staged {
            if manifest::parse_archive_name(name).is_some() {
                self.discard(&dir.join(name))?;
            }
        }
        let names = folder.names.iter().map(String::as_str);
        let mut archives: Vec<(PointId, &str)> =
            names.filter_map(|name| Some((manifest::parse_archive_name(name)?.0, name))).collect();
        archives.sort_unstable();
        for (number, &(point, archive)) in archives.iter().enumerate() {
            if self.expected.contains(&point) && self.known.manifest(point).is_none() {
                continue;
            }
            let is_twin = |other: Option<usize>| {
                other.and_then(|other| archives.get(other)).is_some_and(|other| other.0 == point)
            };
            let has_twin = is_twin(number.checked_sub(1)) || is_twin(number.checked_add(1));
            let fate = match has_twin && self.is_unnamed(dir, point, archive, disk)? {
                true => Fate::Unnamed,
                false => fate(self.known, (point, archive), disk, &archives),
            };
            match fate {
                Fate::Belongs => {}
                // The list of the manifests lacks one.
                Fate::Leftover if self.has_manifest(point)? => {}
                Fate::Leftover | Fate::Unnamed => {
                    let name = dir.join(archive);
                    self.lock.prove()?;
                    let leftover = self.leftover(&name);
                    self.repository.storage().remove(&name)?;
                    self.cleaned.removed.push(leftover);
                }
                Fate::Unexplained if self.is_listed(disk, archive) => {}
                // Who was about to add to the guest says what is wrong with the list.
                Fate::Unexplained if self.has_manifest(point)? => {}
                Fate::Unexplained => {
                    let leftover = self.leftover(&dir.join(archive));
                    self.cleaned.kept.push(leftover);
                }
            }
        }
        Ok(())
    }

    /// Whether there is a manifest of a point, whatever a list says.
    fn has_manifest(&self, point: PointId) -> Result<bool> {
        let points_dir = self.repository.points_dir(self.lock.domain());
        self.repository.is_really_there(&points_dir.join(&Manifest::file_name(point)))
    }

    /// Whether the manifest of a point is sound and names another archive of a disk, which is there, and
    /// has never named this one.
    fn is_unnamed(&self, dir: &Name, point: PointId, name: &str, disk: &DiskName) -> Result<bool> {
        let Some(Ok(manifest)) = self.known.manifest(point) else { return Ok(false) };
        let Some(record) = manifest.disk(disk) else { return Ok(false) };
        let is_other = record.archive != name && !manifest.has_replaced(disk, name);
        let (repository, domain) = (self.repository, self.lock.domain());
        // A manifest that has been replaced meanwhile may name it.
        Ok(is_other
            && repository.is_shown(domain, point)?
            && repository.is_really_there(&dir.join(&record.archive))?)
    }

    /// Whether an archive stands in a list of what is to be removed.
    fn is_listed(&self, disk: &DiskName, name: &str) -> bool {
        self.known.listed(disk).contains(name)
    }

    fn leftover(&self, name: &Name) -> Leftover {
        let entry = self.repository.storage().entry(name).ok().flatten();
        let bytes = entry.and_then(|entry| entry.len).unwrap_or(0);
        Leftover { path: self.repository.describe(name), bytes }
    }

    /// Removes a staged file and remembers it.
    fn discard(&mut self, name: &Name) -> Result<()> {
        self.repository.storage().discard(name)?;
        let path = self.repository.describe(name);
        self.cleaned.removed.push(Leftover { path, bytes: 0 });
        Ok(())
    }
}

/// What becomes of an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A manifest names it.
    Belongs,
    /// Its backup was killed just before the manifest got its name.
    Leftover,
    /// Its merge was killed before the manifest named it.
    Unnamed,
    /// Nothing says why it is there.
    Unexplained,
}

/// Decides the fate of an archive of `disk`, one of all its `archives`.
///
/// Whether a manifest is sound and names the archive is the question of a verification; here
/// manifests are read only where an archive would be removed, so that a backup need not read
/// those of all its points every night.
fn fate(
    known: &DomainReading,
    (point, name): (PointId, &str),
    disk: &DiskName,
    archives: &[(PointId, &str)],
) -> Fate {
    if !known.announces(point) {
        let is_named = known.points().binary_search(&point).is_ok();
        return if is_named { Fate::Belongs } else { Fate::Unexplained };
    }
    let names_it = |manifest: &Manifest, name: &str| {
        manifest.disk(disk).is_some_and(|record| record.archive == name)
    };
    match known.manifest(point) {
        Some(Ok(manifest)) if names_it(manifest, name) => return Fate::Belongs,
        Some(_) => return Fate::Unexplained,
        None => {}
    }
    let mut records = known.good().filter_map(|manifest| manifest.disk(disk));
    let is_needed = records.any(|record| record.parent_point() == Some(point));
    // Whatever came later may build on it, though its manifest did not come here yet.
    let mut later = archives.iter().filter(|(other, _)| *other > point);
    let is_known = later.all(|(other, name)| match known.manifest(*other) {
        Some(Ok(manifest)) => names_it(manifest, name) || manifest.has_replaced(disk, name),
        _ => false,
    });
    match is_known && !is_needed {
        true => Fate::Leftover,
        false => Fate::Unexplained,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::formats::archive::Kind;
    use crate::vault::repository::PointId;
    use crate::vault::repository::storage::Wait;
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
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let (cleaned, _) = repository.clean(&lock).unwrap();
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
        fs::remove_dir_all(repository.describe(&repository.points_dir(&id.domain))).unwrap();
        assert_eq!(strays(), [full, last]);
    }
}
