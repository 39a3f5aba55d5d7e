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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use jiff::{SignedDuration, Timestamp};

use super::client::{Ask, Client};
use super::clocks::{Age, Date};
use super::failure::Failure;
use super::holder::{Holder, Process};
use super::listing::{self, Seen};
use super::{Shared, State};
use crate::base::clock;
use crate::base::duration;
use crate::base::error::{AGAIN, Error, ErrorKind, Result};
use crate::base::random;
use crate::base::warning::{Code, Warning};
use crate::vault::repository::storage::host_name;
use crate::vault::repository::storage::{Lock, Locked, Name, Wait};

/// A lock is renewed when this part of its lease is over.
const RENEWAL: u32 = 4;
/// When this part of it is left, nothing is begun any more that must end with it.
const MARGIN: i32 = 8;
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

/// A lock that this process holds, as long as it is renewed.
#[derive(Debug)]
pub(super) struct Lease {
    key: String,
    shown: String,
    /// Nobody else may have it, or others share it.
    is_alone: bool,
    is_lost: AtomicBool,
    lease: SignedDuration,
    /// Nobody waits for the store while it is held.
    state: Mutex<LeaseState>,
    /// Held by whoever is about to write the lock anew.
    turn: Mutex<()>,
}

/// Until when, by the `Date` of the store's answers, something may be changed, and under which lock.
#[derive(Debug)]
pub(super) struct Fence {
    pub until: Timestamp,
    pub lease: Arc<Lease>,
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
    /// The `Date` of the answer, or what stands in its place, if one is known.
    date: Option<Date>,
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
            // While it is being renewed, what it was before holds on.
            if let Some(until) = self.enough(client)? {
                return Ok(until);
            }
            let turn = self.turn();
            if let Some(until) = self.enough(client)? {
                return Ok(until);
            }
            if renewals == TRIES_MAX {
                let text = format!("the lock {} could not be renewed in time", self.shown);
                return Err(Error::new(ErrorKind::Busy, text)
                    .because("the store answered too late")
                    .advise("try again when the store answers faster"));
            }
            // What came of a renewal that was tried for long may be over when it is done.
            renewals += 1;
            match self.renew(client, turn) {
                Ok(()) => {}
                Err(_) if self.is_lost.load(Ordering::SeqCst) => return Err(self.lost()),
                Err(failure) => return Err(failure.into_error("renew the lock", &self.shown)),
            }
        }
    }

    /// Until when its holder may change something now that the lock was written anew, after the store said of a change
    /// that it came too late.
    pub fn renewed(&self, client: &Client) -> Result<Timestamp, Failure> {
        self.renew(client, self.turn())?;
        self.fence(client).map_err(Failure::local)
    }

    /// Until when something may be changed, if enough of the lease is left for it.
    fn enough(&self, client: &Client) -> Result<Option<Timestamp>> {
        let ends = self.ends(&self.state().written);
        let is_enough = client.clocks.left(ends)? > self.lease / 2;
        Ok(is_enough.then(|| ends - self.lease / MARGIN))
    }

    /// Writes the lock anew, if it is still ours, by whose turn it is.
    fn renew(&self, client: &Client, _turn: MutexGuard<'_, ()>) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let (holder, etag) = {
                let mut state = self.state();
                // No two writes are the same, of which one may be done late.
                state.holder.renewals += 1;
                (state.holder.clone(), state.written.etag.clone())
            };
            let condition = self.is_alone.then_some(("if-match", etag));
            let failure = match put(client, &self.key, &holder, condition) {
                Ok(written) => {
                    self.state().written = written;
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if !failure.is_conflict() && !failure.is_missing() {
                return Err(failure);
            }
            // An earlier renewal of ours may have been done after all, or is just being done; when that is, nobody knows.
            // And something in front of the store may say of what is there that it is missing.
            match look(client, &self.key)? {
                Some(found) if found.is_of(&holder) => self.state().written.etag = found.etag,
                _ => {
                    self.is_lost.store(true, Ordering::SeqCst);
                    return Err(failure);
                }
            }
            if tries == TRIES_MAX {
                return Err(failure);
            }
            tries += 1;
        }
    }

    /// Fails unless the lock was this process's alone all the time until `within` ago, or later.
    fn prove(&self, client: &Client, within: Duration) -> Result<()> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(self.lost());
        }
        let holder = {
            let state = self.state();
            if state.written.proved.elapsed() <= within {
                return Ok(());
            }
            state.holder.clone()
        };
        let asked = Instant::now();
        // What is as it was written is ours, whatever came of its bytes on the way.
        let is_ours =
            |found: &Found| found.is_of(&holder) || found.etag == self.state().written.etag;
        let found = match look(client, &self.key) {
            Ok(Some(found)) if found.holder.is_none() && !is_ours(&found) => {
                look(client, &self.key)
            }
            Ok(None) => look(client, &self.key),
            found => found,
        };
        let found = found.map_err(|it| it.into_error("look at the lock", &self.shown))?;
        if !found.as_ref().is_some_and(is_ours) {
            self.is_lost.store(true, Ordering::SeqCst);
            return Err(self.lost());
        }
        let written = &mut self.state().written;
        // It may have been renewed since.
        written.proved = written.proved.max(asked);
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

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self, written: &Written) -> Timestamp {
        written.begun.saturating_add(self.lease).unwrap_or(Timestamp::MAX)
    }

    fn lost(&self) -> Error {
        let text = format!("the lock {} was taken by somebody else", self.shown);
        Error::new(ErrorKind::Busy, text)
            .because("this host could not renew it in time, or somebody has removed it")
            .advise(AGAIN)
    }
}

/// A lock as it is in the store.
#[derive(Clone)]
struct Found {
    holder: Option<Holder>,
    etag: String,
    /// As the `Date` of the answer and its `Last-Modified` say, which may be of two clocks.
    age: Option<Age>,
    /// As the store says, by its own clock.
    modified: Option<Timestamp>,
    /// The answer had a `Date`.
    is_dated: bool,
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

    /// Whether it seems to be renewed, of one whose holder may live. What was written after now, or nobody knows when,
    /// says nothing.
    fn seems_alive(&self) -> bool {
        self.age.is_some_and(|age| age.is_within(self.lease()))
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
    let answer = match client.send(&Ask::new("GET", key).at_most(LEN_MAX).of_lock()) {
        Err(failure) if failure.is_missing() => return Ok(None),
        answer => answer?,
    };
    let modified = answer.header("last-modified").and_then(super::clocks::time);
    let date = answer.date();
    let age = date.zip(modified).map(|(now, then)| now.age_of(then));
    let holder = serde_json::from_slice(&answer.body).ok();
    let etag = answer.etag().unwrap_or_default();
    let is_dated = date.is_some();
    Ok(Some(Found { holder, etag, age, modified, is_dated, is_too_long: None }))
}

/// What is known of the locks of others.
enum Others {
    /// Somebody lives who has one of them.
    Alive(Box<Found>),
    /// Nobody does: what was left, by its key.
    Dead(BTreeMap<String, Found>),
}

/// Looks at locks, and watches those that seem to be dead for as long as they would hold. A lock of `own` is no one
/// else's, nor is one that this process could not remove.
fn others(
    shared: &Shared,
    keys: &[String],
    own: &Holder,
    wait: Wait<'_>,
) -> Result<Others, Failure> {
    let client = &shared.client;
    let may_be_held = |found: &Found| {
        !found.is_of(own) && !found.is_of_the_dead() && !shared.has_left(found.holder.as_ref())
    };
    let mut left = BTreeMap::new();
    for key in keys {
        match look(client, key)? {
            Some(found) if may_be_held(&found) && found.seems_alive() => {
                return Ok(Others::Alive(Box::new(found)));
            }
            Some(found) => drop(left.insert(key.clone(), found)),
            None => {}
        }
    }
    // All have been looked at: whoever lives writes one of them from now on.
    let mut watched: Vec<(String, Found)> = left.clone().into_iter().collect();
    watched.retain(|(_, found)| may_be_held(found));
    let Some((key, longest)) = watched.iter().max_by_key(|(_, found)| found.lease()) else {
        return Ok(Others::Dead(left));
    };
    let lease = longest.lease();
    // Anybody who may write in the bucket may leave a lock that says that it holds for long.
    let most = WATCHED_MAX.max(client.address.lease);
    if lease > most {
        let mut longest = longest.clone();
        longest.is_too_long = Some(most);
        return Ok(Others::Alive(Box::new(longest)));
    }
    let mut watch = wait.begin(watching(&shared.shown(key), longest), lease);
    while watch.goes_on(lease / LOOKS).map_err(Failure::local)? {
        for (key, before) in &watched {
            match look(client, key)? {
                Some(found) if !found.is_same(before) => {
                    return Ok(Others::Alive(Box::new(found)));
                }
                Some(_) => {}
                None => drop(left.remove(key)),
            }
        }
    }
    Ok(Others::Dead(left))
}

/// What is said where a lock is watched.
fn watching(lock: &str, found: &Found) -> Warning {
    let since = found.modified.map_or_else(String::new, |time| {
        format!(", which was written last at {time} by the clock of the store,")
    });
    let text = format!(
        "the lock {lock} of {}{since} seems to be left: waiting for {} to see whether its holder lives",
        found.shown(),
        duration::shown(found.lease())
    );
    Warning::new(Code::LeftLock, text).advise("a request to stop ends the wait")
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
    let mut ask = Ask::new("PUT", key).body(&body).at_most(LEN_MAX).of_lock();
    if let Some((name, value)) = condition {
        ask = ask.header(name, value);
    }
    let sent = clock::now().map_err(Failure::local)?;
    let (begun, proved) = (client.now().map_err(Failure::local)?, Instant::now());
    let failure = match client.send(&ask) {
        Ok(answer) => match answer.etag() {
            Some(etag) => {
                let date = match answer.date() {
                    // Whatever this host's clock says, the store has written down when that was.
                    None => {
                        let found = look(client, key).ok().flatten();
                        let found = found.filter(|it| it.etag == etag);
                        found
                            .and_then(|it| it.modified)
                            .map(|it| client.clocks.hear_written(it, sent))
                    }
                    date => date,
                };
                // Whatever this host thought of the store's clock before the first answer came.
                let begun = date.map_or(begun, |date| date.or_earlier(begun));
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
            let modified = found.modified.filter(|_| !found.is_dated);
            let date = modified.map(|it| client.clocks.hear_written(it, sent));
            let begun = date.map_or(begun, |date| date.or_earlier(begun));
            return Ok(Written { etag: found.etag, begun, date, proved });
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
pub(super) fn take_alone(shared: &Arc<Shared>, name: &Name, wait: Wait<'_>) -> Result<Locked> {
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
        shared.leave(&holder);
        let keys = std::slice::from_ref(&key);
        let left = match others(shared, keys, &holder, wait).map_err(failed)? {
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
    match who_shares(shared, name, is_first, &own, wait)? {
        Some(other) => Ok(Locked::Busy(other)),
        None => Ok(Locked::Held(Box::new(lease))),
    }
}

/// Takes a lock that others may share.
pub(super) fn share(shared: &Arc<Shared>, name: &Name, wait: Wait<'_>) -> Result<Locked> {
    let holder = holder(shared)?;
    let key = format!("{}.{}", shared.key(name), holder.owner);
    let written = match put(&shared.client, &key, &holder, None) {
        // Who may only read is not kept from reading.
        Err(failure) if failure.status == Some(403) => {
            tracing::debug!("{}: not locked for reading", shared.shown(&key));
            return Ok(Locked::Held(Box::new(NoLock)));
        }
        written => written.map_err(|it| {
            shared.leave(&holder);
            it.into_error("take the lock", &shared.shown(&key))
        })?,
    };
    let lease = hold(shared, name, key, holder, written, false)?;
    let own = lease.lease.state().holder.clone();
    let alone = others(shared, &[shared.key(name)], &own, wait);
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
    wait: Wait<'_>,
) -> Result<Option<String>> {
    let prefix = format!("{}.", shared.key(name));
    let shares = |listing: &listing::Listing| -> Vec<String> {
        listing.objects.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    };
    // What was listed before the lock was written may have changed since.
    let keys = match is_first {
        // Whoever locks a folder alone looks for what was left in it next.
        true => shared.learned(&prefix, true, shares)?.unwrap_or_default(),
        false => shares(&listing::objects(&shared.client, &prefix, true)?),
    };
    let failed =
        |it: Failure| it.into_error("look at the locks of readers of", &shared.shown(&prefix));
    let left = match others(shared, &keys, own, wait).map_err(failed)? {
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

impl Shared {
    /// Remembers a lock that may stay in the store, and that this process does not hold.
    fn leave(&self, holder: &Holder) {
        self.state().left.insert(holder.owner.clone());
    }

    /// Whether this process has left such a lock.
    fn has_left(&self, holder: Option<&Holder>) -> bool {
        holder.is_some_and(|holder| self.state().left.contains(&holder.owner))
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
    shared.state().left.remove(&holder.owner);
    let state = LeaseState { holder, written };
    let lease = Arc::new(Lease {
        lease: span,
        shown: shared.shown(&key),
        key,
        is_alone,
        is_lost: AtomicBool::new(false),
        state: Mutex::new(state),
        turn: Mutex::default(),
    });
    let (stop, stopped) = bounded(1);
    let pause = shared.client.address.lease / RENEWAL;
    let (renewed, store) = (Arc::clone(&lease), Arc::clone(shared));
    let thread = std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
            // One that is lost, or can't be renewed, is told to whoever changes something next.
            if let Err(failure) = renewed.renew(&store.client, renewed.turn()) {
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
        // Nobody renews it any more, whether it is removed or not.
        let holder = self.lease.state().holder.clone();
        if self.lease.is_lost.load(Ordering::SeqCst) {
            self.shared.leave(&holder);
            return;
        }
        let ends = self.lease.ends(&self.lease.state().written) - self.lease.lease / MARGIN;
        let is_over = self.shared.client.clocks.left(ends).is_ok_and(|left| !left.is_positive());
        if self.lease.is_alone && is_over {
            // The store did not answer for long: it is not asked for as long once more.
            self.shared.leave(&holder);
            return;
        }
        // Where it can't be removed now, it is dead when its lease is over.
        let fence = Fence { until: ends, lease: Arc::clone(&self.lease) };
        let fence = self.lease.is_alone.then_some(&fence);
        let mut keys = litter.unwrap_or_default();
        keys.push(self.lease.key.clone());
        if self.shared.delete_all(&keys, fence).is_err() {
            self.shared.leave(&holder);
        }
    }
}
