//! What a backup that was killed leaves behind, and how it is told from what must stay.
//!
//! While the domain is locked nobody writes to it, so every file under a partial name is a
//! leftover. An archive under its final name is one only if all of this says so: the partial
//! manifest of its point is still there, no manifest names it, it is newer than every manifest,
//! and no point builds on it. An archive without a manifest and without that explanation stays
//! and is reported: perhaps its manifest was lost.

use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest};
use super::names::{DiskId, DiskName};
use super::pending::whole_name;
use super::point::PointId;
use super::{DomainLock, Repository, durable, folder_names, folder_names_if_any, is_folder};
use crate::error::Result;

/// What was found in a domain that belongs to no point.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Leftovers of backups that did not end, and are gone now.
    pub removed: Vec<Leftover>,
    /// Archives that no manifest names and that no interrupted backup explains.
    pub kept: Vec<Leftover>,
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
    manifests: Vec<Manifest>,
    /// The newest point that has a manifest, damaged or not.
    newest: Option<PointId>,
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
        manifests: repository.manifests(domain)?.good,
        newest: repository.manifest_names(domain)?.into_iter().max(),
        interrupted: partial_manifests.iter().map(|&(_, point)| point).collect(),
    };

    let mut cleaned = Cleaned::default();
    for name in folder_names(lock.dir())? {
        let Ok(disk) = name.parse::<DiskName>() else { continue };
        let dir = repository.disk_dir(&DiskId { domain: domain.clone(), disk: disk.clone() });
        if is_folder(&dir)? {
            clean_disk(&dir, &disk, &known, &mut cleaned)?;
        }
    }
    // Last, and after the archives are durably gone: they explained them.
    for (path, _) in partial_manifests {
        remove(&mut cleaned, path)?;
    }
    Ok(cleaned)
}

/// Removes what can only be a leftover from the folder of one disk.
fn clean_disk(dir: &Path, disk: &DiskName, known: &Known, cleaned: &mut Cleaned) -> Result<()> {
    let before = cleaned.removed.len();
    for name in folder_names(dir)? {
        let path = dir.join(&name);
        if whole_name(&name).is_some_and(|whole| manifest::parse_archive_name(whole).is_some()) {
            remove(cleaned, path)?;
        } else if let Some((point, _)) = manifest::parse_archive_name(&name) {
            match known.fate(point, &name, disk) {
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
    fn fate(&self, point: PointId, name: &str, disk: &DiskName) -> Fate {
        let mut records = self.manifests.iter().filter_map(|manifest| manifest.disk(disk));
        let named = |manifest: &Manifest| {
            manifest.point == point
                && manifest.disk(disk).is_some_and(|record| record.archive == name)
        };
        if self.manifests.iter().any(named) {
            return Fate::Belongs;
        }
        let newest = self.newest.is_none_or(|newest| newest < point);
        let needed = records.any(|record| record.parent == Some(point));
        match self.interrupted.contains(&point) && newest && !needed {
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
