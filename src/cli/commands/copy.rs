//! `qdelta copy`: points into another repository.

use qdelta::Result;
use qdelta::flows::copies::{self, CopyRequest};
use qdelta::flows::merge::MergeOptions;
use qdelta::flows::report::{Carried, CopiedPoint, CopyReport, Failure, GuestCopy};

use super::prune::domains;
use crate::cli::copy_args::Copy;
use crate::cli::{Context, signals, status, text, two_lines};

/// Copies, or says what would be copied.
pub fn run(args: &Copy, context: &mut Context) -> Result<u8> {
    let from = context.readable()?;
    let to = context.other(&args.to, &args.with.key)?;
    let cancel = signals::watch(&context.screen);
    let to = match args.limit_rate {
        Some(rate) => to.limited(rate, &cancel),
        None => to,
    };
    let request = CopyRequest {
        domains: domains(&from.catalog(), &args.guests)?,
        points: args.points.clone(),
        dry_run: args.dry_run,
        same_guest: args.same_guest,
        at_once: args.at_once,
        options: MergeOptions { level: args.with.level, resources: args.with.work.resources() },
    };
    let report = copies::copy((&from, &to), &request, &context.screen, &cancel)?;
    context.screen.end();
    let points: usize = report.guests.iter().map(|guest| guest.points.len()).sum();
    if !report.dry_run {
        context.out.was_done(format!("{} arrived", text::count(points, "point")));
    }
    for guest in &report.guests {
        for failed in &guest.failed {
            let name = format!("{}@{}", guest.domain, failed.point);
            say(&name, &failed.error, context);
        }
        if let Some(error) = &guest.error {
            say(guest.domain.as_str(), error, context);
        }
    }
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet || report.dry_run {
        show(&report, context)?;
    }
    Ok(status_of(&report))
}

/// Says what has failed.
pub(super) fn say(name: &str, failure: &Failure, context: &Context) {
    let what = format!("{name}: {}", failure.text);
    context.screen.say(&two_lines(&what, failure.advice.as_deref()));
}

/// That of what has failed, if it is all of one kind.
fn status_of(report: &CopyReport) -> u8 {
    let of_points =
        |guest: &'_ GuestCopy| guest.failed.iter().map(|it| it.error.kind).collect::<Vec<_>>();
    let guests = report.guests.iter();
    let kinds: Vec<_> = guests
        .flat_map(|guest| {
            of_points(guest).into_iter().chain(guest.error.as_ref().map(|it| it.kind))
        })
        .map(status::of)
        .collect();
    match kinds.first() {
        _ if report.interrupted => status::of(qdelta::ErrorKind::Interrupted),
        None => status::DONE,
        Some(first) if kinds.iter().all(|kind| kind == first) => *first,
        Some(_) => status::SOME_FAILED,
    }
}

/// Shows a copy to people.
fn show(report: &CopyReport, context: &mut Context) -> Result<()> {
    let did = if report.dry_run { "would be copied" } else { "copied" };
    for guest in &report.guests {
        let GuestCopy { domain, points, present, pinned, .. } = guest;
        if points.is_empty() && pinned.is_empty() && !report.dry_run && context.global.verbose == 0
        {
            continue;
        }
        let count = text::count(points.len(), "point");
        context.out.line(format!("{domain}: {count} {did}, {present} there before"))?;
        for point in points {
            context.out.line(format!("  {}", line(point)))?;
        }
        if !pinned.is_empty() {
            context.out.line(format!("  {} pinned as here", text::count(pinned.len(), "point")))?;
        }
    }
    let points: usize = report.guests.iter().map(|guest| guest.points.len()).sum();
    let bytes = text::bytes(report.bytes_written);
    let took = text::took(report.seconds, report.bytes_written);
    let has_failed = |guest: &GuestCopy| !guest.failed.is_empty() || guest.error.is_some();
    let is_known = !report.interrupted && !report.guests.iter().any(has_failed);
    context.out.line(match (points, report.dry_run) {
        (0, _) if is_known => "nothing is missing there".to_owned(),
        (0, _) => "nothing was copied".to_owned(),
        (_, true) => format!("{} {did}, at most {bytes}", text::count(points, "point")),
        (_, false) => format!("{} {did}, {bytes}, took {took}", text::count(points, "point")),
    })
}

/// A point that was copied, with its disks.
fn line(point: &CopiedPoint) -> String {
    let disks: Vec<String> = point
        .disks
        .iter()
        .map(|disk| {
            let how = match disk.how {
                Carried::Copied => String::new(),
                Carried::Found => ", was there".to_owned(),
                Carried::Merged => {
                    let archives = usize::try_from(disk.archives).unwrap_or(usize::MAX);
                    format!(", of {}", text::count(archives, "archive"))
                }
            };
            format!("{} {} of {}{how}", disk.disk, disk.kind, text::bytes(disk.bytes_written))
        })
        .collect();
    match disks.is_empty() {
        true => format!("{}: no disks, files alone", point.point),
        false => format!("{}: {}", point.point, disks.join("; ")),
    }
}
