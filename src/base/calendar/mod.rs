//! Times that come again, in systemd's calendar words: `22:00`, `Mon..Fri 01:30`, `*-*-1..7 03:00`.
//!
//! What is understood is a part of systemd.time(7): weekdays, dates with lists, ranges, steps and days
//! from a month's end, times, the words from `minutely` to `yearly`, and a time zone at the end. A time
//! that comes twice when clocks are put back counts the first time, as with systemd. A time that never
//! comes because clocks are put forward is the moment of the change; systemd leaves that day out, and so
//! would leave out a night's backup.

mod parse;

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};

use crate::base::error::{Error, Result};

/// So many days are looked through for a time: the 29th of February comes within eight years, and on a
/// given weekday within 40.
const DAYS_MAX: usize = 41 * 366;

/// Times that come again.
#[derive(Debug, Clone, PartialEq)]
pub struct Calendar {
    /// As it was written.
    text: String,
    /// Monday is the first of seven.
    weekdays: [bool; 7],
    years: Field,
    months: Field,
    days: Field,
    /// Days are counted from the end of the month: 1 is the last.
    from_end: bool,
    hours: Vec<i8>,
    minutes: Vec<i8>,
    seconds: Vec<i8>,
    /// The zone that the text names.
    zone: Option<TimeZone>,
}

/// The values that a part of a date may have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    /// All of them.
    Any,
    /// These, ascending.
    Of(Vec<i16>),
}

impl Field {
    fn has(&self, value: i16) -> bool {
        match self {
            Self::Any => true,
            Self::Of(values) => values.binary_search(&value).is_ok(),
        }
    }
}

impl Calendar {
    /// The first time after `after`; none if there is none in the next decades. `zone` counts where the
    /// text names no other.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let zone = self.zone.as_ref().unwrap_or(zone);
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_MAX {
            if self.is_on(date) {
                let found = self.times(date, zone).find(|time| *time > after);
                if found.is_some() {
                    return found;
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time that is not after `until`; none if there was none in the last decades.
    pub fn last(&self, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let zone = self.zone.as_ref().unwrap_or(zone);
        // A day of clocks that were put forward over midnight ends on the next date.
        let mut date = until.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_MAX {
            if self.is_on(date) {
                let found = self.times(date, zone).take_while(|time| *time <= until).last();
                if found.is_some() {
                    return found;
                }
            }
            date = date.yesterday().ok()?;
        }
        None
    }

    /// Whether times are on this day.
    fn is_on(&self, date: Date) -> bool {
        let weekday = usize::from(date.weekday().to_monday_zero_offset().unsigned_abs());
        let day = match self.from_end {
            true => i16::from(date.days_in_month()) - i16::from(date.day()) + 1,
            false => i16::from(date.day()),
        };
        self.weekdays.get(weekday).copied().unwrap_or(false)
            && self.years.has(date.year())
            && self.months.has(i16::from(date.month()))
            && self.days.has(day)
    }

    /// The times of a day, none before the one that comes first.
    fn times<'a>(&'a self, date: Date, zone: &'a TimeZone) -> impl Iterator<Item = Timestamp> + 'a {
        let minutes = |hour| self.minutes.iter().map(move |minute| (hour, *minute));
        let hours = self.hours.iter().flat_map(move |hour| minutes(*hour));
        let seconds = move |(hour, minute)| {
            self.seconds.iter().map(move |second| date.at(hour, minute, *second, 0))
        };
        hours.flat_map(seconds).filter_map(move |time| {
            let ambiguous = zone.to_ambiguous_timestamp(time);
            match ambiguous.offset() {
                AmbiguousOffset::Gap { after, .. } => {
                    // By the later offset, the time would lie before the change.
                    let before = after.to_timestamp(time).ok()?.checked_sub(1.second()).ok()?;
                    zone.following(before).next().map(|change| change.timestamp())
                }
                _ => ambiguous.compatible().ok(),
            }
        })
    }
}

impl FromStr for Calendar {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse::parse(text)
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(text: &str, after: &str, count: usize) -> Vec<String> {
        let calendar: Calendar = text.parse().unwrap();
        let mut time = at(after);
        let mut found = Vec::new();
        for _ in 0..count {
            let Some(next) = calendar.next(time, &berlin()) else { break };
            assert!(next > time, "{text}: {next} after {time}");
            // The last time before the next one is this one, and the next one is its own last.
            assert_eq!(calendar.last(next, &berlin()), Some(next), "{text}");
            let before = calendar.last(next - 1.second(), &berlin());
            assert!(before.is_none_or(|before| before <= time), "{text}: {before:?} {time}");
            found.push(next.to_zoned(berlin()).strftime("%a %Y-%m-%d %H:%M:%S %z").to_string());
            time = next;
        }
        found
    }

    #[test]
    fn days_and_times_are_found() {
        let nights = next("Mon..Fri 22:00", "2026-11-27T22:00:00+01:00", 2);
        assert_eq!(nights, ["Mon 2026-11-30 22:00:00 +0100", "Tue 2026-12-01 22:00:00 +0100"]);
        let last = next("*-*~1", "2026-01-31T12:00:00+01:00", 2);
        assert_eq!(last, ["Sat 2026-02-28 00:00:00 +0100", "Tue 2026-03-31 00:00:00 +0200"]);
        let utc = next("03:00 UTC", "2026-06-01T00:00:00Z", 1);
        assert_eq!(utc, ["Mon 2026-06-01 05:00:00 +0200"]);
        assert_eq!(next("2026-01-01", "2026-06-01T00:00:00Z", 1), [""; 0]);
        assert_eq!(next("*-2-30", "2026-06-01T00:00:00Z", 1), [""; 0]);
        let leap = next("Sun *-2-29", "2026-06-01T00:00:00Z", 1);
        assert_eq!(leap, ["Sun 2032-02-29 00:00:00 +0100"]);
    }

    /// A night at half past two would have gone without a backup on the day on which that time does not
    /// come, and have had two where it comes twice.
    #[test]
    fn every_night_has_one_time_whatever_the_clocks_do() {
        let spring = next("02:30", "2026-03-28T12:00:00+01:00", 2);
        assert_eq!(spring, ["Sun 2026-03-29 03:00:00 +0200", "Mon 2026-03-30 02:30:00 +0200"]);
        let autumn = next("02:30", "2026-10-24T12:00:00+02:00", 2);
        assert_eq!(autumn, ["Sun 2026-10-25 02:30:00 +0200", "Mon 2026-10-26 02:30:00 +0100"]);
        let hourly = next("hourly", "2026-03-29T00:30:00+01:00", 3);
        let times = ["01:00:00 +0100", "03:00:00 +0200", "04:00:00 +0200"];
        assert_eq!(hourly, times.map(|time| format!("Sun 2026-03-29 {time}")));
    }
}
