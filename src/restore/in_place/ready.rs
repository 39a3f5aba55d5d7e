//! An image that is about to be rolled back, once nothing stands against it any more.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use roaring::RoaringBitmap;

use super::write::{self, Held};
use super::{InPlaceOptions, Job, guests, room};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Opener;
use crate::observer::{Observer, OfDisk};

/// An image that nobody else can use, and what of it is to be written.
pub(super) struct Ready<'a> {
    pub job: &'a Job,
    held: Held,
    /// As it was before it was compared.
    stamp: Stamp,
    /// The blocks that are not the point's.
    pub differing: RoaringBitmap,
    /// The blocks that are written.
    pub wanted: RoaringBitmap,
    /// Bytes inside the image that are free for something new.
    pub free: u64,
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
    pub fn all(jobs: &'a [Job], run: Run<'_>) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for job in jobs {
            let held = Held::open(&job.path, job.format, &OfDisk::new(run.observer, &job.disk))?;
            let free = held.check()?;
            let (differing, wanted) = Default::default();
            all.push(Self { job, held, stamp: Stamp::of(job)?, differing, wanted, free });
        }
        for ready in &mut all {
            // A guest may have started before they were all taken.
            ready.check_guests(run)?;
            let work = ready.work(run);
            ready.differing = work.differing()?;
            ready.wanted = work.wanted(&ready.differing, ready.job.cluster);
        }
        room::check(&all)?;
        for ready in &all {
            ready.work(run).rehearse(&ready.wanted)?;
        }
        Ok(all)
    }

    fn work<'b>(&self, run: Run<'b>) -> write::Job<'b>
    where
        'a: 'b,
    {
        write::Job {
            chain: &self.job.chain,
            path: &self.job.path,
            open: &self.job.open,
            resources: &run.options.resources,
            observer: run.observer,
            cancel: run.cancel,
        }
    }

    /// Fails if a guest would be harmed by what is written now.
    pub fn check_guests(&self, run: Run<'_>) -> Result<()> {
        guests::check(&run.options.libvirt, &self.job.path, run.observer)
    }

    /// Fails if somebody who heeds no locks wrote to it since it was compared.
    pub fn check_unchanged(&self) -> Result<()> {
        if Stamp::of(self.job)? == self.stamp {
            return Ok(());
        }
        let text = format!("{} was written to meanwhile", self.job.path.display());
        Err(Error::new(ErrorKind::Busy, text).advise("end the program that writes to it"))
    }

    /// Makes it the disk of the point.
    pub fn write(&self, run: Run<'_>) -> Result<()> {
        self.work(run).run(&self.held, &self.differing, &self.wanted)
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

/// What tells that a file was written to, though all who heed locks were kept out.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(job: &Job) -> Result<Self> {
        let path = &job.path;
        let data = Opener::READ.or_device().open(path).and_then(|file| file.metadata());
        let data = data.map_err(|error| Error::io("look at", path, error))?;
        let modified = (data.mtime(), data.mtime_nsec());
        Ok(Self { inode: data.ino(), len: data.len(), modified })
    }
}
