//! What points take, what removing them would free, and when the room is full.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Silent;
use crate::flows::merge::{Family, MergeOptions, Merger};
use crate::flows::report::{Failure, Growth, GuestSpace, PointSpace, SpaceReport};
use crate::formats::archive::Kind;
use crate::vault::repository::{Catalog, DomainName, Manifest, PointId, Repository};

/// The rate is that of so many days.
const WINDOW_DAYS: f64 = 30.0;

/// Fewer points, or a shorter time between the first and now, say nothing of a rate.
const POINTS_MIN: usize = 3;
const DAYS_MIN: f64 = 2.0;

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
    let (mut guests, mut rates) = (Vec::new(), Vec::new());
    for domain in &request.domains {
        cancel.check()?;
        let (mut manifests, mut unread) = (Vec::new(), None);
        for (_, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => unread = unread.or(Some(error)),
            }
        }
        let rate = Rate::of(&manifests, request.now);
        let mut guest = space_of(domain, &manifests, &rate);
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
        rates.push(rate);
    }
    let bytes_free = repository.bytes_free();
    Ok(SpaceReport {
        repository: repository.path().to_owned(),
        bytes_free,
        bytes_stored: guests.iter().map(|guest| guest.bytes_stored).sum(),
        growth: growth_of(&rates, bytes_free, request.now),
        guests,
    })
}

fn space_of(domain: &DomainName, manifests: &[Manifest], rate: &Rate) -> GuestSpace {
    let bytes = |manifests: &mut dyn Iterator<Item = &Manifest>| manifests.map(bytes_of).sum();
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
        bytes_per_day: rate.per_day(),
        each: Vec::new(),
        error: None,
    }
}

fn bytes_of(manifest: &Manifest) -> u64 {
    manifest.disks.iter().map(|record| record.bytes_written).sum()
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
            (None, _) => Some(bytes_of(manifest)),
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
            bytes_stored: bytes_of(manifest),
            bytes_freed,
        });
    }
    Ok(points)
}

/// Whether an error says something of an archive: of the others, everything can be said.
fn is_of_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Io)
}

/// What a guest has stored in the last days.
struct Rate {
    bytes: u64,
    days: f64,
    is_known: bool,
}

impl Rate {
    /// The first point of all does not count: a guest begins once.
    fn of(manifests: &[Manifest], now: Timestamp) -> Self {
        let age = |manifest: &Manifest| {
            (now.as_second() - manifest.created.as_second()) as f64 / 86_400.0
        };
        let recent = |manifest: &&Manifest| (0.0..=WINDOW_DAYS).contains(&age(manifest));
        let later = manifests.iter().skip(1).filter(recent);
        let (count, bytes) = (later.clone().count(), later.map(bytes_of).sum());
        let days = manifests.first().map_or(0.0, age).clamp(0.0, WINDOW_DAYS);
        Self { bytes, days, is_known: count + 1 >= POINTS_MIN && days >= DAYS_MIN }
    }

    fn per_day(&self) -> Option<u64> {
        self.is_known.then(|| (self.bytes as f64 / self.days) as u64)
    }
}

/// The rate of all guests whose rate is known, and when the room is full at that rate.
fn growth_of(rates: &[Rate], free: Option<u64>, now: Timestamp) -> Option<Growth> {
    let known: Vec<&Rate> = rates.iter().filter(|rate| rate.is_known).collect();
    let days = known.iter().map(|rate| rate.days).reduce(f64::max)?;
    let bytes_per_day = known.iter().filter_map(|rate| rate.per_day()).sum::<u64>();
    let left = free.map(|free| free as f64 / bytes_per_day as f64);
    let left = left.filter(|left| *left <= YEARS_MAX * 365.25);
    let second = |left: f64| now.as_second().saturating_add((left * 86_400.0) as i64);
    let full_at = left.and_then(|left| Timestamp::from_second(second(left)).ok());
    Some(Growth { bytes_per_day, days, full_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes: u64, days: f64) -> Rate {
        Rate { bytes, days, is_known: days >= DAYS_MIN }
    }

    #[test]
    fn the_room_is_full_when_the_rates_of_all_have_filled_it() {
        let now = Timestamp::UNIX_EPOCH;
        let growth = growth_of(&[rate(300, 30.0), rate(100, 10.0)], Some(2000), now).unwrap();
        assert_eq!((growth.bytes_per_day, growth.days), (20, 30.0));
        assert_eq!(growth.full_at.unwrap().as_second(), 100 * 86_400);
        // Who was begun yesterday says nothing.
        let growth = growth_of(&[rate(300, 30.0), rate(5000, 1.0)], Some(2000), now).unwrap();
        assert_eq!(growth.bytes_per_day, 10);
        assert_eq!(growth_of(&[rate(5000, 1.0)], Some(2000), now), None);
        // Nothing comes, or next to nothing: there is no such day.
        assert_eq!(growth_of(&[rate(0, 30.0)], Some(2000), now).unwrap().full_at, None);
        assert_eq!(growth_of(&[rate(30, 30.0)], Some(u64::MAX), now).unwrap().full_at, None);
        assert_eq!(growth_of(&[rate(30, 30.0)], None, now).unwrap().full_at, None);
    }
}
