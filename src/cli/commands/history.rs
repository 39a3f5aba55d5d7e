//! `qdelta history`: what was done by itself on this host.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::tz::TimeZone;
use qdelta::base::clock;
use qdelta::flows::jobs::{self, Config};
use qdelta::flows::report::{End, Record};
use qdelta::{ErrorKind, Result};

use super::run::state_of;
use crate::cli::job_args::History;
use crate::cli::text::{self, Column};
use crate::cli::{Context, status, two_lines};

const COLUMNS: &[Column] = &[
    Column { head: "WHEN", right: false, rank: 0 },
    Column { head: "JOB", right: false, rank: 0 },
    Column { head: "ACT", right: false, rank: 0 },
    Column { head: "SUBJECT", right: false, rank: 0 },
    Column { head: "END", right: false, rank: 0 },
    Column { head: "TOOK", right: true, rank: 2 },
    Column { head: "TEXT", right: false, rank: 1 },
];

/// Shows the records that are asked for.
pub fn run(args: &History, context: &mut Context) -> Result<u8> {
    let mut history = jobs::history(&state_of(context)?)?;
    let since = args.since.map(|since| {
        let seconds = i64::try_from(since.0.as_secs()).unwrap_or(i64::MAX);
        clock::now().map(|now| now.as_second().saturating_sub(seconds))
    });
    let since = since.transpose()?;
    let jobs = history.records.iter().filter_map(|record| record.job.as_deref());
    let subjects = history.records.iter().filter_map(|record| record.subject.as_deref());
    warn_of_unknown("job", &args.job, jobs.collect(), context);
    warn_of_unknown("guest", &args.guest, subjects.collect(), context);
    history.records.retain(|record| {
        let is_named = |wanted: &[String], name: Option<&String>| {
            wanted.is_empty() || name.is_some_and(|name| wanted.contains(name))
        };
        is_named(&args.job, record.job.as_ref())
            && is_named(&args.guest, record.subject.as_ref())
            && (args.act.is_empty() || args.act.contains(&record.act))
            && (!args.failed || record.end.is_trouble())
            && since.is_none_or(|since| record.began.as_second() >= since)
    });
    let surplus = history.records.len().saturating_sub(args.last);
    history.records.drain(..surplus);
    if context.out.json {
        return context.out.json(&history).map(|()| status::DONE);
    }
    if history.records.is_empty() {
        context.out.line("nothing of that kind was done yet")?;
        return Ok(status::DONE);
    }
    let zone = zone(&args.file.config, context);
    context.out.line(format!("times are of {}", zone.iana_name().unwrap_or("the local zone")))?;
    let rows: Vec<Vec<String>> = history.records.iter().map(|record| row(record, &zone)).collect();
    for line in text::table(COLUMNS, &rows, context.out.width()) {
        context.out.line(line)?;
    }
    Ok(status::DONE)
}

/// Says that nothing was ever done of a name: it may be a typing error.
fn warn_of_unknown(what: &str, wanted: &[String], known: BTreeSet<&str>, context: &Context) {
    for name in wanted.iter().filter(|name| !known.contains(name.as_str())) {
        let near = jobs::nearest(name, known.iter().copied());
        let advice = near.map(|near| format!("did you mean {near:?}?"));
        let text = format!("the history knows no {what} {name:?}");
        context.screen.say(&two_lines(&text, advice.as_deref()));
    }
}

/// The zone of the schedules; where the file can't be read, that of this host.
fn zone(file: &Path, context: &Context) -> TimeZone {
    match Config::read(file).and_then(|config| config.zone()) {
        Ok(zone) => zone,
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                context.screen.say(&two_lines(&error.chain(), error.advice()));
            }
            TimeZone::system()
        }
    }
}

fn row(record: &Record, zone: &TimeZone) -> Vec<String> {
    let when = record.began.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
    let took = match record.end {
        End::Begun | End::Seen | End::Cut | End::Refused => String::new(),
        _ => text::duration(record.seconds),
    };
    let dash = || "-".to_owned();
    vec![
        when,
        record.job.clone().unwrap_or_else(dash),
        record.act.to_string(),
        record.subject.clone().unwrap_or_else(dash),
        record.end.to_string(),
        took,
        record.text.clone(),
    ]
}
