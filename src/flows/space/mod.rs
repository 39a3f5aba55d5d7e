//! What points take, what removing them would free, and when the room is full.

mod forecast;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Silent;
use crate::flows::merge::{Family, MergeOptions, Merger};
use crate::flows::report::{Failure, Growth, GuestSpace, PointSpace, SpaceReport};
use crate::formats::archive::Kind;
use crate::vault::repository::{Catalog, DomainName, Manifest, PointId, Repository};
use forecast::{Series, Together, Trend};

/// What is farther away than this is no date that anybody plans for.
const YEARS_MAX: f64 = 100.0;

/// What to look at.
#[derive(Debug, Clone)]
pub struct SpaceRequest {
    /// The guests.
    pub domains: Vec<DomainName>,
    /// Whether each point is looked at: its archives are opened for that.
    pub each: bool,
    /// The time.
    pub now: Timestamp,
}

/// Says what guests take.
///
/// # Errors
/// A folder can't be listed; the work was interrupted. Damage is part of the result.
pub fn run(
    repository: &Repository,
    request: &SpaceRequest,
    cancel: &Cancel,
) -> Result<SpaceReport> {
    run_with(&repository.catalog(), request, cancel)
}

/// The same, of manifests that others ask for, too: none is read twice.
///
/// # Errors
/// As [`run`].
pub fn run_with(catalog: &Catalog, request: &SpaceRequest, cancel: &Cancel) -> Result<SpaceReport> {
    let repository = catalog.repository();
    let (mut guests, mut all) = (Vec::new(), Vec::new());
    let now_s = request.now.as_second();
    for domain in &request.domains {
        cancel.check()?;
        let (mut manifests, mut unread) = (Vec::new(), None);
        for (_, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => unread = unread.or(Some(error)),
            }
        }
        let series = Series::of(&repository.sizes(domain), &manifests, now_s);
        let mut guest = space_of(domain, &manifests);
        let trend = Together::of(&[&series], now_s).trend(None);
        guest.bytes_per_day = trend.map(|trend| trend.bytes_per_day as u64);
        guest.error =
            unread.map(|error| Failure::from(&error.within("what all points take is not known")));
        if request.each {
            match each(catalog, domain, cancel) {
                Ok(points) => guest.each = points,
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => guest.error = Some(Failure::from(&error)),
            }
        }
        guests.push(guest);
        all.push(series);
    }
    let bytes_free = repository.bytes_free();
    let trend = Together::of(&all.iter().collect::<Vec<_>>(), now_s).trend(bytes_free);
    Ok(SpaceReport {
        repository: repository.path().to_owned(),
        bytes_free,
        bytes_stored: guests.iter().map(|guest| guest.bytes_stored).sum(),
        growth: trend.map(|trend| growth_of(trend, request.now)),
        guests,
    })
}

/// What all archives took at the most on each of these days, counted from 1970 on, as far as that is known.
///
/// # Errors
/// The manifests of a guest can't be listed.
pub fn stored_on(
    catalog: &Catalog,
    domains: &[DomainName],
    days: &[i64],
    now: Timestamp,
) -> Result<Vec<u64>> {
    let mut sums = vec![0_u64; days.len()];
    for domain in domains {
        let manifests = catalog.manifests(domain)?;
        let readable = manifests.into_iter().filter_map(|(_, manifest)| manifest.ok());
        let sizes = catalog.repository().sizes(domain);
        let series = Series::of(&sizes, &readable.collect::<Vec<_>>(), now.as_second());
        for (sum, day) in sums.iter_mut().zip(days) {
            *sum = sum.saturating_add(series.drawn(*day));
        }
    }
    Ok(sums)
}

fn growth_of(trend: Trend, now: Timestamp) -> Growth {
    let left = trend.days_left.filter(|left| *left <= YEARS_MAX * 365.25);
    let second = |left: f64| now.as_second().saturating_add((left * 86_400.0) as i64);
    Growth {
        bytes_per_day: trend.bytes_per_day as u64,
        days: trend.days as f64,
        full_at: left.and_then(|left| Timestamp::from_second(second(left)).ok()),
        soon: trend.is_soon,
    }
}

fn space_of(domain: &DomainName, manifests: &[Manifest]) -> GuestSpace {
    let bytes = |manifests: &mut dyn Iterator<Item = &Manifest>| {
        manifests.map(Manifest::bytes_stored).sum()
    };
    let is_removed = |manifest: &&Manifest| manifest.removed.is_some();
    let records = manifests.iter().flat_map(|manifest| &manifest.disks);
    let fulls = records.filter(|record| record.kind == Kind::Full);
    let removed = manifests.iter().filter(is_removed).count();
    GuestSpace {
        domain: domain.to_string(),
        points: manifests.len() - removed,
        removed,
        bytes_stored: bytes(&mut manifests.iter()),
        bytes_full: fulls.map(|record| record.bytes_written).sum(),
        bytes_removed: bytes(&mut manifests.iter().filter(is_removed)),
        bytes_per_day: None,
        each: Vec::new(),
        error: None,
    }
}

/// What each point takes, and what its going alone would free.
fn each(catalog: &Catalog, domain: &DomainName, cancel: &Cancel) -> Result<Vec<PointSpace>> {
    let family = Family::read(catalog, domain)?;
    let options = MergeOptions::default();
    let merger = Merger { catalog, family: &family, options: &options, observer: &Silent, cancel };
    let mut children: BTreeMap<PointId, BTreeSet<PointId>> = BTreeMap::new();
    // Without those that wait to be removed: nothing is decided about them any more.
    for manifest in family.manifests() {
        for parent in manifest.disks.iter().filter_map(|record| record.parent_point()) {
            children.entry(parent).or_default().insert(manifest.point);
        }
    }
    let mut points = Vec::new();
    for manifest in family.manifests() {
        cancel.check()?;
        let above = children.get(&manifest.point);
        let bytes_freed = match above.map_or((None, 0), |it| (it.first().copied(), it.len())) {
            (None, _) => Some(manifest.bytes_stored()),
            (Some(into), 1) => {
                let step = family.step(&BTreeSet::from([manifest.point]), into)?;
                match merger.rehearse(std::slice::from_ref(&step)) {
                    Ok(reports) => Some(reports.iter().map(|report| report.bytes_freed).sum()),
                    Err(error) if is_of_file(&error) => None,
                    Err(error) => return Err(error),
                }
            }
            _ => None,
        };
        points.push(PointSpace {
            point: manifest.point,
            removed: manifest.removed.is_some(),
            bytes_stored: manifest.bytes_stored(),
            bytes_freed,
        });
    }
    Ok(points)
}

/// Whether an error says something of an archive: of the others, everything can be said.
fn is_of_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Io)
}
