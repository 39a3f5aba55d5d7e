//! `qdelta backup --domain` and `--all`: recovery points of libvirt's guests.

use std::path::PathBuf;
use std::time::Duration;

use qdelta::backup::{ConsistencyChoice, GuestReport, GuestRequest, Options, Report, run_guest};
use qdelta::cancel::Cancel;
use qdelta::quiesce::{Program, THAW_TRIES_DEFAULT};
use qdelta::repository::Repository;
use qdelta::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::cli::args::Backup;
use crate::cli::guest_args::Consistency;
use crate::cli::{Context, describe, signals, status, text};

/// What became of one domain.
#[derive(Serialize)]
struct Outcome {
    domain: String,
    /// The exit status that this domain alone would have given.
    status: u8,
    error: Option<String>,
    result: Option<GuestReport>,
}

/// What became of all.
#[derive(Serialize)]
struct Summary {
    domains: Vec<Outcome>,
}

/// Backs up one domain after the other. One that fails does not stop the others.
pub fn run(args: &Backup, options: &Options, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let guests = &args.guests;
    let libvirt = guests.host.folders.libvirt();
    let names = if guests.all { libvirt.list()?.names } else { guests.domains.clone() };
    if names.is_empty() {
        let text = format!("libvirt has no domain in {}", libvirt.config.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    let cancel = signals::watch(&context.screen);
    let mut summary = Summary { domains: Vec::new() };
    for name in names {
        let outcome = back_up(&repository, args, options, &name, context, &cancel)?;
        summary.domains.push(outcome);
        if cancel.is_cancelled() {
            break;
        }
    }
    if context.out.json {
        context.out.json(&summary)?;
    } else if summary.domains.len() > 1 {
        show_summary(&summary, context)?;
    }
    Ok(status_of(&summary))
}

fn back_up(
    repository: &Repository,
    args: &Backup,
    options: &Options,
    name: &str,
    context: &mut Context,
    cancel: &Cancel,
) -> Result<Outcome> {
    let request = request(args, options, name);
    match run_guest(repository, &request, &context.screen, cancel) {
        Ok(report) => {
            if !context.out.json {
                show(&report, context)?;
            }
            // As it is for a single image: a full had to begin a new chain.
            let broken = report.disks.iter().any(|disk| disk.broken_chain);
            Ok(Outcome {
                domain: name.to_owned(),
                status: if broken { status::DAMAGED } else { status::DONE },
                error: None,
                result: Some(report),
            })
        }
        Err(error) => {
            let error = error.within(format!("{name} was not backed up"));
            context.screen.say(&describe(&error));
            Ok(Outcome {
                domain: name.to_owned(),
                status: status::of(error.kind()),
                error: Some(error.chain()),
                result: None,
            })
        }
    }
}

fn request(args: &Backup, options: &Options, name: &str) -> GuestRequest {
    let guests = &args.guests;
    GuestRequest {
        domain: name.to_owned(),
        libvirt: guests.host.folders.libvirt(),
        excluded: guests.exclude.clone(),
        consistency: match guests.consistency {
            Consistency::Quiesced => ConsistencyChoice::Quiesced,
            Consistency::FreezeCopy => ConsistencyChoice::FreezeCopy,
            Consistency::Crash => ConsistencyChoice::Crash,
        },
        freeze_max: Duration::from_millis(guests.freeze_max),
        thaw_tries: THAW_TRIES_DEFAULT,
        snapshot_command: guests.snapshot_command.clone(),
        host_config: guests.with_host_config,
        virsh: guests.host.virsh(),
        watchdog: Program {
            path: PathBuf::from("/proc/self/exe"),
            arguments: vec!["watchdog".into()],
        },
        image_roots: args.source.image_roots.clone(),
        options: options.clone(),
    }
}

/// The status of all: an alarm if there is one; the only domain's own; or that some failed.
fn status_of(summary: &Summary) -> u8 {
    let has = |status: u8| summary.domains.iter().any(|it| it.status == status);
    let interrupted = status::of(ErrorKind::Interrupted);
    match summary.domains.as_slice() {
        [only] => only.status,
        _ if has(status::ALARM) => status::ALARM,
        _ if has(interrupted) => interrupted,
        domains if domains.iter().any(|it| it.error.is_some()) => status::SOME_FAILED,
        _ if has(status::DAMAGED) => status::DAMAGED,
        _ => status::DONE,
    }
}

/// Shows the backup of a domain to people.
fn show(report: &GuestReport, context: &mut Context) -> Result<()> {
    let frozen = match (report.freeze_ms, report.frozen_filesystems) {
        (Some(ms), Some(count)) => format!(
            ", {} frozen for {ms} ms",
            text::count(usize::try_from(count).unwrap_or(0), "filesystem")
        ),
        _ => String::new(),
    };
    let out = &mut context.out;
    out.line(format!("{}@{}: {}{frozen}", report.domain, report.point, report.consistency))?;
    for disk in &report.disks {
        out.line(disk_line(disk))?;
    }
    for left_out in &report.left_out {
        out.line(format!("  {} left out: it {}", left_out.disk, left_out.reason))?;
    }
    out.line(format!(
        "  machine: {}, took {}",
        text::count(report.machine_files, "file"),
        text::duration(report.seconds)
    ))
}

/// A disk, in a line.
fn disk_line(disk: &Report) -> String {
    let name = disk.disk.rsplit('/').next().unwrap_or(&disk.disk);
    format!(
        "  {name} {}: {} disk, read {}, changed {}, stored {}, tracker {}",
        disk.kind,
        text::bytes(disk.virtual_size),
        super::backup::read(disk),
        text::bytes(disk.bytes_changed),
        text::bytes(disk.bytes_written),
        disk.tracker
    )
}

fn show_summary(summary: &Summary, context: &mut Context) -> Result<()> {
    let failed: Vec<&str> = summary
        .domains
        .iter()
        .filter(|it| it.error.is_some())
        .map(|it| it.domain.as_str())
        .collect();
    let (all, done) = (summary.domains.len(), summary.domains.len() - failed.len());
    let line = match failed.is_empty() {
        true => format!("all {all} domains were backed up"),
        false => format!("{done} of {all} domains were backed up; not {}", failed.join(", ")),
    };
    context.out.line(line)
}
