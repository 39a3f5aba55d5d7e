//! Whether the clock may be wrong: it stands far after the points before, as it does in a night in which
//! it was set years ahead, and as it does where a guest was not backed up for long.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A pause that is no jump of the clock, whatever was before it.
const PAUSE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How many pauses before a jump tell how long a usual one is.
const USUAL: usize = 3;

/// How many times longer than a usual pause a jump is.
const JUMP: i32 = 4;

/// How many days with points make the time after a jump believed.
const DAYS: usize = 3;

/// Whether there is a jump before now after which fewer than three days have points, which were made at these times.
pub fn is_in_doubt(
    made: impl IntoIterator<Item = Timestamp>,
    zone: &TimeZone,
    now: Timestamp,
) -> bool {
    let mut times: Vec<Timestamp> = made.into_iter().filter(|made| *made <= now).collect();
    if times.is_empty() {
        return false;
    }
    times.push(now);
    times.sort_unstable();
    let pauses: Vec<SignedDuration> = times
        .iter()
        .zip(times.iter().skip(1))
        .map(|(before, after)| after.duration_since(*before))
        .collect();
    let is_jump = |index: usize| {
        let before = pauses.iter().take(index).rev().take(USUAL).max().copied();
        let usual = before.unwrap_or_default().saturating_mul(JUMP);
        pauses.get(index).is_some_and(|pause| *pause > PAUSE.max(usual))
    };
    let Some(last) = (0..pauses.len()).rev().find(|index| is_jump(*index)) else { return false };
    // What comes after the pause, without now itself.
    let after = times.iter().skip(last + 1).take(times.len().saturating_sub(last + 2));
    let days: BTreeSet<_> = after.map(|time| zone.to_datetime(*time).date()).collect();
    days.len() < DAYS
}
