//! What can be seen to be wrong with points without reading an archive: what is missing, and what has
//! another length. What is in the archives only a verification tells.

use std::collections::BTreeSet;

use super::names::DiskId;
use super::point::PointId;
use super::{DamagedManifest, Point, PointList, Repository, chain, leftovers};
use crate::error::{Error, ErrorKind, Result};

/// What can be seen of a disk's points.
#[derive(Debug, Default)]
pub struct Health {
    /// The points all of whose archives are there, in their length.
    pub restorable: BTreeSet<PointId>,
    /// What is wrong, with the file that it is about; the oldest point first.
    pub problems: Vec<DamagedManifest>,
}

/// Looks at the points of a disk.
pub(super) fn of(repository: &Repository, disk: &DiskId, list: &PointList) -> Result<Health> {
    let mut health = Health::default();
    let mut note = |point, path: &std::path::Path, error| {
        health.problems.push(DamagedManifest { point, path: path.to_owned(), error });
    };
    // Parents come before their children.
    for point in &list.points {
        let mut is_whole = true;
        if let Some(problem) = archive_problem(point) {
            note(point.id, &point.archive_path, Error::new(ErrorKind::Damaged, problem));
            is_whole = false;
        }
        if let Some(parent) = point.record.parent {
            let is_listed = list.points.iter().any(|it| it.id == parent);
            is_whole &= match is_listed {
                true => health.restorable.contains(&parent),
                // Its archive may be there all the same, and say what comes before it.
                false => match chain::of(repository, point) {
                    Ok(_) => true,
                    Err(error) => {
                        if is_whole {
                            note(point.id, &point.archive_path, error);
                        }
                        false
                    }
                },
            };
        }
        if is_whole {
            health.restorable.insert(point.id);
        }
    }
    // Which archives have no manifest can't be told where the manifests, or they, are not known.
    let strays = match list.unreadable.is_empty() {
        true => leftovers::strays(repository, disk)?,
        false => Vec::new(),
    };
    for (path, point) in strays {
        let text =
            "no manifest names this archive: the point's manifest is lost, or was not copied";
        note(point, &path, Error::new(ErrorKind::Damaged, text));
    }
    Ok(health)
}

/// What is wrong with the archive of a point, as far as its folder tells.
fn archive_problem(point: &Point) -> Option<String> {
    let path = point.archive_path.display();
    if !point.archive_present {
        return Some(format!("its archive {path} is missing"));
    }
    let (len, expected) = (point.archive_path.metadata().ok()?.len(), point.record.bytes_written);
    (len != expected).then(|| format!("its archive {path} has {len} bytes, and had {expected}"))
}
