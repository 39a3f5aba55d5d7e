//! The order of a roll back: all that may fail comes before the safety point, and the safety point comes
//! before anything is written.

use std::time::Instant;

use super::ready::{Ready, Run};
use super::{InPlaceOptions, RollBack, room};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::image::OpenOptions;
use crate::disk::sys::patience;
use crate::flows::backup::{self, AnchorChoice, ImageRequest};
use crate::flows::report::InPlaceReport;
use crate::vault::repository::{Catalog, DiskSpec, PointId, Repository};

/// Holds all images, makes a safety point of what is there, and then writes one after the other.
pub(super) fn roll_back(
    catalog: &Catalog,
    jobs: &[RollBack],
    options: &InPlaceOptions,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<InPlaceReport>> {
    let started = Instant::now();
    let run = Run { options, observer, cancel };
    let write_all = || {
        let mut ready = Ready::all(catalog, jobs, run)?;
        let safety = options.safety_point;
        let safety = safety.then(|| make_safety_point(catalog.repository(), jobs, run));
        write(&mut ready, safety.transpose()?, run)
    };
    let mut reports = write_all().inspect_err(|error| catalog.note_damage(error))?;
    if let [only] = reports.as_mut_slice() {
        only.seconds = started.elapsed().as_secs_f64();
    }
    Ok(reports)
}

/// Makes all images the disks of the point.
fn write(
    ready: &mut [Ready<'_>],
    safety: Option<PointId>,
    run: Run<'_>,
) -> Result<Vec<InPlaceReport>> {
    let mut reports: Vec<InPlaceReport> = Vec::new();
    let count = ready.len();
    let failed = |error, job: &RollBack, reports: &[InPlaceReport], begun| {
        explained(error, job, (reports, count), begun, safety)
    };
    for disk in ready.iter() {
        disk.check_unchanged().map_err(|error| failed(error, disk.job, &[], false))?;
    }
    if safety.is_some() {
        for disk in ready.iter_mut() {
            let dropped = disk.drop_anchor(run);
            dropped.map_err(|error| failed(error, disk.job, &[], false))?;
        }
        // The safety point may lie where the images do.
        if let (Some(first), Err(error)) = (ready.first(), check_room(ready)) {
            return Err(failed(error, first.job, &[], false));
        }
    }
    for disk in ready.iter() {
        let (job, started, begun) = (disk.job, Instant::now(), !reports.is_empty());
        disk.check_guests(run).map_err(|error| failed(error, job, &reports, begun))?;
        disk.write(run).map_err(|error| failed(error, job, &reports, true))?;
        reports.push(disk.report(safety, started));
    }
    for disk in ready.iter() {
        disk.check_unused(run).map_err(|error| failed(error, disk.job, &reports, true))?;
    }
    Ok(reports)
}

/// Looks once more whether there is room. Of what was removed a moment ago, some filesystems give the
/// room back later.
fn check_room(ready: &[Ready<'_>]) -> Result<()> {
    let mut last = Ok(());
    patience::wait_until(|| {
        last = room::check(ready);
        let is_full = last.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace);
        Ok::<bool, Error>(!is_full)
    })?;
    last
}

/// An error after the safety point: which of all disks are done, how to go on, and where that is what was
/// there before. If nothing was written yet, somebody else may have, and there is to be another one.
fn explained(
    error: Error,
    job: &RollBack,
    (done, count): (&[InPlaceReport], usize),
    begun: bool,
    safety: Option<PointId>,
) -> Error {
    let advice = error.advice().map(|advice| format!("{advice}; ")).unwrap_or_default();
    let mut text = format!("{} is not rolled back", job.disk);
    if count > 1 {
        let done: Vec<&str> = done.iter().map(|it| it.disk.as_str()).collect();
        let done = if done.is_empty() { "none".to_owned() } else { done.join(", ") };
        text += &format!(" (of its domain's disks: {done})");
    }
    let no_point = if begun { " and --no-point" } else { "" };
    let again = format!("{advice}run it again with the point's id {}{no_point}", job.point);
    error.within(text).advise(match safety {
        Some(safety) => format!("{again}; what was there before is safety point {safety}"),
        None => again,
    })
}

impl Ready<'_> {
    fn report(&self, safety: Option<PointId>, started: Instant) -> InPlaceReport {
        let (job, geometry) = (self.job, self.job.chain.geometry());
        InPlaceReport {
            disk: job.disk.to_string(),
            point: job.point,
            image: job.path.clone(),
            safety_point: safety,
            passed_over: job.passed_over,
            warnings: Vec::new(),
            virtual_size: geometry.virtual_size(),
            bytes_changed: self.wanted.differing.len() * u64::from(geometry.block_size()),
            root: job.chain.root(),
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// Makes one safety point of what is there.
fn make_safety_point(repository: &Repository, jobs: &[RollBack], run: Run<'_>) -> Result<PointId> {
    let image = |job: &RollBack| ImageRequest {
        path: job.path.clone(),
        open: OpenOptions { is_claimed: true, ..job.open.clone() },
        disk: Some(DiskSpec { domain: job.disk.domain.clone(), disk: Some(job.disk.disk.clone()) }),
    };
    let images: Vec<_> = jobs.iter().map(image).collect();
    let how = backup::Options {
        // The images are about to become others: nothing can be learned from them later.
        anchor: AnchorChoice::None,
        resources: run.options.resources,
        safety: true,
        ..backup::Options::default()
    };
    let reports = backup::run_together(repository, &images, &how, run.observer, run.cancel);
    let reports = reports.map_err(|error| {
        error
            .within("cannot make a safety point of what is there now")
            .advise("--no-point rolls back without one")
    })?;
    let first = reports.into_iter().next().map(|report| report.point);
    first.ok_or_else(|| Error::new(ErrorKind::Usage, "no disk"))
}
