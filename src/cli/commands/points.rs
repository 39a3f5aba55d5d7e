//! `qdelta points`: what can be restored, drawn as chains.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::args::Points;
use crate::cli::text::{self, Column};
use crate::cli::tree;
use crate::cli::{Context, status, two_lines};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::Result;
use qdelta::base::duration;
use qdelta::base::observer::{Recorder, Silent};
use qdelta::flows::anchors::inventory;
use qdelta::flows::report::{DiskPointsReport, PointReport, PointsReport, PointsTotals};
use qdelta::vault::repository::{Catalog, DiskId, Point, PointId, PointList, Survey};

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
    let mut report = PointsReport {
        repository: repository.path().to_owned(),
        disks: Vec::new(),
        totals: totals_of(&disks),
        damaged: Vec::new(),
        unreadable: Vec::new(),
        warnings: Vec::new(),
    };
    let recorder = Recorder::new(&context.screen);
    catalog.warn_of_damage(&disks, &recorder);
    report.warnings = recorder.take();
    if let Some(error) = repository.trouble() {
        report.add_unreadable(repository.path().join("qdelta.toml"), &error);
    }
    for folder in &unreadable {
        report.add_unreadable(folder.path.clone(), &folder.error);
    }
    if disks.is_empty() && !context.out.json {
        context.out.line(format!("{}: no points yet", repository.path().display()))?;
    }
    for (index, disk) in disks.iter().enumerate() {
        let mut list = catalog.points(disk)?;
        let health = catalog.health(disk, &list)?;
        let proofs = catalog.proofs(disk, &list.points, view.now);
        let above = shown_parents(&list, args.removed);
        let chains = shown_chains(&list, args.removed);
        list.points.retain(|point| args.removed || point.removed.is_none());
        add(&mut report.totals, &list, chains);
        if context.out.json {
            let points = list.points.iter().map(|point| {
                let restorable = health.restorable.contains(&point.id);
                let proved = proofs.get(&point.id).copied();
                PointReport::new(point, repository.describe(&point.archive), restorable, proved)
            });
            let points = points.collect();
            report.disks.push(DiskPointsReport { disk: disk.to_string(), points });
        } else {
            if index > 0 {
                context.out.line("")?;
            }
            show(disk, &list, chains, &above, &proofs, &view, context)?;
            show_anchors(&catalog, disk, context)?;
        }
        for folder in &list.unreadable {
            report.add_unreadable(folder.path.clone(), &folder.error);
        }
        for damaged in list.damaged.into_iter().chain(health.problems) {
            report.add_damaged(damaged);
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
        context.out.line(line_of(&report.totals))?;
    }
    Ok(if report.is_whole() { status::DONE } else { status::DAMAGED })
}

/// How many disks and domains are listed.
fn totals_of(disks: &[DiskId]) -> PointsTotals {
    let domains: BTreeSet<_> = disks.iter().map(|disk| &disk.domain).collect();
    PointsTotals { domains: domains.len(), disks: disks.len(), ..PointsTotals::default() }
}

/// Adds the points of a disk.
fn add(totals: &mut PointsTotals, list: &PointList, chains: usize) {
    totals.points += list.points.len();
    totals.chains += chains;
    totals.bytes_written += stored(list);
}

/// The totals, for people.
fn line_of(totals: &PointsTotals) -> String {
    format!(
        "in all: {} of {}, {} in {}, {} stored",
        text::count(totals.disks, "disk"),
        text::count(totals.domains, "guest"),
        text::count(totals.points, "point"),
        text::count(totals.chains, "chain"),
        text::bytes(totals.bytes_written)
    )
}

/// In how many chains the points of a disk lie that are shown. A chain counts also where the full that
/// it begins with is removed or lost.
fn shown_chains(list: &PointList, with_removed: bool) -> usize {
    let mut firsts: BTreeMap<PointId, PointId> = BTreeMap::new();
    let mut shown = BTreeSet::new();
    // Parents come before their children.
    for point in &list.points {
        let parent = point.record.parent_point();
        let first = parent.map_or(point.id, |it| firsts.get(&it).copied().unwrap_or(it));
        firsts.insert(point.id, first);
        if with_removed || point.removed.is_none() {
            shown.insert(first);
        }
    }
    shown.len()
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
            column("TRACKER", false, 7),
            column("CONSISTENCY", false, 4),
            column("AGE", true, 1),
            column("PROVED", true, 6),
        ];
        if self.zone.is_some() {
            columns.push(column("ID", false, 8));
        }
        columns
    }
}

/// Shows one disk: a line about it, and its chains.
fn show(
    disk: &DiskId,
    list: &PointList,
    chains: usize,
    above: &BTreeMap<PointId, PointId>,
    proofs: &BTreeMap<PointId, Timestamp>,
    view: &View,
    context: &mut Context,
) -> Result<()> {
    context.out.line(format!(
        "{disk}: {} in {}, {} stored",
        text::count(list.points.len(), "point"),
        text::count(chains, "chain"),
        text::bytes(stored(list))
    ))?;
    if list.points.is_empty() {
        return Ok(());
    }
    let positions: BTreeMap<PointId, usize> =
        list.points.iter().enumerate().map(|(index, point)| (point.id, index)).collect();
    let parents: Vec<Option<usize>> =
        list.points.iter().map(|point| positions.get(above.get(&point.id)?).copied()).collect();
    let lines = tree::Lines::for_locale();
    let mut rows = Vec::new();
    for (index, branch) in tree::draw(&parents, &lines) {
        let Some(point) = list.points.get(index) else { continue };
        rows.push(row(&branch, point, proofs.get(&point.id).copied(), view));
    }
    for line in text::table(&view.columns(), &rows, context.out.width()) {
        context.out.line(line)?;
    }
    Ok(())
}

/// The point below which each one is drawn: the nearest that is shown of those that it needs.
fn shown_parents(list: &PointList, with_removed: bool) -> BTreeMap<PointId, PointId> {
    let mut above = BTreeMap::new();
    // Parents come before their children.
    let mut hidden = BTreeSet::new();
    for point in &list.points {
        let parent = point.record.parent_point();
        let shown = match parent {
            Some(parent) if hidden.contains(&parent) => above.get(&parent).copied(),
            parent => parent,
        };
        above.extend(shown.map(|shown| (point.id, shown)));
        if !with_removed && point.removed.is_some() {
            hidden.insert(point.id);
        }
    }
    above
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

/// What a point is, and its marks.
fn kind_of(point: &Point, now: Timestamp) -> String {
    let is_pinned = point.pinned.as_ref().is_some_and(|pin| pin.holds(now));
    let marks = [
        (point.safety, ", safety"),
        (is_pinned, ", pinned"),
        (point.removed.is_some(), ", removed"),
    ];
    let said: String = marks.iter().filter(|(has, _)| *has).map(|(_, mark)| *mark).collect();
    format!("{}{said}", point.record.kind)
}

/// The line of one point.
fn row(branch: &str, point: &Point, proved: Option<Timestamp>, view: &View) -> Vec<String> {
    let record = &point.record;
    let age = view.now.as_second() - point.id.time().as_second();
    vec![
        format!("{branch}{}", view.moment(point.id)),
        kind_of(point, view.now),
        text::bytes(record.virtual_size),
        text::bytes(record.bytes_changed),
        match point.archive_present {
            true => text::bytes(record.bytes_written),
            false => "missing".to_owned(),
        },
        record.tracker.to_string(),
        point.consistency.as_str().to_owned(),
        duration::age(age),
        proved.map_or("never".to_owned(), |time| {
            duration::age(view.now.as_second() - time.as_second())
        }),
        point.id.to_string(),
    ]
}
