//! `qdelta export-kit`: what is needed elsewhere when this site is lost.

use std::path::PathBuf;

use qdelta::Result;
use qdelta::flows::jobs::{self, KitRequest};

use super::run::with_host;
use crate::cli::job_args::ExportKit;
use crate::cli::{Context, status, text, two_lines};

/// Writes the kit and says what is in it.
pub fn run(args: &ExportKit, context: &mut Context) -> Result<u8> {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let request = KitRequest { to: args.dir.clone(), program };
    let report = with_host(&args.file, context, |host| jobs::export_kit(host, &request))?;
    let folder = report.output.display();
    context.out.was_done(format!("the kit is in {folder}"));
    for problem in &report.problems {
        context.screen.say(&two_lines(&problem.text, problem.advice.as_deref()));
    }
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet {
        let (guests, out) = (&report.guests, &mut context.out);
        out.line(format!(
            "{folder}: {} of {} in the order in which they come back",
            text::count(guests.len(), "guest"),
            match report.repositories.len() {
                1 => "1 repository".to_owned(),
                count => format!("{count} repositories"),
            }
        ))?;
        for name in &report.files {
            out.line(format!("  {name}"))?;
        }
        for guest in guests.iter().filter(|guest| guest.point.is_none()) {
            out.line(format!("  {} has no point: it could not come back", guest.guest))?;
        }
        if !report.program_is_static {
            out.line(
                "  the program is not static: elsewhere it needs the libraries that it has here",
            )?;
        }
    }
    Ok(if report.problems.is_empty() { status::DONE } else { status::PARTIAL })
}
