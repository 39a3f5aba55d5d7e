//! Writing what differs over an image.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use roaring::RoaringBitmap;

use super::pages::{Pages, Rehearsal, pieces};
use super::{check_size, compare};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::create::{Discard, ImageWriter};
use crate::disk::edit::{self, ImageFile, Rewrite, Spare};
use crate::disk::files::image_lock::ImageLock;
use crate::disk::files::{Allocation, Zeroes, punch};
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::{Format, Image, OpenOptions};
use crate::disk::io::{FileStore, ReadAt, Store};
use crate::flows::anchors;
use crate::flows::restore::rebuild;
use crate::vault::chain::Chain;
use crate::vault::repository::Anchor;

/// How much is zeroed between two looks at the request to stop, in bytes.
const ZEROED_AT_ONCE: u64 = 256 << 20;

/// An image that nobody else can use.
pub(super) enum Held {
    Qcow2(ImageFile),
    Raw { store: FileStore, _lock: ImageLock },
}

impl Held {
    /// Opens and locks it.
    ///
    /// # Errors
    /// `Busy` if somebody uses it in any way.
    pub fn open(path: &Path, format: Format, observer: &dyn Observer) -> Result<Self> {
        let (held, warning) = match format {
            Format::Qcow2 => {
                let file = ImageFile::open(path)?;
                let warning = file.warning().map(str::to_owned);
                (Self::Qcow2(file), warning)
            }
            Format::Raw => {
                let (file, _) = edit::open_to_change(path)?;
                let lock = ImageLock::exclusive(&file, path)?;
                let warning = lock.warning().map(str::to_owned);
                (Self::Raw { store: FileStore::new(file, path), _lock: lock }, warning)
            }
        };
        if let Some(warning) = warning {
            observer.warn(Warning::new(Code::NoLocks, warning));
        }
        Ok(held)
    }

    /// Fails if the image is not fit to be changed. Gives what of it is free for something new, if it
    /// has clusters.
    pub fn check(&self) -> Result<Option<Spare>> {
        match self {
            Self::Qcow2(file) => edit::check_rewrite(file).map(Some),
            Self::Raw { .. } => Ok(None),
        }
    }

    /// Removes an anchor that stands for a point that no backup will ask for any more.
    pub fn remove(&self, anchor: &Anchor) -> Result<()> {
        let image = match self {
            Self::Qcow2(file) => Some(file),
            Self::Raw { .. } => None,
        };
        anchors::remove_from(image, anchor)
    }

    /// The file or device.
    pub fn store(&self) -> &dyn Store {
        match self {
            Self::Qcow2(file) => file.store().as_ref(),
            Self::Raw { store, .. } => store,
        }
    }
}

/// What is to be written to an image.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The blocks that are not the point's.
    pub differing: RoaringBitmap,
    /// The blocks that are written: all blocks of every cluster in which one differs.
    pub blocks: RoaringBitmap,
    /// The pages of a raw image that are written; the others of the differing blocks are zero.
    pub pages: Pages,
}

/// An image that is to become the disk at the end of a chain.
pub(super) struct Rewriting<'a> {
    pub chain: &'a Chain,
    pub path: &'a Path,
    pub open: &'a OpenOptions,
    /// Something lies below the image.
    pub is_overlay: bool,
    pub resources: &'a Resources,
    pub observer: &'a dyn Observer,
    pub cancel: &'a Cancel,
}

impl Rewriting<'_> {
    /// Writes what differs, and sees that it is the point's disk then.
    pub fn run(&self, held: &Held, wanted: &Wanted) -> Result<()> {
        match held {
            Held::Qcow2(file) if !wanted.differing.is_empty() => {
                self.qcow2(file, &wanted.blocks)?
            }
            // A run that was killed when all was written has given nothing back.
            Held::Qcow2(file) => edit::give_back_room(file)?,
            // Also if nothing differs: what a killed run has written may not be on the disk yet.
            Held::Raw { store, .. } => self.raw(store, wanted)?,
        }
        if wanted.differing.is_empty() { Ok(()) } else { self.prove() }
    }

    /// What is to be written: found by comparing all of the disk, and by reading what is wanted from the
    /// archives and proving it.
    pub fn plan(&self, held: &Held, cluster: Option<u64>) -> Result<Wanted> {
        let geometry = self.chain.geometry();
        let differing = self.differing()?;
        let per_cluster = cluster.unwrap_or(0) / u64::from(geometry.block_size());
        let blocks = whole_clusters(&differing, per_cluster, geometry.block_count());
        let pages = match held {
            Held::Qcow2(_) => {
                self.write(&blocks, &Discard)?;
                Pages::default()
            }
            Held::Raw { store, .. } => {
                // To a device whole blocks are written: most forget nothing smaller.
                let is_file = is_file(store)?;
                let rehearsal = Rehearsal::new(geometry.block_size(), is_file);
                self.write(&blocks, &rehearsal)?;
                rehearsal.pages()
            }
        };
        Ok(Wanted { differing, blocks, pages })
    }

    fn qcow2(&self, file: &ImageFile, wanted: &RoaringBitmap) -> Result<()> {
        let geometry = self.chain.geometry();
        edit::rewrite(file, self.is_overlay, |rewrite| {
            let clusters = Clusters::new(rewrite, geometry.virtual_size());
            self.write(wanted, &clusters)?;
            clusters.finish(wanted, u64::from(geometry.block_size()))
        })
    }

    fn raw(&self, store: &FileStore, wanted: &Wanted) -> Result<()> {
        let failed = |error| Error::io("look at", self.path, error);
        let is_file = is_file(store)?;
        let mut filled = Pages::of(wanted.pages.size());
        if is_file {
            let mut allocation = Allocation::of(store.file().as_fd());
            for run in wanted.pages.runs(self.chain.geometry().virtual_size()) {
                allocation.holes(run, |hole| filled.insert_inner(hole)).map_err(failed)?;
            }
        }
        self.raw_blocks(store, wanted, is_file).inspect_err(|_| {
            // The disk is half of each, and the next run goes on: others need the room meanwhile.
            for hole in filled.runs(self.chain.geometry().virtual_size()) {
                let _ = punch(store.file().as_fd(), hole);
            }
        })
    }

    /// Zeros come first: they give room to what is written then.
    fn raw_blocks(&self, store: &FileStore, wanted: &Wanted, is_file: bool) -> Result<()> {
        let failed = |what: &'static str| move |error| Error::io(what, self.path, error);
        let mut zeroes = match is_file {
            true => Zeroes::in_file(store).map_err(failed("look at"))?,
            false => Zeroes::on_device(store),
        };
        let mut any = false;
        for range in wanted.zeros(self.chain) {
            for part in pieces(range, ZEROED_AT_ONCE) {
                self.cancel.check()?;
                let what = format!("zero {} bytes at {} of", part.end - part.start, part.start);
                zeroes.write(part).map_err(|error| Error::io(what, self.path, error))?;
                any = true;
            }
        }
        if any {
            // Until then some filesystems keep what they got back to themselves.
            store.sync().map_err(failed("sync"))?;
        }
        let writer =
            Raw { store, size: self.chain.geometry().virtual_size(), pages: &wanted.pages };
        self.write(&wanted.differing, &writer)?;
        store.sync().map_err(failed("sync"))
    }

    /// Writes the `wanted` blocks that are not zero.
    fn write(&self, wanted: &RoaringBitmap, output: &dyn ImageWriter) -> Result<()> {
        let rebuilt = rebuild::run(
            self.chain,
            Some(wanted),
            output,
            self.resources,
            self.observer,
            self.cancel,
        )?;
        if rebuilt.root == Some(self.chain.root()) {
            return Ok(());
        }
        let text = format!("the chain of {} is not what it says", self.path.display());
        Err(Error::new(ErrorKind::Damaged, text)
            .advise("qdelta verify tells which files are damaged"))
    }

    /// What was written must be the point's: nothing differs any more.
    fn prove(&self) -> Result<()> {
        match self.differing()?.min() {
            None => Ok(()),
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
    pub fn differing(&self) -> Result<RoaringBitmap> {
        let image = Image::open(self.path, self.open)?;
        check_size(self.path, &image, self.chain)?;
        compare::differing(&image, self.chain, self.resources, self.observer, self.cancel)
    }
}

fn is_file(store: &FileStore) -> Result<bool> {
    let metadata = store.file().metadata();
    Ok(metadata.map_err(|error| Error::io("look at", store.path(), error))?.is_file())
}

/// All blocks of every cluster in which one differs.
fn whole_clusters(
    differing: &RoaringBitmap,
    blocks_per_cluster: u64,
    block_count: u64,
) -> RoaringBitmap {
    if blocks_per_cluster <= 1 {
        return differing.clone();
    }
    let mut wanted = RoaringBitmap::new();
    for block in differing {
        let first = u64::from(block) / blocks_per_cluster * blocks_per_cluster;
        let end = (first + blocks_per_cluster).min(block_count);
        // A disk has at most 2^32 blocks.
        wanted.insert_range(first as u32..=(end - 1) as u32);
    }
    wanted
}

/// Writes over a raw image where it lies.
struct Raw<'a> {
    store: &'a FileStore,
    size: u64,
    pages: &'a Pages,
}

impl ImageWriter for Raw<'_> {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.size.min(guest_offset + bytes.len() as u64);
        for run in self.pages.runs_in(guest_offset..end) {
            let part = (run.start - guest_offset) as usize..(run.end - guest_offset) as usize;
            let bytes = bytes.get(part).unwrap_or_default();
            self.store.write_all_at(bytes, run.start).map_err(|error| {
                let what = format!("write {} bytes at {} to", bytes.len(), run.start);
                Error::io(what, self.store.path(), error)
            })?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _: &Cancel, _: &dyn Observer) -> Result<()> {
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

    fn finish(self: Box<Self>, _: &Cancel, _: &dyn Observer) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the last cluster of the largest disk the end did not fit 32 bits.
    #[test]
    fn clusters_are_whole_up_to_the_last_block() {
        let differing: RoaringBitmap = [5, u32::MAX - 1].into_iter().collect();
        let wanted = whole_clusters(&differing, 4, 1 << 32);
        let last = (u32::MAX - 3)..=u32::MAX;
        assert_eq!(wanted, (4..8).chain(last).collect());
        assert_eq!(whole_clusters(&differing, 0, 1 << 32), differing);
        let differing: RoaringBitmap = [8].into_iter().collect();
        assert_eq!(whole_clusters(&differing, 4, 10), (8..10).collect());
    }
}
