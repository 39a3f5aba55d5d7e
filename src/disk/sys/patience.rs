//! Waiting for what a process that was just killed still holds: the kernel lets go of its locks some
//! moments after its end (50 to 300 ms were seen where a ring had registered files).

use std::fs::{File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a lock may outlive the process that held it. Whoever holds a lock for longer is alive.
pub(crate) const LETTING_GO_MAX: Duration = Duration::from_secs(1);
/// How often to look.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks again until `is_free` says so, at most for [`LETTING_GO_MAX`]. Gives the last answer.
///
/// # Errors
/// The first error of `is_free`.
pub(crate) fn wait_until<E>(mut is_free: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let end = Instant::now() + LETTING_GO_MAX;
    loop {
        if is_free()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
}

/// Locks a file for this process alone, as soon as one that has just ended lets go of it.
///
/// # Errors
/// `WouldBlock` if somebody holds it who is alive; or the system knows no such lock.
pub(crate) fn lock(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock())
}

/// Locks a file together with everybody who shares it, as soon as one that has just ended lets go of it.
///
/// # Errors
/// As [`lock`].
pub(crate) fn lock_shared(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock_shared())
}

fn patiently(attempt: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let locked = wait_until(|| match attempt() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(error) => Err(error),
    })?;
    if locked { Ok(()) } else { Err(TryLockError::WouldBlock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A restore right after another one was killed said "is being written": the kernel was still
    /// cleaning up after the dead process.
    #[test]
    fn a_lock_that_is_given_up_soon_is_waited_for_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (held, file) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        held.lock().unwrap();
        assert!(matches!(lock(&file), Err(TryLockError::WouldBlock)));
        let dying = thread::spawn(move || {
            thread::sleep(LETTING_GO_MAX / 5);
            held.unlock().unwrap();
        });
        lock(&file).unwrap();
        dying.join().unwrap();
    }
}
