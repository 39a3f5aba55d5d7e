//! How far a backup is, counted where the work is done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qdelta_formats::archive::{Geometry, GroupIndex};

use super::data_path::Selection;
use crate::base::observer::Observer;
use crate::disk::image::Image;
use crate::disk::image::extent::Source;

/// How long to look for what there is to read. A guest may be frozen meanwhile, and tables that take
/// longer are those of a disk so full that its own bytes tell as much.
const SURVEY_MAX: Duration = Duration::from_millis(200);

/// What is dealt with at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    /// Bytes of the disk that were to be looked at.
    pub disk: u64,
    /// Bytes of the image's files that this took.
    pub file: u64,
}

/// What is counted, and how much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// Bytes of the disk that are to be looked at.
    Disk(u64),
    /// Bytes that are to be read from the image's files. Bytes of the disk say little where most of
    /// it is empty: a large disk with all its data at its front would be at 1 % until all is done, and
    /// one with all data at its end at 99 %.
    File(u64),
}

impl Whole {
    /// The whole of an image of which what was selected is looked at, or else everything.
    pub fn of(image: &Image, selection: Option<&Selection>, geometry: Geometry) -> Self {
        let (blocks, block_size) = (geometry.block_count(), u64::from(geometry.block_size()));
        if let Some(selection) = selection {
            return Self::Disk(selection.count(&(0..blocks)) * block_size);
        }
        let disk = blocks * block_size;
        surveyed(image, geometry, Instant::now() + SURVEY_MAX).map_or(Self::Disk(disk), Self::File)
    }
}

/// How many bytes a backup reads from the image's files; none if that can't be said in time. What can't
/// be read at all is the backup's to tell.
fn surveyed(image: &Image, geometry: Geometry, end: Instant) -> Option<u64> {
    let (mut mapper, mut extents, mut sum) = (image.mapper(), Vec::new(), 0);
    for group in (0..geometry.group_count()).map(GroupIndex) {
        if Instant::now() >= end {
            return None;
        }
        extents.clear();
        mapper.extents(geometry.group_range(group), &mut extents).ok()?;
        for extent in &extents {
            sum += match &extent.source {
                Source::Unallocated | Source::Zero { .. } => 0,
                Source::Data { .. } => extent.range().end - extent.guest_offset,
                Source::Compressed(cluster) => u64::from(cluster.compressed_len),
            };
        }
    }
    Some(sum)
}

/// Counts the work as it is done, by every worker.
pub(super) struct Meter<'a> {
    observer: &'a dyn Observer,
    whole: Whole,
    done: AtomicU64,
}

impl<'a> Meter<'a> {
    /// The backup begins.
    pub fn begin(observer: &'a dyn Observer, whole: Whole) -> Self {
        let (Whole::Disk(total) | Whole::File(total)) = whole;
        observer.begin("backup", total);
        Self { observer, whole, done: AtomicU64::default() }
    }

    /// So much more is done.
    pub fn add(&self, amount: Amount) {
        let (bytes, total) = match self.whole {
            Whole::Disk(total) => (amount.disk, total),
            Whole::File(total) => (amount.file, total),
        };
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        // A compressed cluster of which two tasks have a part is read twice.
        let told = (before + bytes).min(total) - before.min(total);
        if told > 0 {
            self.observer.advance(told);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::base::observer::Event;
    use crate::disk::image::OpenOptions;

    /// What an observer was told of as the whole, and every step.
    #[derive(Default)]
    struct Heard(Mutex<(u64, Vec<u64>)>);

    impl Observer for Heard {
        fn event(&self, event: &Event<'_>) {
            let mut heard = self.0.lock().unwrap();
            match event {
                Event::Begin { total, .. } => heard.0 = *total,
                Event::Advance { bytes } => heard.1.push(*bytes),
                _ => {}
            }
        }
    }

    fn heard(whole: Whole, amounts: &[(u64, u64)]) -> (u64, Vec<u64>) {
        let heard = Heard::default();
        let meter = Meter::begin(&heard, whole);
        for (disk, file) in amounts {
            meter.add(Amount { disk: *disk, file: *file });
        }
        heard.0.into_inner().unwrap()
    }

    #[test]
    fn what_is_counted_never_exceeds_the_whole() {
        let amounts = [(50, 50), (900, 0), (50, 70)];
        assert_eq!(heard(Whole::File(100), &amounts), (100, vec![50, 50]));
        assert_eq!(heard(Whole::Disk(1000), &amounts), (1000, vec![50, 900, 50]));
        assert_eq!(heard(Whole::File(0), &[(1000, 0)]), (0, Vec::new()));
    }

    /// A disk of 2 GiB with 1 MiB in it was at 99 % as soon as its holes were passed, and stayed there
    /// until everything was compressed.
    #[test]
    fn holes_are_no_part_of_what_there_is_to_do() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.as_file().set_len(2 << 30).unwrap();
        file.as_file().write_all_at(&[1; 1 << 20], 1 << 30).unwrap();
        let open = OpenOptions { format: Some("raw".parse().unwrap()), ..OpenOptions::default() };
        let image = Image::open(file.path(), &open).unwrap();
        let geometry = Geometry::new(2 << 30, 64 << 10).unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        assert_eq!(surveyed(&image, geometry, far), Some(1 << 20));
        assert_eq!(surveyed(&image, geometry, Instant::now()), None);
    }
}
