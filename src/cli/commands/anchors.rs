//! `qdelta anchors`: lists the anchors that backups have left for later backups, and removes them.

use qdelta::Result;
use qdelta::flows::anchors::inventory;
use qdelta::flows::report::AnchorReport;

use crate::cli::args::Anchors;
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, status};

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
    let wanted = args.disk.as_ref();
    let is_removing = args.remove_all || !args.remove.is_empty();
    let report = match is_removing {
        true => {
            let cancel = signals::watch(&context.screen);
            inventory::remove_wanted(&repository, wanted, &args.remove, &context.screen, &cancel)?
        }
        false => inventory::list_wanted(&repository, wanted, &context.screen)?,
    };
    if is_removing {
        context.out.was_done(format!("{} went", text::count(report.removed.len(), "anchor")));
    }
    if context.out.json {
        context.out.json(&report)?;
    } else {
        for anchor in &report.removed {
            context.out.success(format!("{}: removed {}", anchor.disk, anchor.name))?;
        }
        if report.removed.is_empty() {
            show(&report.anchors, context)?;
        }
    }
    Ok(if report.is_whole() { status::DONE } else { status::DAMAGED })
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
