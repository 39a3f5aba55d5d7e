//! Locks in a store that knows none.
//!
//! A lock that is held alone is an object of the lock's name; a shared one is an object beside it, of an
//! own name for everybody who shares. It says for how long it holds, two minutes, and its holder writes it anew every half
//! minute. One that was not written for so long is dead, by the clock of the store alone: its `Last-Modified` against the `Date` of the same
//! answer. A holder on this very host whose process is gone is dead at once.
//!
//! Taking a lock alone is a `PUT` that fails if the object is there, taking a dead one over a `PUT` that
//! fails if the dead one has changed: of several only one succeeds. Who takes it alone writes first and then
//! looks for those who share; who shares writes first and then looks for somebody who has it alone. So at least
//! one of two sees the other, and gives way.
//!
//! A holder may sleep longer than its lease and wake up unaware. So everything that it changes below the
//! lock is signed to end with the lease: the store refuses what comes later, when somebody else may
//! have the lock.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::client::{Ask, Client, Failure};
use super::{Shared, listing};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::disk::io::Opener;
use crate::vault::repository::storage::host_name;
use crate::vault::repository::storage::{Lock, Locked, Name};

/// A lock is renewed when this part of its lease is over.
const RENEWAL: u32 = 4;
/// When this part of it is left, nothing is begun any more that must end with it.
const MARGIN: i32 = 8;
/// The longest lease that a lock is believed to have, in seconds.
const LEASE_MAX: u64 = 3600;
/// How long a lock holds that does not say how long.
const UNSAID: SignedDuration = SignedDuration::from_secs(120);
/// The longest lock that is read, in bytes.
const LEN_MAX: u64 = 4096;
/// How often somebody else's lock is looked at again that has just ended.
const TRIES_MAX: u32 = 3;

/// What a lock says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Tells it from every other, on this host and elsewhere.
    owner: String,
    /// For people.
    holder: String,
    process: Process,
    /// How often it was renewed: so no two writes of a lock are the same.
    renewals: u64,
    /// How long it holds from when it was written, in seconds.
    lease: u64,
}

impl Holder {
    fn lease(&self) -> SignedDuration {
        SignedDuration::from_secs(self.lease.min(LEASE_MAX).cast_signed())
    }
}

/// A process, told from every other one that was ever on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    /// Which start of which machine.
    boot: String,
    /// Which numbers of processes.
    namespace: String,
    id: u32,
    /// When it began, in ticks since the start.
    began: String,
}

impl Process {
    fn own() -> Self {
        let id = std::process::id();
        let began = stat(id).ok().and_then(|text| began(&text)).flatten();
        Self { boot: boot(), namespace: namespace(), id, began: began.unwrap_or_default() }
    }

    /// Whether it is known to be gone: nothing is known of those on other hosts.
    fn is_gone(&self) -> bool {
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
    let link = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().into_owned()
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

/// A lock that this process holds, as long as it is renewed.
#[derive(Debug)]
pub(super) struct Lease {
    key: String,
    shown: String,
    /// Nobody else may have it, or others share it.
    is_alone: bool,
    is_lost: AtomicBool,
    lease: SignedDuration,
    state: Mutex<LeaseState>,
}

#[derive(Debug)]
struct LeaseState {
    holder: Holder,
    etag: String,
    /// When the lease ends, by the store's clock.
    ends: Timestamp,
}

impl Lease {
    /// Until when, by the store's clock, its holder may change something; renewed if that is soon.
    pub fn fence(&self, client: &Client) -> Result<Timestamp> {
        let lost = || {
            Error::new(
                ErrorKind::Busy,
                format!("the lock {} was taken by somebody else", self.shown),
            )
            .because("this host could not renew it in time")
            .advise("nothing was published; try again")
        };
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(lost());
        }
        let now = client.now()?;
        let ends = self.state.lock().unwrap_or_else(PoisonError::into_inner).ends;
        if ends.duration_since(now) > self.lease / 2 {
            return Ok(ends - self.lease / MARGIN);
        }
        match self.renew(client) {
            Ok(ends) => Ok(ends - self.lease / MARGIN),
            Err(failure) if failure.is_conflict() || failure.is_missing() => Err(lost()),
            Err(failure) => Err(failure.into_error("renew the lock", &self.shown)),
        }
    }

    /// Writes the lock anew, if it is still ours.
    fn renew(&self, client: &Client) -> Result<Timestamp, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut holder = state.holder.clone();
        holder.renewals += 1;
        let condition = match self.is_alone {
            true => Some(("if-match", state.etag.clone())),
            false => None,
        };
        match put(client, &self.key, &holder, condition) {
            Ok((etag, date)) => {
                *state = LeaseState { holder, etag, ends: date + self.lease };
                Ok(state.ends)
            }
            Err(failure) => {
                // An answer may have been lost: then the lock that is there is ours, only newer.
                let found = match failure.is_unknown() {
                    true => look(client, &self.key).ok().flatten(),
                    false => None,
                };
                if let Some(found) = found
                    && found.holder.as_ref().is_some_and(|it| it.owner == holder.owner)
                    && let Some(modified) = found.modified
                {
                    let ends = modified + self.lease;
                    *state = LeaseState { holder, etag: found.etag, ends };
                    return Ok(ends);
                }
                if failure.is_conflict() || failure.is_missing() {
                    self.is_lost.store(true, Ordering::SeqCst);
                }
                Err(failure)
            }
        }
    }
}

/// A lock as it is in the store.
struct Found {
    holder: Option<Holder>,
    etag: String,
    modified: Option<Timestamp>,
    /// By the store's clock.
    age: Option<SignedDuration>,
}

impl Found {
    fn is_dead(&self) -> bool {
        let lease = self.holder.as_ref().map_or(UNSAID, Holder::lease);
        self.age.is_some_and(|age| age > lease)
            || self.holder.as_ref().is_some_and(|holder| holder.process.is_gone())
    }

    fn shown(&self) -> String {
        let name = self.holder.as_ref().map_or("another process", |it| it.holder.as_str());
        name.chars().filter(|c| !c.is_control()).take(200).collect()
    }
}

/// Looks at a lock; none if there is none.
fn look(client: &Client, key: &str) -> Result<Option<Found>, Failure> {
    let answer = match client.send(&Ask::new("GET", key).at_most(LEN_MAX)) {
        Err(failure) if failure.is_missing() => return Ok(None),
        answer => answer?,
    };
    let modified = answer.header("last-modified").and_then(super::client::time);
    let age = answer.date().zip(modified).map(|(now, then)| now.duration_since(then));
    let holder = serde_json::from_slice(&answer.body).ok();
    Ok(Some(Found { holder, etag: answer.etag().unwrap_or_default(), modified, age }))
}

/// Writes a lock; gives its ETag and when it was written.
fn put(
    client: &Client,
    key: &str,
    holder: &Holder,
    condition: Option<(&str, String)>,
) -> Result<(String, Timestamp), Failure> {
    let body = serde_json::to_vec(holder).unwrap_or_default();
    let mut ask = Ask::new("PUT", key).body(&body).at_most(LEN_MAX);
    if let Some((name, value)) = condition {
        ask = ask.header(name, value);
    }
    let answer = client.send(&ask)?;
    let whole = answer.etag().zip(answer.date());
    whole.ok_or_else(|| Failure::unclear("it has no ETag or no date"))
}

fn holder(shared: &Shared) -> Result<Holder> {
    let owner: [u8; 12] = random::bytes()?;
    let owner = owner.iter().map(|byte| format!("{byte:02x}")).collect();
    let holder = format!("process {} on {}", std::process::id(), host_name());
    let lease = shared.client.address.lease.as_secs();
    Ok(Holder { owner, holder, process: Process::own(), renewals: 0, lease })
}

/// Takes a lock alone.
pub(super) fn take_alone(shared: &Arc<Shared>, name: &Name) -> Result<Locked> {
    let key = shared.key(name);
    let shown = shared.shown(&key);
    let client = &shared.client;
    let failed = |failure: Failure| failure.into_error("take the lock", &shown);
    let holder = holder(shared)?;
    let mut condition = ("if-none-match", "*".to_owned());
    let mut tries = 0;
    let (etag, date) = loop {
        let failure = match put(client, &key, &holder, Some(condition.clone())) {
            Ok(written) => break written,
            Err(failure) => failure,
        };
        if !failure.is_conflict() && !failure.is_missing() && !failure.is_unknown() {
            return Err(failed(failure));
        }
        let Some(found) = look(client, &key).map_err(failed)? else {
            // It has just ended.
            condition = ("if-none-match", "*".to_owned());
            tries += 1;
            if tries > TRIES_MAX {
                return Err(failed(failure));
            }
            continue;
        };
        let is_ours = found.holder.as_ref().is_some_and(|it| it.owner == holder.owner);
        if let Some(modified) = found.modified.filter(|_| is_ours) {
            break (found.etag, modified);
        }
        tries += 1;
        if !found.is_dead() || tries > TRIES_MAX {
            return Ok(Locked::Busy(found.shown()));
        }
        condition = ("if-match", found.etag);
    };
    let lease = hold(shared, name, key, holder, (etag, date), true)?;
    let is_first = {
        let state = shared.state();
        state.held.get(&lease.folder).is_some_and(|held| Arc::ptr_eq(held, &lease.lease))
    };
    match who_shares(shared, name, is_first)? {
        Some(other) => Ok(Locked::Busy(other)),
        None => Ok(Locked::Held(Box::new(lease))),
    }
}

/// Takes a lock that others may share.
pub(super) fn share(shared: &Arc<Shared>, name: &Name) -> Result<Locked> {
    let holder = holder(shared)?;
    let key = format!("{}.{}", shared.key(name), holder.owner);
    let written = match put(&shared.client, &key, &holder, None) {
        // Who may only read is not kept from reading.
        Err(failure) if failure.status == Some(403) => {
            tracing::debug!("{}: not locked for reading", shared.shown(&key));
            return Ok(Locked::Held(Box::new(NoLock)));
        }
        written => written.map_err(|it| it.into_error("take the lock", &shared.shown(&key)))?,
    };
    let lease = hold(shared, name, key, holder, written, false)?;
    let alone = look(&shared.client, &shared.key(name));
    let alone =
        alone.map_err(|it| it.into_error("look at the lock", &shared.shown(&lease.lease.key)))?;
    match alone.filter(|found| !found.is_dead()) {
        Some(found) => Ok(Locked::Busy(found.shown())),
        None => Ok(Locked::Held(Box::new(lease))),
    }
}

/// Who shares a lock and is alive.
fn who_shares(shared: &Shared, name: &Name, is_first: bool) -> Result<Option<String>> {
    let prefix = format!("{}.", shared.key(name));
    let shares = |listing: &listing::Listing| -> Vec<String> {
        listing.objects.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    };
    // What was listed before the lock was written may have changed since.
    let keys = match is_first {
        true => shared.known(&prefix, shares)?.unwrap_or_default(),
        false => shares(&listing::objects(&shared.client, &prefix, true)?),
    };
    for key in &keys {
        let failed = |it: Failure| it.into_error("look at the lock", &shared.shown(key));
        match look(&shared.client, key).map_err(failed)? {
            Some(found) if !found.is_dead() => return Ok(Some(found.shown())),
            // Whoever left it does not come back: a sleeper that wakes up reads on, and may miss a file.
            _ => shared.delete(key)?,
        }
    }
    Ok(None)
}

/// A lock that promises nothing.
#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}

/// A lock that is renewed until it is dropped.
struct StoreLock {
    shared: Arc<Shared>,
    folder: String,
    lease: Arc<Lease>,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl fmt::Debug for StoreLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLock").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Lock for StoreLock {}

/// Begins to renew a lock that was written.
fn hold(
    shared: &Arc<Shared>,
    name: &Name,
    key: String,
    holder: Holder,
    (etag, date): (String, Timestamp),
    is_alone: bool,
) -> Result<StoreLock> {
    let span = holder.lease();
    let state = LeaseState { holder, etag, ends: date + span };
    let lease = Arc::new(Lease {
        lease: span,
        shown: shared.shown(&key),
        key,
        is_alone,
        is_lost: AtomicBool::new(false),
        state: Mutex::new(state),
    });
    let (stop, stopped) = bounded(1);
    let pause = shared.client.address.lease / RENEWAL;
    let (renewed, store) = (Arc::clone(&lease), Arc::clone(shared));
    let thread = std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
            // One that is lost, or can't be renewed, is told to whoever changes something next.
            if let Err(failure) = renewed.renew(&store.client) {
                let error = failure.into_error("renew the lock", &renewed.shown);
                tracing::debug!("{}", error.chain());
            }
        }
    });
    let thread = thread
        .map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread").because(error))?;
    let folder = shared.prefix(&name.folder().unwrap_or_else(Name::top));
    if is_alone {
        let mut state = shared.state();
        // The first one in a folder makes this process its only writer.
        state.held.entry(folder.clone()).or_insert_with(|| Arc::clone(&lease));
    }
    let renewer = Some((stop, thread));
    Ok(StoreLock { shared: Arc::clone(shared), folder, lease, renewer })
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.renewer.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        // Before the lock ends, so that nothing is answered from what was known under it.
        let litter = {
            let mut state = self.shared.state();
            let is_first =
                state.held.get(&self.folder).is_some_and(|held| Arc::ptr_eq(held, &self.lease));
            if is_first {
                state.held.remove(&self.folder);
                state.listings.remove(&self.folder);
                // What was seen holds only as long as nobody else changes it.
                state.seen.retain(|key, _| !key.starts_with(&self.folder));
            }
            if is_first { state.litter.remove(&self.folder) } else { None }
        };
        if self.lease.is_lost.load(Ordering::SeqCst) {
            return;
        }
        let ends = {
            let state = self.lease.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.ends - self.lease.lease / MARGIN
        };
        // Where it can't be removed now, it is dead when its lease is over.
        let until = self.lease.is_alone.then_some(ends);
        let mut keys = litter.unwrap_or_default();
        keys.push(self.lease.key.clone());
        let _ = self.shared.delete_all(&keys, until);
    }
}
