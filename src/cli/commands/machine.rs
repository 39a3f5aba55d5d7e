//! `qdelta restore --domain`: a whole guest.

use std::path::Path;

use qdelta::Result;
use qdelta::flows::report::{InstantReport, MachineReport};
use qdelta::flows::restore::{InstantRequest, MachineRequest, run_machine};
use qdelta::guest::libvirt::Volumes;

use super::restore::refuse_inside;
use crate::cli::args::{self, Restore};
use crate::cli::{Context, keys, signals, status, text};

/// Restores a guest and says what is left to do.
pub fn run(args: &Restore, domain: &str, to: &Path, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    refuse_inside(&repository, &to.join("x"))?;
    refuse_inside(&repository, to)?;
    let libvirt = args.libvirt.libvirt(None);
    let pool = args.machine.to_pool.as_deref().map(|name| libvirt.pool(name)).transpose()?;
    if let Some(Volumes::Files(folder)) = pool.as_ref().map(|pool| &pool.volumes) {
        refuse_inside(&repository, &folder.join("x"))?;
    }
    let request = MachineRequest {
        domain: domain.to_owned(),
        selector: args.machine.at.clone(),
        to: to.to_owned(),
        pool,
        rename: args.machine.rename.clone(),
        format: args.target.format.map(args::Format::to_image),
        force: args.target.force,
        with_memory: args.machine.with_memory,
        instant: args.machine.instant.then(|| InstantRequest {
            socket: args.machine.socket.clone(),
            // Where the system does not say, systemd finds it as a shell does.
            program: std::env::current_exe().unwrap_or_else(|_| "qdelta".into()),
            key: keys::options(&context.global),
        }),
        libvirt,
        resources: args.work.resources(),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_machine(&repository, &request, &context.screen, &cancel)?;
    let (guest, folder) = (&report.domain, to.display());
    let done = match report.instant {
        Some(_) => format!("{guest} can be started from {folder}, and was not copied"),
        None => format!("{guest} was restored to {folder} and proved"),
    };
    context.out.was_done(done);
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
    let how = if report.instant.is_some() { "ready to run from" } else { "restored to" };
    out.line(format!(
        "{from}@{} ({}): {how} {}{renamed}",
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
    for disk in report.instant.iter().flat_map(|instant| &instant.disks) {
        out.line(format!(
            "  {}: {} disk, over {}",
            disk.overlay.display(),
            text::bytes(disk.virtual_size),
            disk.export
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
    match &report.instant {
        Some(instant) => show_way_home(instant, context),
        None => Ok(()),
    }
}

/// Says how a guest that runs on its point gets disks of its own.
fn show_way_home(instant: &InstantReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let parts = [
        ("To bring the disks home while the guest runs:", &instant.home),
        ("When all of them are at home:", &instant.after),
    ];
    for (title, commands) in parts {
        out.line(title)?;
        for command in commands {
            out.line(format!("  {command}"))?;
        }
    }
    out.line("If the backup goes away meanwhile, the guest pauses and loses nothing: see docs/instant-recovery.md")
}
