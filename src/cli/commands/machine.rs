//! `qdelta restore --domain`: a whole guest.

use std::path::Path;

use qdelta::Result;
use qdelta::flows::report::MachineReport;
use qdelta::flows::restore::{MachineRequest, run_machine};

use super::restore::refuse_inside;
use crate::cli::args::{self, Restore};
use crate::cli::{Context, signals, status, text};

/// Restores a guest and says what is left to do.
pub fn run(args: &Restore, domain: &str, to: &Path, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    refuse_inside(&repository, &to.join("x"))?;
    refuse_inside(&repository, to)?;
    let request = MachineRequest {
        domain: domain.to_owned(),
        selector: args.machine.at.clone(),
        to: to.to_owned(),
        rename: args.machine.rename.clone(),
        format: args.target.format.map(args::Format::to_image),
        force: args.target.force,
        libvirt: args.libvirt.libvirt(),
        resources: args.work.resources(),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_machine(&repository, &request, &context.screen, &cancel)?;
    let (guest, folder) = (&report.domain, to.display());
    context.out.was_done(format!("{guest} was restored to {folder} and proved"));
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet {
        show(&report, domain, to, context)?;
    }
    Ok(status::DONE)
}

/// Shows a restore to people.
fn show(report: &MachineReport, from: &str, to: &Path, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let renamed = match report.domain == from {
        true => String::new(),
        false => format!(" as {}", report.domain),
    };
    out.line(format!(
        "{from}@{} ({}): restored to {}{renamed}",
        report.point,
        report.consistency,
        to.display()
    ))?;
    let uuid = report.guest_uuid.as_deref().unwrap_or("unknown");
    out.line(format!("  of the guest {}, UUID {uuid}", report.guest))?;
    for disk in &report.disks {
        out.line(format!(
            "  {}: {} disk, {} written and proved",
            disk.output.display(),
            text::bytes(disk.virtual_size),
            text::bytes(disk.bytes_written)
        ))?;
    }
    for path in report.nvram.iter().chain([&report.xml]) {
        out.line(format!("  {}", path.display()))?;
    }
    for note in text::safety_notes(report.safety, report.passed_over) {
        out.line(note)?;
    }
    out.line(format!("  took {}", text::duration(report.seconds)))?;
    out.line("What is left to do:")?;
    for command in &report.commands {
        out.line(format!("  {command}"))?;
    }
    Ok(())
}
