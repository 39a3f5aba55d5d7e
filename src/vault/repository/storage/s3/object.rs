//! Reading objects: small ones as a whole, large ones in ranges.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Shared;
use super::client::{Answer, Ask, Failure};
use super::upload::SUM;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;

/// How many of the last bytes of an object are read when it is opened: of most archives all that opening
/// one needs.
const TAIL_LEN: u64 = 64 << 10;
/// The longest range that is asked for at once, in bytes.
const RANGE_MAX: usize = 8 << 20;

/// Reads a whole object of at most `max` bytes.
pub(super) fn read(shared: &Shared, key: &str, max: u64) -> Result<Vec<u8>> {
    let failed = |failure: Failure| failure.into_error("read", &shared.shown(key));
    let ask = Ask::new("GET", key).at_most(max);
    let mut tries = 0;
    loop {
        let answer = shared.client.send(&ask).map_err(failed)?;
        let whole = answer.header(SUM).is_none_or(|sum| sum == upload_sum(&answer.body));
        if whole {
            if let Some(etag) = answer.etag() {
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

fn upload_sum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// An object that is open for reading.
pub(super) struct Object {
    shared: Arc<Shared>,
    key: String,
    path: PathBuf,
    len: u64,
    etag: String,
    /// The last bytes.
    tail: Vec<u8>,
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
            Error::new(ErrorKind::Io, format!("cannot open {shown}")).because(why.to_owned())
        };
        let path = PathBuf::from(&shown);
        let ask =
            Ask::new("GET", &key).header("range", format!("bytes=-{TAIL_LEN}")).at_most(TAIL_LEN);
        let answer = match shared.client.send(&ask) {
            // An object of no bytes has no last ones.
            Err(failure) if failure.status == Some(416) => {
                let seen = shared.look(&key)?.filter(|seen| seen.len == 0);
                let seen = seen.ok_or_else(|| strange("the store does not give its end"))?;
                let (shared, tail) = (Arc::clone(shared), Vec::new());
                return Ok(Self { shared, key, path, len: 0, etag: seen.etag, tail });
            }
            answer => answer.map_err(failed)?,
        };
        let etag = answer.etag().ok_or_else(|| strange("the store gives no ETag"))?;
        let (start, len) = match range_of(&answer) {
            Some(range) => range,
            // The whole of an object that is no longer.
            None => (0, answer.body.len() as u64),
        };
        let tail = answer.body;
        if start.checked_add(tail.len() as u64) != Some(len)
            || start != len.saturating_sub(TAIL_LEN)
        {
            return Err(strange("the store gives another part than the one that was asked for"));
        }
        Ok(Self { shared: Arc::clone(shared), key, path, len, etag, tail })
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
