//! Files on their way into the store.
//!
//! What fits into one part stays in memory until it is published, with one request. Of what is longer
//! the parts go as they become full, a few at once. The store shows them to nobody before the
//! upload is completed.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::client::Ask;
use super::failure::Failure;
use super::listing::Seen;
use super::{Shared, xml};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::vault::repository::storage::{Name, Outcome, Publish, Staged, Unpublished};

/// The length of the first parts, in bytes, where nothing else was said.
const PART_LEN: usize = 16 << 20;
/// After so many parts each is longer by as much as the first: nobody knows how long an archive will be, and ten thousand parts
/// so hold three TiB.
const PARTS_OF_A_LENGTH: usize = 250;
/// So many parts are on their way at once while one more is being filled, and only one where parts are long.
const IN_FLIGHT_MAX: usize = 3;
/// So many bytes a part has at most of which several are on their way at once.
const SHORT: usize = 64 << 20;
/// The most parts of one upload.
const PARTS_MAX: usize = 10_000;
/// The longest answer to any of these requests that makes sense, in bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// Where the BLAKE3 of a small file is written down, which shows whether it came back as it was.
pub(super) const SUM: &str = "x-amz-meta-qdelta-blake3";
/// Where the mark of an upload is written down: whoever completed it and got no answer knows it again.
const MARK: &str = "x-amz-meta-qdelta-upload";

/// The MD5 of a body, as `Content-MD5` has it.
pub(super) fn md5(bytes: &[u8]) -> Result<String> {
    let digest = openssl::hash::hash(openssl::hash::MessageDigest::md5(), bytes);
    let digest = digest.map_err(|error| {
        Error::new(ErrorKind::Io, "cannot compute a digest").because(error.to_string())
    })?;
    Ok(openssl::base64::encode_block(&digest))
}

/// A file that is being written.
pub(super) struct Upload {
    shared: Arc<Shared>,
    key: String,
    /// Where a small file lies while it is announced.
    staged_key: String,
    /// What no part has taken yet.
    buffer: Vec<u8>,
    /// The upload, once the file is longer than a part.
    multipart: Option<Multipart>,
    is_announced: bool,
    is_published: bool,
}

#[derive(Debug)]
struct Multipart {
    id: String,
    mark: String,
    /// The ETags of the parts that the store has.
    etags: Vec<String>,
    on_their_way: Vec<JoinHandle<(Vec<u8>, Result<String>)>>,
    len: u64,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Upload {
    pub fn begin(shared: &Arc<Shared>, name: &Name) -> Result<Self> {
        let (key, staged_key) = (shared.key(name), shared.staged_key(name));
        let is_staged = shared.known(&key, |listing| {
            listing.uploads.contains_key(&key) || listing.objects.contains_key(&staged_key)
        })?;
        if is_staged == Some(true) {
            let text = format!("{} is being written already", shared.shown(&key));
            return Err(Error::new(ErrorKind::Exists, text));
        }
        Ok(Self {
            shared: Arc::clone(shared),
            key,
            staged_key,
            buffer: Vec::new(),
            multipart: None,
            is_announced: false,
            is_published: false,
        })
    }

    fn shown(&self) -> String {
        self.shared.shown(&self.key)
    }

    /// How long the part is that is being filled, in bytes.
    fn part_len(&self) -> usize {
        let parts = self.multipart.as_ref().map_or(0, Multipart::parts);
        match self.shared.client.address.part_size {
            Some(len) => len as usize,
            None => PART_LEN * (1 + parts / PARTS_OF_A_LENGTH),
        }
    }

    /// Sends the buffer as the next part.
    fn send_part(&mut self) -> Result<()> {
        let mut multipart = match self.multipart.take() {
            Some(multipart) => multipart,
            None => self.begin_multipart()?,
        };
        let mut spare = Vec::new();
        let most = if self.buffer.len() <= SHORT { IN_FLIGHT_MAX } else { 1 };
        // Over a quick way two buffers do for all of it.
        while multipart.on_their_way.len() >= most || multipart.has_arrived() {
            spare = match multipart.wait() {
                Ok(buffer) => buffer,
                Err(error) => {
                    self.multipart = Some(multipart);
                    return Err(error);
                }
            };
        }
        let number = multipart.parts() + 1;
        if number > PARTS_MAX {
            self.multipart = Some(multipart);
            let text = format!("{} is longer than {PARTS_MAX} parts", self.shown());
            return Err(Error::new(ErrorKind::NoSpace, text)
                .advise("say larger parts in the repository's address: part-size=1024MiB"));
        }
        spare.clear();
        spare.reserve_exact(self.part_len());
        let bytes = mem::replace(&mut self.buffer, spare);
        multipart.len += bytes.len() as u64;
        let (shared, key, id) = (Arc::clone(&self.shared), self.key.clone(), multipart.id.clone());
        let sent = std::thread::Builder::new().name("upload".to_owned()).spawn(move || {
            let result = put_part(&shared, &key, &id, number, &bytes);
            (bytes, result)
        });
        let sent =
            sent.map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread").because(error));
        let sent = sent.map(|thread| multipart.on_their_way.push(thread));
        self.multipart = Some(multipart);
        sent?;
        Ok(())
    }

    fn begin_multipart(&self) -> Result<Multipart> {
        let mark: [u8; 16] = random::bytes()?;
        let mark: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut ask = Ask::new("POST", &self.key)
            .query("uploads", "")
            .header(MARK, mark.clone())
            .at_most(ANSWER_MAX);
        for (name, value) in self.shared.lock_headers(&self.key)? {
            ask = ask.header(name, value);
        }
        let begun = self.shared.client.parsed(&ask, xml::upload_id);
        let (_, id) = begun.map_err(|it| it.into_error("begin to write", &self.shown()))?;
        Ok(Multipart { id, mark, etags: Vec::new(), on_their_way: Vec::new(), len: 0 })
    }

    /// Gives the file its name. Nothing, where the store has done it: with what it is told by then.
    fn put(&self, how: Publish) -> Result<Seen, Unpublished> {
        let refused = |error| Unpublished { error, outcome: Outcome::Refused };
        let fence = match how {
            Publish::Back => None,
            Publish::New | Publish::Replace => self.shared.fence(&self.key).map_err(refused)?,
        };
        let (etag, len) = match &self.multipart {
            None => {
                let sum = blake3::hash(&self.buffer).to_hex().to_string();
                let ask = self.ask(how, &self.key).map_err(refused)?;
                let ask = ask.header(SUM, sum.clone());
                let sent =
                    self.shared.change(fence.as_ref(), ask, |ask| self.shared.client.send(ask));
                let etag = sent.map(|answer| answer.etag().unwrap_or_default());
                (self.settled(etag, SUM, &sum)?, self.buffer.len() as u64)
            }
            Some(multipart) => {
                let body = xml::parts(&multipart.etags);
                let mut ask = Ask::new("POST", &self.key)
                    .query("uploadId", multipart.id.clone())
                    .body(body.as_bytes())
                    .at_most(ANSWER_MAX);
                if how == Publish::New {
                    ask = ask.header("if-none-match", "*");
                }
                let sent =
                    self.shared.change(fence.as_ref(), ask, |ask| self.shared.client.send(ask));
                let etag = sent.and_then(|answer| {
                    xml::completed(&answer.body).map_err(|why| Failure::unclear(&why))
                });
                (self.settled(etag, MARK, &multipart.mark)?, multipart.len)
            }
        };
        Ok(Seen { len, etag, modified: None })
    }

    fn ask<'a>(&'a self, how: Publish, key: &'a str) -> Result<Ask<'a>> {
        let mut ask = Ask::new("PUT", key)
            .header("content-md5", md5(&self.buffer)?)
            .body(&self.buffer)
            .at_most(ANSWER_MAX);
        for (name, value) in self.shared.lock_headers(key)? {
            ask = ask.header(name, value);
        }
        Ok(match how {
            Publish::New => ask.header("if-none-match", "*"),
            Publish::Replace | Publish::Back => match self.shared.state().read.get(key) {
                Some(etag) => ask.header("if-match", etag.clone()),
                None => ask,
            },
        })
    }

    /// What became of a request that gives a file its name. Where nobody can tell, or something stands there already,
    /// whatever has the name is looked at: ours bears our mark. What stands between may have asked the store twice.
    fn settled(
        &self,
        sent: Result<String, Failure>,
        header: &str,
        mark: &str,
    ) -> Result<String, Unpublished> {
        let failure = match sent {
            Ok(etag) => return Ok(etag),
            Err(failure) => failure,
        };
        let shown = self.shown();
        let (is_unknown, is_conflict) = (failure.is_unknown(), failure.is_conflict());
        let mut outcome = Outcome::Refused;
        if is_unknown || is_conflict {
            outcome = match self.shared.head(&self.key, None) {
                Ok(answer) if answer.header(header) == Some(mark) => {
                    return Ok(answer.etag().unwrap_or_default());
                }
                // Somebody else's has the name.
                Ok(_) => Outcome::Refused,
                // None has: the store may still be at it, and give the name later. Where it has said that the name is
                // taken, it contradicts itself.
                Err(_) => Outcome::Unknown,
            };
        }
        let is_taken = is_conflict && outcome == Outcome::Refused;
        // Whatever stands there is another one than the last one that was seen.
        self.shared.note(&self.key, |_| ());
        let error = match is_taken {
            true => Error::new(ErrorKind::Exists, format!("cannot write {shown}"))
                .because("another process has written it"),
            false => failure.into_error("write", &shown),
        };
        Err(Unpublished { error, outcome })
    }

    /// Ends what nobody will publish.
    fn give_up(&mut self) {
        // What can't be removed now is removed by the next run.
        if let Some(mut multipart) = self.multipart.take() {
            while !multipart.on_their_way.is_empty() {
                let _ = multipart.wait();
            }
            let _ = self.shared.abort(&self.key, &multipart.id);
        }
        if self.is_announced {
            let _ = self.shared.delete(&self.staged_key);
        }
    }
}

impl Multipart {
    /// How many parts were sent.
    fn parts(&self) -> usize {
        self.etags.len() + self.on_their_way.len()
    }

    /// Whether nobody has to wait for the oldest part that is on its way.
    fn has_arrived(&self) -> bool {
        self.on_their_way.first().is_some_and(JoinHandle::is_finished)
    }

    /// Waits for the oldest part that is on its way; gives its buffer.
    fn wait(&mut self) -> Result<Vec<u8>> {
        let thread = self.on_their_way.remove(0);
        let panicked = || Error::new(ErrorKind::Io, "the thread of an upload panicked");
        let (buffer, result) = thread.join().map_err(|_| panicked())?;
        self.etags.push(result?);
        Ok(buffer)
    }
}

fn put_part(shared: &Shared, key: &str, id: &str, number: usize, bytes: &[u8]) -> Result<String> {
    let mut ask = Ask::new("PUT", key)
        .query("partNumber", number.to_string())
        .query("uploadId", id)
        .body(bytes)
        .at_most(ANSWER_MAX);
    if shared.lock_period().is_some() {
        // A bucket that locks takes nothing without.
        ask = ask.header("content-md5", md5(bytes)?);
    }
    let failed = |failure: Failure| {
        failure.into_error(&format!("write part {number} of"), &shared.shown(key))
    };
    let answer = shared.client.send(&ask).map_err(failed)?;
    answer.etag().ok_or_else(|| {
        let text = format!("cannot write part {number} of {}", shared.shown(key));
        Error::new(ErrorKind::Io, text).because("the store gives no ETag")
    })
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= self.part_len() {
            self.send_part().map_err(io::Error::other)?;
        }
        let count = bytes.len().min(self.part_len() - self.buffer.len());
        self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for Upload {
    fn seal(&mut self) -> Result<()> {
        if self.multipart.is_some() && !self.buffer.is_empty() {
            self.send_part()?;
        }
        if let Some(multipart) = &mut self.multipart {
            while !multipart.on_their_way.is_empty() {
                multipart.wait()?;
            }
        }
        Ok(())
    }

    fn announce(&mut self) -> Result<()> {
        // An upload that was begun is listed.
        if self.multipart.is_some() {
            return Ok(());
        }
        let fence = self.shared.fence(&self.staged_key)?;
        let ask = Ask::new("PUT", &self.staged_key)
            .header("content-md5", md5(&self.buffer)?)
            .body(&self.buffer)
            .at_most(ANSWER_MAX);
        let shown = self.shared.shown(&self.staged_key);
        let sent = self.shared.change(fence.as_ref(), ask, |ask| self.shared.client.send(ask));
        let answer = sent.map_err(|it| it.into_error("write", &shown))?;
        self.is_announced = true;
        let seen = Seen {
            len: self.buffer.len() as u64,
            etag: answer.etag().unwrap_or_default(),
            modified: None,
        };
        self.shared.note(&self.staged_key, |listing| {
            listing.objects.insert(self.staged_key.clone(), seen);
        });
        Ok(())
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        let seen = match self.put(how) {
            Ok(seen) => seen,
            Err(unpublished) => {
                // Whatever became of it, no part of it stays under another name for long.
                self.is_published = unpublished.outcome == Outcome::Unknown;
                return Err(unpublished);
            }
        };
        self.is_published = true;
        if how == Publish::New {
            self.shared.state().made.insert(self.key.clone());
        }
        let is_held = self.shared.note(&self.key, |listing| {
            listing.objects.insert(self.key.clone(), seen.clone());
        });
        if is_held {
            self.shared.state().seen.insert(self.key.clone(), seen.clone());
        }
        if self.multipart.is_none() {
            self.shared.keep_end(&self.key, &seen.etag, &self.buffer);
        }
        if self.is_announced {
            // The next run removes what stays.
            let _ = self.shared.delete_later(&self.staged_key);
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_published {
            self.give_up();
        }
    }
}
