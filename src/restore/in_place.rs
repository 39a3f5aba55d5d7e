//! The flow that rolls an image back where it lies: only the blocks that differ are written.
//!
//! ```text
//! a point of what is there → lock → compare by digest → write what differs → compare again
//! ```
//!
//! A qcow2 image becomes the old disk in one step: whenever it is killed, it is as it was, or
//! done. A raw one is written where it lies: killed in the middle it is half of each, and running it
//! again goes on.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use qdelta_formats::archive::{GroupIndex, block_digest, zero_block_digest};
use roaring::RoaringBitmap;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::rebuild;
use crate::anchor::{self, ImageFile, Rewrite};
use crate::backup::{self, AnchorChoice, check_indexes, open_chain};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::image::{Format, Image, OpenOptions};
use crate::io::{FileStore, Store};
use crate::output::ImageWriter;
use crate::pipeline::Resources;
use crate::progress::{Cancel, Progress};
use crate::reader::{ClusterReader, ReadPlan};
use crate::repository::{DiskId, DiskSpec, Repository, Selector};
use crate::sys::image_lock::ImageLock;

/// What to roll back, and to which point.
#[derive(Debug, Clone)]
pub struct InPlaceRequest {
    /// The disk.
    pub disk: DiskSpec,
    /// The point.
    pub selector: Selector,
    /// The image; unless told, the one that the point was made from.
    pub image: Option<PathBuf>,
    /// How to open it; its format, unless told, is that of the image that the point was made from.
    pub open: OpenOptions,
    /// First make a point of what is there now.
    pub keep: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a roll back did.
#[derive(Debug, Clone, Serialize)]
pub struct InPlaceReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// The recovery point whose content the image has now.
    pub point: String,
    /// The image.
    #[serde(serialize_with = "crate::json::serialize")]
    pub image: PathBuf,
    /// The point that holds what was there before; none if it was not wanted.
    pub kept: Option<String>,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Bytes of the disk that differed, in whole blocks, and were written.
    pub bytes_changed: u64,
    /// Digest of what the image shows now, which is the point's.
    pub root: String,
    /// How long it took.
    pub seconds: f64,
}

/// Rolls an image back to a point.
///
/// # Errors
/// `Busy` if somebody uses the image; `Image` if it can't be changed, or has another size than
/// the point's disk.
pub fn run_in_place(
    repository: &Repository,
    request: &InPlaceRequest,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<InPlaceReport> {
    let started = Instant::now();
    let disk = repository.find_disk(&request.disk)?;
    let point = repository.resolve(&disk, &request.selector)?;
    let record = &point.record;
    let path = request.image.clone().unwrap_or_else(|| record.image.path.clone());
    let format = match request.open.format {
        Some(format) => format,
        None => record.image.format.parse()?,
    };
    let open = OpenOptions { format: Some(format), ..request.open.clone() };
    let chain = check_indexes(open_chain(repository, &point)?)?;
    check_size(&path, &Image::open(&path, &open)?, &chain)?;
    let kept = match request.keep {
        true => Some(keep(repository, request, &disk, &path, &open, progress, cancel)?),
        false => None,
    };
    let before = kept.as_ref().map(|(_, stamp)| *stamp);
    let job = Job { chain: &chain, path: &path, open: &open, request, progress, cancel };
    let (changed, root) = match format {
        Format::Qcow2 => job.qcow2(before)?,
        Format::Raw => job.raw(before)?,
    };
    let geometry = chain.geometry();
    Ok(InPlaceReport {
        disk: disk.to_string(),
        point: point.id.to_string(),
        image: path,
        kept: kept.map(|(point, _)| point),
        virtual_size: geometry.virtual_size(),
        bytes_changed: changed * u64::from(geometry.block_size()),
        root,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn check_size(path: &Path, image: &Image, chain: &Chain) -> Result<()> {
    let (now, then) = (image.virtual_size(), chain.geometry().virtual_size());
    if now == then {
        return Ok(());
    }
    let text = format!("the disk of {} has {now} bytes now, and had {then}", path.display());
    Err(Error::new(ErrorKind::Image, text)
        .advise("resize it first (qemu-img resize), or restore to a new file"))
}

/// What a write changes: inode, length, and time of the last write.
type Stamp = (u64, u64, i64, i64);

fn stamp(file: &File, path: &Path) -> Result<Stamp> {
    let data = file.metadata().map_err(|error| Error::io("look at", path, error))?;
    Ok((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// Makes a point of what is there; gives it, and what tells that nobody has written since.
fn keep(
    repository: &Repository,
    request: &InPlaceRequest,
    disk: &DiskId,
    path: &Path,
    open: &OpenOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(String, Stamp)> {
    let backup = backup::Request {
        image: path.to_path_buf(),
        open: open.clone(),
        disk: Some(DiskSpec { domain: disk.domain.clone(), disk: Some(disk.disk.clone()) }),
        options: backup::Options {
            // The image is about to become another one: nothing can be learned from it later.
            anchor: AnchorChoice::None,
            resources: request.resources,
            ..backup::Options::default()
        },
    };
    let report = backup::run(repository, &backup, progress, cancel).map_err(|error| {
        error
            .within("cannot keep what is there now")
            .advise("--no-point rolls back without keeping it")
    })?;
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    Ok((report.point, stamp(&file, path)?))
}

fn check_stamp(file: &File, path: &Path, before: Option<Stamp>) -> Result<()> {
    match before {
        Some(before) if stamp(file, path)? != before => {
            let text = format!("{} was written to meanwhile", path.display());
            Err(Error::new(ErrorKind::Busy, text).advise("nothing was rolled back: try again"))
        }
        _ => Ok(()),
    }
}

struct Job<'a> {
    chain: &'a Chain,
    path: &'a Path,
    open: &'a OpenOptions,
    request: &'a InPlaceRequest,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Job<'_> {
    /// Changes a qcow2 image; gives how many blocks differed, and the root.
    fn qcow2(&self, before: Option<Stamp>) -> Result<(u64, String)> {
        let file = ImageFile::open(self.path)?;
        warn(file.warning());
        self.check_unchanged(before)?;
        let differing = self.differing()?;
        if differing.is_empty() {
            return Ok((0, self.chain.root().to_string()));
        }
        anchor::rewrite(&file, |rewrite| {
            let clusters = Clusters::new(rewrite, self.chain.geometry().virtual_size());
            let wanted = self.whole_clusters(&differing, clusters.size);
            self.write(&wanted, &clusters)?;
            clusters.finish(&wanted, u64::from(self.chain.geometry().block_size()))
        })?;
        self.prove(differing.len())
    }

    /// Writes over a raw image.
    fn raw(&self, before: Option<Stamp>) -> Result<(u64, String)> {
        let failed = |error| Error::io("open", self.path, error);
        let mut options = File::options();
        options.read(true).write(true);
        if std::fs::metadata(self.path).map_err(failed)?.file_type().is_block_device() {
            // A device that is mounted here is in use, though no lock says so.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        }
        let file = options.open(self.path).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => {
                let text = format!("{} is mounted or otherwise in use", self.path.display());
                Error::new(ErrorKind::Busy, text).because(error)
            }
            _ => failed(error),
        })?;
        let lock = ImageLock::exclusive(&file, self.path)?;
        warn(lock.warning());
        self.check_unchanged(before)?;
        let differing = self.differing()?;
        let geometry = self.chain.geometry();
        let store = FileStore::new(file, self.path);
        let writer = Raw { store: &store, size: geometry.virtual_size() };
        self.write(&differing, &writer)?;
        let zeros = vec![0; geometry.block_size() as usize];
        for block in &differing - &self.chain.nonzero() {
            self.cancel.check()?;
            writer.write(u64::from(block) * u64::from(geometry.block_size()), &zeros)?;
        }
        store.sync().map_err(|error| Error::io("sync", self.path, error))?;
        self.prove(differing.len())
    }

    fn check_unchanged(&self, before: Option<Stamp>) -> Result<()> {
        let file = File::open(self.path).map_err(|error| Error::io("open", self.path, error))?;
        check_stamp(&file, self.path, before)
    }

    /// Writes the `wanted` blocks that are not zero.
    fn write(&self, wanted: &RoaringBitmap, output: &dyn ImageWriter) -> Result<()> {
        let resources = &self.request.resources;
        let rebuilt =
            rebuild::run(self.chain, Some(wanted), output, resources, self.progress, self.cancel)?;
        if rebuilt.root == Some(self.chain.root()) {
            return Ok(());
        }
        let text = format!("the chain of {} is not what it says", self.path.display());
        Err(Error::new(ErrorKind::Damaged, text)
            .advise("qdelta verify tells which files are damaged"))
    }

    /// All blocks of every cluster in which one differs.
    fn whole_clusters(&self, differing: &RoaringBitmap, cluster: u64) -> RoaringBitmap {
        let geometry = self.chain.geometry();
        let block_size = u64::from(geometry.block_size());
        if cluster <= block_size {
            return differing.clone();
        }
        // Both are powers of two.
        let per_cluster = (cluster / block_size) as u32;
        let mut wanted = RoaringBitmap::new();
        for block in differing {
            let first = block / per_cluster * per_cluster;
            let end = u64::from(first + per_cluster).min(geometry.block_count());
            wanted.insert_range(first..=(end - 1) as u32);
        }
        wanted
    }

    /// What was written must be the point's: nothing differs any more.
    fn prove(&self, blocks: u64) -> Result<(u64, String)> {
        let left = self.differing()?;
        match left.min() {
            None => Ok((blocks, self.chain.root().to_string())),
            Some(block) => {
                let text = format!(
                    "{} is not the point's disk after it was written: block {block} differs",
                    self.path.display()
                );
                Err(Error::new(ErrorKind::Io, text).advise("restore to a new file"))
            }
        }
    }

    /// The blocks of the image, as it is now, that are not the point's.
    fn differing(&self) -> Result<RoaringBitmap> {
        let image = Image::open(self.path, self.open)?;
        check_size(self.path, &image, self.chain)?;
        let geometry = self.chain.geometry();
        self.progress.begin("compare", geometry.virtual_size());
        let zero = zero_block_digest(geometry.block_size());
        let mut blocks = Blocks::new(&image, geometry.block_size() as usize);
        let (mut mapper, mut extents) = (image.mapper(), Vec::new());
        let mut cursor = self.chain.cursor();
        let mut differing = RoaringBitmap::new();
        for group in (0..geometry.group_count()).map(GroupIndex) {
            self.cancel.check()?;
            let state = cursor.seek(group)?;
            let numbers = geometry.group_blocks(group);
            let block_size = u64::from(geometry.block_size());
            let start = numbers.start * block_size;
            let end = (numbers.end * block_size).min(geometry.virtual_size());
            extents.clear();
            mapper.extents(start..end, &mut extents)?;
            for (index, block) in numbers.enumerate() {
                let range = block * block_size..((block + 1) * block_size).min(end);
                let now = match blocks.read(&extents, range)? {
                    Some(bytes) => block_digest(bytes),
                    None => zero,
                };
                if now != state.digest(index) {
                    // A disk has at most 2^32 blocks.
                    differing.insert(block as u32);
                }
            }
            self.progress.advance(end - start);
        }
        self.progress.finish();
        Ok(differing)
    }
}

fn warn(warning: Option<&str>) {
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
}

/// Reads the blocks of an image, one after the other.
struct Blocks {
    files: Vec<Arc<dyn Store>>,
    clusters: ClusterReader,
    buffer: Vec<u8>,
}

impl Blocks {
    fn new(image: &Image, block_size: usize) -> Self {
        Self {
            files: image.files().to_vec(),
            clusters: ClusterReader::new(image.files().to_vec()),
            buffer: vec![0; block_size],
        }
    }

    /// The bytes of a block, filled up with zeros; none if there is nothing to read for it.
    fn read(&mut self, extents: &[Extent], range: std::ops::Range<u64>) -> Result<Option<&[u8]>> {
        let mut plan = ReadPlan::default();
        let len = self.buffer.len();
        plan.add(extents, &range, 0, len);
        if plan.is_empty() {
            return Ok(None);
        }
        for part in plan.zeros {
            self.buffer.get_mut(part).unwrap_or_default().fill(0);
        }
        for segment in plan.segments {
            let store = self.files.get(segment.file).ok_or_else(|| {
                Error::new(ErrorKind::Image, "an extent names a file that the image does not have")
            })?;
            let into = self.buffer.get_mut(segment.range.clone()).unwrap_or_default();
            store.read_exact_at(into, segment.offset).map_err(|error| {
                let what = format!("read {} bytes at {} of", into.len(), segment.offset);
                Error::io(what, store.path(), error)
            })?;
        }
        for (part, cluster) in plan.compressed {
            self.clusters.fill(&cluster, self.buffer.get_mut(part).unwrap_or_default())?;
        }
        Ok(Some(&self.buffer))
    }
}

/// Writes over a raw image where it lies.
struct Raw<'a> {
    store: &'a FileStore,
    size: u64,
}

impl ImageWriter for Raw<'_> {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let room = self.size.saturating_sub(guest_offset).min(bytes.len() as u64) as usize;
        let bytes = bytes.get(..room).unwrap_or_default();
        self.store.write_all_at(bytes, guest_offset).map_err(|error| {
            let what = format!("write {} bytes at {guest_offset} to", bytes.len());
            Error::io(what, self.store.path(), error)
        })
    }

    fn finish(self: Box<Self>, _: &Cancel, _: &dyn Progress) -> Result<()> {
        Ok(())
    }
}

/// Cuts what comes in blocks into the clusters of an image.
struct Clusters<'a, 'c, 'f> {
    size: u64,
    virtual_size: u64,
    state: Mutex<Current<'a, 'c, 'f>>,
}

struct Current<'a, 'c, 'f> {
    rewrite: &'a mut Rewrite<'c, 'f>,
    /// The cluster that is being filled.
    number: Option<u64>,
    bytes: Vec<u8>,
    /// The clusters that were written.
    written: roaring::RoaringTreemap,
}

impl<'a, 'c, 'f> Clusters<'a, 'c, 'f> {
    fn new(rewrite: &'a mut Rewrite<'c, 'f>, virtual_size: u64) -> Self {
        let size = rewrite.cluster_size();
        let bytes = vec![0; size as usize];
        let written = roaring::RoaringTreemap::new();
        let state = Mutex::new(Current { rewrite, number: None, bytes, written });
        Self { size, virtual_size, state }
    }

    /// Writes the last cluster, and lets those of the `wanted` blocks that were not written be zero.
    fn finish(self, wanted: &RoaringBitmap, block_size: u64) -> Result<()> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.flush()?;
        let mut last = None;
        for block in wanted {
            let start = u64::from(block) * block_size;
            let end = (start + block_size).min(self.virtual_size);
            for number in start / self.size..end.div_ceil(self.size) {
                if last != Some(number) && !state.written.contains(number) {
                    state.rewrite.zero(number)?;
                }
                last = Some(number);
            }
        }
        Ok(())
    }
}

impl Current<'_, '_, '_> {
    /// Writes the cluster that was filled.
    fn flush(&mut self) -> Result<()> {
        let Some(number) = self.number.take() else { return Ok(()) };
        self.written.insert(number);
        self.rewrite.write(number, &self.bytes)
    }
}

impl ImageWriter for Clusters<'_, '_, '_> {
    fn in_order(&self) -> bool {
        true
    }

    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.virtual_size.saturating_sub(guest_offset).min(bytes.len() as u64);
        let mut rest = bytes.get(..room as usize).unwrap_or_default();
        let mut at = guest_offset;
        while !rest.is_empty() {
            let (number, skipped) = (at / self.size, (at % self.size) as usize);
            if state.number != Some(number) {
                state.flush()?;
                state.bytes.fill(0);
                state.number = Some(number);
            }
            let len = rest.len().min(self.size as usize - skipped);
            let (part, next) = rest.split_at(len);
            if let Some(into) = state.bytes.get_mut(skipped..skipped + len) {
                into.copy_from_slice(part);
            }
            at += len as u64;
            rest = next;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _: &Cancel, _: &dyn Progress) -> Result<()> {
        Ok(())
    }
}
