//! `qdelta anchors`: lists the anchors that backups have left for later backups, and removes them.

use qdelta::base::observer::{Observer, Recorder};
use qdelta::base::warning::{Code, Warning};
use qdelta::flows::anchors::inventory;
use qdelta::flows::report::{AnchorReport, AnchorsReport};
use qdelta::vault::repository::{DiskId, Repository};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::Anchors;
use crate::cli::text::{self, Column};
use crate::cli::{Context, status};

/// The columns of the list.
const COLUMNS: &[Column] = &[
    Column { head: "ANCHOR", right: false, rank: 0 },
    Column { head: "TRACKER", right: false, rank: 0 },
    Column { head: "STATE", right: false, rank: 0 },
    Column { head: "HOLDS", right: true, rank: 1 },
    Column { head: "WHERE", right: false, rank: 2 },
];

/// Lists or removes.
pub fn run(args: &Anchors, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let recorder = Recorder::new(&context.screen);
    let mut whole = true;
    let mut trouble = |error: &Error| {
        whole = false;
        (&recorder as &dyn Observer).warn(Warning::failed(Code::Unreadable, error));
    };
    if let Some(error) = repository.trouble() {
        trouble(&error);
    }
    let catalog = repository.catalog();
    let disks = match &args.disk {
        Some(wanted) => catalog.find_disks(wanted)?,
        None => {
            let survey = catalog.survey()?;
            survey.unreadable.iter().for_each(|folder| trouble(&folder.error));
            survey.disks
        }
    };
    let done = if whole { status::DONE } else { status::DAMAGED };
    let mut report = AnchorsReport::default();
    if args.remove_all || !args.remove.is_empty() {
        report.removed = remove(&repository, &disks, &args.remove, &recorder)?;
        context.out.was_done(format!("{} went", text::count(report.removed.len(), "anchor")));
    }
    for disk in &disks {
        report.anchors.extend(inventory::list(&catalog, disk, &recorder)?);
    }
    report.warnings = recorder.take();
    if context.out.json {
        context.out.json(&report)?;
        return Ok(done);
    }
    for anchor in &report.removed {
        context.out.success(format!("{}: removed {}", anchor.disk, anchor.name))?;
    }
    if report.removed.is_empty() {
        show(&report.anchors, context)?;
    }
    Ok(done)
}

/// Removes anchors of some disks: all, or those that are called so, each of the disk that it is of.
fn remove(
    repository: &Repository,
    disks: &[DiskId],
    names: &[String],
    observer: &dyn Observer,
) -> Result<Vec<AnchorReport>> {
    if let [only] = disks {
        return inventory::remove(repository, only, names, observer);
    }
    let catalog = repository.catalog();
    let mut removed = Vec::new();
    let mut unknown = names.to_vec();
    for disk in disks {
        let there = inventory::list(&catalog, disk, observer)?;
        let own: Vec<String> =
            names.iter().filter(|name| there.iter().any(|it| it.name == **name)).cloned().collect();
        unknown.retain(|name| !own.contains(name));
        if names.is_empty() || !own.is_empty() {
            removed.extend(inventory::remove(repository, disk, &own, observer)?);
        }
    }
    match unknown.first() {
        Some(name) => Err(Error::new(ErrorKind::NotFound, format!("no disk has an anchor {name}"))
            .advise("qdelta anchors lists those that there are")),
        None => Ok(removed),
    }
}

fn show(anchors: &[AnchorReport], context: &mut Context) -> Result<()> {
    if anchors.is_empty() {
        return context.out.line("no anchors (qdelta backup IMAGE --anchor KIND leaves one)");
    }
    let row = |anchor: &AnchorReport| {
        vec![
            anchor.name.clone(),
            anchor.tracker.to_string(),
            anchor.state.as_str().to_owned(),
            anchor.bytes_held.map(text::bytes).unwrap_or_else(|| "-".to_owned()),
            anchor.place.display().to_string(),
        ]
    };
    let mut disks: Vec<&str> = anchors.iter().map(|anchor| anchor.disk.as_str()).collect();
    disks.dedup();
    for disk in disks {
        context.out.line(format!("{disk}:"))?;
        let own = anchors.iter().filter(|anchor| anchor.disk == disk);
        let rows: Vec<Vec<String>> = own.map(row).collect();
        for line in text::table(COLUMNS, &rows, context.out.width()) {
            context.out.line(line)?;
        }
    }
    Ok(())
}
