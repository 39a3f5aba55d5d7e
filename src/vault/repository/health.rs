//! What can be seen to be wrong with points without reading an archive: what is missing, and what has
//! another length. What is in the archives only a verification tells.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::names::DiskId;
use super::point::PointId;
use super::{Catalog, DamagedManifest, Point, PointList};
use crate::base::error::{Error, ErrorKind, Result};

/// What can be seen of a disk's points.
#[derive(Debug, Default)]
pub struct Health {
    /// The points all of whose archives are there, in their length.
    pub restorable: BTreeSet<PointId>,
    /// What is wrong, with the file that it is about; the oldest point first.
    pub problems: Vec<DamagedManifest>,
}

impl Catalog {
    /// What can be seen to be wrong with a disk's points without reading an archive. `list` are the
    /// disk's points.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn health(&self, disk: &DiskId, list: &PointList) -> Result<Health> {
        let mut health = Health::default();
        // Parents come before their children.
        for point in &list.points {
            let problem = self.check_archive(point).and_then(|()| self.check_parent(point, list));
            let is_parent_whole = match point.record.parent_point() {
                Some(parent) if is_listed(list, parent) => health.restorable.contains(&parent),
                _ => true,
            };
            match problem {
                Ok(()) if is_parent_whole => {
                    health.restorable.insert(point.id);
                }
                Ok(()) => {}
                Err(error) => {
                    let path = self.repository().describe(&point.archive);
                    health.note(point.id, path, error);
                }
            }
        }
        // Which archives have no manifest can't be told where the manifests, or they, are not known.
        let (strays, misshown) = match list.unreadable.is_empty() {
            true => self.strays_and_misshown(disk)?,
            false => Default::default(),
        };
        health.problems.extend(misshown);
        for (archive, point) in strays {
            let path = self.repository().describe(&archive);
            let text =
                "no manifest names this archive: the point's manifest is lost, or was not copied";
            let advice = "qdelta replay restores a disk from the archives of its chain alone";
            health.note(point, path, Error::new(ErrorKind::Damaged, text).advise(advice));
        }
        Ok(health)
    }

    /// Fails unless the archive of a point is there in its length, as far as its folder tells.
    fn check_archive(&self, point: &Point) -> Result<()> {
        let path = self.repository().describe(&point.archive);
        let path = path.display();
        let damaged = |text| Error::new(ErrorKind::Damaged, text);
        if !point.archive_present {
            return Err(damaged(format!("its archive {path} is missing")));
        }
        let unseen = || damaged(format!("its archive {path} can't be looked at"));
        let storage = self.repository().storage();
        let found = match storage.entry(&point.archive) {
            // The list that lacks it is wrong: see `Self::points`.
            Ok(None) => {
                let folder = self.repository().disk_dir(&point.disk);
                let found = storage.ask_for(&folder, &[point.archive.last()]);
                found.map(|found| found.into_iter().next().flatten())
            }
            found => found,
        };
        let entry = found.map_err(|error| unseen().because(error.chain()))?;
        let len = entry.and_then(|entry| entry.len).ok_or_else(unseen)?;
        let expected = point.record.bytes_written;
        if len != expected {
            return Err(damaged(format!("its archive {path} has {len} bytes, and had {expected}")));
        }
        Ok(())
    }

    /// Fails if the manifest of a point's parent is lost, and its archives do not make up for that.
    fn check_parent(&self, point: &Point, list: &PointList) -> Result<()> {
        match point.record.parent_point() {
            // Its archive may be there all the same, and say what comes before it.
            Some(parent) if !is_listed(list, parent) => self.chain_of(point).map(drop),
            _ => Ok(()),
        }
    }
}

impl Health {
    fn note(&mut self, point: PointId, path: PathBuf, error: Error) {
        self.problems.push(DamagedManifest { point, path, error });
    }
}

/// Whether the manifest of a point is among those that can be read.
fn is_listed(list: &PointList, point: PointId) -> bool {
    list.points.binary_search_by_key(&point, |listed| listed.id).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use crate::base::error::ErrorKind;
    use crate::formats::archive::Kind;
    use crate::vault::repository::tests::{back_up, disk, fresh, manifest_path};

    /// The list of points called a point sound whose archive had become a symbolic link that led
    /// nowhere, or to itself; a restore said "not found", and a backup did not begin anew.
    #[test]
    fn a_link_that_leads_nowhere_is_damage_and_no_missing_file() {
        for target in ["/nowhere/at/all", "itself"] {
            let (_dir, repository) = fresh();
            let id = disk("vm/vda");
            let full = back_up(&repository, &id, Kind::Full).unwrap();
            let archive = repository.catalog().points(&id).unwrap().points[0].archive.clone();
            let archive = repository.describe(&archive);
            let manifest = manifest_path(&repository, &id, full);
            let replace = |path: &std::path::Path| {
                fs::remove_file(path).unwrap();
                let itself = path.file_name().unwrap().to_str().unwrap();
                symlink(target.replace("itself", itself), path).unwrap();
            };
            replace(&archive);
            let list = repository.catalog().points(&id).unwrap();
            let health = repository.catalog().health(&id, &list).unwrap();
            assert!(health.restorable.is_empty(), "{target}");
            assert_eq!(health.problems.len(), 1, "{target}");
            replace(&manifest);
            let list = repository.catalog().points(&id).unwrap();
            let kinds: Vec<_> = list.damaged.iter().map(|it| it.error.kind()).collect();
            assert_eq!(kinds, [ErrorKind::Damaged], "{target}");
        }
    }

    /// Where the folder of a disk could not be listed, its archives were called missing.
    #[test]
    fn a_folder_that_cant_be_listed_does_not_make_its_archives_missing() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        back_up(&repository, &id, Kind::Full).unwrap();
        let dir = repository.describe(&repository.disk_dir(&id));
        fs::remove_dir_all(&dir).unwrap();
        symlink("vda", &dir).unwrap();
        let list = repository.catalog().points(&id).unwrap();
        assert_eq!(list.unreadable.len(), 1);
        let health = repository.catalog().health(&id, &list).unwrap();
        assert!(health.restorable.is_empty());
        let said = health.problems[0].error.chain();
        assert!(said.contains("can't be looked at") && !said.contains("missing"), "{said}");
    }
}
