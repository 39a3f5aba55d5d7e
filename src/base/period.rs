//! Stretches of the calendar, as people write them in a rule: `14d`, `1y6mo`. A month has as many days
//! as the calendar gives it, and a day of 23 hours is a day.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::base::duration::parts;
use crate::base::error::{Error, ErrorKind, Result};

/// The most of each unit: more than all the time that there are points of.
const MOST: i32 = 99_999;

/// So many years, months, days, hours, minutes and seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    years: i32,
    months: i32,
    days: i32,
    hours: i32,
    minutes: i32,
    seconds: i32,
}

impl Period {
    /// No time at all.
    pub const NONE: Self = Self { years: 0, months: 0, days: 0, hours: 0, minutes: 0, seconds: 0 };

    /// So many days.
    pub const fn days(days: u16) -> Self {
        Self { days: days as i32, ..Self::NONE }
    }

    /// Whether it is no time at all.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The moment that lies so long before another on the calendar of `zone`; the first of all if it
    /// would lie before that. What is no day of its month is the month's last.
    pub fn before(self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        let moved = |time: Timestamp| {
            let days = time.to_zoned(zone.clone()).checked_sub(self.calendar()?).ok()?;
            days.checked_sub(self.clock()?).ok().map(|moved| moved.timestamp())
        };
        moved(time).unwrap_or(Timestamp::MIN)
    }

    /// The moment that lies so long after another on the calendar of `zone`; the last of all if it would
    /// lie after that.
    pub fn after(self, time: Timestamp, zone: &TimeZone) -> Timestamp {
        let moved = |time: Timestamp| {
            let days = time.to_zoned(zone.clone()).checked_add(self.calendar()?).ok()?;
            days.checked_add(self.clock()?).ok().map(|moved| moved.timestamp())
        };
        moved(time).unwrap_or(Timestamp::MAX)
    }

    fn calendar(self) -> Option<Span> {
        let span = Span::new().try_years(self.years).ok()?;
        span.try_months(self.months).ok()?.try_days(self.days).ok()
    }

    fn clock(self) -> Option<Span> {
        let span = Span::new().try_hours(self.hours).ok()?;
        span.try_minutes(self.minutes).ok()?.try_seconds(self.seconds).ok()
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let no_period = |what: String| {
            Error::new(ErrorKind::Usage, what)
                .advise("say how many of what: 48h, 30d, 8w, 6mo, 2y, or several together: 1y6mo")
        };
        let none = || no_period(format!("{text:?} is no stretch of time"));
        let mut period = Self::NONE;
        if text.trim() == "0" {
            return Ok(period);
        }
        for (number, unit) in parts(text).ok_or_else(none)? {
            let (field, factor) = match unit {
                "y" => (&mut period.years, 1),
                "mo" => (&mut period.months, 1),
                "w" => (&mut period.days, 7),
                "d" => (&mut period.days, 1),
                "h" => (&mut period.hours, 1),
                "min" => (&mut period.minutes, 1),
                "s" => (&mut period.seconds, 1),
                "m" => {
                    let text = format!("{text:?} may mean minutes or months");
                    return Err(no_period(text).advise("minutes are written 6min, months 6mo"));
                }
                _ => return Err(none()),
            };
            let sum = number
                .parse::<i32>()
                .ok()
                .and_then(|number| number.checked_mul(factor)?.checked_add(*field))
                .filter(|sum| (0..=MOST).contains(sum));
            *field = sum.ok_or_else(|| {
                let text = format!("{text:?} is too long");
                Error::new(ErrorKind::Usage, text).advise(format!("at most {MOST} of each unit"))
            })?;
        }
        Ok(period)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { years, months, days, hours, minutes, seconds } = *self;
        let parts = [
            (years, "y"),
            (months, "mo"),
            (days, "d"),
            (hours, "h"),
            (minutes, "min"),
            (seconds, "s"),
        ];
        let text: String = parts
            .iter()
            .filter(|(number, _)| *number != 0)
            .map(|(number, unit)| format!("{number}{unit}"))
            .collect();
        f.pad(if text.is_empty() { "0" } else { &text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read_and_written() {
        for (text, shown) in [
            ("14d", "14d"),
            ("2w", "14d"),
            ("1y6mo", "1y6mo"),
            ("48h", "48h"),
            ("0", "0"),
            ("0d", "0"),
            ("1w1d", "8d"),
            ("90min", "90min"),
            ("1d12h30min5s", "1d12h30min5s"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string(), shown);
            assert_eq!(shown.parse::<Period>().unwrap(), period);
        }
        for bad in ["", "d", "7", "-1d", "7m", "1.5d", "7 d", "7dd", "999999d", "99999999999d"] {
            assert!(bad.parse::<Period>().is_err(), "{bad:?}");
        }
        let error = "7m".parse::<Period>().unwrap_err();
        assert_eq!(error.advice(), Some("minutes are written 6min, months 6mo"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let before = |period: &str, text: &str| {
            period.parse::<Period>().unwrap().before(time(text), &zone).to_string()
        };
        // Noon of the day on which the clocks were put back: 25 hours lie between.
        assert_eq!(before("1d", "2026-10-25T11:00:00Z"), "2026-10-24T10:00:00Z");
        assert_eq!(before("24h", "2026-10-25T11:00:00Z"), "2026-10-24T11:00:00Z");
        assert_eq!(before("90min", "2026-10-25T11:00:00Z"), "2026-10-25T09:30:00Z");
        assert_eq!(before("1mo", "2026-03-31T10:00:00Z"), "2026-02-28T11:00:00Z");
        assert_eq!(before("99999y", "2026-03-31T10:00:00Z"), Timestamp::MIN.to_string());
        let period: Period = "99999y".parse().unwrap();
        assert_eq!(period.after(Timestamp::MAX, &zone), Timestamp::MAX);
    }
}
