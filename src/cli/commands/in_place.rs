//! `qdelta restore --in-place`: images as they were, where they lie.

use qdelta::repository::Selector;
use qdelta::restore::{
    InPlaceOptions, InPlaceReport, InPlaceRequest, MachineInPlaceRequest, run_in_place,
    run_machine_in_place,
};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::{self, Restore};
use crate::cli::{Context, signals, status, text};

/// Rolls one image back.
pub fn run(args: &Restore, context: &mut Context) -> Result<u8> {
    let Some(disk) = &args.disk else {
        return Err(Error::new(ErrorKind::Usage, "say which disk"));
    };
    let repository = context.repository()?;
    let request = InPlaceRequest {
        disk: disk.disk.clone(),
        selector: disk.point.clone().unwrap_or(Selector::Latest),
        image: args.output.clone(),
        options: options(args),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_in_place(&repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(&report)?;
        return Ok(status::DONE);
    }
    show(&report, context)?;
    context.out.line(kept(report.kept.as_deref()))?;
    Ok(status::DONE)
}

/// Rolls all disks of a guest back.
pub fn run_machine(args: &Restore, domain: &str, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let request = MachineInPlaceRequest {
        domain: domain.to_owned(),
        selector: args.machine.at.clone(),
        options: options(args),
    };
    let cancel = signals::watch(&context.screen);
    let report = run_machine_in_place(&repository, &request, &context.screen, &cancel)?;
    if context.out.json {
        context.out.json(&report)?;
        return Ok(status::DONE);
    }
    for disk in &report.disks {
        show(disk, context)?;
    }
    context.out.line(kept(report.kept.as_deref()))?;
    Ok(status::DONE)
}

fn options(args: &Restore) -> InPlaceOptions {
    InPlaceOptions {
        format: args.target.format.map(args::Format::to_image),
        image_roots: args.image_roots.clone(),
        keep: !args.no_point,
        libvirt: args.libvirt.libvirt(),
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

fn kept(point: Option<&str>) -> String {
    match point {
        Some(point) => format!("  what was there before is point {point}"),
        None => "  what was there before is not kept".to_owned(),
    }
}
