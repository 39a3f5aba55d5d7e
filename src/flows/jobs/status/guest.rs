//! How a guest stands: its newest good point, proofs, drills, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{Look, Opened};
use crate::base::duration::{self, Stretch};
use crate::base::error::Result;
use crate::base::warning::Warning;
use crate::flows::jobs::config::Job;
use crate::flows::jobs::guests::{Guests, Subject};
use crate::flows::jobs::words::{operand, option};
use crate::flows::report::{Act, End, FindingCode, GuestStatus, Level, Record};
use crate::vault::repository::{
    Catalog, Climb, DiskId, DiskName, DomainName, Drill, Manifest, PointId,
};

/// A mark that is younger than this may be that of a guest that is being backed up now, by a run or by hand.
const MARK_AGE_MIN_S: u64 = 120;

/// Whose points are asked for.
#[derive(Debug, Clone)]
pub(in super::super) struct Of {
    /// What the guest is called in repositories.
    pub domain: DomainName,
    /// One disk of it alone: that of an image.
    pub disk: Option<DiskName>,
    /// Its UUID, where libvirt says it.
    pub uuid: Option<String>,
}

impl Of {
    /// The points of all that has a name.
    pub fn all(domain: &DomainName) -> Self {
        Self { domain: domain.clone(), disk: None, uuid: None }
    }

    /// Those of what a job backs up.
    pub fn subject(guests: &Guests, subject: &Subject) -> Option<Self> {
        let domain = guests.domain_of(subject).ok()?;
        let uuid = match subject {
            Subject::Guest { name, .. } => guests.uuid(name).map(str::to_owned),
            _ => None,
        };
        Some(Self { domain, disk: guests.disk_of(subject), uuid })
    }
}

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
    /// The UUID of the guest that is asked for, where libvirt says it: another may have had its name.
    uuid: Option<String>,
    /// All that can be read and are not removed, the oldest first, and whether each can be restored whole.
    pub all: Vec<(Manifest, bool)>,
    /// When each was proved.
    pub proofs: BTreeMap<PointId, Option<jiff::Timestamp>>,
    oldest_at: Option<jiff::Timestamp>,
    proved_at: Option<jiff::Timestamp>,
    never_proved: usize,
    last_drill: Option<Drill>,
    /// When the last drill that passed began.
    drilled_at: Option<jiff::Timestamp>,
}

/// So many warnings of one piece of work are findings of their own.
const WARNINGS_MAX: usize = 20;

impl Look<'_> {
    /// How the guests and images of all jobs stand.
    pub(super) fn guests(&mut self) -> Vec<GuestStatus> {
        let mut wanted: BTreeMap<String, Vec<(&str, &Job, Subject)>> = BTreeMap::new();
        for (name, job) in &self.config.jobs {
            for subject in self.guests.of(job) {
                wanted.entry(subject.name()).or_default().push((name, job, subject));
            }
        }
        wanted.into_values().filter_map(|mut jobs| self.guest(&mut jobs)).collect()
    }

    /// How a guest stands that these jobs back up.
    fn guest(&mut self, jobs: &mut [(&str, &Job, Subject)]) -> Option<GuestStatus> {
        // What the strictest job asks for.
        jobs.sort_by_key(|(_, job, _)| job.rpo.map_or(Duration::MAX, |rpo| rpo.0));
        let (name, job, subject) = jobs.first()?;
        let guest = subject.name();
        for (name, _, _) in jobs.iter() {
            self.act_of_guest_failed(name, Act::Backup, &guest);
            self.copy_failed(name, &guest, subject);
        }
        for name in self.left_failed(&guest, jobs) {
            self.act_of_guest_failed(&name, Act::Backup, &guest);
        }
        let mut standing = GuestStatus {
            guest: guest.clone(),
            job: (*name).to_owned(),
            level: Level::Ok,
            points: None,
            newest: None,
            newest_at: None,
            safe_until: None,
            oldest_at: None,
            frozen_ms: None,
            rpo: job.rpo,
            proved_at: None,
            never_proved: None,
            drilled_at: None,
            drilled: None,
            recovery: None,
            rto: jobs.iter().filter_map(|(_, job, _)| job.rto).min(),
            copies: Vec::new(),
        };
        let own = self.place_of(name, job);
        if !self.catalogs.contains_key(&own) {
            // Nothing is known of it: that it can't be opened is a finding of its own.
            standing.level = Level::Critical;
        }
        let Some(of) = Of::subject(self.guests, subject) else { return Some(standing) };
        // Each repository for itself, with the jobs that back up into it.
        let mut places: BTreeMap<String, Vec<&(&str, &Job, Subject)>> = BTreeMap::new();
        for it in jobs.iter() {
            places.entry(self.place_of(it.0, it.1)).or_default().push(it);
        }
        for (place, jobs) in &places {
            let Some(opened) = self.catalogs.get(place) else { continue };
            let is_frozen = self.is_frozen(&opened.catalog, &of.domain);
            let points = match opened.points(&of, self.now) {
                Ok(points) => points,
                Err(error) => {
                    self.trouble(FindingCode::Repository, &guest, &error);
                    continue;
                }
            };
            if is_frozen {
                self.frozen(&guest);
            }
            if *place == own {
                points.stand(&mut standing);
            }
            let before = self.findings.len();
            self.ages(&guest, jobs, &points);
            self.damage(&guest, &points);
            self.drill(&guest, jobs.iter().any(|(_, job, _)| job.drill.is_some()), &points);
            self.lost(&guest, &of.domain, place);
            self.left_out(&guest, jobs, &points);
            for (name, ..) in jobs {
                self.count_late(name, &guest, &points);
                self.count_proved(name, &points);
            }
            self.copies(&of, jobs, &points, &mut standing);
            for finding in self.findings.iter_mut().skip(before).filter(|it| it.job.is_none()) {
                finding.job = jobs.first().map(|(name, _, _)| (*name).to_owned());
            }
        }
        Some(standing)
    }

    /// The name of the repository of a job; no name if the file does not say.
    fn place_of(&self, name: &str, job: &Job) -> String {
        self.config.repository_of(name, job).map_or("", |(name, _)| name).to_owned()
    }

    fn frozen(&mut self, guest: &str) {
        let text = "it may still be frozen: the mark of a freeze was never taken away".to_owned();
        let advice = format!("virsh domfsthaw {}; the next backup thaws it, too", operand(guest));
        self.advise(Level::Critical, FindingCode::Frozen, guest, text, &advice);
    }

    /// The jobs that do not mean a guest any more, or are not in the file, and whose last backup of it failed: that is
    /// over when any job has backed it up, and not when it is given to another, or one gets another name.
    fn left_failed(&self, guest: &str, jobs: &[(&str, &Job, Subject)]) -> Vec<String> {
        let own = || self.memory.backups().filter(|(_, it, _)| *it == guest);
        let made = own().filter_map(|(_, _, past)| Some(past.success?.began)).max();
        let is_failed = |record: &Record| record.end.is_trouble() && record.end != End::Gone;
        let left = own().filter(|(job, _, past)| {
            let last = past.last.filter(|last| is_failed(last) && Some(last.began) > made);
            last.is_some() && !jobs.iter().any(|(name, ..)| name == job)
        });
        left.map(|(job, ..)| job.to_owned()).collect()
    }

    /// Whether a mark says that the guest was frozen and never thawed.
    fn is_frozen(&self, catalog: &Catalog, domain: &DomainName) -> bool {
        let Ok(mark) = catalog.repository().frozen_mark(domain) else { return false };
        let Ok(found) = std::fs::symlink_metadata(&mark) else { return false };
        let age = found.modified().ok().and_then(|time| time.elapsed().ok());
        age.is_none_or(|age| age.as_secs() >= MARK_AGE_MIN_S)
    }

    /// The last backup or copy by a job did not work, or has warnings.
    pub(super) fn act_of_guest_failed(&mut self, job: &str, act: Act, guest: &str) {
        let past = self.memory.of(Some(job), act, Some(guest));
        let Some(last) = past.last else { return };
        let (level, text) = match last.end {
            End::Failed => (Level::Critical, format!("{act} failed: {}", last.text)),
            End::Interrupted | End::NotTried => {
                (Level::Warning, format!("{act} {}: {}", last.end, last.text))
            }
            End::Warned => return self.warned(job, act, guest, last),
            _ => return,
        };
        if let Some(finding) = self.find(level, FindingCode::Failed, guest, text) {
            (finding.advice, finding.since) = (last.advice.clone(), Some(last.began));
        }
        self.of_job(job, Some(act));
    }

    /// What was done has warnings: each is a finding of its own, else one that stays would hide all others.
    pub(super) fn warned(&mut self, job: &str, act: Act, subject: &str, last: &Record) {
        let of = if subject == job { format!("{act}: ") } else { String::new() };
        let (shown, rest) = last.warnings.split_at(last.warnings.len().min(WARNINGS_MAX));
        for warning in shown {
            let text = format!("{of}{}", warning.text);
            if let Some(finding) = self.find(Level::Warning, FindingCode::Warned, subject, text) {
                (finding.advice, finding.since) = (warning.advice.clone(), Some(last.began));
            }
            self.of_job(job, Some(act));
        }
        if !rest.is_empty() {
            let text = format!("{of}and {} more warnings", rest.len());
            let advice = format!("qdelta history {} --json has all", option("--job", job));
            self.advise(Level::Warning, FindingCode::Warned, subject, text, &advice);
            self.of_job(job, Some(act));
        }
    }

    /// The newest good points against what each job asks for, of one repository; the strictest job first.
    fn ages(&mut self, guest: &str, jobs: &[&(&str, &Job, Subject)], points: &Points) {
        let Some(newest) = &points.newest else {
            if let Some((name, job, _)) = jobs.first() {
                self.no_point(guest, name, job);
            }
            return;
        };
        let mut told = BTreeSet::new();
        for (name, job, subject) in jobs {
            let wanted = self.guests.disks_to_take(subject);
            let Some((found, rpo, of)) = points.behind(newest, &wanted, job.rpo, self.now) else {
                continue;
            };
            if !told.insert(found.point) {
                continue;
            }
            let age = self.now.as_second() - found.created.as_second();
            let text = format!(
                "its newest good point{of} is {} old, and its RPO is {rpo}",
                duration::age(age)
            );
            let since = found.created;
            if let Some(finding) = self.find(Level::Critical, FindingCode::Rpo, guest, text) {
                finding.since = Some(since);
                finding.advice =
                    Some(format!("qdelta history {} says what happened", option("--guest", guest)));
            }
            self.of_job(name, None);
        }
    }

    /// A guest of a job without a good point.
    fn no_point(&mut self, guest: &str, name: &str, job: &Job) {
        let advice = format!("qdelta run {name} makes one now");
        if job.rpo.is_none() && job.schedule.is_empty() {
            // Nothing is promised of it, and yet nobody may think that it is backed up.
            let text = format!("it has no point: {name} is done only when somebody names it");
            self.advise(Level::Warning, FindingCode::NoPoint, guest, text, &advice);
            return;
        }
        let was_tried = self.memory.of(Some(name), Act::Backup, None).last;
        let own = self.memory.of(Some(name), Act::Backup, Some(guest)).last;
        let is_new = was_tried.is_some_and(|record| {
            record.end == End::Seen || (own.is_none() && !job.schedule.is_empty())
        });
        let is_coming = job.schedule.iter().any(|it| it.next(self.now, &self.zone).is_some());
        let is_waiting = is_new && is_coming && self.overdue(name, job, Act::Backup).is_none();
        let (level, text) = match is_waiting {
            true => (Level::Warning, "it has no point yet: its first backup is still to come"),
            false => (Level::Critical, "it has no good point"),
        };
        self.advise(level, FindingCode::NoPoint, guest, text.to_owned(), &advice);
    }

    /// Damaged points.
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
    }

    /// A last drill that did not pass. How far one should come, only the file says.
    fn drill(&mut self, guest: &str, is_asked_for: bool, points: &Points) {
        let Some(drill) = &points.last_drill else { return };
        let step = drill.steps.iter().find(|step| step.result != Climb::Passed);
        let (level, text) = match (drill.result, step) {
            (Climb::Passed, _) => return,
            (Climb::Failed, Some(step)) if step.result == Climb::Failed => {
                (Level::Critical, format!("its last drill failed at {}: {}", step.rung, step.text))
            }
            (Climb::Failed, _) => {
                let missed = drill.missed.join(", ");
                (Level::Critical, format!("its last drill missed its target: {missed}"))
            }
            (Climb::NotTried, _) if !is_asked_for => return,
            (Climb::NotTried, step) => {
                let why = step
                    .map_or(String::new(), |it| format!("{} was not tried: {}", it.rung, it.text));
                (Level::Warning, format!("its last drill did not come to {}: {why}", drill.wanted))
            }
        };
        let since = drill.began;
        if let Some(finding) = self.find(level, FindingCode::Drill, guest, text) {
            finding.since = Some(since);
            finding.advice = Some(format!("qdelta drill {} tries it again", operand(guest)));
        }
    }

    /// Disks that the guest has now and that are not in its newest point. One that some job leaves out need only be in
    /// some point: how old that may be, the job says that takes it.
    fn left_out(&mut self, guest: &str, jobs: &[&(&str, &Job, Subject)], points: &Points) {
        let Some(newest) = &points.newest else { return };
        let taken = jobs.iter().flat_map(|(_, _, subject)| self.guests.disks_to_take(subject));
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        taken.for_each(|disk| *count.entry(disk).or_default() += 1);
        let is_missing = |(disk, count): &(String, usize)| {
            let is_somewhere = *count < jobs.len() && points.newest_with(disk).is_some();
            !has_disk(newest, disk) && !is_somewhere
        };
        let missing: Vec<String> =
            count.into_iter().filter(is_missing).map(|(disk, _)| disk).collect();
        if !missing.is_empty() {
            let plural = if missing.len() == 1 { "disk" } else { "disks" };
            let text = format!("{plural} {} not in its newest point", missing.join(", "));
            let advice = "a disk that is new is in the next one; else see why it is left out";
            self.advise(Level::Warning, FindingCode::LeftOut, guest, text, advice);
        }
    }
}

/// Whether a disk is in a point.
fn has_disk(manifest: &Manifest, disk: &str) -> bool {
    manifest.disks.iter().any(|record| record.disk.as_str() == disk)
}

impl Points {
    /// The point that is older than an RPO allows, and the words for the disk that no newer one has: of the newest points
    /// with each disk that a job takes, the oldest. Another job, which leaves a disk out, may have made the newest one.
    pub(super) fn behind<'a>(
        &'a self,
        newest: &'a Manifest,
        wanted: &[String],
        rpo: Option<Stretch>,
        now: jiff::Timestamp,
    ) -> Option<(&'a Manifest, Stretch, String)> {
        let of_disks = wanted.iter().filter_map(|disk| Some((self.newest_with(disk)?, Some(disk))));
        let oldest = of_disks.min_by_key(|(it, _)| it.point);
        let (found, disk) = oldest.unwrap_or((newest, None));
        let age = now.as_second() - found.created.as_second();
        let is_over = |rpo: &Stretch| u64::try_from(age).is_ok_and(|age| age > rpo.0.as_secs());
        let disk = disk.filter(|_| found.point != newest.point);
        let of = disk.map_or(String::new(), |disk| format!(" with disk {disk}"));
        Some((found, rpo.filter(is_over)?, of))
    }

    /// The newest good point that has a disk.
    pub(in super::super) fn newest_with(&self, disk: &str) -> Option<&Manifest> {
        self.good().filter(|it| has_disk(it, disk)).max_by_key(|it| it.point)
    }

    /// The good points, of the very guest where that is known.
    pub(super) fn good(&self) -> impl Iterator<Item = &Manifest> {
        let is_own = |it: &Manifest| {
            let had = it.machine.as_ref().and_then(|machine| machine.uuid.as_ref());
            self.uuid.as_ref().zip(had).is_none_or(|(own, had)| own.eq_ignore_ascii_case(had))
        };
        let good = self.all.iter().filter(|(_, is_good)| *is_good).map(|(manifest, _)| manifest);
        // A snapshot is older than its point: it is no newest state.
        good.filter(move |it| is_own(it) && !it.is_of_snapshots())
    }

    /// How the guest of these points stands.
    fn stand(&self, standing: &mut GuestStatus) {
        standing.points = Some(self.count);
        standing.newest = self.newest.as_ref().map(|manifest| manifest.point);
        standing.newest_at = self.newest.as_ref().map(|manifest| manifest.created);
        standing.safe_until = self.safe_until;
        standing.oldest_at = self.oldest_at;
        standing.frozen_ms = self.newest.as_ref().and_then(frozen_ms);
        standing.proved_at = self.proved_at;
        standing.never_proved = Some(self.never_proved);
        standing.drilled_at = self.drilled_at;
        if let Some(drill) = &self.last_drill {
            standing.drilled = Some(drill.result);
            standing.recovery = drill.recovery;
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

    /// What is known of the points of a guest, or of one disk of them.
    pub(in super::super) fn points(
        &self,
        Of { domain, disk: only, uuid }: &Of,
        now: jiff::Timestamp,
    ) -> Result<Points> {
        let catalog = &self.catalog;
        let mut drills = catalog.repository().drills(domain);
        let passed = drills.iter().rfind(|drill| drill.result == Climb::Passed);
        let mut found = Points {
            drilled_at: passed.map(|drill| drill.began),
            uuid: uuid.clone(),
            ..Points::default()
        };
        found.last_drill = drills.pop();
        if !self.domains.contains(domain) {
            return Ok(found);
        }
        let mut bad: BTreeSet<PointId> = BTreeSet::new();
        let mut proofs: BTreeMap<PointId, Option<jiff::Timestamp>> = BTreeMap::new();
        let is_meant = |disk: &DiskName| only.as_ref().is_none_or(|only| only == disk);
        for disk in catalog.disks_of(domain)?.into_iter().filter(|it| is_meant(&it.disk)) {
            of_disk(catalog, &disk, now, &mut bad, &mut proofs)?;
        }
        for (point, manifest) in catalog.manifests(domain)? {
            match manifest {
                Ok(manifest) if manifest.removed.is_some() => {
                    proofs.remove(&point);
                }
                Ok(manifest) if !manifest.disks.iter().any(|it| is_meant(&it.disk)) => {}
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
        found.newest = found.good().max_by_key(|manifest| manifest.point).cloned();
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
