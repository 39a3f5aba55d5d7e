//! Several are told at the same time, and nobody who hangs keeps a run from its end.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};

/// How long those who are being told have once somebody asks to stop: less than systemd gives the run.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How often somebody who may have asked to stop is heeded.
const STEP: Duration = Duration::from_millis(100);

/// A piece of telling.
pub(super) type Work = Box<dyn FnOnce() -> Result<()> + Send>;

/// Does all of it at the same time. Once somebody asks to stop, it has not long to its end.
pub(super) fn at_once(work: Vec<Work>, cancel: Option<&Cancel>) -> Vec<Result<()>> {
    // Room for all: nobody waits to say that it is done.
    let (done, results) = mpsc::sync_channel(work.len());
    let stopped =
        || Err(Error::new(ErrorKind::Interrupted, "stopped on request before it was told"));
    let mut came: Vec<Result<()>> = work.iter().map(|_| stopped()).collect();
    let mut left = work.len();
    for (at, work) in work.into_iter().enumerate() {
        let done = done.clone();
        // Nobody waits for one that does not end.
        thread::spawn(move || done.send((at, work())));
    }
    drop(done);
    let mut asked: Option<Instant> = None;
    while left > 0 {
        match results.recv_timeout(STEP) {
            Ok((at, result)) => {
                left -= 1;
                if let Some(place) = came.get_mut(at) {
                    *place = result;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if cancel.is_some_and(Cancel::is_cancelled) => {
                if asked.get_or_insert_with(Instant::now).elapsed() >= STOP_MAX {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    came
}
