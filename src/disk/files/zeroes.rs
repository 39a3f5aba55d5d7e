//! Making ranges of a file or block device read as zeros, without taking room for it where that can be.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::allocation::data_parts;
use crate::disk::io::{FileStore, Store};

/// How many zeros are written at once where nothing else helps, in bytes.
const ZEROS: usize = 1 << 20;
/// What the kernel asks zeroed ranges of a device to be aligned to, in bytes: none has longer sectors.
const SECTOR_SIZE_MAX: u64 = 4096;

/// Makes `range` a hole of a file, which gives its room back.
///
/// # Errors
/// The filesystem can't, or fails.
pub(crate) fn punch(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, range.start, range.end - range.start)?)
}

/// How a range becomes zero, from the best way to the one that always works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The file gets a hole, the device forgets the range; both read as zeros from then on.
    Unmap,
    /// The kernel zeroes the range, which keeps its place.
    Zero,
    /// Zeros are written.
    Write,
}

/// Zeroes ranges, in the best way that the file or device has been found to know.
pub(crate) struct Zeroes<'a> {
    store: &'a FileStore,
    way: Way,
    /// What is a hole is left as it is.
    is_sparse: bool,
    /// What the ends of a range are aligned to before the kernel is asked, in bytes.
    alignment: u64,
}

impl<'a> Zeroes<'a> {
    /// On a block device.
    pub fn on_device(store: &'a FileStore) -> Self {
        Self { store, way: Way::Unmap, is_sparse: false, alignment: SECTOR_SIZE_MAX }
    }

    /// In a regular file: zeros become holes. A file that has no hole keeps its places, since somebody
    /// has them reserved for it.
    ///
    /// # Errors
    /// The file can't be looked at.
    pub fn in_file(store: &'a FileStore) -> io::Result<Self> {
        let metadata = store.file().metadata()?;
        let is_sparse = metadata.blocks().saturating_mul(512) < metadata.len();
        let way = if is_sparse { Way::Unmap } else { Way::Zero };
        Ok(Self { store, way, is_sparse, alignment: 1 })
    }

    /// Whether zeros give room back rather than take any.
    pub fn gives_room(&self) -> bool {
        self.is_sparse && self.way == Way::Unmap
    }

    /// Lets `range` read as zeros.
    ///
    /// # Errors
    /// The file or device fails, or there is no room.
    pub fn write(&mut self, range: Range<u64>) -> io::Result<()> {
        let start = range.start.next_multiple_of(self.alignment).min(range.end);
        let end = (range.end / self.alignment * self.alignment).max(start);
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
            // The kernel would give a hole a place for its zeros.
            if self.way == Way::Zero && self.is_sparse {
                self.way = next;
                continue;
            }
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

    /// Writes zeros, over all of a range or over what of it is no hole.
    fn fill(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() || !self.is_sparse {
            return self.fill_all(range);
        }
        let mut parts = Vec::new();
        data_parts(self.store.file().as_fd(), range, |part| parts.push(part))?;
        parts.into_iter().try_for_each(|part| self.fill_all(part))
    }

    fn fill_all(&self, range: Range<u64>) -> io::Result<()> {
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
    use crate::disk::io::ReadAt;

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
                let alignment = SECTOR_SIZE_MAX;
                let is_sparse = way == Way::Write;
                Zeroes { store: &store, way, is_sparse, alignment }.write(range.clone()).unwrap();
                let mut bytes = vec![0; 40_000];
                store.read_exact_at(&mut bytes, 0).unwrap();
                for (offset, byte) in bytes.into_iter().enumerate() {
                    let zero = range.contains(&(offset as u64));
                    assert_eq!(byte, if zero { 0 } else { 7 }, "{way:?} {range:?} {offset}");
                }
            }
        }
    }

    /// Zeros were written over holes: a roll back of a sparse image filled the filesystem.
    #[test]
    fn holes_stay_holes_and_reserved_places_stay_reserved() {
        let blocks = |store: &FileStore| store.file().metadata().unwrap().blocks();
        for way in [Way::Unmap, Way::Write] {
            let store = FileStore::new(tempfile::tempfile_in("/var/tmp").unwrap(), "disk");
            store.set_len(64 << 20).unwrap();
            store.write_all_at(&[7; 1 << 20], 1 << 20).unwrap();
            store.sync().unwrap();
            let before = blocks(&store);
            let mut zeroes = Zeroes::in_file(&store).unwrap();
            assert!(zeroes.gives_room());
            zeroes.way = way;
            zeroes.write(4096..(64 << 20) - 512).unwrap();
            store.sync().unwrap();
            match way {
                Way::Unmap => assert!(blocks(&store) < before / 2, "{}", blocks(&store)),
                _ => assert_eq!(blocks(&store), before, "{way:?}"),
            }
            let mut bytes = vec![1; 3 << 20];
            store.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{way:?}");
        }
        let store = FileStore::new(tempfile::tempfile_in("/var/tmp").unwrap(), "disk");
        store.write_all_at(&[7; 4 << 20], 0).unwrap();
        store.sync().unwrap();
        let before = blocks(&store);
        Zeroes::in_file(&store).unwrap().write(0..4 << 20).unwrap();
        store.sync().unwrap();
        assert_eq!(blocks(&store), before);
    }
}
