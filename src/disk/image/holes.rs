//! Where a file or an export has holes. They read as zeros, and asking for them is cheaper than reading them.

use std::ops::Range;

use crate::disk::io::{Part, ReadAt};

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
        let Some((end, part)) = store.part_at(range.start) else {
            self.unknown = true;
            return (range.end, Part::Data);
        };
        self.last = Some((range.start..end, part));
        (end.min(range.end), part)
    }
}
