//! `qdelta prune` and `qdelta undelete`: which points stay, why, and bringing one back.

use std::collections::BTreeSet;

use qdelta::base::clock;
use qdelta::flows::merge::MergeOptions;
use qdelta::flows::prune::{self, PruneRequest};
use qdelta::flows::report::{Fate, GuestPrune, MarkReport, Reclaimed, Spare, Spared, Verdict};
use qdelta::flows::retain::{self, Clock, Policy};
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{Catalog, DomainName, Wanted};
use qdelta::{Error, ErrorKind, Result};

use super::pin::{find, show};
use crate::cli::point_args::{Prune, Undelete};
use crate::cli::text::{self, Column};
use crate::cli::{Context, signals, status, two_lines};

/// The columns of the list; the reasons take what is left of a line.
const COLUMNS: &[Column] = &[
    Column { head: "POINT", right: false, rank: 0 },
    Column { head: "TIME", right: false, rank: 1 },
    Column { head: "FATE", right: false, rank: 0 },
    Column { head: "WHY", right: false, rank: 0 },
];

/// What is said where nothing is removed because of the clock.
const CLOCK_IN_DOUBT: &str = "the clock stands far after the points before: nothing is removed, in case it \
                              is wrong (--trust-clock)";

/// What a line of the list has besides the reasons, without the time.
const BESIDE_REASONS: usize = 20 + 2 + 7 + 2;

/// Shows what the rules say, marks what they do not keep, and lets go of what was marked long ago.
pub fn run(args: &Prune, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let settings = repository.settings()?;
    let zone = settings.zone()?;
    let policy = Policy {
        keep: args.keep.given().unwrap_or(settings.keep),
        grace: args.grace.unwrap_or(settings.grace),
        zone,
        now: clock::now()?,
        clock: if args.trust_clock { Clock::Trusted } else { Clock::Checked },
    };
    policy.check()?;
    let request = PruneRequest {
        domains: domains(&repository.catalog(), &args.guests)?,
        policy: policy.clone(),
        time_zone: settings.time_zone,
        merge_share: settings.merge_share,
        until_free: args.until_free,
        dry_run: args.dry_run,
        merging: MergeOptions { level: args.level, resources: args.work.resources() },
    };
    let cancel = signals::watch(&context.screen);
    let report = prune::run(&repository, &request, &context.screen, &cancel)?;
    let removed: usize = report.guests.iter().map(|guest| guest.removed).sum();
    if !args.dry_run {
        context.out.was_done(format!("{} went", text::count(removed, "point")));
    }
    let failures = report.guests.iter().filter_map(|guest| guest.error.as_ref());
    let failed = failures.clone().next().map(|failure| status::of(failure.kind));
    let spared = report.guests.iter().flat_map(|guest| &guest.data.spared);
    let status = failed.or_else(|| spared.filter_map(|it| status_of(&it.why)).next());
    let status = status.unwrap_or(status::DONE);
    for failure in failures {
        context.screen.say(&two_lines(&failure.text, failure.advice.as_deref()));
    }
    if context.out.json {
        context.out.json(&report)?;
        return Ok(status);
    }
    for guest in report.guests.iter().filter(|guest| !guest.points.is_empty()) {
        match context.out.quiet && !args.dry_run {
            true => show_trouble(guest, context)?,
            false => show_guest(guest, &policy, args.dry_run, context)?,
        }
    }
    if removed > 0 && !args.dry_run && !policy.grace.is_none() {
        let until = policy.grace.after(policy.now, &policy.zone).to_zoned(policy.zone.clone());
        context.out.success(format!(
            "until {} they can be brought back: qdelta undelete GUEST@POINT",
            until.strftime("%Y-%m-%d %H:%M")
        ))?;
    }
    Ok(status)
}

/// Brings a point back.
pub fn undelete(args: &Undelete, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let (domain, point) = find(&repository.catalog(), &args.point)?;
    let cancel = signals::watch(&context.screen);
    let lock = repository.lock(&domain, Wait::by(&context.screen, &cancel))?;
    let marks = retain::undelete(&repository, &lock, point, &context.screen)?;
    let report = MarkReport::new(&domain, point, marks);
    show(&report, format!("{domain}: {point} is back"), context)
}

/// The guests that are meant: all, if none is named.
pub(super) fn domains(catalog: &Catalog, wanted: &[Wanted]) -> Result<Vec<DomainName>> {
    if wanted.is_empty() {
        return catalog.repository().domains();
    }
    let mut found = BTreeSet::new();
    for wanted in wanted {
        let name = wanted.to_string();
        if name.contains('/') {
            let text = format!("{name} is one disk, and a point is of all disks of its guest");
            return Err(Error::new(ErrorKind::Usage, text).advise("name the guest alone"));
        }
        found.insert(catalog.find_domain(&name)?);
    }
    Ok(found.into_iter().collect())
}

fn show_guest(
    guest: &GuestPrune,
    policy: &Policy,
    dry_run: bool,
    context: &mut Context,
) -> Result<()> {
    let GuestPrune { domain, kept, removed, removed_before, .. } = guest;
    let goes = if dry_run { "would be removed" } else { "removed" };
    let before = match removed_before {
        0 => String::new(),
        number => format!(", {number} removed before"),
    };
    context.out.line(format!(
        "{domain}: {} {}, {removed} {goes}{before}",
        text::count(*kept, "point"),
        if *kept == 1 { "stays" } else { "stay" }
    ))?;
    if guest.clock_in_doubt {
        context.out.line(format!("  {CLOCK_IN_DOUBT}"))?;
    }
    let width = context.out.width();
    let room = width.saturating_sub(BESIDE_REASONS).max(20);
    let rows: Vec<Vec<String>> =
        guest.points.iter().map(|verdict| row(verdict, policy, room)).collect();
    if !rows.is_empty() && (dry_run || *removed > 0) {
        for line in text::table(COLUMNS, &rows, width) {
            context.out.line(line)?;
        }
    }
    show_data(&guest.data, dry_run, context)
}

/// Says only what keeps a guest from being pruned as it was meant to be.
fn show_trouble(guest: &GuestPrune, context: &mut Context) -> Result<()> {
    let GuestPrune { domain, data, .. } = guest;
    if guest.clock_in_doubt {
        context.out.line(format!("{domain}: {CLOCK_IN_DOUBT}"))?;
    }
    for spared in data.spared.iter().filter(|spared| status_of(&spared.why).is_some()) {
        context.out.line(format!("{domain}: {}", stays(spared)))?;
    }
    Ok(())
}

/// Says what became of the data of points that are gone.
fn show_data(data: &Reclaimed, dry_run: bool, context: &mut Context) -> Result<()> {
    let out = &mut context.out;
    let did = |did, would| if dry_run { would } else { did };
    let points = |count: usize| text::count(count, "point");
    if !data.dropped.is_empty() {
        let count = points(data.dropped.len());
        out.line(format!("  {} {count} that nothing builds on", did("dropped", "would drop")))?;
    }
    for merge in &data.merges {
        out.line(format!(
            "  {} {} into {}: {} read, {} written, {} freed",
            did("merged", "would merge"),
            points(merge.absorbed.len()),
            merge.point,
            text::bytes(merge.bytes_read),
            text::bytes(merge.bytes_written),
            text::bytes(merge.bytes_freed)
        ))?;
    }
    for spared in &data.spared {
        out.line(format!("  {}", stays(spared)))?;
    }
    if data.bytes_freed > 0 {
        let freed = text::bytes(data.bytes_freed);
        out.line(match (dry_run, data.waiting) {
            (true, _) => {
                format!("  would free {freed}; needs {} of room", text::bytes(data.room_needed))
            }
            (false, false) => format!("  freed {freed}"),
            (false, true) => format!(
                "  {freed} will be free: points are being read, and the next run removes what was \
                 replaced"
            ),
        })?;
    }
    Ok(())
}

/// Which points stay though their grace is over, and why.
fn stays(spared: &Spared) -> String {
    let count = text::count(spared.points.len(), "point");
    format!("the data of {count} past the grace stays: {}", why(&spared.why))
}

/// Why points stay though their grace is over.
fn why(spare: &Spare) -> String {
    match spare {
        Spare::Share { bytes_written, bytes_freed } => format!(
            "a merge would write {} to free {}",
            text::bytes(*bytes_written),
            text::bytes(*bytes_freed)
        ),
        Spare::NeededBy { by } => format!("{} build on it", text::count(by.len(), "point")),
        Spare::Room { bytes_needed, bytes_free } => format!(
            "a merge needs {} of room, and {} is free",
            text::bytes(*bytes_needed),
            text::bytes(*bytes_free)
        ),
        Spare::Enough => "enough is free without them".to_owned(),
        Spare::Locked { until } => format!("the store locks it until {until}"),
        Spare::Damaged { problem } => problem.text.clone(),
    }
}

/// The status that tells of points that ought to have gone.
fn status_of(spare: &Spare) -> Option<u8> {
    match spare {
        Spare::Damaged { .. } => Some(status::DAMAGED),
        Spare::Room { .. } => Some(status::of(ErrorKind::NoSpace)),
        Spare::Share { .. } | Spare::NeededBy { .. } | Spare::Enough | Spare::Locked { .. } => None,
    }
}

/// The line of a point.
fn row(verdict: &Verdict, policy: &Policy, room: usize) -> Vec<String> {
    let time = verdict.created.map_or_else(String::new, |created| {
        created.to_zoned(policy.zone.clone()).strftime("%a %Y-%m-%d %H:%M").to_string()
    });
    let mut reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
    let damaged = verdict.damaged && verdict.fate != Fate::Removed;
    if damaged {
        reasons.push("damaged".to_owned());
    }
    vec![verdict.point.to_string(), time, verdict.fate.to_string(), fitted(&reasons, room)]
}

/// As many reasons as there is room for, and how many more there are.
fn fitted(reasons: &[String], room: usize) -> String {
    for shown in (1..=reasons.len()).rev() {
        let said = reasons.iter().take(shown).cloned().collect::<Vec<_>>().join(", ");
        let line = match reasons.len() - shown {
            0 => said,
            more => format!("{said}, and {more} more"),
        };
        if line.chars().count() <= room {
            return line;
        }
    }
    let first = reasons.first().map_or("", String::as_str);
    let cut: String = first.chars().take(room.saturating_sub(3)).collect();
    format!("{cut}...")
}
