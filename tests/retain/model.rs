//! The rules once more, as their page tells them: by text, step by step, without regard to time taken.
//! Of the program it uses the zones' offsets and nothing else.

use std::collections::BTreeSet;

use jiff::{Timestamp, ToSpan};
use qdelta::formats::archive::Consistency;
use qdelta::vault::repository::Count;

use super::{Case, zone};

/// What counts of a point: its number, its seconds since 1970 and how good it is.
#[derive(Clone)]
struct Mark {
    number: usize,
    seconds: i64,
    goodness: u8,
    /// The same, if it were not damaged.
    if_whole: u8,
}

/// The civil date of a day since 1970.
fn civil(day: i64) -> (i64, i64, i64) {
    // Year by year and month by month.
    let is_leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let (mut year, mut rest) = (1970, day);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

/// The name of the period that a time lies in, in a zone.
fn name(rule: &str, seconds: i64, zone: &str) -> String {
    let time = Timestamp::from_second(seconds).unwrap();
    let offset = i64::from(super::zone(zone).to_offset(time).seconds());
    let local = seconds + offset;
    let day = local.div_euclid(86_400);
    let (year, month, date) = civil(day);
    match rule {
        "hourly" => {
            format!("{year}-{month}-{date} {} {offset}", local.rem_euclid(86_400) / 3600)
        }
        "daily" => format!("{year}-{month}-{date}"),
        // A week is that of its Thursday, and 1 January 1970 was one.
        "weekly" => format!("the week of the {}th Thursday", (day + 3).div_euclid(7)),
        "monthly" => format!("{year}-{month}"),
        "yearly" => year.to_string(),
        other => panic!("{other}"),
    }
}

/// The best mark of some, newest first: the first of the greatest goodness.
fn best(marks: &[Mark]) -> Mark {
    for goodness in [3, 2, 1, 0] {
        if let Some(mark) = marks.iter().find(|mark| mark.goodness == goodness) {
            return mark.clone();
        }
    }
    panic!("no marks");
}

/// The numbers of the points that stay, ascending.
pub fn kept(case: &Case) -> Vec<usize> {
    let mut stay = BTreeSet::new();
    let points = &case.points;
    let is_here = |number: &usize| points[*number].removed.is_none();
    // The newest of each disk.
    for disk in ["vda", "vdb"] {
        let has = |number: &usize| points[*number].disks.iter().any(|it| it.as_str() == disk);
        stay.extend((0..points.len()).rev().find(|number| has(number) && is_here(number)));
    }
    // What counts for nothing.
    let mut counting = Vec::new();
    for number in (0..points.len()).filter(is_here) {
        let point = &points[number];
        let before = points[..number].iter().map(|it| it.created);
        let is_behind = before.filter(|it| *it <= case.now).any(|it| it > point.created);
        let is_pinned =
            point.pins.iter().any(|pin| pin.until.is_none() || pin.until.unwrap() > case.now);
        let safety = case.keep.safety.map_or("30d".to_owned(), |it| it.to_string());
        if is_pinned || point.created > case.now {
            stay.insert(number);
        } else if point.safety {
            if moved(point.created, &safety, case.zone, 1) > case.now {
                stay.insert(number);
            }
        } else if is_behind {
            stay.insert(number);
        } else {
            let goodness = match (point.damaged, point.consistency) {
                (true, _) => 0,
                (false, Consistency::Unknown) => 1,
                (false, Consistency::CrashConsistent) => 2,
                _ => 3,
            };
            let if_whole = match point.consistency {
                Consistency::Unknown => 1,
                Consistency::CrashConsistent => 2,
                _ => 3,
            };
            counting.push(Mark { number, seconds: point.created.as_second(), goodness, if_whole });
        }
    }
    counting.sort_by_key(|mark| (mark.seconds, mark.number));
    counting.reverse();
    // Each rule by itself.
    stay.extend(last(&counting, case.keep.last));
    let keep = &case.keep;
    for (rule, count) in [
        ("hourly", keep.hourly),
        ("daily", keep.daily),
        ("weekly", keep.weekly),
        ("monthly", keep.monthly),
        ("yearly", keep.yearly),
    ] {
        stay.extend(every(&counting, rule, count, case.zone));
    }
    if let (Some(within), false) = (case.keep.within, counting.is_empty()) {
        let newest = counting.iter().find(|it| it.goodness > 0).unwrap_or(&counting[0]);
        let newest_time = Timestamp::from_second(newest.seconds).unwrap();
        let since = moved(newest_time, &within.to_string(), case.zone, -1);
        stay.insert(newest.number);
        for mark in &counting {
            if Timestamp::from_second(mark.seconds).unwrap() > since {
                stay.insert(mark.number);
            }
        }
    }
    stay.into_iter().collect()
}

fn number_of(count: Option<Count>) -> usize {
    match count {
        None => 0,
        Some(Count::All) => usize::MAX,
        Some(Count::Of(number)) => number as usize,
    }
}

/// `--keep-last`: so many that can be restored, and the damaged ones between.
fn last(marks: &[Mark], count: Option<Count>) -> Vec<usize> {
    let mut stay = Vec::new();
    for (place, mark) in marks.iter().enumerate() {
        let good_before = marks[..place].iter().filter(|it| it.goodness > 0).count();
        if good_before < number_of(count) {
            stay.push(mark.number);
        }
    }
    stay
}

/// The best of each of so many periods.
fn every(marks: &[Mark], rule: &str, count: Option<Count>, zone: &str) -> Vec<usize> {
    let mut names: Vec<String> = Vec::new();
    for mark in marks {
        let name = name(rule, mark.seconds, zone);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut stay = Vec::new();
    let mut counted = 0;
    for wanted in names {
        if counted == number_of(count) {
            return stay;
        }
        let own: Vec<Mark> =
            marks.iter().filter(|mark| name(rule, mark.seconds, zone) == wanted).cloned().collect();
        // Also each one that would be the best if it were whole: that it is not may be an error.
        for (place, mark) in own.iter().enumerate() {
            let mut others = own.clone();
            others[place].goodness = mark.if_whole;
            if best(&others).number == mark.number {
                stay.push(mark.number);
            }
        }
        let best = best(&own);
        counted += usize::from(best.goodness > 0);
        stay.push(best.number);
    }
    if counted < number_of(count) {
        stay.extend(marks.iter().rev().find(|mark| mark.goodness > 0).map(|mark| mark.number));
        stay.extend(marks.last().map(|mark| mark.number));
    }
    stay
}

/// The time so long after (1) or before (-1) another, on the calendar.
fn moved(time: Timestamp, period: &str, name: &str, sign: i64) -> Timestamp {
    let mut local = time.to_zoned(zone(name));
    let mut hours = 0;
    let mut number = 0;
    let mut unit = String::new();
    let mut parts = Vec::new();
    for character in period.chars().chain(['0']) {
        match character.to_digit(10) {
            Some(digit) if unit.is_empty() => number = number * 10 + i64::from(digit),
            Some(digit) => {
                parts.push((number, std::mem::take(&mut unit)));
                number = i64::from(digit);
            }
            None => unit.push(character),
        }
    }
    let mut span = 0.days();
    for (number, unit) in parts {
        match unit.as_str() {
            "y" => span = span.years(sign * number),
            "mo" => span = span.months(sign * number),
            "d" => span = span.days(sign * number),
            "h" => hours = sign * number,
            other => panic!("{other}"),
        }
    }
    local = local.checked_add(span).unwrap();
    local.timestamp() + hours.hours()
}
