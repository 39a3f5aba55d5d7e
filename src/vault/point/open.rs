//! Opening a point: its archives, proved to be the chain that its manifest names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::reader::PointReader;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{OpenFiles, ReadAt, not_opened};
use crate::vault::archive;
use crate::vault::chain::Chain;
use crate::vault::repository::storage::{Name, Storage};
use crate::vault::repository::{Catalog, Point};

/// Opens a point for reading anywhere in its disk.
///
/// # Errors
/// [`ErrorKind::Damaged`], [`ErrorKind::NotFound`]: an archive of its chain is damaged or missing.
/// Others: an archive can't be read.
pub fn open(catalog: &Catalog, point: &Point) -> Result<PointReader> {
    PointReader::new(open_chain(catalog, point)?)
}

/// Opens the archives of a point's chain.
pub(crate) fn open_chain(catalog: &Catalog, point: &Point) -> Result<Chain> {
    let storage = &**catalog.repository().storage();
    open_archives(storage, &catalog.chain_of(point)?, point, &Shared::default())
}

/// Archives that are open, by name: points of one chain have the most of them in common.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<HashMap<Name, Weak<archive::Reader>>>);

impl Shared {
    fn find(&self, name: &Name) -> Option<Arc<archive::Reader>> {
        self.locked().get(name).and_then(Weak::upgrade)
    }

    /// Lets others find these archives from now on, in the place of any that had their names.
    fn add(&self, names: &[Name], archives: &[Arc<archive::Reader>]) {
        let mut known = self.locked();
        known.retain(|_, archive| archive.strong_count() > 0);
        let found = names.iter().cloned().zip(archives.iter().map(Arc::downgrade));
        known.extend(found);
    }

    /// Forgets all: what lies there now may be another folder.
    pub fn clear(&self) {
        self.locked().clear();
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Name, Weak<archive::Reader>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the archives of a point's chain, which are these, the full first, unless they are open already.
pub(super) fn open_archives(
    storage: &dyn Storage,
    names: &[Name],
    point: &Point,
    shared: &Shared,
) -> Result<Chain> {
    let known: Vec<_> = names.iter().map(|name| shared.find(name)).collect();
    let missing = names.iter().zip(&known).filter(|(_, known)| known.is_none());
    let missing: Vec<Name> = missing.map(|(name, _)| name.clone()).collect();
    storage.expect(&missing);
    let mut archives = Vec::new();
    for (name, known) in names.iter().zip(known) {
        archives.push(match known {
            Some(archive) => archive,
            None => Arc::new(archive::Reader::open(storage.open(name)?)?),
        });
    }
    shared.add(names, &archives);
    let chain = Chain::new(archives)?;
    if chain.root() != point.record.root {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("the archives of point {} are not those that its manifest names", point.id),
        )
        .advise("qdelta verify tells which files are damaged"));
    }
    Ok(chain)
}

/// Reads every table of a chain's archives once and checks it: damage is found before anything is
/// written, and named by file and section.
pub(crate) fn check_indexes(chain: Chain) -> Result<Chain> {
    for archive in chain.archives().iter().filter(|archive| !archive.is_salvaged()) {
        archive.check_index()?;
    }
    Ok(chain)
}

/// Opens the file of an archive that may lie anywhere, sound or not.
pub(crate) fn archive_file(files: &Arc<OpenFiles>, path: &Path) -> Result<Arc<dyn ReadAt>> {
    let file = files.open(path);
    Ok(Arc::new(file.map_err(|error| not_opened(path, error, ErrorKind::Damaged))?))
}
