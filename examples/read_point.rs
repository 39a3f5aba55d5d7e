//! Reads some bytes of a point's disk without restoring it.
//!
//! ```sh
//! cargo run --example read_point -- /backup web01 latest 0 512 > first-sector
//! ```
//!
//! The point is `latest` or the beginning of a point's id; offset and length are in bytes.

use std::io::Write;
use std::path::Path;

use qdelta::{DiskSpec, Error, ErrorKind, Repository, Result, Selector, open_point};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: read_point REPOSITORY DISK POINT OFFSET LENGTH";
    let usage = || Error::new(ErrorKind::Usage, usage);
    let [folder, disk, point, offset, length] = arguments.as_slice() else { return Err(usage()) };
    let selector = match point.as_str() {
        "latest" => Selector::Latest,
        id => Selector::Id(id.to_owned()),
    };
    let number = |text: &str| text.parse::<u64>().map_err(|error| usage().because(error));
    let repository = Repository::open(Path::new(folder))?;
    let (offset, length) = (number(offset)?, number(length)? as usize);
    let bytes = read(&repository, &disk.parse()?, &selector, offset, length)?;
    let written = std::io::stdout().write_all(&bytes);
    written.map_err(|error| Error::io("write to", Path::new("standard output"), error))
}

/// The bytes of a point's disk from `offset` on, as many as there are up to `length`. Every block is
/// proved by its digest first.
pub fn read(
    repository: &Repository,
    disk: &DiskSpec,
    selector: &Selector,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let catalog = repository.catalog();
    let point = catalog.resolve(&catalog.find_disk(disk)?, selector)?;
    // The reader may be shared by any number of threads.
    let reader = open_point(&catalog, &point)?;
    let mut bytes = vec![0; length];
    let count = reader.read(&mut bytes, offset)?;
    bytes.truncate(count);
    Ok(bytes)
}
