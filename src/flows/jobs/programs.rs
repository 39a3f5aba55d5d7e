//! The programs that jobs start: the admin's hooks, and `systemctl`, which knows whether a timer is on.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use crate::base::cancel::Cancel;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::flows::report::Timer;
use crate::guest::program::{self, End, Failure, Stop};

/// How long `systemctl` may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long a hook has to its end once somebody asks to stop: less than systemd gives the run.
const GRACE: Duration = Duration::from_secs(30);

/// Runs a line for the shell, with these variables.
///
/// # Errors
/// It can't be started, ends with a failure, or takes too long.
pub(super) fn hook(
    line: &str,
    variables: &[(&str, OsString)],
    limit: Duration,
    cancel: &Cancel,
) -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]);
    command.envs(variables.iter().map(|(name, value)| (*name, value)));
    let failed = |text: String| Err(Error::new(ErrorKind::Io, format!("`{line}` {text}")));
    // A hook after the work may still clean up: a stop that came before leaves it the same grace.
    let stop = Stop { cancel, grace: GRACE.min(limit), waiting: &|| {} };
    match program::ask(command, b"", limit, Some(stop)) {
        Ok((End::Exit(status), _)) if status.success() => Ok(()),
        Ok((End::Exit(status), said)) => {
            failed(format!("ended with {status}{}", said.last_words()))
        }
        Ok(_) if cancel.is_cancelled() => {
            let grace = duration::shown(GRACE);
            let text = format!("hook stopped on request: `{line}` did not end within {grace}");
            Err(Error::new(ErrorKind::Interrupted, text))
        }
        Ok((_, said)) => {
            let limit = duration::shown(limit);
            failed(format!("was ended: it took longer than {limit}{}", said.last_words()))
        }
        Err(Failure::Start(error) | Failure::Wait(error)) => {
            Err(Error::new(ErrorKind::Io, format!("cannot run `{line}`")).because(error))
        }
    }
}

/// Whether a timer of systemd is on.
pub(super) fn timer(unit: &str) -> Timer {
    if unit.is_empty() || unit == "none" {
        return Timer::NotUsed;
    }
    let mut command = Command::new("systemctl");
    command.args(["is-active", "--", unit]);
    let Ok((End::Exit(_), said)) = program::run(command, ANSWER_MAX, None) else {
        return Timer::Unknown;
    };
    match String::from_utf8_lossy(&said.stdout).trim() {
        "active" | "activating" | "reloading" => Timer::On,
        "inactive" | "failed" | "deactivating" => Timer::Off,
        // There is no systemd here, or it does not answer.
        _ => Timer::Unknown,
    }
}
