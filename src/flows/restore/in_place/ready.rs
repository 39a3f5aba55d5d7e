//! An image that is about to be rolled back, once nothing stands against it any more.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;

use super::write::{self, Held, Wanted};
use super::{InPlaceOptions, RollBack, guests, room};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Observer, OfDisk};
use crate::disk::edit::Spare;
use crate::disk::files::Allocation;
use crate::disk::io::Opener;
use crate::disk::sys::Stamp;
use crate::flows::anchors;
use crate::vault::repository::{Anchor, AnchorKind, Catalog};

/// An image that nobody else can use, and what of it is to be written.
pub(super) struct Ready<'a> {
    pub job: &'a RollBack,
    pub held: Held,
    /// As it was before it was compared.
    stamp: Stamp,
    /// What is to be written.
    pub wanted: Wanted,
    /// What of the image is free for something new, if it has clusters.
    pub spare: Option<Spare>,
    /// What the point before the safety point has left for the next backup, as long as it is there: that
    /// backup will ask for the safety point.
    anchor: Option<Anchor>,
}

/// How a flow is told what it is to do, and how far it is.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub options: &'a InPlaceOptions,
    pub observer: &'a dyn Observer,
    pub cancel: &'a Cancel,
}

impl<'a> Ready<'a> {
    /// Takes all images, and finds whatever can be found to be wrong with one of them or with what is
    /// to be written: nothing is changed.
    pub fn all(catalog: &Catalog, jobs: &'a [RollBack], run: Run<'_>) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for job in jobs {
            let observer: &dyn Observer = &OfDisk::new(run.observer, &job.disk);
            let held = Held::open(&job.path, job.format, observer)?;
            let spare = observer.step("check", || held.check())?;
            let newest = catalog.newest(&job.disk).ok().filter(|_| run.options.safety_point);
            let anchor = newest.and_then(|newest| newest.record.anchor);
            let (wanted, stamp) = (Wanted::default(), stamp_of(job)?);
            all.push(Self { job, held, stamp, wanted, spare, anchor });
        }
        for ready in &mut all {
            // A guest may have started before they were all taken.
            ready.check_guests(run)?;
            ready.wanted = ready.work(run, |work| work.plan(&ready.held, ready.job.cluster))?;
        }
        room::check(&all)?;
        Ok(all)
    }

    /// Does something to the image; who watches is told which disk it is.
    fn work<R>(
        &self,
        run: Run<'_>,
        what: impl FnOnce(write::Rewriting<'_>) -> Result<R>,
    ) -> Result<R> {
        what(write::Rewriting {
            chain: &self.job.chain,
            path: &self.job.path,
            open: &self.job.open,
            is_overlay: self.job.is_overlay,
            resources: &run.options.resources,
            observer: &OfDisk::new(run.observer, &self.job.disk),
            cancel: run.cancel,
        })
    }

    /// Fails if a guest would be harmed by what is written now.
    pub fn check_guests(&self, run: Run<'_>) -> Result<()> {
        guests::check(&run.options.libvirt, &self.job.path)
    }

    /// Fails if somebody who heeds no locks wrote to it since it was compared.
    pub fn check_unchanged(&self) -> Result<()> {
        if stamp_of(self.job)? == self.stamp {
            return Ok(());
        }
        let text = format!("{} was written to meanwhile", self.job.path.display());
        Err(Error::new(ErrorKind::Busy, text).advise("end the program that writes to it"))
    }

    /// Makes it the disk of the point.
    pub fn write(&self, run: Run<'_>) -> Result<()> {
        self.work(run, |work| work.run(&self.held, &self.wanted))
    }

    /// Lets go of the anchor of the point before, which holds on to what is written over; the safety
    /// point is safe.
    pub fn drop_anchor(&mut self, run: Run<'_>) -> Result<()> {
        let Some(anchor) = self.anchor.take() else { return Ok(()) };
        if let Err(error) = self.held.remove(&anchor) {
            run.observer.warn(anchors::stays(&error).of(&self.job.disk));
        }
        if matches!(anchor.what, AnchorKind::Reflink { .. }) {
            // Some filesystems give the room of a file back some moments after it is gone.
            let store = self.held.store();
            let _ = store.fd().map(rustix::fs::syncfs);
        }
        self.spare = self.held.check()?;
        Ok(())
    }

    /// How the image lies on its filesystem when it is written.
    pub fn allocation<'b>(&self, now: Allocation<'b>) -> Allocation<'b> {
        match self.anchor.as_ref().map(|anchor| &anchor.what) {
            Some(AnchorKind::Reflink { .. }) => now.without_clones(),
            _ => now,
        }
    }

    /// Fails if a guest that heeds no locks may have used the image while it was written: there are
    /// none on block devices that a guest on the same host would see.
    pub fn check_unused(&self, run: Run<'_>) -> Result<()> {
        if !self.metadata().is_ok_and(|data| data.file_type().is_block_device()) {
            return Ok(());
        }
        self.check_guests(run).map_err(|error| {
            let path = self.job.path.display();
            error
                .within(format!("a guest came to {path} while it was written: both may be damaged"))
                .advise("stop the guest, and run it again")
        })
    }

    pub fn metadata(&self) -> Result<Metadata> {
        let path = &self.job.path;
        std::fs::metadata(path).map_err(|error| Error::io("look at", path, error))
    }
}

/// What a write to the job's file changes, also by those who heed no locks.
fn stamp_of(job: &RollBack) -> Result<Stamp> {
    let path = &job.path;
    let stamp = Opener::READ.or_device().open(path).and_then(Stamp::of);
    stamp.map_err(|error| Error::io("look at", path, error))
}
