//! The rules of retention against a second, naive program, and against restic.

mod model;
mod restic;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::period::Period;
use qdelta::flows::report::{Fate, Reason, Verdict};
use qdelta::flows::retain::{Candidate, Clock, judge};
use qdelta::formats::archive::Consistency;
use qdelta::vault::repository::{Count, Keep, Pin, PointId, Removal};

use crate::harness::seeds;

/// Zones with hours that come twice or never, at midnight and by half hours, and a day that never came.
const ZONES: [&str; 12] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Havana",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Asia/Gaza",
    "Africa/Casablanca",
    "Pacific/Apia",
    "Pacific/Kiritimati",
];

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or_else(|error| panic!("{error}: the package tzdata is needed"))
}

/// A sound point of one disk, made at `seconds`.
fn point(seconds: i64) -> Candidate {
    Candidate {
        point: PointId::from_ms(seconds as u64 * 1000).unwrap(),
        created: Timestamp::from_second(seconds).unwrap(),
        disks: vec!["vda".parse().unwrap()],
        consistency: Consistency::Offline,
        damaged: false,
        safety: false,
        snapshot: false,
        pins: Vec::new(),
        removed: None,
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Points at these times of a zone.
fn points(times: &[&str]) -> Vec<Candidate> {
    times.iter().map(|time| point(at(time).as_second())).collect()
}

/// The verdicts in a zone, long after the last point.
fn verdicts(points: &[Candidate], keep: &Keep, name: &str, now: &str) -> Vec<Verdict> {
    judge(points, keep, &zone(name), at(now), Clock::Trusted)
}

fn kept(verdicts: &[Verdict]) -> Vec<usize> {
    let indexes = verdicts.iter().enumerate();
    indexes.filter(|(_, it)| it.fate == Fate::Keep).map(|(index, _)| index).collect()
}

fn daily(number: u32) -> Keep {
    Keep { daily: Some(Count::Of(number)), ..Keep::default() }
}

/// cron at one minute past midnight, of the machine's time: counted in UTC, two nights were one day and
/// the day between had none.
/// Snapshots of years ago that came in one night took the places of seven states.
#[test]
fn points_of_snapshots_take_no_state_s_place() {
    let mut all = points(&[
        "2026-03-01T01:00Z",
        "2026-03-02T01:00Z",
        "2026-03-03T01:00Z",
        "2026-03-03T02:00Z",
    ]);
    all[1].snapshot = true;
    all[2].snapshot = true;
    let keep = Keep { last: Some(Count::Of(2)), ..Keep::default() };
    let verdicts = judge(&all, &keep, &zone("UTC"), at("2026-04-01T00:00Z"), Clock::Trusted);
    let fates: Vec<Fate> = verdicts.iter().map(|it| it.fate).collect();
    assert_eq!(fates, [Fate::Keep, Fate::Remove, Fate::Keep, Fate::Keep]);
}

#[test]
fn a_day_is_one_of_the_zone_and_not_of_utc() {
    let nights = points(&[
        "2026-03-27T23:01:00Z",
        "2026-03-28T23:01:00Z",
        "2026-03-29T22:01:00Z",
        "2026-03-30T22:01:00Z",
    ]);
    let now = "2026-03-31T12:00:00Z";
    assert_eq!(kept(&verdicts(&nights, &daily(3), "Europe/Berlin", now)), [1, 2, 3]);
    let now = "2026-10-27T00:00:00Z";
    let noon = points(&["2026-10-24T22:30:00Z", "2026-10-25T22:30:00Z", "2026-10-25T23:30:00Z"]);
    // A day of 25 hours: the second is of its last hour, the third of the next day.
    assert_eq!(kept(&verdicts(&noon, &daily(2), "Europe/Berlin", now)), [1, 2]);
    // An hour that comes twice is two hours.
    let twice = points(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    let hourly = Keep { hourly: Some(Count::Of(2)), ..Keep::default() };
    assert_eq!(kept(&verdicts(&twice, &hourly, "Europe/Berlin", now)), [0, 1]);
}

/// On the fifth of a month `--keep-monthly 12` of twenty daily points left one: nothing could ever grow
/// old.
#[test]
fn the_oldest_stays_while_a_rule_has_found_too_few() {
    let keep = Keep { monthly: Some(Count::Of(12)), ..Keep::default() };
    let days: Vec<_> = (1..=5).map(|day| point(1_795_176_000 + day * 86_400)).collect();
    let found = verdicts(&days, &keep, "UTC", "2026-12-24T00:00:00Z");
    assert_eq!(kept(&found), [0, 4]);
    assert!(matches!(found[0].reasons[..], [Reason::Oldest { .. }]), "{:?}", found[0]);
    let keep = Keep { monthly: Some(Count::Of(1)), ..Keep::default() };
    assert_eq!(kept(&verdicts(&days, &keep, "UTC", "2026-12-24T00:00:00Z")), [4]);
}

/// A point that can't be restored took the place of the good one of its day.
#[test]
fn a_worse_point_takes_no_better_ones_place() {
    let mut nights = points(&[
        "2026-11-20T01:00:00Z",
        "2026-11-20T02:00:00Z",
        "2026-11-21T01:00:00Z",
        "2026-11-21T02:00:00Z",
        "2026-11-22T01:00:00Z",
        "2026-11-23T01:00:00Z",
    ]);
    nights[1].damaged = true;
    nights[3].consistency = Consistency::CrashConsistent;
    nights[4].damaged = true;
    let found = verdicts(&nights, &daily(3), "UTC", "2026-11-24T00:00:00Z");
    // The damaged one of the 22nd is all that this day has: it stays, and is none of the three. That of the 20th stays
    // beside the whole one: who called it damaged may have been wrong.
    assert_eq!(kept(&found), [0, 1, 2, 4, 5]);
    let Reason::Period { instead_of, .. } = &found[2].reasons[0] else { panic!("{found:?}") };
    assert_eq!(*instead_of, Some(nights[3].point));
}

/// Where two of a day could not be restored, only the newer one stayed beside the sound one: if the other had been called
/// so by mistake, the day's best point went.
#[test]
fn each_damaged_point_goes_no_sooner_than_if_it_were_whole() {
    let mut nights = points(&[
        "2026-11-20T01:00:00Z",
        "2026-11-20T02:00:00Z",
        "2026-11-20T03:00:00Z",
        "2026-11-20T04:00:00Z",
        "2026-11-21T01:00:00Z",
    ]);
    for damaged in [0, 2, 3] {
        nights[damaged].damaged = true;
    }
    let found = verdicts(&nights, &daily(2), "UTC", "2026-11-24T00:00:00Z");
    assert_eq!(kept(&found), [1, 2, 3, 4]);
}

#[test]
fn what_is_pinned_safe_or_ahead_stays_and_counts_for_nothing() {
    let mut nights = points(&[
        "2026-10-01T01:00:00Z",
        "2026-11-20T01:00:00Z",
        "2026-11-21T01:00:00Z",
        "2026-11-22T01:00:00Z",
        "2026-11-23T01:00:00Z",
        "2036-11-24T01:00:00Z",
        "2036-11-24T01:00:01Z",
    ]);
    let pin = Pin { holder: None, at: at("2026-11-21T02:00:00Z"), reason: None, until: None };
    let over = Pin { until: Some(at("2026-11-22T00:00:00Z")), ..pin.clone() };
    nights[0].safety = true;
    nights[2].pins = vec![over.clone(), pin];
    nights[1].pins = vec![over];
    nights[3].safety = true;
    // The clock was put right: the id follows the wrong one, the time is the true one.
    nights[6].created = at("2026-11-24T01:00:00Z");
    let last = Keep { last: Some(Count::Of(2)), ..Keep::default() };
    let now = "2026-11-24T02:00:00Z";
    let found = verdicts(&nights, &last, "UTC", now);
    assert_eq!(kept(&found), [2, 3, 4, 5, 6]);
    assert_eq!(found[5].reasons, [Reason::Future]);
    assert_eq!(found[0].reasons, [Reason::SafetyOver]);
    let long = Keep { safety: Some("1y".parse().unwrap()), ..last.clone() };
    assert_eq!(kept(&verdicts(&nights, &long, "UTC", now)), [0, 2, 3, 4, 5, 6]);
    // A point that was made in 1970, they say, between two of November: nobody knows its day.
    nights[4].created = at("1970-01-01T00:00:00Z");
    let found = verdicts(&nights, &last, "UTC", now);
    assert_eq!(found[4].reasons, [Reason::ClockBehind]);
}

/// A night in 2030 must not let go of what pins and graces hold, nor of a single point.
#[test]
fn a_clock_that_jumped_removes_nothing_until_somebody_trusts_it() {
    let nights: Vec<_> = (0..10).map(|day| point(1_795_176_000 + day * 86_400)).collect();
    let judged = |points: &[Candidate], now: &str, clock| {
        kept(&judge(points, &daily(2), &zone("UTC"), at(now), clock)).len()
    };
    let soon = "2026-11-30T00:00:00Z";
    assert_eq!(judged(&nights, soon, Clock::Checked), 2);
    for later in ["2027-01-30T00:00:00Z", "2030-11-30T00:00:00Z"] {
        assert_eq!(judged(&nights, later, Clock::Checked), 10, "{later}");
        assert_eq!(judged(&nights, later, Clock::Trusted), 2, "{later}");
        // Backups of that night make it no truer; those of three days do.
        let mut more = nights.clone();
        let start = at(later).as_second();
        more.extend((0..6).map(|hour| point(start - 20_000 + hour * 3600)));
        assert!(judged(&more, later, Clock::Checked) >= 10, "{later}");
        more.extend((1..4).map(|day| point(start + day * 86_400)));
        let then = Timestamp::from_second(start + 4 * 86_400).unwrap().to_string();
        assert_eq!(judged(&more, &then, Clock::Checked), 2, "{later}");
    }
    // Who backs up once a month has always done so.
    let months: Vec<_> = (0..10).map(|month| point(1_700_000_000 + month * 31 * 86_400)).collect();
    let now = Timestamp::from_second(1_700_000_000 + 10 * 31 * 86_400).unwrap().to_string();
    assert_eq!(judged(&months, &now, Clock::Checked), 2);
}

/// Random points, rules and a time.
pub struct Case {
    points: Vec<Candidate>,
    keep: Keep,
    zone: &'static str,
    now: Timestamp,
}

impl Case {
    fn random(rng: &mut fastrand::Rng) -> Self {
        let zone = ZONES[rng.usize(..ZONES.len())];
        // Days on which clocks are changed somewhere, from 2005 on, and any others.
        let changes =
            ["2011-12-29", "2018-11-03", "2026-03-28", "2026-10-24", "2026-11-01", "2010-03-13"];
        let start = match rng.bool() {
            true => at(&format!("{}T00:00:00Z", changes[rng.usize(..changes.len())])).as_second(),
            false => rng.i64(1_104_537_600..1_924_988_400),
        };
        let step =
            [60, 600, 1800, 3600, 14_400, 43_200, 86_400, 604_800, 2_629_800][rng.usize(..9)];
        let mut seconds = start;
        let mut points = Vec::new();
        for _ in 0..rng.usize(..40) {
            seconds += 1 + rng.i64(0..=2 * step);
            points.push(Self::random_point(rng, seconds));
        }
        // Now and then a point whose clock was wrong.
        if let Some(wrong) = points.len().checked_sub(1).filter(|_| rng.u8(..4) == 0) {
            let chosen = &mut points[rng.usize(..=wrong)];
            chosen.created = Timestamp::from_second(rng.i64(0..seconds.max(1))).unwrap();
        }
        let ahead = rng.i64(0..=3 * step);
        let now = Timestamp::from_second(seconds + if rng.bool() { ahead } else { -ahead });
        Self { points, keep: Self::random_rules(rng), zone, now: now.unwrap() }
    }

    fn random_point(rng: &mut fastrand::Rng, seconds: i64) -> Candidate {
        let mut made = point(seconds);
        let time = |rng: &mut fastrand::Rng| {
            Timestamp::from_second(seconds + rng.i64(0..10_000_000)).unwrap()
        };
        match rng.u8(..20) {
            0 => made.damaged = true,
            1 => made.consistency = Consistency::CrashConsistent,
            2 => made.consistency = Consistency::Unknown,
            3 => made.safety = true,
            4 => {
                let until = rng.bool().then(|| time(rng));
                let pin = Pin { holder: None, at: made.created, reason: None, until };
                made.pins = vec![pin];
            }
            5 => {
                let until = time(rng);
                made.removed = Some(Removal { at: made.created, until, reason: String::new() });
            }
            6 => made.disks.push("vdb".parse().unwrap()),
            _ => {}
        }
        made
    }

    fn random_rules(rng: &mut fastrand::Rng) -> Keep {
        let mut count = || match rng.u8(..8) {
            0..5 => None,
            7 => Some(Count::All),
            _ => Some(Count::Of(rng.u32(1..8))),
        };
        let (last, hourly, daily) = (count(), count(), count());
        let (weekly, monthly, yearly) = (count(), count(), count());
        let periods = ["1h", "36h", "3d", "2w", "1mo", "1y1mo3d"];
        let mut period = || -> Option<Period> {
            (rng.u8(..4) == 0).then(|| periods[rng.usize(..periods.len())].parse().unwrap())
        };
        let (within, safety) = (period(), period());
        Keep { last, hourly, daily, weekly, monthly, yearly, within, safety }
    }
}

/// The rules and a second program, which was written from their description alone, find the same.
#[test]
fn a_naive_program_agrees_on_random_points_and_rules() {
    let mut differed = [0_usize; 2];
    for seed in seeds(0, 4000) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let case = Case::random(&mut rng);
        let found = judge(&case.points, &case.keep, &zone(case.zone), case.now, Clock::Trusted);
        let expected = model::kept(&case);
        assert_eq!(
            kept(&found),
            expected,
            "QDELTA_SEED={seed:x}: {:?} in {} at {}: {found:#?}",
            case.keep,
            case.zone,
            case.now
        );
        differed[usize::from(expected.len() < case.points.len())] += 1;
        // Where a backup can be restored, one can be restored after the rules. A safety point whose time
        // is over is none: a guest that has nothing else that is sound is left as it is.
        let sound = |it: &&Verdict| {
            !it.damaged && it.fate != Fate::Removed && it.reasons != [Reason::SafetyOver]
        };
        let stays = |it: &&Verdict| !it.damaged && it.fate == Fate::Keep;
        if !case.keep.is_empty() && found.iter().any(|it| sound(&it)) {
            assert!(found.iter().any(|it| stays(&it)), "QDELTA_SEED={seed:x}");
        }
    }
    // Neither "keep everything" nor "remove everything" would have passed.
    let alone = std::env::var_os("QDELTA_SEED").is_some();
    assert!(alone || differed.iter().all(|cases| *cases > 100), "{differed:?}");
}
