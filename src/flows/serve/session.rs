//! The requests of a client. As many threads as pay take turns: whoever has read a request lets the next
//! one read, and answers; so requests are worked on beside each other, and a lone one waits for no
//! handing over.

use std::io::{self, BufReader, IoSlice, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use super::exports::is_zero;
use super::handshake::{Agreement, nonsense};
use super::stream::{Ender, Stream};
use super::{PIECE, Shared};
use crate::base::error::{Error, ErrorKind};
use crate::disk::io::Buffer;
use crate::formats::nbd::{
    Chunk, Command, CommandFlags, REQUEST_BYTES_MAX, REQUEST_LEN, Request, Status, simple_reply,
};
use crate::vault::point::Proved;

/// Reads of at most so many bytes need none of the large buffers.
const SMALL: usize = 64 << 10;
/// How much of a range is looked at for one answer.
const STATUS_SPAN: u64 = 1 << 30;
/// How many ranges one answer tells.
const STATUS_RUNS: usize = 4096;
/// How many runs of a piece are told apart.
const READ_RUNS: usize = 64;
/// How many bytes are prefetched for one request.
const PREFETCH_MAX: u64 = 8 << 20;
const READ_ONLY: &str = "a recovery point can't be written to";
const BEHIND_THE_END: &str = "the range ends behind the disk";
const ODD_FLAGS: &str = "unknown flags";
/// How many bytes of frames may stay in memory for a piece that is sent without a copy.
const LENT_MAX: usize = PIECE + PIECE / 2;
/// How many damaged places one reply tells.
const ERRORS_MAX: usize = 16;

/// A client that has chosen an export.
pub struct Session<'a> {
    stream: &'a Stream,
    ender: Ender,
    agreed: Agreement,
    shared: &'a Shared<'a>,
    incoming: Mutex<BufReader<&'a Stream>>,
    outgoing: Mutex<()>,
    /// Threads that work for the client, and those of them that wait for their turn to read.
    workers: AtomicUsize,
    waiting: AtomicUsize,
    /// Nothing more is read.
    is_over: AtomicBool,
}

/// Where a worker puts what it reads.
#[derive(Default)]
struct Room(Vec<u8>);

/// A buffer for a piece of a reply.
enum Piece<'a> {
    Small(&'a mut [u8]),
    Large(Buffer, usize),
}

impl Piece<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(buffer, len) => buffer.get_mut(..*len).unwrap_or_default(),
        }
    }
}

impl<'a> Session<'a> {
    /// A session over a stream that an export was chosen on.
    pub fn new(
        stream: &'a Stream,
        incoming: BufReader<&'a Stream>,
        agreed: Agreement,
        shared: &'a Shared<'a>,
    ) -> io::Result<Self> {
        Ok(Self {
            stream,
            ender: stream.ender()?,
            agreed,
            shared,
            incoming: Mutex::new(incoming),
            outgoing: Mutex::default(),
            workers: AtomicUsize::new(1),
            waiting: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    /// Answers requests until the client goes, and gives back when all are answered.
    pub fn run(&self) {
        std::thread::scope(|scope| self.work(scope));
    }

    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut room = Room::default();
        loop {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let mut incoming = locked(&self.incoming);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let next = match self.is_over.load(Ordering::Relaxed) {
                true => None,
                false => self.next(&mut incoming),
            };
            let Some(request) = next else {
                self.is_over.store(true, Ordering::Relaxed);
                return;
            };
            drop(incoming);
            self.call_another(scope);
            if self.answer(&request, &mut room).is_err() {
                // The client is gone, or takes nothing any more: whoever reads now stops.
                self.is_over.store(true, Ordering::Relaxed);
                self.ender.end();
            }
        }
    }

    /// Starts another worker if nobody waits to read, up to as many as pay.
    fn call_another<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let workers = self.workers.load(Ordering::Relaxed);
        if self.waiting.load(Ordering::Relaxed) > 0 || workers >= self.shared.threads {
            return;
        }
        // Only whoever has just read comes here, but another one may have read since.
        let is_ours = self.workers.compare_exchange(
            workers,
            workers + 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if is_ours.is_err() {
            return;
        }
        let worker = std::thread::Builder::new().name("nbd".to_owned());
        if worker.spawn_scoped(scope, || self.work(scope)).is_err() {
            self.workers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The next request that is to be answered; none if none comes. Writes before it are done here.
    fn next(&self, incoming: &mut BufReader<&'a Stream>) -> Option<Request> {
        // A loop: a client may send any number of writes, and the stack is bounded.
        loop {
            let mut bytes = [0; REQUEST_LEN];
            incoming.read_exact(&mut bytes).ok()?;
            let request = match Request::decode(&bytes).map_err(nonsense) {
                Ok(request) => request,
                Err(error) => {
                    tracing::debug!("a client is cut off: {error}");
                    return None;
                }
            };
            match request.command {
                Command::Disconnect => return None,
                // The bytes follow, and must be passed over to find the next request.
                Command::Write if request.len > REQUEST_BYTES_MAX => return None,
                Command::Write => {
                    let outcome = self.write(&request, incoming);
                    let answered = match outcome.ok()? {
                        Ok(()) => self.done(&request),
                        Err((status, text)) => self.fail(&request, status, &text),
                    };
                    answered.ok()?;
                }
                _ => return Some(request),
            }
        }
    }

    /// Writes the bytes that follow a request, in the order in which they come. What is refused is passed
    /// over.
    fn write(
        &self,
        request: &Request,
        incoming: &mut BufReader<&'a Stream>,
    ) -> io::Result<Result<(), (Status, String)>> {
        let export = &self.agreed.export;
        let scratch = export.scratch();
        let mut outcome = match &scratch {
            None => Err((Status::NotPermitted, READ_ONLY.to_owned())),
            Some(_) if request.flags.is_odd_for(request.command) => {
                Err((Status::Invalid, ODD_FLAGS.to_owned()))
            }
            Some(_) if !request.is_within(export.size()) => {
                Err((Status::NoSpace, BEHIND_THE_END.to_owned()))
            }
            Some(_) => Ok(()),
        };
        let end = request.offset.saturating_add(request.len.into());
        let mut room = Room::default();
        for range in pieces(request.offset..end) {
            let mut piece = self.piece(&range, &mut room);
            incoming.read_exact(piece.bytes())?;
            if let (Ok(()), Some(scratch)) = (&outcome, &scratch) {
                let written = scratch.write(piece.bytes(), range.start);
                outcome = written.map_err(|error| self.refusal(&error));
            }
        }
        if let (Ok(()), Some(scratch)) = (&outcome, &scratch)
            && request.flags.has(CommandFlags::FUA)
        {
            outcome = scratch.flush().map_err(|error| self.refusal(&error));
        }
        Ok(outcome)
    }

    /// Changes the disk without bytes from the client.
    fn change(&self, request: &Request) -> io::Result<()> {
        let export = &self.agreed.export;
        let Some(scratch) = export.scratch() else {
            return match request.command {
                // There is nothing to be flushed.
                Command::Flush => self.done(request),
                _ => self.fail(request, Status::NotPermitted, READ_ONLY),
            };
        };
        let range = request.offset..request.offset.saturating_add(request.len.into());
        let is_flush = request.command == Command::Flush;
        if !is_flush && !request.is_within(export.size()) {
            return self.fail(request, Status::NoSpace, BEHIND_THE_END);
        }
        let holes = !request.flags.has(CommandFlags::NO_HOLE);
        let changed = match request.command {
            Command::WriteZeroes => scratch.zero(range, holes),
            Command::Trim => scratch.trim(&range),
            _ => Ok(()),
        };
        let flush = || match is_flush || request.flags.has(CommandFlags::FUA) {
            true => scratch.flush(),
            false => Ok(()),
        };
        match changed.and_then(|()| flush()) {
            Ok(()) => self.done(request),
            Err(error) => self.fail_by(request, &error),
        }
    }

    /// What a client is told of an error, and the admin, too.
    fn refusal(&self, error: &Error) -> (Status, String) {
        self.shared.complain(error);
        (status_of(error), error.chain())
    }

    fn answer(&self, request: &Request, room: &mut Room) -> io::Result<()> {
        let export = &self.agreed.export;
        let refuse = |status, text: &str| self.fail(request, status, text);
        if request.flags.is_odd_for(request.command) {
            return refuse(Status::Invalid, ODD_FLAGS);
        }
        match request.command {
            Command::Read | Command::Cache | Command::BlockStatus => {
                if !request.is_within(export.size()) {
                    return refuse(Status::Invalid, BEHIND_THE_END);
                }
            }
            Command::Flush | Command::Trim | Command::WriteZeroes => return self.change(request),
            // These two never come here.
            Command::Write | Command::Disconnect | Command::Unknown(_) => {
                return refuse(Status::NotSupported, "unknown request");
            }
        }
        match request.command {
            Command::BlockStatus => self.status(request),
            Command::Cache => self.prefetch(request, room),
            _ if request.len == 0 => refuse(Status::Invalid, "a read of nothing"),
            _ if request.len > REQUEST_BYTES_MAX => {
                refuse(Status::Invalid, "at most 32 MiB are read at once")
            }
            _ if !self.agreed.structured => self.read_simply(request, room),
            _ if request.flags.has(CommandFlags::DF) => self.read_whole(request, room),
            _ => self.read(request, room),
        }
    }

    fn status(&self, request: &Request) -> io::Result<()> {
        if !self.agreed.allocation {
            return self.fail(request, Status::Invalid, "base:allocation was not asked for");
        }
        let one = request.flags.has(CommandFlags::REQ_ONE);
        let span = u64::from(request.len).min(STATUS_SPAN);
        let range = request.offset..request.offset + span;
        let limit = if one { 1 } else { STATUS_RUNS };
        match self.agreed.export.runs(range, limit) {
            Ok(runs) if !runs.is_empty() => {
                let told = runs.iter();
                let told = told.map(|run| ((run.range.end - run.range.start) as u32, is_zero(run)));
                self.send(request, &Chunk::allocation(told), true, &[])
            }
            Ok(_) => self.fail(request, Status::Invalid, "the status of nothing"),
            Err(error) => self.fail_by(request, &error),
        }
    }

    /// Reads into the caches. What can't be read is told to whoever reads it.
    fn prefetch(&self, request: &Request, room: &mut Room) -> io::Result<()> {
        let end = request.offset + u64::from(request.len).min(PREFETCH_MAX);
        for range in pieces(request.offset..end) {
            let mut piece = self.piece(&range, room);
            if self.agreed.export.read(piece.bytes(), range.start).is_err() {
                break;
            }
        }
        self.done(request)
    }

    /// A read that is answered in chunks: what is zero in a few bytes, what is damaged as an error of
    /// its place.
    fn read(&self, request: &Request, room: &mut Room) -> io::Result<()> {
        let end = request.offset + u64::from(request.len);
        let mut errors = 0;
        for range in pieces(request.offset..end) {
            let mut at = range.start;
            while at < range.end {
                let runs = match self.agreed.export.runs(at..range.end, READ_RUNS) {
                    Ok(runs) => runs,
                    Err(error) => {
                        errors += 1;
                        let is_last = range.end == end || errors >= ERRORS_MAX;
                        self.fail_at(request, &error, at, is_last)?;
                        if is_last {
                            return Ok(());
                        }
                        break;
                    }
                };
                let Some(last) = runs.last() else { break };
                at = last.range.end;
                for run in &runs {
                    let is_last = run.range.end == end;
                    if is_zero(run) {
                        self.send(request, &Chunk::of(&run.range, true), is_last, &[])?;
                    } else if !self.read_run(request, &run.range, is_last, &mut errors, room)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends the bytes of a run. Gives whether the reply goes on.
    fn read_run(
        &self,
        request: &Request,
        run: &Range<u64>,
        is_last: bool,
        errors: &mut usize,
        room: &mut Room,
    ) -> io::Result<bool> {
        let mut piece = self.piece(run, room);
        // Small pieces are sent from a copy: a client that takes its time does not keep their frames.
        let lent = match piece {
            Piece::Small(_) => None,
            Piece::Large(..) => self.agreed.export.lend(run, LENT_MAX).ok().flatten(),
        };
        if let Some(lent) = lent {
            self.send_all(request, &Chunk::of(run, false), is_last, &lent)?;
            return Ok(true);
        }
        let bytes = piece.bytes();
        if self.agreed.export.read(bytes, run.start).is_ok() {
            self.send(request, &Chunk::of(run, false), is_last, bytes)?;
            return Ok(true);
        }
        // Some block is damaged; its neighbours are not. A stretch of damage is told once.
        let block = u64::from(self.agreed.export.block_size());
        let (mut at, mut was_damaged) = (run.start, false);
        while at < run.end {
            let range = at..run.end.min(at - at % block + block);
            let bytes = bytes.get_mut(..(range.end - range.start) as usize).unwrap_or_default();
            let ends = range.end == run.end && is_last;
            let read = self.agreed.export.read(bytes, at);
            match &read {
                Ok(()) => self.send(request, &Chunk::of(&range, false), ends, bytes)?,
                Err(_) if was_damaged && !ends => {}
                Err(error) => {
                    *errors += 1;
                    let ends = ends || *errors >= ERRORS_MAX;
                    self.fail_at(request, error, at, ends)?;
                    if ends {
                        return Ok(false);
                    }
                }
            }
            was_damaged = read.is_err();
            at = range.end;
        }
        Ok(true)
    }

    /// A read that is answered in one chunk.
    fn read_whole(&self, request: &Request, room: &mut Room) -> io::Result<()> {
        if request.len as usize > PIECE {
            let text = format!("at most {PIECE} bytes are read in one piece");
            return self.fail(request, Status::Overflow, &text);
        }
        let range = request.offset..request.offset + u64::from(request.len);
        let mut piece = self.piece(&range, room);
        let bytes = piece.bytes();
        match self.agreed.export.read(bytes, range.start) {
            Ok(()) => self.send(request, &Chunk::of(&range, false), true, bytes),
            Err(error) => self.fail_by(request, &error),
        }
    }

    /// A read of a client that knows no chunks: the reply says at its start that all is well. Where that
    /// was said and is not so, the connection ends.
    fn read_simply(&self, request: &Request, room: &mut Room) -> io::Result<()> {
        let end = request.offset + u64::from(request.len);
        let mut turn = None;
        for range in pieces(request.offset..end) {
            let mut piece = self.piece(&range, room);
            let bytes = piece.bytes();
            match (self.agreed.export.read(bytes, range.start), &turn) {
                (Ok(()), _) => {}
                (Err(error), None) => return self.fail_by(request, &error),
                (Err(error), Some(_)) => {
                    self.shared.complain(&error);
                    return Err(io::Error::other(error));
                }
            }
            let head = simple_reply(request.cookie, Status::Done);
            let head = if turn.is_none() { &head[..] } else { &[] };
            turn.get_or_insert_with(|| locked(&self.outgoing));
            self.stream.send(&mut [IoSlice::new(head), IoSlice::new(bytes)])?;
        }
        Ok(())
    }

    fn done(&self, request: &Request) -> io::Result<()> {
        let _turn = locked(&self.outgoing);
        self.stream.send(&mut [IoSlice::new(&simple_reply(request.cookie, Status::Done))])
    }

    /// Refuses a request.
    fn fail(&self, request: &Request, status: Status, text: &str) -> io::Result<()> {
        if self.agreed.structured {
            return self.send(request, &Chunk::Error(status, text.to_owned()), true, &[]);
        }
        let _turn = locked(&self.outgoing);
        self.stream.send(&mut [IoSlice::new(&simple_reply(request.cookie, status))])
    }

    /// Says that a request failed.
    fn fail_by(&self, request: &Request, error: &Error) -> io::Result<()> {
        self.shared.complain(error);
        self.fail(request, status_of(error), &error.chain())
    }

    /// Says that a part of a request failed.
    fn fail_at(&self, request: &Request, error: &Error, at: u64, is_last: bool) -> io::Result<()> {
        self.shared.complain(error);
        let chunk = Chunk::ErrorAt(status_of(error), error.chain(), at);
        self.send(request, &chunk, is_last, &[])
    }

    fn send(&self, request: &Request, chunk: &Chunk, ends: bool, bytes: &[u8]) -> io::Result<()> {
        let head = chunk.encode(request.cookie, ends);
        let _turn = locked(&self.outgoing);
        self.stream.send(&mut [IoSlice::new(&head), IoSlice::new(bytes)])
    }

    /// Sends a chunk whose bytes lie in several places.
    fn send_all(
        &self,
        request: &Request,
        chunk: &Chunk,
        ends: bool,
        bytes: &[Proved],
    ) -> io::Result<()> {
        let head = chunk.encode(request.cookie, ends);
        let mut parts = vec![IoSlice::new(&head)];
        parts.extend(bytes.iter().map(|part| IoSlice::new(part)));
        let _turn = locked(&self.outgoing);
        self.stream.send(&mut parts)
    }

    /// A buffer for a range of at most [`PIECE`] bytes; waits until one of the large ones is free.
    fn piece<'r>(&self, range: &Range<u64>, room: &'r mut Room) -> Piece<'r> {
        let len = (range.end - range.start) as usize;
        if len > SMALL {
            return Piece::Large(self.shared.buffers.take(), len);
        }
        room.0.resize(SMALL, 0);
        Piece::Small(room.0.get_mut(..len).unwrap_or_default())
    }
}

/// A range in pieces that a buffer holds, cut where pieces of the disk begin.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let piece = PIECE as u64;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min(start - start % piece + piece);
        (start < range.end).then_some(start..at)
    })
}

fn status_of(error: &Error) -> Status {
    match error.kind() {
        ErrorKind::NoSpace => Status::NoSpace,
        ErrorKind::Usage => Status::Invalid,
        _ => Status::Io,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
