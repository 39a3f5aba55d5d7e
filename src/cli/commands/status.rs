//! `qdelta status`: is everything all right?

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::duration;
use qdelta::flows::jobs::{self, Host};
use qdelta::flows::report::{GuestStatus, JobStatus, Level, StatusReport};
use qdelta::vault::repository::Climb;
use qdelta::{Error, Result};

use super::run::{coming, with_host};
use crate::cli::job_args::Status;
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, status, two_lines};

/// How long `--watch` waits before it looks again.
const PAUSE: Duration = Duration::from_secs(5);

/// How often the wait looks whether somebody asked to stop.
const STEP: Duration = Duration::from_millis(100);

/// What a plugin of Nagios ends with that could find out nothing.
pub const UNKNOWN: u8 = 3;

/// The longest line for Nagios, in characters.
const LINE_MAX: usize = 2000;

/// Shows how everything stands, once or until somebody stops it.
pub fn run(args: &Status, context: &mut Context) -> Result<u8> {
    if !args.watch {
        let found = with_host(&args.file, context, look);
        return show(found, args, context);
    }
    let cancel = signals::watch(&context.screen);
    let mut last = status::DONE;
    while !cancel.is_cancelled() && !context.out.is_closed() {
        let found = with_host(&args.file, context, look);
        context.out.clear()?;
        // What is in the way now may not be in a moment: a file that is just being written.
        last = match found {
            Err(error) => {
                context.screen.say(&two_lines(&error.chain(), error.advice()));
                status::of(error.kind())
            }
            found => show(found, args, context)?,
        };
        context.out.flush()?;
        let mut waited = Duration::ZERO;
        while waited < PAUSE && !cancel.is_cancelled() {
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }
    Ok(last)
}

/// How everything stands, and the zone of the schedules.
fn look(host: &Host<'_>) -> Result<(StatusReport, TimeZone)> {
    Ok((jobs::status(host)?, host.config.zone()?))
}

fn show(
    found: Result<(StatusReport, TimeZone)>,
    args: &Status,
    context: &mut Context,
) -> Result<u8> {
    if args.nagios {
        return nagios(found.map(|(report, _)| report), context);
    }
    let (report, zone) = found?;
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet || report.level != Level::Ok {
        screen(&report, &zone, context)?;
    }
    Ok(if report.level == Level::Ok { status::DONE } else { status::OPEN })
}

/// One line as Nagios' plugins write it, and the findings below it.
fn nagios(found: Result<StatusReport, Error>, context: &mut Context) -> Result<u8> {
    let clean = |text: &str| text.replace('|', "/").chars().take(LINE_MAX).collect::<String>();
    let report = match found {
        Ok(report) => report,
        Err(error) => {
            context.out.line(format!("QDELTA UNKNOWN - {}", clean(&error.chain())))?;
            return Ok(UNKNOWN);
        }
    };
    let what = match report.findings.as_slice() {
        [] => "everything is all right".to_owned(),
        [only] => format!("{}: {}", only.subject, only.text),
        [first, rest @ ..] => format!("{}: {}; and {} more", first.subject, first.text, rest.len()),
    };
    let ages = report.guests.iter().filter_map(|it| Some(age(&report, it.newest_at?)));
    let count = |level| report.findings.iter().filter(|it| it.level == level).count();
    let mut data = vec![
        format!("guests={};;;0", report.guests.len()),
        format!("critical={};;0;0", count(Level::Critical)),
        format!("warning={};0;;0", count(Level::Warning)),
    ];
    data.extend(ages.max().map(|oldest| format!("oldest_point={}s;;;0", oldest.max(0))));
    for repository in &report.repositories {
        if let Some(free) = repository.bytes_free {
            let least = repository.keep_free.map_or(String::new(), |keep| format!("{keep}:"));
            data.push(format!("'free_{}'={free}B;;{least};0", repository.repository));
        }
    }
    let guests = text::count(report.guests.len(), "guest");
    let line = format!("QDELTA {} - {guests}, {}", report.level, clean(&what));
    context.out.line(format!("{line} | {}", data.join(" ")))?;
    for finding in report.findings.iter().skip(1) {
        let text = clean(&finding.text);
        context.out.line(format!("{} {}: {text}", finding.level, clean(&finding.subject)))?;
    }
    Ok(match report.level {
        Level::Ok => 0,
        Level::Warning => 1,
        Level::Critical => 2,
    })
}

/// How long ago something was, in seconds.
fn age(report: &StatusReport, time: Timestamp) -> i64 {
    report.at.as_second() - time.as_second()
}

/// All of it, for people.
fn screen(report: &StatusReport, zone: &TimeZone, context: &mut Context) -> Result<()> {
    let guests = text::count(report.guests.len(), "guest");
    let count = text::count(report.findings.len(), "finding");
    context.out.line(match report.level {
        Level::Ok => format!("OK: {guests}, everything is all right"),
        level => format!("{level}: {guests}, {count}"),
    })?;
    for finding in &report.findings {
        let since = finding.since.map_or(String::new(), |since| match age(report, since) {
            ..60 => " (just now)".to_owned(),
            seconds => format!(" (since {} ago)", duration::age(seconds)),
        });
        let line = format!("{:<8} {}: {}{since}", finding.level, finding.subject, finding.text);
        context.out.line(line)?;
        if let Some(advice) = &finding.advice {
            context.out.line(format!("{:<8}   {advice}", ""))?;
        }
    }
    let width = context.out.width();
    let column = |head, right, rank| Column { head, right, rank };
    let with_locks = report.guests.iter().any(|guest| guest.safe_until.is_some());
    let mut columns = vec![
        column("GUEST", false, 0),
        column("STATE", false, 0),
        column("NEWEST", true, 0),
        column("RPO", true, 1),
        column("COPY", true, 2),
        column("PROVED", true, 3),
        column("DRILLED", true, 4),
        column("RECOVERY", true, 5),
        column("RTO", true, 6),
        column("POINTS", true, 7),
        column("JOB", false, 8),
    ];
    if with_locks {
        columns.push(column("LOCKED FOR", true, 1));
    }
    let has_lock = |guest: &GuestStatus| guest.copies.iter().any(|it| it.safe_until.is_some());
    let with_copy_locks = report.guests.iter().any(has_lock);
    if with_copy_locks {
        columns.push(column("COPY LOCKED", true, 2));
    }
    let with_locks = (with_locks, with_copy_locks);
    let rows: Vec<Vec<String>> =
        report.guests.iter().map(|guest| row(report, guest, with_locks)).collect();
    if !rows.is_empty() {
        context.out.line("")?;
        for line in text::table(&columns, &rows, width) {
            context.out.line(line)?;
        }
    }
    jobs_and_room(report, zone, width, context)
}

fn row(
    report: &StatusReport,
    guest: &GuestStatus,
    (with_locks, with_copy_locks): (bool, bool),
) -> Vec<String> {
    let ago = |time: Option<Timestamp>| {
        time.map_or("never".to_owned(), |time| duration::age(age(report, time)))
    };
    // Its repository can't be opened.
    let unknown = || "?".to_owned();
    let target = |target: Option<duration::Stretch>| {
        target.map_or("-".to_owned(), |target| target.to_string())
    };
    let locked = |until: Option<Timestamp>| {
        let left = |until: Timestamp| until.as_second() - report.at.as_second();
        until.map_or("no".to_owned(), |until| duration::age(left(until)))
    };
    let drilled = match (guest.drilled_at, guest.drilled) {
        (_, Some(Climb::Failed)) => "failed".to_owned(),
        (None, Some(Climb::NotTried)) => "not tried".to_owned(),
        (None, None) if guest.points.is_none() => unknown(),
        (time, _) => ago(time),
    };
    let mut row = vec![
        guest.guest.clone(),
        guest.level.to_string(),
        match guest.newest_at {
            _ if guest.points.is_none() => unknown(),
            Some(time) => ago(Some(time)),
            None => "none".to_owned(),
        },
        target(guest.rpo),
        copied(report, guest),
        if guest.points.is_none() { unknown() } else { ago(guest.proved_at) },
        drilled,
        guest.recovery.map_or("-".to_owned(), text::duration),
        target(guest.rto),
        guest.points.map_or_else(unknown, |points| points.to_string()),
        guest.job.clone(),
    ];
    if with_locks {
        // Of what the newest good point needs.
        row.push(locked(guest.safe_until));
    }
    if with_copy_locks {
        // The one that is locked for the shortest time.
        row.push(locked(guest.copies.iter().map(|copy| copy.safe_until).min().flatten()));
    }
    row
}

/// How old the newest point of the second copy is that is furthest behind.
fn copied(report: &StatusReport, guest: &GuestStatus) -> String {
    let times = guest.copies.iter().map(|copy| copy.newest_at);
    // One without a point is the furthest behind.
    times.min().map_or("-".to_owned(), |time| {
        time.map_or("none".to_owned(), |time| duration::age(age(report, time)))
    })
}

/// The jobs with their next times, and the room of the repositories.
fn jobs_and_room(
    report: &StatusReport,
    zone: &TimeZone,
    width: usize,
    context: &mut Context,
) -> Result<()> {
    let column = |head, right, rank| Column { head, right, rank };
    let columns = [
        column("JOB", false, 0),
        column("ACT", false, 0),
        column("LAST", true, 0),
        column("END", false, 0),
        column("NEXT", false, 1),
    ];
    let rows: Vec<Vec<String>> =
        report.jobs.iter().flat_map(|job| job_rows(report, job, zone)).collect();
    context.out.line("")?;
    for line in text::table(&columns, &rows, width) {
        context.out.line(line)?;
    }
    context.out.line("")?;
    let columns = [
        column("REPOSITORY", false, 0),
        column("FREE", true, 0),
        column("FULL IN", true, 0),
        column("PLACE", false, 1),
    ];
    let rows: Vec<Vec<String>> = report
        .repositories
        .iter()
        .map(|it| {
            vec![
                it.repository.clone(),
                it.bytes_free.map_or("-".to_owned(), text::bytes),
                it.days_left.map_or("-".to_owned(), |days| duration::age((days * 86_400.0) as i64)),
                it.place.display().to_string(),
            ]
        })
        .collect();
    for line in text::table(&columns, &rows, width) {
        context.out.line(line)?;
    }
    Ok(())
}

fn job_rows(report: &StatusReport, job: &JobStatus, zone: &TimeZone) -> Vec<Vec<String>> {
    let row = |(index, act): (usize, &qdelta::flows::report::ActStatus)| {
        let next = act.next.map_or("-".to_owned(), |next| coming(next, zone));
        let result = match (act.last, act.end) {
            (Some(_), Some(end)) => end.to_string(),
            _ => "-".to_owned(),
        };
        vec![
            if index == 0 { job.job.clone() } else { String::new() },
            act.act.to_string(),
            act.last.map_or("never".to_owned(), |last| duration::age(age(report, last))),
            result,
            next,
        ]
    };
    job.acts.iter().enumerate().map(row).collect()
}
