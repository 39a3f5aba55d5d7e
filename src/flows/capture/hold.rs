//! Holding an image still while it is read: QEMU's own locks, and a second look at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::fdatasync;
use rustix::io::{Errno, retry_on_intr};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::files::image_lock::ImageLock;
use crate::disk::files::is_held;
use crate::disk::image::{Image, OpenOptions};
use crate::disk::sys::Stamp;

/// No kernel's clock for the times of files ticks more slowly.
const TICK: Duration = Duration::from_millis(20);
/// Nor any filesystem's.
const COARSE: Duration = Duration::from_secs(2);

/// A claim on an image that nobody writes to, as far as can be known.
pub(super) struct Hold {
    /// Each has a descriptor of its own: a long chain is open once, and locked once.
    locks: Vec<ImageLock>,
    files: Vec<Held>,
    /// The device that this host itself has in use, if there is one.
    used: Option<PathBuf>,
}

/// A file of the image, as it was before it was read.
struct Held {
    path: PathBuf,
    stamp: Stamp,
    /// Whether every later write changes its time.
    is_settled: bool,
    /// Why it could not be written back.
    lost: Option<Errno>,
}

/// How long from `now` a write may still leave the time as it is.
fn unsettled_for(stamp: &Stamp, now: Duration) -> Option<Duration> {
    let modified = Duration::new(stamp.modified.0.max(0) as u64, stamp.modified.1.max(0) as u32);
    // Some filesystems count in whole seconds, or two.
    let step = if modified.subsec_nanos() == 0 { COARSE } else { TICK };
    // A time that lies ahead is not reached by the next write.
    let age = now.checked_sub(modified)?;
    step.checked_sub(age).filter(|wait| !wait.is_zero())
}

impl Hold {
    /// Opens an image and claims all its files for reading.
    ///
    /// # Errors
    /// `Busy` if somebody writes to one of them.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<(Image, Self)> {
        let first = Image::open(path, options)?;
        let mut locks = Vec::new();
        // The image's own file is the first.
        for file in first.files().iter().skip(usize::from(options.is_claimed)) {
            let Some(fd) = file.fd() else { continue };
            let lock = ImageLock::shared_read(fd, file.path())?;
            locks.push(lock);
        }
        // Whoever wrote between opening and locking may have moved the tables: look again. The
        // stamps are older than that look, so a write that it half saw is noticed in the end.
        let files = stamps(&first)?;
        settle(&files, COARSE);
        let files = write_back(&first, files, 0);
        drop(first);
        let image = Image::open(path, options)?;
        let same = |(a, b): (&Held, &(PathBuf, Stamp))| a.stamp.id == b.1.id;
        let opened = stamps(&image)?;
        if opened.len() != files.len() || !files.iter().zip(&opened).all(same) {
            return Err(changed(path));
        }
        let used = image.files().iter().map(|file| file.path()).find(|path| is_held(path));
        let used = used.map(Path::to_path_buf);
        Ok((image, Self { locks, files, used }))
    }

    /// Notices what is written to the files of an image, and keeps nobody from writing: for
    /// `clones`, to which nobody writes, and for the backing files of a guest that is running.
    pub fn watch(image: &Image, clones: &[(PathBuf, PathBuf)]) -> Result<Self> {
        let files = stamps(image)?;
        let written = |path: &Path| clones.iter().all(|(_, clone)| clone != path);
        // Guests may be frozen for this: no longer than a tick.
        settle(files.iter().filter(|(path, _)| written(path)), TICK);
        // A clone has nothing to be written back; and what is read from under a frozen guest is not
        // recognised again, so it need not wait for that.
        let skip = if clones.is_empty() { files.len() } else { 1 };
        let files = write_back(image, files, skip);
        Ok(Self { locks: Vec::new(), files, used: None })
    }

    /// What should be known about the claims.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        let locks = self.locks.iter().filter_map(|lock| lock.warning());
        let locks = locks.map(|text| Warning::new(Code::NoLocks, text));
        let lost = self.files.iter().filter_map(|file| {
            let (path, errno) = (file.path.display(), file.lost?);
            let text = format!(
                "cannot write back what is in memory of {path}: {errno}; what the disk below it did \
                 not take may be gone when it is read again"
            );
            let advice = "see to the disk; the next backup reads everything";
            Some(Warning::new(Code::Image, text).advise(advice))
        });
        let used = self.used.iter().map(|path| {
            let text = format!(
                "{} is in use on this host itself: a filesystem that is mounted, a volume manager, swap. Whether it was \
                 written to while it was read is not known",
                path.display()
            );
            Warning::new(Code::Writable, text).advise("unmount it, or back up a snapshot of it")
        });
        locks.chain(lost).chain(used)
    }

    /// Whether this host itself may write to what is held.
    pub fn is_in_use(&self) -> bool {
        self.used.is_some()
    }

    /// Whether what is read of a file may not be on its disk: then it can change without a write.
    pub fn is_lost(&self) -> bool {
        self.files.iter().any(|file| file.lost.is_some())
    }

    /// Fails if a file of the image was written to since, by somebody who heeds no locks.
    pub fn check_unchanged(&self, image: &Image) -> Result<()> {
        for (before, now) in self.files.iter().zip(stamps(image)?) {
            if before.stamp != now.1 || before.path != now.0 {
                return Err(changed(&before.path));
            }
        }
        Ok(())
    }

    /// Whether an unchanged time of the file at `path` proves that nobody wrote to the file since the
    /// image was taken.
    pub fn is_settled(&self, path: &Path) -> bool {
        self.files.iter().any(|file| file.path == path && file.is_settled)
    }
}

fn stamps(image: &Image) -> Result<Vec<(PathBuf, Stamp)>> {
    let mut stamps = Vec::new();
    for file in image.files() {
        if let Some(fd) = file.fd() {
            let stamp = Stamp::of(fd).map_err(|error| Error::io("look at", file.path(), error))?;
            stamps.push((file.path().to_path_buf(), stamp));
        }
    }
    Ok(stamps)
}

/// Waits until whatever is written to these files from now on shows in their times, or for `max`:
/// a write in the same tick of the kernel's clock as the one before leaves the time as it is, and
/// no second look would notice it.
fn settle<'a>(files: impl IntoIterator<Item = &'a (PathBuf, Stamp)>, max: Duration) {
    for (_, stamp) in files {
        if let Some(wait) = unsettled_for(stamp, now()) {
            std::thread::sleep(wait.min(max));
        }
    }
}

/// Writes back what is in memory of these files, but the first `skip`. Of a file that a program has
/// mapped, the kernel notes the time when a page becomes dirty; further writes to the page show only
/// after it was written back (mm/memory.c: `do_wp_page` and `fault_dirty_shared_page`).
fn write_back(image: &Image, files: Vec<(PathBuf, Stamp)>, skip: usize) -> Vec<Held> {
    let fds = image.files().iter().filter_map(|file| file.fd());
    let each = fds.zip(files).enumerate().map(|(index, (fd, (path, stamp)))| {
        if index < skip {
            return Held { path, stamp, is_settled: false, lost: None };
        }
        let begun = now();
        let lost = match retry_on_intr(|| fdatasync(fd)) {
            // A filesystem that can only be read has nothing to be written back.
            Ok(()) | Err(Errno::INVAL) => None,
            Err(errno) => Some(errno),
        };
        // Nothing was written since it was settled.
        let is_settled = lost.is_none() && unsettled_for(&stamp, begun).is_none();
        Held { path, stamp, is_settled, lost }
    });
    each.collect()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, format!("{} was written to while it was read", path.display()))
        .advise("no recovery point was made: stop whatever writes to the image, then try again")
}
