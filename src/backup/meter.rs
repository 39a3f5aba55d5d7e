//! How far a backup is, counted where the work is done.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::image::Image;
use crate::observer::Observer;

/// What is dealt with at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    /// Bytes of the disk that were to be looked at.
    pub disk: u64,
    /// Bytes of the image's files that this took.
    pub file: u64,
}

/// Counts the work as it is done, by every worker. The bytes of the disk alone would say little: a
/// large disk with all its data at its front would stand still until everything is done. So what was
/// read of the image's files counts as well, and whichever is further says how far the backup is.
pub(super) struct Meter<'a> {
    observer: &'a dyn Observer,
    /// What the observer is told of as the whole.
    total: u64,
    /// The bytes of the disk that are to be looked at.
    disk_total: u64,
    /// Whether the bytes of files are counted, too.
    by_file: bool,
    disk: AtomicU64,
    file: AtomicU64,
    told: AtomicU64,
}

impl<'a> Meter<'a> {
    /// A meter of a backup that looks at `disk_total` bytes of the disk. `held` is about how many
    /// bytes the image's files hold for them; 0 if that is not known.
    pub fn begin(observer: &'a dyn Observer, disk_total: u64, held: u64) -> Self {
        let by_file = held > 0 && held < disk_total;
        let total = if by_file { held } else { disk_total };
        observer.begin("backup", total);
        let zero = AtomicU64::default;
        Self { observer, total, disk_total, by_file, disk: zero(), file: zero(), told: zero() }
    }

    /// So much more is done.
    pub fn add(&self, amount: Amount) {
        let disk = self.disk.fetch_add(amount.disk, Ordering::Relaxed) + amount.disk;
        let file = self.file.fetch_add(amount.file, Ordering::Relaxed) + amount.file;
        let total = u128::from(self.total);
        let by_disk = match self.disk_total {
            0 => 0,
            all => (u128::from(disk) * total / u128::from(all)) as u64,
        };
        // How much the files hold is a guess, and no guess says that everything is done.
        let by_file = if self.by_file { file.min(self.total - self.total / 100) } else { 0 };
        let reached = by_disk.max(by_file).min(self.total);
        let before = self.told.fetch_max(reached, Ordering::Relaxed);
        if reached > before {
            self.observer.advance(reached - before);
        }
    }
}

/// About how many bytes the image's files hold; 0 if one of them does not say, like a device.
pub(super) fn held(image: &Image) -> u64 {
    let held = |path: &std::path::PathBuf| {
        let blocks = path.metadata().ok()?.blocks();
        (blocks > 0).then(|| blocks.saturating_mul(512))
    };
    let all: Option<Vec<u64>> = image.file_names().iter().map(held).collect();
    all.map_or(0, |all| all.iter().fold(0, |sum, held| held.saturating_add(sum)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::observer::Event;

    /// What an observer was told of as the whole, and all that was done after every step.
    #[derive(Default)]
    struct Heard(Mutex<(u64, Vec<u64>)>);

    impl Observer for Heard {
        fn event(&self, event: &Event<'_>) {
            let mut heard = self.0.lock().unwrap();
            match event {
                Event::Begin { total, .. } => heard.0 = *total,
                Event::Advance { bytes } => {
                    let sum = heard.1.last().copied().unwrap_or(0) + bytes;
                    heard.1.push(sum);
                }
                _ => {}
            }
        }
    }

    fn heard(disk_total: u64, held: u64, amounts: &[(u64, u64)]) -> (u64, Vec<u64>) {
        let heard = Heard::default();
        let meter = Meter::begin(&heard, disk_total, held);
        for (disk, file) in amounts {
            meter.add(Amount { disk: *disk, file: *file });
        }
        heard.0.into_inner().unwrap()
    }

    /// A disk of 20 GiB with 300 MiB at its front stood at 1 % until the backup was over.
    #[test]
    fn data_at_the_front_of_a_large_disk_moves_the_bar() {
        let (total, steps) = heard(10_000, 100, &[(50, 50), (50, 50), (9900, 0)]);
        assert_eq!((total, steps), (100, vec![50, 99, 100]));
    }

    #[test]
    fn data_that_an_overlay_hides_is_no_reason_to_stop_short_of_the_end() {
        let (total, steps) = heard(1000, 500, &[(500, 100), (500, 100)]);
        assert_eq!((total, steps), (500, vec![250, 500]));
    }

    #[test]
    fn files_that_hold_more_than_was_thought_are_not_done_before_the_end() {
        let (total, steps) = heard(1000, 100, &[(10, 100), (10, 100), (980, 0)]);
        assert_eq!((total, steps), (100, vec![99, 100]));
    }

    #[test]
    fn a_full_disk_and_a_device_are_counted_by_their_own_bytes() {
        assert_eq!(heard(1000, 0, &[(400, 400), (600, 600)]), (1000, vec![400, 1000]));
        assert_eq!(heard(1000, 1200, &[(400, 400), (600, 600)]), (1000, vec![400, 1000]));
        assert_eq!(heard(0, 0, &[(0, 0)]), (0, Vec::new()));
    }
}
