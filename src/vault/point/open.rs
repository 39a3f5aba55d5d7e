//! Opening a point: its archives, proved to be the chain that its manifest names.

use std::path::Path;
use std::sync::Arc;

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
    open_archives(&**catalog.repository().storage(), &catalog.chain_of(point)?, point)
}

/// Opens the archives of a point's chain, which are these, the full first.
pub(super) fn open_archives(storage: &dyn Storage, names: &[Name], point: &Point) -> Result<Chain> {
    storage.expect(names);
    let mut archives = Vec::new();
    for name in names {
        archives.push(Arc::new(archive::Reader::open(storage.open(name)?)?));
    }
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
