//! The rules: from points, a policy, a time zone and the time to a verdict with its reasons for each
//! point. Nothing here looks at a file or at a clock.
//!
//! The rules mean what restic's mean. Every rule sees every point; a point stays if one of them keeps
//! it. A rule of periods keeps one point of each of the last periods that have one, and the oldest point
//! as well while it has found fewer than it may keep. What counts for no rule, and stays: pinned points,
//! safety points until their time is over, points ahead of the clock. Points of snapshots are counted among the states, and
//! take no state's place.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use qdelta_formats::archive::Consistency;

use super::doubt::is_in_doubt;
use crate::flows::report::{Every, Fate, Reason, Verdict};
use crate::vault::repository::{Count, DiskName, Keep, Pin, PointId, Removal, SAFETY};

/// What the rules look at of a point.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The point.
    pub point: PointId,
    /// When it was made, by the clock of that moment.
    pub created: Timestamp,
    /// Its disks.
    pub disks: Vec<DiskName>,
    /// In what state the guest was.
    pub consistency: Consistency,
    /// It can't be restored.
    pub damaged: bool,
    /// It is a safety point.
    pub safety: bool,
    /// It holds snapshots of images, and no state that the next backup builds on.
    pub snapshot: bool,
    /// Its pins.
    pub pins: Vec<Pin>,
    /// It was removed before.
    pub removed: Option<Removal>,
}

/// How good a point is; the greatest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Quality {
    Damaged,
    Unknown,
    CrashConsistent,
    Consistent,
}

impl Candidate {
    fn quality(&self) -> Quality {
        if self.damaged { Quality::Damaged } else { self.quality_if_whole() }
    }

    fn quality_if_whole(&self) -> Quality {
        match self.consistency {
            Consistency::Unknown => Quality::Unknown,
            Consistency::CrashConsistent => Quality::CrashConsistent,
            _ => Quality::Consistent,
        }
    }
}

/// Whether the clock is believed where it stands far after the points before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// It is not: nothing is removed then.
    Checked,
    /// It is: somebody said so.
    Trusted,
}

/// The verdicts on the points of one guest, in their order. `points` are sorted by their ids.
pub fn judge(
    points: &[Candidate],
    keep: &Keep,
    zone: &TimeZone,
    now: Timestamp,
    clock: Clock,
) -> Vec<Verdict> {
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); points.len()];
    let mut add = |index: usize, reason: Reason| {
        if let Some(reasons) = reasons.get_mut(index) {
            reasons.push(reason);
        }
    };
    keep_newest(points, &mut add);
    let counted = sort_out(points, keep, zone, now, &mut add);
    // Snapshots of years ago may come in one night: they are counted among the states, and take no state's place.
    let states: Vec<_> = counted.iter().filter(|it| !it.candidate.snapshot).copied().collect();
    apply(&states, keep, zone, &mut add);
    if states.len() < counted.len() {
        let is_snapshot = |index: usize| points.get(index).is_some_and(|it| it.snapshot);
        apply(&counted, keep, zone, &mut |index, reason| {
            if is_snapshot(index) {
                add(index, reason);
            }
        });
    }
    let in_doubt =
        clock == Clock::Checked && is_in_doubt(points.iter().map(|it| it.created), zone, now);
    points
        .iter()
        .zip(reasons)
        .map(|(candidate, mut reasons)| {
            let fate = match &candidate.removed {
                Some(removal) => {
                    reasons = vec![Reason::Removed { at: removal.at, until: removal.until }];
                    Fate::Removed
                }
                None if reasons.is_empty() && in_doubt => {
                    reasons.push(Reason::ClockInDoubt);
                    Fate::Keep
                }
                None if reasons.is_empty() => {
                    reasons.push(match candidate.safety {
                        true => Reason::SafetyOver,
                        false => Reason::NoRule,
                    });
                    Fate::Remove
                }
                None => Fate::Keep,
            };
            Verdict {
                point: candidate.point,
                created: Some(candidate.created),
                consistency: Some(candidate.consistency),
                safety: candidate.safety,
                damaged: candidate.damaged,
                fate,
                reasons,
            }
        })
        .collect()
}

/// The newest point of each disk stays: the next backup is made against it.
fn keep_newest(points: &[Candidate], add: &mut impl FnMut(usize, Reason)) {
    let mut seen = BTreeSet::new();
    for (index, candidate) in points.iter().enumerate().rev() {
        let is_state = candidate.removed.is_none() && !candidate.snapshot;
        for disk in candidate.disks.iter().filter(|_| is_state) {
            if seen.insert(disk) {
                add(index, Reason::Newest { disk: disk.clone() });
            }
        }
    }
}

/// A point that counts for the rules, and where it stands in the list.
#[derive(Clone, Copy)]
struct Counted<'a> {
    index: usize,
    candidate: &'a Candidate,
}

/// The points that count, the newest first; the others get their reason to stay, if they have one.
fn sort_out<'a>(
    points: &'a [Candidate],
    keep: &Keep,
    zone: &TimeZone,
    now: Timestamp,
    add: &mut impl FnMut(usize, Reason),
) -> Vec<Counted<'a>> {
    let safety = keep.safety.unwrap_or(SAFETY);
    let mut counted = Vec::new();
    let mut latest = Timestamp::MIN;
    for (index, candidate) in points.iter().enumerate() {
        let is_ahead = candidate.created > now;
        let is_behind = candidate.created < latest;
        if !is_ahead {
            latest = latest.max(candidate.created);
        }
        if candidate.removed.is_some() {
            continue;
        }
        let pins: Vec<&Pin> = candidate.pins.iter().filter(|pin| pin.holds(now)).collect();
        if !pins.is_empty() {
            for pin in pins {
                let reason = pin.reason.clone().or_else(|| pin.holder.clone());
                add(index, Reason::Pinned { reason, until: pin.until });
            }
        } else if is_ahead {
            add(index, Reason::Future);
        } else if candidate.safety {
            let until = safety.after(candidate.created, zone);
            if until > now {
                add(index, Reason::Safety { until });
            }
        } else if is_behind {
            add(index, Reason::ClockBehind);
        } else {
            counted.push(Counted { index, candidate });
        }
    }
    // By their time: ids of a clock that was set back are in the same order.
    counted.sort_by_key(|it| (it.candidate.created, it.candidate.point));
    counted.reverse();
    counted
}

/// Applies the rules to the points that count.
fn apply(
    counted: &[Counted<'_>],
    keep: &Keep,
    zone: &TimeZone,
    add: &mut impl FnMut(usize, Reason),
) {
    let mut left = Left::of(keep.last);
    for it in counted {
        if left.is_none() {
            break;
        }
        add(it.index, Reason::Last);
        left.take(it.candidate);
    }
    for rule in Every::ALL {
        let count = match rule {
            Every::Hourly => keep.hourly,
            Every::Daily => keep.daily,
            Every::Weekly => keep.weekly,
            Every::Monthly => keep.monthly,
            Every::Yearly => keep.yearly,
        };
        if count.is_some() {
            keep_periods(counted, rule, count, zone, add);
        }
    }
    let is_sound = |it: &&Counted<'_>| !it.candidate.damaged;
    let newest = counted.iter().find(is_sound).or(counted.first());
    if let (Some(period), Some(newest)) = (keep.within, newest) {
        let since = period.before(newest.candidate.created, zone);
        for it in
            counted.iter().filter(|it| it.candidate.created > since || it.index == newest.index)
        {
            add(it.index, Reason::Within);
        }
    }
}

/// How many more a rule keeps.
struct Left(Option<Count>);

impl Left {
    fn of(count: Option<Count>) -> Self {
        Self(count)
    }

    fn is_none(&self) -> bool {
        matches!(self.0, None | Some(Count::Of(0)))
    }

    /// Counts a point that is kept: a damaged one takes nobody's place.
    fn take(&mut self, candidate: &Candidate) {
        if let Some(Count::Of(number)) = &mut self.0
            && !candidate.damaged
        {
            *number = number.saturating_sub(1);
        }
    }
}

/// Keeps the best point of each of the last periods.
fn keep_periods(
    counted: &[Counted<'_>],
    rule: Every,
    count: Option<Count>,
    zone: &TimeZone,
    add: &mut impl FnMut(usize, Reason),
) {
    // The newest first, as the points are; where clocks were put back over midnight, a day may come again.
    let mut order = Vec::new();
    let mut periods: BTreeMap<Period, Vec<Counted<'_>>> = BTreeMap::new();
    for it in counted {
        let period = Period::of(rule, it.candidate.created, zone);
        let members = periods.entry(period).or_default();
        if members.is_empty() {
            order.push(period);
        }
        members.push(*it);
    }
    let mut left = Left::of(count);
    let mut kept = BTreeSet::new();
    for period in order {
        if left.is_none() {
            return;
        }
        let Some(members) = periods.get(&period) else { continue };
        // Of equals the last one wins: the newest, as they are turned round.
        let best = members.iter().rev().max_by_key(|it| it.candidate.quality());
        let (Some(newest), Some(best)) = (members.first(), best) else { continue };
        let instead_of = (newest.index != best.index).then_some(newest.candidate.point);
        let period = period.to_string();
        kept.insert(best.index);
        add(best.index, Reason::Period { rule, period: period.clone(), instead_of });
        // Whoever called a point damaged may have been wrong: it goes no sooner than a whole one.
        let mut is_newer = true;
        for it in members {
            is_newer &= it.index != best.index;
            let (if_whole, of_best) = (it.candidate.quality_if_whole(), best.candidate.quality());
            if it.candidate.damaged && (if_whole > of_best || is_newer && if_whole == of_best) {
                kept.insert(it.index);
                if it.index != best.index {
                    let period = period.clone();
                    add(it.index, Reason::Period { rule, period, instead_of: None });
                }
            }
        }
        left.take(best.candidate);
    }
    // Counts are left, so that the oldest can grow old enough for a coarser rule.
    let sound = counted.iter().rev().find(|it| !it.candidate.damaged);
    let oldest = BTreeSet::from_iter(sound.into_iter().chain(counted.last()).map(|it| it.index));
    for index in oldest.difference(&kept).filter(|_| !left.is_none()) {
        add(*index, Reason::Oldest { rule });
    }
}

/// An hour, a day, a week, a month or a year of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Period {
    /// With its offset from UTC, in seconds: an hour that comes twice is two hours.
    Hour(Date, i8, i32),
    Day(Date),
    Week(i16, i8),
    Month(i16, i8),
    Year(i16),
}

impl Period {
    /// The period that a moment lies in.
    fn of(rule: Every, time: Timestamp, zone: &TimeZone) -> Self {
        let local = time.to_zoned(zone.clone());
        let date = local.date();
        match rule {
            Every::Hourly => Self::Hour(date, local.hour(), local.offset().seconds()),
            Every::Daily => Self::Day(date),
            Every::Weekly => {
                let week = date.iso_week_date();
                Self::Week(week.year(), week.week())
            }
            Every::Monthly => Self::Month(date.year(), date.month()),
            Every::Yearly => Self::Year(date.year()),
        }
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Hour(date, hour, offset) => {
                let sign = if offset < 0 { '-' } else { '+' };
                let minutes = offset.unsigned_abs() / 60;
                write!(f, "{date}T{hour:02}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
            }
            Self::Day(date) => write!(f, "{date}"),
            Self::Week(year, week) => write!(f, "{year:04}-W{week:02}"),
            Self::Month(year, month) => write!(f, "{year:04}-{month:02}"),
            Self::Year(year) => write!(f, "{year:04}"),
        }
    }
}
