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
use qdelta::base::observer::Silent;
use qdelta::flows::anchors::inventory;
use qdelta::flows::report::{DiskPointsReport, PointReport, PointsReport, PointsTotals};
use qdelta::vault::repository::{Catalog, Climb, DiskId, PointId};

/// Lists the points of one disk or of all. Something damaged does not hide the rest, but shows in
/// the exit status.
pub fn run(args: &Points, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let catalog = repository.catalog();
    let now = qdelta::base::clock::now()?;
    let mut report = PointsReport::read(&catalog, args.disk.as_ref(), now, &context.screen)?;
    let above: Vec<_> = report.disks.iter().map(|disk| shown_parents(disk, args.removed)).collect();
    if !args.removed {
        report.hide_removed();
    }
    if context.out.json {
        context.out.json(&report)?;
    } else {
        let zone = if args.utc { None } else { Some(TimeZone::system()) };
        let view = View { zone, now, with_removed: args.removed };
        show_all(&report, &above, &view, &catalog, context)?;
    }
    for damaged in &report.damaged {
        let line = format!("point {}: {}", damaged.point, damaged.error);
        context.screen.say(&two_lines(&line, damaged.advice.as_deref()));
    }
    for unreadable in &report.unreadable {
        context.screen.say(&two_lines(&unreadable.error, unreadable.advice.as_deref()));
    }
    if !report.locked.is_empty() {
        let line = "not every point can be opened by the key that was given";
        let advice = "give the repository's identity, an admin's, or a passphrase: --key-file FILE";
        context.screen.say(&two_lines(line, Some(advice)));
    }
    Ok(match (report.is_whole(), report.locked.is_empty()) {
        (true, true) => status::DONE,
        (true, false) => status::NO_KEY,
        (false, _) => status::DAMAGED,
    })
}

/// Shows every disk, and the totals of several.
fn show_all(
    report: &PointsReport,
    above: &[BTreeMap<PointId, PointId>],
    view: &View,
    catalog: &Catalog,
    context: &mut Context,
) -> Result<()> {
    if report.disks.is_empty() {
        context.out.line(format!("{}: no points yet", report.repository.display()))?;
    }
    let shown = report.disks.iter().zip(above).filter(|(disk, _)| !report.is_locked(disk));
    for (index, (disk, above)) in shown.enumerate() {
        if index > 0 {
            context.out.line("")?;
        }
        show(disk, above, view, context)?;
        show_anchors(catalog, &disk.disk, context)?;
    }
    for locked in &report.locked {
        let points = text::count(locked.points, "point");
        context.out.line(format!("{}: {points} that this key can't open", locked.domain))?;
    }
    if report.disks.len() > 1 {
        context.out.line("")?;
        context.out.line(line_of(&report.totals))?;
    }
    let PointsTotals { removed, bytes_removed, .. } = report.totals;
    if removed > 0 && !view.with_removed {
        let bytes = text::bytes(bytes_removed);
        let points = text::count(removed, "removed point");
        context.out.line("")?;
        context.out.line(format!("beside them {points} of {bytes}: qdelta points --removed"))?;
    }
    Ok(())
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

/// How times are shown.
struct View {
    /// The zone of the reader; none for UTC, in which a point's time is its id.
    zone: Option<TimeZone>,
    now: Timestamp,
    /// Points that are removed are shown.
    with_removed: bool,
}

impl View {
    /// The moment of a point, in a way that is understood after `@`.
    fn moment(&self, point: PointId) -> String {
        self.zone.as_ref().map_or_else(|| point.to_string(), |zone| point.in_zone(zone))
    }

    /// The columns of the list. Where the store locks files, one says for how long.
    fn columns(&self, with_locks: bool) -> Vec<Column> {
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
        if with_locks {
            columns.push(column("LOCKED FOR", true, 2));
        }
        if self.zone.is_some() {
            columns.push(column("ID", false, 8));
        }
        columns
    }
}

/// Shows one disk: a line about it, and its chains.
fn show(
    list: &DiskPointsReport,
    above: &BTreeMap<PointId, PointId>,
    view: &View,
    context: &mut Context,
) -> Result<()> {
    context.out.line(format!(
        "{}: {} in {}, {} stored",
        list.disk,
        text::count(list.points.len(), "point"),
        text::count(list.chains, "chain"),
        text::bytes(list.bytes_written())
    ))?;
    if list.points.is_empty() {
        return Ok(());
    }
    let positions: BTreeMap<PointId, usize> =
        list.points.iter().enumerate().map(|(index, it)| (it.point, index)).collect();
    let parents: Vec<Option<usize>> =
        list.points.iter().map(|it| positions.get(above.get(&it.point)?).copied()).collect();
    let lines = tree::Lines::for_locale();
    let mut rows = Vec::new();
    let with_locks = list.points.iter().any(|point| point.safe_until.is_some());
    for (index, branch) in tree::draw(&parents, &lines) {
        let Some(point) = list.points.get(index) else { continue };
        rows.push(row(&branch, point, view, with_locks));
    }
    for line in text::table(&view.columns(with_locks), &rows, context.out.width()) {
        context.out.line(line)?;
    }
    Ok(())
}

/// The point below which each one is drawn: the nearest that is shown of those that it needs.
fn shown_parents(list: &DiskPointsReport, with_removed: bool) -> BTreeMap<PointId, PointId> {
    let mut above = BTreeMap::new();
    // Parents come before their children.
    let mut hidden = BTreeSet::new();
    for point in &list.points {
        let shown = match point.parent {
            Some(parent) if hidden.contains(&parent) => above.get(&parent).copied(),
            parent => parent,
        };
        above.extend(shown.map(|shown| (point.point, shown)));
        if !with_removed && point.removed.is_some() {
            hidden.insert(point.point);
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
fn kind_of(point: &PointReport, view: &View) -> String {
    let now = view.now;
    let drilled = point.drilled.map(|drilled| drilled.result);
    let is_pinned = point.pins.iter().any(|pin| pin.holds(now));
    let marks = [
        (point.safety, ", safety"),
        (is_pinned, ", pinned"),
        (point.removed.is_some(), ", removed"),
        (drilled == Some(Climb::Passed), ", drilled"),
        (drilled == Some(Climb::Failed), ", DRILL FAILED"),
    ];
    let said: String = marks.iter().filter(|(has, _)| *has).map(|(_, mark)| *mark).collect();
    let snapshot = point.snapshot.as_ref().map(|it| {
        let zone = view.zone.clone().unwrap_or(TimeZone::UTC);
        let taken = it.taken.to_zoned(zone).strftime("%Y-%m-%d %H:%M");
        format!(", snapshot {} of {taken}", it.name)
    });
    format!("{}{}{said}", point.kind, snapshot.unwrap_or_default())
}

/// The line of one point.
fn row(branch: &str, point: &PointReport, view: &View, with_locks: bool) -> Vec<String> {
    let age = view.now.as_second() - point.point.time().as_second();
    let mut row = vec![
        format!("{branch}{}", view.moment(point.point)),
        kind_of(point, view),
        text::bytes(point.virtual_size),
        text::bytes(point.bytes_changed),
        match point.archive_present {
            true => text::bytes(point.bytes_written),
            false => "missing".to_owned(),
        },
        format!("{}{}", point.tracker, if point.trusted { ", trusted" } else { "" }),
        match &point.fell_back {
            _ if point.resumes => format!("{}, resumes", point.consistency),
            Some(_) => format!("{}, not as asked for", point.consistency),
            None => point.consistency.as_str().to_owned(),
        },
        duration::age(age),
        point.proved.map_or("never".to_owned(), |time| {
            duration::age(view.now.as_second() - time.as_second())
        }),
    ];
    if with_locks {
        row.push(point.safe_until.map_or("no".to_owned(), |until| {
            duration::age(until.as_second() - view.now.as_second())
        }));
    }
    row.push(point.point.to_string());
    row
}
