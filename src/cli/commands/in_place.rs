//! `qdelta restore --in-place`: images as they were, where they lie.

use qdelta::flows::report::InPlaceReport;
use qdelta::flows::restore::{
    InPlaceOptions, InPlaceRequest, MachineInPlaceRequest, run_in_place, run_machine_in_place,
};
use qdelta::vault::repository::{PointId, Selector};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::{self, Restore};
use crate::cli::{Context, signals, status, text};

/// Rolls one image back.
pub fn run(args: &Restore, context: &mut Context) -> Result<u8> {
    let Some(disk) = &args.disk else {
        return Err(Error::new(ErrorKind::Usage, "say which disk"));
    };
    let repository = context.readable()?;
    let request = InPlaceRequest {
        disk: repository.catalog().find_one(&disk.disk)?.into(),
        selector: disk.point.clone().unwrap_or(Selector::Latest),
        image: args.output.clone(),
        options: options(args),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_in_place(&repository, &request, &context.screen, &cancel)?;
    context.out.was_done(format!("{} was rolled back and proved", report.image.display()));
    if context.out.json {
        context.out.json(&report)?;
        return Ok(status::DONE);
    }
    if context.out.quiet {
        return Ok(status::DONE);
    }
    show(&report, context)?;
    for note in text::safety_notes(false, report.passed_over) {
        context.out.line(note)?;
    }
    context.out.line(safety_point(report.safety_point))?;
    Ok(status::DONE)
}

/// Rolls all disks of a guest back.
pub fn run_machine(args: &Restore, domain: &str, context: &mut Context) -> Result<u8> {
    let repository = context.readable()?;
    let request = MachineInPlaceRequest {
        domain: domain.to_owned(),
        selector: args.machine.at.clone(),
        options: options(args),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_machine_in_place(&repository, &request, &context.screen, &cancel)?;
    context.out.was_done(format!("all disks of {} were rolled back and proved", report.domain));
    if context.out.json {
        context.out.json(&report)?;
        return Ok(status::DONE);
    }
    if context.out.quiet {
        return Ok(status::DONE);
    }
    for disk in &report.disks {
        show(disk, context)?;
    }
    for note in text::safety_notes(false, report.passed_over) {
        context.out.line(note)?;
    }
    context.out.line(safety_point(report.safety_point))?;
    Ok(status::DONE)
}

fn options(args: &Restore) -> InPlaceOptions {
    InPlaceOptions {
        format: args.target.format.map(args::Format::to_image),
        image_roots: args.image_roots.clone(),
        safety_point: !args.no_point,
        same_guest: args.machine.same_guest,
        libvirt: args.libvirt.libvirt(None),
        resources: args.work.resources(),
    }
}

/// Shows a disk that was rolled back to people.
fn show(report: &InPlaceReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let image = report.image.display();
    out.line(format!("{}@{}: {image} is as it was then, proved", report.disk, report.point))?;
    out.line(format!(
        "  {} disk, {} differed and written, took {}",
        text::bytes(report.virtual_size),
        text::bytes(report.bytes_changed),
        text::duration(report.seconds)
    ))
}

fn safety_point(point: Option<PointId>) -> String {
    match point {
        Some(point) => format!("  what was there before is safety point {point}"),
        None => "  there is no safety point of what was there before".to_owned(),
    }
}
