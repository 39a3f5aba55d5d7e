//! How a guest stands: its newest good point, proofs, drills, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Look, Opened};
use crate::base::duration::{self, Stretch};
use crate::base::error::Result;
use crate::base::warning::Warning;
use crate::flows::jobs::config::Job;
use crate::flows::jobs::config::copy::Copy;
use crate::flows::jobs::guests::Subject;
use crate::flows::jobs::words::{operand, option};
use crate::flows::report::{Act, End, FindingCode, GuestStatus, Level, Record};
use crate::vault::repository::{Catalog, Climb, DiskId, DomainName, Drill, Manifest, PointId};

/// A mark that is younger than this may be that of a guest that is being backed up now.
const MARK_AGE_MIN_S: u64 = 120;

/// What is known of the points of a guest.
#[derive(Default)]
pub(in super::super) struct Points {
    pub(super) count: usize,
    /// Those that are damaged.
    pub(super) damaged: usize,
    safe_until: Option<jiff::Timestamp>,
    /// Files of them were written over.
    written_over: Option<Warning>,
    pub newest: Option<Manifest>,
    /// All that can be read and are not removed, the oldest first, and whether each can be restored whole.
    pub all: Vec<(Manifest, bool)>,
    /// When each was proved.
    pub proofs: BTreeMap<PointId, Option<jiff::Timestamp>>,
    oldest_at: Option<jiff::Timestamp>,
    proved_at: Option<jiff::Timestamp>,
    never_proved: usize,
    last_drill: Option<Drill>,
}

impl Look<'_> {
    /// How the guests and images of all jobs stand.
    pub(super) fn guests(&mut self) -> Vec<GuestStatus> {
        let mut wanted: BTreeMap<String, Vec<(&str, &Job, Subject)>> = BTreeMap::new();
        for (name, job) in &self.config.jobs {
            for subject in self.guests.of(job) {
                wanted.entry(subject.name()).or_default().push((name, job, subject));
            }
        }
        wanted.into_values().filter_map(|jobs| self.guest(&jobs)).collect()
    }

    /// How a guest stands that these jobs back up.
    fn guest(&mut self, jobs: &[(&str, &Job, Subject)]) -> Option<GuestStatus> {
        // What the strictest job asks for.
        let strict = |job: &Job| job.rpo.map_or(std::time::Duration::MAX, |rpo| rpo.0);
        let (name, job, subject) = jobs.iter().min_by_key(|(_, job, _)| strict(job))?;
        let guest = subject.name();
        for (name, _, _) in jobs {
            self.act_of_guest_failed(name, Act::Backup, &guest);
            self.copy_failed(name, &guest, subject);
        }
        let (rpo, rto) = (job.rpo, jobs.iter().filter_map(|(_, job, _)| job.rto).min());
        let mut standing = GuestStatus {
            guest: guest.clone(),
            job: (*name).to_owned(),
            level: Level::Ok,
            points: 0,
            newest: None,
            newest_at: None,
            safe_until: None,
            oldest_at: None,
            frozen_ms: None,
            rpo,
            proved_at: None,
            never_proved: 0,
            drilled_at: None,
            drilled: None,
            recovery: None,
            rto,
            copies: Vec::new(),
        };
        let repository = self.config.repository_of(name, job).ok().map(|(name, _)| name);
        // That it can't be opened is a finding of its own.
        let opened = repository.and_then(|name| self.catalogs.get(name));
        let Some(opened) = opened else {
            // Nothing is known of it.
            standing.level = Level::Critical;
            return Some(standing);
        };
        let Ok(domain) = self.guests.domain_of(subject) else { return Some(standing) };
        let is_frozen = self.is_frozen(&opened.catalog, &domain);
        let points = match opened.points(&domain, self.now) {
            Ok(points) => points,
            Err(error) => {
                self.trouble(FindingCode::Repository, &guest, &error);
                return Some(standing);
            }
        };
        if is_frozen {
            let text =
                "it may still be frozen: the mark of a freeze was never taken away".to_owned();
            let advice =
                format!("virsh domfsthaw {}; the next backup thaws it, too", operand(&guest));
            self.advise(Level::Critical, FindingCode::Frozen, &guest, text, &advice);
        }
        standing.points = points.count;
        standing.newest = points.newest.as_ref().map(|manifest| manifest.point);
        standing.newest_at = points.newest.as_ref().map(|manifest| manifest.created);
        standing.safe_until = points.safe_until;
        standing.oldest_at = points.oldest_at;
        standing.frozen_ms = points.newest.as_ref().and_then(frozen_ms);
        standing.proved_at = points.proved_at;
        standing.never_proved = points.never_proved;
        if let Some(drill) = &points.last_drill {
            standing.drilled_at = Some(drill.began);
            standing.drilled = Some(drill.result);
            standing.recovery = drill.recovery;
        }
        let before = self.findings.len();
        self.age(&guest, name, job, &points);
        self.damage(&guest, &points);
        self.left_out(&guest, subject, &points);
        for (_, job, _) in jobs {
            let copy = job.copy.as_ref().filter(|_| points.newest.is_some());
            let known = |copy: &Copy| standing.copies.iter().any(|it| it.repository == copy.to);
            if let Some(copy) = copy.filter(|copy| !known(copy)) {
                standing.copies.push(self.copy(&guest, &domain, copy));
            }
        }
        for finding in self.findings.iter_mut().skip(before) {
            finding.job = Some((*name).to_owned());
        }
        Some(standing)
    }

    /// Whether a mark says that the guest was frozen and never thawed.
    fn is_frozen(&self, catalog: &Catalog, domain: &DomainName) -> bool {
        let Ok(mark) = catalog.repository().frozen_mark(domain) else { return false };
        let Ok(found) = std::fs::symlink_metadata(&mark) else { return false };
        let age = found.modified().ok().and_then(|time| time.elapsed().ok());
        !self.is_running || age.is_none_or(|age| age.as_secs() >= MARK_AGE_MIN_S)
    }

    /// The last backup or copy by a job did not work.
    pub(super) fn act_of_guest_failed(&mut self, job: &str, act: Act, guest: &str) {
        let past = self.memory.of(Some(job), act, Some(guest));
        let Some(last) = past.last.cloned() else { return };
        let Record { end, text, advice, warnings, began, .. } = last;
        let (level, code, text) = match end {
            End::Failed => (Level::Critical, FindingCode::Failed, format!("{act} failed: {text}")),
            End::Interrupted | End::NotTried => {
                (Level::Warning, FindingCode::Failed, format!("{act} {end}: {text}"))
            }
            End::Warned => {
                let first = warnings.first().map_or("", |warning| warning.text.as_str());
                (Level::Warning, FindingCode::Warned, first.to_owned())
            }
            _ => return,
        };
        let advice = match end {
            End::Warned => warnings.into_iter().next().and_then(|warning| warning.advice),
            _ => advice,
        };
        if let Some(finding) = self.find(level, code, guest, text) {
            (finding.advice, finding.since) = (advice, Some(began));
        }
        self.of_job(job, Some(act));
    }

    /// The newest good point against what the job asks for.
    fn age(&mut self, guest: &str, name: &str, job: &Job, points: &Points) {
        let Some(newest) = &points.newest else {
            if job.rpo.is_none() && job.schedule.is_empty() {
                return;
            }
            let was_tried = self.memory.of(Some(name), Act::Backup, None).last;
            let own = self.memory.of(Some(name), Act::Backup, Some(guest)).last;
            let is_new = was_tried.is_some_and(|record| {
                record.end == End::Seen || (own.is_none() && !job.schedule.is_empty())
            });
            let is_waiting = is_new && self.overdue(name, job, Act::Backup).is_none();
            let (level, text) = match is_waiting {
                true => (Level::Warning, "it has no point yet: its first backup is still to come"),
                false => (Level::Critical, "it has no good point"),
            };
            let advice = format!("qdelta run {name} makes one now");
            self.advise(level, FindingCode::NoPoint, guest, text.to_owned(), &advice);
            return;
        };
        let age = self.now.as_second() - newest.created.as_second();
        let is_over = |rpo: Stretch| u64::try_from(age).is_ok_and(|age| age > rpo.0.as_secs());
        if let Some(rpo) = job.rpo.filter(|rpo| is_over(*rpo)) {
            let text = format!(
                "its newest good point is {} old, and its RPO is {rpo}",
                duration::age(age)
            );
            let since = newest.created;
            if let Some(finding) = self.find(Level::Critical, FindingCode::Rpo, guest, text) {
                finding.since = Some(since);
                finding.advice =
                    Some(format!("qdelta history {} says what happened", option("--guest", guest)));
            }
        }
    }

    /// Damaged points, and a drill that failed.
    fn damage(&mut self, guest: &str, points: &Points) {
        if points.damaged > 0 {
            let text = format!(
                "{} of its {} points can't be restored whole",
                points.damaged, points.count
            );
            let advice = format!("qdelta verify {} says what is damaged", operand(guest));
            self.advise(Level::Critical, FindingCode::Damaged, guest, text, &advice);
        }
        if let Some(told) = &points.written_over {
            let advice = told.advice.as_deref().unwrap_or_default();
            let code = FindingCode::Damaged;
            self.advise(Level::Critical, code, guest, told.text.clone(), advice);
        }
        let Some(drill) = &points.last_drill else { return };
        if drill.result == Climb::Failed {
            let step = drill.steps.iter().find(|step| step.result == Climb::Failed);
            let text = match step {
                Some(step) => format!("its last drill failed at {}: {}", step.rung, step.text),
                None => format!("its last drill missed its target: {}", drill.missed.join(", ")),
            };
            let since = drill.began;
            if let Some(finding) = self.find(Level::Critical, FindingCode::Drill, guest, text) {
                finding.since = Some(since);
                finding.advice = Some(format!("qdelta drill {} tries it again", operand(guest)));
            }
        }
    }

    /// Disks that the guest has now and that are not in its newest point.
    fn left_out(&mut self, guest: &str, subject: &Subject, points: &Points) {
        let (Subject::Guest { excluded, .. }, Some(newest)) = (subject, &points.newest) else {
            return;
        };
        let there: BTreeSet<&str> =
            newest.disks.iter().map(|record| record.disk.as_str()).collect();
        let missing: Vec<String> = self
            .guests
            .disks_to_take(guest, excluded)
            .into_iter()
            .filter(|target| !there.contains(target.as_str()))
            .collect();
        if !missing.is_empty() {
            let plural = if missing.len() == 1 { "disk" } else { "disks" };
            let text = format!("{plural} {} not in its newest point", missing.join(", "));
            let advice = "a disk that is new is in the next one; else see why it is left out";
            self.advise(Level::Warning, FindingCode::LeftOut, guest, text, advice);
        }
    }
}

/// How long the guest can have been frozen for a point, in milliseconds.
fn frozen_ms(manifest: &Manifest) -> Option<u64> {
    manifest.machine.as_ref()?.freeze_ms
}

impl Opened {
    /// Reads all manifests on all processors, and leaves them with the catalog: of a look at many guests, this takes
    /// nearly all the time.
    pub(super) fn read_ahead(&self) {
        let waiting: Vec<&DomainName> = self.domains.iter().collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(domain) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                // What fails here fails again where it is asked for, and is told there.
                let _ = self.catalog.manifests(domain);
            }
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(waiting.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }

    /// What is known of the points of a guest.
    pub(in super::super) fn points(
        &self,
        domain: &DomainName,
        now: jiff::Timestamp,
    ) -> Result<Points> {
        let catalog = &self.catalog;
        let mut found =
            Points { last_drill: catalog.repository().drills(domain).pop(), ..Points::default() };
        if !self.domains.contains(domain) {
            return Ok(found);
        }
        let mut bad: BTreeSet<PointId> = BTreeSet::new();
        let mut proofs: BTreeMap<PointId, Option<jiff::Timestamp>> = BTreeMap::new();
        for disk in catalog.disks_of(domain)? {
            of_disk(catalog, &disk, now, &mut bad, &mut proofs)?;
        }
        for (point, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) if manifest.removed.is_some() => {
                    proofs.remove(&point);
                }
                Ok(manifest) => {
                    found.count += 1;
                    let oldest = found.oldest_at.unwrap_or(manifest.created);
                    found.oldest_at = Some(oldest.min(manifest.created));
                    let is_good = !bad.contains(&point);
                    found.damaged += usize::from(!is_good);
                    found.all.push((manifest, is_good));
                }
                Err(_) => {
                    found.count += 1;
                    found.damaged += 1;
                }
            }
        }
        // A snapshot is older than its point: it is no newest state.
        let is_state =
            |(manifest, is_good): &&(Manifest, bool)| *is_good && !manifest.is_of_snapshots();
        let good = found.all.iter().filter(is_state).map(|(manifest, _)| manifest);
        found.newest = good.max_by_key(|manifest| manifest.point).cloned();
        if let Some(newest) = &found.newest {
            let safe = catalog.safe_until(domain, [newest.point])?;
            found.safe_until = safe.into_values().next();
        }
        found.written_over = catalog.told_of_written_over(domain)?;
        found.proved_at = proofs.values().flatten().max().copied();
        found.never_proved = proofs.values().filter(|proof| proof.is_none()).count();
        found.proofs = proofs;
        Ok(found)
    }
}

/// Which points of a disk are damaged, and when each was proved.
fn of_disk(
    catalog: &Catalog,
    disk: &DiskId,
    now: jiff::Timestamp,
    bad: &mut BTreeSet<PointId>,
    proofs: &mut BTreeMap<PointId, Option<jiff::Timestamp>>,
) -> Result<()> {
    let list = catalog.points(disk)?;
    let health = catalog.health(disk, &list)?;
    bad.extend(
        list.points.iter().map(|point| point.id).filter(|it| !health.restorable.contains(it)),
    );
    bad.extend(catalog.known_damaged(disk, &list.points));
    let proved = catalog.proofs(disk, &list.points, now);
    for point in &list.points {
        let own = proved.get(&point.id).copied();
        // A point is proved when all its disks are.
        proofs
            .entry(point.id)
            .and_modify(|known| *known = known.zip(own).map(|(one, other)| one.min(other)))
            .or_insert(own);
    }
    Ok(())
}
