//! `qdelta verify`: proof that points can be restored.

use qdelta::Result;
use qdelta::verify::{self, Report, Request};

use crate::cli::args::Verify;
use crate::cli::{Context, signals, status, text};

/// Verifies what was named and lists what is damaged. Damage shows in the status.
pub fn run(args: Verify, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let (disk, point) = match args.disk {
        Some(at) => (Some(at.disk), at.point),
        None => (None, None),
    };
    let request = Request { disk, point, quick: args.quick, resources: args.work.resources() };
    let cancel = signals::watch(&context.screen);
    let report = verify::run(&repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(&report)?;
    } else if !(context.out.quiet && report.damaged.is_empty()) {
        show(&report, context)?;
    }
    Ok(if report.damaged.is_empty() { status::DONE } else { status::DAMAGED })
}

/// Shows a verification to people.
fn show(report: &Report, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    for finding in &report.damaged {
        let path = finding.path.display().to_string();
        out.line(format!("DAMAGED {path}"))?;
        let problem = finding.problem.strip_prefix(&format!("{path}: "));
        out.line(format!("  {}", problem.unwrap_or(&finding.problem)))?;
        if !finding.points.is_empty() {
            out.line(format!("  needed by {}", finding.points.join(", ")))?;
        }
    }
    let number = |count: u64, what| text::count(usize::try_from(count).unwrap_or(usize::MAX), what);
    out.line(format!(
        "{} in {}: {} read, {} {}, took {}",
        number(report.points, "point"),
        number(report.archives, "archive"),
        text::bytes(report.bytes_read),
        text::bytes(report.bytes_verified),
        if report.proved { "proved" } else { "checked" },
        text::took(report.seconds, report.bytes_read),
    ))?;
    out.line(match (report.damaged.is_empty(), report.points) {
        (true, 0) => "there is nothing to verify yet".to_owned(),
        (true, _) if report.proved => "everything is as it was written".to_owned(),
        (true, _) => "all checksums are right".to_owned(),
        (false, _) => format!("{} found", text::count(report.damaged.len(), "damage")),
    })
}
