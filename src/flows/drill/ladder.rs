//! One guest's way up.

use std::cell::RefCell;
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::boot::Boot;
use super::{DrillRequest, inside, tools};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::period::Period;
use crate::flows::mount::{Mount, MountRequest, PATIENCE};
use crate::flows::verify::{self, Target, VerifyRequest};
use crate::vault::point::OpenPoints;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, Climb, DiskAt, DiskId, DomainName, Drill, Manifest, Part, PointId, Repository, Root,
    Rung, Selector, Step, Targets,
};

/// What the name of the folder of every ladder begins with.
pub(super) const PREFIX: &str = "drill-";
/// The folder in it that the points are mounted on.
pub(super) const POINTS: &str = "points";

/// What a ladder stands on.
pub(super) struct Ladder<'a> {
    pub catalog: Catalog,
    pub request: &'a DrillRequest,
    targets: Targets,
    pub observer: &'a dyn Observer,
    pub cancel: &'a Cancel,
    /// A folder for what the programs need; it goes with the ladder.
    pub scratch: tempfile::TempDir,
}

/// How long a drill is held against later ones, in days: what a guest has given up meanwhile is no damage
/// for ever.
const HELD_DAYS: u16 = 30;

/// The guest that climbs.
pub(super) struct Guest {
    pub domain: DomainName,
    pub manifest: Manifest,
    pub disks: Vec<DiskId>,
    /// What it has shown not long ago.
    past: Vec<Drill>,
    /// The points as files, once somebody needs them as such; or why they can't be had.
    mount: RefCell<Option<Result<Mount>>>,
}

/// What came of a rung: its result, what was seen, and of which parts.
pub(super) struct Found {
    pub result: Climb,
    pub text: String,
    pub parts: Vec<Part>,
}

impl Found {
    /// Without parts.
    pub fn new(result: Climb, text: impl Into<String>) -> Self {
        Self { result, text: text.into(), parts: Vec::new() }
    }

    /// What its parts come to: it passed if something did and all else that there is did, too.
    pub fn of(parts: Vec<Part>, nothing: &str) -> Self {
        let result = parts.iter().map(|part| part.result).max().unwrap_or(Climb::NotTried);
        let told = parts.iter().filter(|part| part.result == result);
        let told: Vec<_> = told.map(|part| format!("{}: {}", part.name, part.text)).collect();
        let text = if told.is_empty() { nothing.to_owned() } else { told.join("; ") };
        Self { result, text, parts }
    }
}

impl<'a> Ladder<'a> {
    /// A ladder with a folder of its own.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn new(
        repository: &Repository,
        request: &'a DrillRequest,
        targets: Targets,
        observer: &'a dyn Observer,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let failed = |error| Error::io("make a folder in", &request.folder, error);
        let scratch = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&request.folder);
        let scratch = scratch.map_err(failed)?;
        Ok(Self { catalog: repository.catalog(), request, targets, observer, cancel, scratch })
    }

    /// Drills a guest.
    ///
    /// # Errors
    /// It has no such point, or one that can't be told; somebody asked to stop.
    pub fn climb(&self, domain: &DomainName, selector: &Selector) -> Result<Drill> {
        let (began, started) = (clock::now()?, Instant::now());
        let manifest = self.catalog.resolve_domain(domain, selector)?;
        let disks = manifest.guest_disks().map(|record| record.disk.clone());
        let disks = disks.map(|disk| DiskId { domain: domain.clone(), disk }).collect();
        let mut past = self.catalog.repository().drills(domain);
        let since = Period::days(HELD_DAYS).before(began, &TimeZone::UTC);
        past.retain(|drill| drill.began >= since);
        let mount = RefCell::new(None);
        let guest = Guest { domain: domain.clone(), manifest, disks, past, mount };
        let point = guest.manifest.point;
        let mut drill = Drill {
            began,
            point,
            roots: guest.manifest.disks.iter().map(|it| (it.disk.clone(), Root(it.root))).collect(),
            steps: Vec::new(),
            reached: None,
            wanted: self.request.wanted,
            result: Climb::NotTried,
            age: seconds_between(point.time(), began),
            gap: self.gap(&guest, point)?,
            recovery: None,
            missed: Vec::new(),
            screenshot: None,
            console: None,
            seconds: 0.0,
        };
        let stopped = self.climb_offline(&guest, &mut drill)?;
        self.climb_running(&guest, &mut drill, stopped)?;
        self.settle(&mut drill);
        drill.seconds = started.elapsed().as_secs_f64();
        Ok(drill)
    }

    /// The time between a point and the one before it.
    fn gap(&self, guest: &Guest, point: PointId) -> Result<Option<f64>> {
        let Some(disk) = guest.disks.first() else { return Ok(None) };
        let mut before = self
            .catalog
            .latest_first(disk)?
            .filter(|it| it.id < point && !it.safety && !it.is_of_snapshot());
        Ok(before.next().map(|before| seconds_between(before.id.time(), point.time())))
    }

    /// The rungs that need no running guest; the one that failed, if one did.
    fn climb_offline(&self, guest: &Guest, drill: &mut Drill) -> Result<Option<Rung>> {
        let points = OpenPoints::new(self.catalog.repository().clone(), self.cancel);
        let wait = Wait::by(self.observer, self.cancel);
        let mut volumes = Vec::new();
        for rung in [Rung::Bytes, Rung::Partitions, Rung::Filesystems, Rung::Check] {
            self.cancel.check()?;
            let started = Instant::now();
            let failed = drill.steps.iter().find(|step| step.result == Climb::Failed);
            let found = match (failed, rung) {
                (Some(step), _) => Found::new(Climb::NotTried, format!("{} failed", step.rung)),
                (None, _) if rung > drill.wanted => {
                    Found::new(Climb::NotTried, format!("only {} was asked for", drill.wanted))
                }
                (None, Rung::Bytes) => self.prove(guest)?,
                (None, Rung::Partitions) => inside::partitions(&points, guest, &mut volumes, wait),
                (None, Rung::Filesystems) => inside::filesystems(guest, &volumes),
                (None, _) => self
                    .observer
                    .step("check filesystems", || tools::check(self, guest, &volumes))?,
            };
            drill.steps.push(found.into_step(rung, started));
        }
        let failed = drill.steps.iter().find(|step| step.result == Climb::Failed);
        Ok(failed.map(|step| step.rung))
    }

    /// Proves every byte of the point.
    fn prove(&self, guest: &Guest) -> Result<Found> {
        let request = VerifyRequest {
            targets: vec![Target {
                disk: guest.domain.as_str().parse()?,
                point: Some(Selector::Id(guest.manifest.point.to_string())),
            }],
            quick: false,
            scrub: None,
            resources: self.request.resources,
        };
        let repository = self.catalog.repository();
        let report = verify::run(repository, &request, self.observer, self.cancel)?;
        Ok(match report.findings.first() {
            None if report.proved => {
                let roots = guest.disks.len();
                let text =
                    format!("{} bytes proved, {roots} of {roots} roots", report.bytes_verified);
                Found::new(Climb::Passed, text)
            }
            None => Found::new(Climb::NotTried, "nothing was proved"),
            Some(finding) => Found::new(Climb::Failed, finding.problem.clone()),
        })
    }

    /// The rungs of the running guest.
    fn climb_running(&self, guest: &Guest, drill: &mut Drill, failed: Option<Rung>) -> Result<()> {
        let not_tried = match (failed, &self.request.boot_command) {
            (Some(rung), _) => Err(format!("{rung} failed")),
            (None, _) if drill.wanted < Rung::Boot => {
                Err(format!("only {} was asked for", drill.wanted))
            }
            (None, None) => Err("no --boot-command was named".to_owned()),
            (None, Some(command)) => Ok(Boot::new(self, guest, command)),
        };
        match not_tried {
            Ok(boot) => self.observer.step("boot", || boot.run(drill)),
            Err(why) => {
                for rung in [Rung::Boot, Rung::Agent, Rung::Service] {
                    let found = Found::new(Climb::NotTried, why.clone());
                    drill.steps.push(found.into_step(rung, Instant::now()));
                }
                Ok(())
            }
        }
    }

    /// Sums the drill up.
    fn settle(&self, drill: &mut Drill) {
        let passed = drill.steps.iter().filter(|step| step.result == Climb::Passed);
        drill.reached = passed.map(|step| step.rung).max();
        let said = |seconds: f64| duration::shown(std::time::Duration::from_secs_f64(seconds));
        if let Some(rto) = self.targets.rto
            && let Some(recovery) = drill.recovery.filter(|it| *it > rto.0.as_secs_f64())
        {
            drill
                .missed
                .push(format!("the agent answered after {}, and RTO is {rto}", said(recovery)));
        }
        if let Some(rpo) = self.targets.rpo {
            let limit = rpo.0.as_secs_f64();
            if drill.age > limit {
                let age = said(drill.age.max(0.0));
                drill.missed.push(format!("the point is {age} old, and RPO is {rpo}"));
            }
            if let Some(gap) = drill.gap.filter(|gap| *gap > limit) {
                let gap = said(gap.max(0.0));
                let text = format!("the point before it was made {gap} earlier, and RPO is {rpo}");
                drill.missed.push(text);
            }
        }
        let has_failed = drill.steps.iter().any(|step| step.result == Climb::Failed);
        let wanted = drill.steps.iter().find(|step| step.rung == drill.wanted);
        drill.result = match wanted.map(|step| step.result) {
            _ if has_failed || !drill.missed.is_empty() => Climb::Failed,
            Some(result) => result,
            None => Climb::NotTried,
        };
    }
}

impl Guest {
    /// What a part of a rung was when it passed last, not long ago, and when that was.
    pub fn was(&self, rung: Rung, name: &str) -> Option<String> {
        self.past.iter().rev().find_map(|drill| {
            let parts = drill.steps.iter().filter(|it| it.rung == rung).flat_map(|it| &it.parts);
            let mut passed = parts.filter(|part| part.result == Climb::Passed);
            let part = passed.find(|part| part.name == name)?;
            Some(format!("{} at the drill of {}", part.text, drill.began.strftime("%Y-%m-%d")))
        })
    }

    /// Where the file of a disk is: `name` is that of a volume, or of none for the whole disk.
    ///
    /// # Errors
    /// There are no such files here: the system lets nobody mount.
    pub fn file(
        &self,
        ladder: &Ladder<'_>,
        disk: &DiskId,
        volume: Option<&str>,
    ) -> Result<std::path::PathBuf> {
        let mut mount = self.mount.borrow_mut();
        let mount = mount.get_or_insert_with(|| self.mount(ladder)).as_ref();
        let mount = mount.map_err(Clone::clone)?;
        mount.file(disk, self.manifest.point, volume).ok_or_else(|| {
            Error::new(ErrorKind::Image, format!("{} is no file", volume.unwrap_or_default()))
        })
    }

    /// Something of the point that could not be read since somebody asked last.
    pub fn trouble(&self) -> Option<String> {
        let mount = self.mount.borrow();
        let mount = mount.as_ref()?.as_ref().ok()?;
        mount.warnings().last().map(|warning| warning.text)
    }

    fn mount(&self, ladder: &Ladder<'_>) -> Result<Mount> {
        let folder = ladder.scratch.path().join(POINTS);
        let failed = |error| Error::io("make", &folder, error);
        std::fs::create_dir(&folder).map_err(failed)?;
        let point = Selector::Id(self.manifest.point.to_string());
        let wanted = DiskAt { disk: self.domain.as_str().parse()?, point: Some(point) };
        let request = MountRequest { folder, wanted: vec![wanted], patience: PATIENCE };
        Mount::new(ladder.catalog.repository(), &request, ladder.cancel)
    }
}

impl Found {
    pub fn into_step(self, rung: Rung, started: Instant) -> Step {
        let seconds = started.elapsed().as_secs_f64();
        Step { rung, result: self.result, text: self.text, seconds, parts: self.parts }
    }
}

fn seconds_between(before: Timestamp, after: Timestamp) -> f64 {
    after.duration_since(before).as_secs_f64()
}
