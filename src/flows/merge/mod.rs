//! Merging: archives that follow each other become one, which stands for the last of them. Of each
//! block the newest version stays; frames whose blocks all stand are copied as they are.

mod data_path;
mod estimate;
mod plan;
mod prove;
mod run;
mod walk;

use std::collections::BTreeSet;

use qdelta_formats::archive::{ArchiveId, Metadata};

use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, Recorder};
use crate::flows::report::MergeReport;
use crate::vault::chain::Stretch;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DomainLock, PointId, Repository, Selector, Wanted};

pub use estimate::{Estimate, estimate};
pub use plan::{DiskPath, Family, Step};
pub(crate) use prove::Groups;
use run::tidy_after;
pub(crate) use run::write_merged;
pub use run::{MergeOptions, Merger, tidy};

/// Which points are to become part of a later one.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// A guest, or one of its disks: then its points are meant.
    pub guest: Wanted,
    /// The first point that goes.
    pub from: Selector,
    /// The point that takes the place of all before.
    pub into: Selector,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// How to merge.
    pub options: MergeOptions,
}

/// Merges the points from one on into a later one, which stays; all before it go.
///
/// # Errors
/// [`ErrorKind::Usage`]: the later point does not build on the first, or something else needs a point that
/// would go. [`ErrorKind::Damaged`]: an archive is damaged. Whatever fails, no point is lost.
pub fn run(
    repository: &Repository,
    request: &MergeRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let recorder = Recorder::new(observer);
    let wait = Wait::by(&recorder, cancel);
    let catalog = repository.catalog();
    let disks = catalog.find_disks(&request.guest)?;
    catalog.warn_of_damage(&disks, &recorder);
    let none = || Error::new(ErrorKind::NotFound, format!("no disk {}", request.guest));
    let domain = disks.first().map(|disk| disk.domain.clone()).ok_or_else(none)?;
    let lock = match request.dry_run {
        true => None,
        false => Some(repository.lock(&domain, wait)?),
    };
    if let Some(lock) = &lock {
        repository.clean(lock)?;
        tidy(repository, lock, &recorder, cancel)?;
    }
    let catalog = repository.catalog();
    if lock.is_some() {
        catalog.check_listed(&domain, cancel)?;
        catalog.check_archives_listed(&domain)?;
    }
    let family = Family::read(&catalog, &domain)?;
    let disk = request.guest.disk().and_then(|_| disks.first());
    let find = |selector: &Selector| match disk {
        Some(disk) => catalog.resolve(disk, selector).map(|point| point.id),
        None => catalog.resolve_domain(&domain, selector).map(|manifest| manifest.point),
    };
    let (from, into) = (find(&request.from)?, find(&request.into)?);
    let absorbed = family.between(from, into, disk.map(|disk| &disk.disk))?;
    family.check_pins(&absorbed, clock::now()?)?;
    let step = family.step(&absorbed, into)?;
    let merger = Merger {
        catalog: &catalog,
        family: &family,
        options: &request.options,
        observer: &recorder,
        cancel,
    };
    let steps = std::slice::from_ref(&step);
    let reports = match &lock {
        None => merger.rehearse(steps)?,
        Some(lock) => {
            merger.check_room(&step)?;
            merger.run(lock, steps)?
        }
    };
    let mut report = reports.into_iter().next().ok_or_else(none)?;
    if let Some(lock) = &lock {
        report.waiting = !tidy_after(repository, lock, &recorder, cancel);
        repository.note_freed(&domain, report.bytes_freed);
        repository.keep_safe(&domain, &recorder);
    }
    report.warnings = recorder.take();
    Ok(report)
}

/// Makes a full of a point: its whole chain is merged, and no point goes. Nothing of the image is read.
///
/// # Errors
/// An archive is damaged, or something can't be read or written. Whatever fails, no point is lost.
pub(crate) fn synthesize(
    repository: &Repository,
    lock: &DomainLock,
    point: PointId,
    options: &MergeOptions,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let catalog = repository.catalog();
    let family = Family::read(&catalog, lock.domain())?;
    let step = family.step(&BTreeSet::new(), point)?;
    let merger = Merger { catalog: &catalog, family: &family, options, observer, cancel };
    merger.check_room(&step)?;
    let reports = merger.run(lock, std::slice::from_ref(&step))?;
    let none = || Error::new(ErrorKind::Io, "internal error: a merge without a result");
    let mut report = reports.into_iter().next().ok_or_else(none)?;
    report.waiting = !tidy_after(repository, lock, observer, cancel);
    repository.note_freed(lock.domain(), report.bytes_freed);
    Ok(report)
}

/// What the header of the merged archive says: it is of the newest point, and made against the parent
/// of the oldest.
fn metadata_of(stretch: &Stretch, id: ArchiveId) -> Metadata {
    let (oldest, newest) = (stretch.oldest().metadata(), stretch.newest().metadata());
    Metadata {
        archive_id: id,
        kind: oldest.kind,
        parent: oldest.parent.clone(),
        generator: concat!("qdelta ", env!("CARGO_PKG_VERSION")).to_owned(),
        extensions: Vec::new(),
        ..newest.clone()
    }
}

#[cfg(test)]
mod tests;
