//! The flow that makes a recovery point of one image.
//!
//! ```text
//! image → extents → reader → workers (digest, compare, compress) → archive → repository
//! ```

mod assemble;
mod hold;
mod scan;
mod trial;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use qdelta_formats::archive::{
    ArchiveId, Consistency, Digest, Geometry, Kind, Metadata, Parent, Tracker, frame_blocks,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::archive;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, OpenOptions};
use crate::io::{Backend, EarlyWriteback, FileStore};
use crate::pipeline::Resources;
use crate::progress::{Cancel, Progress};
use crate::repository::{
    DiskId, DiskRecord, DiskSpec, ImageRecord, LayerRecord, Manifest, Point, Repository, Selector,
};

pub(crate) use trial::Trial;

/// The zstd level of a backup unless told otherwise.
pub const LEVEL_DEFAULT: i32 = 1;

/// What to compare the image with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KindChoice {
    /// The latest point if there is one, nothing otherwise.
    #[default]
    Auto,
    /// Nothing: a new chain begins.
    Full,
    /// The latest point.
    Incremental,
    /// The latest full.
    Differential,
}

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub image: PathBuf,
    /// How to open it.
    pub open: OpenOptions,
    /// Which disk of the repository it is; unless told, the one called after the image's file.
    pub disk: Option<DiskSpec>,
    /// Full, incremental or differential.
    pub kind: KindChoice,
    /// The zstd level.
    pub level: i32,
    /// Block size of a new chain in bytes. A chain that goes on keeps its own.
    pub block_size: Option<u32>,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a backup did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The new recovery point.
    pub point: String,
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// `full`, `incremental` or `differential`.
    pub kind: &'static str,
    /// The point that it was made against; none for a full.
    pub parent: Option<String>,
    /// How the changed blocks were found.
    pub tracker: &'static str,
    /// In what state the guest was.
    pub consistency: &'static str,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes.
    pub block_size: u32,
    /// Bytes read from the image's data.
    pub bytes_read: u64,
    /// Bytes of the disk that differ from the parent (for a full: that are not zero).
    pub bytes_changed: u64,
    /// Length of the archive, in bytes.
    pub bytes_written: u64,
    /// Digest of what the guest sees.
    pub root: String,
    /// The archive.
    #[serde(serialize_with = "crate::json::serialize")]
    pub archive: PathBuf,
    /// How the image was read: `uring` or `threads`.
    pub io: &'static str,
    /// What the admin should know about the image, though the backup is sound.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Makes a recovery point of an image.
///
/// # Errors
/// Nothing that the repository held is changed by a failure, and nothing new is in it.
pub fn run(
    repository: &Repository,
    request: &Request,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let started = Instant::now();
    let held = hold::HeldImage::open(&request.image, &request.open)?;
    let image = &held.image;
    let warnings = held.warnings();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let disk = disk_for(request)?;
    let lock = repository.lock(&disk.domain)?;
    let cleaned = repository.clean(&lock)?;
    for leftover in &cleaned.removed {
        tracing::info!(path = %leftover.path.display(), "removed what an interrupted backup left");
    }
    for leftover in &cleaned.kept {
        tracing::warn!(path = %leftover.path.display(), "belongs to no recovery point; left alone");
    }

    let base = choose_base(repository, &disk, request.kind)?;
    warn_of_another_image(request, &disk, &base);
    let (kind, chain) = match &base {
        Base::None => (Kind::Full, None),
        Base::Incremental(point) => (Kind::Incremental, Some(open_base(repository, point)?)),
        Base::Differential(point) => (Kind::Differential, Some(open_base(repository, point)?)),
    };
    let geometry = geometry_for(image, request.block_size, chain.as_ref())?;
    let next = repository.next_point(&lock)?;
    if let Some(behind) = next.clock_behind {
        tracing::warn!(?behind, "the clock is behind the latest point; the new one follows it");
    }
    let pending = repository.begin(&lock, &disk, next.id, kind)?;
    let metadata = metadata_for(&disk, &next.id.to_string(), kind, geometry, chain.as_ref())?;
    let (archive_id, chain_id) = (metadata.archive_id, metadata.chain_id);
    let folder = pending.path().parent().map(Path::to_path_buf);
    let sink = Box::new(EarlyWriteback::new(pending.file()?));
    let writer = archive::Writer::new(sink, metadata, folder.as_deref())?.named(pending.path());

    let job = scan::Job {
        image,
        geometry,
        chain: chain.as_ref(),
        frame_blocks: frame_blocks(geometry.block_size()),
        level: request.level,
        resources: &request.resources,
    };
    let done = scan::run(&job, writer, progress, cancel)?;
    let stored = done.assembled;
    held.check_unchanged()?;
    cancel.check()?;

    let parent = base.point();
    let mut manifest = Manifest::new(next.id, disk.domain.clone(), Consistency::Offline);
    manifest.elapsed_ms = started.elapsed().as_millis() as u64;
    manifest.disks.push(DiskRecord {
        disk: disk.disk.clone(),
        archive: pending.archive_name(),
        archive_id,
        chain_id,
        kind,
        tracker: Tracker::Scan,
        parent: parent.map(|point| point.id),
        root: stored.root,
        virtual_size: geometry.virtual_size(),
        block_size: geometry.block_size(),
        bytes_read: done.bytes_read,
        bytes_changed: stored.bytes_changed,
        payload_bytes: stored.summary.payload_bytes,
        bytes_written: stored.summary.file_len,
        image: image_record(image, &request.image),
    });
    let archive = folder.unwrap_or_default().join(pending.archive_name());
    pending.commit(&manifest)?;
    Ok(Report {
        point: next.id.to_string(),
        disk: disk.to_string(),
        kind: kind.as_str(),
        parent: parent.map(|point| point.id.to_string()),
        tracker: Tracker::Scan.as_str(),
        consistency: Consistency::Offline.as_str(),
        virtual_size: geometry.virtual_size(),
        block_size: geometry.block_size(),
        bytes_read: done.bytes_read,
        bytes_changed: stored.bytes_changed,
        bytes_written: stored.summary.file_len,
        root: stored.root.to_string(),
        archive,
        io: done.backend.as_str(),
        warnings,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The disk of the repository that the image is backed up as. It follows from the names alone:
/// which other disks its domain has does not matter, or a second disk would get the first one's
/// image.
fn disk_for(request: &Request) -> Result<DiskId> {
    let spec = match &request.disk {
        Some(spec) => spec.clone(),
        None => DiskSpec::for_image(&request.image)?,
    };
    Ok(spec.or_only_disk())
}

/// Warns if the disk was another image at the point before and nobody said that it is the same:
/// two images of one name in different folders would share one chain.
fn warn_of_another_image(request: &Request, disk: &DiskId, base: &Base) {
    let Some(point) = base.point().filter(|_| request.disk.is_none()) else { return };
    let (before, now) = (&point.record.image.path, absolute(&request.image));
    if *before != now {
        tracing::warn!(
            "{disk} was {} at the point before and is {} now; say --disk {disk} if it is the same \
             disk, and another name if it is not",
            before.display(),
            now.display()
        );
    }
}

/// A path that means the same from everywhere.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// What the new point is made against.
enum Base {
    None,
    Incremental(Point),
    Differential(Point),
}

impl Base {
    fn point(&self) -> Option<&Point> {
        match self {
            Self::None => None,
            Self::Incremental(point) | Self::Differential(point) => Some(point),
        }
    }
}

fn choose_base(repository: &Repository, disk: &DiskId, choice: KindChoice) -> Result<Base> {
    if choice == KindChoice::Full {
        return Ok(Base::None);
    }
    let latest = match repository.resolve(disk, &Selector::Latest) {
        Ok(point) => Some(point),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.advise("--kind full begins a new chain")),
    };
    match (choice, latest) {
        (KindChoice::Auto, None) => Ok(Base::None),
        (KindChoice::Auto | KindChoice::Incremental, Some(point)) => Ok(Base::Incremental(point)),
        (KindChoice::Differential, Some(_)) => {
            let points = repository.points(disk)?.points;
            let full = points.into_iter().rev().find(|point| point.record.kind == Kind::Full);
            full.map(Base::Differential).ok_or_else(|| no_base(disk, "full"))
        }
        (KindChoice::Incremental, None) => Err(no_base(disk, "recovery point")),
        (KindChoice::Differential, None) => Err(no_base(disk, "full")),
        (KindChoice::Full, _) => Ok(Base::None),
    }
}

fn no_base(disk: &DiskId, what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{disk} has no {what} to compare with"))
        .advise("begin with --kind full (or auto)")
}

/// Opens the chain that the new point is made against.
fn open_base(repository: &Repository, point: &Point) -> Result<Chain> {
    open_chain(repository, point).and_then(check_indexes).map_err(|error| {
        let error = error.within(format!("cannot compare with point {}", point.id));
        match error.kind() {
            ErrorKind::Damaged | ErrorKind::NotFound => {
                error.advise("--kind full begins a new chain; qdelta verify tells what is damaged")
            }
            // The chain may well be sound.
            _ => error,
        }
    })
}

/// Opens the archives of a point's chain.
pub(crate) fn open_chain(repository: &Repository, point: &Point) -> Result<Chain> {
    let mut archives = Vec::new();
    for path in repository.chain_of(point)? {
        archives.push(Arc::new(open_archive(&path)?));
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

/// Reads every table of a chain's archives once and checks it. They are mapped afterwards: an
/// unreadable sector is an error here, and would end the program there.
pub(crate) fn check_indexes(chain: Chain) -> Result<Chain> {
    for archive in chain.archives().iter().filter(|archive| !archive.is_salvaged()) {
        archive.check_index()?;
    }
    Ok(chain)
}

/// Opens one archive file.
pub(crate) fn open_archive(path: &Path) -> Result<archive::Reader> {
    // Not blocking: opening a pipe in an archive's place must not wait for its writer.
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|source| {
            let exhausted = source.raw_os_error() == Some(Errno::MFILE.raw_os_error());
            let error = Error::io("open", path, source);
            match exhausted {
                true => error.advise("a chain needs all its files at once: raise `ulimit -n`"),
                false => error,
            }
        })?;
    let metadata = file.metadata().map_err(|source| Error::io("look at", path, source))?;
    if !metadata.is_file() {
        let what = format!("{}: an archive must be a regular file", path.display());
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    archive::Reader::open(Arc::new(FileStore::new(file, path)))
}

fn geometry_for(image: &Image, asked: Option<u32>, chain: Option<&Chain>) -> Result<Geometry> {
    let block_size = match chain {
        Some(chain) => {
            let size = chain.geometry().block_size();
            if asked.is_some_and(|asked| asked != size) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("the chain has blocks of {size} bytes"),
                )
                .advise("leave --block-size out, or begin a new chain with --kind full"));
            }
            size
        }
        None => asked.unwrap_or_else(|| default_block_size(image.virtual_size())),
    };
    Geometry::new(image.virtual_size(), block_size).map_err(|error| {
        let kind = if chain.is_some() { ErrorKind::Image } else { ErrorKind::Usage };
        Error::new(kind, "the disk can't be cut into blocks")
            .because(error)
            .advise("larger blocks (--block-size, up to 2M) make larger disks possible")
    })
}

/// 64 KiB, or as much more as it takes for a disk to have at most 2³² blocks.
fn default_block_size(virtual_size: u64) -> u32 {
    let mut size = Geometry::BLOCK_SIZE_DEFAULT;
    while size < Geometry::BLOCK_SIZE_MAX && virtual_size > u64::from(size) << 32 {
        size *= 2;
    }
    size
}

fn metadata_for(
    disk: &DiskId,
    point: &str,
    kind: Kind,
    geometry: Geometry,
    chain: Option<&Chain>,
) -> Result<Metadata> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| {
        Error::new(ErrorKind::Io, format!("the system gives no random bytes: {error}"))
    })?;
    let archive_id = ArchiveId(id);
    let latest = chain.and_then(|chain| chain.archives().last());
    Ok(Metadata {
        archive_id,
        chain_id: latest.map_or(archive_id, |latest| latest.metadata().chain_id),
        point: point.to_owned(),
        domain: disk.domain.to_string(),
        disk: disk.disk.to_string(),
        kind,
        tracker: Tracker::Scan,
        consistency: Consistency::Offline,
        created_ms: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0),
        geometry,
        frame_blocks: frame_blocks(geometry.block_size()),
        parent: latest.map(|latest| Parent {
            archive_id: latest.metadata().archive_id,
            point: latest.metadata().point.clone(),
            root: latest.root(),
        }),
        generator: concat!("qdelta ", env!("CARGO_PKG_VERSION")).to_owned(),
        extensions: Vec::new(),
    })
}

fn image_record(image: &Image, path: &Path) -> ImageRecord {
    let layers: Vec<LayerRecord> = image
        .layers()
        .iter()
        .map(|layer| LayerRecord {
            path: layer.path.clone(),
            format: layer.format.as_str().to_owned(),
            virtual_size: layer.virtual_size,
        })
        .collect();
    ImageRecord {
        path: absolute(path),
        format: layers.first().map(|layer| layer.format.clone()).unwrap_or_default(),
        layers,
    }
}

/// What a run of the data path gives.
struct Done {
    assembled: assemble::Assembled,
    bytes_read: u64,
    backend: Backend,
}

/// What every recovery point's root is made of.
type Root = Digest;
