//! Changing what the guest sees, as a whole or not at all: new clusters are written beside the old
//! ones, and in the end one sector that leads to the new clusters.

use std::ops::Range;

use qdelta_formats::qcow2::{
    Header, HostOffset, Incompatible, L1_ENTRY_SIZE, L1Entry, Linked, Mapping, Version,
};
use roaring::{RoaringBitmap, RoaringTreemap};

use super::bitmap;
use super::change::{Change, change_and};
use super::file::ImageFile;
use crate::base::error::Result;

/// An image whose disk is being changed. No part of the change can be seen before all of it is
/// done.
pub struct Rewrite<'c, 'f> {
    change: &'c mut Change<'f>,
    /// The active L1 table after the change.
    l1: Vec<L1Entry>,
    /// Whether unallocated clusters of the image show a backing file.
    is_overlay: bool,
    /// The L2 tables that have got their new place, by the number of their L1 entry.
    moved: RoaringBitmap,
    loaded: Option<Loaded>,
}

/// An L2 table in memory.
struct Loaded {
    index: usize,
    /// Where the table lies; `None` if it is new.
    place: Option<HostOffset>,
    bytes: Vec<u8>,
}

/// Changes the disk of an image: `work` says which guest clusters hold which bytes. In the end
/// either the whole change is there, or the disk is as it was, whenever the power fails. The old
/// clusters become holes of the file when the new ones are in use: for a moment there must be room
/// for both. Persistent bitmaps, which would not know of the change, are removed first. Internal
/// snapshots stay as they are. `is_overlay` says that the image has a backing file, even if its
/// header names none.
///
/// # Errors
/// [`crate::ErrorKind::Image`] if the image is damaged, dirty, marked as corrupt, or has an external data
/// file; [`crate::ErrorKind::NoSpace`]; whatever `work` fails with.
pub fn rewrite<T>(
    image: &ImageFile,
    is_overlay: bool,
    work: impl FnOnce(&mut Rewrite<'_, '_>) -> Result<T>,
) -> Result<T> {
    check_data_file(image, image.first_cluster()?.header())?;
    let bitmaps = bitmap::list(image)?;
    let names: Vec<_> = bitmaps.iter().map(|it| String::from_utf8_lossy(&it.name)).collect();
    bitmap::remove_all(image, &names.iter().map(AsRef::as_ref).collect::<Vec<&str>>())?;
    let build = |change: &mut Change<'_>| {
        let l1 = change.l1.clone();
        let mut rewrite =
            Rewrite { change, l1, is_overlay, moved: RoaringBitmap::new(), loaded: None };
        let value = work(&mut rewrite)?;
        rewrite.finish()?;
        Ok((Linked::default(), value))
    };
    change_and(image, build, give_back)
}

/// Gives the filesystem back what a change that was killed has left in the file, before or after the disk
/// became the new one. What fails does not matter to the image, and is logged alone.
///
/// # Errors
/// The image is damaged, or marked as corrupt.
pub fn give_back_room(image: &ImageFile) -> Result<()> {
    give_back(&mut Change::begin(image)?)
        .unwrap_or_else(|error| tracing::debug!("giving back room: {}", error.chain()));
    Ok(())
}

/// Lets all clusters that are free be holes of the file, and the file end behind the last one in use. The
/// old disk is as long as the new one: what it took of the filesystem's room, others may need.
fn give_back(change: &mut Change<'_>) -> Result<()> {
    let (file, cluster, end) = (change.file, change.format.cluster, change.counts.end()?);
    file.cut(end << cluster.bits())?;
    file.give_back(&free_clusters(change, end)?, cluster)
}

/// The clusters before `end` that are free.
fn free_clusters(change: &mut Change<'_>, end: u64) -> Result<RoaringTreemap> {
    let mut free = RoaringTreemap::new();
    for number in 0..end {
        if change.counts.count(number)? == 0 {
            free.insert(number);
        }
    }
    Ok(free)
}

/// The room that a rewrite finds in an image.
#[derive(Debug, Default)]
pub struct Spare {
    /// Size of a cluster, in bytes.
    pub cluster_size: u64,
    /// How much of the disk an L2 table covers, in bytes.
    pub table_coverage: u64,
    /// Of version 2, in which nothing but a cluster of zeros hides what lies below.
    is_v2: bool,
    has_backing_file: bool,
    /// How many clusters the file has.
    file_clusters: u64,
    /// The clusters of the file that are free.
    free: RoaringTreemap,
    /// Clusters of the L1 table and the refcount table.
    tables: u64,
    /// Refcount blocks, and of how many clusters each has the counts.
    blocks: (u64, u64),
}

impl Spare {
    /// Whether zeros need clusters; `is_overlay` says that something lies below the image, also if its
    /// header does not.
    pub fn zeros_are_written(&self, is_overlay: bool) -> bool {
        self.is_v2 && (is_overlay || self.has_backing_file)
    }

    /// How many clusters a rewrite takes for `data` clusters of the disk and `l2` of its L2 tables: with
    /// the L1 table, and with all that counts references, which is written anew, too.
    pub fn needed(&self, data: u64, l2: u64) -> u64 {
        if data + l2 == 0 {
            return 0;
        }
        let (blocks, per_block) = self.blocks;
        let taken = data + l2 + self.tables + blocks + 2;
        let new = taken.saturating_sub(self.free.len());
        let more_blocks = new.div_ceil(per_block.max(1)) + 1;
        // Each block is in the table, with eight bytes.
        taken + more_blocks + (more_blocks * 8).div_ceil(self.cluster_size.max(1))
    }

    /// Where in the file the `count` clusters lie that a rewrite takes: first what is free, then behind
    /// the end.
    pub fn places(&self, count: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let behind = self.file_clusters..;
        let numbers = self.free.iter().chain(behind).take(count as usize);
        numbers.map(|number| number * self.cluster_size..(number + 1) * self.cluster_size)
    }
}

/// Fails where [`rewrite`] would fail, except for lack of room, and changes nothing. Gives the room
/// that a rewrite would find.
///
/// # Errors
/// As [`rewrite`].
pub fn check_rewrite(image: &ImageFile) -> Result<Spare> {
    let mut change = Change::begin(image)?;
    check_data_file(image, change.header())?;
    let bitmaps = bitmap::list(image)?;
    let cluster = change.format.cluster;
    let file_clusters = change.file_len / cluster.bytes();
    let free = free_clusters(&mut change, file_clusters)?;
    let header = change.header();
    let l1 = cluster.count(u64::from(header.l1.entries) * L1_ENTRY_SIZE);
    let refcounts = u64::from(header.refcount_table_clusters) + 1;
    let (is_v2, has_backing_file) = (header.version == Version::V2, header.backing_name.is_some());
    // They are removed first, in a change of its own, which leaves the old counts behind.
    let times = if bitmaps.is_empty() { 1 } else { 2 };
    let (blocks, per_block) = change.counts.blocks();
    Ok(Spare {
        cluster_size: cluster.bytes(),
        table_coverage: change.format.table_coverage(),
        is_v2,
        has_backing_file,
        file_clusters,
        free,
        tables: (l1 + refcounts) * times,
        blocks: (blocks * times, per_block),
    })
}

/// Data in an external data file has no clusters in the image.
fn check_data_file(image: &ImageFile, header: &Header) -> Result<()> {
    if header.incompatible.contains(Incompatible::DATA_FILE) {
        return Err(image
            .refused("has an external data file, which can't be changed at once")
            .advise("restore to a new file"));
    }
    Ok(())
}

impl Rewrite<'_, '_> {
    /// Size of a cluster in bytes.
    pub fn cluster_size(&self) -> u64 {
        self.change.format.cluster.bytes()
    }

    /// Lets guest cluster `number` hold `bytes`, which are as long as a cluster.
    ///
    /// # Errors
    /// The image is damaged there, or there is no room.
    pub fn write(&mut self, number: u64, bytes: &[u8]) -> Result<()> {
        let host = self.change.write_new(bytes.to_vec())?;
        self.set(number, Mapping::Data { host })
    }

    /// Lets guest cluster `number` read as zeros.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zero(&mut self, number: u64) -> Result<()> {
        let header = self.change.header();
        match (self.is_overlay || header.backing_name.is_some(), header.version) {
            (false, _) => self.set(number, Mapping::Unallocated),
            (true, Version::V3) => self.set(number, Mapping::Zero { host: None }),
            (true, Version::V2) => {
                let zeros = vec![0; self.change.format.cluster.len()];
                self.write(number, &zeros)
            }
        }
    }

    fn set(&mut self, number: u64, mapping: Mapping) -> Result<()> {
        let entries = self.change.entries() as u64;
        self.load((number / entries) as usize)?;
        let index = (number % entries) as usize;
        let file = self.change.file;
        let entry = self.change.format.encode(mapping, true).map_err(|error| file.wrong(error))?;
        let Some(loaded) = &mut self.loaded else { return Ok(()) };
        let place = loaded.place.unwrap_or(HostOffset(0));
        let old = self.change.clusters_of_entry(&loaded.bytes, place, index)?;
        self.change.counts.add_all(old, -1)?;
        let slot = self.change.entry_mut(&mut loaded.bytes, index);
        let len = slot.len();
        slot.copy_from_slice(entry.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Loads the L2 table of L1 entry `index` into memory.
    fn load(&mut self, index: usize) -> Result<()> {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.index == index) {
            return Ok(());
        }
        self.store()?;
        let Some(entry) = self.l1.get(index) else {
            return Err(self.change.file.damaged("its L1 table is too short for its disk"));
        };
        // Where the entry stands matters to an error alone, and it was read before.
        let file = self.change.file;
        let place = entry.l2_table(self.change.format.cluster, HostOffset(0));
        let place = place.map_err(|error| file.wrong(error))?;
        let mut bytes = self.change.l2_buffer();
        if let Some(place) = place {
            file.read(&mut bytes, place.0)?;
        }
        self.loaded = Some(Loaded { index, place, bytes });
        Ok(())
    }

    /// Writes the L2 table in memory to its new place.
    fn store(&mut self) -> Result<()> {
        let Some(Loaded { index, place, bytes }) = self.loaded.take() else { return Ok(()) };
        // An L1 table has at most 4 Mi entries.
        if !self.moved.insert(index as u32)
            && let Some(place) = place
        {
            // Nothing leads to its new place yet, so it can be written over.
            return self.change.file.write(&bytes, place.0);
        }
        let new = match place {
            Some(old) => self.change.move_l2(&bytes, old)?,
            None => self.change.write_new(bytes)?,
        };
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = L1Entry::new(Some(new), true);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.store()?;
        self.change.replace_l1(&self.l1)
    }
}
