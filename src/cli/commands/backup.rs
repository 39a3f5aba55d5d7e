//! `qdelta backup`: a new recovery point.

use qdelta::backup::{self, AnchorChoice, ImageRequest, KindChoice, Options, Report, Request};
use qdelta::formats::archive::Tracker;
use qdelta::image::OpenOptions;
use qdelta::{Result, repository::Repository};

use super::guests;
use crate::cli::args::{Anchor, Backup, Kind, Track};
use crate::cli::{Context, signals, status, text};

/// Makes the point and shows what it cost.
pub fn run(args: Backup, context: &mut Context) -> Result<u8> {
    let options = Options {
        kind: args.kind.to_choice(),
        level: args.level,
        block_size: args.block_size,
        track: args.tracking.track.to_tracker(),
        anchor: args.tracking.anchor.to_choice(),
        sample: args.tracking.sample,
        resources: args.work.resources(),
        kept: false,
    };
    if args.guests.are_meant() {
        return guests::run(&args, &options, context);
    }
    let repository: Repository = context.repository()?;
    let image = ImageRequest {
        path: args.image.unwrap_or_default(),
        open: OpenOptions {
            snapshot: args.snapshot,
            as_file: args.as_file,
            ..args.source.options()
        },
        disk: args.disk,
    };
    let request = Request { image, options };
    let cancel = signals::watch(&context.screen);
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

/// Shows a backup to people.
fn show(report: &Report, context: &mut Context) -> Result<()> {
    let against = match &report.parent {
        Some(parent) => format!(" against {parent}"),
        None => String::new(),
    };
    let out = &mut context.out;
    out.line(format!("{}@{}: {}{against}", report.disk, report.point, report.kind))?;
    out.line(format!(
        "  {} disk, read {}, changed {}, stored {}",
        text::bytes(report.virtual_size),
        read(report),
        text::bytes(report.bytes_changed),
        text::bytes(report.bytes_written),
    ))?;
    if report.parent.is_some() {
        out.line(format!("  tracker {}: {}", report.tracker, report.why))?;
    }
    out.line(format!(
        "  took {}, I/O by {}",
        text::took(report.seconds, report.bytes_read),
        report.io
    ))
}

/// How much was read, and how much of it only to check what a tracker says.
pub(super) fn read(report: &Report) -> String {
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
            Self::Scan => Some(Tracker::Scan),
        }
    }
}

impl Anchor {
    /// What the library calls it.
    fn to_choice(self) -> AnchorChoice {
        match self {
            Self::Auto => AnchorChoice::AsBefore,
            Self::None => AnchorChoice::None,
            Self::Bitmap => AnchorChoice::For(Tracker::Bitmap),
            Self::Snapshot => AnchorChoice::For(Tracker::Snapshot),
            Self::Reflink => AnchorChoice::For(Tracker::Reflink),
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
