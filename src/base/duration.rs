//! Stretches of time as people read and write them: the one place that prints them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::base::error::{Error, ErrorKind, Result};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// A stretch of time, in a few characters: `0.4 s`, `12 s`, `3:25 min`, `2:03 h`, `12 days`, `2 years`.
pub fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..MINUTE => format!("{whole} s"),
        MINUTE..HOUR => format!("{}:{:02} min", whole / MINUTE, whole % MINUTE),
        HOUR..172_800 => format!("{}:{:02} h", whole / HOUR, whole % HOUR / MINUTE),
        172_800..63_072_000 => format!("{} days", whole / DAY),
        _ => format!("{} years", whole / YEAR),
    }
}

/// How long ago something was, in at most five characters: `5 s`, `12 m`, `3 h`, `12 d`, `8 mo`,
/// `2 y`. What lies ahead is `now`.
pub fn age(seconds: i64) -> String {
    let Some(seconds) = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0) else {
        return "now".to_owned();
    };
    match seconds {
        ..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} m", seconds / MINUTE),
        HOUR..172_800 => format!("{} h", seconds / HOUR),
        172_800..5_184_000 => format!("{} d", seconds / DAY),
        5_184_000..63_072_000 => format!("{} mo", seconds / (30 * DAY)),
        _ => format!("{} y", seconds / YEAR),
    }
}

/// A stretch of time as people write it: `90s`, `5m`, `26h`, `2d`, `1w`, `1d12h`. A month has 30 days, a year 365.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch(pub Duration);

/// The units of a stretch, the largest first.
const UNITS: [(&str, u64); 8] = [
    ("y", YEAR),
    ("mo", 30 * DAY),
    ("w", 7 * DAY),
    ("d", DAY),
    ("h", HOUR),
    ("min", MINUTE),
    ("m", MINUTE),
    ("s", 1),
];

/// Those that a stretch is shown in.
const SHOWN: [&str; 4] = ["d", "h", "m", "s"];

const YEARS_MAX: u64 = 100;

/// The numbers and units of a text such as `1d12h`; none if it is no such text.
pub(super) fn parts(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() || unit.is_empty() {
            return None;
        }
        parts.push((number, unit));
        rest = tail;
    }
    Some(parts).filter(|parts| !parts.is_empty())
}

impl FromStr for Stretch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let no_stretch = || {
            Error::new(ErrorKind::Usage, format!("{text:?} is no stretch of time"))
                .advise("say how many of what: 90s, 5m, 26h, 2d, 1w, or several together: 1d12h")
        };
        let seconds = |(number, unit): &(&str, &str)| {
            let (_, of) = UNITS.iter().find(|(it, _)| it == unit)?;
            // What no number holds is too long as well.
            Some(number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*of))
        };
        let parts = parts(text).ok_or_else(no_stretch)?;
        let each: Option<Vec<u64>> = parts.iter().map(seconds).collect();
        let sum = each.ok_or_else(no_stretch)?.into_iter().fold(0, u64::saturating_add);
        match sum {
            0 => Err(no_stretch()),
            _ if sum > YEARS_MAX * YEAR => {
                Err(Error::new(ErrorKind::Usage, format!("{text:?} is too long"))
                    .advise(format!("say at most {YEARS_MAX}y")))
            }
            _ => Ok(Self(Duration::from_secs(sum))),
        }
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let mut fitting = UNITS.iter().filter(|(unit, _)| SHOWN.contains(unit));
        let fitting = fitting.find(|(_, of)| seconds.is_multiple_of(*of));
        let (unit, of) = fitting.copied().unwrap_or(("s", 1));
        write!(f, "{}{unit}", seconds / of)
    }
}

/// A stretch of time in which milliseconds count, as that of a freeze: `143 ms`.
pub fn in_ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that was set back made "the clock is 57202199.957s behind the latest point".
    #[test]
    fn stretches_of_time_are_few_characters() {
        let shown = |seconds| shown(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.04, 9.4, 9.96, 12.0, 59.7, 125.0, 7384.0, 172_799.0].map(shown),
            ["0.0 s", "9.4 s", "10 s", "12 s", "1:00 min", "2:05 min", "2:03 h", "47:59 h"]
        );
        assert_eq!(
            [172_800.0, 57_202_199.957, 63_072_000.0, 1e10].map(shown),
            ["2 days", "662 days", "2 years", "317 years"]
        );
        assert!(super::shown(Duration::MAX).len() < 25);
    }

    #[test]
    fn what_is_written_is_read() {
        for (text, seconds, shown) in [
            ("90s", 90, "90s"),
            ("300s", 300, "5m"),
            ("5min", 300, "5m"),
            ("24h", 86_400, "1d"),
            ("26h", 93_600, "26h"),
            ("1w", 604_800, "7d"),
            ("1d12h", 129_600, "36h"),
            ("1h30min", 5400, "90m"),
            ("6mo", 15_552_000, "180d"),
            ("1y", 31_536_000, "365d"),
        ] {
            let stretch: Stretch = text.parse().unwrap();
            assert_eq!((stretch.0.as_secs(), stretch.to_string().as_str()), (seconds, shown));
        }
        for bad in ["", "5", "m", "-5m", "0s", "1.5h", "5M", "2 d", "5d3", "1dd"] {
            assert!(bad.parse::<Stretch>().is_err(), "{bad:?}");
        }
        // It was "no stretch of time; say how many of what".
        for long in ["300000d", "99999999999999999999999d", "99y13mo"] {
            let error = long.parse::<Stretch>().unwrap_err();
            assert_eq!(error.advice(), Some("say at most 100y"), "{long:?}");
        }
    }

    #[test]
    fn ages_are_at_most_five_characters() {
        for seconds in [-5, 0, 1, 59, 60, 3599, 3600, 172_799, 172_800, 5_183_999, 5_184_000] {
            assert!(age(seconds).len() <= 5, "{}", age(seconds));
        }
        assert_eq!(age(7200), "2 h");
        assert_eq!(age(86_400 * 3), "3 d");
        assert_eq!(age(86_400 * 365 * 3), "3 y");
    }
}
