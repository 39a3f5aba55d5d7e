//! When a recovery point was made, and how people say which one they mean.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::base::error::{Error, ErrorKind, Result};

/// The id of a recovery point: its UTC time in milliseconds, written `20261122T153823.412Z`, so
/// that ids sort as their points happened, as text and as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointId(u64);

impl PointId {
    /// Characters of every id.
    const LEN: usize = 20;

    /// The first millisecond that has no id: jiff's timestamps end on 30 December 9999.
    const END_MS: u64 = 253_402_207_201_000;

    /// The id of a point made now.
    ///
    /// # Errors
    /// The clock stands before 1970 or after 9999.
    pub fn now() -> Result<Self> {
        Self::at(crate::base::clock::now()?)
    }

    /// The id of a point made at `time`; less than a millisecond is dropped.
    ///
    /// # Errors
    /// The time lies before 1970 or after 9999.
    pub fn at(time: Timestamp) -> Result<Self> {
        u64::try_from(time.as_millisecond())
            .ok()
            .and_then(Self::from_ms)
            .ok_or_else(|| Error::new(ErrorKind::Io, format!("no point can be made at {time}")))
    }

    /// The id of a point made `ms` milliseconds after 1970 began, if that has one.
    pub fn from_ms(ms: u64) -> Option<Self> {
        (ms < Self::END_MS).then_some(Self(ms))
    }

    /// Milliseconds since 1970 began, UTC.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// The time the point was made.
    pub fn time(self) -> Timestamp {
        // Every id was checked to be a timestamp when it was made: the default is never taken.
        i64::try_from(self.0)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .unwrap_or(Timestamp::MAX)
    }

    /// The time as people of `zone` write it, with the offset from UTC and to the millisecond:
    /// `2026-11-22T16:38:23.412+01:00`. As a [`Selector`] it means this very point, also in the
    /// hour that comes twice, and needs no quotes in a shell.
    pub fn in_zone(self, zone: &TimeZone) -> String {
        let time = self.time().to_zoned(zone.clone());
        let offset = time.offset().seconds();
        let (sign, size) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
        let clock = time.strftime("%Y-%m-%dT%H:%M:%S%.3f");
        let text = format!("{clock}{sign}{:02}:{:02}", size / 3600, size / 60 % 60);
        match size % 60 {
            0 => text,
            // Some zones had such offsets until 1972.
            seconds => format!("{text}:{seconds:02}"),
        }
    }

    /// The id of the millisecond after this one.
    pub fn next(self) -> Option<Self> {
        Self::from_ms(self.0 + 1)
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = TimeZone::UTC.to_datetime(self.time());
        let text = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}.{:03}Z",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        );
        f.pad(&text)
    }
}

impl FromStr for PointId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_id(text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} is no id of a point"))
                .advise("an id looks like 20261122T153823.412Z")
        })
    }
}

/// The id that `text` spells, only if it is exactly the text that the id is written as.
fn parse_id(text: &str) -> Option<PointId> {
    let bytes = text.as_bytes();
    let signs = [(8, b'T'), (15, b'.'), (19, b'Z')];
    if bytes.len() != PointId::LEN || signs.iter().any(|&(at, sign)| bytes.get(at) != Some(&sign)) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<i16> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let short = |range| number(range).and_then(|value| i8::try_from(value).ok());
    let time = DateTime::new(
        number(0..4)?,
        short(4..6)?,
        short(6..8)?,
        short(9..11)?,
        short(11..13)?,
        short(13..15)?,
        i32::from(number(16..19)?) * 1_000_000,
    )
    .ok()?;
    PointId::at(TimeZone::UTC.to_timestamp(time).ok()?).ok()
}

impl TryFrom<String> for PointId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PointId> for String {
    fn from(id: PointId) -> Self {
        id.to_string()
    }
}

/// Which point somebody means.
///
/// A time stands for the *end* of what it names: `2026-11-22` is the last point of that day or,
/// if that day has none, of the days before; `2026-11` and `2026` are the last of that month and
/// year, `2026-11-22 15:38` includes a point made at 15:38:23. So whatever a list of points shows
/// finds a point that it lists. `3d` is so long ago: days, and likewise `s`, `m` (minutes), `h`,
/// `w`, `mo` (30 days) and `y` (365 days), as the ages of the list have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The last one.
    Latest,
    /// The last one not after this time.
    At(Timestamp),
    /// The only one whose id begins so.
    Id(String),
}

/// Which points a selector is looked for among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    /// All.
    All,
    /// Those that somebody asked for, and no safety points: after a roll back the latest point is not
    /// the state that was rolled back from, and a roll back to it that was interrupted does not find
    /// its own safety point. An id means its point all the same.
    Backups,
}

impl Selector {
    /// Reads a selector; times without a zone of their own are times of `zone`.
    ///
    /// # Errors
    /// It is neither `latest`, nor a time, nor the beginning of an id.
    pub fn parse_in(text: &str, zone: &TimeZone) -> Result<Self> {
        Self::parse_at(text, zone, crate::base::clock::now()?)
    }

    /// Reads a selector at a time that ages are counted from.
    fn parse_at(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if is_id_prefix(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        let time = parse_age(text, now).or_else(|| parse_day(text, zone, now));
        time.or_else(|| parse_time(text, zone)).map(Self::At).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} does not say which point")).advise(
                "say latest, a time (2026-11-22, 2026-11-22 15:38, 2026-11-22T15:38:23Z, 2026-11), \
                 how long ago (3d, 90m, yesterday), or an id or its beginning (20261122T1538)",
            )
        })
    }
}

impl FromStr for Selector {
    type Err = Error;

    /// Reads a selector; times without a zone of their own are local times.
    fn from_str(text: &str) -> Result<Self> {
        Self::parse_in(text, &TimeZone::system())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::At(time) => time.fmt(f),
            Self::Id(prefix) => f.write_str(prefix),
        }
    }
}

/// Whether `text` has the shape of an id's beginning, longer than the year: `202611`,
/// `20261122T15`. A year alone is a time.
fn is_id_prefix(text: &str) -> bool {
    const SHAPE: &[u8; PointId::LEN] = b"00000000T000000.000Z";
    (5..=PointId::LEN).contains(&text.len())
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

/// The time that lies so long before `now`: `3d`, `90m`.
fn parse_age(text: &str, now: Timestamp) -> Option<Timestamp> {
    const DAY_S: i64 = 24 * 3600;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_s = match unit.trim_start() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => DAY_S,
        "w" => 7 * DAY_S,
        "mo" => 30 * DAY_S,
        "y" => 365 * DAY_S,
        _ => return None,
    };
    let seconds = number.parse::<i64>().ok()?.checked_mul(unit_s)?;
    now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok()
}

/// The end of today or yesterday.
fn parse_day(text: &str, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    let today = zone.to_datetime(now).date();
    let after = match text {
        "today" => today.tomorrow().ok()?,
        "yesterday" => today,
        _ => return None,
    };
    last_before(after.to_datetime(jiff::civil::Time::midnight()), zone)
}

/// The first day after the year or month that `text` names: `2026`, `2026-11`.
fn parse_month(text: &str) -> Option<Date> {
    let (year, month) = match text.split_once('-') {
        Some((year, month)) => (year, Some(month)),
        None => (text, None),
    };
    let number = |text: &str, len: usize| -> Option<i16> {
        let digits = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    };
    let first =
        Date::new(number(year, 4)?, month.map_or(Some(1), |it| number(it, 2))?.try_into().ok()?, 1);
    match month {
        Some(_) => first.ok()?.checked_add(1.month()).ok(),
        None => first.ok()?.checked_add(1.year()).ok(),
    }
}

/// The last millisecond of the year, month, day, minute or second that `text` names.
fn parse_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Some(after) = parse_month(text) {
        return last_before(after.to_datetime(jiff::civil::Time::midnight()), zone);
    }
    if let Some(date) = parse_date(text) {
        let midnight = date.tomorrow().ok()?.to_datetime(jiff::civil::Time::midnight());
        return last_before(midnight, zone);
    }
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let date = parse_date(date)?;
    let (clock, zone) = split_zone(rest, zone)?;
    let named = match clock.len() {
        5 => 1.minute(),
        8 => 1.second(),
        10.. => 1.millisecond(),
        _ => return None,
    };
    let time: jiff::civil::Time = clock.parse().ok()?;
    last_before(date.to_datetime(time).checked_add(named).ok()?, &zone)
}

/// A date in the one form that is understood: `2026-11-22`.
fn parse_date(text: &str) -> Option<Date> {
    (text.len() == 10).then(|| text.parse().ok())?
}

/// Takes the zone off a clock time: `Z`, `+01:00`, or none, which means `zone`.
fn split_zone<'a>(text: &'a str, zone: &TimeZone) -> Option<(&'a str, TimeZone)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, TimeZone::UTC));
    }
    let Some(at) = text.find(['+', '-']) else { return Some((text, zone.clone())) };
    let (clock, offset) = text.split_at_checked(at)?;
    let (sign, digits) = offset.split_at_checked(1)?;
    let (hours, rest) = match digits.split_once(':') {
        Some(parts) => parts,
        None if digits.len() == 4 => digits.split_at_checked(2)?,
        None => (digits, "00"),
    };
    let (minutes, seconds) = rest.split_once(':').unwrap_or((rest, "00"));
    let number = |text: &str, most: i32| -> Option<i32> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.filter(|number| *number <= most)
    };
    let seconds = number(hours, 23)? * 3600 + number(minutes, 59)? * 60 + number(seconds, 59)?;
    let seconds = if sign == "-" { -seconds } else { seconds };
    Some((clock.trim_end(), jiff::tz::Offset::from_seconds(seconds).ok()?.to_time_zone()))
}

/// The millisecond before a civil time; where the clock was set back, the later of the two.
fn last_before(end: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let end = zone.to_ambiguous_timestamp(end).later().ok()?;
    end.checked_sub(1.millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_time() {
        let id = PointId::from_ms(1_795_361_903_412).unwrap();
        assert_eq!(id.to_string(), "20261122T153823.412Z");
        assert_eq!("20261122T153823.412Z".parse::<PointId>().unwrap(), id);
        assert_eq!(id.next().unwrap().to_string(), "20261122T153823.413Z");
        assert_eq!(PointId::from_ms(0).unwrap().to_string(), "19700101T000000.000Z");
        let last = PointId::from_ms(PointId::END_MS - 1).unwrap();
        assert_eq!(last.to_string().parse::<PointId>().unwrap(), last);
        assert_eq!(PointId::from_ms(PointId::END_MS), None);
    }

    #[test]
    fn only_the_exact_text_is_an_id() {
        for bad in [
            "",
            "20261122T153823.412",
            "20261122T153823.412z",
            "20261122 153823.412Z",
            "20261322T153823.412Z",
            "20261122T153860.412Z",
            "20261122T243823.412Z",
            "+0261122T153823.412Z",
            "20261122T153823.+12Z",
            "20261122T153823.412Z ",
            "２026112T153823.412Z",
        ] {
            assert!(bad.parse::<PointId>().is_err(), "{bad:?} was taken for an id");
        }
    }

    /// What `text` selects, in a zone one hour ahead of UTC.
    fn at(text: &str) -> String {
        let zone = jiff::tz::Offset::constant(1).to_time_zone();
        match Selector::parse_in(text, &zone).unwrap() {
            Selector::At(time) => time.to_string(),
            other => panic!("{text:?} became {other:?}"),
        }
    }

    #[test]
    fn a_time_stands_for_the_end_of_what_it_names() {
        assert_eq!(at("2026-11-22"), "2026-11-22T22:59:59.999Z");
        assert_eq!(at("2026-11-22 15:38"), "2026-11-22T14:38:59.999Z");
        assert_eq!(at("2026-11-22T15:38"), "2026-11-22T14:38:59.999Z");
        assert_eq!(at("2026-11-22T15:38:23"), "2026-11-22T14:38:23.999Z");
        assert_eq!(at("2026-11-22T15:38:23Z"), "2026-11-22T15:38:23.999Z");
        assert_eq!(at("2026-11-22T15:38:23.412Z"), "2026-11-22T15:38:23.412Z");
        assert_eq!(at("2026-11-22T15:38Z"), "2026-11-22T15:38:59.999Z");
        assert_eq!(at("2026-11-22 15:38+02:00"), "2026-11-22T13:38:59.999Z");
        assert_eq!(at("2026-11-22 15:38-0530"), "2026-11-22T21:08:59.999Z");
    }

    #[test]
    fn where_the_clock_was_set_back_a_time_includes_both_hours() {
        // Berlin, 25 October 2026: 03:00 summer time became 02:00, so 02:30 came twice.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let Selector::At(time) = Selector::parse_in("2026-10-25 02:30", &berlin).unwrap() else {
            panic!("not a time");
        };
        assert_eq!(time.to_string(), "2026-10-25T01:30:59.999Z");
    }

    #[test]
    fn ids_and_their_beginnings_are_told_from_times() {
        for id in
            ["20261", "202611", "20261122", "20261122T", "20261122T1538", "20261122T153823.412Z"]
        {
            assert_eq!(id.parse::<Selector>().unwrap(), Selector::Id(id.to_owned()));
        }
        assert_eq!("latest".parse::<Selector>().unwrap(), Selector::Latest);
        for bad in
            ["", "202", "tomorrow", "2026-13", "2026-11-31", "15:38", "2026-11-22 25:00", "../x"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?} was taken for a selector");
        }
    }

    #[test]
    fn months_years_days_and_ages_are_times() {
        let zone = jiff::tz::Offset::constant(1).to_time_zone();
        let now: Timestamp = "2026-11-22T23:30:00Z".parse().unwrap();
        let at = |text: &str| match Selector::parse_at(text, &zone, now) {
            Ok(Selector::At(time)) => time.to_string(),
            other => panic!("{text:?} became {other:?}"),
        };
        assert_eq!(at("2026-06"), "2026-06-30T22:59:59.999Z");
        assert_eq!(at("2026-12"), "2026-12-31T22:59:59.999Z");
        assert_eq!(at("2024-02"), "2024-02-29T22:59:59.999Z");
        assert_eq!(at("2026"), "2026-12-31T22:59:59.999Z");
        // Half past midnight of the 23rd, there.
        assert_eq!(at("yesterday"), "2026-11-22T22:59:59.999Z");
        assert_eq!(at("today"), "2026-11-23T22:59:59.999Z");
        assert_eq!(at("3d"), "2026-11-19T23:30:00Z");
        assert_eq!(at("90m"), "2026-11-22T22:00:00Z");
        assert_eq!(at("90 m"), at("90min"));
        assert_eq!(at("2w"), at("14d"));
        assert_eq!(at("1mo"), at("30d"));
        assert_eq!(at("1y"), at("365d"));
        for bad in
            ["d", "-3d", "3 d ago", "3x", "99999999999999y", "9223372036854775807w", "2026-6"]
        {
            assert!(Selector::parse_at(bad, &zone, now).is_err(), "{bad:?}");
        }
    }

    /// The list of points showed UTC, and a time that was typed was local: who typed what the list
    /// showed got another point. What is shown must mean the very point that it is shown for.
    #[test]
    fn what_is_shown_of_a_point_means_that_point() {
        let zones = [
            // Half an hour, three quarters, a fold of an hour, one of half an hour, seconds.
            "<+0530>-5:30",
            "<+1245>-12:45<+1345>,M9.5.0/2:45,M4.1.0/3:45",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
            "<-004430>0:44:30",
            "NST3:30NDT,M3.2.0,M11.1.0",
            "UTC0",
        ];
        // Around the end of summer time in each of them: every seven minutes, and a millisecond.
        let days = ["2026-10-25T00:00:00Z", "2026-04-04T12:00:00Z", "2026-11-01T02:00:00Z"];
        for zone in zones.map(|rule| TimeZone::posix(rule).unwrap()) {
            for start in days.map(|day| day.parse::<Timestamp>().unwrap().as_millisecond()) {
                for step in 0..60 {
                    let id = PointId::from_ms(start as u64 + step * 421_001).unwrap();
                    let other = TimeZone::posix("JST-9").unwrap();
                    let shown = id.in_zone(&zone);
                    for spelled in [shown.clone(), shown.replace('T', " ")] {
                        for reader in [&zone, &other] {
                            let selector = Selector::parse_in(&spelled, reader).unwrap();
                            assert_eq!(selector, Selector::At(id.time()), "{spelled}");
                        }
                    }
                }
            }
        }
        let id = PointId::from_ms(1_795_361_903_412).unwrap();
        assert_eq!(id.in_zone(&TimeZone::UTC), "2026-11-22T15:38:23.412+00:00");
    }
}
