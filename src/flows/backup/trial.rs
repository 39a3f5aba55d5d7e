//! The data path of a full backup, run for the sake of its speed: nothing of it is kept.

use std::fs::File;
use std::path::Path;

use qdelta_formats::archive::{Consistency, Geometry, Kind, Tracker};

use super::meter::Whole;
use super::{data_path, disk};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::Resources;
use crate::disk::image::Image;
use crate::disk::io::EarlyWriteback;
use crate::vault::archive;
use crate::vault::repository::DiskSpec;

/// What to run.
pub(crate) struct Trial<'a> {
    /// The image.
    pub image: &'a Image,
    /// How much of it, and in which blocks.
    pub geometry: Geometry,
    /// How many blocks a frame spans.
    pub frame_blocks: u32,
    /// The zstd level.
    pub level: i32,
    /// Threads and I/O.
    pub resources: &'a Resources,
}

impl Trial<'_> {
    /// Writes the archive of a full to `file`, with its tables in `folder`, and syncs it. Gives
    /// its length.
    pub(crate) fn run(
        &self,
        file: File,
        folder: &Path,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<u64> {
        let name = "bench".parse::<DiskSpec>()?.or_only_disk();
        let how = (Kind::Full, Tracker::Scan, Consistency::Offline);
        let metadata = disk::metadata_for(&name, "bench", how, self.geometry, None)?;
        let failed = |error| Error::io("write to", folder, error);
        let sink = Box::new(EarlyWriteback::new(file.try_clone().map_err(failed)?));
        let writer = archive::Writer::new(sink, metadata, Some(folder))?.named(folder);
        let job = data_path::Archiving {
            image: self.image,
            geometry: self.geometry,
            before: None,
            selection: None,
            whole: Whole::of(self.image, None, self.geometry),
            frame_blocks: self.frame_blocks,
            level: self.level,
            resources: self.resources,
        };
        let done = data_path::run(&job, writer, observer, cancel)?;
        file.sync_all().map_err(failed)?;
        Ok(done.assembled.summary.file_len)
    }
}
