//! When the room is full: from what came and what went, as far back as this host remembers.
//!
//! Pruning makes what is stored go up and down, in a night or in a month. A rate taken between two times of such a cycle
//! is that of the cycle. So the most that was stored in the last weeks is compared with the most that was stored in
//! the weeks before: as much more is what has grown, and room is needed up to the next time of the most.

use std::collections::BTreeMap;

use crate::vault::repository::{Manifest, Size};

/// The longest cycle that is told from growth: the archives at the base of a chain are merged every few weeks.
const WEEKS: usize = 35;

/// What is older says nothing of a cycle any more.
const MEMORY: i64 = 2 * WEEKS as i64;

/// Fewer days say nothing of a rate.
const DAYS_MIN: usize = 2;

/// Where points wait to be removed and nothing has gone yet, so many days say nothing: what comes is known, and what
/// goes is not.
const WAITING_DAYS_MIN: usize = 14;

/// The room is full soon if it is full within so many days.
const SOON_DAYS: f64 = 14.0;

/// Once that was said, it is said for so many days where the room is not full much later.
const SAID_DAYS: usize = 7;
const LATER_DAYS: f64 = 21.0;

const DAY_S: i64 = 86_400;

/// Bytes at the highest and at the end of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stored {
    high: u64,
    last: u64,
}

impl Stored {
    fn flat(bytes: u64) -> Self {
        Self { high: bytes, last: bytes }
    }
}

/// What a guest took, day by day.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// The days on which it was noted, or changed.
    days: BTreeMap<i64, Stored>,
    /// Before them: what is there now and was there then.
    before: BTreeMap<i64, u64>,
    now: u64,
    /// Points wait to be removed.
    is_waiting: bool,
}

impl Series {
    /// Of what was noted, and of the manifests that are there now. Of a guest that this host has noted nothing of, it
    /// is known what came; if something of it goes as well, nothing.
    pub(super) fn of(sizes: &[Size], manifests: &[Manifest], now_s: i64) -> Self {
        let today = now_s.div_euclid(DAY_S);
        let now = manifests.iter().map(Manifest::bytes_stored).sum();
        let is_waiting = manifests.iter().any(|manifest| manifest.removed.is_some());
        let mut before: BTreeMap<i64, u64> = BTreeMap::new();
        for manifest in manifests {
            let day = manifest.created.as_second().div_euclid(DAY_S).min(today);
            *before.entry(day).or_default() += manifest.bytes_stored();
        }
        let mut sum = 0;
        for bytes in before.values_mut() {
            sum += *bytes;
            *bytes = sum;
        }
        let noted = sizes.iter().filter(|size| size.at_s <= now_s);
        let mut days: BTreeMap<i64, Stored> =
            noted.map(|it| (it.day(), Stored { high: it.high, last: it.last })).collect();
        if days.is_empty() && !is_waiting {
            // The first point is no growth: a guest begins once.
            days = before.iter().map(|(day, bytes)| (*day, Stored::flat(*bytes))).collect();
        }
        if !days.is_empty() {
            let high = days.get(&today).map_or(now, |it| it.high.max(now));
            days.insert(today, Stored { high, last: now });
        }
        Self { days, before, now, is_waiting }
    }

    /// Of what was noted alone; nothing has changed since.
    #[cfg(test)]
    pub(super) fn noted(sizes: &[Size]) -> Self {
        let day = |it: &Size| (it.day(), Stored { high: it.high, last: it.last });
        let now = sizes.last().map_or(0, |it| it.last);
        Self { days: sizes.iter().map(day).collect(), now, ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn waiting(self) -> Self {
        Self { is_waiting: true, ..self }
    }

    /// The first day of which something is known.
    fn first(&self) -> Option<i64> {
        self.days.keys().next().copied()
    }

    /// A day. Before the first one it took as much as then.
    fn at(&self, day: i64) -> Stored {
        match self.days.range(..=day).next_back() {
            Some((at, stored)) if *at == day => *stored,
            Some((_, stored)) => Stored::flat(stored.last),
            None => Stored::flat(self.days.values().next().map_or(self.now, |it| it.last)),
        }
    }

    /// The most of a day, for a drawing: what is not known is as little as it can have been.
    pub(super) fn drawn(&self, day: i64) -> u64 {
        let before = || self.before.range(..=day).next_back().map_or(0, |(_, bytes)| *bytes);
        match self.first() {
            Some(first) if first <= day => self.at(day).high,
            Some(first) => before().min(self.at(first).last),
            None => before(),
        }
    }
}

/// What several guests took together, day by day until today.
#[derive(Debug)]
pub(super) struct Together {
    days: Vec<Stored>,
    is_waiting: bool,
}

/// How the room fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trend {
    /// Bytes a day.
    pub bytes_per_day: f64,
    /// Over how many days that is.
    pub days: usize,
    /// In how many days no byte is free any more; none if that is never, or how much is free is not known.
    pub days_left: Option<f64>,
    /// That is soon. It is not said by turns that it is and that it is not.
    pub is_soon: bool,
}

impl Together {
    pub(super) fn of(all: &[&Series], now_s: i64) -> Self {
        let today = now_s.div_euclid(DAY_S);
        let first = all.iter().filter_map(|it| it.first()).min().unwrap_or(today);
        let first = first.clamp(today - MEMORY, today);
        let sum = |day: i64| {
            let add = |sum: Stored, it: Stored| Stored {
                high: sum.high.saturating_add(it.high),
                last: sum.last.saturating_add(it.last),
            };
            all.iter().map(|it| it.at(day)).fold(Stored::default(), add)
        };
        Self {
            days: (first..=today).map(sum).collect(),
            is_waiting: all.iter().any(|it| it.is_waiting),
        }
    }

    /// How the room fills, as far as that is known.
    pub(super) fn trend(&self, free: Option<u64>) -> Option<Trend> {
        let mut trend = self.trend_until(0, free)?;
        let was_soon = || {
            let earlier = (1..=SAID_DAYS).filter_map(|back| self.trend_until(back, free));
            earlier.filter_map(|it| it.days_left).any(|left| left < SOON_DAYS)
        };
        let is_soon = |left: f64| left < SOON_DAYS || (left < LATER_DAYS && was_soon());
        trend.is_soon = trend.days_left.is_some_and(is_soon);
        Some(trend)
    }

    /// The same as it was some days before today.
    fn trend_until(&self, back: usize, free: Option<u64>) -> Option<Trend> {
        let now = self.days.last()?.last;
        let days = self.days.get(..self.days.len().checked_sub(back)?)?;
        let end = days.last()?;
        // What came since was free then.
        let free = free.map(|free| i128::from(free) + i128::from(now) - i128::from(end.last));
        let went = |at: &usize| {
            let before = at.checked_sub(1).and_then(|it| days.get(it)).map_or(0, |it| it.last);
            days.get(*at).is_some_and(|it| it.last < it.high || it.high < before)
        };
        let mut drops = (0..days.len()).filter(went);
        let (first, second) = (drops.next(), drops.next());
        if self.is_waiting && second.is_none() && days.len() <= WAITING_DAYS_MIN {
            return None;
        }
        let (days, is_cycle) = match (first, second) {
            // What came before anything went is how it began, and no cycle.
            (Some(first), Some(_)) => (days.get(first..)?, true),
            // It may have been removed by hand, once: then it does not count, nor what was there before.
            (Some(once), None) if days.len() - once > DAYS_MIN => (days.get(once..)?, false),
            (Some(once), None) => (days.get(..once)?, false),
            (None, _) => (days, false),
        };
        let known = days.len().checked_sub(1).filter(|known| *known >= DAYS_MIN)?;
        let weeks = if is_cycle { known.div_ceil(2) } else { known }.min(WEEKS);
        let (before, recent) = days.split_at_checked(days.len() - weeks)?;
        // Of a single drop the end of its day is the beginning.
        let bytes = |it: &Stored| if is_cycle { it.high } else { it.last };
        let before = before.get(before.len().saturating_sub(WEEKS)..)?;
        let most = recent.iter().map(bytes).max()?;
        let grown = most.saturating_sub(before.iter().map(bytes).max()?);
        let bytes_per_day = grown as f64 / weeks as f64;
        // Up to the next time of the most. Where others have taken the room for that, it is full on the way there.
        let up = if is_cycle { most.saturating_sub(end.last) } else { 0 };
        let left = free.map(|free| free - i128::from(up));
        let days_left = match (free, left) {
            (Some(_), Some(left)) if left > 0 => Some(left as f64 / bytes_per_day),
            (Some(free), Some(_)) => {
                let pairs = days.iter().zip(days.iter().skip(1)).rev().take(weeks);
                let came: u64 = pairs.map(|(a, b)| b.high.saturating_sub(a.last)).sum();
                Some(free.max(0) as f64 / (came as f64 / weeks as f64))
            }
            _ => None,
        };
        let days_left = days_left.filter(|left| left.is_finite());
        let days = if is_cycle { 2 * weeks } else { weeks };
        Some(Trend { bytes_per_day, days, days_left, is_soon: false })
    }
}
