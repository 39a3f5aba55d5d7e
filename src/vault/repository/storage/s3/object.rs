//! Reading objects: small ones as a whole, large ones in ranges.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::Shared;
use super::client::{Answer, Ask};
use super::failure::Failure;
use super::listing::Seen;
use super::upload::SUM;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;

/// How many of the last bytes of an object are read when it is opened: of most archives all that opening
/// one needs.
const TAIL_LEN: u64 = 64 << 10;
/// The longest range that is asked for at once, in bytes.
const RANGE_MAX: usize = 8 << 20;

/// How many of the first bytes are read at once where the end is not all.
const HEAD_LEN: u64 = 4 << 10;
/// What of an object lies in the cache: its last bytes, and its first.
const TAIL: &str = "tail";
const HEAD: &str = "head";
/// So many small things are asked for at once.
const AT_ONCE: usize = 32;
/// So many of them are fetched before somebody needs the first: more would push each other out of memory.
const FETCH_MAX: usize = 512;
/// So many manifests are read ahead of whoever walks along them, at most.
const AHEAD_MAX: usize = 256;

impl Shared {
    /// Keeps the end of an object that was just read.
    pub(super) fn keep(&self, key: &str, etag: &str, len: u64, tail: &[u8]) {
        if tail.len() as u64 != len.min(TAIL_LEN) {
            return;
        }
        self.cache.put(key, etag, TAIL, tail);
        let mut state = self.state();
        state.fresh.insert(key.to_owned());
        // What no list has told of is asked for the next time: somebody else may replace it.
        if let Some(seen) = state.seen.get_mut(key) {
            *seen = Seen { len, etag: etag.to_owned(), modified: None };
        }
    }

    /// Keeps the end of an object that was just written.
    pub(super) fn keep_end(&self, key: &str, etag: &str, whole: &[u8]) {
        let from = whole.len().saturating_sub(TAIL_LEN as usize);
        self.keep(key, etag, whole.len() as u64, whole.get(from..).unwrap_or_default());
    }

    /// What this process saw of an object in a list, with what the cache has of its end.
    fn copy(&self, key: &str) -> Option<(Seen, Arc<Vec<u8>>)> {
        let seen = {
            let state = self.state();
            if self.is_distrusted.load(Ordering::Relaxed) && !state.fresh.contains(key) {
                return None;
            }
            state.seen.get(key).cloned()?
        };
        let tail = self.cache.get(key, &seen.etag, TAIL)?;
        (tail.len() as u64 == seen.len.min(TAIL_LEN)).then_some((seen, tail))
    }
}

/// Reads a whole object of at most `max` bytes.
pub(super) fn read(shared: &Arc<Shared>, key: &str, max: u64) -> Result<Vec<u8>> {
    let take = |(seen, tail): (Seen, Arc<Vec<u8>>)| {
        let is_whole = seen.len <= max.min(TAIL_LEN);
        is_whole.then(|| {
            shared.state().read.insert(key.to_owned(), seen.etag);
            tail.to_vec()
        })
    };
    if let Some(bytes) = shared.copy(key).and_then(take) {
        return Ok(bytes);
    }
    let ahead = ahead_of(shared, key);
    if !ahead.is_empty() {
        fetch(shared, ahead);
        if let Some(bytes) = shared.copy(key).and_then(take) {
            return Ok(bytes);
        }
    }
    let failed = |failure: Failure| failure.into_error("read", &shared.shown(key));
    let ask = Ask::new("GET", key).at_most(max);
    let mut tries = 0;
    loop {
        let answer = shared.client.send(&ask).map_err(failed)?;
        if is_sound(&answer) {
            if let Some(etag) = answer.etag() {
                shared.keep(key, &etag, answer.body.len() as u64, &answer.body);
                shared.state().read.insert(key.to_owned(), etag);
            }
            return Ok(answer.body);
        }
        tries += 1;
        if tries == 3 {
            let text = format!("{} does not hold what was written", shared.shown(key));
            let why = "its BLAKE3 is not the one that was written down beside it";
            return Err(Error::new(ErrorKind::Damaged, text).because(why));
        }
    }
}

/// Whether the bytes of a whole object are those that were written, as far as it says which were.
fn is_sound(answer: &Answer) -> bool {
    answer.header(SUM).is_none_or(|sum| *sum == *blake3::hash(&answer.body).to_hex())
}

/// The files that whoever reads this one is likely to read next: whoever walks along a chain of manifests
/// goes from one name to the one before, and whoever reads all of them to the one after.
fn ahead_of(shared: &Shared, key: &str) -> Vec<String> {
    let mut state = shared.state();
    let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
    let is_beside = |other: &str| other.rsplit_once('/').is_some_and(|(it, _)| it == folder);
    let last = std::mem::replace(&mut state.walk.last, key.to_owned());
    if !is_beside(&last) {
        state.walk.steps = 0;
        return Vec::new();
    }
    state.walk.steps += 1;
    let count = (8 << state.walk.steps.min(5)).min(AHEAD_MAX);
    let is_small = |(key, seen): &(&String, &Seen)| is_beside(key) && seen.len <= TAIL_LEN;
    let key = key.to_owned();
    let name = |(key, _): (&String, &Seen)| key.clone();
    match key < last {
        true => state.seen.range(..=key).rev().filter(is_small).take(count).map(name).collect(),
        false => state.seen.range(key..).filter(is_small).take(count).map(name).collect(),
    }
}

/// Fetches the ends of objects that are about to be read, many at a time; what fails is asked for again by
/// whoever needs it, who tells of it.
pub(super) fn fetch(shared: &Arc<Shared>, keys: Vec<String>) {
    let is_there = |key: &String| shared.copy(key).is_some();
    let missing = keys.into_iter().filter(|key| !is_there(key)).take(FETCH_MAX);
    let missing: Vec<String> = missing.collect();
    if missing.len() < 2 {
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(key) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Ok(object) = Object::open(shared, key.clone())
                && object.len > TAIL_LEN
            {
                let _ = object.head();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..missing.len().min(AT_ONCE) {
            let begun =
                std::thread::Builder::new().name("fetch".to_owned()).spawn_scoped(scope, work);
            if begun.is_err() {
                break;
            }
        }
    });
}

/// An object that is open for reading.
pub(super) struct Object {
    shared: Arc<Shared>,
    key: String,
    path: PathBuf,
    len: u64,
    etag: String,
    /// The last bytes.
    tail: Arc<Vec<u8>>,
    /// The first bytes, once somebody asked for them.
    head: OnceLock<Arc<Vec<u8>>>,
}

impl Object {
    /// Opens the object of a key.
    ///
    /// # Errors
    /// `NotFound` if there is none; the store can't be asked.
    pub fn open(shared: &Arc<Shared>, key: String) -> Result<Self> {
        let shown = shared.shown(&key);
        let failed = |failure: Failure| failure.into_error("open", &shown);
        let strange = |why: &str| {
            let why = std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
            Error::new(ErrorKind::Io, format!("cannot open {shown}")).because(why)
        };
        let path = PathBuf::from(&shown);
        let of = |len, etag, tail| {
            let (shared, path, head) = (Arc::clone(shared), path.clone(), OnceLock::new());
            Self { shared, key: key.clone(), path, len, etag, tail, head }
        };
        if let Some((seen, tail)) = shared.copy(&key) {
            return Ok(of(seen.len, seen.etag, tail));
        }
        let ask =
            Ask::new("GET", &key).header("range", format!("bytes=-{TAIL_LEN}")).at_most(TAIL_LEN);
        let answer = match shared.client.send(&ask) {
            // An object of no bytes has no last ones.
            Err(failure) if failure.status == Some(416) => {
                let seen = shared.look(&key)?.filter(|seen| seen.len == 0);
                let seen = seen.ok_or_else(|| strange("the store does not give its end"))?;
                return Ok(of(0, seen.etag, Arc::default()));
            }
            answer => answer.map_err(failed)?,
        };
        let etag = answer.etag().ok_or_else(|| strange("the store gives no ETag"))?;
        let (start, len) = match range_of(&answer) {
            Some(range) => range,
            // The whole of an object that is no longer.
            None => (0, answer.body.len() as u64),
        };
        // A part says nothing of the whole; a small object is whole.
        if start == 0 && !is_sound(&answer) {
            return Err(strange("its BLAKE3 is not the one that was written down beside it"));
        }
        let tail = answer.body;
        if start.checked_add(tail.len() as u64) != Some(len)
            || start != len.saturating_sub(TAIL_LEN)
        {
            return Err(strange("the store gives another part than the one that was asked for"));
        }
        shared.keep(&key, &etag, len, &tail);
        Ok(of(len, etag, Arc::new(tail)))
    }

    /// The first bytes.
    fn head(&self) -> io::Result<&Arc<Vec<u8>>> {
        if let Some(head) = self.head.get() {
            return Ok(head);
        }
        let is_trusted = !self.shared.is_distrusted.load(Ordering::Relaxed)
            || self.shared.state().fresh.contains(&self.key);
        let known = self.shared.cache.get(&self.key, &self.etag, HEAD).filter(|_| is_trusted);
        let head = match known.filter(|head| head.len() as u64 == HEAD_LEN) {
            Some(head) => head,
            None => {
                let head = self.get(0, HEAD_LEN as usize)?;
                self.shared.cache.put(&self.key, &self.etag, HEAD, &head);
                Arc::new(head)
            }
        };
        Ok(self.head.get_or_init(|| head))
    }

    /// Reads a range that lies within the object.
    fn get(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let last = offset + len as u64 - 1;
        let ask = Ask::new("GET", &self.key)
            .header("range", format!("bytes={offset}-{last}"))
            .header("if-match", self.etag.clone())
            .at_most(len as u64);
        let answer = self.shared.client.send(&ask).map_err(|failure| {
            // Others mean the kind: an object that was replaced or removed is lost to its reader.
            let is_gone = failure.is_missing() || failure.is_conflict();
            let error = failure.into_error("read", &self.path.display().to_string());
            let kind = if is_gone { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
            io::Error::new(kind, error.chain())
        })?;
        if range_of(&answer) != Some((offset, self.len)) || answer.body.len() != len {
            let text = "the store gave another part than the one that was asked for";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(answer.body)
    }
}

/// Where the part that was answered begins, and how long the whole object is.
fn range_of(answer: &Answer) -> Option<(u64, u64)> {
    let range = answer.header("content-range")?.strip_prefix("bytes ")?;
    let (part, whole) = range.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let is_so_long = last.checked_sub(first)?.checked_add(1)? == answer.body.len() as u64;
    is_so_long.then_some((first, whole.parse().ok()?))
}

impl ReadAt for Object {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.len.saturating_sub(offset);
        let want = (buffer.len().min(RANGE_MAX) as u64).min(left) as usize;
        if want == 0 {
            return Ok(0);
        }
        let start = self.len - self.tail.len() as u64;
        let read;
        let bytes = match offset.checked_sub(start) {
            Some(within) => self.tail.get(within as usize..).unwrap_or_default(),
            None if offset + want as u64 <= HEAD_LEN && HEAD_LEN <= start => {
                self.head()?.get(offset as usize..).unwrap_or_default()
            }
            None => {
                // What lies in the tail is there already.
                let want = want.min((start - offset) as usize);
                read = self.get(offset, want)?;
                &read
            }
        };
        let count = bytes.len().min(want);
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }
}
