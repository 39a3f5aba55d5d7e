//! Where a file has holes. They read as zeros, and asking for them is cheaper than reading them.

use std::ops::Range;

use rustix::fs::SeekFrom;

use crate::disk::io::ReadAt;

/// What a part of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing is stored: it reads as zeros.
    Hole,
    /// Bytes are stored, or nobody knows.
    Data,
}

/// Asks a file for its holes, and remembers the last answer: questions come mostly in order.
#[derive(Debug, Default)]
pub(super) struct Holes {
    last: Option<(Range<u64>, Part)>,
    /// The file or its file system can't tell.
    unknown: bool,
}

impl Holes {
    /// What `range` of `store` begins with, and how far that goes; never empty unless `range` is.
    pub(super) fn part(&mut self, store: &dyn ReadAt, range: Range<u64>) -> (u64, Part) {
        if let Some((known, part)) = &self.last
            && known.contains(&range.start)
        {
            return (known.end.min(range.end), *part);
        }
        if self.unknown {
            return (range.end, Part::Data);
        }
        let Some((end, part)) = ask(store, range.start) else {
            self.unknown = true;
            return (range.end, Part::Data);
        };
        self.last = Some((range.start..end, part));
        (end.min(range.end), part)
    }
}

/// What lies at `offset`, and where it ends. Nothing if the file can't tell.
fn ask(store: &dyn ReadAt, offset: u64) -> Option<(u64, Part)> {
    // The descriptor's position is nobody's business: all reads say where they read.
    let fd = store.fd()?;
    match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Some((data, Part::Hole)),
        Ok(_) => match rustix::fs::seek(fd, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Some((hole, Part::Data)),
            _ => None,
        },
        // No data from here to the end.
        Err(rustix::io::Errno::NXIO) => Some((u64::MAX, Part::Hole)),
        Err(_) => None,
    }
}
