//! `qdelta points`: what can be restored, drawn as chains.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::observer::Silent;
use qdelta::flows::anchors::inventory;
use qdelta::vault::repository::{
    Anchor, Catalog, DamagedManifest, DiskId, ImageRecord, Point, PointId, PointList, Refusal,
    Survey,
};
use qdelta::{Error, Result};
use serde::Serialize;

use crate::cli::args::Points;
use crate::cli::text::{self, Column};
use crate::cli::tree;
use crate::cli::{Context, status, two_lines};

/// What `--json` shows.
#[derive(Serialize)]
struct Report {
    repository: String,
    disks: Vec<DiskReport>,
    totals: Totals,
    damaged: Vec<DamagedReport>,
    unreadable: Vec<UnreadableReport>,
}

/// What all the listed disks come to.
#[derive(Default, Serialize)]
struct Totals {
    /// Domains: guests, and single images on their own.
    domains: usize,
    disks: usize,
    /// Points, each counted for each of its disks, as the list has them.
    points: usize,
    chains: usize,
    /// What the archives take.
    bytes_written: u64,
}

/// One disk and its points, oldest first.
#[derive(Serialize)]
struct DiskReport {
    disk: String,
    points: Vec<PointReport>,
}

/// One point. The names are those of what `backup --json` shows.
#[derive(Serialize)]
struct PointReport {
    point: PointId,
    created: String,
    kind: &'static str,
    parent: Option<PointId>,
    tracker: &'static str,
    consistency: &'static str,
    freeze_ms: Option<u64>,
    frozen_filesystems: Option<u32>,
    safety: bool,
    virtual_size: u64,
    block_size: u32,
    bytes_read: u64,
    bytes_sampled: u64,
    bytes_changed: u64,
    bytes_written: u64,
    root: String,
    archive: String,
    archive_present: bool,
    restorable: bool,
    archive_id: String,
    image: ImageRecord,
    refused: Vec<Refusal>,
    anchor: Option<Anchor>,
    seconds: f64,
}

/// A folder that can't be listed, or a `qdelta.toml` that can't be used.
#[derive(Serialize)]
struct UnreadableReport {
    path: String,
    error: String,
    advice: Option<String>,
}

impl Report {
    /// Adds a folder that can't be listed. Several disks may share it.
    fn add(&mut self, path: &Path, error: &Error) {
        let path = path.display().to_string();
        if self.unreadable.iter().all(|known| known.path != path) {
            let advice = error.advice().map(str::to_owned);
            self.unreadable.push(UnreadableReport { path, error: error.chain(), advice });
        }
    }
}

/// A file of a point that can't be used.
#[derive(Serialize)]
struct DamagedReport {
    point: PointId,
    path: String,
    error: String,
    advice: Option<String>,
}

/// Lists the points of one disk or of all. Something damaged does not hide the rest, but shows in
/// the exit status.
pub fn run(args: &Points, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let catalog = repository.catalog();
    let Survey { disks, unreadable } = match &args.disk {
        Some(wanted) => Survey { disks: catalog.find_disks(wanted)?, unreadable: Vec::new() },
        None => catalog.survey()?,
    };
    let view = View {
        zone: if args.utc { None } else { Some(TimeZone::system()) },
        now: qdelta::base::clock::now()?,
    };
    let mut report = Report {
        repository: repository.path().display().to_string(),
        disks: Vec::new(),
        totals: Totals::of_disks(&disks),
        damaged: Vec::new(),
        unreadable: Vec::new(),
    };
    if let Some(error) = repository.trouble() {
        report.add(&repository.path().join("qdelta.toml"), &error);
    }
    for folder in &unreadable {
        report.add(&folder.path, &folder.error);
    }
    if disks.is_empty() && !context.out.json {
        context.out.line(format!("{}: no points yet", repository.path().display()))?;
    }
    for (index, disk) in disks.iter().enumerate() {
        let list = catalog.points(disk)?;
        let health = catalog.health(disk, &list)?;
        report.totals.add(&list);
        if context.out.json {
            let points = list.points.iter().map(|point| PointReport {
                restorable: health.restorable.contains(&point.id),
                ..PointReport::new(point, &repository.describe(&point.archive))
            });
            report.disks.push(DiskReport { disk: disk.to_string(), points: points.collect() });
        } else {
            if index > 0 {
                context.out.line("")?;
            }
            show(disk, &list, &view, context)?;
            show_anchors(&catalog, disk, context)?;
        }
        // Every disk of a domain has the same manifests, and so the same damaged ones.
        for folder in &list.unreadable {
            report.add(&folder.path, &folder.error);
        }
        for damaged in list.damaged.into_iter().chain(health.problems) {
            let damaged = DamagedReport::from(damaged);
            if report.damaged.iter().all(|known| known.path != damaged.path) {
                report.damaged.push(damaged);
            }
        }
    }
    for damaged in &report.damaged {
        let line = format!("point {}: {}", damaged.point, damaged.error);
        context.screen.say(&two_lines(&line, damaged.advice.as_deref()));
    }
    for unreadable in &report.unreadable {
        context.screen.say(&two_lines(&unreadable.error, unreadable.advice.as_deref()));
    }
    if context.out.json {
        context.out.json(&report)?;
    } else if disks.len() > 1 {
        context.out.line("")?;
        context.out.line(report.totals.line())?;
    }
    let whole = report.damaged.is_empty() && report.unreadable.is_empty();
    Ok(if whole { status::DONE } else { status::DAMAGED })
}

impl Totals {
    fn of_disks(disks: &[DiskId]) -> Self {
        let domains: BTreeSet<_> = disks.iter().map(|disk| &disk.domain).collect();
        Self { domains: domains.len(), disks: disks.len(), ..Self::default() }
    }

    fn add(&mut self, list: &PointList) {
        self.points += list.points.len();
        self.chains += chains(list);
        self.bytes_written += stored(list);
    }

    fn line(&self) -> String {
        format!(
            "in all: {} of {}, {} in {}, {} stored",
            text::count(self.disks, "disk"),
            text::count(self.domains, "guest"),
            text::count(self.points, "point"),
            text::count(self.chains, "chain"),
            text::bytes(self.bytes_written)
        )
    }
}

/// How many chains the points of a disk make.
fn chains(list: &PointList) -> usize {
    list.points.iter().filter(|point| point.record.parent.is_none()).count()
}

/// What the archives of a disk take, in bytes.
fn stored(list: &PointList) -> u64 {
    list.points.iter().map(|point| point.record.bytes_written).sum()
}

/// How times are shown.
struct View {
    /// The zone of the reader; none for UTC, in which a point's time is its id.
    zone: Option<TimeZone>,
    now: Timestamp,
}

impl View {
    /// The moment of a point, in a way that is understood after `@`.
    fn moment(&self, point: PointId) -> String {
        self.zone.as_ref().map_or_else(|| point.to_string(), |zone| point.in_zone(zone))
    }

    /// The columns of the list.
    fn columns(&self) -> Vec<Column> {
        let column = |head, right, rank| Column { head, right, rank };
        let mut columns = vec![
            column(if self.zone.is_some() { "POINT" } else { "POINT (UTC)" }, false, 0),
            column("KIND", false, 0),
            column("SIZE", true, 5),
            column("CHANGED", true, 2),
            column("STORED", true, 3),
            column("TRACKER", false, 6),
            column("CONSISTENCY", false, 4),
            column("AGE", true, 1),
        ];
        if self.zone.is_some() {
            columns.push(column("ID", false, 7));
        }
        columns
    }
}

/// Shows one disk: a line about it, and its chains.
fn show(disk: &DiskId, list: &PointList, view: &View, context: &mut Context) -> Result<()> {
    context.out.line(format!(
        "{disk}: {} in {}, {} stored",
        text::count(list.points.len(), "point"),
        text::count(chains(list), "chain"),
        text::bytes(stored(list))
    ))?;
    if list.points.is_empty() {
        return Ok(());
    }
    let positions: BTreeMap<PointId, usize> =
        list.points.iter().enumerate().map(|(index, point)| (point.id, index)).collect();
    let parents: Vec<Option<usize>> = list
        .points
        .iter()
        .map(|point| positions.get(&point.record.parent_point()?).copied())
        .collect();
    let lines = tree::Lines::for_locale();
    let mut rows = Vec::new();
    for (index, branch) in tree::draw(&parents, &lines) {
        let Some(point) = list.points.get(index) else { continue };
        rows.push(row(&branch, point, view));
    }
    for line in text::table(&view.columns(), &rows, context.out.width()) {
        context.out.line(line)?;
    }
    Ok(())
}

/// What the next backup can compare with, and what that costs. What can't be looked at now (an
/// image on a disk that is not mounted) is no matter of the points.
fn show_anchors(catalog: &Catalog, disk: &DiskId, context: &mut Context) -> Result<()> {
    for anchor in inventory::list(catalog, disk, &Silent).unwrap_or_default() {
        let held = anchor.bytes_held.map(|held| format!(", holds {}", text::bytes(held)));
        context.out.line(format!(
            "  anchor {} ({}, {}{})",
            anchor.name,
            anchor.tracker,
            anchor.state.as_str(),
            held.unwrap_or_default()
        ))?;
    }
    Ok(())
}

/// The line of one point.
fn row(branch: &str, point: &Point, view: &View) -> Vec<String> {
    let record = &point.record;
    let age = view.now.as_second() - point.id.time().as_second();
    vec![
        format!("{branch}{}", view.moment(point.id)),
        match point.safety {
            true => format!("{}, safety", record.kind),
            false => record.kind.to_string(),
        },
        text::bytes(record.virtual_size),
        text::bytes(record.bytes_changed),
        match point.archive_present {
            true => text::bytes(record.bytes_written),
            false => "missing".to_owned(),
        },
        record.tracker.to_string(),
        point.consistency.as_str().to_owned(),
        text::age(age),
        point.id.to_string(),
    ]
}

impl PointReport {
    fn new(point: &Point, archive: &Path) -> Self {
        let record = &point.record;
        Self {
            point: point.id,
            created: point.created.to_string(),
            kind: record.kind.as_str(),
            parent: record.parent_point(),
            tracker: record.tracker.as_str(),
            consistency: point.consistency.as_str(),
            freeze_ms: point.freeze_ms,
            frozen_filesystems: point.frozen_filesystems,
            safety: point.safety,
            virtual_size: record.virtual_size,
            block_size: record.block_size,
            bytes_read: record.bytes_read,
            bytes_sampled: record.bytes_sampled,
            bytes_changed: record.bytes_changed,
            bytes_written: record.bytes_written,
            root: record.root.to_string(),
            archive: archive.display().to_string(),
            archive_present: point.archive_present,
            restorable: point.archive_present,
            archive_id: record.archive_id.to_string(),
            image: record.image.clone(),
            refused: record.refused.clone(),
            anchor: record.anchor.clone(),
            seconds: point.elapsed_ms as f64 / 1000.0,
        }
    }
}

impl From<DamagedManifest> for DamagedReport {
    fn from(damaged: DamagedManifest) -> Self {
        Self {
            point: damaged.point,
            path: damaged.path.display().to_string(),
            error: damaged.error.chain(),
            advice: damaged.error.advice().map(str::to_owned),
        }
    }
}
