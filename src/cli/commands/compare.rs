//! `qdelta verify --against`: how two repositories compare.

use std::collections::BTreeSet;
use std::path::Path;

use qdelta::flows::copies;
use qdelta::flows::report::{CompareReport, PointCompare};
use qdelta::vault::repository::{DomainName, PointId, Repository};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::args::Verify;
use crate::cli::{Context, signals, status, text};

/// Compares, and lists what is not the same.
pub fn run(args: &Verify, other: &Path, context: &mut Context) -> Result<u8> {
    let here = context.readable()?;
    let there = context.other(other, &args.key)?;
    let domains = domains(args, [&here, &there])?;
    let cancel = signals::watch(&context.screen);
    let report = copies::compare((&here, &there), &domains, &context.screen, &cancel)?;
    context.screen.end();
    if context.out.json {
        context.out.json(&report)?;
    } else if !(context.out.quiet && report.guests.is_empty()) {
        show(&report, context)?;
    }
    let mut guests = report.guests.iter();
    let is_damaged = guests.any(|guest| {
        !(guest.different.is_empty()
            && guest.damaged_here.is_empty()
            && guest.damaged_there.is_empty())
    });
    Ok(match is_damaged {
        true => status::DAMAGED,
        false if report.guests.is_empty() => status::DONE,
        false => status::OPEN,
    })
}

/// The guests that are named, which one of the two must have.
fn domains(args: &Verify, sides: [&Repository; 2]) -> Result<Vec<DomainName>> {
    let mut found = BTreeSet::new();
    for at in &args.disks {
        let name = at.disk.to_string();
        if at.point.is_some() || name.contains('/') {
            let text = format!("{name} is compared with all its points and disks");
            return Err(Error::new(ErrorKind::Usage, text).advise("name the guest alone"));
        }
        let [here, there] = sides.map(|side| side.catalog().find_domain(&name));
        found.insert(match here {
            Err(error) if error.kind() == ErrorKind::NotFound => there.map_err(|_| error)?,
            here => here?,
        });
    }
    Ok(found.into_iter().collect())
}

/// Shows it to people.
fn show(report: &CompareReport, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    for guest in &report.guests {
        let ids = |points: &[PointId]| {
            points.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        out.line(format!("{}:", guest.domain))?;
        for (what, points) in [("only here", &guest.only_here), ("only there", &guest.only_there)] {
            if !points.is_empty() {
                out.line(format!(
                    "  {} {what}: {}",
                    text::count(points.len(), "point"),
                    ids(points)
                ))?;
            }
        }
        let parts: [(&str, &[PointCompare]); 3] = [
            ("DIFFERENT", &guest.different),
            ("DAMAGED HERE", &guest.damaged_here),
            ("DAMAGED THERE", &guest.damaged_there),
        ];
        for (what, points) in parts {
            for PointCompare { point, what: why } in points {
                out.line(format!("  {what} {point}: {why}"))?;
            }
        }
    }
    let same = usize::try_from(report.same).unwrap_or(usize::MAX);
    out.line(format!("{} the same in both", text::count(same, "point")))
}
