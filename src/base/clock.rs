//! The time. A clock that stands where no calendar reaches is an error, and no panic.

use std::time::SystemTime;

use jiff::Timestamp;

use crate::base::error::{Error, ErrorKind, Result};

/// The time now.
///
/// # Errors
/// The clock stands after the year 9999, or as far before our era.
pub fn now() -> Result<Timestamp> {
    at(SystemTime::now())
}

fn at(time: SystemTime) -> Result<Timestamp> {
    Timestamp::try_from(time).map_err(|error| {
        Error::new(ErrorKind::Io, "the clock of this machine stands outside the years that count")
            .because(error)
            .advise("set the clock: date --set")
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// With the clock in the year 10000 every command ended in a panic.
    #[test]
    fn a_clock_past_the_calendar_is_an_error() {
        for seconds in [253_402_300_800, 1 << 40, i64::MAX as u64] {
            let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) else { continue };
            assert!(at(time).unwrap_err().advice().unwrap().contains("clock"));
        }
        now().unwrap();
    }
}
