//! The flow that rebuilds the disk of any point in time.
//!
//! ```text
//! chain (newest wins) → frames → workers (decode, prove, write) → root → final name
//! ```

mod guests;
mod in_place;
mod machine;
mod rebuild;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use qdelta_formats::archive::{ArchiveId, BlockIndex};
use roaring::RoaringBitmap;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::create::{self, ImageWriter, Plan, Stream};
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::Format;
use crate::disk::io::{OpenFiles, PooledFile, ReadAt};
use crate::disk::sys::FileId;
use crate::flows::report::{GuestRange, RestoreReport, SalvageReport};
use crate::guest::libvirt::Libvirt;
use crate::vault::archive::Reader;
use crate::vault::archive::salvage;
use crate::vault::chain::Chain;
use crate::vault::point::{archive_file, check_indexes, open_chain};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskSpec, Repository, Selector};

pub use in_place::{
    InPlaceOptions, InPlaceRequest, MachineInPlaceRequest, run_in_place, run_machine_in_place,
};
pub use machine::{InstantRequest, MachineRequest, run_machine};

/// Where a restored disk goes.
pub enum Destination {
    /// A new file, an existing block device, or a named pipe.
    Path(PathBuf),
    /// Whoever takes raw bytes one after the other.
    Stream(Box<dyn Write + Send>),
}

/// Where a restore writes, and how.
pub struct RestoreRequest {
    /// Where to.
    pub destination: Destination,
    /// The format of the output.
    pub format: Format,
    /// Replace an existing file, or a block device's content.
    pub force: bool,
    /// Where libvirt keeps its files: what is replaced must not be a disk that a guest needs.
    pub libvirt: Libvirt,
    /// Give what is left of damaged archives instead of failing.
    pub salvage: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// Restores a point out of a repository.
///
/// # Errors
/// Whatever fails, nothing gets the output's name and what had it keeps it. `Busy` if a guest needs
/// what is there.
pub fn run(
    repository: &Repository,
    disk: &DiskSpec,
    selector: &Selector,
    request: RestoreRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RestoreReport> {
    let catalog = repository.catalog();
    let disk = catalog.find_disk(disk)?;
    let recorder = Recorder::new(observer);
    let _hold = repository.hold(&disk.domain, Wait::by(&recorder, cancel))?;
    let point = catalog.resolve(&disk, selector)?;
    let passed_over = catalog.passed_over(&disk, selector, point.id)?;
    let observer: &dyn Observer = &OfDisk::new(&recorder, &disk);
    warn_of_trouble(repository, observer);
    catalog.warn_of_damage([&disk], observer);
    check_replaced(&request)?;
    let note = |error: &Error| catalog.note_damage(error);
    let restore = || {
        let (chain, problems) = if request.salvage {
            let remains = catalog.remains_of(&point);
            let missing = remains.gaps.iter().map(|gap| gap.error.chain()).collect();
            let expected = Some(point.record.archive_id);
            repository.storage().expect(&remains.archives);
            let files = remains.archives.iter().map(|name| catalog.open_damaged(&disk, name));
            salvage_chain(files, missing, expected, &note, cancel)?
        } else {
            (check_indexes(open_chain(&catalog, &point)?)?, Vec::new())
        };
        rebuild(&chain, problems, request, &note, observer, cancel)
    };
    let mut report = restore().inspect_err(note)?;
    report.safety = point.safety;
    report.passed_over = passed_over;
    Ok(RestoreReport { warnings: recorder.take(), ..report })
}

/// Says that the repository can only be read, if that is so: restores need no `qdelta.toml`.
pub(crate) fn warn_of_trouble(repository: &Repository, observer: &dyn Observer) {
    if let Some(error) = repository.trouble() {
        observer.warn(Warning::failed(Code::Unreadable, &error));
    }
}

/// Restores the end of a chain out of bare archive files, the full first.
///
/// # Errors
/// As [`run`].
pub fn replay(
    archives: &[PathBuf],
    request: RestoreRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RestoreReport> {
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    check_replaced(&request)?;
    let files = Arc::new(OpenFiles::default());
    let (chain, problems) = if request.salvage {
        let archives = archives.iter().map(|path| archive_file(&files, path));
        salvage_chain(archives, Vec::new(), None, &|_| {}, cancel)?
    } else {
        let open = |path: &PathBuf| Reader::open(archive_file(&files, path)?).map(Arc::new);
        let archives = archives.iter().map(open);
        (check_indexes(Chain::new(archives.collect::<Result<Vec<_>>>()?)?)?, Vec::new())
    };
    let report = rebuild(&chain, problems, request, &|_| {}, observer, cancel)?;
    Ok(RestoreReport { warnings: recorder.take(), ..report })
}

/// Fails if the image that is to be replaced is one that a guest needs as it is.
fn check_replaced(request: &RestoreRequest) -> Result<()> {
    match &request.destination {
        Destination::Path(path) if request.force => guests::check(&request.libvirt, path),
        _ => Ok(()),
    }
}

/// The chain of what is left of these archives, and what is wrong with them. Damage goes to `note`.
fn salvage_chain(
    files: impl Iterator<Item = Result<Arc<dyn ReadAt>>>,
    mut problems: Vec<String>,
    newest: Option<ArchiveId>,
    note: &dyn Fn(&Error),
    cancel: &Cancel,
) -> Result<(Chain, Vec<String>)> {
    let mut archives = Vec::new();
    for file in files {
        match file.and_then(|file| salvage::open(&file, cancel)) {
            Ok(salvaged) => {
                if let Some(problem) = salvaged.problems.first() {
                    let error = Error::new(ErrorKind::Damaged, problem.clone());
                    note(&error.of_file(salvaged.reader.path()));
                }
                problems.extend(salvaged.problems);
                archives.push(Arc::new(salvaged.reader));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                note(&error);
                problems.push(error.chain());
            }
        }
    }
    let found = archives.last().map(|archive| archive.metadata().archive_id);
    if newest.is_some() && found != newest {
        let what = "nothing is left of the archive of the point itself";
        return Err(Error::new(ErrorKind::Damaged, what)
            .because(Error::new(ErrorKind::Damaged, problems.join("; ")))
            .advise("salvage the point before it, or replay the archives that are left"));
    }
    let (chain, more) = Chain::salvage(archives)?;
    problems.extend(more);
    Ok((chain, problems))
}

fn rebuild(
    chain: &Chain,
    mut problems: Vec<String>,
    request: RestoreRequest,
    note: &dyn Fn(&Error),
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RestoreReport> {
    let started = Instant::now();
    let latest = chain
        .archives()
        .last()
        .ok_or_else(|| Error::new(ErrorKind::Usage, "a chain needs at least one archive"))?;
    let plan = Plan::new(chain.geometry(), chain.nonzero()?)?;
    let (name, output): (PathBuf, Box<dyn ImageWriter>) = match request.destination {
        Destination::Path(path) => {
            let options = create::Options {
                format: request.format,
                force: request.force,
                inputs: input_ids(chain),
                cancel: cancel.clone(),
            };
            (path.clone(), create::create(&path, plan, &options, observer)?)
        }
        Destination::Stream(sink) => {
            (PathBuf::from("-"), Box::new(Stream::new(sink, "standard output", plan)))
        }
    };
    let rebuilt = rebuild::run(chain, None, &*output, &request.resources, observer, cancel)?;
    let salvaged = request.salvage.then(|| {
        rebuilt.gaps.damage.iter().for_each(note);
        problems.extend(rebuilt.gaps.problems);
        SalvageReport {
            lost: ranges(&rebuilt.gaps.lost, chain),
            unsure: ranges(&rebuilt.gaps.unsure, chain),
            problems,
        }
    });
    let expected = latest.known_root();
    let wrong = rebuilt.root.filter(|root| Some(*root) != expected);
    if let (Some(root), None) = (wrong, &salvaged) {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{}: what was rebuilt has the root {root}, not {}",
                latest.path().display(),
                chain.root()
            ),
        )
        .of_file(latest.path())
        .advise("qdelta verify tells which files are damaged; restore --salvage gives the rest"));
    }
    let proved = rebuilt.root.filter(|root| Some(*root) == expected);
    output.finish(cancel, observer)?;
    let metadata = latest.metadata();
    Ok(RestoreReport {
        disk: format!("{}/{}", metadata.domain, metadata.disk),
        point: metadata.point.clone(),
        safety: false,
        passed_over: None,
        output: name,
        format: request.format,
        virtual_size: chain.geometry().virtual_size(),
        archives: chain.archives().len(),
        bytes_read: rebuilt.bytes_read,
        bytes_written: rebuilt.bytes_written,
        root: proved,
        salvage: salvaged,
        io: rebuilt.backend,
        warnings: Vec::new(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Blocks as ranges of the disk, neighbours merged.
fn ranges(blocks: &RoaringBitmap, chain: &Chain) -> Vec<GuestRange> {
    let geometry = chain.geometry();
    let mut ranges: Vec<GuestRange> = Vec::new();
    for block in blocks.iter().map(BlockIndex) {
        let (start, length) = (geometry.block_offset(block), geometry.block_len(block));
        match ranges.last_mut() {
            Some(last) if last.start + last.length == start => last.length += length,
            _ => ranges.push(GuestRange { start, length }),
        }
    }
    ranges
}

/// The archives' files: none of them can be the output.
fn input_ids(chain: &Chain) -> Vec<FileId> {
    let files = chain.archives().iter().filter_map(|archive| archive.store().pooled());
    files.map(PooledFile::id).collect()
}
