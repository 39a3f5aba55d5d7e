//! What is due: pure, from schedules, the history and the time.
//!
//! A time that was missed, however often, is made up for once. A schedule that was never seen before
//! begins to count when it is seen: nobody wants a new job to freeze guests in the middle of the day.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::config::{Config, Job};
use super::journal::{Memory, Past};
use crate::base::calendar::Calendar;
use crate::base::error::Result;
use crate::flows::report::{Act, End};

/// How long after its time a part of a job may begin before it is overdue.
pub(super) const LATE_MAX_S: i64 = 3600;

/// So many missed times are counted.
const MISSED_MAX: usize = 10_000;

/// The parts of a job in the order in which they are done, each with its schedule.
pub(super) fn acts(job: &Job) -> Vec<(Act, &[Calendar])> {
    let mut acts = vec![(Act::Backup, job.schedule.as_slice())];
    acts.extend(job.copy.as_ref().map(|it| (Act::Copy, it.schedule.as_slice())));
    acts.extend(job.verify.as_ref().map(|it| (Act::Verify, it.schedule.as_slice())));
    acts.extend(job.prune.as_ref().map(|it| (Act::Prune, it.schedule.as_slice())));
    acts.extend(job.drill.as_ref().map(|it| (Act::Drill, it.schedule.as_slice())));
    acts
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Due<'a> {
    /// The jobs, and which of their parts, in order.
    pub jobs: Vec<(&'a str, Vec<Act>)>,
    /// Schedules that were never seen before.
    pub new: Vec<(&'a str, Act)>,
}

/// The last time of a schedule until now.
pub(super) fn last_time(
    schedule: &[Calendar],
    now: Timestamp,
    zone: &TimeZone,
) -> Option<Timestamp> {
    schedule.iter().filter_map(|it| it.last(now, zone)).max()
}

/// The next time of any schedule.
pub(super) fn next_time(config: &Config, now: Timestamp) -> Result<Option<Timestamp>> {
    let zone = config.zone()?;
    let schedules = config.jobs.values().flat_map(acts).flat_map(|(_, schedule)| schedule);
    Ok(schedules.filter_map(|it| it.next(now, &zone)).min())
}

/// What is due by the clock.
pub(super) fn due<'a>(config: &'a Config, memory: &Memory<'_>, now: Timestamp) -> Result<Due<'a>> {
    let zone = config.zone()?;
    let mut due = Due::default();
    for (name, job) in &config.jobs {
        let mut wanted = Vec::new();
        let mut is_backup_due = false;
        for (act, schedule) in acts(job) {
            let past = memory.of(Some(name), act, None);
            let is_left = past.last.is_some_and(|it| matches!(it.end, End::Interrupted | End::Cut));
            // What is done only when somebody says so is not begun again by itself.
            let is_left = is_left && !(job.schedule.is_empty() && schedule.is_empty());
            let is_due = match last_time(schedule, now, &zone) {
                _ if is_left => true,
                _ if schedule.is_empty() => {
                    act != Act::Backup && (is_backup_due || memory.is_left(name, act))
                }
                _ if memory.is_new(name, act) => {
                    due.new.push((name.as_str(), act));
                    false
                }
                None => false,
                Some(time) => is_missed(past, time),
            };
            is_backup_due |= is_due && act == Act::Backup;
            if is_due {
                wanted.push(act);
            }
        }
        if !wanted.is_empty() {
            due.jobs.push((name.as_str(), wanted));
        }
    }
    Ok(due)
}

/// Whether nothing was tried since a time.
pub(super) fn is_missed(past: Past<'_>, time: Timestamp) -> bool {
    past.last.is_none_or(|record| record.began < time)
}

/// The jobs that were named, with those parts that have no schedule of their own. What is new elsewhere in the file
/// counts from now on as well.
pub(super) fn named<'a>(
    config: &'a Config,
    memory: &Memory<'_>,
    names: &[String],
    now: Timestamp,
) -> Result<Due<'a>> {
    let mut found: BTreeMap<&str, Vec<Act>> = BTreeMap::new();
    for (name, job) in config.jobs.iter().filter(|(name, _)| names.contains(name)) {
        let follows =
            |(act, schedule): &(Act, &[Calendar])| *act == Act::Backup || schedule.is_empty();
        let acts = acts(job).into_iter().filter(follows).map(|(act, _)| act);
        found.insert(name, acts.collect());
    }
    // In the order in which they were named.
    let order = names.iter().filter_map(|name| found.remove_entry(name.as_str()));
    let jobs: Vec<(&str, Vec<Act>)> = order.collect();
    let mut new = due(config, memory, now)?.new;
    new.retain(|(name, act)| !jobs.iter().any(|(job, acts)| job == name && acts.contains(act)));
    Ok(Due { jobs, new })
}

/// The times of a schedule since `since` that were missed: the first one and how many there are, without the last one,
/// which is made up for. None if nobody can speak of missing: the last is the first, or all are of the last hour.
pub(super) fn missed(
    schedule: &[Calendar],
    since: Timestamp,
    now: Timestamp,
    zone: &TimeZone,
) -> Option<(Timestamp, usize)> {
    let next = |time: &Timestamp| schedule.iter().filter_map(|it| it.next(*time, zone)).min();
    let times = std::iter::successors(next(&since), next).take_while(|time| *time <= now);
    let mut times = times.take(MISSED_MAX);
    let first = times.next()?;
    let is_late = now.as_second() - first.as_second() >= LATE_MAX_S;
    let count = times.count();
    (is_late && count > 0).then_some((first, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::report::{Record, RunHistory};

    const FILE: &str = "time_zone = \"UTC\"\n[repositories.main]\nplace = \"r\"\n\
                        [jobs.nightly]\nguests = [\"web\"]\nschedule = \"02:00\"\n\
                        [jobs.nightly.prune]\n[jobs.nightly.verify]\nschedule = \"Sun 06:00\"\n\
                        [jobs.test]\nguests = [\"test\"]\n";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn record(act: Act, time: &str, end: End) -> Record {
        Record {
            run: at(time),
            job: Some("nightly".to_owned()),
            act,
            subject: None,
            began: at(time),
            seconds: 0.0,
            end,
            text: String::new(),
            advice: None,
            warnings: Vec::new(),
            result: None,
        }
    }

    /// The parts that are due, and those that were never seen.
    fn what(records: &[Record], now: &str) -> (Vec<Act>, Vec<Act>) {
        let config = Config::parse(FILE).unwrap();
        let history = RunHistory { records: records.to_vec(), torn: 0 };
        let memory = Memory::new(&history, at(now));
        let due = due(&config, &memory, at(now)).unwrap();
        let jobs = due.jobs.iter().flat_map(|(_, acts)| acts.clone()).collect();
        (jobs, due.new.iter().map(|(_, act)| *act).collect())
    }

    #[test]
    fn what_is_due_is_done_once_and_what_is_new_waits() {
        use Act::{Backup, Prune, Verify};
        // The 18th of October 2026 is a Sunday.
        assert_eq!(what(&[], "2026-10-17T10:00:00Z"), (vec![], vec![Backup, Verify]));
        let mut past = vec![
            record(Backup, "2026-10-17T10:00:00Z", End::Seen),
            record(Verify, "2026-10-17T10:00:00Z", End::Seen),
        ];
        assert_eq!(what(&past, "2026-10-18T01:59:00Z"), (vec![], vec![]));
        // Pruning follows the backup, and proof has a time of its own.
        assert_eq!(what(&past, "2026-10-18T02:00:00Z"), (vec![Backup, Prune], vec![]));
        // Ten nights were missed: that is one backup, and one proof.
        assert_eq!(what(&past, "2026-10-28T12:00:00Z"), (vec![Backup, Verify, Prune], vec![]));
        past.push(record(Backup, "2026-10-18T02:00:10Z", End::Failed));
        past.push(Record { job: None, ..record(Act::Run, "2026-10-18T02:00:10Z", End::Failed) });
        assert_eq!(what(&past, "2026-10-18T02:10:00Z"), (vec![], vec![]));
        assert_eq!(what(&past, "2026-10-18T06:00:00Z"), (vec![Verify], vec![]));
        // What somebody stopped is due again, by itself.
        past.push(record(Prune, "2026-10-18T02:00:20Z", End::Interrupted));
        assert_eq!(what(&past, "2026-10-18T02:10:00Z"), (vec![Prune], vec![]));
        // The clock is set back to before everything that was done: nothing of that is new.
        assert_eq!(what(&past, "2026-10-10T12:00:00Z"), (vec![Backup, Verify, Prune], vec![]));
        // The clock was a year ahead when the last one was made.
        past.push(record(Backup, "2027-10-18T02:00:10Z", End::Done));
        past.push(record(Prune, "2026-10-18T02:30:20Z", End::Done));
        assert_eq!(what(&past, "2026-10-19T02:10:00Z"), (vec![Backup, Verify, Prune], vec![]));
    }

    /// After a power cut in a copy, what follows a backup was not done before the next backup: for an office, a week.
    #[test]
    fn what_a_cut_run_left_after_its_backup_is_due() {
        let run = |time: &str, began: &str, end: End| Record {
            job: None,
            run: at(time),
            ..record(Act::Run, began, end)
        };
        let night = "2026-10-18T02:00:00Z";
        let backup =
            Record { run: at(night), ..record(Act::Backup, "2026-10-18T02:00:10Z", End::Done) };
        let seen = record(Act::Verify, "2026-10-18T01:00:00Z", End::Seen);
        let mut past = vec![seen, run(night, night, End::Begun), backup];
        assert_eq!(what(&past, "2026-10-18T03:00:00Z"), (vec![Act::Prune], vec![]));
        let next = "2026-10-18T03:00:00Z";
        past.push(run(next, next, End::Cut));
        assert_eq!(what(&past, "2026-10-18T03:10:00Z"), (vec![Act::Prune], vec![]));
        let prune = record(Act::Prune, "2026-10-18T03:10:00Z", End::Done);
        let ended = run(night, "2026-10-18T02:10:00Z", End::Done);
        for done in [prune, ended] {
            let mut past = past.clone();
            past.push(done);
            assert_eq!(what(&past, "2026-10-18T03:20:00Z"), (vec![], vec![]));
        }
    }

    #[test]
    fn a_job_that_is_named_is_done_with_what_follows_it() {
        let config = Config::parse(FILE).unwrap();
        let history = RunHistory { records: Vec::new(), torn: 0 };
        let now = at("2026-10-17T10:00:00Z");
        let memory = Memory::new(&history, now);
        let named = |name: &str| named(&config, &memory, &[name.to_owned()], now).unwrap();
        assert_eq!(named("nightly").jobs, [("nightly", vec![Act::Backup, Act::Prune])]);
        assert_eq!(named("test").jobs, [("test", vec![Act::Backup])]);
        // Who begins with one job had alarms of all others: no run had seen their schedules.
        assert_eq!(named("nightly").new, [("nightly", Act::Verify)]);
        assert_eq!(named("test").new, [("nightly", Act::Backup), ("nightly", Act::Verify)]);
    }

    /// A host slept for a week, and nothing ever said that there was no backup.
    #[test]
    fn times_that_were_missed_are_counted_without_the_one_that_is_made_up_for() {
        let schedule = |words: &str| vec![words.parse::<Calendar>().unwrap()];
        let missed = |words: &str, since: &str, now: &str| {
            let found = missed(&schedule(words), at(since), at(now), &TimeZone::UTC);
            found.map(|(first, count)| (first.to_string(), count))
        };
        let night = "2026-10-18T02:00:05Z";
        let first = |text: &str, count| Some((text.to_owned(), count));
        assert_eq!(missed("02:00", night, "2026-10-19T02:00:04Z"), None, "it is on time");
        assert_eq!(missed("02:00", night, "2026-10-19T09:00:00Z"), None, "it is made up for");
        assert_eq!(
            missed("02:00", night, "2026-10-25T09:00:00Z"),
            first("2026-10-19T02:00:00Z", 6)
        );
        // The timer comes more seldom than the times.
        assert_eq!(missed("*:0/5", night, "2026-10-18T02:16:00Z"), None);
        let later = "2026-10-18T03:06:00Z";
        assert_eq!(missed("*:0/5", night, later), first("2026-10-18T02:05:00Z", 12));
        assert_eq!(missed("*:0/5", later, night), None, "the clock was set back");
    }
}
