//! Changes to the repository that survive a power cut: every step of every write goes through
//! these few functions, so a test can fail or kill the program at each one.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Opener, not_opened, sync_folder};

/// Backups show everything that a disk holds: nobody but their owner reads them unless the owner
/// says so.
pub(super) const FILE_MODE: u32 = 0o600;
/// The same, for folders.
const DIR_MODE: u32 = 0o700;

/// Makes a file that was not there.
pub(in crate::vault::repository) fn create_new(path: &Path) -> Result<File> {
    step()
        .and_then(|()| Opener::CHANGE.create(FILE_MODE).open(path))
        .map_err(|error| Error::io("create", path, error))
}

/// Opens a file that may be there already, to lock it.
pub(in crate::vault::repository) fn open_or_create(path: &Path) -> Result<File> {
    step()
        .and_then(|()| Opener::CHANGE.itself().or_create(FILE_MODE).open(path))
        .map_err(|error| not_opened(path, error, ErrorKind::Damaged))
}

/// Returns once a file's bytes are on stable storage. After an error nobody knows which are, and
/// asking again would not tell: the file is lost.
pub(in crate::vault::repository) fn sync_file(file: &File, path: &Path) -> Result<()> {
    step().and_then(|()| file.sync_all()).map_err(|error| Error::io("sync", path, error))
}

/// Returns once the names in a folder are on stable storage.
pub(in crate::vault::repository) fn sync_dir(path: &Path) -> Result<()> {
    step()
        .and_then(|()| sync_folder(path))
        .map_err(|error| Error::io("sync the folder", path, error))
}

/// Gives a file its final name, which nothing may have yet.
pub(in crate::vault::repository) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    step()
        .and_then(|()| crate::disk::files::rename_new(from, to))
        .map_err(|error| Error::io(format!("rename {} to", from.display()), to, error))
}

/// Gives a file its final name, in the place of what has it.
pub(in crate::vault::repository) fn rename_over(from: &Path, to: &Path) -> Result<()> {
    step()
        .and_then(|()| std::fs::rename(from, to))
        .map_err(|error| Error::io(format!("rename {} to", from.display()), to, error))
}

/// Removes a file.
pub(in crate::vault::repository) fn remove(path: &Path) -> Result<()> {
    step()
        .and_then(|()| std::fs::remove_file(path))
        .map_err(|error| Error::io("remove", path, error))
}

/// Makes a folder in a folder that is there, unless it is there already; durable either way,
/// because the process that made it may have died before it could sync.
pub(in crate::vault::repository) fn create_dir(path: &Path) -> Result<()> {
    let made = step().and_then(|()| DirBuilder::new().mode(DIR_MODE).create(path));
    match made {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(Error::io("make the folder", path, error)),
    }
    // A path without a folder in front of it lies in the current one.
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Reads a whole small file of at most `max` bytes.
///
/// # Errors
/// [`ErrorKind::Damaged`] if it is longer, or no regular file: then nothing is read from it.
pub(in crate::vault::repository) fn read_small(path: &Path, max: u64) -> Result<Vec<u8>> {
    let opened = Opener::READ.whole(path);
    let file = opened.map_err(|error| not_opened(path, error, ErrorKind::Damaged))?;
    let len = file.reported_len();
    if len > max {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{}: {len} bytes long, and at most {max} make sense", path.display()),
        ));
    }
    file.read_start(max).map_err(|error| Error::io("read", path, error))
}

/// Where a test makes the program fail; nothing outside tests.
#[cfg(not(test))]
pub(in crate::vault::repository) fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(in crate::vault::repository) use faults::step;

/// Failing or dying at the n-th step, for tests.
#[cfg(test)]
pub(in crate::vault::repository) mod faults {
    use std::cell::Cell;
    use std::io;

    /// What happens at the chosen step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::vault::repository) enum Mode {
        /// This step fails; the program goes on and cleans up.
        Fail,
        /// The program is gone: no later step does anything.
        Kill,
    }

    thread_local! {
        static ARMED: Cell<Option<(u32, Mode)>> = const { Cell::new(None) };
        static TAKEN: Cell<u32> = const { Cell::new(0) };
    }

    /// Makes step number `at` of this thread, counted from 0 from now on, fail or the last.
    pub(in crate::vault::repository) fn arm(at: u32, mode: Mode) {
        ARMED.set(Some((at, mode)));
        TAKEN.set(0);
    }

    /// Ends the mischief and says how many steps were taken since it began.
    pub(in crate::vault::repository) fn disarm() -> u32 {
        ARMED.set(None);
        TAKEN.get()
    }

    pub(in crate::vault::repository) fn step() -> io::Result<()> {
        let taken = TAKEN.get();
        TAKEN.set(taken + 1);
        match ARMED.get() {
            Some((at, Mode::Fail)) if taken == at => {}
            Some((at, Mode::Kill)) if taken >= at => {}
            _ => return Ok(()),
        }
        Err(io::Error::other("a fault that the test asked for"))
    }
}
