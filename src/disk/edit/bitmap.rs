//! Persistent dirty bitmaps.

use std::ops::Range;

use qdelta_formats::qcow2::bitmap::encode_directory;
use qdelta_formats::qcow2::{
    Autoclear, Bitmap, BitmapTableEntry, BitmapsExtension, ClusterSize, Linked,
};
use roaring::RoaringTreemap;

use super::change::{Change, change, check_bitmaps_fit, usage};
use super::file::ImageFile;
use super::metadata;
use crate::base::error::{Error, ErrorKind, Result};

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
/// order, with gaps between them, and within the disk.
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

/// A bitmap that is to be put into an image.
#[derive(Debug, Clone)]
pub struct NewBitmap {
    /// Its name.
    pub name: String,
    /// How many bytes of the disk a bit stands for.
    pub granularity: u64,
    /// Whether QEMU records every write in the bitmap from now on. If not, the bitmap changes only
    /// as all bitmaps do: when the disk shrinks, QEMU drops the bits of the lost end.
    pub records: bool,
    /// The numbers of the bits that are set from the beginning.
    pub set: RoaringTreemap,
}

/// Puts an empty bitmap into the image, in which QEMU records every write from now on. A bit stands
/// for `granularity` bytes.
///
/// # Errors
/// See [`create_all`].
pub fn create(image: &ImageFile, name: &str, granularity: u64) -> Result<()> {
    let set = RoaringTreemap::new();
    let bitmap = NewBitmap { name: name.to_owned(), granularity, records: true, set };
    create_all(image, &[bitmap])
}

/// Puts bitmaps into the image.
///
/// In the end either all of them are in the image, or the image is as it was. Clusters may leak if
/// the power fails in between.
///
/// # Errors
/// [`ErrorKind::Exists`] if the image has a bitmap of such a name; [`ErrorKind::Usage`] for a name
/// or a granularity that QEMU does not take; [`ErrorKind::Image`] if the image is of version 2,
/// damaged, dirty or marked as corrupt; [`ErrorKind::NoSpace`].
pub fn create_all(image: &ImageFile, bitmaps: &[NewBitmap]) -> Result<()> {
    let created = update(image, |change| {
        bitmaps.iter().try_for_each(|bitmap| add(change, bitmap)).map(|()| Vec::new())
    });
    created.map_err(|error| {
        let names: Vec<&str> = bitmaps.iter().map(|bitmap| bitmap.name.as_str()).collect();
        let (names, path) = (names.join("' and '"), image.path().display());
        error.within(format!("cannot add the bitmap '{names}' to {path}"))
    })
}

/// Adds a bitmap to the changed image.
fn add(change: &mut Change<'_>, new: &NewBitmap) -> Result<()> {
    let (size, cluster) = (change.header().virtual_size(), change.format.cluster);
    let mut bitmap = Bitmap::new(new.name.as_bytes(), new.granularity, size, cluster)
        .map_err(|error| usage("this bitmap can't be").because(error))?;
    bitmap.auto = new.records;
    if change.bitmaps.iter().any(|it| it.name == bitmap.name) {
        let (path, name) = (change.file.path().display(), &new.name);
        return Err(Error::new(ErrorKind::Exists, format!("{path} has a bitmap '{name}' already")));
    }
    // A table entry of zero means that all its bits are zero.
    let mut table = vec![0; bitmap.table.entries as usize * TABLE_ENTRY_LEN];
    let bits_per_cluster = cluster.bytes() * 8;
    let bits = size.div_ceil(new.granularity);
    let mut set = new.set.iter().take_while(|bit| *bit < bits).peekable();
    while let Some(number) = set.peek().map(|bit| bit / bits_per_cluster) {
        let mut bytes = vec![0; cluster.len()];
        while let Some(bit) = set.next_if(|bit| bit / bits_per_cluster == number) {
            if let Some(byte) = bytes.get_mut((bit % bits_per_cluster / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
        let entry = match bytes.iter().all(|byte| *byte == 0xff) {
            true => BitmapTableEntry::Ones,
            false => BitmapTableEntry::Stored(change.write_new(bytes)?),
        };
        if let Some(place) = table.chunks_exact_mut(TABLE_ENTRY_LEN).nth(number as usize) {
            place.copy_from_slice(&entry.to_bytes());
        }
    }
    bitmap.table.offset = change.write_new(table)?;
    change.bitmaps.push(bitmap);
    Ok(())
}

/// Removes a bitmap, whatever its state.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none; otherwise see [`remove_all`].
pub fn remove(image: &ImageFile, name: &str) -> Result<()> {
    if list(image)?.iter().all(|bitmap| bitmap.name != name.as_bytes()) {
        return Err(missing(image, name).within(cannot_remove(image, name)));
    }
    remove_all(image, &[name])
}

/// Removes the bitmaps with these names, whatever their state. Names without a bitmap are passed
/// over.
///
/// In the end either all of them are gone, or the image is as it was. Clusters may leak if the
/// power fails in between.
///
/// # Errors
/// [`ErrorKind::Image`] if the image is damaged, dirty or marked as corrupt;
/// [`ErrorKind::NoSpace`].
pub fn remove_all(image: &ImageFile, names: &[&str]) -> Result<()> {
    let is_named = |bitmap: &Bitmap| names.iter().any(|name| name.as_bytes() == bitmap.name);
    if !list(image)?.iter().any(is_named) {
        return Ok(());
    }
    let removed = update(image, |change| {
        let (gone, stay) = std::mem::take(&mut change.bitmaps).into_iter().partition(is_named);
        change.bitmaps = stay;
        Ok(gone)
    });
    removed.map_err(|error| error.within(cannot_remove(image, &names.join("' and '"))))
}

fn cannot_remove(image: &ImageFile, names: &str) -> String {
    format!("cannot remove the bitmap '{names}' of {}", image.path().display())
}

fn missing(image: &ImageFile, name: &str) -> Error {
    let path = image.path().display();
    Error::new(ErrorKind::NotFound, format!("{path} has no bitmap '{name}'"))
}

/// What the header no longer leads to.
struct Left {
    directory: Option<BitmapsExtension>,
    bitmaps: Vec<Bitmap>,
}

/// Changes the list of bitmaps by `edit`, which gives the removed bitmaps.
fn update(
    image: &ImageFile,
    edit: impl FnOnce(&mut Change<'_>) -> Result<Vec<Bitmap>>,
) -> Result<()> {
    make_room(image)?;
    let left = change(image, |change| {
        check_bitmaps_fit(image, change.header())?;
        let directory = metadata::bitmaps_extension(change.header());
        let left = Left { directory, bitmaps: edit(change)? };
        let extension = write_directory(change)?;
        let autoclear = change.header().autoclear;
        change.first.set_autoclear(match extension {
            Some(_) => autoclear.with(Autoclear::BITMAPS),
            None => autoclear.without(Autoclear::BITMAPS),
        });
        let linked = change.first.link_bitmaps(extension).map_err(|error| image.wrong(error))?;
        // If the change takes one step, that step replaces the old directory by the new one.
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
    // This also fails if the image can't safely be written to.
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
    let (file, counts) = (change.file, &mut change.counts);
    let cluster: ClusterSize = change.format.cluster;
    for bitmap in &left.bitmaps {
        metadata::bitmap_table(file, cluster, bitmap, |_, entry| match entry {
            BitmapTableEntry::Stored(place) => counts.free(place.0, cluster.bytes()),
            _ => Ok(()),
        })?;
        counts.free(bitmap.table.offset.0, u64::from(bitmap.table.entries) * 8)?;
    }
    Ok(())
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
