//! restic itself keeps the same points, where it means the same.
//!
//! It means the same but for this: it knows hours without their offset, so that of an hour that comes
//! twice it keeps one (here: no point lies in such an hour); a month before 31 March is 3 March to it (here:
//! no months in `--keep-within`); before version 0.16 it kept no oldest point for a rule that has found too
//! few. It knows no pins, no safety points and no damage. Each snapshot is of the day of the offset that it
//! was made with: so all are made with TZ set to the zone.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use jiff::{Timestamp, ToSpan};
use qdelta::flows::report::{Fate, Reason, Verdict};
use qdelta::flows::retain::{Candidate, Clock, judge};
use qdelta::vault::repository::{Count, Keep};
use serde_json::Value;

use super::{point, zone};
use crate::harness::{Lab, seeds};

/// The zones, and about when their points end: soon after a change of their clocks.
const PLACES: [(&str, i64); 2] =
    [("Europe/Berlin", 1_774_900_000), ("America/New_York", 1_793_600_000)];

/// A repository of restic's; a host for each zone. Most of the time that restic takes goes to its password,
/// so it is asked for all zones at once.
struct Restic<'a>(&'a Lab);

impl Restic<'_> {
    fn run(&self, zone: &str, words: &[&str]) -> String {
        let output = Command::new("restic")
            .args(words)
            .current_dir(self.0.dir())
            .env("RESTIC_REPOSITORY", self.0.path("repo"))
            .env("RESTIC_PASSWORD", "x")
            .env("RESTIC_CACHE_DIR", self.0.path("cache"))
            .env("TZ", zone)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot start restic: {error}; scripts/test installs what the tests need")
            });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "restic {words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes a snapshot of a time.
    fn back_up(&self, candidate: &Candidate, name: &str) {
        let local = candidate.created.to_zoned(zone(name));
        let time = local.strftime("%Y-%m-%d %H:%M:%S").to_string();
        self.run(name, &["backup", "--quiet", "--host", name, "--time", &time, "file"]);
    }

    /// The times of the snapshots that stay, by their zones.
    fn kept(&self, policy: &[String]) -> BTreeMap<String, BTreeSet<Timestamp>> {
        let mut words = vec!["forget", "--dry-run", "--json", "--no-lock"];
        words.extend(policy.iter().map(String::as_str));
        let out = self.run("UTC", &words);
        let groups: Value = serde_json::from_str(out.lines().next().unwrap_or("[]")).unwrap();
        let time = |it: &Value| it["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let times = |group: &Value| group["keep"].as_array().unwrap().iter().map(time).collect();
        let groups = groups.as_array().unwrap().iter();
        groups.map(|it| (it["host"].as_str().unwrap().to_owned(), times(it))).collect()
    }

    /// Whether this version keeps the oldest point for a rule that has found too few.
    fn knows_oldest(&self) -> bool {
        let version = self.run("UTC", &["version"]);
        let mut words = version.split_whitespace();
        let number = words.nth(1).unwrap_or_else(|| panic!("{version}"));
        let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(0), Some(16))
    }
}

/// Random rules, and restic's words for them.
fn random_policy(rng: &mut fastrand::Rng) -> (Keep, Vec<String>) {
    let mut words = Vec::new();
    let mut count = |rule: &str| {
        let number = (rng.u8(..3) == 0).then(|| rng.u32(1..12))?;
        words.push(format!("--keep-{rule}={number}"));
        Some(Count::Of(number))
    };
    let mut keep = Keep {
        last: count("last"),
        hourly: count("hourly"),
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
        ..Keep::default()
    };
    if words.is_empty() || rng.u8(..4) == 0 {
        let within = ["5h", "2d", "20d", "1y", "1y3d7h"][rng.usize(..5)];
        words.push(format!("--keep-within={within}"));
        keep.within = Some(within.parse().unwrap());
    }
    (keep, words)
}

/// Whether no rule but that of the oldest keeps a point.
fn only_as_oldest(verdict: &Verdict) -> bool {
    let counts = |reason: &&Reason| !matches!(reason, Reason::Newest { .. });
    let mut reasons = verdict.reasons.iter().filter(counts).peekable();
    reasons.peek().is_some() && reasons.all(|it| matches!(it, Reason::Oldest { .. }))
}

#[test]
fn restic_keeps_the_same_points() {
    let lab = Lab::new();
    std::fs::write(lab.path("file"), "x").unwrap();
    let restic = Restic(&lab);
    restic.run("UTC", &["init"]);
    let histories = PLACES.map(|(name, end)| (name, history(end, name)));
    std::thread::scope(|scope| {
        for (name, points) in &histories {
            scope.spawn(|| points.iter().for_each(|point| restic.back_up(point, name)));
        }
    });
    let knows_oldest = restic.knows_oldest();
    let mut went = 0;
    for seed in seeds(0, 40) {
        let (keep, words) = random_policy(&mut fastrand::Rng::with_seed(seed));
        let theirs = restic.kept(&words);
        assert_eq!(theirs.len(), histories.len(), "one group for each host");
        for (name, points) in &histories {
            let now = points.last().unwrap().created + 60.seconds();
            let verdicts = judge(points, &keep, &zone(name), now, Clock::Trusted);
            let stays =
                |it: &&Verdict| it.fate == Fate::Keep && (knows_oldest || !only_as_oldest(it));
            let kept: BTreeSet<Timestamp> =
                verdicts.iter().filter(stays).filter_map(|it| it.created).collect();
            assert_eq!(
                kept, theirs[*name],
                "QDELTA_SEED={seed:x}: {words:?} in {name}: {verdicts:#?}"
            );
            went += points.len() - kept.len();
        }
    }
    assert!(went > 0, "something must go");
}

/// Points of months, weeks, days and hours, over the change of a clock, the oldest first.
fn history(end: i64, name: &str) -> Vec<Candidate> {
    let mut rng = fastrand::Rng::with_seed(end as u64);
    let mut seconds = end;
    let mut points = Vec::new();
    for (count, step) in [(14, 4000), (10, 43_200), (8, 5 * 86_400), (8, 30 * 86_400)] {
        for _ in 0..count {
            seconds -= 1 + rng.i64(0..2 * step);
            let local = Timestamp::from_second(seconds).unwrap().to_zoned(zone(name)).datetime();
            // An hour that comes twice can't be said to restic, which takes times without offset.
            if !zone(name).to_ambiguous_timestamp(local).is_ambiguous() {
                points.push(point(seconds));
            }
        }
    }
    points.reverse();
    points
}
