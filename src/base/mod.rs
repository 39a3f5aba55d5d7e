//! What every layer speaks: errors, warnings, what flows tell their callers, time, JSON.

pub mod calendar;
pub mod cancel;
pub mod clock;
pub mod duration;
pub mod error;
pub mod json;
pub mod observer;
pub mod period;
pub mod printable;
pub mod random;
pub(crate) mod shelf;
pub mod size;
pub mod warning;
