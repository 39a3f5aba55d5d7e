//! A verification that takes what was proved longest ago, and no more than an admin gives it each night.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::archives::Run;
use super::{Asked, Budget, Scrub, VerifyRequest, names_of, note};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{ErrorKind, Result};
use crate::base::observer::Observer;
use crate::flows::report::{ScrubReport, VerifyReport};
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{Catalog, DiskId, History, Needed, PointId};

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

/// An archive that is to be proved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    /// When it was read last; never sorts before all times. A damaged one waits for its turn as the others
    /// do: it would take the whole budget of every night.
    read: Option<Timestamp>,
    /// Of one that never was: the oldest point of its disk whose archive never was. Of the disks with new archives each
    /// night the first would have every night, and the others none.
    waits: Option<PointId>,
    disk: usize,
    /// The name of its file: those of a disk sort by their points.
    archive: String,
    bytes: u64,
    is_damaged: bool,
}

impl Due {
    fn proved(&self) -> Option<Timestamp> {
        self.read.filter(|_| !self.is_damaged)
    }
}

impl Work<'_> {
    fn wait(&self) -> Wait<'_> {
        Wait::by(self.observer, self.cancel)
    }

    /// Proves what is due, the longest unproved first, as far as the budget goes.
    pub fn run(&self, scrub: &Scrub, asked: &[Asked], report: &mut VerifyReport) -> Result<()> {
        let now = clock::now()?;
        let repository = self.catalog.repository();
        let (mut due, mut lengths) = (Vec::new(), Vec::new());
        let mut histories: BTreeMap<_, History> = BTreeMap::new();
        let since = scrub.max_age.map(|age| age.before(now, &TimeZone::UTC));
        for (number, asked) in asked.iter().enumerate() {
            let id = &asked.disk;
            // Archives stay where they are while they are read, and no longer: a scrub goes on for hours.
            let _hold = repository.hold(&id.domain, self.wait())?;
            let points = asked.points(self.catalog, report)?;
            let needed = self.catalog.needed_by(id, &points);
            let history =
                histories.entry(&id.domain).or_insert_with(|| repository.history(&id.domain));
            let all = needed.iter().filter(|archive| archive.is_there);
            let mut all: Vec<_> =
                all.map(|archive| self.due(history, (number, id), archive, now)).collect();
            let oldest = all.iter().filter_map(|due| due.waits).min();
            all.iter_mut().for_each(|due| due.waits = due.waits.and(oldest));
            lengths.push(all.iter().map(|due| due.bytes).sum::<u64>());
            due.extend(all);
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
        let mut unseen: BTreeSet<usize> = (0..asked.len()).collect();
        while !rest.is_empty() || !unseen.is_empty() {
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_over && unseen.is_empty() {
                break;
            }
            let next = rest.first().and_then(|due| lengths.get(due.disk));
            let portion = PORTION.max(next.map_or(0, |bytes| bytes / INDEXES));
            let count = if until.is_some() { within(rest, portion) } else { rest.len() };
            let (portion, after) = rest.split_at(count);
            rest = after;
            let mut by_disk: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
            for due in portion {
                by_disk.entry(due.disk).or_default().insert(&due.archive);
            }
            for disk in std::mem::take(&mut unseen) {
                by_disk.entry(disk).or_default();
            }
            for (number, archives) in by_disk {
                let Some(asked) = asked.get(number) else { continue };
                let missed = self.prove(asked, &archives, until, report)?;
                let of_disk = portion.iter().filter(|due| due.disk == number);
                left.extend(of_disk.filter(|due| missed.contains(&due.archive)).cloned());
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

    fn due(
        &self,
        history: &History,
        (disk, id): (usize, &DiskId),
        archive: &Needed,
        now: Timestamp,
    ) -> Due {
        let name = &archive.link.archive;
        let stamp = self.catalog.stamp(name);
        let entry = self.catalog.repository().storage().entry(name).ok().flatten();
        let read = history.read(&id.disk, name.last(), stamp.as_ref(), now);
        Due {
            read,
            waits: read.is_none().then_some(archive.link.point),
            disk,
            archive: name.last().to_owned(),
            bytes: entry.and_then(|entry| entry.len).unwrap_or(0),
            is_damaged: history.damage(&id.disk, name.last(), stamp.as_ref()).is_some(),
        }
    }

    /// Proves these archives of a disk, and notes it. Gives those that are still there and were not read.
    fn prove(
        &self,
        asked: &Asked,
        archives: &BTreeSet<&str>,
        until: Option<Instant>,
        report: &mut VerifyReport,
    ) -> Result<BTreeSet<String>> {
        let (id, repository) = (&asked.disk, self.catalog.repository());
        let _hold = match repository.hold(&id.domain, self.wait()) {
            // Points are being removed this moment: the next run comes back to these.
            Err(error) if error.kind() == ErrorKind::Busy => {
                return Ok(archives.iter().map(|archive| (*archive).to_owned()).collect());
            }
            held => held?,
        };
        // What was pruned meanwhile is not missing. What is wrong beside the points was said.
        let catalog = &repository.catalog();
        let points = asked.points(catalog, &mut VerifyReport::default())?;
        let needed = catalog.needed_by(id, &points);
        // All else of the points would only take memory while the archives are read.
        let points = Vec::from_iter(points.into_iter().map(|point| point.id));
        let history = repository.history(&id.domain);
        let (mut due, mut known) = (BTreeSet::new(), BTreeMap::new());
        for (number, archive) in needed.iter().enumerate() {
            let name = &archive.link.archive;
            if archives.contains(name.last()) {
                due.insert(number);
            }
            let stamp = catalog.stamp(name);
            let damage = history.damage(&id.disk, name.last(), stamp.as_ref());
            known.extend(damage.map(|problem| (number, problem.to_owned())));
        }
        let run = Run {
            catalog,
            disk: id,
            request: self.request,
            observer: self.observer,
            cancel: self.cancel,
            due: Some(&due),
            known: Some(&known),
            until,
        };
        let (damage, seen) = run.verify(&needed, report)?;
        let named = asked.points.is_none().then(|| names_of(&needed));
        note(catalog, id, &damage, &seen, named.as_ref(), self.request, self.observer);
        let was_read =
            |it: &Needed| seen.stamps.contains_key(&repository.describe(&it.link.archive));
        let due = due.iter().filter_map(|number| needed.get(*number));
        let missed = due.filter(|archive| !was_read(archive));
        let missed = missed.map(|archive| archive.link.archive.last().to_owned()).collect();
        // Of points that were proved only in part, nothing is said but what is wrong with them.
        let points: Vec<PointId> =
            points.into_iter().filter(|point| damage.costs(*point)).collect();
        if !points.is_empty() || !archives.is_empty() {
            damage.settle(id, &points, seen.states(), report);
        }
        Ok(missed)
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
