//! One process of a host tells at a time.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::repository::storage::{Local, Lock, LockMode, Locked, Name, Storage, Wait};

/// How long a process waits for its turn when nobody else would tell what it has to tell: longer than two rounds of
/// telling may take.
const WAIT_MAX: Duration = Duration::from_secs(25 * 60);

/// How often the wait looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes the turn of telling. Where it `waits`, another process comes to its end first.
///
/// # Errors
/// [`ErrorKind::Busy`] if another process is telling.
pub(super) fn turn(state: &Path, waits: bool, cancel: Option<&Cancel>) -> Result<Box<dyn Lock>> {
    let started = Instant::now();
    let goes_on =
        || waits && started.elapsed() < WAIT_MAX && !cancel.is_some_and(Cancel::is_cancelled);
    loop {
        match take(state) {
            Err(error) if error.kind() == ErrorKind::Busy && goes_on() => thread::sleep(PAUSE),
            taken => return taken,
        }
    }
}

fn take(state: &Path) -> Result<Box<dyn Lock>> {
    let folder = state.join("jobs");
    crate::disk::files::make_private_folder(&folder)
        .map_err(|error| Error::io("make", &folder, error))?;
    match Local::new(&folder).lock(
        &Name::top().join("telling"),
        LockMode::Exclusive,
        Wait::UNHEARD,
    )? {
        Locked::Held(lock) => Ok(lock),
        Locked::Busy(holder) => Err(Error::new(
            ErrorKind::Busy,
            format!("another process of this host is telling what is new: {holder}"),
        )),
    }
}
