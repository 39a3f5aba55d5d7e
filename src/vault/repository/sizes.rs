//! What this host remembers of how much the archives of a domain took, day by day: data that is gone leaves no other
//! trace, and without it nobody knows whether a repository grows.

use serde::{Deserialize, Serialize};

use super::Repository;
use super::history::History;
use super::manifest::Manifest;
use super::names::DomainName;
use crate::base::clock;
use crate::base::error::Result;

/// So many days are remembered.
const DAYS_MAX: usize = 150;

const DAY_S: i64 = 86_400;

/// How much the archives of a domain took on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// When it was noted last on that day, in seconds since 1970.
    pub at_s: i64,
    /// The most that they took, in bytes.
    pub high: u64,
    /// What they took in the end, in bytes.
    pub last: u64,
}

impl Size {
    /// The day, counted from 1970 on, of UTC.
    pub fn day(&self) -> i64 {
        self.at_s.div_euclid(DAY_S)
    }
}

impl History {
    /// Notes that the archives take `last` bytes at a time, and that `freed` bytes more were there just before. What
    /// was noted in the future was not: the clock was wrong then.
    fn note_size(&mut self, at_s: i64, last: u64, freed: u64) {
        let size = Size { at_s, high: last.saturating_add(freed), last };
        self.sizes.retain(|it| it.at_s <= at_s);
        match self.sizes.last_mut().filter(|it| it.day() == size.day()) {
            Some(today) => *today = Size { high: today.high.max(size.high), ..size },
            None => self.sizes.push(size),
        }
        let surplus = self.sizes.len().saturating_sub(DAYS_MAX);
        self.sizes.drain(..surplus);
    }
}

impl Repository {
    /// How much the archives of a domain took, as far as this host has noted it, the oldest first.
    pub fn sizes(&self, domain: &DomainName) -> Vec<Size> {
        self.history(domain).sizes
    }

    /// Notes that archives of so many bytes have come to a domain. Nothing depends on it but the forecast of room.
    pub(crate) fn note_added(&self, domain: &DomainName, bytes: u64) {
        let noted = self.sizes(domain).last().map(|size| size.last.saturating_add(bytes));
        self.note_bytes(domain, 0, || noted.map_or_else(|| self.stored(domain), Ok));
    }

    /// Notes what the archives of a domain take, now that so many bytes of them are gone.
    pub(crate) fn note_freed(&self, domain: &DomainName, bytes: u64) {
        self.note_bytes(domain, bytes, || self.stored(domain));
    }

    fn note_bytes(&self, domain: &DomainName, freed: u64, stored: impl FnOnce() -> Result<u64>) {
        if self.state.is_none() {
            return;
        }
        let noted = stored().and_then(|stored| {
            let now = clock::now()?.as_second();
            self.note(domain, |history| history.note_size(now, stored, freed))
        });
        if let Err(error) = noted {
            tracing::debug!(error = %error.chain(), "the size of a guest was not noted");
        }
    }

    /// What all archives of a domain take, as its manifests say.
    fn stored(&self, domain: &DomainName) -> Result<u64> {
        let manifests = self.catalog().manifests(domain)?;
        let readable = manifests.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
        Ok(readable.map(Manifest::bytes_stored).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_day_keeps_its_mark_and_a_clock_that_was_wrong_none() {
        let mut history = History::default();
        let (noon, night) = (DAY_S / 2, DAY_S - 60);
        history.note_size(noon, 100, 0);
        history.note_size(night, 70, 50);
        let first = Size { at_s: night, high: 120, last: 70 };
        assert_eq!(history.sizes, [first]);
        // A clock that stands a year ahead.
        history.note_size(366 * DAY_S, 80, 0);
        history.note_size(DAY_S + noon, 90, 0);
        let second = Size { at_s: DAY_S + noon, high: 90, last: 90 };
        assert_eq!(history.sizes, [first, second]);
        for day in 2..400 {
            history.note_size(day * DAY_S, 90, 0);
        }
        assert_eq!((history.sizes.len(), history.sizes[0].day()), (DAYS_MAX, 400 - 150));
    }
}
