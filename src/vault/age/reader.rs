//! Reading a file at any place, from any thread.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::crypt::{Aead, Wiped};
use super::file::{self, FileKey, Opened};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::shelf::Shelf;
use crate::disk::io::ReadAt;
use crate::formats::age::{
    CHUNK_LEN, HEADER_LEN_MAX, Header, NONCE_LEN, Payload, TAG_LEN, chunk_nonce,
};
use crate::formats::{FormatError, Problem};

/// How many bytes of a file are read first: most headers are shorter.
const HEAD_LEN: usize = 1 << 10;

/// The most pieces that are read from the file at once.
const CHUNKS_AT_ONCE: u64 = 32;

/// Pieces that reads begin or end in are kept for the next read, in so many bytes.
const KEPT_LEN: u64 = 8 << 20;

/// Pieces of opened files that were read last, of all files together.
#[derive(Debug)]
pub struct Chunks(Shelf<(u64, u64), Vec<u8>>);

impl Default for Chunks {
    fn default() -> Self {
        Self(Shelf::new(8, KEPT_LEN))
    }
}

/// A file that is open: its content, as it was before it was sealed.
pub struct SealedReader {
    inner: Arc<dyn ReadAt>,
    key: Wiped<32>,
    payload: Payload,
    chunks: Arc<Chunks>,
    number: u64,
    /// The file may have been cut off: what seems to be its last piece may be another one.
    is_torn: bool,
}

impl fmt::Debug for SealedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedReader").field("path", &self.inner.path()).finish_non_exhaustive()
    }
}

/// The header of a file, and its length.
fn read_header(inner: &dyn ReadAt, file_len: u64) -> Result<(Header, u64)> {
    let path = inner.path();
    let mut most = HEAD_LEN;
    loop {
        let mut head = vec![0; most.min(usize::try_from(file_len).unwrap_or(usize::MAX))];
        let read = inner.read_exact_at(&mut head, 0);
        read.map_err(|error| Error::io(format!("read {} bytes at 0 of", head.len()), path, error))?;
        match Header::decode(&head) {
            Ok((header, len)) => return Ok((header, len as u64)),
            Err(FormatError { problem: Problem::Truncated { .. }, .. })
                if most < HEADER_LEN_MAX && head.len() == most =>
            {
                most = HEADER_LEN_MAX;
            }
            Err(error) => return Err(no_header(path, error)),
        }
    }
}

/// The beginning of a file, up to where its pieces begin.
///
/// # Errors
/// [`ErrorKind::Damaged`]: it is no file of age. Others: it can't be read.
pub(crate) fn opening_of(inner: &dyn ReadAt) -> Result<Vec<u8>> {
    let path = inner.path();
    let file_len = inner.len().map_err(|error| Error::io("find the length of", path, error))?;
    let (_, header_len) = read_header(inner, file_len)?;
    let mut opening = vec![0; (header_len + NONCE_LEN) as usize];
    let read = inner.read_exact_at(&mut opening, 0);
    read.map_err(|error| Error::io("read", path, error))?;
    Ok(opening)
}

impl SealedReader {
    /// Opens a file. Header and last piece are proved: whether the file was cut off is known from now on.
    /// `open` finds the key of the file by its header.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: it is no file of age, not for whoever `open` is, or not as it was written.
    /// Others: it can't be read.
    pub fn open(
        inner: Arc<dyn ReadAt>,
        chunks: &Arc<Chunks>,
        number: u64,
        open: impl FnOnce(&Header) -> Result<Opened>,
    ) -> Result<Self> {
        let path = inner.path();
        let file_len = inner.len().map_err(|error| Error::io("find the length of", path, error))?;
        let (header, header_len) = read_header(&*inner, file_len)?;
        let key = key_of(path, open(&header)?)?;
        let payload = Payload::new(header_len, file_len)
            .map_err(|error| Error::format(ErrorKind::Damaged, path, error))?;
        let mut nonce = [0; NONCE_LEN as usize];
        let read = inner.read_exact_at(&mut nonce, header_len);
        read.map_err(|error| Error::io("read", path, error))?;
        let key = file::payload_key(&key, &nonce);
        let chunks = Arc::clone(chunks);
        let file = Self { inner, key, payload, chunks, number, is_torn: false };
        let last = file.chunk(file.payload.last_chunk());
        match last {
            Ok(_) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(changed(file.path(), "its end"))
            }
            Err(error) => Err(Error::io("read the end of", file.path(), error)),
        }
    }

    /// Opens what is left of a file: each piece proves itself, and nothing says that the last one is. `opening`
    /// is a copy of the file's beginning, and counts more than the file's own.
    ///
    /// # Errors
    /// As [`Self::open`]: neither of the two beginnings gives the key.
    pub fn open_damaged(
        inner: Arc<dyn ReadAt>,
        chunks: &Arc<Chunks>,
        number: u64,
        opening: Option<&[u8]>,
        open: impl Fn(&Header) -> Result<Opened>,
    ) -> Result<Self> {
        let path = inner.path();
        let file_len = inner.len().map_err(|error| Error::io("find the length of", path, error))?;
        let copy = opening.and_then(|copy| {
            let (header, len) = Header::decode(copy).ok()?;
            let nonce = *copy.get(len..)?.first_chunk()?;
            let key = key_of(path, open(&header).ok()?).ok()?;
            Some((key, len as u64, nonce))
        });
        let (key, header_len, nonce) = match copy {
            Some(found) => found,
            None => {
                let (header, len) = read_header(&*inner, file_len)?;
                let key = key_of(path, open(&header)?)?;
                let mut nonce = [0; NONCE_LEN as usize];
                let read = inner.read_exact_at(&mut nonce, len);
                read.map_err(|error| Error::io("read", path, error))?;
                (key, len, nonce)
            }
        };
        let key = file::payload_key(&key, &nonce);
        // What is no whole piece at the end can't be opened.
        let payload = Payload::new(header_len, file_len)
            .or_else(|_| Payload::new(header_len, file_len.saturating_sub(TAG_LEN)))
            .map_err(|error| Error::format(ErrorKind::Damaged, path, error))?;
        let chunks = Arc::clone(chunks);
        Ok(Self { inner, key, payload, chunks, number, is_torn: true })
    }

    /// Opens one sealed piece.
    fn open_piece(
        &self,
        aead: &mut Aead,
        chunk: u64,
        piece: &[u8],
        out: &mut [u8],
    ) -> Result<bool> {
        let is_open = aead.open(&self.payload.nonce(chunk), piece, out)?;
        if is_open || !self.is_torn || chunk != self.payload.last_chunk() {
            return Ok(is_open);
        }
        aead.open(&chunk_nonce(chunk, false), piece, out)
    }

    /// One piece of the content, which is kept for the next reader.
    fn chunk(&self, chunk: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut failure = None;
        let made = self.chunks.0.get((self.number, chunk), CHUNK_LEN, || {
            let content = self.payload.content(chunk);
            let mut plain = vec![0; (content.end - content.start) as usize];
            self.fill(chunk, &mut plain).map_err(|error| {
                failure = Some(error);
                Error::new(ErrorKind::Damaged, "a piece")
            })?;
            Ok(plain)
        });
        made.map_err(|_| failure.unwrap_or_else(|| damaged(self.payload.content(chunk).start)))
    }

    /// Fills `plain` with the content of whole pieces, from this one on.
    fn fill(&self, first: u64, plain: &mut [u8]) -> io::Result<()> {
        let pieces = (plain.len() as u64).div_ceil(CHUNK_LEN).max(1);
        let range = self.payload.sealed(first..first + pieces);
        let mut sealed = vec![0; (range.end - range.start) as usize];
        self.inner.read_exact_at(&mut sealed, range.start)?;
        let failed = |error: Error| io::Error::other(error.chain());
        let mut aead = Aead::to_open(&self.key.0).map_err(failed)?;
        let (mut sealed, mut plain) = (sealed.as_slice(), plain);
        for chunk in first..first + pieces {
            let content = self.payload.content(chunk);
            let place = self.payload.sealed(chunk..chunk + 1);
            let piece = sealed.split_at_checked((place.end - place.start) as usize);
            let room = plain.split_at_mut_checked((content.end - content.start) as usize);
            let (Some((piece, more)), Some((room, left))) = (piece, room) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if !self.open_piece(&mut aead, chunk, piece, room).map_err(failed)? {
                room.fill(0);
                return Err(damaged(content.start));
            }
            (sealed, plain) = (more, left);
        }
        Ok(())
    }
}

impl ReadAt for SealedReader {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.payload.len())
    }

    /// Whole pieces are read into the buffer; those that the read begins and ends in are kept.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.payload.len().saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted) else { return Ok(0) };
        if buffer.is_empty() {
            return Ok(0);
        }
        let first = offset / CHUNK_LEN;
        let whole = buffer.len() as u64 / CHUNK_LEN;
        if offset.is_multiple_of(CHUNK_LEN) && whole > 0 {
            let len = (whole.min(CHUNKS_AT_ONCE) * CHUNK_LEN) as usize;
            self.fill(first, buffer.get_mut(..len).unwrap_or_default())?;
            return Ok(len);
        }
        let chunk = self.chunk(first)?;
        let within = (offset - first * CHUNK_LEN) as usize;
        let there = chunk.get(within..).unwrap_or_default();
        let count = there.len().min(buffer.len());
        buffer.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        Ok(count)
    }
}

/// The key of a file, unless it can't be had.
fn key_of(path: &Path, opened: Opened) -> Result<FileKey> {
    match opened {
        Opened::Key(key) => Ok(key),
        Opened::NotFor => {
            let text = format!("{} is encrypted to somebody else", path.display());
            Err(Error::new(ErrorKind::Damaged, text).of_file(path))
        }
        Opened::Changed => Err(changed(path, "its header")),
    }
}

/// The content of a whole small file that was sealed for whoever `open` says.
///
/// # Errors
/// [`ErrorKind::Damaged`]: it is no file of age, or not as it was written. What `open` says.
pub fn open_bytes(
    sealed: &[u8],
    path: &Path,
    open: impl FnOnce(&Header) -> Result<Opened>,
) -> Result<Option<Vec<u8>>> {
    let format = |error| Error::format(ErrorKind::Damaged, path, error);
    let (header, header_len) = Header::decode(sealed).map_err(|error| no_header(path, error))?;
    let key = match open(&header)? {
        Opened::Key(key) => key,
        Opened::NotFor => return Ok(None),
        Opened::Changed => return Err(changed(path, "its header")),
    };
    let payload = Payload::new(header_len as u64, sealed.len() as u64).map_err(format)?;
    let nonce = sealed.get(header_len..).and_then(|rest| rest.first_chunk());
    let key = file::payload_key(&key, nonce.unwrap_or(&[0; NONCE_LEN as usize]));
    let mut aead = Aead::to_open(&key.0)?;
    let mut plain = vec![0; payload.len() as usize];
    for chunk in 0..=payload.last_chunk() {
        let (place, content) = (payload.sealed(chunk..chunk + 1), payload.content(chunk));
        let piece = sealed.get(place.start as usize..place.end as usize).unwrap_or_default();
        let room = plain.get_mut(content.start as usize..content.end as usize).unwrap_or_default();
        if !aead.open(&payload.nonce(chunk), piece, room)? {
            return Err(changed(path, &format!("what is at {}", content.start)));
        }
    }
    Ok(Some(plain))
}

/// A file that does not begin as all files of age do.
pub fn no_header(path: &Path, error: FormatError) -> Error {
    let text = format!("{} is no file of age", path.display());
    Error::new(ErrorKind::Damaged, text).because(error).of_file(path)
}

fn changed(path: &Path, what: &str) -> Error {
    let text = format!("{} was changed: {what} is not what was encrypted", path.display());
    Error::new(ErrorKind::Damaged, text).of_file(path)
}

/// A piece of a file that is not what was sealed.
fn damaged(offset: u64) -> io::Error {
    let text =
        format!("the {CHUNK_LEN} bytes of content from {offset} on are not what was encrypted");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
