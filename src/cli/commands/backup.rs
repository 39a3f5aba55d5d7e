//! `qdelta backup`: a new recovery point.

use qdelta::Result;
use qdelta::disk::image::OpenOptions;
use qdelta::flows::backup::{self, AnchorChoice, BackupRequest, ImageRequest, KindChoice, Options};
use qdelta::flows::report::BackupReport;
use qdelta::formats::archive::Tracker;
use qdelta::vault::repository::Repository;

use super::guests;
use crate::cli::args::{Backup, Kind};
use crate::cli::out::Out;
use crate::cli::tracking_args::Track;
use crate::cli::{Context, signals, status, text};

/// Makes the point and shows what it cost.
pub fn run(args: Backup, context: &mut Context) -> Result<u8> {
    let options = Options {
        kind: args.kind.to_choice(),
        level: args.level,
        block_size: args.block_size,
        track: args.tracking.track.to_tracker(),
        anchor: match &args.tracking.live_bitmap {
            Some(name) => AnchorChoice::Begun(name.clone()),
            None => args.tracking.anchor.clone(),
        },
        sample: args.tracking.sample,
        resources: args.work.resources(),
        synthetic: args.synthetic,
        with_snapshots: args.with_snapshots,
        ..Options::default()
    };
    if args.guests.are_meant() {
        return guests::run(&args, options, context);
    }
    let repository: Repository = context.repository()?;
    let cancel = signals::watch(&context.screen);
    let path = args.image.unwrap_or_default();
    let open = args.source.options_for(&path, &cancel)?;
    let open = OpenOptions { snapshot: args.snapshot, as_file: args.as_file, ..open };
    let request = BackupRequest { image: ImageRequest { path, open, disk: args.disk }, options };
    let report = backup::run(&repository, &request, &context.screen, &cancel)?;
    context.out.was_done(format!("point {}@{} was made", report.disk, report.point));
    if context.out.json {
        context.out.json(&report)?;
    } else if !context.out.quiet {
        show(&report, context)?;
    }
    // The point is made, and somebody should look at the others.
    Ok(if report.broken_chain { status::DAMAGED } else { status::DONE })
}

/// Shows a backup to people: a line, and with -v how it came about.
fn show(report: &BackupReport, context: &mut Context) -> Result<()> {
    let label = format!("{}@{}", report.disk, report.point);
    show_disk(&label, report, &mut context.out, context.global.verbose > 0)
}

/// Shows what became of a disk under this label.
pub(super) fn show_disk(
    label: &str,
    report: &BackupReport,
    out: &mut Out,
    verbose: bool,
) -> Result<()> {
    for snapshot in &report.snapshots {
        let indent = " ".repeat(label.len() - label.trim_start().len());
        out.line(format!(
            "{indent}{}@{}: snapshot {}, {}, changed {}, stored {}",
            report.disk,
            snapshot.point,
            snapshot.name,
            snapshot.kind,
            text::bytes(snapshot.bytes_changed),
            text::bytes(snapshot.bytes_written)
        ))?;
    }
    let line = line(label, report, out.width());
    out.line(line)?;
    if verbose {
        for detail in details(report) {
            out.line(format!("    {detail}"))?;
        }
    }
    Ok(())
}

/// A backup in a line of at most `width` columns, if that can be had by saying less.
fn line(label: &str, report: &BackupReport, width: usize) -> String {
    let kind = match report.parent {
        Some(_) => format!("{} by {}", report.kind, report.tracker),
        None => report.kind.to_string(),
    };
    let changed = format!("changed {}", text::bytes(report.bytes_changed));
    let stored = format!("stored {}", text::bytes(report.bytes_written));
    let pieces = [
        (0, kind),
        (3, format!("read {}", read(report))),
        (1, changed),
        (0, stored),
        (2, text::duration(report.seconds)),
    ];
    text::fitted(&format!("{label}: "), &pieces, width)
}

/// How a backup came about, in lines: what -v says beyond the result.
fn details(report: &BackupReport) -> Vec<String> {
    let mut details = Vec::new();
    if let Some(parent) = &report.parent {
        details.push(format!("against {parent} by {}: {}", report.tracker, report.why));
    }
    for refusal in &report.refused {
        details.push(format!("not by {}: {}", refusal.tracker, refusal.reason));
    }
    details.push(format!(
        "{} disk in blocks of {}, {} by {}",
        text::bytes(report.virtual_size),
        text::bytes(u64::from(report.block_size)),
        text::took(report.seconds, report.bytes_read),
        report.io.as_str()
    ));
    details
}

/// How much was read, and how much of it only to check what a tracker says.
fn read(report: &BackupReport) -> String {
    let read = text::bytes(report.bytes_read);
    match report.bytes_sampled {
        0 => read,
        sampled if sampled == report.bytes_read => format!("{read} (to check the rest)"),
        sampled => format!("{read} ({} to check the rest)", text::bytes(sampled)),
    }
}

impl Track {
    /// What the library calls it; nothing for the choice among all.
    fn to_tracker(self) -> Option<Tracker> {
        match self {
            Self::Auto => None,
            Self::Bitmap => Some(Tracker::Bitmap),
            Self::Snapshot => Some(Tracker::Snapshot),
            Self::Overlay => Some(Tracker::Overlay),
            Self::Reflink => Some(Tracker::Reflink),
            Self::LiveBitmap => Some(Tracker::LiveBitmap),
            Self::Scan => Some(Tracker::Scan),
        }
    }
}

impl Kind {
    /// What the library calls it.
    fn to_choice(self) -> KindChoice {
        match self {
            Self::Auto => KindChoice::Auto,
            Self::Full => KindChoice::Full,
            Self::Incremental => KindChoice::Incremental,
            Self::Differential => KindChoice::Differential,
        }
    }
}
