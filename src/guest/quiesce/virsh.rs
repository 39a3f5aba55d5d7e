//! One call of `virsh`, under a deadline.

use std::os::fd::BorrowedFd;
use std::process::Command;
use std::time::Duration;

use super::Virsh;
use crate::base::duration;
use crate::guest::program::{self, End, Failure, Said};

/// What can be asked of `virsh`: these two, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Freeze,
    Thaw,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "domfsfreeze",
            Self::Thaw => "domfsthaw",
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Problem {
    /// What happened, for people.
    pub text: String,
    /// The call can't have reached the guest.
    pub untouched: bool,
    /// The call did not reach libvirt, or libvirt has no domain of that name.
    pub unreached: bool,
    /// The agent answered that it does not know or allow the command.
    pub refused: bool,
    /// The guest does not run, and so is not frozen.
    pub stopped: bool,
    /// Nobody waits for the answer any more, but libvirt may still carry out the call.
    pub unanswered: bool,
}

/// What `virsh` complains of first when it gives up before it has asked libvirt for anything: the
/// connection and the domain come before the freeze. A connection that is lost later is told otherwise,
/// and after the freeze's own complaint.
const UNREACHED: [&str; 4] = [
    "failed to connect to the hypervisor",
    "failed to get domain ",
    "unknown command: ",
    "no valid connection",
];

/// Errors that libvirt reports before it sends the guest anything.
const UNSENT: [&str; 4] = [
    "guest agent is not connected",
    "guest agent is not configured",
    // The library itself refuses, with the name of the call.
    "read only access prevents virDomainFSFreeze",
    "this function is not supported by the connection driver: virDomainFS",
];

impl Problem {
    pub fn new(text: String) -> Self {
        Self {
            text,
            untouched: false,
            unreached: false,
            refused: false,
            stopped: false,
            unanswered: false,
        }
    }

    fn unanswered(text: String) -> Self {
        Self { unanswered: true, ..Self::new(text) }
    }

    fn unreached(text: String) -> Self {
        Self { untouched: true, unreached: true, ..Self::new(text) }
    }

    /// What `virsh` said itself.
    fn said(text: String, said: &Said) -> Self {
        let first = said.first_error().unwrap_or_default();
        if UNREACHED.iter().any(|words| first.starts_with(words)) {
            return Self::unreached(text);
        }
        let stopped = text.contains("domain is not running");
        let untouched = stopped || UNSENT.iter().any(|words| text.contains(words));
        // "Command guest-fsfreeze-freeze has been disabled": by the agent's settings, or because the
        // guest is frozen already; then the thaw is not disabled.
        let refused = text.contains("guest-fsfreeze-")
            && ["has been disabled", "has not been found"].iter().any(|it| text.contains(it));
        Self { untouched, stopped, refused, ..Self::new(text) }
    }
}

/// Runs `virsh` and gives the number of filesystems that its answer names, or what went wrong.
///
/// `virsh` is killed when `limit` is over, or when the other end of `abort` is closed.
pub(super) fn call(
    virsh: &Virsh,
    verb: Verb,
    guest: &str,
    limit: Duration,
    abort: Option<BorrowedFd<'_>>,
) -> Result<u32, Problem> {
    let mut command = Command::new(&virsh.program);
    if let Some(uri) = &virsh.connect {
        command.arg("--connect").arg(uri);
    }
    command.arg(verb.as_str()).arg(guest).env("LC_ALL", "C");
    let name = format!("{} {}", virsh.program.display(), verb.as_str());
    match program::run(command, limit, abort) {
        Ok((End::Exit(status), said)) if status.success() => Ok(number(&said).unwrap_or(0)),
        Ok((End::Exit(status), said)) => {
            Err(Problem::said(format!("{name}: {status}{}", said.problem()), &said))
        }
        Ok((End::Deadline, _)) => Err(Problem::unanswered(format!(
            "{name} gave no answer in {} and was ended",
            duration::in_ms(limit)
        ))),
        Ok((End::Abort, _)) => {
            Err(Problem::unanswered(format!("{name} was broken off: qdelta is no more")))
        }
        Err(Failure::Start(error)) => {
            Err(Problem::unreached(format!("{name} can't be started: {error}")))
        }
        Err(Failure::Wait(error)) => {
            Err(Problem::unanswered(format!("{name} can't be waited for: {error}")))
        }
    }
}

/// The number of filesystems in "Froze 2 filesystem(s)".
fn number(said: &Said) -> Option<u32> {
    let text = String::from_utf8_lossy(&said.stdout);
    text.split_whitespace().find_map(|word| word.parse().ok())
}
