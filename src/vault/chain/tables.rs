//! The tables of a chain's archives, read in windows: whoever passes over the disk reads ahead, and
//! whoever asks for one group reads what belongs to the group.

use crate::vault::archive::Windows;

/// The most records that are read ahead of each table of an archive.
const AHEAD_MAX: u64 = 1024;

/// The most records that are read ahead of each table of all archives together: 20 MiB in all.
const AHEAD_ALL: u64 = 256 << 10;

/// Windows of the tables of a chain's archives.
pub(super) struct Tables {
    /// One for each archive, or one for all if nothing is read ahead.
    windows: Vec<Windows>,
    /// How many records are read ahead.
    ahead: u64,
}

impl Tables {
    /// For a pass over the disk of a chain of so many archives.
    pub(super) fn ahead(archives: usize) -> Self {
        let windows = std::iter::repeat_with(Windows::default).take(archives).collect();
        Self { windows, ahead: Self::share(archives) }
    }

    /// How many records are read ahead of each table of so many archives.
    pub(super) fn share(archives: usize) -> u64 {
        (AHEAD_ALL / archives.max(1) as u64).clamp(16, AHEAD_MAX)
    }

    /// For one group.
    pub(super) fn exact() -> Self {
        Self { windows: Vec::new(), ahead: 0 }
    }

    /// The windows of an archive, and how many records to read ahead.
    pub(super) fn of(&mut self, archive: usize) -> (&mut Windows, u64) {
        if self.ahead == 0 {
            // What an archive's tables hold says nothing about another's.
            self.windows.clear();
            self.windows.push(Windows::default());
        }
        let index = if self.ahead == 0 { 0 } else { archive };
        #[expect(clippy::indexing_slicing, reason = "there is one for each archive of the chain")]
        (&mut self.windows[index], self.ahead)
    }
}
