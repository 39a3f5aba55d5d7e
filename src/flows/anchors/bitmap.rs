//! Bitmaps as anchors: QEMU sets a bit for what a guest writes. Beside each bitmap stands a map, another
//! bitmap, of what is allocated in the image.

use std::path::Path;

use super::{Tag, is_anchor};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::edit::{self, ImageFile, NewBitmap};
use crate::disk::image::{Allocated, Image, OpenOptions};
use crate::formats::allocation::Allocation;

/// Bytes of the disk that a bit of a new bitmap stands for: QEMU's own default.
const GRANULARITY: u64 = 64 << 10;

/// Bits that a new bitmap has from the beginning, one in each of as many equal parts of the disk:
/// so many, or the fewer that leave this many bits between them, but at least three.
const CANARIES: std::ops::RangeInclusive<u64> = 3..=16;
const CANARY_SPAN: u64 = 64;

/// The name of the map beside the bitmap called `name`: another bitmap, which records no writes. It
/// says what was allocated in the image, and by its last bit that the disk was not shrunk; the bitmap
/// itself shows neither.
pub(crate) fn map_of(name: &str) -> String {
    format!("{name}{MAP}")
}

/// The name of the end beside the bitmap called `name`: another bitmap, which records no writes. It has the
/// last bit of the disk, which goes when the disk shrinks. A bitmap that was made in a running QEMU has one
/// in the place of a map.
pub(crate) fn end_of(name: &str) -> String {
    format!("{name}{END}")
}

/// The name of the bitmap that a map or an end with this name is beside.
pub(crate) fn of_map(name: &[u8]) -> Option<&[u8]> {
    name.strip_suffix(MAP.as_bytes()).or_else(|| name.strip_suffix(END.as_bytes()))
}

/// With what the names of maps end.
const MAP: &str = ".map";
/// With what the names of ends end.
const END: &str = ".end";
/// The most bits of a map whose units are smaller than those of the bitmap: QEMU has 64 MiB of them
/// in memory, and qdelta no more than that.
const MAP_BITS_MAX: u64 = 1 << 29;

/// Writes a bitmap called `name` and its map into the image of `file`, which lies at `path`.
pub(super) fn create(
    file: &ImageFile,
    path: &Path,
    options: &OpenOptions,
    name: &str,
    tag: &Tag,
) -> Result<()> {
    check_no_data_file(file)?;
    check_no_snapshots(file, tag)?;
    let image = Image::open(path, options)?;
    let bitmaps = bitmaps_of(name, image.virtual_size(), allocated(&image)?);
    edit::bitmap::create_all(file, &bitmaps)
}

/// Removes the bitmap called `name` and its map from an image, if they are still there.
pub(super) fn remove(file: &ImageFile, name: &str) -> Result<()> {
    edit::bitmap::remove_all(file, &[name, &map_of(name), &end_of(name)])?;
    reclaim(file)
}

/// Fails if the image has internal snapshots that are not `tag`'s. With a bitmap in the image,
/// `qemu-img check -r` of QEMU 7.2 to 10.0 deletes them all; and `qemu-img convert --bitmaps` puts one
/// of them in the place of the disk of now, beside the bitmaps of now.
fn check_no_snapshots(file: &ImageFile, tag: &Tag) -> Result<()> {
    let snapshots = edit::snapshot::list(file)?;
    let is_ours = |name: &[u8]| tag.owns(&String::from_utf8_lossy(name));
    let Some(other) = snapshots.iter().find(|it| !is_ours(&it.name)) else { return Ok(()) };
    let (path, name) = (file.path().display(), String::from_utf8_lossy(&other.name));
    let text = format!(
        "{path} has an internal snapshot '{name}', which `qemu-img check -r` would delete if there \
         was a bitmap, too"
    );
    Err(Error::new(ErrorKind::Usage, text).advise("--anchor snapshot does it no harm"))
}

/// Fails if the image has its data in another file: its bitmap would never be believed, since the data
/// may change behind its back.
fn check_no_data_file(file: &ImageFile) -> Result<()> {
    if !file.has_data_file()? {
        return Ok(());
    }
    let text = format!("{} has an external data file", file.path().display());
    Err(Error::new(ErrorKind::Usage, text)
        .because("it may change behind the back of a bitmap")
        .advise("--anchor reflink looks at both files"))
}

/// The bitmap called `name` of a disk of `size` bytes, and the map of what is allocated in its image.
fn bitmaps_of(name: &str, size: u64, allocated: Allocated) -> [NewBitmap; 2] {
    let Allocated { unit, mut units } = allocated;
    units.insert(size.saturating_sub(1) / unit);
    let set = canaries(name, size).into_iter().map(|byte| byte / GRANULARITY).collect();
    [
        NewBitmap { name: map_of(name), granularity: unit, records: false, set: units },
        NewBitmap { name: name.to_owned(), granularity: GRANULARITY, records: true, set },
    ]
}

/// What is allocated in the top layer of an image, for a map.
///
/// # Errors
/// [`ErrorKind::Usage`] if a map of it would be too large; otherwise as [`Image::allocated`].
pub(crate) fn allocated(image: &Image) -> Result<Allocated> {
    let (size, unit) = (image.virtual_size(), image.allocation_unit()?);
    if unit < GRANULARITY && size.div_ceil(unit) > MAP_BITS_MAX {
        let text = format!(
            "a disk of {} in clusters (or subclusters) of {unit} bytes is too large for a bitmap of \
             them",
            bytesize::ByteSize(size).display().iec()
        );
        return Err(Error::new(ErrorKind::Usage, text).advise("--anchor snapshot needs none"));
    }
    image.allocated()
}

/// Bytes of a disk of `size` bytes whose bits are set in the bitmap called `name` from the
/// beginning: whoever clears it, or puts another one in its place, takes them away, and only a guest
/// that then writes everywhere brings all of them back. They are anywhere in their parts, so that
/// guests do not all write there.
pub(crate) fn canaries(name: &str, size: u64) -> Vec<u64> {
    let bits = size.div_ceil(GRANULARITY);
    let count = (bits / CANARY_SPAN).clamp(*CANARIES.start(), *CANARIES.end());
    let mut digest = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    let place = |part: u64| {
        let (begin, end) = (part * bits / count, (part + 1) * bits / count);
        let mut number = [0; 8];
        digest.fill(&mut number);
        (begin + u64::from_le_bytes(number) % (end - begin).max(1)) * GRANULARITY
    };
    (0..count).map(place).collect()
}

/// What is allocated in an image over a backing file when the bitmap called `name` begins, as this host keeps it: into
/// an image that QEMU has open, no map can be written.
///
/// # Errors
/// As [`allocated`].
pub(crate) fn allocation(image: &Image, name: &str) -> Result<Vec<u8>> {
    let Allocated { unit, units } = allocated(image)?;
    Ok(Allocation { anchor: name.to_owned(), unit, units }.encode())
}

/// Gives the clusters of bitmaps back to which nothing leads any more.
pub(super) fn reclaim(file: &ImageFile) -> Result<()> {
    let clusters = edit::reclaim(file, is_anchor)?;
    if clusters > 0 {
        tracing::debug!(clusters, "bitmaps had left them");
    }
    Ok(())
}

/// Gives back what the bitmap of the latest point has left in the image at `path`, which is not valid
/// any more.
///
/// # Errors
/// As [`super::remove`].
pub(crate) fn reclaim_at(path: &Path) -> Result<()> {
    reclaim(&ImageFile::open(path)?)
}
