//! One process at a time freezes or thaws a guest, whatever repository it works for: it holds a
//! lock on libvirt's file of the guest. Otherwise the thaw of one run would end the freeze of
//! another.

use std::fs::{File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::Freeze;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Opener, not_opened};

/// How long to wait for the lock: longer than an abandoned watchdog goes on thawing.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(50);
/// How often the lock is tried.
const PAUSE: Duration = Duration::from_millis(50);

/// The right to freeze and to thaw a guest. The right ends when this value is dropped or the
/// process ends in any way. If libvirt replaces its file meanwhile (`virsh edit`), a second process
/// may have the right, too.
pub(super) struct Turn {
    _file: File,
}

/// Waits for the right to freeze and to thaw.
///
/// # Errors
/// `Busy` if another process does not give up the right; `Io` if the file can't be opened.
pub(super) fn take(freeze: &Freeze, wait_max: Duration) -> Result<Turn> {
    let path = &freeze.definition;
    let opened = Opener::READ.open(path);
    let file = opened.map_err(|error| not_opened(path, error, ErrorKind::Image))?;
    let end = Instant::now() + wait_max;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Turn { _file: file }),
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process freezes or thaws {}", freeze.name);
                return Err(Error::new(ErrorKind::Busy, text).advise(
                    "another backup of the guest is under way, or the watchdog of one that was \
                     killed: try again in a minute",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
        }
    }
}
