//! Reads calendar words.

use jiff::tz::TimeZone;

use super::{Calendar, Field};
use crate::base::error::{Error, ErrorKind, Result};

/// The longest text, in bytes.
const LEN_MAX: usize = 200;

/// The years that a text may name.
const YEARS: (i16, i16) = (1970, 2199);

/// Words that stand for a whole text.
const WORDS: [(&str, &str); 9] = [
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
];

/// The days of the week, Monday first.
const DAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// Reads a text.
pub(super) fn parse(text: &str) -> Result<Calendar> {
    let refused = |why: &str| {
        Error::new(ErrorKind::Usage, format!("{text:?} is no time of a calendar: {why}")).advise(
            "write it as systemd does: 22:00, Mon..Fri 01:30, Sat *-*-1..7 03:00, *:0/15, weekly",
        )
    };
    if text.len() > LEN_MAX {
        return Err(refused("it is too long"));
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let zone = zone_of(&mut words);
    let whole = match words.as_slice() {
        [] => return Err(refused("it is empty")),
        [word] => WORDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)),
        _ => None,
    };
    if let Some((_, meant)) = whole {
        words = meant.split_whitespace().collect();
    }
    let mut calendar = Calendar {
        text: text.trim().to_owned(),
        weekdays: [true; 7],
        years: Field::Any,
        months: Field::Any,
        days: Field::Any,
        from_end: false,
        hours: vec![0],
        minutes: vec![0],
        seconds: vec![0],
        zone,
    };
    let mut rest = words.as_slice();
    if let Some((first, others)) = rest.split_first()
        && first.starts_with(|c: char| c.is_ascii_alphabetic())
    {
        calendar.weekdays = weekdays(first).map_err(|why| refused(&why))?;
        rest = others;
    }
    let is_date = |word: &str| word.contains(['-', '~']);
    if let Some((date, others)) = rest.split_first()
        && is_date(date)
    {
        read_date(date, &mut calendar).map_err(|why| refused(&why))?;
        rest = others;
    }
    match rest {
        [] => Ok(calendar),
        [time] if time.contains(':') => {
            read_time(time, &mut calendar).map_err(|why| refused(&why))?;
            Ok(calendar)
        }
        [word, ..] => Err(refused(&format!("{word:?} is no date and no time"))),
    }
}

/// Takes the zone from the end of the words, if one stands there.
fn zone_of(words: &mut Vec<&str>) -> Option<TimeZone> {
    let last = *words.last()?;
    if !last.starts_with(|c: char| c.is_ascii_alphabetic()) || weekdays(last).is_ok() {
        return None;
    }
    let zone = match last {
        "UTC" => TimeZone::UTC,
        _ => TimeZone::get(last).ok()?,
    };
    words.pop();
    Some(zone)
}

/// Reads `Mon..Fri,Sun`.
fn weekdays(text: &str) -> Result<[bool; 7], String> {
    let day = |name: &str| {
        let name = name.to_ascii_lowercase();
        let is_it = |day: &str| day == name || (name.len() == 3 && day.starts_with(&name));
        DAYS.iter().position(|day| is_it(day)).ok_or(format!("{name:?} is no day of the week"))
    };
    let mut found = [false; 7];
    for part in text.trim_end_matches(',').split(',') {
        let (from, to) = match part.split_once("..").or_else(|| part.split_once('-')) {
            Some((from, to)) => (day(from)?, day(to)?),
            None => (day(part)?, day(part)?),
        };
        if from > to {
            return Err(format!("{part:?} goes backwards"));
        }
        found.iter_mut().take(to + 1).skip(from).for_each(|day| *day = true);
    }
    Ok(found)
}

/// Reads `YEAR-MONTH-DAY` or `MONTH-DAY`, each a list; with `~` before the day, days count from the end.
fn read_date(text: &str, calendar: &mut Calendar) -> Result<(), String> {
    let (before, day, from_end) = match text.split_once('~') {
        Some((before, day)) => (before, day, true),
        None => {
            let (before, day) = text.rsplit_once('-').ok_or("a date has a month and a day")?;
            (before, day, false)
        }
    };
    let (year, month) = match before.split_once('-') {
        Some((year, month)) => (year, month),
        None => ("*", before),
    };
    calendar.years = field(year, YEARS, "year")?;
    calendar.months = field(month, (1, 12), "month")?;
    calendar.days = match from_end {
        false => field(day, (1, 31), "day")?,
        true => days_from_end(day)?,
    };
    calendar.from_end = from_end;
    Ok(())
}

/// Reads days from the end of the month: `1`, `1,3`, and `7/1` for the seventh to the last.
fn days_from_end(text: &str) -> Result<Field, String> {
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, step) = match part.split_once('/') {
            Some((first, step)) => (first, Some(number(step, (1, 31), "step")?)),
            None => (part, None),
        };
        let first = number(first, (1, 31), "day from the end")?;
        match step {
            None => days.push(first),
            Some(step) => days.extend((1..=first).rev().step_by(step.unsigned_abs().into())),
        }
    }
    Ok(of(days))
}

/// Reads `HOUR:MINUTE` or `HOUR:MINUTE:SECOND`, each a list.
fn read_time(text: &str, calendar: &mut Calendar) -> Result<(), String> {
    let mut parts = text.split(':');
    let mut values = |most: i16, what: &str| -> Result<Vec<i8>, String> {
        match parts.next() {
            None => Ok(vec![0]),
            Some(part) => match field(part, (0, most), what)? {
                Field::Any => Ok((0..=most).filter_map(|it| i8::try_from(it).ok()).collect()),
                Field::Of(list) => {
                    Ok(list.into_iter().filter_map(|it| i8::try_from(it).ok()).collect())
                }
            },
        }
    };
    calendar.hours = values(23, "hour")?;
    calendar.minutes = values(59, "minute")?;
    calendar.seconds = values(59, "second")?;
    match parts.next() {
        None => Ok(()),
        Some(_) => Err("a time has hours, minutes and seconds".to_owned()),
    }
}

/// Reads a list of numbers, ranges and steps.
fn field(text: &str, (least, most): (i16, i16), what: &str) -> Result<Field, String> {
    if text == "*" {
        return Ok(Field::Any);
    }
    let mut values = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step, (1, most), "step")?)),
            None => (part, None),
        };
        let (from, to) = match (range, range.split_once("..")) {
            ("*", _) => return Err(format!("{part:?} has no beginning: write {least}/N")),
            (_, Some((from, to))) => {
                (number(from, (least, most), what)?, number(to, (least, most), what)?)
            }
            (_, None) => {
                let from = number(range, (least, most), what)?;
                (from, if step.is_some() { most } else { from })
            }
        };
        if from > to {
            return Err(format!("{part:?} goes backwards"));
        }
        values.extend((from..=to).step_by(step.unwrap_or(1).unsigned_abs().into()));
    }
    Ok(of(values))
}

fn of(mut values: Vec<i16>) -> Field {
    values.sort_unstable();
    values.dedup();
    Field::Of(values)
}

fn number(text: &str, (least, most): (i16, i16), what: &str) -> Result<i16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number
        .filter(|_| is_number)
        .ok_or_else(|| format!("{text:?} is no {what} from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "empty"),
            ("Fri 13", "no date and no time"),
            ("25:00", "no hour from 0 to 23"),
            ("22:60", "no minute from 0 to 59"),
            ("22:00:00:00", "hours, minutes and seconds"),
            ("Mon..Fri..Sun 1:00", "no day of the week"),
            ("Fri..Mon 1:00", "goes backwards"),
            ("*-13-1", "no month from 1 to 12"),
            ("*-*-0", "no day from 1 to 31"),
            ("*-*-9..1", "goes backwards"),
            ("*:0/0", "no step"),
            ("*:*/15", "write 0/N"),
            ("+1:00", "no hour"),
            ("22:00 Mars/Olympus", "no date and no time"),
            ("nightly", "no day of the week"),
            ("22:00 22:00", "no date and no time"),
            ("*:*:0.5", "no second"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.chain().contains(why), "{text}: {}", error.chain());
        }
        assert!(parse(&"1,".repeat(200)).is_err());
    }

    #[test]
    fn all_ways_to_write_a_time_are_read() {
        for text in [
            "22:00",
            "Mon..Fri,Sun 1:5",
            "Monday *-*-1..7,31 03:00:30",
            "*-*~7/1",
            "2026-*-01/2",
            "12,13:10,20/5",
            "*:0/15 Europe/Berlin",
            "sat",
            "weekly",
            "monthly UTC",
        ] {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
        }
    }
}
