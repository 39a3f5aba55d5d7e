//! What a lock in a store says of its holder.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::disk::io::Opener;

/// The longest lease that a lock is believed to have, in seconds.
const LEASE_MAX: u64 = 3600;

/// Who holds a lock, as the lock says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// Tells it from every other, on this host and elsewhere.
    pub owner: String,
    /// For people.
    pub holder: String,
    pub process: Process,
    /// How often it was renewed: so no two writes of a lock are the same.
    pub renewals: u64,
    /// How long it holds from when it was written, in seconds.
    pub lease: u64,
}

impl Holder {
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease.min(LEASE_MAX))
    }
}

/// A process, told from every other one that was ever on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Which start of which machine.
    boot: String,
    /// Which numbers of processes, and which time.
    namespace: String,
    id: u32,
    /// When it began, in ticks since the start.
    began: String,
}

impl Process {
    pub fn own() -> Self {
        let id = std::process::id();
        let began = stat(id).ok().and_then(|text| began(&text)).flatten();
        Self { boot: boot(), namespace: namespace(), id, began: began.unwrap_or_default() }
    }

    /// Whether it is known to be gone: nothing is known of those on other hosts.
    pub fn is_gone(&self) -> bool {
        let is_here = !self.boot.is_empty()
            && self.boot == boot()
            && !self.namespace.is_empty()
            && self.namespace == namespace();
        is_here && self.has_ended()
    }

    /// Whether no process of this number runs that began when this one did. Where `/proc` shows nothing of it, it may be
    /// hidden from this user (`hidepid`): the kernel knows.
    fn has_ended(&self) -> bool {
        match stat(self.id) {
            Ok(text) => began(&text).is_some_and(|began| began.is_none_or(|it| it != self.began)),
            Err(_) => {
                let id = self.id.try_into().ok().and_then(Pid::from_raw);
                id.is_none_or(|id| test_kill_process(id) == Err(Errno::SRCH))
            }
        }
    }
}

fn boot() -> String {
    let read = Opener::READ.read_text(Path::new("/proc/sys/kernel/random/boot_id"), 4096);
    read.unwrap_or_default().trim().to_owned()
}

fn namespace() -> String {
    let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}"));
    let Ok(numbers) = link("pid") else { return String::new() };
    // When processes began is told in the time of whoever asks; kernels before 5.6 know one time alone.
    let time = link("time").unwrap_or_default();
    format!("{} {}", numbers.display(), time.display())
}

/// What the kernel tells of a process.
fn stat(id: u32) -> io::Result<String> {
    Opener::READ.read_text(Path::new(&format!("/proc/{id}/stat")), 4096)
}

/// When a process began; none in it if it does not run any more, none at all if that can't be told.
fn began(text: &str) -> Option<Option<String>> {
    // The name before may hold spaces and brackets.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let began = fields.nth(18)?.to_owned();
    Some((!matches!(state, "Z" | "X")).then_some(began))
}
