//! Locks in a store that knows none.
//!
//! A lock that is held alone is an object of the lock's name; a shared one is an object beside it, of an
//! own name for everybody who shares. It says for how long it holds, two minutes, and its holder writes it anew every half
//! minute.
//!
//! A lock is dead that nobody wrote for a whole lease while somebody watched it, by the watcher's own clock. No two
//! clocks are compared for that: what stands in front of a store may write a `Date` of its own, and each node of a
//! store may have another clock for `Last-Modified`; where one is two minutes ahead, every lock would be dead. What they
//! say decides only whether watching is worth it: a lock that seems to be young is somebody's. So nobody waits who
//! finds no lock, or one that is renewed; whoever finds one that was left waits for a lease. A holder on this very host
//! whose process is gone is dead at once.
//!
//! A holder counts its lease from before it asked for the lock to be written, so it ends before a watcher's does that
//! began when the lock had been written.
//!
//! Taking a lock alone is a `PUT` that fails if the object is there, taking a dead one over a `PUT` that
//! fails if the dead one has changed: of several only one succeeds. Who takes it alone writes first and then
//! looks for those who share; who shares writes first and then looks for somebody who has it alone. So at least
//! one of two sees the other, and gives way.
//!
//! A holder may sleep longer than its lease and wake up unaware. So everything that it changes below the
//! lock is signed to end with the lease: the store refuses what comes later, when somebody else may
//! have the lock. By which clock the store judges that, [`super::clocks`] finds out: it compares two of them at the
//! holder's own lock in the first list of the folder.
//!
//! All this can fail: somebody removes a lock by hand, or runs a program that thinks otherwise. So before something goes
//! for good, and after something got its name that others could take for a leftover, the holder looks whether the
//! lock is still its own ([`Lock::prove`]). Nobody writes it but the holder over what it wrote itself. So if it is
//! the holder's, nobody else had it meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::client::{Ask, Client, Failure};
use super::clocks::SAME_CLOCK;
use super::listing::{self, Seen};
use super::{Shared, State};
use crate::base::duration;
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
const UNSAID: Duration = Duration::from_secs(120);
/// The longest lock that is read, in bytes.
const LEN_MAX: u64 = 4096;
/// How often somebody else's lock is looked at again that has just ended.
const TRIES_MAX: u32 = 3;
/// How often a lock is looked at while its lease runs out.
const LOOKS: u32 = 8;
/// No longer lease of a lock that was left is waited for, unless this host's own locks hold for longer.
const WATCHED_MAX: Duration = Duration::from_secs(600);

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
    fn lease(&self) -> Duration {
        Duration::from_secs(self.lease.min(LEASE_MAX))
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
    written: Written,
}

/// What is known of a lock that this process wrote.
#[derive(Debug)]
struct Written {
    etag: String,
    /// When it began to be written, by the `Date` of the store's answers: at the latest when one said so.
    begun: Timestamp,
    /// The `Date` of the answer, if one came.
    date: Option<Timestamp>,
    /// When this process last began to ask something whose answer proves that the lock was its own.
    proved: Instant,
}

impl Lease {
    /// Until when, by the `Date` of the store's answers, its holder may change something; renewed if that is soon.
    pub fn fence(&self, client: &Client) -> Result<Timestamp> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        let mut renewals = 0;
        loop {
            // It may just be being renewed, for long.
            let ends = self.ends(&self.state().written);
            if ends.duration_since(client.now()?) > self.lease / 2 {
                return Ok(ends - self.lease / MARGIN);
            }
            if renewals == TRIES_MAX {
                let text = format!("the lock {} could not be renewed in time", self.shown);
                return Err(Error::new(ErrorKind::Busy, text)
                    .because("the store answered too late")
                    .advise("try again when the store answers faster"));
            }
            // What came of a renewal that was tried for long may be over when it is done.
            renewals += 1;
            match self.renew(client) {
                Ok(_) => {}
                Err(failure) if failure.is_conflict() || failure.is_missing() => {
                    return Err(self.lost());
                }
                Err(failure) => return Err(failure.into_error("renew the lock", &self.shown)),
            }
        }
    }

    /// Writes the lock anew, if it is still ours.
    fn renew(&self, client: &Client) -> Result<Timestamp, Failure> {
        let mut state = self.state();
        let mut tries = 0;
        loop {
            // No two writes are the same, of which one may be done late.
            state.holder.renewals += 1;
            let condition = match self.is_alone {
                true => Some(("if-match", state.written.etag.clone())),
                false => None,
            };
            let failure = match put(client, &self.key, &state.holder, condition) {
                Ok(written) => {
                    state.written = written;
                    return Ok(self.ends(&state.written));
                }
                Err(failure) => failure,
            };
            // An earlier renewal of ours may have been done after all; when that was, nobody knows. And something in front
            // of the store may say of what is there that it is missing.
            if (failure.is_conflict() || failure.is_missing())
                && tries < TRIES_MAX
                && let Some(found) = look(client, &self.key)?
                && found.is_of(&state.holder)
                && (failure.is_missing() || found.etag != state.written.etag)
            {
                state.written.etag = found.etag;
                tries += 1;
                continue;
            }
            if failure.is_conflict() || failure.is_missing() {
                self.is_lost.store(true, Ordering::SeqCst);
            }
            return Err(failure);
        }
    }

    /// Fails unless the lock was this process's alone all the time until `within` ago, or later.
    fn prove(&self, client: &Client, within: Duration) -> Result<()> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        // Not while it is being renewed.
        let mut state = self.state();
        if state.written.proved.elapsed() <= within {
            return Ok(());
        }
        let asked = Instant::now();
        let found = match look(client, &self.key) {
            Ok(None) => look(client, &self.key),
            found => found,
        };
        let found = found.map_err(|it| it.into_error("look at the lock", &self.shown))?;
        if !found.is_some_and(|found| found.is_of(&state.holder)) {
            self.is_lost.store(true, Ordering::SeqCst);
            return Err(self.lost());
        }
        state.written.proved = asked;
        Ok(())
    }

    /// Compares the `Date` of the answer that said that the lock was written with the time that the store wrote down
    /// for it, as a list tells.
    pub fn compare_clocks(&self, client: &Client, seen: &Seen) {
        let state = self.state();
        if seen.etag == state.written.etag {
            client.clocks.compare(state.written.date, seen.modified);
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    fn state(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self, written: &Written) -> Timestamp {
        written.begun.saturating_add(self.lease).unwrap_or(Timestamp::MAX)
    }

    fn lost(&self) -> Error {
        let text = format!("the lock {} was taken by somebody else", self.shown);
        Error::new(ErrorKind::Busy, text)
            .because("this host could not renew it in time, or somebody has removed it")
            .advise("nothing was published; try again")
    }
}

/// A lock as it is in the store.
#[derive(Clone)]
struct Found {
    holder: Option<Holder>,
    etag: String,
    /// As the `Date` of the answer and its `Last-Modified` say, which may be of two clocks.
    age: Option<SignedDuration>,
    /// It says that it holds for longer than this, which nobody waits for.
    is_too_long: Option<Duration>,
}

impl Found {
    fn lease(&self) -> Duration {
        self.holder.as_ref().map_or(UNSAID, Holder::lease)
    }

    /// Whether it is known that nobody holds it any more.
    fn is_of_the_dead(&self) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.process.is_gone())
    }

    /// Whether it seems to be renewed. What was written after now, or nobody knows when, says nothing.
    fn seems_alive(&self) -> bool {
        let lease = SignedDuration::try_from(self.lease()).unwrap_or(SignedDuration::MAX);
        !self.is_of_the_dead() && self.age.is_some_and(|age| (-SAME_CLOCK..=lease).contains(&age))
    }

    /// Whether nobody has written it in between.
    fn is_same(&self, before: &Self) -> bool {
        self.etag == before.etag && self.holder == before.holder
    }

    fn is_of(&self, holder: &Holder) -> bool {
        self.holder.as_ref().is_some_and(|it| it.owner == holder.owner)
    }

    fn shown(&self) -> String {
        let name = self.holder.as_ref().map_or("another process", |it| it.holder.as_str());
        let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
        match self.is_too_long {
            Some(most) => format!(
                "{name}, or its lock was left: it holds for {}, longer than this host waits ({}; lease=SECONDS in \
                 the address)",
                duration::shown(self.lease()),
                duration::shown(most)
            ),
            None => name,
        }
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
    Ok(Some(Found { holder, etag: answer.etag().unwrap_or_default(), age, is_too_long: None }))
}

/// What is known of the locks of others.
enum Others {
    /// Somebody lives who has one of them.
    Alive(Found),
    /// Nobody does: what was left, by its key.
    Dead(BTreeMap<String, Found>),
}

/// Looks at locks, and watches those that seem to be dead for as long as they would hold. A lock of `own` is no one
/// else's.
fn others(client: &Client, keys: &[String], own: &Holder) -> Result<Others, Failure> {
    let mut left = BTreeMap::new();
    for key in keys {
        match look(client, key)? {
            Some(found) if !found.is_of(own) && found.seems_alive() => {
                return Ok(Others::Alive(found));
            }
            Some(found) => drop(left.insert(key.clone(), found)),
            None => {}
        }
    }
    // All have been looked at: whoever lives writes one of them from now on.
    let begun = Instant::now();
    let is_unclear = |found: &Found| !found.is_of_the_dead() && !found.is_of(own);
    let mut watched: Vec<(String, Found)> = left.clone().into_iter().collect();
    watched.retain(|(_, found)| is_unclear(found));
    let Some((_, longest)) = watched.iter().max_by_key(|(_, found)| found.lease()) else {
        return Ok(Others::Dead(left));
    };
    let lease = longest.lease();
    // Anybody who may write in the bucket may leave a lock that says that it holds for long.
    let most = WATCHED_MAX.max(client.address.lease);
    if lease > most {
        let mut longest = longest.clone();
        longest.is_too_long = Some(most);
        return Ok(Others::Alive(longest));
    }
    tracing::debug!("watching for {lease:?} whether the holder of a lock lives: {keys:?}");
    while let Some(rest) = lease.checked_sub(begun.elapsed()) {
        std::thread::sleep(rest.min(lease / LOOKS));
        for (key, before) in &watched {
            match look(client, key)? {
                Some(found) if !found.is_same(before) => return Ok(Others::Alive(found)),
                Some(_) => {}
                None => drop(left.remove(key)),
            }
        }
    }
    Ok(Others::Dead(left))
}

/// Writes a lock. Where nobody can tell whether that was done, or another one stands there, whatever is there is looked
/// at: something between may have asked the store twice.
fn put(
    client: &Client,
    key: &str,
    holder: &Holder,
    condition: Option<(&str, String)>,
) -> Result<Written, Failure> {
    let body = serde_json::to_vec(holder).unwrap_or_default();
    let mut ask = Ask::new("PUT", key).body(&body).at_most(LEN_MAX);
    if let Some((name, value)) = condition {
        ask = ask.header(name, value);
    }
    let (begun, proved) = (client.now().map_err(Failure::local)?, Instant::now());
    let failure = match client.send(&ask) {
        Ok(answer) => match answer.etag() {
            Some(etag) => {
                let date = answer.date();
                // Whatever this host thought of the store's clock before the first answer came.
                let begun = date.map_or(begun, |date| begun.min(date));
                return Ok(Written { etag, begun, date, proved });
            }
            None => Failure::unclear("it has no ETag"),
        },
        Err(failure) => failure,
    };
    if failure.is_unknown() || failure.is_conflict() {
        let found = look(client, key).ok().flatten();
        if let Some(found) = found
            && found.holder.as_ref() == Some(holder)
        {
            return Ok(Written { etag: found.etag, begun, date: None, proved });
        }
    }
    Err(failure)
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
    let written = loop {
        let failure = match put(client, &key, &holder, Some(condition)) {
            Ok(written) => break written,
            Err(failure) => failure,
        };
        if !failure.is_conflict() && !failure.is_missing() && !failure.is_unknown() {
            return Err(failed(failure));
        }
        tries += 1;
        // Where the answer was lost, the lock is ours.
        let left = match others(client, std::slice::from_ref(&key), &holder).map_err(failed)? {
            Others::Alive(found) => return Ok(Locked::Busy(found.shown())),
            Others::Dead(mut left) => left.remove(&key),
        };
        condition = match left {
            Some(found) if tries > TRIES_MAX => return Ok(Locked::Busy(found.shown())),
            Some(found) => ("if-match", found.etag),
            None if tries > TRIES_MAX => return Err(failed(failure)),
            // It has just ended.
            None => ("if-none-match", "*".to_owned()),
        };
    };
    let lease = hold(shared, name, key, holder, written, true)?;
    let is_first = {
        let state = shared.state();
        state.held.get(&lease.folder).is_some_and(|held| Arc::ptr_eq(held, &lease.lease))
    };
    let own = lease.lease.state().holder.clone();
    match who_shares(shared, name, is_first, &own)? {
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
    let own = lease.lease.state().holder.clone();
    let alone = others(&shared.client, &[shared.key(name)], &own);
    match alone.map_err(|it| it.into_error("look at the lock", &shared.shown(&lease.lease.key)))? {
        Others::Alive(found) => Ok(Locked::Busy(found.shown())),
        Others::Dead(_) => Ok(Locked::Held(Box::new(lease))),
    }
}

/// Who shares a lock and is alive.
fn who_shares(
    shared: &Shared,
    name: &Name,
    is_first: bool,
    own: &Holder,
) -> Result<Option<String>> {
    let prefix = format!("{}.", shared.key(name));
    let shares = |listing: &listing::Listing| -> Vec<String> {
        listing.objects.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    };
    // What was listed before the lock was written may have changed since.
    let keys = match is_first {
        true => shared.known(&prefix, shares)?.unwrap_or_default(),
        false => shares(&listing::objects(&shared.client, &prefix, true)?),
    };
    let failed =
        |it: Failure| it.into_error("look at the locks of readers of", &shared.shown(&prefix));
    let left = match others(&shared.client, &keys, own).map_err(failed)? {
        Others::Alive(found) => return Ok(Some(found.shown())),
        Others::Dead(left) => left,
    };
    // Whoever left one does not come back: a sleeper that wakes up reads on, and may miss a file.
    left.keys().try_for_each(|key| shared.delete(key))?;
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

impl Lock for StoreLock {
    fn prove(&self, within: Duration) -> Result<()> {
        let proved = self.lease.prove(&self.shared.client, within);
        if self.lease.is_lost.load(Ordering::SeqCst) {
            // Somebody else has changed what was known under it.
            self.shared.state().forget(&self.folder, &self.lease);
        }
        proved
    }
}

impl State {
    /// Forgets what is known of a folder that is held by this lease; whether it is.
    fn forget(&mut self, folder: &str, lease: &Arc<Lease>) -> bool {
        let is_first = self.held.get(folder).is_some_and(|held| Arc::ptr_eq(held, lease));
        if is_first {
            self.listings.remove(folder);
            self.seen.retain(|key, _| !key.starts_with(folder));
        }
        is_first
    }
}

/// Begins to renew a lock that was written.
fn hold(
    shared: &Arc<Shared>,
    name: &Name,
    key: String,
    holder: Holder,
    written: Written,
    is_alone: bool,
) -> Result<StoreLock> {
    let span = SignedDuration::try_from(holder.lease()).unwrap_or(SignedDuration::MAX);
    let state = LeaseState { holder, written };
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
            // What was seen holds only as long as nobody else changes it.
            match state.forget(&self.folder, &self.lease) {
                true => {
                    state.held.remove(&self.folder);
                    state.litter.remove(&self.folder)
                }
                false => None,
            }
        };
        if self.lease.is_lost.load(Ordering::SeqCst) {
            return;
        }
        let ends = self.lease.ends(&self.lease.state().written) - self.lease.lease / MARGIN;
        // Where it can't be removed now, it is dead when its lease is over.
        let until = self.lease.is_alone.then_some(ends);
        let mut keys = litter.unwrap_or_default();
        keys.push(self.lease.key.clone());
        let _ = self.shared.delete_all(&keys, until);
    }
}
