//! One at a time: whoever freezes or thaws a guest holds a lock on the file that libvirt has of it,
//! whichever repository it works for. A thaw of one run would else end the freeze of another.

use std::fs::{File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::Freeze;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Opener, not_opened};

/// How long to wait: longer than a watchdog that was left alone goes on thawing.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(50);
/// How often to look.
const PAUSE: Duration = Duration::from_millis(50);

/// The right to freeze and to thaw a guest. It ends when this is dropped, or the process, however it
/// ends. If libvirt replaces the file meanwhile (`virsh edit`), a second one may have it, too.
pub(super) struct Turn {
    _file: File,
}

/// Waits for the right to freeze and to thaw.
///
/// # Errors
/// `Busy` if another process does not let go of it; `Io` if the file can't be opened.
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
