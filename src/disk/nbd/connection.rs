//! A connection to an export: requests, and what they are answered.

use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::time::Duration;

use super::handshake::{Agreement, agree};
use super::stream::Stream;
use super::tls::Encryption;
use super::{Failure, quoted};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind};
use crate::formats::nbd::{
    Chunk, ChunkHead, Command, CommandFlags, REPLY_MAGIC_LEN, ReplyHead, Request, Status, Uri,
};

/// How long a server may take for the answers to what was asked at once.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(120);
/// The most bytes that are read by one request.
const PIECE: u32 = 256 << 10;
/// The most requests that are sent before the answer to the first is read.
const PIECES_MAX: usize = 16;
/// The most bytes that they ask for together, unless one alone asks for more.
const BYTES_MAX: usize = 2 << 20;
/// The longest status of a range that is taken, in bytes: a million parts.
const STATUS_LEN_MAX: u32 = 4 + (8 << 20);
/// The longest payload of a chunk that says that something failed, in bytes.
const ERROR_LEN_MAX: u32 = 6 + (64 << 10) + 8;
/// The most parts of an answer to one request that do not follow each other.
const PARTS_MAX: usize = 1024;

/// Whom to connect to, and how.
pub(super) struct Target {
    pub uri: Uri,
    /// How to encrypt, if that is asked for.
    pub tls: Option<Encryption>,
    pub cancel: Cancel,
}

/// A connection to an export. After a [`Failure::Broken`] it is of no more use.
#[derive(Debug)]
pub(super) struct Connection {
    incoming: BufReader<Stream>,
    pub agreed: Agreement,
    /// By what the next request's answer is recognised.
    cookie: u64,
}

/// A part of a disk that is asked for by one request.
#[derive(Default)]
struct Piece {
    /// Where it goes in the buffer.
    range: Range<usize>,
    offset: u64,
    /// What of it was answered.
    filled: Filled,
    is_done: bool,
}

/// Which of the bytes of a piece are there.
#[derive(Default)]
struct Filled(Vec<Range<u64>>);

/// What belongs to one reply.
enum Part<'a> {
    /// Bytes of the disk that follow at an offset, as many as it says.
    Data(u64, u32),
    /// Zeros at an offset.
    Hole(u64, u32),
    /// The states of ranges, by the number of a kind of metadata.
    Status(u32, &'a [(u32, u32)]),
}

impl Connection {
    /// Connects to a server, and agrees with it on the export that the URI names, all within `max`.
    pub fn open(target: &Target, max: Duration) -> Result<Self, Failure> {
        let Target { uri, tls, cancel } = target;
        let stream = Stream::connect(&uri.place, cancel, max)?;
        let mut incoming = BufReader::new(stream);
        let agreed = agree(&mut incoming, &uri.export, tls.as_ref())?;
        Ok(Self { incoming, agreed, cookie: 0 })
    }

    /// Fills parts of `out`, each from its offset. Offsets and lengths are multiples of the least size of a request, and
    /// lie on the disk.
    pub fn read(&mut self, out: &mut [u8], parts: &[(Range<usize>, u64)]) -> Result<(), Failure> {
        let Agreement { least, most, .. } = self.agreed;
        let most = (PIECE.min(most) / least).max(1) as usize * least as usize;
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for (range, offset) in parts {
            for start in range.clone().step_by(most) {
                let place = start..(start + most).min(range.end);
                if pieces.len() == PIECES_MAX || bytes + place.len() > BYTES_MAX.max(most) {
                    self.read_pieces(out, std::mem::take(&mut pieces))?;
                    bytes = 0;
                }
                bytes += place.len();
                let offset = offset + (start - range.start) as u64;
                pieces.push(Piece { range: place, offset, ..Piece::default() });
            }
        }
        self.read_pieces(out, pieces)
    }

    fn read_pieces(&mut self, out: &mut [u8], mut pieces: Vec<Piece>) -> Result<(), Failure> {
        let first = self.cookie;
        let mut requests = Vec::new();
        for piece in &pieces {
            let len = piece.range.len() as u32;
            requests.extend(self.request(Command::Read, piece.offset, len));
        }
        self.send(&requests)?;
        // The others are answered, too: what comes next must be what is expected.
        let (mut left, mut failure) = (pieces.len(), None);
        while left > 0 {
            let head = self.head()?;
            let number = head.cookie().checked_sub(first).and_then(|it| usize::try_from(it).ok());
            let piece = number.and_then(|number| pieces.get_mut(number)).filter(|it| !it.is_done);
            let piece = piece.ok_or_else(|| Failure::odd("it answers what was not asked"))?;
            let len = piece.range.len() as u32;
            let ended = match head {
                ReplyHead::Simple { status: Status::Done, .. } => {
                    let into = out.get_mut(piece.range.clone()).unwrap_or_default();
                    self.incoming.read_exact(into)?;
                    Some(Ok(piece.filled.add(0..len.into())?))
                }
                ReplyHead::Simple { status, .. } => Some(Err(refused(status, "", piece.offset))),
                ReplyHead::Chunk(chunk) => {
                    let answered = self.part(&chunk, len + 8, |connection, part| {
                        let (at, len, is_zero) = match part {
                            Part::Data(at, len) => (at, len, false),
                            Part::Hole(at, len) => (at, len, true),
                            Part::Status(..) => {
                                return Err(Failure::odd(
                                    "it answers a read with the status of a range",
                                ));
                            }
                        };
                        let into = piece.place(at, len)?;
                        let into = out.get_mut(into).unwrap_or_default();
                        match is_zero {
                            true => into.fill(0),
                            false => connection.incoming.read_exact(into)?,
                        }
                        Ok(())
                    })?;
                    match answered {
                        Err(error) => {
                            failure.get_or_insert(error);
                            chunk.is_last.then_some(Ok(()))
                        }
                        Ok(()) => chunk.is_last.then_some(Ok(())),
                    }
                }
            };
            let Some(ended) = ended else { continue };
            piece.is_done = true;
            left -= 1;
            if let Err(error) = ended {
                failure.get_or_insert(error);
            }
            if failure.is_none() && !piece.filled.is(len) {
                return Err(Failure::odd("it answers a read with fewer bytes than were asked for"));
            }
        }
        failure.map_or(Ok(()), |error| Err(Failure::Told(error)))
    }

    /// Asks what `range` of the disk is, which is a multiple of the least size of a request; `each` is
    /// called with every kind of metadata, the states of the ranges from the first byte on, and how long each is.
    pub fn status(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(u32, &[(u32, u32)]),
    ) -> Result<(), Failure> {
        let cookie = self.cookie;
        let request =
            self.request(Command::BlockStatus, range.start, (range.end - range.start) as u32);
        self.send(&request)?;
        let (mut failure, mut told) = (None, Vec::new());
        loop {
            let head = self.head()?;
            if head.cookie() != cookie {
                return Err(Failure::odd("it answers what was not asked"));
            }
            let chunk = match head {
                ReplyHead::Simple { status: Status::Done, .. } => {
                    return Err(Failure::odd("it answers with no status"));
                }
                ReplyHead::Simple { status, .. } => {
                    return Err(Failure::Told(refused(status, "", range.start)));
                }
                ReplyHead::Chunk(chunk) => chunk,
            };
            let answered = self.part(&chunk, STATUS_LEN_MAX, |_, part| match part {
                Part::Status(context, _) if told.contains(&context) => {
                    Err(Failure::odd("it tells the status of a range twice"))
                }
                Part::Status(context, ranges) => {
                    told.push(context);
                    each(context, ranges);
                    Ok(())
                }
                _ => Err(Failure::odd("it answers with bytes where a status was asked for")),
            })?;
            if let Err(error) = answered {
                failure.get_or_insert(error);
            }
            if chunk.is_last {
                return failure.map_or(Ok(()), |error| Err(Failure::Told(error)));
            }
        }
    }

    /// Says that nothing more comes. Whoever has gone does not hear it.
    pub fn end(&mut self) {
        let request = self.request(Command::Disconnect, 0, 0);
        self.incoming.get_mut().limit(Duration::from_secs(1));
        let _ = self.incoming.get_mut().write_all(&request);
    }

    fn request(&mut self, command: Command, offset: u64, len: u32) -> Vec<u8> {
        let cookie = self.cookie;
        self.cookie += 1;
        Request { flags: CommandFlags::default(), command, cookie, offset, len }.encode()
    }

    fn send(&mut self, requests: &[u8]) -> Result<(), Failure> {
        let stream = self.incoming.get_mut();
        stream.limit(ANSWER_MAX);
        Ok(stream.write_all(requests)?)
    }

    fn head(&mut self) -> Result<ReplyHead, Failure> {
        let mut magic = [0; REPLY_MAGIC_LEN];
        self.incoming.read_exact(&mut magic)?;
        let mut head = vec![0; ReplyHead::len_of(magic)?];
        let (start, rest) = head.split_at_mut(REPLY_MAGIC_LEN);
        start.copy_from_slice(&magic);
        self.incoming.read_exact(rest)?;
        Ok(ReplyHead::decode(&head)?)
    }

    /// Reads the payload of a chunk, of at most `most` bytes if it is none of a failure. What says something
    /// goes to `each`, which reads the bytes that follow. Gives what the server says that failed.
    fn part(
        &mut self,
        head: &ChunkHead,
        most: u32,
        each: impl FnOnce(&mut Self, Part<'_>) -> Result<(), Failure>,
    ) -> Result<Result<(), Error>, Failure> {
        if head.len > most.max(ERROR_LEN_MAX) {
            return Err(Failure::odd(format!("it answers with {} bytes at once", head.len)));
        }
        let mut fields = vec![0; head.fields_len() as usize];
        self.incoming.read_exact(&mut fields)?;
        match Chunk::decode(head, &fields)? {
            Chunk::None if head.is_last => {}
            Chunk::None => return Err(Failure::odd("it answers with nothing, and goes on")),
            Chunk::Data { offset, len } => each(self, Part::Data(offset, len))?,
            Chunk::Hole { offset, len } => each(self, Part::Hole(offset, len))?,
            Chunk::Status { context, ranges } => each(self, Part::Status(context, &ranges))?,
            Chunk::Error(status, text) => return Ok(Err(refused_anywhere(status, &text))),
            Chunk::ErrorAt(status, text, offset) => return Ok(Err(refused(status, &text, offset))),
        }
        Ok(Ok(()))
    }
}

impl Piece {
    /// Where in the buffer `len` bytes at this offset of the disk go. They must not have come before.
    fn place(&mut self, at: u64, len: u32) -> Result<Range<usize>, Failure> {
        let start = at.checked_sub(self.offset);
        let start =
            start.filter(|start| start.saturating_add(len.into()) <= self.range.len() as u64);
        let start =
            start.ok_or_else(|| Failure::odd("it answers with bytes that were not asked for"))?;
        self.filled.add(start..start + u64::from(len))?;
        let start = self.range.start + start as usize;
        Ok(start..start + len as usize)
    }
}

impl Filled {
    /// These bytes have come.
    fn add(&mut self, range: Range<u64>) -> Result<(), Failure> {
        let at = self.0.partition_point(|it| it.end <= range.start);
        if self.0.get(at).is_some_and(|next| next.start < range.end) {
            return Err(Failure::odd("it answers with the same bytes twice"));
        }
        let count = self.0.len();
        match at.checked_sub(1).and_then(|before| self.0.get_mut(before)) {
            Some(before) if before.end == range.start => before.end = range.end,
            _ if count >= PARTS_MAX => {
                return Err(Failure::odd("it answers a read in too many parts"));
            }
            _ => self.0.insert(at, range),
        }
        Ok(())
    }

    /// Whether `len` bytes are there from the first on.
    fn is(&self, len: u32) -> bool {
        let mut end = 0;
        let follow = self.0.iter().all(|part| std::mem::replace(&mut end, part.end) == part.start);
        follow && end == u64::from(len)
    }
}

/// The server says that it can't do what was asked for at this offset.
fn refused(status: Status, text: &str, offset: u64) -> Error {
    let said = if text.is_empty() { String::new() } else { format!(" ({})", quoted(text)) };
    Error::new(ErrorKind::Io, format!("the server answers at byte {offset}: {status}{said}"))
}

fn refused_anywhere(status: Status, text: &str) -> Error {
    let said = if text.is_empty() { String::new() } else { format!(" ({})", quoted(text)) };
    Error::new(ErrorKind::Io, format!("the server answers: {status}{said}"))
}
