//! The disks of one point: taken together, written one after the other, and none without the others.

use std::path::Path;

use qdelta_formats::archive::Consistency;

use super::disk::{self, Written};
use super::{AnchorChoice, Options, internal, leave};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::base::warning::Warning;
use crate::disk::image::OpenOptions;
use crate::flows::anchors::Tag;
use crate::flows::capture::Captured;
use crate::flows::report::StoredSnapshot;
use crate::flows::tracking::Tracked;
use crate::vault::point::Base;
use crate::vault::repository::{Catalog, DiskId, DomainLock, Point, PointId};

/// A disk that is about to be read.
pub(super) struct Ready<'a> {
    /// Its name in the repository.
    pub disk: &'a DiskId,
    /// The image.
    pub image: &'a Path,
    /// How to open it.
    pub open: &'a OpenOptions,
    /// What it is compared with.
    pub base: Base,
    pub tag: Tag,
    /// The bitmap that is named counted at an earlier point and at the latest one no more: it was found wrong or
    /// given up, and is not believed again.
    pub is_spent: bool,
    /// What the admin should know of it.
    pub notes: Vec<Warning>,
    /// What has changed, if that is known already.
    pub tracked: Option<Tracked>,
    /// The snapshots of the disk that were stored before.
    pub stored: Vec<StoredSnapshot>,
}

impl<'a> Ready<'a> {
    /// Opens what the new archive is made against: that may take a while, and may fail.
    pub fn new(
        catalog: &Catalog,
        disk: &'a DiskId,
        image: &'a Path,
        open: &'a OpenOptions,
        options: &Options,
    ) -> Result<Self> {
        let base = Base::choose(catalog, disk, options.kind)?;
        let tag = Tag::new(catalog.repository(), disk);
        let is_spent = is_spent(catalog, disk, &base, options)?;
        let (notes, tracked, stored) = (Vec::new(), None, Vec::new());
        Ok(Self { disk, image, open, base, tag, is_spent, notes, tracked, stored })
    }
}

/// Whether the bitmap that is named was the anchor of an earlier point, and is not that of the latest one.
fn is_spent(catalog: &Catalog, disk: &DiskId, base: &Base, options: &Options) -> Result<bool> {
    let (AnchorChoice::Begun(name), Some(latest)) = (&options.anchor, &base.latest) else {
        return Ok(false);
    };
    let has_it = |point: &Point| point.record.anchor.as_ref().is_some_and(|it| it.name == *name);
    Ok(!has_it(latest) && catalog.latest_first(disk)?.any(|point| has_it(&point)))
}

/// What the disks of a point have in common.
#[derive(Clone, Copy)]
pub(super) struct Together<'a> {
    pub catalog: &'a Catalog,
    pub lock: &'a DomainLock,
    pub point: PointId,
    pub options: &'a Options,
    pub observer: &'a dyn Observer,
    /// How many ids before the point are free for the snapshots in the images; none if they are not to be stored.
    pub snapshots: Option<u64>,
}

impl<'a> Together<'a> {
    /// Takes disks that nobody writes to: none can be written to before all are taken, so they are of
    /// one moment. If one can't be had, no anchor is left in any.
    pub fn take(&self, ready: &[Ready<'_>]) -> Result<Vec<Captured>> {
        let mut sources = Vec::new();
        for disk in ready {
            let leave = leave(self.options, disk.open, &disk.base, &disk.tag, self.point);
            let leave = leave.filter(|_| !disk.is_spent);
            let take = || Captured::take(disk.image, disk.open, leave.as_ref());
            // Before an anchor is written into an image, that is proved to be sound.
            let observer: &dyn Observer = &OfDisk::new(self.observer, disk.disk);
            let taken = match leave.as_ref().is_some_and(|leave| leave.is_in_image()) {
                true => observer.step("check", take),
                false => take(),
            };
            match taken {
                Ok(source) => sources.push(source),
                Err(error) => {
                    sources.into_iter().for_each(Captured::discard);
                    return Err(about(disk.disk, ready.len(), error));
                }
            }
        }
        sources.iter_mut().for_each(Captured::let_go);
        Ok(sources)
    }

    /// Writes the archive of every disk. If one fails, none is left. The snapshots in their images become points
    /// before, if they are to.
    pub fn write(
        &self,
        mut ready: Vec<Ready<'a>>,
        sources: Vec<Captured>,
        consistency: Consistency,
        cancel: &Cancel,
    ) -> Result<Vec<Written<'a>>> {
        let (mut written, count) = (Vec::new(), ready.len());
        if let Err(error) = internal::store(self, &mut ready, &sources, cancel) {
            sources.into_iter().for_each(Captured::discard);
            return Err(error.within("cannot store the snapshots in the images"));
        }
        let mut disks = ready.into_iter().zip(sources);
        while let Some((disk, mut source)) = disks.next() {
            source.warnings.splice(..0, disk.notes);
            let job = disk::DiskBackup {
                catalog: self.catalog,
                lock: self.lock,
                point: self.point,
                disk: disk.disk,
                consistency,
                options: self.options,
                base: disk.base,
                source,
                tracked: disk.tracked,
                stored: disk.stored,
            };
            match disk::write(job, self.observer, cancel) {
                Ok(done) => written.push(done),
                Err(error) => {
                    self.catalog.note_damage(&error);
                    written.into_iter().for_each(|done: Written<'_>| done.rest.discard());
                    disks.for_each(|(_, source)| source.discard());
                    return Err(about(disk.disk, count, error));
                }
            }
        }
        Ok(written)
    }
}

/// Says which disk it is that failed, if there are several.
pub(super) fn about(disk: &DiskId, count: usize, error: Error) -> Error {
    if count > 1 { error.within(format!("cannot back up disk {}", disk.disk)) } else { error }
}
