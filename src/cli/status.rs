//! Exit statuses: part of the interface, written down once for the program, its help and its
//! manual.

use qdelta::ErrorKind;
use qdelta::flows::report::{GuestsReport, Outcome};

/// Everything was done.
pub const DONE: u8 = 0;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// Something in the repository is damaged.
pub const DAMAGED: u8 = 4;

/// A salvage gave what is left, or files were taken out, and that is not everything.
pub const PARTIAL: u8 = 9;

/// A guest may be frozen.
pub const ALARM: u8 = 11;

/// Some of several guests were not backed up.
pub const SOME_FAILED: u8 = 12;

/// The point is good, but the snapshot that a command made for it may still exist.
pub const NOT_RELEASED: u8 = 13;

/// A drill failed: a guest does not come back as it should.
pub const DRILL_FAILED: u8 = 14;

/// A drill could not be tried as far as was asked: nothing is known of the rest.
pub const NOT_TRIED: u8 = 15;

/// A key is needed that was not given.
pub const NO_KEY: u8 = 16;

/// Something is open that somebody should do something about.
pub const OPEN: u8 = 17;

/// Every status and what it says.
pub const TABLE: &[(u8, &str)] = &[
    (DONE, "done"),
    (1, "the system refused or failed an operation (I/O error, permission)"),
    (USAGE, "the command line makes no sense"),
    (3, "the image is not what it claims to be, or breaks qdelta's rules"),
    (DAMAGED, "an archive or the repository is damaged; verify found something"),
    (5, "busy: another program uses the same disk or image"),
    (6, "no such repository, disk, point or file"),
    (7, "the target exists already and --force was not given"),
    (8, "no space left, or a quota is reached"),
    (PARTIAL, "salvaged in part, or some files were left out: they were listed"),
    (10, "a guest could not be frozen, or not for long enough"),
    (ALARM, "ALARM: a guest may still be frozen; the message says how to thaw it"),
    (
        SOME_FAILED,
        "some of several guests were not backed up, or something of a run failed: it was said",
    ),
    (NOT_RELEASED, "the points are good, but a snapshot command failed to release what it made"),
    (DRILL_FAILED, "a drill failed: a guest does not come back, or misses its target"),
    (NOT_TRIED, "a drill could not be tried as far as was asked: nothing is known of the rest"),
    (NO_KEY, "the repository is encrypted, and the key that is needed was not given"),
    (
        OPEN,
        "something is open, and was listed: by status; points that one of two repositories lacks, by verify --against and repair",
    ),
    (130, "interrupted by Ctrl-C or a signal"),
];

/// The status of a failure.
pub fn of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Usage => USAGE,
        ErrorKind::Image => 3,
        ErrorKind::Damaged => DAMAGED,
        ErrorKind::Busy => 5,
        ErrorKind::NotFound => 6,
        ErrorKind::Exists => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::Guest => 10,
        ErrorKind::Alarm => ALARM,
        ErrorKind::Key => NO_KEY,
        ErrorKind::Interrupted => 130,
        // Also every kind that the library may learn later.
        _ => 1,
    }
}

/// The status of a backup of guests: a single guest that failed gives the status of its failure.
pub fn of_guests(report: &GuestsReport) -> u8 {
    match report.outcome {
        Outcome::Done => DONE,
        Outcome::NotReleased => NOT_RELEASED,
        Outcome::BrokenChain => DAMAGED,
        Outcome::SomeFailed => SOME_FAILED,
        Outcome::Interrupted => of(ErrorKind::Interrupted),
        Outcome::Alarm => ALARM,
        Outcome::Failed => {
            let failure = report.domains.iter().find_map(|guest| guest.error.as_ref());
            of(failure.map_or(ErrorKind::Io, |failure| failure.kind))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_documented_once() {
        let kinds = [
            ErrorKind::Usage,
            ErrorKind::Image,
            ErrorKind::Damaged,
            ErrorKind::Busy,
            ErrorKind::NotFound,
            ErrorKind::Exists,
            ErrorKind::NoSpace,
            ErrorKind::Guest,
            ErrorKind::Alarm,
            ErrorKind::Key,
            ErrorKind::Interrupted,
            ErrorKind::Io,
        ];
        let mut given: Vec<u8> =
            kinds.into_iter().map(of).chain([DONE, PARTIAL, SOME_FAILED, NOT_RELEASED]).collect();
        given.extend([DRILL_FAILED, NOT_TRIED, OPEN]);
        given.sort_unstable();
        let documented: Vec<u8> = TABLE.iter().map(|&(status, _)| status).collect();
        assert_eq!(given, documented);
    }
}
