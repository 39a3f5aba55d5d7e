//! When a recovery point was made, and how people say which one they mean.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

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
        Self::at(crate::clock::now()?)
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
    if text.len() != PointId::LEN || !text.is_ascii() {
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
    let id = PointId::at(TimeZone::UTC.to_timestamp(time).ok()?).ok()?;
    (id.to_string() == text).then_some(id)
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
/// if that day has none, of the days before; `2026-11-22 15:38` includes a point made at
/// 15:38:23. So the day or minute that a list of points shows always finds a point that it lists.
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
pub enum Among {
    /// All.
    All,
    /// Those that somebody asked for: a roll back to `latest` that was interrupted would otherwise
    /// find what it has kept itself. An id means its point all the same.
    Backups,
}

impl Selector {
    /// Reads a selector; times without a zone of their own are times of `zone`.
    ///
    /// # Errors
    /// It is neither `latest`, nor a time, nor the beginning of an id.
    pub fn parse_in(text: &str, zone: &TimeZone) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if is_id_prefix(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        parse_time(text, zone).map(Self::At).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} does not say which point")).advise(
                "say latest, a time (2026-11-22, 2026-11-22 15:38, 2026-11-22T15:38:23Z), or an \
                 id or its beginning (20261122T1538)",
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

/// Whether `text` has the shape of an id's beginning, from the year on: `2026`, `20261122T15`.
fn is_id_prefix(text: &str) -> bool {
    const SHAPE: &[u8; PointId::LEN] = b"00000000T000000.000Z";
    (4..=PointId::LEN).contains(&text.len())
        && text.bytes().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

/// The last millisecond of the day, minute or second that `text` names.
fn parse_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
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
    let (hours, minutes) = match digits.split_once(':') {
        Some(parts) => parts,
        None if digits.len() == 4 => digits.split_at_checked(2)?,
        None => (digits, "0"),
    };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    if !(0..=23).contains(&hours) || !(0..=59).contains(&minutes) {
        return None;
    }
    let seconds = (hours * 60 + minutes) * 60 * if sign == "-" { -1 } else { 1 };
    Some((clock, jiff::tz::Offset::from_seconds(seconds).ok()?.to_time_zone()))
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
        for id in ["2026", "20261122", "20261122T", "20261122T1538", "20261122T153823.412Z"] {
            assert_eq!(id.parse::<Selector>().unwrap(), Selector::Id(id.to_owned()));
        }
        assert_eq!("latest".parse::<Selector>().unwrap(), Selector::Latest);
        for bad in
            ["", "202", "yesterday", "2026-11", "2026-11-31", "15:38", "2026-11-22 25:00", "../x"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?} was taken for a selector");
        }
    }
}
