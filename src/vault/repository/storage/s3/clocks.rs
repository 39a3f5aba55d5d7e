//! The clocks of a store, as this host sees them.
//!
//! The `Date` of answers is one, the time that the store writes down for its objects another: what stands in front of a
//! store may write a `Date` of its own, and each node may have another clock. A request that must come in time is judged
//! by one of the two, and nobody says by which. So its end is signed by the earlier one. If the store refuses
//! that at once, long before it is over, it judges by the other. Where no `Date` comes, the time that is written down for
//! a lock stands in its place.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};

use crate::base::clock;
use crate::base::error::Result;

/// Two times so close to each other are of one clock.
const SAME_CLOCK: SignedDuration = SignedDuration::from_secs(10);
/// An answer that took longer says nothing of the time: this host may have slept since it was made.
const PROMPT: SignedDuration = SignedDuration::from_secs(2);
/// No answer has told the time yet.
const UNKNOWN: i64 = i64::MIN;

/// The `Date` of an answer. It is of a clock that nobody else has: what it is compared with, is decided here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date(Timestamp);

impl Date {
    /// As HTTP writes it.
    pub fn parse(text: &str) -> Option<Self> {
        time(text).map(Self)
    }

    /// How old something is that the store has dated, as far as two clocks can tell.
    pub fn age_of(self, modified: Timestamp) -> Age {
        Age(self.0.duration_since(modified))
    }

    /// The earlier one of this and another time by the `Date` of answers.
    pub fn or_earlier(self, other: Timestamp) -> Timestamp {
        other.min(self.0)
    }

    /// How far the clock of this host is ahead of the store's.
    pub fn behind(self) -> Option<SignedDuration> {
        clock::now().ok().map(|ours| ours.duration_since(self.0))
    }
}

/// What two clocks say of the age of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(SignedDuration);

impl Age {
    /// Whether it seems to be at most so old. What was written after now says nothing.
    pub fn is_within(self, span: Duration) -> bool {
        let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
        (-SAME_CLOCK..=span).contains(&self.0)
    }
}

/// A time as HTTP writes it.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[derive(Debug)]
pub(super) struct Clocks {
    /// How far the `Date` of answers is ahead of this host's clock, in seconds.
    ahead: AtomicI64,
    /// How far that `Date` is ahead of the clock by which the store dates objects, in seconds.
    date_ahead: AtomicI64,
    /// Signatures are judged by the later one of the two.
    is_by_later: AtomicBool,
}

impl Default for Clocks {
    fn default() -> Self {
        let (ahead, date_ahead) = (AtomicI64::new(UNKNOWN), AtomicI64::new(0));
        Self { ahead, date_ahead, is_by_later: AtomicBool::new(false) }
    }
}

impl Clocks {
    /// Takes the `Date` of an answer to a request that was sent at a time.
    pub fn hear(&self, Date(date): Date, sent: Timestamp) {
        let Ok(now) = clock::now() else { return };
        let took = now.duration_since(sent);
        let is_prompt = (SignedDuration::ZERO..=PROMPT).contains(&took);
        if is_prompt || self.ahead.load(Ordering::Relaxed) == UNKNOWN {
            self.ahead.store(date.duration_since(now).as_secs(), Ordering::Relaxed);
        }
    }

    /// Takes the time that the store wrote down for an object for the `Date` of the answer to the request that wrote it and
    /// was sent at a time, where something in front of the store takes that away.
    pub fn hear_written(&self, modified: Timestamp, sent: Timestamp) -> Date {
        let date = Date(modified);
        self.hear(date, sent);
        date
    }

    /// Compares the `Date` of the answer to a request that wrote an object with the time that the store wrote down for
    /// it, where both are known.
    pub fn compare(&self, date: Option<Date>, modified: Option<Timestamp>) {
        let Some((Date(date), modified)) = date.zip(modified) else { return };
        let ahead = date.duration_since(modified);
        // A little is the time that the answer took.
        let ahead = if ahead.abs() > SAME_CLOCK { ahead.as_secs() } else { 0 };
        let before = self.date_ahead.swap(ahead, Ordering::Relaxed);
        if before.saturating_sub(ahead).unsigned_abs() > SAME_CLOCK.as_secs().unsigned_abs() {
            self.is_by_later.store(false, Ordering::Relaxed);
        }
    }

    /// The time by the `Date` of answers.
    pub fn now(&self) -> Result<Timestamp> {
        let ahead = match self.ahead.load(Ordering::Relaxed) {
            UNKNOWN => 0,
            ahead => ahead,
        };
        let ahead = SignedDuration::from_secs(ahead);
        Ok(clock::now()?.saturating_add(ahead).unwrap_or(Timestamp::MAX))
    }

    /// How much is left until a moment by the `Date` of answers.
    pub fn left(&self, until: Timestamp) -> Result<SignedDuration> {
        Ok(until.duration_since(self.now()?))
    }

    /// Whether a request that was sent at a time of this host's clock came before `until`, by the `Date` of answers.
    pub fn was_early(&self, until: Timestamp, sent: Timestamp) -> bool {
        let (Ok(left), Ok(now)) = (self.left(until), clock::now()) else { return false };
        (SignedDuration::ZERO..left).contains(&now.duration_since(sent))
    }

    /// The time by the clock by which the store dates objects, as far as it is known: locks of objects end by it.
    pub fn object_time(&self) -> Result<Timestamp> {
        let ahead = SignedDuration::from_secs(self.date_ahead.load(Ordering::Relaxed));
        Ok(self.now()?.saturating_sub(ahead).unwrap_or(Timestamp::MIN))
    }

    /// How far the `Date` of answers is ahead of the earlier of the two clocks; negative: behind the later one.
    pub fn earlier(&self) -> SignedDuration {
        SignedDuration::from_secs(self.date_ahead.load(Ordering::Relaxed).max(0))
    }

    /// How far the `Date` of answers is ahead of the clock by which signatures are judged, as far as that is known.
    pub fn judging(&self) -> SignedDuration {
        match self.is_by_later.load(Ordering::Relaxed) {
            true => SignedDuration::from_secs(self.date_ahead.load(Ordering::Relaxed).min(0)),
            false => self.earlier(),
        }
    }

    /// A request was refused as over long before it was: another clock than the one it was signed by has judged.
    /// Whether there is another.
    pub fn turn(&self) -> bool {
        let is_two = self.date_ahead.load(Ordering::Relaxed) != 0;
        if is_two {
            self.is_by_later.fetch_xor(true, Ordering::Relaxed);
        }
        is_two
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> SignedDuration {
        SignedDuration::from_secs(seconds)
    }

    /// Whoever slept while an answer was on its way took the past for the present, and a lease that was over for one
    /// that holds.
    #[test]
    fn an_answer_that_took_long_says_nothing_of_the_time() {
        let clocks = Clocks::default();
        let now = clock::now().unwrap();
        clocks.hear(Date(now + seconds(100)), now);
        clocks.hear(Date(now - seconds(500)), now - seconds(600));
        let ahead = clocks.now().unwrap().duration_since(now);
        assert!((seconds(95)..seconds(500)).contains(&ahead), "{ahead}");
    }

    #[test]
    fn the_earlier_clock_judges_until_the_store_says_otherwise() {
        let clocks = Clocks::default();
        let now = clock::now().unwrap();
        assert!(!clocks.turn(), "there is only one");
        for (ahead, earlier, later) in [(60, 60, 0), (-60, 0, -60)] {
            clocks.compare(Some(Date(now + seconds(ahead))), Some(now));
            assert_eq!(clocks.judging(), seconds(earlier));
            assert!(clocks.turn());
            assert_eq!((clocks.judging(), clocks.earlier()), (seconds(later), seconds(earlier)));
            clocks.compare(Some(Date(now + seconds(ahead + 1))), Some(now + seconds(1)));
            assert_eq!(clocks.judging(), seconds(later), "nothing new");
        }
    }
}
