//! Locks of objects: until when a store refuses to remove a version or to let go of it earlier, whoever asks.
//!
//! Every file of a repository gets such a lock as it is written, but for those whose name begins with a dot:
//! locks of processes, and what is staged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::client::Ask;
use super::failure::Failure;
use super::xml::Version;
use super::{S3, Shared, listing, upload, xml};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::vault::repository::storage::Extended;

/// The longest answer that makes sense, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// So many objects are asked for at once.
const AT_ONCE: usize = 32;
/// Nobody, not even the owner of the bucket, can end such a lock early.
const MODE: &str = "COMPLIANCE";
/// What of an object lies in the cache: until when each of its versions is locked at least, in this mode.
const LOCKED: &str = "locked";
/// What stands behind that time if one version was written over another.
const OVER: &str = " over";
/// So many of the oldest versions of an object are locked anew, among which are all that qdelta wrote itself: a manifest
/// is written anew some times, and nothing else is. Whoever writes over it comes later.
const OLDEST_MAX: usize = 64;
/// And so many of the newest.
const NEWEST_MAX: usize = 8;

/// The lock of an object.
struct Held {
    until: Timestamp,
    /// Nobody can end it early. Of another mode (`GOVERNANCE`), whoever has the right to can.
    is_firm: bool,
}

impl S3 {
    /// How long the bucket locks what is written to it, if it has locks; none if it has none by itself.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the bucket can't lock objects. It can't be asked.
    pub fn default_lock(&self) -> Result<Option<Period>> {
        let client = &self.0.client;
        let shown = client.address.shown("");
        let ask = Ask::new("GET", "").query("object-lock", "").at_most(ANSWER_MAX);
        match client.parsed(&ask, xml::object_lock) {
            Ok((_, Some(days))) => Ok(days.map(Period::days)),
            Ok((_, None)) => Err(no_locks(&shown)),
            Err(failure) if matches!(failure.status, Some(400 | 404 | 501)) => {
                Err(no_locks(&shown))
            }
            Err(failure) => Err(failure.into_error("ask for the locks of", &shown)),
        }
    }
}

fn no_locks(shown: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("the bucket of {shown} can't lock objects")).advise(
        "make a bucket with object lock (aws s3api create-bucket --object-lock-enabled-for-bucket): most \
         stores can't add it later",
    )
}

impl Shared {
    /// The headers that lock what is written under a key; none if nothing is to be locked.
    pub(super) fn lock_headers(&self, key: &str) -> Result<Vec<(&'static str, String)>> {
        let is_of_process = key.rsplit('/').next().is_some_and(|name| name.starts_with('.'));
        let Some(period) = self.lock_period().filter(|_| !is_of_process) else {
            return Ok(Vec::new());
        };
        let until = period.after(self.client.clocks.object_time()?, &TimeZone::UTC);
        Ok(vec![
            ("x-amz-object-lock-mode", MODE.to_owned()),
            ("x-amz-object-lock-retain-until-date", shown(until)),
        ])
    }

    pub(super) fn lock_period(&self) -> Option<Period> {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of a version of an object, of the newest one if none is named; none if there is no such version,
    /// nothing in it if it has no lock.
    fn held(&self, key: &str, version: Option<&str>) -> Result<Option<Option<Held>>> {
        let answer = match self.head(key, version) {
            Err(failure) if failure.is_missing() => return Ok(None),
            answer => answer.map_err(|it| it.into_error("look at", &self.shown(key)))?,
        };
        let until = answer.header("x-amz-object-lock-retain-until-date");
        let is_firm = answer.header("x-amz-object-lock-mode").is_some_and(|mode| mode == MODE);
        Ok(Some(until.and_then(|it| it.parse().ok()).map(|until| Held { until, is_firm })))
    }

    /// Until when nobody can remove a version of an object, or the newest one.
    fn locked_until(&self, key: &str, version: Option<&str>) -> Result<Option<Timestamp>> {
        let held = self.held(key, version)?.flatten();
        Ok(held.filter(|held| held.is_firm).map(|held| held.until))
    }

    /// The ETag of an object as this process has seen or read it last.
    fn known_etag(&self, key: &str) -> Option<String> {
        let state = self.state();
        state.seen.get(key).map(|seen| &seen.etag).or_else(|| state.read.get(key)).cloned()
    }

    /// What the cache has of an object's locks: until when every version is locked at least, and whether one was
    /// written over.
    fn known_lock(&self, key: &str) -> Option<(Timestamp, bool)> {
        let etag = self.known_etag(key)?;
        let bytes = self.cache.get(key, &etag, LOCKED)?;
        let text = std::str::from_utf8(&bytes).ok()?;
        let (until, is_over) = match text.strip_suffix(OVER) {
            Some(until) => (until, true),
            None => (text, false),
        };
        Some((until.parse().ok()?, is_over))
    }

    fn remember_lock(&self, key: &str, until: Timestamp, is_over: bool) {
        if let Some(etag) = self.known_etag(key) {
            let over = if is_over { OVER } else { "" };
            self.cache.put(key, &etag, LOCKED, format!("{until}{over}").as_bytes());
        }
    }

    /// Locks a version of an object, or the newest one, until a moment, unless it is locked for as long, but for a
    /// little. Gives until when it is locked then, and whether that is new; none if there is no such version.
    fn extend(
        &self,
        key: &str,
        version: Option<&str>,
        (until, enough): (Timestamp, Timestamp),
    ) -> Result<Option<(Timestamp, bool)>> {
        let Some(found) = self.held(key, version)? else { return Ok(None) };
        if let Some(held) = &found
            && held.is_firm
            && held.until >= enough
        {
            return Ok(Some((held.until, false)));
        }
        // Who may lift a lock of another mode may not make it shorter by the way.
        let later = found.map_or(until, |held| held.until.max(until));
        let body = xml::retention(MODE, &shown(later));
        let mut ask = Ask::new("PUT", key)
            .query("retention", "")
            .header("content-md5", upload::md5(body.as_bytes())?)
            .body(body.as_bytes())
            .at_most(ANSWER_MAX);
        if let Some(version) = version {
            ask = ask.query("versionId", version);
        }
        let sent = self.client.send(&ask);
        sent.map_err(|it: Failure| it.into_error("lock", &self.shown(key)))?;
        Ok(Some((later, true)))
    }

    /// Locks objects until a moment, many at once. Of what this process has not made itself, every version: whoever
    /// can write could put another one over it, and wait until the lock of the one below ends.
    pub(super) fn extend_all(
        &self,
        keys: &[String],
        until: Timestamp,
        enough: Timestamp,
    ) -> Result<Vec<Extended>> {
        let known: Vec<_> = keys
            .iter()
            .map(|key| self.known_lock(key).filter(|(until, _)| *until >= enough))
            .collect();
        let due = keys.iter().zip(&known).filter(|(_, known)| known.is_none());
        let due: Vec<&String> = due.map(|(key, _)| key).collect();
        let mut newest = at_once(&due, |key| self.extend(key, None, (until, enough))).into_iter();
        let of_others: BTreeSet<&String> = {
            let state = self.state();
            due.iter().copied().filter(|key| !state.made.contains(*key)).collect()
        };
        let versions = self.versions_of(&of_others)?;
        let below: Vec<(&String, &Version)> = versions
            .iter()
            .flat_map(|(key, all)| all.iter().map(move |version| (key, version)))
            .filter(|(_, version)| !version.is_removed)
            .collect();
        let locked =
            at_once(&below, |(key, version)| self.extend(key, Some(&version.id), (until, enough)));
        let mut of_versions: BTreeMap<&String, Vec<_>> = BTreeMap::new();
        for ((key, _), lock) in below.iter().zip(locked) {
            of_versions.entry(key).or_default().push(lock);
        }
        let mut extended = Vec::with_capacity(keys.len());
        for (key, known) in keys.iter().zip(known) {
            if let Some((_, is_written_over)) = known {
                extended.push(Extended { is_new: false, is_written_over });
                continue;
            }
            let all = newest.next().into_iter().chain(of_versions.remove(key).unwrap_or_default());
            let all = all.collect::<Result<Vec<_>>>()?;
            let first = all.iter().flatten().map(|(until, _)| *until).min();
            let first = first.ok_or_else(|| self.missing("lock", key))?;
            let is_written_over = versions.get(key).is_some_and(|all| is_written_over(all, None));
            self.remember_lock(key, first, is_written_over);
            let is_new = all.iter().flatten().any(|(_, is_new)| *is_new);
            extended.push(Extended { is_new, is_written_over });
        }
        Ok(extended)
    }

    /// The versions of objects of which there is more than one, marks of removals included, the newest first.
    fn versions_of(&self, keys: &BTreeSet<&String>) -> Result<BTreeMap<String, Vec<Version>>> {
        let top = self.client.address.prefix.len();
        // A guest's files lie in one folder: one list tells of all.
        let group = |key: &'_ &String| {
            let end = key.get(top..).and_then(|name| name.find('/')).map(|at| top + at + 1);
            key.get(..end.unwrap_or(key.len())).unwrap_or_default().to_owned()
        };
        let mut found: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        for prefix in keys.iter().map(group).collect::<BTreeSet<String>>() {
            let listed = listing::versions(&self.client, &prefix, |version| {
                if !keys.contains(&version.key) {
                    return;
                }
                let all = found.entry(version.key.clone()).or_default();
                all.push(version);
                if all.len() > NEWEST_MAX + OLDEST_MAX {
                    // Whoever can write could make a million: the first ones are the ones that count.
                    all.remove(NEWEST_MAX);
                }
            });
            listed.map_err(|it| {
                let error = it.into_error("list the versions of", &self.shown(&prefix));
                error.advise(
                    "let the host s3:ListBucketVersions and s3:GetObjectVersion: what was written over stays \
                     locked only if the version below is locked anew",
                )
            })?;
        }
        found.retain(|_, all| all.len() > 1);
        for all in found.values_mut() {
            all.sort_by_key(|version| std::cmp::Reverse(version.modified));
        }
        Ok(found)
    }

    /// The locks of objects that are written once, each with its length if that is known: of every version that may
    /// be the one that was written, the lock that ends first.
    pub(super) fn all_locks(
        &self,
        files: &[(String, Option<u64>)],
    ) -> Result<Vec<Option<Timestamp>>> {
        let versions = self.versions_of(&files.iter().map(|(key, _)| key).collect())?;
        let locks = at_once(files, |(key, len)| {
            let Some(all) = versions.get(key) else { return self.locked_until(key, None) };
            let may_be = |it: &&Version| !it.is_removed && len.is_none_or(|len| len == it.len);
            let mut first = Some(Timestamp::MAX);
            for version in all.iter().filter(may_be) {
                first = first.min(self.locked_until(key, Some(&version.id))?);
            }
            Ok(first.filter(|first| *first != Timestamp::MAX))
        });
        locks.into_iter().collect()
    }

    /// Whether each object has got other bytes while it was there.
    pub(super) fn all_written_over(&self, files: &[(String, Option<u64>)]) -> Result<Vec<bool>> {
        let versions = self.versions_of(&files.iter().map(|(key, _)| key).collect())?;
        let is_over = |(key, len): &(String, Option<u64>)| {
            versions.get(key).is_some_and(|all| is_written_over(all, *len))
        };
        Ok(files.iter().map(is_over).collect())
    }

    /// Until when each object is locked, in their order.
    pub(super) fn all_locked_until(&self, keys: &[String]) -> Result<Vec<Option<Timestamp>>> {
        at_once(keys, |key| self.locked_until(key, None)).into_iter().collect()
    }
}

/// Whether an object has got other bytes while it was there. What was removed before may come back, encrypted anew for
/// instance; but as long as it was, where that is known.
fn is_written_over(versions: &[Version], len: Option<u64>) -> bool {
    let mut there = versions.iter().filter(|version| !version.is_removed);
    let is_other = |version: &Version| len.is_some_and(|len| version.len != len);
    if there.next().is_some_and(is_other) && there.any(|version| !is_other(version)) {
        return true;
    }
    versions.windows(2).any(|pair| match pair {
        [newer, older] => !newer.is_removed && !older.is_removed && newer.etag != older.etag,
        _ => false,
    })
}

/// Asks for each thing, many at once; gives the answers in the order of the things.
pub(super) fn at_once<I: Sync, T: Send>(things: &[I], ask: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(thing) = things.get(number) else { return };
            let answer = ask(thing);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((number, answer));
        }
    };
    std::thread::scope(|scope| {
        // This thread works, too: where none can be started, it does all.
        for _ in 1..things.len().min(AT_ONCE) {
            let begun =
                std::thread::Builder::new().name("asks".to_owned()).spawn_scoped(scope, work);
            if begun.is_err() {
                break;
            }
        }
        work();
    });
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// A moment as S3 writes it.
fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
