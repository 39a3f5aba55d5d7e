//! Retention: which points stay, and marking the others as removed.
//!
//! `rules` decides, `doubt` guards against a wrong clock; both are pure. Here the points are gathered
//! for them, and what they say is written into the manifests. No data goes: a removed point can be
//! brought back until its grace is over.

mod doubt;
mod rules;

use std::thread;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::period::Period;
use crate::flows::report::{Fate, GuestPrune, Reason, Verdict};
use crate::vault::repository::{
    Catalog, DiskId, DomainLock, DomainName, Keep, Marks, PointId, Removal, Repository,
};

pub use rules::{Candidate, Clock, judge};

/// How many points are marked at a time.
const MARKS_AT_ONCE: usize = 8;
/// So many are not worth a thread.
const MARKS_IN_TURN: usize = 8;

/// What is asked of the rules.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The rules.
    pub keep: Keep,
    /// How long a removed point can be brought back.
    pub grace: Period,
    /// The zone whose days they count.
    pub zone: TimeZone,
    /// The time.
    pub now: Timestamp,
    /// Whether a clock far after the points before is believed.
    pub clock: Clock,
}

impl Policy {
    /// Fails if no rule keeps anything.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn check(&self) -> Result<()> {
        if !self.keep.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Usage, "no rule says what to keep").advise(
            "give rules, as --keep-daily 7 --keep-weekly 4 --keep-monthly 12, or write them into \
             [keep] of the repository's qdelta.toml",
        ))
    }
}

/// What the rules say of a guest. Nothing is written.
///
/// # Errors
/// As [`Policy::check`]; the folder of the manifests can't be read; the rules would leave nothing.
pub fn decide(catalog: &Catalog, domain: &DomainName, policy: &Policy) -> Result<GuestPrune> {
    policy.check()?;
    let Gathered { candidates, unreadable } = gather(catalog, domain)?;
    let Policy { keep, zone, now, clock, .. } = policy;
    let mut verdicts = judge(&candidates, keep, zone, *now, *clock);
    check_rest(domain, &verdicts)?;
    verdicts.extend(unreadable.into_iter().map(|point| Verdict {
        point,
        created: None,
        consistency: None,
        safety: false,
        damaged: true,
        fate: Fate::Keep,
        reasons: vec![Reason::Unreadable],
    }));
    verdicts.sort_by_key(|verdict| verdict.point);
    let in_doubt = *clock == Clock::Checked && doubt::is_in_doubt(&candidates, zone, *now);
    Ok(GuestPrune::new(domain.clone(), in_doubt, verdicts))
}

/// Whatever the rules are: where a point can be restored now, one can be restored after them.
fn check_rest(domain: &DomainName, verdicts: &[Verdict]) -> Result<()> {
    let mut sound = verdicts.iter().filter(|it| !it.damaged && it.fate != Fate::Removed);
    if sound.clone().next().is_none() || sound.any(|it| it.fate == Fate::Keep) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("the rules would leave {domain} no point at all"))
        .advise("give rules that keep something, as --keep-last 1"))
}

/// Marks the points of a guest as removed that the rules do not keep.
///
/// # Errors
/// A manifest can't be read or replaced: what was marked before it stays marked.
pub fn remove(
    repository: &Repository,
    lock: &DomainLock,
    decided: &GuestPrune,
    policy: &Policy,
) -> Result<()> {
    let Policy { grace, zone, now, .. } = policy;
    let removal = |reason: String| Removal { at: *now, until: grace.after(*now, zone), reason };
    let mark = |verdict: &Verdict| {
        repository.mark(lock, verdict.point, |marks| {
            match verdict.fate {
                Fate::Keep => {}
                Fate::Remove => {
                    let reason = verdict.reasons.first();
                    let reason = reason.map_or_else(String::new, ToString::to_string);
                    marks.removed.get_or_insert_with(|| removal(reason));
                    // One that still held would have kept it. That of a snapshot holds again if the snapshot comes back.
                    marks.pins.retain(crate::vault::repository::Pin::is_of_snapshot);
                }
                // By a clock that stood ahead: its time would never be over.
                Fate::Removed => {
                    marks.removed = marks.removed.take().map(|mark| removal(mark.reason));
                }
            }
            Ok(())
        })
    };
    let is_marked = |it: &&Verdict| match it.fate {
        Fate::Keep => false,
        Fate::Remove => true,
        Fate::Removed => is_ahead(it, *now),
    };
    let wanted: Vec<&Verdict> = decided.points.iter().filter(is_marked).collect();
    // Each mark waits for the disk. Where there are many, the filesystem promises several at a time.
    let share = wanted.len().div_ceil(MARKS_AT_ONCE).max(MARKS_IN_TURN);
    thread::scope(|scope| {
        let marking: Vec<_> = wanted
            .chunks(share)
            .map(|wanted| {
                scope.spawn(|| wanted.iter().try_for_each(|verdict| mark(verdict).map(drop)))
            })
            .collect();
        let done = |it: thread::ScopedJoinHandle<'_, Result<()>>| {
            it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        marking.into_iter().map(done).fold(Ok(()), Result::and)
    })
}

/// Whether a point was removed at a time that is still to come.
fn is_ahead(verdict: &Verdict, now: Timestamp) -> bool {
    verdict.reasons.iter().any(|it| matches!(it, Reason::Removed { at, .. } if *at > now))
}

/// Brings a removed point back.
///
/// # Errors
/// [`ErrorKind::Usage`] if the point is not removed, or has become part of another one already; its
/// manifest can't be read or replaced.
pub fn undelete(
    repository: &Repository,
    lock: &DomainLock,
    point: PointId,
    observer: &dyn Observer,
) -> Result<Marks> {
    for (carrier, manifest) in repository.catalog().manifests(lock.domain())? {
        let Ok(manifest) = manifest else { continue };
        if carrier != point && manifest.replaces.iter().any(|it| it.point == point) {
            let text = format!("point {point} of {} is being removed for good", lock.domain());
            return Err(Error::new(ErrorKind::Usage, text));
        }
    }
    let marks = repository.mark(lock, point, |marks| {
        let domain = lock.domain();
        marks.removed.take().map(drop).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("point {point} of {domain} is not removed"))
                .advise("qdelta points --removed lists the removed ones")
        })
    })?;
    // As long as it was removed, nobody did.
    repository.keep_safe(lock.domain(), observer);
    Ok(marks)
}

/// The points of a guest, as the rules look at them.
struct Gathered {
    /// Those whose manifests can be read, the oldest first.
    candidates: Vec<Candidate>,
    /// The others.
    unreadable: Vec<PointId>,
}

/// Gathers what the rules look at. A point is damaged if one of its disks can be seen to be.
fn gather(catalog: &Catalog, domain: &DomainName) -> Result<Gathered> {
    let mut gathered = Gathered { candidates: Vec::new(), unreadable: Vec::new() };
    for (point, manifest) in catalog.manifests(domain)? {
        let Ok(manifest) = manifest else {
            gathered.unreadable.push(point);
            continue;
        };
        gathered.candidates.push(Candidate {
            point,
            created: manifest.created,
            disks: manifest.guest_disks().map(|record| record.disk.clone()).collect(),
            consistency: manifest.consistency,
            damaged: false,
            safety: manifest.safety,
            snapshot: manifest.is_of_snapshots(),
            pins: manifest.pins,
            removed: manifest.removed,
        });
    }
    let mut disks: Vec<_> = gathered.candidates.iter().flat_map(|it| it.disks.clone()).collect();
    disks.sort_unstable();
    disks.dedup();
    for disk in disks {
        let id = DiskId { domain: domain.clone(), disk };
        let list = catalog.points(&id)?;
        let health = catalog.health(&id, &list)?;
        let known = catalog.known_damaged(&id, &list.points);
        for candidate in gathered.candidates.iter_mut().filter(|it| it.disks.contains(&id.disk)) {
            candidate.damaged |= !health.restorable.contains(&candidate.point);
            candidate.damaged |= known.contains(&candidate.point);
        }
    }
    Ok(gathered)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that could be restored was a safety point whose time was over.
    #[test]
    fn the_last_sound_point_of_a_guest_is_not_removed() {
        let domain: DomainName = "vm".parse().unwrap();
        let verdict = |damaged, fate| Verdict {
            point: PointId::from_ms(1).unwrap(),
            created: None,
            consistency: None,
            safety: false,
            damaged,
            fate,
            reasons: Vec::new(),
        };
        let left = |verdicts: &[Verdict]| check_rest(&domain, verdicts).map_err(|it| it.kind());
        let [bad, good] = [true, false].map(|damaged| verdict(damaged, Fate::Keep));
        let gone = verdict(false, Fate::Remove);
        assert_eq!(left(&[gone.clone(), bad.clone()]), Err(ErrorKind::Usage));
        assert_eq!(left(std::slice::from_ref(&gone)), Err(ErrorKind::Usage));
        assert_eq!(left(&[gone, good]), Ok(()));
        assert_eq!(left(&[bad, verdict(false, Fate::Removed)]), Ok(()));
        assert_eq!(left(&[]), Ok(()));
    }
}
