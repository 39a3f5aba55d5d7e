//! The messages between the watchdog and the process that started it: one JSON value a line.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Freeze;

/// The longest line, in bytes.
const LINE_LEN_MAX: usize = 64 << 10;

/// An order to the watchdog.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// What to freeze: the first order.
    Watch(Freeze),
    /// Freeze.
    Freeze,
    /// Thaw.
    Thaw,
}

/// A reply of the watchdog.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The watchdog waits for the order to freeze.
    Ready,
    /// The guest is frozen.
    Frozen {
        /// How many filesystems are frozen.
        filesystems: u32,
    },
    /// The watchdog is about to try to thaw the guest: a sign of life.
    Trying,
    /// The freeze failed, and the guest is thawed.
    NotFrozen {
        /// Why.
        problem: String,
        /// What to do about it.
        advice: Option<String>,
    },
    /// The guest was frozen and is thawed.
    Thawed {
        /// From asking for the freeze to the end of the thaw.
        freeze_ms: u64,
        /// Why the guest may not have been frozen all the time.
        problem: Option<String>,
    },
    /// The thaw failed.
    Alarm {
        /// Why.
        problem: String,
    },
}

/// Reads a pipe line by line.
#[derive(Debug)]
pub(super) struct Lines<P> {
    pipe: P,
    /// The beginning of the next line, as far as it was read.
    line: Vec<u8>,
}

impl<P: Read + AsFd> Lines<P> {
    pub fn new(pipe: P) -> Self {
        Self { pipe, line: Vec::new() }
    }

    pub fn pipe(&self) -> &P {
        &self.pipe
    }

    /// Waits for the next line, at most for `limit`. Gives `None` if the limit is reached, if the
    /// writer has ended, or if the line makes no sense.
    pub fn next<T: DeserializeOwned>(&mut self, limit: Option<Duration>) -> Option<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || self.line.len() > LINE_LEN_MAX {
                return None;
            }
            let mut fds = [PollFd::from_borrowed_fd(self.pipe.as_fd(), PollFlags::IN)];
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            // Woken by a signal or at the limit: look again.
            if !matches!(poll(&mut fds, limit.as_ref()), Ok(1)) {
                continue;
            }
            let mut bytes = [0; 4096];
            match self.pipe.read(&mut bytes) {
                Ok(0) => return None,
                Ok(len) => self.line.extend(bytes.iter().take(len)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}
