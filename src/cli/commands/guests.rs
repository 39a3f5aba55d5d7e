//! `qdelta backup --domain` and `--all`: recovery points of libvirt's guests.

use std::path::PathBuf;
use std::time::Duration;

use qdelta::Result;
use qdelta::base::duration;
use qdelta::flows::backup::{GuestOptions, Guests, GuestsRequest, HostConfig, Options, run_guests};
use qdelta::flows::report::{Failure, GuestOutcome, GuestReport, GuestsReport};
use qdelta::guest::quiesce::{Program, THAW_TRIES_DEFAULT};

use crate::cli::args::Backup;
use crate::cli::out::Out;
use crate::cli::screen::Screen;
use crate::cli::{Context, signals, status, text, two_lines};

/// Backs up the guests that are meant, and tells of each when it is done.
pub fn run(args: &Backup, options: Options, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let request = request(args, options);
    let cancel = signals::watch(&context.screen);
    let (screen, out, verbose) = (&context.screen, &mut context.out, context.global.verbose > 0);
    let mut shown = Ok(());
    let mut told = |guest: &GuestOutcome| {
        if let Err(error) = tell(guest, screen, out, verbose) {
            shown = Err(error);
        }
    };
    let report = run_guests(&repository, &request, screen, &cancel, &mut told)?;
    shown?;
    let made = report.made();
    context.out.was_done(format!("{} made", text::count(made, "point")));
    if context.out.json {
        context.out.json(&report)?;
    } else if (report.domains.len() > 1 || !report.excluded.is_empty())
        && !(context.out.quiet && made == report.domains.len())
    {
        show_summary(&report, context)?;
    }
    Ok(status::of_guests(&report))
}

/// Tells people what became of a guest.
fn tell(guest: &GuestOutcome, screen: &Screen, out: &mut Out, verbose: bool) -> Result<()> {
    if let Some(Failure { text, advice, .. }) = &guest.error {
        screen.end();
        screen.say(&two_lines(text, advice.as_deref()));
    }
    match &guest.result {
        Some(report) if !out.json && !out.quiet => show(report, out, verbose),
        _ => Ok(()),
    }
}

/// What the arguments mean together.
fn request(args: &Backup, options: Options) -> GuestsRequest {
    let guests = &args.guests;
    GuestsRequest {
        which: match guests.all {
            true => Guests::All,
            false => Guests::Named(guests.domains.clone()),
        },
        excluded_guests: guests.exclude_guest.clone(),
        excluded_disks: guests.exclude.clone(),
        how: GuestOptions {
            libvirt: guests.host.folders.libvirt(guests.host.connect.as_deref()),
            same_guest: guests.same_guest,
            consistency: guests.consistency,
            freeze_max: Duration::from_millis(guests.freeze_max),
            thaw_tries: THAW_TRIES_DEFAULT,
            snapshot_command: guests.snapshot_command.clone(),
            host_config: match guests.with_host_config {
                true => HostConfig::InPoint,
                false => HostConfig::LeftOut,
            },
            with_memory: guests.with_memory,
            virsh: guests.host.virsh(),
            watchdog: Program {
                path: PathBuf::from("/proc/self/exe"),
                arguments: vec!["watchdog".into()],
            },
            image_roots: args.source.image_roots.clone(),
            options,
        },
    }
}

/// Shows the backup of a domain to people.
fn show(report: &GuestReport, out: &mut Out, verbose: bool) -> Result<()> {
    let frozen = match (report.freeze_ms, report.frozen_filesystems) {
        (Some(ms), Some(count)) => format!(
            ", {} frozen for {}",
            text::count(usize::try_from(count).unwrap_or(0), "filesystem"),
            duration::in_ms(Duration::from_millis(ms))
        ),
        _ => String::new(),
    };
    out.line(format!(
        "{}@{}: {}{frozen}, {} of the machine, {}",
        report.domain,
        report.point,
        report.consistency,
        text::count(report.machine_files, "file"),
        text::duration(report.seconds)
    ))?;
    for disk in &report.disks {
        let name = disk.disk.rsplit('/').next().unwrap_or(&disk.disk);
        super::backup::show_disk(&format!("  {name}"), disk, out, verbose)?;
    }
    for left_out in &report.left_out {
        out.line(format!("  {} left out: it {}", left_out.disk, left_out.reason))?;
    }
    // A host has many guests, and nobody should wait for the last to hear of the first.
    out.flush()
}

fn show_summary(summary: &GuestsReport, context: &mut Context) -> Result<()> {
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
