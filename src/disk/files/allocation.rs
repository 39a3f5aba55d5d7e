//! Which writes into a file take more of its filesystem's room, and which only change bytes that have a
//! place already.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{IFlags, SeekFrom};
use rustix::io::Errno;

use crate::disk::sys::kernel::fiemap::{self, RawExtent};

/// Filesystems that write nothing over: Btrfs, ZFS, bcachefs, NILFS.
const COPY_ON_WRITE: [u64; 4] = [BTRFS, 0x2fc1_2fc1, 0xca45_1a4e, 0x3434];
/// Btrfs, which writes files over that are marked so.
const BTRFS: u64 = 0x9123_683e;

/// Extents that a write does not fill but replaces: shared with a clone, compressed, or among metadata.
const REPLACED: u32 = fiemap::EXTENT_SHARED | fiemap::EXTENT_ENCODED | fiemap::EXTENT_INLINE;

/// Where an open file has places on its filesystem.
pub(crate) struct Allocation<'a> {
    file: BorrowedFd<'a>,
    /// Every write takes room, also over what has a place.
    copies: bool,
    /// The filesystem tells its extents; otherwise it may tell holes.
    tells_extents: bool,
    /// What is shared with clones counts as the file's own.
    ignores_clones: bool,
    /// The extents of the bytes of `known`.
    extents: Vec<RawExtent>,
    known: Range<u64>,
}

impl<'a> Allocation<'a> {
    /// Asks the filesystem of an open file.
    pub fn of(file: BorrowedFd<'a>) -> Self {
        let kind = rustix::fs::fstatfs(file).map_or(0, |it| it.f_type as u64 & 0xffff_ffff);
        let flags = rustix::fs::ioctl_getflags(file);
        let is_nocow = kind == BTRFS && flags.is_ok_and(|flags| flags.contains(IFlags::NOCOW));
        Self {
            file,
            copies: COPY_ON_WRITE.contains(&kind) && !is_nocow,
            tells_extents: fiemap::count(file).is_ok(),
            ignores_clones: false,
            extents: Vec::new(),
            known: 0..0,
        }
    }

    /// The same as if all clones of the file were gone.
    pub fn without_clones(self) -> Self {
        Self { ignores_clones: true, ..self }
    }

    /// How many bytes of room it takes to write `range`. Ranges are best asked for in ascending order.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn needed(&mut self, range: Range<u64>) -> io::Result<u64> {
        let len = range.end - range.start;
        Ok(if self.copies { len } else { len - self.own(range)? })
    }

    /// How many bytes of room it gives to punch a hole into `range`, before anything else is written.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn given(&mut self, range: Range<u64>) -> io::Result<u64> {
        if self.copies { Ok(0) } else { self.own(range) }
    }

    /// How many bytes of `range` have a place that only this file has.
    fn own(&mut self, range: Range<u64>) -> io::Result<u64> {
        let ignored = if self.ignores_clones { fiemap::EXTENT_SHARED } else { 0 };
        let mut own = 0;
        self.places(range, |part, flags| {
            if flags & REPLACED & !ignored == 0 {
                own += part.end - part.start;
            }
        })?;
        Ok(own)
    }

    /// Calls `each` with the parts of `range` that have no place, ascending.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn holes(&mut self, range: Range<u64>, mut each: impl FnMut(Range<u64>)) -> io::Result<()> {
        let mut at = range.start;
        self.places(range.clone(), |part, _| {
            if at < part.start {
                each(at..part.start);
            }
            at = part.end;
        })?;
        if at < range.end {
            each(at..range.end);
        }
        Ok(())
    }

    /// Calls `each` with the parts of `range` that have a place, ascending, and what the filesystem says
    /// of them.
    fn places(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(Range<u64>, u32),
    ) -> io::Result<()> {
        if !self.tells_extents {
            return data_parts(self.file, range, |part| each(part, 0));
        }
        let mut at = range.start;
        while at < range.end {
            if !self.known.contains(&at) {
                self.fetch(at)?;
            }
            let end = self.known.end.min(range.end);
            let first =
                self.extents.partition_point(|it| it.logical.saturating_add(it.length) <= at);
            for extent in self.extents.iter().skip(first).take_while(|it| it.logical < end) {
                let part_end = extent.logical.saturating_add(extent.length).min(end);
                each(extent.logical.max(at)..part_end, extent.flags);
            }
            at = end;
        }
        Ok(())
    }

    fn fetch(&mut self, at: u64) -> io::Result<()> {
        fiemap::extents(self.file, at, &mut self.extents)?;
        let is_last = |it: &RawExtent| it.flags & fiemap::EXTENT_LAST != 0;
        let end = match self.extents.last().filter(|last| !is_last(last)) {
            Some(last) => last.logical.saturating_add(last.length).max(at + 1),
            None => u64::MAX,
        };
        self.known = at..end;
        Ok(())
    }
}

/// Calls `each` with the parts of `range` that are no holes as far as the filesystem tells, ascending.
///
/// # Errors
/// The filesystem fails.
pub(super) fn data_parts(
    file: BorrowedFd<'_>,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>),
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL | Errno::NOTSUP) => at,
            Err(error) => return Err(error.into()),
        };
        if start >= range.end {
            return Ok(());
        }
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(range.end).min(range.end);
        each(start..end.max(start + 1));
        at = end.max(start + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Holes, and what is preallocated, as every way to ask tells them.
    #[test]
    fn what_has_a_place_takes_no_room() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 65536], 131_072).unwrap();
        file.sync_all().unwrap();
        let mut allocation = Allocation::of(file.as_fd());
        for tells_extents in [allocation.tells_extents, false] {
            (allocation.tells_extents, allocation.copies) = (tells_extents, false);
            assert_eq!(allocation.needed(0..1 << 20).unwrap(), (1 << 20) - 65536);
            assert_eq!(allocation.needed(131_072..196_608).unwrap(), 0);
            assert_eq!(allocation.given(100_000..140_000).unwrap(), 140_000 - 131_072);
            let mut holes = Vec::new();
            allocation.holes(65536..(1 << 20), |hole| holes.push(hole)).unwrap();
            assert_eq!(holes, [65536..131_072, 196_608..1 << 20]);
            allocation.holes(140_000..150_000, |_| panic!("there is none")).unwrap();
        }
        allocation.copies = true;
        assert_eq!(allocation.needed(131_072..196_608).unwrap(), 65536);
        assert_eq!(allocation.given(131_072..196_608).unwrap(), 0);
    }
}
