//! The order of a roll back: all that may fail before anything is kept, and all that is kept before
//! anything is written.

use std::time::Instant;

use super::ready::{Ready, Run};
use super::{InPlaceOptions, InPlaceReport, Job, room};
use crate::backup::{self, AnchorChoice, ImageRequest};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::image::OpenOptions;
use crate::observer::Observer;
use crate::repository::{Anchor, DiskSpec, Repository, Selector};

/// Holds all images, keeps what is there, and then writes one after the other.
pub(super) fn roll_back(
    repository: &Repository,
    jobs: &[Job],
    options: &InPlaceOptions,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<InPlaceReport>> {
    let started = Instant::now();
    let run = Run { options, observer, cancel };
    let ready = Ready::all(jobs, run)?;
    let anchors = if options.keep { anchors(repository, jobs) } else { Vec::new() };
    let kept = options.keep.then(|| keep(repository, jobs, run)).transpose()?;
    let result = write(&ready, kept.as_deref(), run);
    drop(ready);
    for (job, anchor) in anchors {
        // It stood for the point before the one that was kept, and nobody asks for it any more.
        if let Err(error) = backup::remove_anchor(&job.path, &anchor) {
            tracing::info!(anchor = anchor.name, "the old anchor stays: {}", error.chain());
        }
    }
    let mut reports = result?;
    if let [only] = reports.as_mut_slice() {
        only.seconds = started.elapsed().as_secs_f64();
    }
    Ok(reports)
}

/// Makes all images the disks of the point.
fn write(ready: &[Ready<'_>], kept: Option<&str>, run: Run<'_>) -> Result<Vec<InPlaceReport>> {
    let mut reports: Vec<InPlaceReport> = Vec::new();
    let count = ready.len();
    let failed = |error, job: &Job, reports: &[InPlaceReport], begun| {
        explained(error, job, (reports, count), begun, kept)
    };
    if let (Some(first), true) = (ready.first(), kept.is_some()) {
        // What was kept may lie where the images do.
        room::check(ready).map_err(|error| failed(error, first.job, &[], false))?;
    }
    for disk in ready {
        disk.check_unchanged().map_err(|error| failed(error, disk.job, &[], false))?;
    }
    for disk in ready {
        let (job, started, begun) = (disk.job, Instant::now(), !reports.is_empty());
        disk.check_guests(run).map_err(|error| failed(error, job, &reports, begun))?;
        disk.write(run).map_err(|error| failed(error, job, &reports, true))?;
        reports.push(disk.report(kept, started));
    }
    for disk in ready {
        disk.check_unused(run).map_err(|error| failed(error, disk.job, &reports, true))?;
    }
    Ok(reports)
}

/// An error after what is there was kept: which of all disks are done, how to go on, and where that is
/// what was there before. If nothing was written yet, somebody else may have, and it is to be kept again.
fn explained(
    error: Error,
    job: &Job,
    (done, count): (&[InPlaceReport], usize),
    begun: bool,
    kept: Option<&str>,
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
    error.within(text).advise(match kept {
        Some(kept) => format!("{again}; what was there before is point {kept}"),
        None => again,
    })
}

impl Ready<'_> {
    fn report(&self, kept: Option<&str>, started: Instant) -> InPlaceReport {
        let (job, geometry) = (self.job, self.job.chain.geometry());
        InPlaceReport {
            disk: job.disk.to_string(),
            point: job.point.clone(),
            image: job.path.clone(),
            kept: kept.map(str::to_owned),
            warnings: Vec::new(),
            virtual_size: geometry.virtual_size(),
            bytes_changed: self.differing.len() * u64::from(geometry.block_size()),
            root: job.chain.root().to_string(),
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// What the points before have left for the next backup in the images.
fn anchors<'a>(repository: &Repository, jobs: &'a [Job]) -> Vec<(&'a Job, Anchor)> {
    let anchor = |job: &'a Job| {
        let latest = repository.resolve(&job.disk, &Selector::Latest).ok()?;
        Some((job, latest.record.anchor?))
    };
    jobs.iter().filter_map(anchor).collect()
}

/// Makes one point of what is there.
fn keep(repository: &Repository, jobs: &[Job], run: Run<'_>) -> Result<String> {
    let image = |job: &Job| ImageRequest {
        path: job.path.clone(),
        open: OpenOptions { is_claimed: true, ..job.open.clone() },
        disk: Some(DiskSpec { domain: job.disk.domain.clone(), disk: Some(job.disk.disk.clone()) }),
    };
    let images: Vec<_> = jobs.iter().map(image).collect();
    let how = backup::Options {
        // The images are about to become others: nothing can be learned from them later.
        anchor: AnchorChoice::None,
        resources: run.options.resources,
        kept: true,
        ..backup::Options::default()
    };
    let reports = backup::run_together(repository, &images, &how, run.observer, run.cancel);
    let reports = reports.map_err(|error| {
        error
            .within("cannot keep what is there now")
            .advise("--no-point rolls back without keeping it")
    })?;
    Ok(reports.into_iter().next().map(|report| report.point).unwrap_or_default())
}
