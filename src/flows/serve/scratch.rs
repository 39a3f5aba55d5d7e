//! What clients write over a point: it goes to a file of its own, and nowhere else.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use roaring::RoaringBitmap;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::fingerprint::boot;
use crate::disk::files::{Allocation, punch};
use crate::disk::io::{Opener, not_opened};
use crate::disk::sys::patience;
use crate::formats::scratch::{HEADER_LEN, Header};
use crate::vault::point::OpenPoint;

/// Reads of bitmaps, and writes of zeros, have at most so many bytes.
const CHUNK: usize = 64 << 10;

/// A file that takes what is written over a point.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    path: PathBuf,
    header: Header,
    /// The units that were written.
    written: RwLock<RoaringBitmap>,
    /// Those of them that a power cut may undo. Whoever writes has it.
    unstable: Mutex<RoaringBitmap>,
}

impl Scratch {
    /// Opens the scratch file of a point, or makes one.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]: it is of another point, or no scratch file. [`ErrorKind::Busy`]: another
    /// server uses it. Others: it can't be made or read.
    pub fn open(path: &Path, point: &OpenPoint) -> Result<Self> {
        let header = Header {
            size: point.size(),
            root: point.point().record.root,
            point: point.name().display().to_string(),
            boot: boot().unwrap_or_default(),
        };
        let (file, is_new) = match Opener::CHANGE.create(0o600).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = Opener::CHANGE.open(path);
                (file.map_err(|error| not_opened(path, error, ErrorKind::Exists))?, false)
            }
            created => (created.map_err(|error| Error::io("make", path, error))?, true),
        };
        if let Err(std::fs::TryLockError::WouldBlock) = patience::lock(&file) {
            let text = format!("{} is used by another server", path.display());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let mut scratch = Self {
            file,
            path: path.to_owned(),
            header,
            written: RwLock::default(),
            unstable: Mutex::default(),
        };
        let begun = if is_new { scratch.begin() } else { scratch.take_up() };
        if is_new && begun.is_err() {
            // What was made just now holds nothing.
            let _ = std::fs::remove_file(path);
        }
        begun.map(|()| scratch)
    }

    fn begin(&self) -> Result<()> {
        let begin = || {
            self.file.set_len(self.header.data() + self.header.size)?;
            self.file.write_all_at(&self.header.encode(), 0)?;
            self.file.sync_all()
        };
        begin().map_err(|error| Error::io("begin", &self.path, error))
    }

    /// Goes on where another server has ended.
    fn take_up(&mut self) -> Result<()> {
        let failed = |error| Error::io("read", &self.path, error);
        let other = |text: String| {
            let error = Error::new(ErrorKind::Exists, format!("{}: {text}", self.path.display()));
            Err(error.advise("name another file: a scratch file serves one point"))
        };
        let mut bytes = vec![0; HEADER_LEN];
        let found = match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Header::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Header::decode(&[]),
            Err(error) => return Err(failed(error)),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return other(format!("it is no scratch file of qdelta's: {error}")),
        };
        if (found.root, found.size, &found.point)
            != (self.header.root, self.header.size, &self.header.point)
        {
            return other(format!("it belongs to {}, not to {}", found.point, self.header.point));
        }
        let mut written = self.bits(self.header.stable()).map_err(failed)?;
        if found.boot == self.header.boot && !found.boot.is_empty() {
            let since = self.bits(self.header.since_start()).map_err(failed)?;
            self.unstable = Mutex::new(&since - &written);
            written |= since;
        } else {
            let forget = || {
                punch(self.file.as_fd(), self.header.since_start())?;
                self.file.sync_data()?;
                self.file.write_all_at(&self.header.encode(), 0)?;
                self.file.sync_data()
            };
            forget().map_err(|error| Error::io("write to", &self.path, error))?;
        }
        self.written = RwLock::new(written);
        Ok(())
    }

    /// The numbers of the bits that are set in a range of the file.
    fn bits(&self, range: Range<u64>) -> io::Result<RoaringBitmap> {
        let (mut bits, mut holes) = (RoaringBitmap::new(), Vec::new());
        // Of a bitmap, hardly anything is ever written.
        Allocation::of(self.file.as_fd()).holes(range.clone(), |hole| holes.push(hole))?;
        holes.push(range.end..range.end);
        let (mut at, mut bytes) = (range.start, vec![0; CHUNK]);
        for hole in holes {
            while at < hole.start {
                let len = (hole.start - at).min(CHUNK as u64) as usize;
                let part = bytes.get_mut(..len).unwrap_or_default();
                self.file.read_exact_at(part, at)?;
                for (index, byte) in part.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                    let first = (at - range.start + index as u64) * 8;
                    let set = (0..8).filter(|bit| byte >> bit & 1 == 1);
                    bits.extend(set.map(|bit| (first + bit) as u32));
                }
                at += len as u64;
            }
            at = at.max(hole.end);
        }
        Ok(bits)
    }

    /// The parts of a range, and whether each was written.
    pub fn parts(&self, range: Range<u64>, mut each: impl FnMut(Range<u64>, bool) -> bool) {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        let unit = self.header.unit();
        let mut at = range.start;
        while at < range.end {
            let is_written = written.contains((at / unit) as u32);
            let mut end = at - at % unit + unit;
            while end < range.end && written.contains((end / unit) as u32) == is_written {
                end += unit;
            }
            let part = at..end.min(range.end);
            at = part.end;
            if !each(part, is_written) {
                return;
            }
        }
    }

    /// Fills `out` with what was written at `offset`.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_exact_at(out, self.header.data() + offset);
        read.map_err(|error| Error::io("read", &self.path, error))
    }

    /// Writes over a range of the disk.
    ///
    /// # Errors
    /// There is no room; the file can't be written; the blocks around the ends can't be read.
    pub fn write(&self, point: &OpenPoint, bytes: &[u8], offset: u64) -> Result<()> {
        let mut unstable = self.turn();
        let end = offset + bytes.len() as u64;
        let unit = self.header.unit();
        // What is not written of the first and the last unit comes from the point.
        for edge in [offset / unit, end.saturating_sub(1) / unit] {
            let of_disk = edge * unit..((edge + 1) * unit).min(self.header.size);
            let is_whole = offset <= of_disk.start && of_disk.end <= end;
            let is_written = || {
                self.written.read().unwrap_or_else(PoisonError::into_inner).contains(edge as u32)
            };
            if is_whole || is_written() {
                continue;
            }
            let mut around = vec![0; (of_disk.end - of_disk.start) as usize];
            point.read(&mut around, of_disk.start)?;
            self.put(&around, of_disk.start)?;
        }
        self.put(bytes, offset)?;
        self.note(offset / unit..end.div_ceil(unit), &mut unstable)
    }

    /// Makes a range of the disk zeros, without room for them if they may be holes.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn zero(&self, point: &OpenPoint, range: Range<u64>, holes: bool) -> Result<()> {
        let unit = self.header.unit();
        let zeros = vec![0; CHUNK.max(unit as usize)];
        let write = |range: Range<u64>| {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(zeros.len() as u64);
                self.write(point, zeros.get(..len as usize).unwrap_or_default(), at)?;
                at += len;
            }
            Ok(())
        };
        let whole = self.whole(&range);
        if !holes || whole.is_empty() {
            return write(range);
        }
        write(range.start..whole.start)?;
        write(whole.end..range.end)?;
        self.drop_units(whole.clone()).or_else(|error| match error.kind() {
            ErrorKind::NoSpace => Err(error),
            // The filesystem knows no holes.
            _ => write(whole),
        })
    }

    /// Forgets what whole units of a range hold: they are zeros from now on.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn trim(&self, range: &Range<u64>) -> Result<()> {
        match self.whole(range) {
            whole if whole.is_empty() => Ok(()),
            whole => self.drop_units(whole),
        }
    }

    /// Returns once all that was written is on stable storage.
    ///
    /// # Errors
    /// It may not be.
    pub fn flush(&self) -> Result<()> {
        let mut unstable = self.turn();
        let failed = |error| Error::io("sync", &self.path, error);
        self.file.sync_data().map_err(failed)?;
        if unstable.is_empty() {
            return Ok(());
        }
        for (first, bytes) in self.bytes_of(&unstable) {
            self.file.write_all_at(&bytes, self.header.stable().start + first).map_err(failed)?;
        }
        self.file.sync_data().map_err(failed)?;
        unstable.clear();
        Ok(())
    }

    /// The turn to write, and what was written since the last flush.
    fn turn(&self) -> MutexGuard<'_, RoaringBitmap> {
        self.unstable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole units of a range; the end of the disk ends a unit.
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let unit = self.header.unit();
        let start = range.start.next_multiple_of(unit);
        let end = if range.end == self.header.size { range.end } else { range.end / unit * unit };
        start.min(end)..end
    }

    fn drop_units(&self, whole: Range<u64>) -> Result<()> {
        let mut unstable = self.turn();
        let data = self.header.data();
        let punched = punch(self.file.as_fd(), data + whole.start..data + whole.end);
        punched.map_err(|error| Error::io("make a hole in", &self.path, error))?;
        let unit = self.header.unit();
        self.note(whole.start / unit..whole.end.div_ceil(unit), &mut unstable)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.file.write_all_at(bytes, self.header.data() + offset);
        written.map_err(|error| Error::io("write to", &self.path, error))
    }

    /// Notes that units were written: in the file first, so that another server finds them.
    fn note(&self, units: Range<u64>, unstable: &mut RoaringBitmap) -> Result<()> {
        let units = units.start as u32..=units.end.saturating_sub(1) as u32;
        let mut written = self.written.write().unwrap_or_else(PoisonError::into_inner);
        if written.contains_range(units.clone()) {
            return Ok(());
        }
        let mut new = RoaringBitmap::from_iter(units);
        new -= &*written;
        *written |= &new;
        let since = self.header.since_start().start;
        // Neighbours in a byte were written since, or stand in the other bitmap as well.
        for (first, bytes) in bytes_of(&new, &written) {
            if let Err(error) = self.file.write_all_at(&bytes, since + first) {
                *written -= &new;
                return Err(Error::io("write to", &self.path, error));
            }
        }
        *unstable |= new;
        Ok(())
    }

    /// The bytes of the bitmap that have one of these bits, with all that is written.
    fn bytes_of(&self, bits: &RoaringBitmap) -> Vec<(u64, Vec<u8>)> {
        bytes_of(bits, &self.written.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The bytes of a bitmap that have one of `bits`, as `all` has them: runs of neighbours with the number of
/// their first byte.
fn bytes_of(bits: &RoaringBitmap, all: &RoaringBitmap) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut last = None;
    for bit in bits {
        let place = u64::from(bit / 8);
        if last == Some(place) {
            continue;
        }
        let first = bit / 8 * 8;
        let set = (0..8_u32).filter(|bit| all.contains(first.saturating_add(*bit)));
        let byte = set.fold(0_u8, |byte, bit| byte | 1 << bit);
        match runs.last_mut() {
            Some((_, bytes)) if last.is_some_and(|last| last + 1 == place) => bytes.push(byte),
            _ => runs.push((place, vec![byte])),
        }
        last = Some(place);
    }
    runs
}
