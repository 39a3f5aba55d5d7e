//! Persistent dirty bitmaps.

use std::ops::Range;

use qdelta_formats::qcow2::bitmap::encode_directory;
use qdelta_formats::qcow2::{
    Autoclear, Bitmap, BitmapTableEntry, BitmapsExtension, ClusterSize, HostOffset, Linked,
};

use super::change::{Change, change, check_bitmaps_fit, usage};
use super::file::ImageFile;
use super::metadata;
use crate::error::{Error, ErrorKind, Result};

/// Bytes in an entry of a bitmap table.
const TABLE_ENTRY_LEN: usize = 8;

/// The persistent bitmaps of an image, in the order of its directory; none if a program that does
/// not know bitmaps has written to the image. A bitmap with [`Bitmap::in_use`] was not saved, and
/// its bits mean nothing.
///
/// # Errors
/// [`ErrorKind::Image`] if the image or its directory breaks the rules.
pub fn list(image: &ImageFile) -> Result<Vec<Bitmap>> {
    metadata::bitmaps(image, image.first_cluster()?.header())
}

/// Calls `each` with every range of the disk, in bytes, that the bitmap says was written to: in
/// order, apart from each other, and within the disk.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such bitmap; [`ErrorKind::Image`] if its bits can't be
/// believed or break the rules; whatever `each` fails with.
pub fn read(
    image: &ImageFile,
    name: &str,
    mut each: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let first = image.first_cluster()?;
    let header = first.header();
    let bitmaps = metadata::bitmaps(image, header)?;
    let Some(bitmap) = bitmaps.iter().find(|it| it.name == name.as_bytes()) else {
        return Err(missing(image, name));
    };
    if !bitmap.is_usable() {
        let why = if bitmap.in_use { "was not saved properly" } else { "has unknown extra data" };
        return Err(image.refused(format!("has a bitmap '{name}' that {why}")));
    }
    let mut runs = Runs {
        granularity: bitmap.granularity(),
        size: header.virtual_size(),
        open: 0..0,
        each: &mut each,
    };
    let mut bytes = vec![0; header.cluster.len()];
    let bits_per_entry = header.cluster.bytes() * 8;
    metadata::bitmap_table(image, header.cluster, bitmap, |number, entry| {
        let first_bit = number * bits_per_entry;
        match entry {
            BitmapTableEntry::Zeros => Ok(()),
            BitmapTableEntry::Ones => runs.add(first_bit, bits_per_entry),
            BitmapTableEntry::Stored(place) => {
                image.read(&mut bytes, place.0)?;
                runs.add_bytes(first_bit, &bytes)
            }
        }
    })?;
    runs.finish()
}

/// Puts an empty bitmap into the image that records every write from now on; a bit stands for
/// `granularity` bytes.
///
/// Either it is there in the end, or the image is as it was. Clusters may leak if the power fails
/// in between.
///
/// # Errors
/// [`ErrorKind::Exists`] if there is one with this name; [`ErrorKind::Usage`] for a name or a
/// granularity that QEMU does not take; [`ErrorKind::Image`] if the image is of version 2, damaged,
/// dirty or marked as corrupt; [`ErrorKind::NoSpace`].
pub fn create(image: &ImageFile, name: &str, granularity: u64) -> Result<()> {
    add(image, name, granularity, |change, bitmap| {
        // Its entries say that all bits are zero.
        change.write_new(vec![0; bitmap.table.entries as usize * TABLE_ENTRY_LEN])
    })
}

/// Puts a bitmap into the image that records nothing and of which only the bit of the disk's last
/// byte is set. QEMU clears it when the disk shrinks, and a guest can't set it again: it shows that
/// a disk was shrunk, also if it has grown since. [`read`] gives the bit.
///
/// # Errors
/// See [`create`].
pub fn create_end_mark(image: &ImageFile, name: &str, granularity: u64) -> Result<()> {
    add(image, name, granularity, |change, bitmap| {
        bitmap.auto = false;
        let last_bit = change.header().virtual_size().saturating_sub(1) / granularity;
        let cluster = change.format.cluster;
        let mut bits = vec![0; cluster.len()];
        if let Some(byte) = bits.get_mut((last_bit / 8 % cluster.bytes()) as usize) {
            *byte = 1 << (last_bit % 8);
        }
        let place = change.write_new(bits)?;
        let mut table = vec![0; bitmap.table.entries as usize * TABLE_ENTRY_LEN];
        // The last entry is the last bit's.
        if let Some(entry) = table.last_chunk_mut::<TABLE_ENTRY_LEN>() {
            *entry = place.0.to_be_bytes();
        }
        change.write_new(table)
    })
}

/// Adds a bitmap, of which `write` writes the table and says where it lies.
fn add(
    image: &ImageFile,
    name: &str,
    granularity: u64,
    write: impl FnOnce(&mut Change<'_>, &mut Bitmap) -> Result<HostOffset>,
) -> Result<()> {
    let created = update(image, |change| {
        let header = change.header();
        let (size, cluster) = (header.virtual_size(), header.cluster);
        let mut bitmap = Bitmap::new(name.as_bytes(), granularity, size, cluster)
            .map_err(|error| usage("this bitmap can't be").because(error))?;
        if change.bitmaps.iter().any(|it| it.name == bitmap.name) {
            let text = format!("{} has a bitmap '{name}' already", image.path().display());
            return Err(Error::new(ErrorKind::Exists, text));
        }
        bitmap.table.offset = write(change, &mut bitmap)?;
        change.bitmaps.push(bitmap);
        Ok(None)
    });
    let path = image.path().display();
    created.map_err(|error| error.within(format!("cannot add the bitmap '{name}' to {path}")))
}

/// Removes a bitmap, whatever its state.
///
/// Either it is gone in the end, or the image is as it was. Clusters may leak if the power fails
/// in between.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Image`] if the image is damaged, dirty or
/// marked as corrupt; [`ErrorKind::NoSpace`].
pub fn remove(image: &ImageFile, name: &str) -> Result<()> {
    let removed = update(image, |change| {
        let index = change.bitmaps.iter().position(|it| it.name == name.as_bytes());
        let index = index.ok_or_else(|| missing(image, name))?;
        Ok(Some(change.bitmaps.remove(index)))
    });
    let path = image.path().display();
    removed.map_err(|error| error.within(format!("cannot remove the bitmap '{name}' of {path}")))
}

fn missing(image: &ImageFile, name: &str) -> Error {
    let path = image.path().display();
    Error::new(ErrorKind::NotFound, format!("{path} has no bitmap '{name}'"))
}

/// What the header leads to no longer.
struct Left {
    directory: Option<BitmapsExtension>,
    bitmap: Option<Bitmap>,
}

/// Changes the list of bitmaps as `edit` says, which gives the bitmap that was removed.
fn update(
    image: &ImageFile,
    edit: impl FnOnce(&mut Change<'_>) -> Result<Option<Bitmap>>,
) -> Result<()> {
    make_room(image)?;
    let left = change(image, |change| {
        check_bitmaps_fit(image, change.header())?;
        let left =
            Left { directory: metadata::bitmaps_extension(change.header()), bitmap: edit(change)? };
        let extension = write_directory(change)?;
        let autoclear = change.header().autoclear;
        change.first.set_autoclear(match extension {
            Some(_) => autoclear.with(Autoclear::BITMAPS),
            None => autoclear.without(Autoclear::BITMAPS),
        });
        let linked = change.first.link_bitmaps(extension).map_err(|error| image.wrong(error))?;
        // The old directory goes in the same step as the new one comes, if it is one step.
        let two_steps = linked.switch.is_some() && extension.is_some() && left.directory.is_some();
        if two_steps {
            return Ok((linked, Some(left)));
        }
        free(change, &left)?;
        Ok((linked, None))
    })?;
    match left {
        None => Ok(()),
        Some(left) => change(image, |change| {
            free(change, &left)?;
            Ok((Linked::default(), ()))
        }),
    }
}

/// Moves the name of the backing file if it is in the way of the first bitmap.
fn make_room(image: &ImageFile) -> Result<()> {
    let mut first = image.first_cluster()?;
    check_bitmaps_fit(image, first.header())?;
    let name = first.make_room_for_bitmaps().map_err(|error| image.wrong(error))?;
    let Some((offset, name)) = name else { return Ok(()) };
    // Also fails if the image is not fit to be written to.
    change(image, |change| {
        image.write(&name, offset)?;
        change.first = first;
        Ok((Linked::default(), ()))
    })
}

/// Writes the directory anew; there is none without bitmaps.
fn write_directory(change: &mut Change<'_>) -> Result<Option<BitmapsExtension>> {
    if change.bitmaps.is_empty() {
        return Ok(None);
    }
    let file = change.file;
    let bytes = encode_directory(&change.bitmaps).map_err(|error| file.wrong(error))?;
    let directory_len = bytes.len() as u64;
    let directory = change.write_new(bytes)?;
    // At most 65,535, as the encoder saw to.
    let count = change.bitmaps.len() as u32;
    Ok(Some(BitmapsExtension { count, directory, directory_len }))
}

fn free(change: &mut Change<'_>, left: &Left) -> Result<()> {
    if let Some(old) = left.directory {
        change.counts.free(old.directory.0, old.directory_len)?;
    }
    let Some(bitmap) = &left.bitmap else { return Ok(()) };
    let (file, counts) = (change.file, &mut change.counts);
    let cluster: ClusterSize = change.format.cluster;
    metadata::bitmap_table(file, cluster, bitmap, |_, entry| match entry {
        BitmapTableEntry::Stored(place) => counts.free(place.0, cluster.bytes()),
        _ => Ok(()),
    })?;
    counts.free(bitmap.table.offset.0, u64::from(bitmap.table.entries) * 8)
}

/// Joins bits to ranges of the disk.
struct Runs<'a, F> {
    granularity: u64,
    /// Of the disk, in bytes.
    size: u64,
    /// The range, in bits, that may go on.
    open: Range<u64>,
    each: &'a mut F,
}

impl<F: FnMut(Range<u64>) -> Result<()>> Runs<'_, F> {
    /// `count` bits from `first` on are set.
    fn add(&mut self, first: u64, count: u64) -> Result<()> {
        if self.open.end != first {
            self.close()?;
            self.open.start = first;
        }
        self.open.end = first + count;
        Ok(())
    }

    /// The bits of `bytes`, of which the lowest of each byte comes first.
    fn add_bytes(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        for (byte, at) in bytes.iter().zip((first..).step_by(8)) {
            match byte {
                0 => {}
                0xff => self.add(at, 8)?,
                _ => {
                    for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                        self.add(at + bit, 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let bits = std::mem::replace(&mut self.open, 0..0);
        let bytes = |bit: u64| bit.saturating_mul(self.granularity).min(self.size);
        let range = bytes(bits.start)..bytes(bits.end);
        if range.is_empty() { Ok(()) } else { (self.each)(range) }
    }

    fn finish(mut self) -> Result<()> {
        self.close()
    }
}
