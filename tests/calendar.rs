//! Calendar words against systemd itself.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::calendar::Calendar;

use crate::harness::{args, run, tool};

/// The next times of a text after a time, as systemd has them, in seconds.
#[track_caller]
fn of_systemd(text: &str, after: Timestamp, zone: &str, count: usize) -> Vec<i64> {
    let base = after.strftime("--base-time=%Y-%m-%d %H:%M:%S UTC").to_string();
    let words = args!["calendar", format!("--iterations={count}"), base, text];
    let mut command = tool("systemd-analyze", words);
    command.env("TZ", zone);
    let said = run(command).ok().text();
    let mut times = Vec::new();
    for line in said.lines() {
        let Some((name, time)) = line.trim().split_once(": ") else { continue };
        // In another zone, the time in UTC stands below each.
        let is_time = match zone {
            "UTC" => name == "Next elapse" || name.starts_with("Iter"),
            _ => name == "(in UTC)",
        };
        if is_time && time != "never" {
            let words: Vec<&str> = time.split_whitespace().collect();
            let time: Timestamp = format!("{}T{}Z", words[1], words[2]).parse().unwrap();
            times.push(time.as_second());
        }
    }
    times
}

const TEXTS: [&str; 26] = [
    "22:00",
    "Mon..Fri 01:30",
    "Sat *-*-1..7 03:00",
    "*-*~1",
    "Mon *-*~7/1 03:00",
    "*:0/15",
    "Sat,Sun 3:5",
    "weekly",
    "quarterly",
    "monthly",
    "semiannually",
    "yearly",
    "hourly",
    "minutely",
    "daily",
    "*-*-1..7 18:00",
    "02:30/6",
    "*-2-29",
    "12,14,13,12:20,10,30",
    "mon,fri *-1/2-1,3 *:30:45",
    "2026/3-*-01 04:00",
    "*-*-31 05:00:59",
    "Wednesday 00:00",
    "*-10..12-1/9 7:7",
    "0/6:15",
    "03:00 UTC",
];

#[test]
fn times_are_those_of_systemd() {
    for zone in ["UTC", "Europe/Berlin", "America/New_York"] {
        let own = TimeZone::get(zone).unwrap();
        for text in TEXTS {
            let calendar: Calendar = text.parse().unwrap();
            // A winter's day, a leap year's, one before clocks are put back, and one at midnight.
            for after in [
                "2026-01-15T10:30:30Z",
                "2028-02-28T23:59:59Z",
                "2026-10-24T20:00:00Z",
                "2026-12-01T00:00:00Z",
            ] {
                let after: Timestamp = after.parse().unwrap();
                let mut ours = Vec::new();
                let mut time = after;
                while ours.len() < 6 {
                    let Some(next) = calendar.next(time, &own) else { break };
                    ours.push(next.as_second());
                    time = next;
                }
                let theirs = of_systemd(text, after, zone, 6);
                assert_eq!(ours, theirs, "{text} after {after} in {zone}");
                for second in theirs {
                    let time = Timestamp::from_second(second).unwrap();
                    assert_eq!(calendar.last(time, &own), Some(time), "{text}");
                }
            }
        }
    }
}
