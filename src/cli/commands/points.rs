//! `qdelta points`: what can be restored, drawn as chains.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use qdelta::backup::inventory;
use qdelta::observer::Silent;
use qdelta::repository::{
    Anchor, DamagedManifest, DiskId, ImageRecord, Point, PointId, PointList, Refusal, Repository,
    Survey,
};
use qdelta::{Error, Result};
use serde::Serialize;

use crate::cli::args::Points;
use crate::cli::text::{self, Column};
use crate::cli::tree;
use crate::cli::{Context, status};

/// What `--json` shows.
#[derive(Serialize)]
struct Report {
    repository: String,
    disks: Vec<DiskReport>,
    damaged: Vec<DamagedReport>,
    unreadable: Vec<UnreadableReport>,
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
    kept: bool,
    virtual_size: u64,
    block_size: u32,
    bytes_read: u64,
    bytes_sampled: u64,
    bytes_changed: u64,
    bytes_written: u64,
    root: String,
    archive: String,
    archive_present: bool,
    archive_id: String,
    chain_id: String,
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
}

impl Report {
    /// Adds a folder that can't be listed. Several disks may share it.
    fn add(&mut self, path: &Path, error: &Error) {
        let path = path.display().to_string();
        if self.unreadable.iter().all(|known| known.path != path) {
            self.unreadable.push(UnreadableReport { path, error: error.chain() });
        }
    }
}

/// A manifest that can't be used.
#[derive(Serialize)]
struct DamagedReport {
    point: PointId,
    path: String,
    error: String,
}

/// Lists the points of one disk or of all. Something damaged does not hide the rest, but shows in
/// the exit status.
pub fn run(args: &Points, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let Survey { disks, unreadable } = match &args.disk {
        Some(spec) => Survey { disks: vec![repository.find_disk(spec)?], unreadable: Vec::new() },
        None => repository.survey()?,
    };
    let mut report = Report {
        repository: repository.path().display().to_string(),
        disks: Vec::new(),
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
    let mut whole = true;
    for (index, disk) in disks.iter().enumerate() {
        let list = repository.points(disk)?;
        whole &= list.points.iter().all(|point| point.archive_present);
        if context.out.json {
            let points = list.points.iter().map(PointReport::from).collect();
            report.disks.push(DiskReport { disk: disk.to_string(), points });
        } else {
            if index > 0 {
                context.out.line("")?;
            }
            show(disk, &list, context)?;
            show_anchors(&repository, disk, context)?;
        }
        // Every disk of a domain has the same manifests, and so the same damaged ones.
        for folder in &list.unreadable {
            report.add(&folder.path, &folder.error);
        }
        for damaged in list.damaged {
            let damaged = DamagedReport::from(damaged);
            if report.damaged.iter().all(|known| known.path != damaged.path) {
                report.damaged.push(damaged);
            }
        }
    }
    for damaged in &report.damaged {
        let line = format!("qdelta: point {}: {}", damaged.point, damaged.error);
        context.screen.say(&text::printable(&line));
    }
    for unreadable in &report.unreadable {
        context.screen.say(&text::printable(&format!("qdelta: {}", unreadable.error)));
    }
    whole &= report.damaged.is_empty() && report.unreadable.is_empty();
    if context.out.json {
        context.out.json(&report)?;
    }
    Ok(if whole { status::DONE } else { status::DAMAGED })
}

/// The columns of the list.
const COLUMNS: &[Column] = &[
    Column { head: "POINT (UTC)", right: false, rank: 0 },
    Column { head: "KIND", right: false, rank: 0 },
    Column { head: "SIZE", right: true, rank: 3 },
    Column { head: "CHANGED", right: true, rank: 1 },
    Column { head: "STORED", right: true, rank: 2 },
    Column { head: "TRACKER", right: false, rank: 4 },
    Column { head: "AGE", right: true, rank: 0 },
];

/// Shows one disk: a line about it, and its chains.
fn show(disk: &DiskId, list: &PointList, context: &mut Context) -> Result<()> {
    let stored: u64 = list.points.iter().map(|point| point.record.bytes_written).sum();
    let fulls = list.points.iter().filter(|point| point.record.parent.is_none()).count();
    context.out.line(format!(
        "{disk}: {} in {}, {} stored",
        text::count(list.points.len(), "point"),
        text::count(fulls, "chain"),
        text::bytes(stored)
    ))?;
    if list.points.is_empty() {
        return Ok(());
    }
    let now = qdelta::clock::now()?;
    let positions: BTreeMap<PointId, usize> =
        list.points.iter().enumerate().map(|(index, point)| (point.id, index)).collect();
    let parents: Vec<Option<usize>> =
        list.points.iter().map(|point| positions.get(&point.record.parent?).copied()).collect();
    let lines = tree::Lines::for_locale();
    let mut rows = Vec::new();
    let mut remarks = Vec::new();
    for (index, branch) in tree::draw(&parents, &lines) {
        let Some(point) = list.points.get(index) else { continue };
        rows.push(row(&branch, point, now));
        if !point.archive_present {
            remarks.push(format!(
                "{}: its archive {} is missing",
                point.id,
                point.archive_path.display()
            ));
        }
        if let Some(parent) = point.record.parent.filter(|parent| !positions.contains_key(parent)) {
            remarks
                .push(format!("{}: builds on point {parent}, which is not in the list", point.id));
        }
    }
    for line in text::table(COLUMNS, &rows, context.out.width()) {
        context.out.line(line)?;
    }
    for remark in remarks {
        context.screen.say(&text::printable(&format!("qdelta: {disk}@{remark}")));
    }
    Ok(())
}

/// What the next backup can compare with, and what that costs. What can't be looked at now (an
/// image on a disk that is not mounted) is no matter of the points.
fn show_anchors(repository: &Repository, disk: &DiskId, context: &mut Context) -> Result<()> {
    for anchor in inventory::list(repository, disk, &Silent).unwrap_or_default() {
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
fn row(branch: &str, point: &Point, now: Timestamp) -> Vec<String> {
    let record = &point.record;
    let age = now.as_second() - point.created.as_second();
    vec![
        format!("{branch}{}", point.id),
        record.kind.to_string(),
        text::bytes(record.virtual_size),
        text::bytes(record.bytes_changed),
        match point.archive_present {
            true => text::bytes(record.bytes_written),
            false => "missing".to_owned(),
        },
        record.tracker.to_string(),
        text::age(age),
    ]
}

impl From<&Point> for PointReport {
    fn from(point: &Point) -> Self {
        let record = &point.record;
        Self {
            point: point.id,
            created: point.created.to_string(),
            kind: record.kind.as_str(),
            parent: record.parent,
            tracker: record.tracker.as_str(),
            consistency: point.consistency.as_str(),
            freeze_ms: point.freeze_ms,
            frozen_filesystems: point.frozen_filesystems,
            kept: point.kept,
            virtual_size: record.virtual_size,
            block_size: record.block_size,
            bytes_read: record.bytes_read,
            bytes_sampled: record.bytes_sampled,
            bytes_changed: record.bytes_changed,
            bytes_written: record.bytes_written,
            root: record.root.to_string(),
            archive: point.archive_path.display().to_string(),
            archive_present: point.archive_present,
            archive_id: record.archive_id.to_string(),
            chain_id: record.chain_id.to_string(),
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
        }
    }
}
