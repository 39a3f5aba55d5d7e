//! `qdelta backup --domain` and `--all`: recovery points of libvirt's guests.

use std::path::PathBuf;
use std::time::Duration;

use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Event, Observer};
use qdelta::base::warning::Code;
use qdelta::flows::backup::{ConsistencyChoice, GuestReport, GuestRequest, Options, run_guest};
use qdelta::guest::quiesce::{Program, THAW_TRIES_DEFAULT};
use qdelta::vault::repository::Repository;
use qdelta::{Error, ErrorKind, Result};
use serde::Serialize;

use super::exclude::{self, Excluded};
use crate::cli::args::Backup;
use crate::cli::guest_args::Consistency;
use crate::cli::screen::Screen;
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
    /// The guests that were excluded.
    excluded: Vec<String>,
}

/// Says of a warning that is about no disk in particular which guest it is about.
struct OfGuest<'a> {
    screen: &'a Screen,
    guest: &'a str,
}

impl Observer for OfGuest<'_> {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Warning(warning) if warning.disk.is_none() => {
                let warning = (*warning).clone().within(self.guest);
                self.screen.event(&Event::Warning(&warning));
            }
            _ => self.screen.event(event),
        }
    }
}

/// Backs up one domain after the other. One that fails does not stop the others.
pub fn run(args: &Backup, options: &Options, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let guests = &args.guests;
    let libvirt = guests.host.folders.libvirt();
    let mut names = if guests.all { libvirt.list()?.names } else { guests.domains.clone() };
    if names.is_empty() {
        let text = format!("libvirt has no domain in {}", libvirt.config.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    exclude::guests(&mut names, &guests.exclude_guest)?;
    let excluded = exclude::disks(&libvirt, &names, guests)?;
    let cancel = signals::watch(&context.screen);
    let mut summary = Summary { domains: Vec::new(), excluded: guests.exclude_guest.clone() };
    for name in names {
        let request = request(args, options, &name, &excluded);
        let outcome = back_up(&repository, &request, context, &cancel)?;
        summary.domains.push(outcome);
        if cancel.is_cancelled() {
            break;
        }
    }
    let made = summary.domains.iter().filter(|it| it.result.is_some()).count();
    context.out.was_done(format!("{} made", text::count(made, "point")));
    if context.out.json {
        context.out.json(&summary)?;
    } else if (summary.domains.len() > 1 || !summary.excluded.is_empty())
        && !(context.out.quiet && made == summary.domains.len())
    {
        show_summary(&summary, context)?;
    }
    Ok(status_of(&summary))
}

fn back_up(
    repository: &Repository,
    request: &GuestRequest,
    context: &mut Context,
    cancel: &Cancel,
) -> Result<Outcome> {
    let name = &request.domain;
    let observer = OfGuest { screen: &context.screen, guest: name };
    match run_guest(repository, request, &observer, cancel) {
        Ok(report) => {
            if !context.out.json && !context.out.quiet {
                show(&report, context)?;
            }
            // As it is for a single image: a full had to begin a new chain.
            let broken = report.disks.iter().any(|disk| disk.broken_chain);
            let is_left = report.warnings.iter().any(|it| it.code == Code::NotReleased);
            Ok(Outcome {
                domain: name.clone(),
                status: match broken {
                    true => status::DAMAGED,
                    false if is_left => status::NOT_RELEASED,
                    false => status::DONE,
                },
                error: None,
                result: Some(report),
            })
        }
        Err(error) => {
            let error = error.within(format!("{name} was not backed up"));
            context.screen.end();
            context.screen.say(&describe(&error));
            Ok(Outcome {
                domain: name.clone(),
                status: status::of(error.kind()),
                error: Some(error.chain()),
                result: None,
            })
        }
    }
}

fn request(args: &Backup, options: &Options, name: &str, excluded: &Excluded) -> GuestRequest {
    let guests = &args.guests;
    GuestRequest {
        domain: name.to_owned(),
        libvirt: guests.host.folders.libvirt(),
        excluded: excluded.get(name).cloned().unwrap_or_default(),
        same_guest: guests.same_guest,
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
        _ if has(status::NOT_RELEASED) => status::NOT_RELEASED,
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
    context.out.line(format!(
        "{}@{}: {}{frozen}, {} of the machine, {}",
        report.domain,
        report.point,
        report.consistency,
        text::count(report.machine_files, "file"),
        text::duration(report.seconds)
    ))?;
    for disk in &report.disks {
        let name = disk.disk.rsplit('/').next().unwrap_or(&disk.disk);
        super::backup::show_disk(&format!("  {name}"), disk, context)?;
    }
    for left_out in &report.left_out {
        context.out.line(format!("  {} left out: it {}", left_out.disk, left_out.reason))?;
    }
    // A host has many guests, and nobody should wait for the last to hear of the first.
    context.out.flush()
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
    context.out.line(line)?;
    match summary.excluded.as_slice() {
        [] => Ok(()),
        names => context.out.line(format!("left out, as asked for: {}", names.join(", "))),
    }
}
