//! `qdelta verify`: proof that points can be restored.

use qdelta::Result;
use qdelta::base::duration;
use qdelta::flows::report::{FileState, ScrubReport, VerifyReport};
use qdelta::flows::verify::{self, Scrub, Target, VerifyRequest};

use super::compare;
use crate::cli::args::Verify;
use crate::cli::values::DiskAt;
use crate::cli::{Context, signals, status, text};

/// Verifies what was named and lists what is damaged. Damage shows in the status.
pub fn run(args: Verify, context: &mut Context) -> Result<u8> {
    if let Some(other) = &args.against {
        return compare::run(&args, other, context);
    }
    let repository = context.readable()?;
    let target = |at: DiskAt| Target { disk: at.disk, point: at.point };
    let targets = args.disks.into_iter().map(target).collect();
    let is_scrub = args.max_age.is_some() || args.budget.is_some();
    let scrub = is_scrub.then_some(Scrub { max_age: args.max_age, budget: args.budget });
    let resources = args.work.resources();
    let request = VerifyRequest { targets, quick: args.quick, scrub, resources };
    let cancel = signals::watch(&context.screen);
    let report = verify::run(&repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(&report)?;
    } else if !(context.out.quiet && report.findings.is_empty()) {
        show(&report, context)?;
    }
    Ok(if report.findings.is_empty() { status::DONE } else { status::DAMAGED })
}

/// Shows a verification to people.
fn show(report: &VerifyReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    for finding in &report.findings {
        let path = finding.path.display().to_string();
        out.line(match &finding.name {
            Some(name) => format!("{} {name} ({path})", label(finding.state)),
            None => format!("{} {path}", label(finding.state)),
        })?;
        let problem = finding.problem.strip_prefix(&format!("{path}: "));
        out.line(format!("  {}", problem.unwrap_or(&finding.problem)))?;
        if !finding.points.is_empty() {
            let points: Vec<String> = finding.points.iter().map(ToString::to_string).collect();
            out.line(format!("  needed by {}", points.join(", ")))?;
        }
    }
    for disk in &report.disks {
        let lost = disk.points.iter().filter(|point| !point.restorable).count();
        if lost == 0 {
            continue;
        }
        let of = disk.points.len();
        out.line(format!(
            "{}: {} of {of} can't be restored whole",
            disk.disk,
            text::count(lost, "point")
        ))?;
        let sound =
            disk.archives.iter().filter(|archive| archive.state == FileState::Sound).count();
        if sound > 0 {
            out.line(format!(
                "  {} sound: keep every one, also of those points (restore --salvage uses them)",
                text::count(sound, "archive")
            ))?;
        }
    }
    let number = |count: u64, what| text::count(usize::try_from(count).unwrap_or(usize::MAX), what);
    if let Some(scrub) = &report.scrub {
        out.line(format!(
            "{}: {} read, {} proved, took {}",
            number(report.archives, "archive"),
            text::bytes(report.bytes_read),
            text::bytes(report.bytes_verified),
            text::took(report.seconds, report.bytes_read),
        ))?;
        out.line(left(scrub))?;
        return match report.findings.is_empty() {
            true => Ok(()),
            false => out.line(summary(report)),
        };
    }
    out.line(format!(
        "{} in {}: {} read, {} {}, took {}",
        number(report.points, "point"),
        number(report.archives, "archive"),
        text::bytes(report.bytes_read),
        text::bytes(report.bytes_verified),
        if report.quick { "checked" } else { "proved" },
        text::took(report.seconds, report.bytes_read),
    ))?;
    out.line(match (report.findings.is_empty(), report.points) {
        (true, 0) => "there is nothing to verify yet".to_owned(),
        (true, _) if report.proved => "everything is as it was written".to_owned(),
        (true, _) => "all checksums are right".to_owned(),
        (false, _) => summary(report),
    })
}

/// What a scrub left for the next one.
fn left(scrub: &ScrubReport) -> String {
    if scrub.archives_left == 0 {
        return "nothing is left that is due".to_owned();
    }
    let archives = usize::try_from(scrub.archives_left).unwrap_or(usize::MAX);
    let oldest = match (scrub.never_proved, scrub.oldest_proof) {
        (0, Some(time)) => {
            let now = qdelta::base::clock::now().unwrap_or(time);
            format!(
                "the oldest proof is of {} ago",
                duration::age(now.as_second() - time.as_second())
            )
        }
        (never, _) => format!("{never} never proved"),
    };
    format!(
        "left for the next run: {}, {}; {oldest}",
        text::count(archives, "archive"),
        text::bytes(scrub.bytes_left)
    )
}

/// How many findings of each kind there are.
fn summary(report: &VerifyReport) -> String {
    let states = [FileState::Damaged, FileState::Missing, FileState::Stray, FileState::Unreadable];
    let number = |state| report.findings.iter().filter(|finding| finding.state == state).count();
    let counts = states.map(|state| (number(state), label(state).to_lowercase()));
    let parts: Vec<String> = counts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, label)| format!("{number} {label}"))
        .collect();
    format!("found: {}", parts.join(", "))
}

fn label(state: FileState) -> &'static str {
    match state {
        FileState::Sound => "SOUND",
        FileState::Damaged => "DAMAGED",
        FileState::Missing => "MISSING",
        FileState::Stray => "STRAY",
        FileState::Unreadable => "UNREADABLE",
    }
}
