//! `qdelta space`: what guests take, what removing would free, and when the room is full.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::Result;
use qdelta::base::clock;
use qdelta::base::duration;
use qdelta::flows::report::{GuestSpace, SpaceReport};
use qdelta::flows::space::{self, SpaceRequest};

use crate::cli::point_args::Space;
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, status, two_lines};

const COLUMNS: &[Column] = &[
    Column { head: "GUEST", right: false, rank: 0 },
    Column { head: "POINTS", right: true, rank: 3 },
    Column { head: "REMOVED", right: true, rank: 4 },
    Column { head: "STORED", right: true, rank: 0 },
    Column { head: "FULLS", right: true, rank: 2 },
    Column { head: "OF REMOVED", right: true, rank: 1 },
    Column { head: "A DAY", right: true, rank: 0 },
];

const EACH: &[Column] = &[
    Column { head: "POINT", right: false, rank: 0 },
    Column { head: "STORED", right: true, rank: 0 },
    Column { head: "FREES", right: true, rank: 0 },
    Column { head: "", right: false, rank: 1 },
];

/// Shows what guests take.
pub fn run(args: &Space, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let catalog = repository.catalog();
    let mut domains = BTreeSet::new();
    for guest in &args.guests {
        domains.extend(catalog.find_disks(guest)?.into_iter().map(|disk| disk.domain));
    }
    if args.guests.is_empty() {
        domains.extend(repository.domains()?);
    }
    let request = SpaceRequest {
        domains: domains.into_iter().collect(),
        each: !args.guests.is_empty(),
        now: clock::now()?,
    };
    let cancel = signals::watch(&context.screen);
    let report = space::run(&repository, &request, &cancel)?;
    let failures = report.guests.iter().filter_map(|guest| guest.error.as_ref());
    let failed = failures.clone().next().map(|failure| status::of(failure.kind));
    for failure in failures {
        context.screen.say(&two_lines(&failure.text, failure.advice.as_deref()));
    }
    if context.out.json {
        context.out.json(&report)?;
    } else {
        show(&report, request.now, context)?;
    }
    Ok(failed.unwrap_or(status::DONE))
}

fn show(report: &SpaceReport, now: Timestamp, context: &mut Context) -> Result<()> {
    let rows: Vec<Vec<String>> = report.guests.iter().map(row).collect();
    for line in text::table(COLUMNS, &rows, context.out.width()) {
        context.out.line(line)?;
    }
    for guest in report.guests.iter().filter(|guest| !guest.each.is_empty()) {
        context.out.line("")?;
        context.out.line(format!("{}: what removing a point alone would free", guest.domain))?;
        let rows: Vec<Vec<String>> = guest
            .each
            .iter()
            .map(|point| {
                vec![
                    point.point.to_string(),
                    text::bytes(point.bytes_stored),
                    point.bytes_freed.map_or("nothing".to_owned(), text::bytes),
                    if point.removed { "removed".to_owned() } else { String::new() },
                ]
            })
            .collect();
        for line in text::table(EACH, &rows, context.out.width()) {
            context.out.line(line)?;
        }
    }
    context.out.line(total(report, now))
}

/// The line of a guest.
fn row(guest: &GuestSpace) -> Vec<String> {
    vec![
        guest.domain.clone(),
        guest.points.to_string(),
        guest.removed.to_string(),
        text::bytes(guest.bytes_stored),
        text::bytes(guest.bytes_full),
        text::bytes(guest.bytes_removed),
        guest.bytes_per_day.map_or("unknown".to_owned(), text::bytes),
    ]
}

/// What all guests take, and how long the rest will last.
fn total(report: &SpaceReport, now: Timestamp) -> String {
    let stored = format!("in all: {} stored", text::bytes(report.bytes_stored));
    let Some(free) = report.bytes_free else { return stored };
    let stored = format!("{stored}, {} free", text::bytes(free));
    match &report.growth {
        None => format!("{stored}; too few days are known to tell when that is full"),
        Some(growth) => {
            let rate = text::bytes(growth.bytes_per_day);
            let end = match growth.full_at {
                None => "not full within a hundred years".to_owned(),
                Some(time) => format!(
                    "full on {}, in {}",
                    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d"),
                    duration::age(time.as_second() - now.as_second())
                ),
            };
            format!("{stored}; at {rate} a day {end}")
        }
    }
}
