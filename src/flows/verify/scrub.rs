//! A verification that takes what was proved longest ago, and no more than an admin gives it each night.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::archives::Run;
use super::{Budget, Scrub, VerifyRequest, names_of, note, points_of};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::flows::report::{ScrubReport, VerifyReport};
use crate::vault::repository::{Catalog, DiskId, History, Hold, Needed, PointId};

/// With a budget of time, so many bytes are taken before the clock is asked which disk comes next.
const PORTION: u64 = 1 << 30;

/// A scrub of some disks.
pub(super) struct Work<'a> {
    pub catalog: &'a Catalog,
    pub request: &'a VerifyRequest,
    pub observer: &'a dyn Observer,
    pub cancel: &'a Cancel,
    pub started: Instant,
}

/// With each portion the indexes of a disk's archives are read: it is so great a part of them at least.
const INDEXES: u64 = 32;

/// A disk and what its points need.
struct Disk<'a> {
    id: &'a DiskId,
    points: Vec<PointId>,
    needed: Vec<Needed>,
    /// By number: what is known to be wrong with archives.
    known: BTreeMap<usize, String>,
    /// Bytes of its archives.
    bytes: u64,
}

/// An archive that is to be proved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    /// When it was read last; never sorts before all times. A damaged one waits for its turn as the others
    /// do: it would take the whole budget of every night.
    read: Option<Timestamp>,
    disk: usize,
    number: usize,
    bytes: u64,
    is_damaged: bool,
}

impl Due {
    fn proved(&self) -> Option<Timestamp> {
        self.read.filter(|_| !self.is_damaged)
    }
}

impl Work<'_> {
    /// Proves what is due, the longest unproved first, as far as the budget goes.
    pub fn run(&self, scrub: &Scrub, ids: &[DiskId], report: &mut VerifyReport) -> Result<()> {
        let now = clock::now()?;
        let repository = self.catalog.repository();
        let (mut disks, mut due, mut holds) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut histories: BTreeMap<_, History> = BTreeMap::new();
        let since = scrub.max_age.map(|age| age.before(now, &TimeZone::UTC));
        for (number, id) in ids.iter().enumerate() {
            if !holds.contains_key(&id.domain) {
                let hold: Hold = repository.hold(&id.domain)?;
                holds.insert(&id.domain, hold);
            }
            let points = points_of(self.catalog, id, self.request, report)?;
            let needed = self.catalog.needed_by(id, &points);
            let history =
                histories.entry(&id.domain).or_insert_with(|| repository.history(&id.domain));
            let points = points.into_iter().map(|point| point.id).collect();
            let mut disk = Disk { id, points, needed, known: BTreeMap::new(), bytes: 0 };
            due.extend(self.due(history, number, &mut disk, now));
            disks.push(disk);
        }
        due.retain(|due| due.read.is_none_or(|time| since.is_none_or(|since| time < since)));
        due.sort_unstable();
        let until = match scrub.budget {
            Some(Budget::Time(time)) => self.started.checked_add(time),
            _ => None,
        };
        let taken = match scrub.budget {
            Some(Budget::Bytes(bytes)) => within(&due, bytes),
            _ => due.len(),
        };
        let (mut rest, left) = due.split_at(taken);
        let mut left = left.to_vec();
        // A disk that nothing is due of is looked at as well: what is missing is found every time.
        let mut unseen: BTreeSet<usize> = (0..disks.len()).collect();
        while !rest.is_empty() || !unseen.is_empty() {
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_over && unseen.is_empty() {
                break;
            }
            let next = rest.first().and_then(|due| disks.get(due.disk));
            let portion = PORTION.max(next.map_or(0, |disk| disk.bytes / INDEXES));
            let count = if until.is_some() { within(rest, portion) } else { rest.len() };
            let (portion, after) = rest.split_at(count);
            rest = after;
            let mut by_disk: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for due in portion {
                by_disk.entry(due.disk).or_default().insert(due.number);
            }
            for disk in std::mem::take(&mut unseen) {
                by_disk.entry(disk).or_default();
            }
            for (number, archives) in by_disk {
                let Some(disk) = disks.get(number) else { continue };
                let read = self.prove(disk, &archives, until, report)?;
                let missed = portion.iter().filter(|due| due.disk == number);
                left.extend(missed.filter(|due| !read.contains(&due.number)).cloned());
            }
        }
        left.extend_from_slice(rest);
        report.scrub = Some(ScrubReport {
            archives_left: left.len() as u64,
            bytes_left: left.iter().map(|due| due.bytes).sum(),
            never_proved: left.iter().filter(|due| due.proved().is_none()).count() as u64,
            oldest_proof: left.iter().filter_map(Due::proved).min(),
        });
        Ok(())
    }

    /// The archives of a disk, and when each was read; what is known of them is put into the disk.
    fn due(
        &self,
        history: &History,
        number: usize,
        disk: &mut Disk<'_>,
        now: Timestamp,
    ) -> Vec<Due> {
        let mut all = Vec::new();
        for (at, archive) in disk.needed.iter().enumerate().filter(|(_, it)| it.is_there) {
            let (name, of_disk) = (&archive.link.archive, &disk.id.disk);
            let stamp = self.catalog.stamp(name);
            let damage = history.damage(of_disk, name.last(), stamp.as_ref());
            let entry = self.catalog.repository().storage().entry(name).ok().flatten();
            let bytes = entry.and_then(|entry| entry.len).unwrap_or(0);
            let read = history.read(of_disk, name.last(), stamp.as_ref(), now);
            all.push(Due { read, disk: number, number: at, bytes, is_damaged: damage.is_some() });
            disk.bytes += bytes;
            disk.known.extend(damage.map(|problem| (at, problem.to_owned())));
        }
        all
    }

    /// Proves these archives of a disk, and notes it. Which ones were read is returned.
    fn prove(
        &self,
        disk: &Disk<'_>,
        archives: &BTreeSet<usize>,
        until: Option<Instant>,
        report: &mut VerifyReport,
    ) -> Result<BTreeSet<usize>> {
        let run = Run {
            catalog: self.catalog,
            disk: disk.id,
            request: self.request,
            observer: self.observer,
            cancel: self.cancel,
            due: Some(archives),
            known: Some(&disk.known),
            until,
        };
        let (damage, seen) = run.verify(&disk.needed, report)?;
        let named = self.request.point.is_none().then(|| names_of(&disk.needed));
        note(self.catalog, disk.id, &damage, &seen, named.as_ref(), self.request, self.observer);
        let repository = self.catalog.repository();
        let was_read = |number: &usize| {
            let archive = disk.needed.get(*number).map(|it| repository.describe(&it.link.archive));
            archive.is_some_and(|path| seen.stamps.contains_key(&path))
        };
        let read = archives.iter().copied().filter(was_read).collect();
        // Of points that were proved only in part, nothing is said but what is wrong with them.
        let points: Vec<PointId> =
            disk.points.iter().copied().filter(|point| damage.costs(*point)).collect();
        if !points.is_empty() || !archives.is_empty() {
            damage.settle(disk.id, &points, seen.states(), report);
        }
        Ok(read)
    }
}

/// How many of these come to so many bytes: one at least.
fn within(due: &[Due], bytes: u64) -> usize {
    let mut sum = 0_u64;
    let fits = due.iter().take_while(|due| {
        sum = sum.saturating_add(due.bytes);
        sum <= bytes
    });
    fits.count().max(1).min(due.len())
}
