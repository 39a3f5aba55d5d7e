//! `qdelta pin` and `qdelta unpin`: a point that no rule removes.

use jiff::Timestamp;
use qdelta::base::clock;
use qdelta::flows::report::MarkReport;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{
    Catalog, DomainName, Marks, Pin as PinMark, PointId, Repository, Selector,
};
use qdelta::{Error, ErrorKind, Result};

use crate::cli::point_args::{Pin, Unpin};
use crate::cli::values::DiskAt;
use crate::cli::{Context, signals, status};

/// The longest reason, in characters.
const REASON_MAX: usize = 200;

/// Pins a point.
pub fn run(args: &Pin, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let at = clock::now()?;
    let until = args.until.as_deref().map(|text| until(text, &repository, at)).transpose()?;
    if let Some(reason) = &args.reason
        && reason.chars().count() > REASON_MAX
    {
        let text = format!("the reason has more than {REASON_MAX} characters");
        return Err(Error::new(ErrorKind::Usage, text).advise("say it in fewer words"));
    }
    let (domain, point) = find(&repository.catalog(), &args.point)?;
    let pin = PinMark { holder: args.holder.clone(), at, reason: args.reason.clone(), until };
    let report = mark(&repository, &domain, point, context, |marks| {
        if marks.removed.is_some() {
            let text = format!("point {point} of {domain} is removed");
            return Err(Error::new(ErrorKind::Usage, text)
                .advise(format!("bring it back first: qdelta undelete {domain}@{point}")));
        }
        marks.pin(pin);
        Ok(())
    })?;
    let said = match until {
        Some(until) => format!("{domain}: pinned {point} until {until}"),
        None => format!("{domain}: pinned {point}"),
    };
    show(&report, said, context)
}

/// Takes a pin of a point away.
pub fn unpin(args: &Unpin, context: &mut Context) -> Result<u8> {
    let repository = context.repository()?;
    let (domain, point) = find(&repository.catalog(), &args.point)?;
    let mut was_pinned = false;
    let report = mark(&repository, &domain, point, context, |marks| {
        was_pinned = marks.unpin(args.holder.as_deref()).is_some();
        Ok(())
    })?;
    let now = clock::now()?;
    let left: Vec<String> = report.pins.iter().filter(|pin| pin.holds(now)).map(named).collect();
    let by = args.holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}"));
    let said = match (was_pinned, left.is_empty()) {
        (true, true) => format!("{domain}: {point} is pinned no more"),
        (true, false) => format!("{domain}: {point} stays pinned: {}", left.join(", ")),
        (false, true) => format!("{domain}: {point} was not pinned{by}"),
        (false, false) => {
            let left = left.join(", ");
            format!("{domain}: {point} was not pinned{by}, and stays pinned: {left}")
        }
    };
    show(&report, said, context)
}

/// Whose a pin is, and why it was set.
fn named(pin: &PinMark) -> String {
    let holder = match &pin.holder {
        Some(holder) => format!("--holder {holder}"),
        None => "an admin".to_owned(),
    };
    match &pin.reason {
        Some(reason) => format!("{holder} ({reason})"),
        None => holder,
    }
}

/// Changes the marks of a point while nobody else writes to its guest.
pub fn mark(
    repository: &Repository,
    domain: &DomainName,
    point: PointId,
    context: &Context,
    change: impl FnOnce(&mut Marks) -> Result<()>,
) -> Result<MarkReport> {
    let cancel = signals::watch(&context.screen);
    let lock = repository.lock(domain, Wait::by(&context.screen, &cancel))?;
    Ok(MarkReport::new(domain, point, repository.mark(&lock, point, change)?))
}

/// Shows what the marks of a point are now.
pub fn show(report: &MarkReport, said: String, context: &mut Context) -> Result<u8> {
    match context.out.json {
        true => context.out.json(report)?,
        false => context.out.success(said)?,
    }
    Ok(status::DONE)
}

/// The guest and the point that are meant: `GUEST@POINT`, or the id of a point that one guest has.
pub fn find(catalog: &Catalog, wanted: &DiskAt) -> Result<(DomainName, PointId)> {
    let Some(selector) = &wanted.point else { return find_alone(catalog, wanted) };
    let disks = catalog.find_disks(&wanted.disk)?;
    match disks.as_slice() {
        [only] => Ok((only.domain.clone(), catalog.resolve(only, selector)?.id)),
        several => {
            let domain = several.first().map(|disk| disk.domain.clone());
            let domain = domain.ok_or_else(|| no_point(wanted))?;
            let point = catalog.resolve_domain(&domain, selector)?.point;
            Ok((domain, point))
        }
    }
}

/// The point of this id, if only one guest has one.
fn find_alone(catalog: &Catalog, wanted: &DiskAt) -> Result<(DomainName, PointId)> {
    let id: PointId = wanted.disk.to_string().parse().map_err(|_| no_point(wanted))?;
    let mut found: Vec<DomainName> = Vec::new();
    for disk in catalog.survey()?.disks {
        let is_known = found.contains(&disk.domain);
        match catalog.resolve(&disk, &Selector::Id(id.to_string())) {
            Ok(_) if !is_known => found.push(disk.domain),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match found.as_slice() {
        [only] => Ok((only.clone(), id)),
        [] => Err(Error::new(ErrorKind::NotFound, format!("no guest has a point {id}"))
            .advise("qdelta points lists the points")),
        [first, ..] => {
            let text = format!("{} guests have a point {id}", found.len());
            Err(Error::new(ErrorKind::Usage, text)
                .advise(format!("name the guest as well: {first}@{id}")))
        }
    }
}

fn no_point(wanted: &DiskAt) -> Error {
    Error::new(ErrorKind::Usage, format!("{} names no point", wanted.disk))
        .advise("say GUEST@POINT; qdelta points lists the points")
}

/// The end of what a date names, in the zone of the repository.
fn until(text: &str, repository: &Repository, now: Timestamp) -> Result<Timestamp> {
    let zone = repository.settings()?.zone()?;
    let no_date = |what: &str| {
        Error::new(ErrorKind::Usage, format!("--until {text:?} {what}"))
            .advise("say a day, a month, a year or a time to come: 2027-06-30, 2027-06, 2027")
    };
    match Selector::parse_in(text, &zone) {
        Ok(Selector::At(time)) if time > now => Ok(time),
        Ok(Selector::At(_)) => Err(no_date("is past")),
        _ => Err(no_date("is no date")),
    }
}
