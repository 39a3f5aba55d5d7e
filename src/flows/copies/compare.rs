//! How two repositories compare: what each one has of every point. A point's root stands for all that the guest
//! sees, so no archive is read: that the archives give the roots, `verify` proves on each side.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::check_apart;
use super::guest::{damage, going, same, sound, without_manifest};
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::{Observer, Recorder};
use crate::flows::report::{CompareReport, GuestCompare, PointCompare};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{Catalog, DomainName, Hold, Manifest, PointId, Repository};

/// Compares the points of guests, or of all guests that one of the two has.
///
/// # Errors
/// The two are one repository; a folder can't be listed. That they differ is no error.
pub fn compare(
    (here, there): (&Repository, &Repository),
    domains: &[DomainName],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<CompareReport> {
    let started = Instant::now();
    check_apart(here, there)?;
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let of_each = [here.domains()?, there.domains()?].map(BTreeSet::from_iter);
    let all: BTreeSet<DomainName> = match domains.is_empty() {
        true => of_each.iter().flatten().cloned().collect(),
        false => domains.iter().cloned().collect(),
    };
    let wait = Wait::by(observer, cancel);
    let (mut same, mut guests) = (0, Vec::new());
    observer.begin("compare", all.len() as u64);
    for domain in all {
        cancel.check()?;
        let [ours, theirs] = &of_each;
        let ours = Side::read(here, &domain, ours.contains(&domain), wait)?;
        let theirs = Side::read(there, &domain, theirs.contains(&domain), wait)?;
        let guest = guest(&domain, &ours, &theirs, &mut same);
        if guest != empty(&domain) {
            guests.push(guest);
        }
        observer.advance(1);
    }
    observer.end();
    Ok(CompareReport {
        here: here.path().to_owned(),
        there: there.path().to_owned(),
        same,
        guests,
        warnings: recorder.take(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What one of the repositories has of a guest.
struct Side {
    manifests: BTreeMap<PointId, Result<Manifest>>,
    /// What is the matter with points that can't be restored whole.
    damaged: BTreeMap<PointId, String>,
    /// The points of which archives are there, and no manifest.
    lost: BTreeMap<PointId, String>,
    _hold: Option<Hold>,
}

impl Side {
    fn read(
        repository: &Repository,
        domain: &DomainName,
        is_there: bool,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let hold = is_there.then(|| repository.hold(domain, wait)).transpose()?;
        let catalog: Catalog = repository.catalog();
        let mut manifests: BTreeMap<_, _> = catalog.manifests(domain)?.into_iter().collect();
        let going = going(&manifests);
        manifests.retain(|point, _| !going.contains(point));
        let sound = sound(&catalog, domain, &manifests)?;
        let files = repository.machine_digests(domain)?;
        let mut damaged = BTreeMap::new();
        for (point, manifest) in &manifests {
            let manifest = match manifest {
                Ok(manifest) => manifest,
                Err(error) => {
                    damaged.insert(*point, error.chain());
                    continue;
                }
            };
            if let Some(what) = damage(*point, manifest, &sound, &files) {
                damaged.insert(*point, what);
            }
        }
        let lost = without_manifest(&catalog, domain)?;
        Ok(Self { manifests, damaged, lost, _hold: hold })
    }

    /// Whether a point is there, and nobody has removed it.
    fn lives(&self, point: PointId) -> bool {
        self.manifests
            .get(&point)
            .is_some_and(|it| it.as_ref().map_or(true, |manifest| manifest.removed.is_none()))
    }

    /// The points that live here, and that `other` does not have, or only as long as nobody prunes there.
    fn alone(&self, other: &Self) -> Vec<PointId> {
        let points = self.manifests.keys().copied();
        points.filter(|point| self.lives(*point) && !other.lives(*point)).collect()
    }

    /// What is damaged, of the points that live, and what has lost its manifest.
    fn damage(&self) -> Vec<PointCompare> {
        let living = self.damaged.iter().filter(|(point, _)| self.lives(**point));
        let living = living.chain(&self.lost);
        living.map(|(point, what)| PointCompare { point: *point, what: what.clone() }).collect()
    }
}

fn empty(domain: &DomainName) -> GuestCompare {
    GuestCompare {
        domain: domain.clone(),
        only_here: Vec::new(),
        only_there: Vec::new(),
        different: Vec::new(),
        damaged_here: Vec::new(),
        damaged_there: Vec::new(),
    }
}

fn guest(domain: &DomainName, ours: &Side, theirs: &Side, same: &mut u64) -> GuestCompare {
    let mut different = Vec::new();
    for (point, manifest) in &ours.manifests {
        let (Ok(one), Some(Ok(other))) = (manifest, theirs.manifests.get(point)) else { continue };
        let is_damaged = [ours, theirs].iter().any(|side| side.damaged.contains_key(point));
        match difference(one, other) {
            Some(what) => different.push(PointCompare { point: *point, what }),
            None if ours.lives(*point) && theirs.lives(*point) && !is_damaged => *same += 1,
            None => {}
        }
    }
    GuestCompare {
        only_here: ours.alone(theirs),
        only_there: theirs.alone(ours),
        different,
        damaged_here: ours.damage(),
        damaged_there: theirs.damage(),
        ..empty(domain)
    }
}

/// What two manifests of one point show differently.
fn difference(one: &Manifest, other: &Manifest) -> Option<String> {
    if same(one, other).is_err() {
        let differs = one.disks.iter().find(|record| {
            other.disk(&record.disk).is_none_or(|theirs| theirs.root != record.root)
        });
        return Some(match differs {
            Some(record) => format!("disk {} holds something else", record.disk),
            None => "the other one has more disks".to_owned(),
        });
    }
    let files = |manifest: &Manifest| -> BTreeSet<_> {
        let files = manifest.machine.iter().flat_map(|machine| &machine.files);
        files.map(|file| (file.path.clone(), file.digest.to_string())).collect()
    };
    (files(one) != files(other)).then(|| "files of the machine differ".to_owned())
}
