//! Changing what the guest sees, as a whole or not at all: new clusters beside the old ones, and in
//! the end the one sector that leads to them.

use qdelta_formats::qcow2::{Header, HostOffset, Incompatible, L1Entry, Linked, Mapping, Version};
use roaring::RoaringBitmap;

use super::bitmap;
use super::change::{Change, change};
use super::file::ImageFile;
use crate::error::Result;

/// An image whose disk is being changed. Nothing of it can be seen before all is done.
pub struct Rewrite<'c, 'f> {
    change: &'c mut Change<'f>,
    /// The active L1 table as it is to be.
    l1: Vec<L1Entry>,
    /// The L2 tables that have got their new place, by the number of their L1 entry.
    moved: RoaringBitmap,
    loaded: Option<Loaded>,
}

/// An L2 table in memory.
struct Loaded {
    index: usize,
    /// Where it lies; nowhere if it is new.
    place: Option<HostOffset>,
    bytes: Vec<u8>,
}

/// Changes the disk of an image: `work` says which guest clusters are to hold what. Either all of it
/// is there in the end, or the disk is as it was, whenever the power fails. The image grows by what
/// is new; what is old becomes free for the guest to use. Persistent bitmaps, which would not know of
/// the change, are removed first. Internal snapshots stay as they are.
///
/// # Errors
/// [`crate::ErrorKind::Image`] if the image is damaged, dirty, marked as corrupt, or has an external data
/// file; [`crate::ErrorKind::NoSpace`]; whatever `work` fails with.
pub fn rewrite<T>(
    image: &ImageFile,
    work: impl FnOnce(&mut Rewrite<'_, '_>) -> Result<T>,
) -> Result<T> {
    check_data_file(image, image.first_cluster()?.header())?;
    let bitmaps = bitmap::list(image)?;
    let names: Vec<_> = bitmaps.iter().map(|it| String::from_utf8_lossy(&it.name)).collect();
    bitmap::remove_all(image, &names.iter().map(AsRef::as_ref).collect::<Vec<&str>>())?;
    change(image, |change| {
        let l1 = change.l1.clone();
        let mut rewrite = Rewrite { change, l1, moved: RoaringBitmap::new(), loaded: None };
        let value = work(&mut rewrite)?;
        rewrite.finish()?;
        Ok((Linked::default(), value))
    })
}

/// Fails as [`rewrite`] would, but for want of room; nothing is changed. Gives how many bytes of the
/// image's own clusters are free.
///
/// # Errors
/// As [`rewrite`].
pub fn check_rewrite(image: &ImageFile) -> Result<u64> {
    let mut change = Change::begin(image)?;
    check_data_file(image, change.header())?;
    bitmap::list(image)?;
    let cluster = change.format.cluster.bytes();
    let mut free = 0;
    for number in 0..change.file_len / cluster {
        free += u64::from(change.counts.count(number)? == 0) * cluster;
    }
    Ok(free)
}

/// What is in a data file has no clusters of its own.
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
        match (header.backing_name.is_some(), header.version) {
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

    /// Gets the L2 table of L1 entry `index` into memory.
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
