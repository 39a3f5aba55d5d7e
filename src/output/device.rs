//! An existing block device: whatever was on it before must be gone afterwards.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use roaring::RoaringBitmap;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::file_id::refuse_input;
use super::{ImageWriter, Options, Plan, on_disk, write_at};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{FileStore, Opener, Store};
use crate::observer::Observer;
use crate::sys::image_lock::ImageLock;
use crate::warning::{Code, Warning};

/// How much of the device's start and end is looked at for signs of use, in bytes.
const LOOKED_AT: u64 = 1 << 20;
/// How much is zeroed between two looks at the request to stop, in bytes.
const ZEROED_AT_ONCE: u64 = 256 << 20;
/// How many zeros are written at once where the device can't be asked for them, in bytes.
const ZEROS: usize = 1 << 20;
/// What the kernel asks zeroed ranges to be aligned to, in bytes: no device has longer sectors.
const SECTOR_SIZE_MAX: u64 = 4096;

pub(super) struct Device {
    store: Arc<FileStore>,
    plan: Plan,
    /// The blocks that have been written. All others are zeroed in the end, also those that were
    /// planned and never came: old bytes must not shine through.
    written: Mutex<RoaringBitmap>,
    _lock: ImageLock,
}

impl Device {
    pub(super) fn open(
        path: &Path,
        plan: Plan,
        options: &Options,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let opened = Opener::CHANGE.or_device().unused().open(path);
        let file = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => {
                let text = format!("{} is mounted or otherwise in use", path.display());
                Error::new(ErrorKind::Busy, text).because(error)
            }
            _ => Error::io("open", path, error),
        })?;
        refuse_input(&file, path, &options.inputs)?;
        let lock = ImageLock::exclusive(&file, path)?;
        if let Some(warning) = lock.warning() {
            observer.warn(Warning::new(Code::NoLocks, warning));
        }
        let store = Arc::new(FileStore::new(file, path));
        let size = store.len().map_err(|error| Error::io("measure", path, error))?;
        if size < plan.virtual_size() {
            let text = format!(
                "{} has {size} bytes and the disk has {}",
                path.display(),
                plan.virtual_size()
            );
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        if !options.force && !is_empty(&store, size)? {
            let text = format!("{} is not empty", path.display());
            return Err(
                Error::new(ErrorKind::Exists, text).advise("give --force to overwrite the device")
            );
        }
        Ok(Self { store, plan, written: Mutex::default(), _lock: lock })
    }

    fn mark(&self, guest_offset: u64, len: usize) {
        let size = u64::from(self.plan.geometry().block_size());
        let first = guest_offset.div_ceil(size);
        let end = guest_offset + len as u64;
        // A block that is only written in part is not written; the disk's last one may be cut.
        let last = if end >= self.plan.virtual_size() {
            self.plan.geometry().block_count()
        } else {
            end / size
        };
        if first < last {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            // Block numbers of a geometry fit 32 bits.
            written.insert_range(first as u32..=(last - 1) as u32);
        }
    }
}

impl ImageWriter for Device {
    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes = on_disk(&self.plan, guest_offset, bytes);
        write_at(self.store.as_ref(), guest_offset, bytes)?;
        self.mark(guest_offset, bytes.len());
        Ok(())
    }

    fn finish(self: Box<Self>, cancel: &Cancel, observer: &dyn Observer) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.optimize();
        let total = self.plan.outside(&written).map(|gap| gap.end - gap.start).sum();
        observer.begin("zero", total);
        let mut zeroes = Zeroes { store: &self.store, way: Way::Unmap };
        for gap in self.plan.outside(&written) {
            let mut start = gap.start;
            while start < gap.end {
                cancel.check()?;
                let end = gap.end.min(start + ZEROED_AT_ONCE);
                zeroes.write(start..end).map_err(|error| {
                    let operation = format!("zero {} bytes at {start} of", end - start);
                    Error::io(operation, self.store.path(), error)
                })?;
                observer.advance(end - start);
                start = end;
            }
        }
        self.store.sync().map_err(|error| Error::io("sync", self.store.path(), error))?;
        observer.end();
        Ok(())
    }
}

/// Whether the device shows no sign of use: nothing but zeros where partition tables, filesystems
/// and volume managers put their marks.
fn is_empty(store: &FileStore, size: u64) -> Result<bool> {
    let len = LOOKED_AT.min(size);
    let mut bytes = vec![0; len as usize];
    for offset in [0, size - len] {
        store.read_exact_at(&mut bytes, offset).map_err(|error| {
            Error::io(format!("read {len} bytes at {offset} of"), store.path(), error)
        })?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How a range of a device becomes zero, from the best way to the one that always works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The device forgets the range, and promises that it reads as zeros.
    Unmap,
    /// The kernel zeroes the range.
    Zero,
    /// Zeros are written.
    Write,
}

/// Zeroes ranges, in the best way that the device has been found to know.
struct Zeroes<'a> {
    store: &'a FileStore,
    way: Way,
}

impl Zeroes<'_> {
    fn write(&mut self, range: Range<u64>) -> io::Result<()> {
        let start = range.start.next_multiple_of(SECTOR_SIZE_MAX).min(range.end);
        let end = (range.end / SECTOR_SIZE_MAX * SECTOR_SIZE_MAX).max(start);
        self.fill(range.start..start)?;
        self.ask(start..end)?;
        self.fill(end..range.end)
    }

    /// Asks for zeros, of whole sectors.
    fn ask(&mut self, range: Range<u64>) -> io::Result<()> {
        while !range.is_empty() {
            let (flags, next) = match self.way {
                Way::Unmap => (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, Way::Zero),
                Way::Zero => (FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, Way::Write),
                Way::Write => return self.fill(range),
            };
            let len = range.end - range.start;
            match rustix::fs::fallocate(self.store.file(), flags, range.start, len) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => self.way = next,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn fill(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeros = vec![0; ZEROS];
        let mut offset = range.start;
        while offset < range.end {
            let len = usize::try_from(range.end - offset).unwrap_or(ZEROS).min(ZEROS);
            self.store.write_all_at(zeros.get(..len).unwrap_or(&zeros), offset)?;
            offset += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way makes zeros of exactly the range, aligned or not. A file knows the same calls as a
    /// device.
    #[test]
    fn every_way_zeroes_the_range_and_nothing_else() {
        for way in [Way::Unmap, Way::Zero, Way::Write] {
            for range in [0..0, 0..10_000, 4096..8192, 5..4090, 5..20_000, 4095..4097, 9000..40_000]
            {
                let file = tempfile::tempfile().unwrap();
                let store = FileStore::new(file, "device");
                store.write_all_at(&[7; 40_000], 0).unwrap();
                Zeroes { store: &store, way }.write(range.clone()).unwrap();
                let mut bytes = vec![0; 40_000];
                store.read_exact_at(&mut bytes, 0).unwrap();
                for (offset, byte) in bytes.into_iter().enumerate() {
                    let zero = range.contains(&(offset as u64));
                    assert_eq!(byte, if zero { 0 } else { 7 }, "{way:?} {range:?} {offset}");
                }
            }
        }
    }
}
