//! The reference counts of a changed image, and finding free clusters for the change.
//!
//! The counts of the image as it is stay where they are. A refcount block that changes gets a new
//! place, which is counted in turn; in the end the whole refcount table gets a new place, too.

use std::collections::HashMap;

use qdelta_formats::qcow2::{
    ClusterSize, CompressedDescriptor, Header, HostOffset, REFCOUNT_TABLE_SIZE_MAX, RefcountOrder,
    RefcountTableEntry,
};
use roaring::{RoaringBitmap, RoaringTreemap};

use super::file::ImageFile;
use crate::base::error::{Error, ErrorKind, Result};

/// Bytes of refcount blocks that are kept in memory: enough for the counts of 1 TiB in clusters of
/// 64 KiB.
const CACHE_SIZE: usize = 32 << 20;

/// A refcount block in memory.
struct Block {
    bytes: Vec<u8>,
    changed: bool,
}

/// Reference counts that can be changed.
pub(super) struct Refcounts<'a> {
    file: &'a ImageFile,
    cluster: ClusterSize,
    order: RefcountOrder,
    /// Where the table of the image as it is lies, and its length in clusters.
    old_table: (HostOffset, u32),
    /// Where each block lies after the change; 0 if there is none and its counts are zero.
    table: Vec<u64>,
    /// The blocks that have got their new place.
    moved: RoaringBitmap,
    /// By number, at most [`CACHE_SIZE`] bytes.
    cache: HashMap<u64, Block>,
    /// Clusters that the unchanged image needs: the clusters that its metadata claims, and those
    /// that lost their last reference in the change. Nothing may be written there, whatever the
    /// counts say.
    taken: RoaringTreemap,
    /// Clusters that were free before and that the change has written to. The change may get
    /// further clusters, and fail before it has written to them.
    pub(super) written: RoaringTreemap,
    /// No cluster before this one is looked at for the change.
    next_free: u64,
}

impl<'a> Refcounts<'a> {
    /// The counts of the image with this header.
    ///
    /// # Errors
    /// The refcount table breaks the rules or lies outside the file.
    pub(super) fn read(file: &'a ImageFile, header: &Header) -> Result<Self> {
        let cluster = header.cluster;
        let (offset, clusters) = (header.refcount_table_offset, header.refcount_table_clusters);
        let len = u64::from(clusters) * cluster.bytes();
        let file_len = file.len()?;
        if offset.0.saturating_add(len).saturating_sub(file_len) >= cluster.bytes() {
            return Err(file.damaged(format!("its refcount table at {offset} is cut short")));
        }
        // At most 8 MiB, as the header's parser saw to.
        let mut bytes = vec![0; len as usize];
        file.read(&mut bytes, offset.0)?;
        let mut table = Vec::with_capacity(bytes.len() / 8);
        for (entry, position) in RefcountTableEntry::read_all(&bytes).zip((offset.0..).step_by(8)) {
            let block = entry.block(cluster, HostOffset(position));
            let block = block.map_err(|error| file.wrong(error))?.map_or(0, |block| block.0);
            if block >= file_len.max(1) {
                return Err(file.damaged(format!("a refcount block at {block:#x} is missing")));
            }
            table.push(block);
        }
        let used = table.iter().rposition(|block| *block != 0).map_or(0, |last| last + 1);
        table.truncate(used);
        Ok(Self {
            file,
            cluster,
            order: header.refcount_order,
            old_table: (offset, clusters),
            table,
            moved: RoaringBitmap::new(),
            cache: HashMap::new(),
            taken: RoaringTreemap::new(),
            written: RoaringTreemap::new(),
            next_free: 1,
        })
    }

    /// Claims the `len` bytes at `start` for metadata called `what`, for good.
    ///
    /// # Errors
    /// Something else has claimed them, or they are not counted.
    pub(super) fn claim(&mut self, what: &str, start: u64, len: u64) -> Result<()> {
        for number in self.clusters_of(start, len) {
            if !self.taken.insert(number) || self.count(number)? == 0 {
                let place = number << self.cluster.bits();
                let problem = if self.count(number)? == 0 {
                    "counts as free"
                } else {
                    "is used by something else, too"
                };
                return Err(self.file.damaged(format!("its {what} at {place:#x} {problem}")));
            }
        }
        Ok(())
    }

    /// Claims the refcount table and its blocks.
    ///
    /// # Errors
    /// As [`Refcounts::claim`].
    pub(super) fn claim_own(&mut self) -> Result<()> {
        let (offset, clusters) = self.old_table;
        self.claim("refcount table", offset.0, u64::from(clusters) * self.cluster.bytes())?;
        for index in 0..self.table.len() {
            match self.table.get(index) {
                Some(&block) if block != 0 => {
                    self.claim("refcount block", block, self.cluster.bytes())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The clusters that the image needs, as far as they were claimed or gave up their last use.
    pub(super) fn taken(&self) -> &RoaringTreemap {
        &self.taken
    }

    /// Counts in a block.
    pub(super) fn counts_per_block(&self) -> u64 {
        self.order.counts_per_block(self.cluster)
    }

    /// How many blocks the table has, including blocks without a place.
    pub(super) fn block_count(&self) -> u64 {
        self.table.len() as u64
    }

    /// Whether the block has a place; without one, all its counts are zero.
    pub(super) fn has_block(&self, block: u64) -> bool {
        let place = usize::try_from(block).ok().and_then(|block| self.table.get(block));
        place.is_some_and(|place| *place != 0)
    }

    /// The first of the `len` counts from cluster `first` on, which lie in `block`, that `wanted` is
    /// true for, and its index among them.
    pub(super) fn find(
        &mut self,
        block: u64,
        first: u64,
        len: usize,
        mut wanted: impl FnMut(usize, u64) -> bool,
    ) -> Result<Option<(usize, u64)>> {
        let (order, start) = (self.order, self.place(first).1);
        let Some(bytes) = self.block(block)? else { return Ok(None) };
        for index in 0..len {
            let count = order.get(bytes, start + index).unwrap_or(0);
            if wanted(index, count) {
                return Ok(Some((index, count)));
            }
        }
        Ok(None)
    }

    /// The numbers of the clusters that `len` bytes at `start` touch.
    pub(super) fn clusters_of(&self, start: u64, len: u64) -> std::ops::Range<u64> {
        start >> self.cluster.bits()..self.cluster.count(start.saturating_add(len))
    }

    /// The numbers of the clusters that a compressed cluster touches.
    pub(super) fn clusters_of_compressed(
        &self,
        place: CompressedDescriptor,
    ) -> std::ops::Range<u64> {
        self.clusters_of(place.host.0, place.len.into())
    }

    /// The count of cluster `number` after the change.
    pub(super) fn count(&mut self, number: u64) -> Result<u64> {
        let (block, index) = self.place(number);
        let order = self.order;
        let Some(bytes) = self.block(block)? else { return Ok(0) };
        Ok(order.get(bytes, index).unwrap_or(0))
    }

    /// The count of the cluster at `host` after the change.
    pub(super) fn count_at(&mut self, host: HostOffset) -> Result<u64> {
        self.count(host.0 >> self.cluster.bits())
    }

    /// Adds `delta` to the count of cluster `number`.
    ///
    /// # Errors
    /// The count would be below zero, or larger than fits.
    pub(super) fn add(&mut self, number: u64, delta: i64) -> Result<()> {
        // A block that gets a new place changes the counts of its old and its new one.
        let mut todo = vec![(number, delta)];
        while let Some((number, delta)) = todo.pop() {
            let (block, index) = self.place(number);
            if !self.is_moved(block) {
                let (old, new) = self.move_block(block)?;
                todo.push((new, 1));
                todo.extend(old.map(|old| (old, -1)));
            }
            self.add_here(number, block, index, delta)?;
        }
        Ok(())
    }

    /// Adds `delta` to the count of each cluster in `numbers`.
    pub(super) fn add_all(&mut self, numbers: std::ops::Range<u64>, delta: i64) -> Result<()> {
        for number in numbers {
            self.add(number, delta)?;
        }
        Ok(())
    }

    /// Writes into clusters that were allocated by this change.
    pub(super) fn write(&mut self, bytes: &[u8], place: HostOffset) -> Result<()> {
        self.file.write(bytes, place.0)?;
        self.written.insert_range(self.clusters_of(place.0, bytes.len() as u64));
        Ok(())
    }

    /// Gives the `len` bytes at `start` one reference less. Their place is not used again by this
    /// change.
    pub(super) fn free(&mut self, start: u64, len: u64) -> Result<()> {
        self.add_all(self.clusters_of(start, len), -1)
    }

    /// Finds a place for `len` bytes and counts it. No place is needed for no bytes.
    ///
    /// # Errors
    /// The image can't grow any more.
    pub(super) fn allocate(&mut self, len: u64) -> Result<HostOffset> {
        let count = self.cluster.count(len);
        if count == 0 {
            return Ok(HostOffset(0));
        }
        let start = self.find_free(count)?;
        self.add_all(start..start + count, 1)?;
        Ok(HostOffset(start << self.cluster.bits()))
    }

    /// Writes the new blocks and a new table, if any count has changed. Gives where the table lies
    /// and its length in clusters.
    ///
    /// # Errors
    /// The table would be larger than QEMU reads, or writing fails.
    pub(super) fn finish(&mut self) -> Result<Option<(HostOffset, u32)>> {
        if self.moved.is_empty() {
            return Ok(None);
        }
        let (old, clusters) = self.old_table;
        self.free(old.0, u64::from(clusters) * self.cluster.bytes())?;
        let mut clusters = u64::from(clusters);
        let place = loop {
            // The table's own place may need another block or two.
            clusters = clusters.max(self.cluster.count((self.table.len() as u64 + 2) * 8));
            let len = clusters * self.cluster.bytes();
            if len > REFCOUNT_TABLE_SIZE_MAX {
                return Err(self.full());
            }
            let place = self.allocate(len)?;
            if self.table.len() as u64 * 8 <= len {
                break place;
            }
            self.free(place.0, len)?;
        };
        self.write_changed()?;
        let mut bytes = vec![0; (clusters * self.cluster.bytes()) as usize];
        for (field, block) in bytes.chunks_exact_mut(8).zip(&self.table) {
            field.copy_from_slice(&block.to_be_bytes());
        }
        self.write(&bytes, place)?;
        // At most 8 MiB in clusters of at least 512 bytes.
        Ok(Some((place, clusters as u32)))
    }

    /// The number of the first cluster behind all that are counted.
    ///
    /// # Errors
    /// A refcount block can't be read.
    pub(super) fn end(&mut self) -> Result<u64> {
        let order = self.order;
        let per_block = order.counts_per_block(self.cluster);
        for block in (0..self.table.len() as u64).rev() {
            let Some(bytes) = self.block(block)? else { continue };
            let last = (0..per_block as usize)
                .rev()
                .find(|&index| order.get(bytes, index).is_some_and(|count| count != 0));
            if let Some(last) = last {
                return Ok(block * per_block + last as u64 + 1);
            }
        }
        Ok(0)
    }

    /// How many blocks there are, and of how many clusters each has the counts.
    pub(super) fn blocks(&self) -> (u64, u64) {
        let count = self.table.iter().filter(|place| **place != 0).count() as u64;
        (count, self.order.counts_per_block(self.cluster))
    }

    fn is_moved(&self, block: u64) -> bool {
        u32::try_from(block).is_ok_and(|block| self.moved.contains(block))
    }

    /// In which block the count of cluster `number` is, and where in it.
    fn place(&self, number: u64) -> (u64, usize) {
        let per_block = self.counts_per_block();
        (number / per_block, (number % per_block) as usize)
    }

    /// Finds a new place for the block. Gives the numbers of the clusters in which it was and is.
    fn move_block(&mut self, block: u64) -> Result<(Option<u64>, u64)> {
        let (index, number) = match (usize::try_from(block), u32::try_from(block)) {
            (Ok(index), Ok(number)) if block < REFCOUNT_TABLE_SIZE_MAX / 8 => (index, number),
            _ => return Err(self.full()),
        };
        let new = self.find_free(1)?;
        self.load(block)?;
        if self.table.len() <= index {
            self.table.resize(index + 1, 0);
        }
        let mut old = 0;
        if let Some(entry) = self.table.get_mut(index) {
            old = std::mem::replace(entry, new << self.cluster.bits());
        }
        self.moved.insert(number);
        if let Some(cached) = self.cache.get_mut(&block) {
            cached.changed = true;
        }
        Ok(((old != 0).then_some(old >> self.cluster.bits()), new))
    }

    /// Adds `delta` to one count of a block that has its new place.
    fn add_here(&mut self, number: u64, block: u64, index: usize, delta: i64) -> Result<()> {
        let (file, order) = (self.file, self.order);
        let place = number << self.cluster.bits();
        let cached = self.load(block)?;
        let before = order.get(&cached.bytes, index).unwrap_or(0);
        let Some(after) = before.checked_add_signed(delta) else {
            return Err(file.damaged(format!(
                "the cluster at {place:#x} is in use, but its refcount is {before}"
            )));
        };
        if after > order.max_count() {
            let bits = order.bits();
            let text = format!(
                "counts references in {bits} bits, too few for {after} to the cluster at {place:#x}"
            );
            return Err(file.refused(text).advise(
                "`qemu-img convert` to an image with wider refcounts, such as the usual 16 bits",
            ));
        }
        order.set(&mut cached.bytes, index, after).map_err(|error| file.wrong(error))?;
        cached.changed = true;
        if after == 0 {
            self.taken.insert(number);
        }
        Ok(())
    }

    /// The first of `count` clusters in a row that are free before and after the change.
    fn find_free(&mut self, count: u64) -> Result<u64> {
        let mut start = self.first_free(self.next_free)?;
        let mut end = start + 1;
        while end - start < count {
            let next = self.first_free(end)?;
            if next != end {
                start = next;
            }
            end = next + 1;
        }
        // Every place of the table must fit its entries, and QEMU counts bytes in a signed number.
        if end > (i64::MAX as u64 >> self.cluster.bits()).min(1 << (56 - self.cluster.bits())) {
            return Err(self.full());
        }
        self.next_free = end;
        Ok(start)
    }

    /// The first free cluster from `number` on. Behind the table, all are.
    fn first_free(&mut self, mut number: u64) -> Result<u64> {
        let order = self.order;
        let per_block = order.counts_per_block(self.cluster);
        loop {
            let (block, index) = self.place(number);
            let free = match self.block(block)? {
                None => Some(index),
                Some(bytes) => {
                    (index..per_block as usize).find(|&index| order.get(bytes, index) == Some(0))
                }
            };
            match free {
                None => number = (block + 1) * per_block,
                Some(index) => {
                    number = block * per_block + index as u64;
                    if !self.taken.contains(number) {
                        return Ok(number);
                    }
                    number += 1;
                }
            }
        }
    }

    /// The bytes of a block; nothing if it has no place.
    fn block(&mut self, block: u64) -> Result<Option<&[u8]>> {
        let place = usize::try_from(block).ok().and_then(|block| self.table.get(block));
        if place.is_none_or(|place| *place == 0) {
            return Ok(None);
        }
        Ok(Some(&self.load(block)?.bytes))
    }

    /// Loads a block into memory; a block without a place is all zeros.
    fn load(&mut self, block: u64) -> Result<&mut Block> {
        if !self.cache.contains_key(&block) {
            if self.cache.len() >= (CACHE_SIZE / self.cluster.len()).max(4) {
                self.write_changed()?;
                self.cache.clear();
            }
            let mut bytes = vec![0; self.cluster.len()];
            match usize::try_from(block).ok().and_then(|block| self.table.get(block)) {
                Some(&place) if place != 0 => self.file.read(&mut bytes, place)?,
                _ => {}
            }
            self.cache.insert(block, Block { bytes, changed: false });
        }
        self.cache.get_mut(&block).ok_or_else(|| self.file.damaged("a refcount block is lost"))
    }

    /// Writes the changed blocks to their new places. Only blocks that have one are ever changed.
    fn write_changed(&mut self) -> Result<()> {
        let mut changed: Vec<_> = self.cache.iter_mut().filter(|(_, it)| it.changed).collect();
        changed.sort_unstable_by_key(|(block, _)| **block);
        let bits = self.cluster.bits();
        for (block, cached) in changed {
            let place = usize::try_from(*block).ok().and_then(|block| self.table.get(block));
            match place {
                Some(&place) if place != 0 => {
                    self.file.write(&cached.bytes, place)?;
                    self.written.insert(place >> bits);
                }
                _ => return Err(self.file.damaged("a refcount block has no place")),
            }
            cached.changed = false;
        }
        Ok(())
    }

    fn full(&self) -> Error {
        let text = format!("{} is as large as it can be", self.file.path().display());
        Error::new(ErrorKind::NoSpace, text)
    }
}
