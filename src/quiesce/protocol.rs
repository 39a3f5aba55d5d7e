//! What the watchdog and the process that started it say to each other: one JSON value a line.

use serde::{Deserialize, Serialize};

use super::Freeze;

/// A line is never longer, in bytes.
pub(super) const LINE_LEN_MAX: u64 = 64 << 10;

/// What the watchdog is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// What it is about: the first order.
    Watch(Freeze),
    /// Freeze.
    Freeze,
    /// Thaw.
    Thaw,
}

/// What the watchdog answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It waits for the order to freeze.
    Ready,
    /// The guest is frozen.
    Frozen {
        /// How many filesystems are.
        filesystems: u32,
    },
    /// The guest could not be frozen, and is thawed.
    NotFrozen {
        /// Why.
        problem: String,
    },
    /// The guest was frozen and is thawed.
    Thawed {
        /// From asking for the freeze to the end of the thaw.
        freeze_ms: u64,
        /// Why it may not have been frozen all the time.
        problem: Option<String>,
    },
    /// The thaw failed.
    Alarm {
        /// Why.
        problem: String,
    },
}
