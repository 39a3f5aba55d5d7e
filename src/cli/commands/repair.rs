//! `qdelta repair`: what is damaged comes from another repository.

use qdelta::Result;
use qdelta::flows::copies::{self, RepairRequest};
use qdelta::flows::merge::MergeOptions;
use qdelta::flows::report::{GuestRepair, Part, RepairReport};

use super::copy::say;
use super::prune::domains;
use crate::cli::copy_args::Repair;
use crate::cli::{Context, signals, status, text};

/// Mends, or says what would be mended.
pub fn run(args: &Repair, context: &mut Context) -> Result<u8> {
    let here = context.readable()?;
    let from = context.other(&args.from, &args.with.key)?;
    let request = RepairRequest {
        domains: domains(&here.catalog(), &args.guests)?,
        dry_run: args.dry_run,
        options: MergeOptions { level: args.with.level, resources: args.with.work.resources() },
    };
    let cancel = signals::watch(&context.screen);
    let report = copies::repair((&here, &from), &request, &context.screen, &cancel)?;
    context.screen.end();
    let mended: usize = report.guests.iter().map(|guest| guest.mended.len()).sum();
    if !report.dry_run {
        context.out.was_done(format!("{} mended", text::count(mended, "file")));
    }
    let mut failed = Vec::new();
    for guest in &report.guests {
        for it in &guest.failed {
            say(&format!("{}@{}", guest.domain, it.point), &it.error, context);
            failed.push(status::of(it.error.kind));
        }
        if let Some(error) = &guest.error {
            say(guest.domain.as_str(), error, context);
            failed.push(status::of(error.kind));
        }
    }
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet || report.dry_run {
        show(&report, context)?;
    }
    let is_behind = report.guests.iter().any(|guest| !guest.only_there.is_empty());
    Ok(match failed.first() {
        None if is_behind => status::OPEN,
        None => status::DONE,
        Some(first) if failed.iter().all(|it| it == first) => *first,
        Some(_) => status::SOME_FAILED,
    })
}

/// Shows it to people.
fn show(report: &RepairReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let did = if report.dry_run { "would be mended" } else { "mended" };
    for guest in &report.guests {
        for mended in &guest.mended {
            let what = match (mended.what, &mended.disk) {
                (Part::Manifest, _) => "the manifest".to_owned(),
                (Part::MachineFile, _) => "a file of the machine".to_owned(),
                (Part::Archive, Some(disk)) => format!("the archive of {disk}"),
                (Part::Archive, None) => "an archive".to_owned(),
            };
            out.line(format!("{}@{}: {what} {did}", guest.domain, mended.point))?;
        }
        if guest.waiting {
            out.line(format!(
                "{}: what was replaced stays until a run in which nothing is read and nothing is damaged",
                guest.domain
            ))?;
        }
    }
    let took = text::duration(report.seconds);
    let is_whole = |guest: &GuestRepair| {
        guest.mended.is_empty() && guest.failed.is_empty() && guest.error.is_none()
    };
    match report.guests.iter().all(is_whole) {
        true => out.line(format!("there is nothing to mend, {took}")),
        false => {
            let mended: usize = report.guests.iter().map(|guest| guest.mended.len()).sum();
            let failed: usize = report.guests.iter().map(|guest| guest.failed.len()).sum();
            let left = match failed {
                0 => String::new(),
                failed => format!(", {} still damaged", text::count(failed, "point")),
            };
            out.line(format!("{} {did}{left}, {took}", text::count(mended, "file")))
        }
    }
}
