//! `qdelta restore --host-config`: the configuration of a host, beside what is there.

use qdelta::flows::host::{self, HostRequest};
use qdelta::flows::report::{HostDifference, HostReport};
use qdelta::{Error, ErrorKind, Result};

use super::restore::refuse_inside;
use crate::cli::args::Restore;
use crate::cli::{Context, signals, status, text};

/// Restores the configuration and says what differs.
pub fn run(args: &Restore, context: &mut Context) -> Result<u8> {
    let Some(to) = args.machine.to.clone() else {
        return Err(Error::new(ErrorKind::Usage, "say where the configuration is to go")
            .advise("--to DIR restores it into a new folder, and changes nothing else"));
    };
    let repository = context.readable()?;
    refuse_inside(&repository, &to.join("x"))?;
    refuse_inside(&repository, &to)?;
    let cancel = signals::watch(&context.screen);
    let (host, selector) = (args.machine.host.clone(), args.machine.at.clone());
    let request = HostRequest { host, selector, to };
    let report = host::restore(repository, &request, &context.screen, &cancel)?;
    let folder = report.output.display();
    context.out.was_done(format!("the configuration of {} was restored to {folder}", report.host));
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet {
        show(&report, context)?;
    }
    Ok(if report.left_out == 0 { status::DONE } else { status::PARTIAL })
}

/// Shows a restore to people.
fn show(report: &HostReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let folder = report.output.display().to_string();
    let files = usize::try_from(report.files).unwrap_or(usize::MAX);
    out.line(format!("{}: {} restored to {folder}", report.source, text::count(files, "file")))?;
    out.line(format!("  {} as they are on this host, {} not", report.same, report.changes.len()))?;
    for change in &report.changes {
        let what = match change.difference {
            HostDifference::Content => "differs here",
            HostDifference::Rights => "has another owner or mode here",
            HostDifference::Kind => "is another kind of file here",
            HostDifference::Missing => "is missing here",
            HostDifference::New => "is new here",
        };
        out.line(format!("  {} {what}", change.path.display()))?;
        for line in &change.lines {
            out.line(format!("    {line}"))?;
        }
    }
    out.line(format!("  took {}", text::duration(report.seconds)))?;
    if !report.changes.is_empty() {
        out.line(
            "  - is of this host, + of the point; files that not everybody may read show no lines",
        )?;
        out.line(format!(
            "Nothing but {folder} was changed: copy from there what is to be as it was"
        ))?;
    }
    Ok(())
}
