//! Which archives it takes to restore a point.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::manifest::{DiskRecord, Manifest, ParentRecord};
use super::names::DiskId;
use super::point::PointId;
use super::{Catalog, Name, Point, manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::age::base64;
use crate::formats::archive::{Digest, Kind, Metadata, header};
use crate::vault::archive::Reader;

impl Catalog {
    /// The archives that it takes to restore a point, its chain's full first and its own last.
    ///
    /// Where the manifest of an earlier point is damaged or gone, its archive's header says which
    /// archive comes before it: a lost manifest costs its own point and no other.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if an archive is missing, naming the point that needs it.
    pub fn chain_of(&self, point: &Point) -> Result<Vec<Name>> {
        let remains = self.remains_of(point);
        // The gap that is nearest to the point is the first that a walk from it meets.
        match remains.gaps.into_iter().next() {
            Some(gap) => Err(gap.error),
            None => Ok(remains.archives),
        }
    }

    /// What is left of the archives that [`Self::chain_of`] names.
    pub fn remains_of(&self, point: &Point) -> Remains {
        let mut remains = Remains::default();
        let mut next = Some(Link::of(point));
        while let Some(link) = next {
            let step = self.step(&point.disk, &link);
            match step.archive {
                Ok(()) => remains.archives.push(link.archive),
                Err(gap) => remains.gaps.push(gap),
            }
            next = match step.parent {
                Ok(parent) => parent,
                Err(gap) => {
                    remains.gaps.push(gap);
                    None
                }
            };
        }
        remains.archives.reverse();
        remains
    }

    /// Opens an archive of a disk that may not be as it was written.
    ///
    /// # Errors
    /// Nothing of it can be read.
    pub fn open_damaged(&self, disk: &DiskId, archive: &Name) -> Result<Arc<dyn ReadAt>> {
        let domain = self.domain(&disk.domain);
        let opening = manifest::parse_archive_name(archive.last()).and_then(|(point, _)| {
            let record = domain.manifest(point)?.as_ref().ok()?.disk(&disk.disk)?;
            let is_it = record.archive == archive.last();
            base64::decode(record.opening.as_ref().filter(|_| is_it)?).ok()
        });
        let storage = self.repository().storage();
        // What a copy of its beginning brings back as a whole is damaged all the same.
        if let Err(error) = storage.open(archive) {
            self.note_damage(&error.of_file(&self.repository().describe(archive)));
        }
        storage.open_damaged(archive, opening.as_deref())
    }

    /// The archives that points of a disk need, each once and after the one that it builds on.
    pub(crate) fn needed_by(&self, disk: &DiskId, points: &[Point]) -> Vec<Needed> {
        let mut needed: Vec<Needed> = Vec::new();
        let mut known: BTreeMap<PointId, usize> = BTreeMap::new();
        for point in points {
            let (mut walked, mut next) = (Vec::new(), Some(Link::of(point)));
            let mut parent = None;
            while let Some(link) = next {
                if let Some(&number) = known.get(&link.point) {
                    parent = Some(number);
                    break;
                }
                let step = self.step(disk, &link);
                let (is_there, mut gaps) = (step.archive.is_ok(), Vec::new());
                gaps.extend(step.archive.err());
                next = step.parent.unwrap_or_else(|gap| {
                    gaps.push(gap);
                    None
                });
                walked.push(Needed { link, parent: None, is_wanted: false, is_there, gaps });
            }
            for archive in walked.into_iter().rev() {
                known.insert(archive.link.point, needed.len());
                let below = parent.replace(needed.len());
                needed.push(Needed { parent: below, ..archive });
            }
            if let Some(own) = known.get(&point.id).and_then(|own| needed.get_mut(*own)) {
                own.is_wanted = true;
            }
        }
        needed
    }

    /// A point of a disk, if its manifest can be read.
    pub(crate) fn point(&self, disk: &DiskId, point: PointId) -> Option<Point> {
        let domain = self.domain(&disk.domain);
        domain.point(domain.manifest(point)?.as_ref().ok()?, disk)
    }

    /// One step along a chain: whether the archive of a link is there, and what it builds on.
    pub(crate) fn step(&self, disk: &DiskId, link: &Link) -> Step {
        let archive = self.present(disk, link);
        let archive =
            archive.map_err(|error| Gap { path: self.repository().describe(&link.archive), error });
        let parent = link.parent.as_ref().map(|parent| self.parent(disk, link, parent));
        let parent = parent.transpose();
        Step { archive, parent }
    }

    /// Opens the archive that a record names for a disk's point.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: it is missing, naming the point; it is another one. Others: it can't be read.
    pub(crate) fn open_archive(
        &self,
        disk: &DiskId,
        point: PointId,
        record: &DiskRecord,
    ) -> Result<Reader> {
        let repository = self.repository();
        let archive = repository.archive(disk, &record.archive);
        let link = Link { point, root: record.root, archive, parent: record.parent.clone() };
        self.present(disk, &link)?;
        let reader = Reader::open(repository.storage().open(&link.archive)?)?;
        if reader.root() == record.root && reader.metadata().archive_id == record.archive_id {
            return Ok(reader);
        }
        let path = reader.path().display();
        let text = format!("{path} is not the archive that the manifest of point {point} names");
        Err(Error::new(ErrorKind::Damaged, text)
            .advise("`qdelta verify` tells which files are damaged"))
    }

    /// Fails unless there is the archive of a link.
    fn present(&self, disk: &DiskId, link: &Link) -> Result<()> {
        let repository = self.repository();
        // Where each look is a way to a store, one list answers for the whole chain.
        if repository.storage().looks_max() == 0
            && let Ok(folder) = &*self.domain(&disk.domain).folder(&disk.disk)
            && folder.names.contains(link.archive.last())
        {
            return Ok(());
        }
        if repository.is_really_there(&link.archive)? {
            return Ok(());
        }
        let (path, point) = (repository.describe(&link.archive), link.point);
        let error = broken(format!("the archive {} of point {point} is missing", path.display()));
        let own = ParentRecord {
            domain: disk.domain.clone(),
            disk: disk.disk.clone(),
            point,
            root: link.root,
        };
        let folder = self.domain(&disk.domain).folder(&disk.disk);
        let beside = folder
            .as_ref()
            .as_ref()
            .map_or_else(|_| Vec::new(), |folder| archives_of(&folder.names, point));
        let mut beside = beside.into_iter().map(|(_, name)| repository.disk_dir(disk).join(name));
        // Copying a repository while points are merged can mix an old manifest with new archives.
        Err(match beside.find(|archive| has_root(self, archive, &own)) {
            Some(equal) => error.advise(format!(
                "{} holds the same point: copy the repository again, or restore from archives by \
                 name: qdelta replay",
                repository.describe(&equal).display()
            )),
            None => error,
        })
    }

    fn parent(&self, disk: &DiskId, link: &Link, parent: &ParentRecord) -> Result<Link, Gap> {
        if !parent.is_of(disk) {
            let (point, owner) = (link.point, (&parent.domain, &parent.disk));
            let text = format!("point {point} builds on a point of {}/{}", owner.0, owner.1);
            let error = broken(text).because("this qdelta reads chains of one disk");
            let error = error.advise("restore it with the qdelta that made it");
            return Err(Gap { path: self.repository().describe(&link.archive), error });
        }
        let (named, parent) = (parent, parent.point);
        // Nothing can be its own ancestor, so every walk along parents ends.
        if parent >= link.point {
            let text = format!("point {} claims to build on the later {parent}", link.point);
            let path = self.repository().describe(&link.archive);
            return Err(Gap { path, error: broken(text) });
        }
        let repository = self.repository();
        let domain = self.domain(&disk.domain);
        let manifest = domain.manifest(parent);
        let known = manifest.and_then(|manifest| manifest.as_ref().ok()?.disk(&disk.disk));
        if let Some(record) = known {
            let archive = repository.disk_dir(disk).join(&record.archive);
            return Ok(Link {
                point: parent,
                root: named.root,
                archive,
                parent: record.parent.clone(),
            });
        }
        without_manifest(self, disk, named).map_err(|error| {
            let reason = match manifest {
                Some(Err(error)) => error.chain(),
                _ => format!("the manifest of point {parent} is missing"),
            };
            let name = repository.points_dir(&disk.domain).join(&Manifest::file_name(parent));
            let path = repository.describe(&name);
            let text = format!("point {} builds on point {parent}", link.point);
            Gap { path, error: error.within(reason).within(text) }
        })
    }
}

/// One archive of a chain.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// The point that it belongs to.
    pub point: PointId,
    /// The root of that point.
    pub root: Digest,
    /// What it is called.
    pub archive: Name,
    /// The point that it builds on.
    pub parent: Option<ParentRecord>,
}

impl Link {
    /// The last archive of the chain of a point.
    pub fn of(point: &Point) -> Self {
        let archive = point.archive.clone();
        let parent = point.record.parent.clone();
        Self { point: point.id, root: point.record.root, archive, parent }
    }
}

/// An archive that points need.
#[derive(Debug)]
pub(crate) struct Needed {
    /// Which one it is.
    pub link: Link,
    /// The number of the one that it builds on; none if that is not known, or it is a full.
    pub parent: Option<usize>,
    /// Whether its own point was asked for.
    pub is_wanted: bool,
    /// Whether the file is there.
    pub is_there: bool,
    /// What is missing: the file, or what it builds on.
    pub gaps: Vec<Gap>,
}

/// One step along a chain.
pub(crate) struct Step {
    /// What is the matter with the archive, if it is not there.
    pub archive: Result<(), Gap>,
    /// The archive that it builds on; none for a full.
    pub parent: Result<Option<Link>, Gap>,
}

/// What is left of a point's chain.
#[derive(Debug, Default)]
pub struct Remains {
    /// The archives that are there, sound or not, the oldest first.
    pub archives: Vec<Name>,
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

/// The archive of a point that has no manifest, and the point that it builds on.
///
/// Several archives of a point can lie side by side, and a torn or foreign one hides none that is
/// sound: the one that has the root that the child was made against is the parent.
fn without_manifest(catalog: &Catalog, disk: &DiskId, parent: &ParentRecord) -> Result<Link> {
    let (repository, id) = (catalog.repository(), parent.point);
    let dir = repository.disk_dir(disk);
    let folder = catalog.domain(&disk.domain).folder(&disk.disk);
    let folder = folder.as_ref().as_ref().map_err(Error::clone)?;
    let mut found: Vec<(bool, Name)> = archives_of(&folder.names, id)
        .into_iter()
        .map(|(kind, name)| (kind != Kind::Full, dir.join(name)))
        .collect();
    // A full needs no other.
    found.sort();
    // Where there is no choice, the header alone is read.
    if found.len() > 1 {
        found.sort_by_cached_key(|(_, archive)| !has_root(catalog, archive, parent));
    }
    let mut links = found.into_iter().map(|(_, archive)| link_of(catalog, archive, parent));
    let Some(first) = links.next() else {
        let dir = repository.describe(&dir);
        return Err(broken(format!("{} has no archive of point {id} either", dir.display())));
    };
    first.or_else(|error| links.find_map(Result::ok).ok_or(error))
}

/// The names of a folder that are called as archives of a point.
fn archives_of(names: &BTreeSet<String>, id: PointId) -> Vec<(Kind, &str)> {
    let archives =
        names.iter().filter_map(|name| Some((manifest::parse_archive_name(name)?, name.as_str())));
    archives.filter(|((point, _), _)| *point == id).map(|((_, kind), name)| (kind, name)).collect()
}

/// Whether an archive is whole, and of the point that a child names, with that root.
fn has_root(catalog: &Catalog, archive: &Name, parent: &ParentRecord) -> bool {
    let reader = catalog.repository().storage().open(archive).and_then(Reader::open);
    reader.is_ok_and(|reader| {
        let metadata = reader.metadata();
        metadata.domain == parent.domain.as_str()
            && metadata.disk == parent.disk.as_str()
            && metadata.point == parent.point.to_string()
            && reader.root() == parent.root
    })
}

/// What the header of an archive that is called after a point says of its place in a chain.
fn link_of(catalog: &Catalog, archive: Name, named: &ParentRecord) -> Result<Link> {
    let id = named.point;
    let metadata = read_metadata(catalog, &archive)?;
    if metadata.point != id.to_string() {
        let path = catalog.repository().describe(&archive);
        return Err(broken(format!("{} says that it is {}", path.display(), metadata.point)));
    }
    let parent = metadata.parent.as_ref().map(ParentRecord::try_from).transpose();
    let parent = parent.map_err(|error: Error| broken(error.chain()))?;
    Ok(Link { point: id, root: named.root, archive, parent })
}

/// What the header of an archive says.
fn read_metadata(catalog: &Catalog, archive: &Name) -> Result<Metadata> {
    let store = catalog.repository().storage().open(archive)?;
    let path = store.path();
    let failed = |error| Error::io("read", path, error);
    let len = store.len().map_err(failed)?.min(header::HEADER_LEN_MAX as u64);
    let mut bytes = vec![0; len as usize];
    store.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let (metadata, _) =
        header::decode(&bytes).map_err(|error| Error::format(ErrorKind::Damaged, path, error))?;
    Ok(metadata)
}

/// A chain that can't be followed.
fn broken(what: String) -> Error {
    Error::new(ErrorKind::Damaged, what).advise("points of other chains can still be restored")
}
