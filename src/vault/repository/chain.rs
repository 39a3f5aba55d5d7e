//! Which archives it takes to restore a point.

use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::names::DiskId;
use super::point::PointId;
use super::{Point, PointList, Repository, durable, folder_names_if_any, is_there, manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{Metadata, header};

/// The archives of the chain up to `point`, the full first.
pub(super) fn of(repository: &Repository, point: &Point) -> Result<Vec<PathBuf>> {
    let list = repository.points(&point.disk)?;
    let mut chain = vec![present(&point.archive_path, point.id)?];
    let mut child = point.id;
    let mut next = point.record.parent;
    while let Some(id) = next {
        // Nothing can be its own ancestor, so this ends.
        if id >= child {
            return Err(broken(format!("point {child} claims to build on the later {id}")));
        }
        let path;
        if let Some(parent) = list.points.iter().find(|candidate| candidate.id == id) {
            path = parent.archive_path.clone();
            next = parent.record.parent;
        } else {
            let lost = list.damaged.iter().find(|manifest| manifest.point == id);
            let reason = match lost {
                Some(manifest) => manifest.error.chain(),
                None => format!("the manifest of point {id} is missing"),
            };
            (path, next) = without_manifest(repository, &point.disk, id)
                .map_err(|error| error.within(reason))
                .map_err(|error| error.within(format!("point {child} builds on point {id}")))?;
        }
        chain.push(present(&path, id)?);
        child = id;
    }
    chain.reverse();
    Ok(chain)
}

/// What is left of a point's chain.
#[derive(Debug, Default)]
pub struct Remains {
    /// The archives that are there, sound or not, the oldest first.
    pub archives: Vec<PathBuf>,
    /// What is missing between them.
    pub gaps: Vec<Gap>,
}

/// A place in a chain where something is missing.
#[derive(Debug)]
pub struct Gap {
    /// The archive; or the manifest, where nothing tells what the archive is called.
    pub path: PathBuf,
    /// What is the matter.
    pub error: Error,
}

/// What is left of the chain up to `point`, a point of `list`.
pub(super) fn remains(repository: &Repository, list: &PointList, point: &Point) -> Remains {
    let mut remains = Remains::default();
    let mut step = Some((point.id, point.archive_path.clone(), point.record.parent));
    while let Some((id, path, parent)) = step.take() {
        match present(&path, id) {
            Ok(path) => remains.archives.push(path),
            Err(error) => remains.gaps.push(Gap { path: path.clone(), error }),
        }
        let Some(parent) = parent else { break };
        // Nothing can be its own ancestor, so this ends.
        if parent >= id {
            let error = broken(format!("point {id} claims to build on the later {parent}"));
            remains.gaps.push(Gap { path, error });
            break;
        }
        let known = list.points.binary_search_by_key(&parent, |candidate| candidate.id);
        step = match known.ok().and_then(|index| list.points.get(index)) {
            Some(known) => Some((parent, known.archive_path.clone(), known.record.parent)),
            None => match without_manifest(repository, &point.disk, parent) {
                Ok((path, next)) => Some((parent, path, next)),
                Err(error) => {
                    let folder = repository.points_dir(&point.disk.domain);
                    let path = folder.join(Manifest::file_name(parent));
                    let error = error.within(format!("point {id} builds on point {parent}"));
                    remains.gaps.push(Gap { path, error });
                    None
                }
            },
        };
    }
    remains.archives.reverse();
    remains
}

/// The archive of a point that has no manifest, and the point that it builds on.
fn without_manifest(
    repository: &Repository,
    disk: &DiskId,
    id: PointId,
) -> Result<(PathBuf, Option<PointId>)> {
    let dir = repository.disk_dir(disk);
    let names = folder_names_if_any(&dir)?;
    let found = names
        .iter()
        .find(|name| manifest::parse_archive_name(name).is_some_and(|(point, _)| point == id));
    let Some(name) = found else {
        return Err(broken(format!("{} has no archive of point {id} either", dir.display())));
    };
    let path = dir.join(name);
    let metadata = read_metadata(&path)?;
    if metadata.point != id.to_string() {
        return Err(broken(format!("{} says that it is {}", path.display(), metadata.point)));
    }
    let parent = metadata.parent.map(|parent| parent.point.parse()).transpose();
    Ok((path, parent.map_err(|error: Error| broken(error.chain()))?))
}

/// What the header of an archive says.
fn read_metadata(path: &Path) -> Result<Metadata> {
    let bytes = durable::read_start(path, header::HEADER_LEN_MAX as u64)?;
    let (metadata, _) =
        header::decode(&bytes).map_err(|error| Error::format(ErrorKind::Damaged, path, error))?;
    Ok(metadata)
}

/// `path`, if something is there.
fn present(path: &Path, point: PointId) -> Result<PathBuf> {
    if is_there(path)? {
        return Ok(path.to_owned());
    }
    Err(broken(format!("the archive {} of point {point} is missing", path.display())))
}

/// A chain that can't be followed.
fn broken(what: String) -> Error {
    Error::new(ErrorKind::Damaged, what).advise("points of other chains can still be restored")
}
