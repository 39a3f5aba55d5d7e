//! The flow that rebuilds the disk of any point in time.
//!
//! ```text
//! chain (newest wins) → frames → workers (decode, prove, write) → root → final name
//! ```

mod rebuild;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use roaring::RoaringBitmap;
use serde::Serialize;

use crate::backup::{open_archive, open_chain};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::output::{self, FileId, Format, ImageWriter, Plan, Stream};
use crate::pipeline::Resources;
use crate::progress::{Cancel, Progress};
use crate::repository::{DiskSpec, Repository, Selector};

/// Where a restored disk goes.
pub enum Destination {
    /// A new file, an existing block device, or a named pipe.
    Path(PathBuf),
    /// Whoever takes raw bytes one after the other.
    Stream(Box<dyn Write + Send>),
}

/// Where a restore writes, and how.
pub struct Request {
    /// Where to.
    pub destination: Destination,
    /// The format of the output.
    pub format: Format,
    /// Replace an existing file, or a block device's content.
    pub force: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The recovery point.
    pub point: String,
    /// Where it is now; `-` is standard output.
    #[serde(serialize_with = "crate::json::serialize")]
    pub output: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// How many archives the chain has.
    pub archives: usize,
    /// Bytes read from them.
    pub bytes_read: u64,
    /// Bytes of the disk that were written; the rest is zero and takes no space.
    pub bytes_written: u64,
    /// Digest of what was written; it is the one that the backup computed.
    pub root: String,
    /// How the archives were read: `uring` or `threads`.
    pub io: &'static str,
    /// How long it took.
    pub seconds: f64,
}

/// Restores a point out of a repository.
///
/// # Errors
/// Whatever fails, nothing gets the output's name and what had it keeps it.
pub fn run(
    repository: &Repository,
    disk: &DiskSpec,
    selector: &Selector,
    request: Request,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let disk = repository.find_disk(disk)?;
    let point = repository.resolve(&disk, selector)?;
    let chain = open_chain(repository, &point)?;
    rebuild(&chain, request, progress, cancel)
}

/// Restores the end of a chain out of bare archive files, the full first.
///
/// # Errors
/// As [`run`].
pub fn replay(
    archives: &[PathBuf],
    request: Request,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let archives =
        archives.iter().map(|path| open_archive(path).map(Arc::new)).collect::<Result<Vec<_>>>()?;
    rebuild(&Chain::new(archives)?, request, progress, cancel)
}

fn rebuild(
    chain: &Chain,
    request: Request,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let started = Instant::now();
    let latest = chain
        .archives()
        .last()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "a chain needs at least one archive"))?;
    let plan = Plan::new(chain.geometry(), nonzero_blocks(chain))?;
    let (name, output): (PathBuf, Box<dyn ImageWriter>) = match request.destination {
        Destination::Path(path) => {
            let options = output::Options {
                format: request.format,
                force: request.force,
                inputs: input_ids(chain)?,
            };
            (path.clone(), output::create(&path, plan, &options)?)
        }
        Destination::Stream(sink) => {
            (PathBuf::from("-"), Box::new(Stream::new(sink, "standard output", plan)))
        }
    };
    let rebuilt = rebuild::run(chain, &*output, &request.resources, progress, cancel)?;
    if rebuilt.root != chain.root() {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{}: what was rebuilt has the root {}, not {}",
                latest.path().display(),
                rebuilt.root,
                chain.root()
            ),
        )
        .advise("qdelta verify tells which files are damaged; restore --salvage gives the rest"));
    }
    output.finish(cancel, progress)?;
    let metadata = latest.metadata();
    Ok(Report {
        disk: format!("{}/{}", metadata.domain, metadata.disk),
        point: metadata.point.clone(),
        output: name,
        format: request.format.as_str(),
        virtual_size: chain.geometry().virtual_size(),
        archives: chain.archives().len(),
        bytes_read: rebuilt.bytes_read,
        bytes_written: rebuilt.bytes_written,
        root: rebuilt.root.to_string(),
        io: rebuilt.backend.as_str(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The archives' files: none of them can be the output.
fn input_ids(chain: &Chain) -> Result<Vec<FileId>> {
    let mut ids = Vec::new();
    for archive in chain.archives() {
        if let Some(fd) = archive.store().fd() {
            let id = FileId::of(fd);
            ids.push(id.map_err(|error| Error::io("look at", archive.path(), error))?);
        }
    }
    Ok(ids)
}

/// The blocks that some archive of the chain leaves stored at its end.
fn nonzero_blocks(chain: &Chain) -> RoaringBitmap {
    let mut blocks = RoaringBitmap::new();
    for archive in chain.archives() {
        let count = archive.geometry().block_count();
        if let Ok(count) = u32::try_from(count) {
            blocks.remove_range(count..);
        }
        blocks -= archive.zero();
        blocks |= archive.stored();
    }
    blocks
}
