//! Locks of objects: until when a store refuses to remove a version or to let go of it earlier, whoever asks.
//!
//! Every file of a repository gets such a lock as it is written, but for those whose name begins with a dot:
//! locks of processes, and what is staged.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::client::{Ask, Failure};
use super::{S3, Shared, upload, xml};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;

/// The longest answer that makes sense, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// So many objects are asked for at once.
const AT_ONCE: usize = 32;
/// Nobody, not even the owner of the bucket, can end such a lock early.
const MODE: &str = "COMPLIANCE";
/// What of an object lies in the cache: until when it is locked at least, in this mode.
const LOCKED: &str = "locked";

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
        let until = period.after(self.client.now()?, &TimeZone::UTC);
        Ok(vec![
            ("x-amz-object-lock-mode", MODE.to_owned()),
            ("x-amz-object-lock-retain-until-date", shown(until)),
        ])
    }

    pub(super) fn lock_period(&self) -> Option<Period> {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of an object; none if it has none, or is not there.
    fn held(&self, key: &str) -> Result<Option<Held>> {
        let answer = match self.client.send(&Ask::new("HEAD", key)) {
            Err(failure) if failure.is_missing() => return Ok(None),
            answer => answer.map_err(|it| it.into_error("look at", &self.shown(key)))?,
        };
        let until = answer.header("x-amz-object-lock-retain-until-date");
        let is_firm = answer.header("x-amz-object-lock-mode").is_some_and(|mode| mode == MODE);
        Ok(until.and_then(|it| it.parse().ok()).map(|until| Held { until, is_firm }))
    }

    /// Until when nobody can remove an object.
    fn locked_until(&self, key: &str) -> Result<Option<Timestamp>> {
        Ok(self.held(key)?.filter(|held| held.is_firm).map(|held| held.until))
    }

    /// Locks an object until a moment, unless it is locked for as long, but for a little.
    fn extend(&self, key: &str, until: Timestamp, enough: Timestamp) -> Result<bool> {
        let etag = self.state().seen.get(key).map(|seen| seen.etag.clone());
        let known = etag.as_ref().and_then(|etag| self.cache.get(key, etag, LOCKED));
        let known = known.and_then(|it| std::str::from_utf8(&it).ok()?.parse::<Timestamp>().ok());
        if known.is_some_and(|known| known >= enough) {
            return Ok(false);
        }
        let found = self.held(key)?;
        // Who may lift a lock of another mode may not make it shorter by the way.
        let later = found.as_ref().map_or(until, |held| held.until.max(until));
        let is_locked = found.as_ref().is_some_and(|held| held.is_firm && held.until >= enough);
        if !is_locked {
            let body = xml::retention(MODE, &shown(later));
            let ask = Ask::new("PUT", key)
                .query("retention", "")
                .header("content-md5", upload::md5(body.as_bytes())?)
                .body(body.as_bytes())
                .at_most(ANSWER_MAX);
            let sent = self.client.send(&ask);
            sent.map_err(|it: Failure| it.into_error("lock", &self.shown(key)))?;
        }
        if let Some(etag) = etag {
            let until = match found {
                Some(held) if is_locked => held.until,
                _ => later,
            };
            self.cache.put(key, &etag, LOCKED, until.to_string().as_bytes());
        }
        Ok(!is_locked)
    }

    /// Locks objects until a moment, many at once; gives how many were not locked for nearly as long.
    pub(super) fn extend_all(
        &self,
        keys: &[String],
        until: Timestamp,
        enough: Timestamp,
    ) -> Result<u64> {
        let extended = at_once(keys, |key| self.extend(key, until, enough))?;
        Ok(extended.into_iter().filter(|it| *it).count() as u64)
    }

    /// Until when each object is locked, in their order.
    pub(super) fn all_locked_until(&self, keys: &[String]) -> Result<Vec<Option<Timestamp>>> {
        at_once(keys, |key| self.locked_until(key))
    }
}

/// Asks for each key, many at once; gives the answers in the order of the keys.
fn at_once<T: Send>(keys: &[String], ask: impl Fn(&str) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(key) = keys.get(number) else { return };
            let answer = ask(key);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((number, answer));
        }
    };
    std::thread::scope(|scope| {
        // This thread works, too: where none can be started, it does all.
        for _ in 1..keys.len().min(AT_ONCE) {
            let begun =
                std::thread::Builder::new().name("locks".to_owned()).spawn_scoped(scope, work);
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
