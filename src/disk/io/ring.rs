//! The queue on io_uring: puts the segments of all jobs in order, makes operations of those that
//! touch, and takes them apart again when they are over.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::direct::is_aligned;
use super::queue::{Direction, Done, Refuse, Transfer, check, transfer_error, unwritable};
use super::{Files, Pool, PooledFile, RETRIES_MAX, RETRY_PAUSE, ReadAt};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::uring::{Piece, Ring, Slot};

/// An operation grows no longer than this by merging, in bytes.
const MERGED_SIZE_MAX: usize = 1 << 20;
/// An operation has no more parts than this.
const PARTS_MAX: usize = 64;

/// The order in which operations begin: file, offset, and the order of arrival.
type Place = (usize, u64, u64);

pub(super) struct RingQueue {
    ring: Ring<Operation>,
    /// How many files the caller knows. Behind them stand those of `cached`.
    files: usize,
    /// Whether they may be written.
    writable: bool,
    /// For each file that goes past the page cache, the same one through the cache.
    cached: Vec<Option<usize>>,
    depth: usize,
    jobs: BTreeMap<Slot, JobState>,
    /// Parts that no operation has taken yet.
    waiting: BTreeMap<Place, (Direction, Part)>,
    /// Where the sweep through `waiting` has got to.
    cursor: Place,
    arrivals: u64,
    /// Operations that were cut short or refused and go on before anything else begins.
    again: VecDeque<Operation>,
    finished: VecDeque<Done>,
    /// What a test makes of the kernel's results.
    #[cfg(test)]
    pub(super) tamper: Option<Tamper>,
}

/// Given an operation's offset and length in bytes and its result, tells what to see instead.
#[cfg(test)]
pub(super) type Tamper = Box<dyn FnMut(u64, usize, i32) -> i32 + Send>;

struct JobState {
    token: u64,
    /// Segments that are neither done nor failed.
    unfinished: usize,
    error: Option<Error>,
}

/// A range of a job's buffer: what is left of one segment.
#[derive(Debug, Clone)]
struct Part {
    slot: Slot,
    range: Range<usize>,
}

/// One transfer: parts that follow each other in the file.
#[derive(Debug)]
struct Operation {
    direction: Direction,
    file: usize,
    offset: u64,
    parts: VecDeque<Part>,
    /// How often in a row the system had no room for it.
    retries: u32,
}

impl Operation {
    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.range.len()).sum()
    }
}

impl RingQueue {
    pub(super) fn open(
        depth: usize,
        files: &Files,
        pool: &Pool,
        refuse: Refuse,
    ) -> io::Result<(Self, Option<String>)> {
        let refused = |it| if it { Err(io::Error::other("refused by a test")) } else { Ok(()) };
        refused(refuse.ring)?;
        let writable = matches!(files, Files::Write(_));
        let mut all = files.readable();
        let mut cached = Vec::with_capacity(files.len());
        for index in 0..files.len() {
            let through = files.get(index).and_then(ReadAt::cached);
            cached.push(through.map(|_| all.len()));
            all.extend(through.cloned());
        }
        let mut ring = Ring::new(depth, all)?;
        let registered = refused(refuse.buffers).and_then(|()| ring.register_buffers(pool));
        let reason = registered.err().map(|error| {
            let hint = match error.kind() {
                io::ErrorKind::OutOfMemory => " (see ulimit -l)",
                _ => "",
            };
            format!("io_uring without registered buffers: {error}{hint}")
        });
        let queue = Self {
            ring,
            files: files.len(),
            writable,
            cached,
            depth,
            jobs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            cursor: Place::default(),
            arrivals: 0,
            again: VecDeque::new(),
            finished: VecDeque::new(),
            #[cfg(test)]
            tamper: None,
        };
        Ok((queue, reason))
    }

    pub(super) fn push(&mut self, job: Transfer) {
        let Transfer { token, buffer, segments, direction } = job;
        let checked = match direction {
            Direction::Write if !self.writable => Err(unwritable()),
            _ => segments.iter().try_for_each(|it| check(it, buffer.len(), self.files)),
        };
        let unfinished = segments.iter().filter(|it| !it.range.is_empty()).count();
        if checked.is_err() || unfinished == 0 {
            self.finished.push_back(Done { token, buffer, result: checked });
            return;
        }
        let slot = self.ring.hold(buffer);
        self.jobs.insert(slot, JobState { token, unfinished, error: None });
        for segment in segments.into_iter().filter(|it| !it.range.is_empty()) {
            // Buffers are aligned, and so are equal parts of them.
            let file =
                self.route(segment.file, segment.offset, segment.range.start, segment.range.len());
            let place = (file, segment.offset, self.arrivals);
            self.arrivals += 1;
            self.waiting.insert(place, (direction, Part { slot, range: segment.range }));
        }
    }

    /// The file by which these bytes go: through the page cache if they are not aligned.
    fn route(&self, file: usize, offset: u64, start: usize, len: usize) -> usize {
        match self.cached.get(file) {
            Some(Some(cached)) if !is_aligned(offset, len, start) => *cached,
            _ => file,
        }
    }

    pub(super) fn submit(&mut self) -> Result<()> {
        self.begin()?;
        self.ring.enter(false).map_err(broken)
    }

    pub(super) fn wait(&mut self) -> Result<Done> {
        loop {
            self.submit()?;
            if let Some(done) = self.finished.pop_front() {
                return Ok(done);
            }
            if self.ring.in_flight() == 0 {
                // Only after an operation could not be started at all.
                return Err(broken(io::Error::other("jobs were lost")));
            }
            self.ring.enter(true).map_err(broken)?;
            while let Some((operation, result)) = self.ring.completed() {
                #[cfg(test)]
                let result = self
                    .tamper
                    .as_mut()
                    .map_or(result, |tamper| tamper(operation.offset, operation.len(), result));
                self.settle(operation, result);
            }
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.jobs.len() + self.finished.len()
    }

    /// Fills the ring with operations.
    fn begin(&mut self) -> Result<()> {
        while self.ring.in_flight() < self.depth
            && let Some(operation) = self.again.pop_front().or_else(|| self.next())
        {
            let pieces = pieces(&operation.parts);
            let Operation { direction, file, offset, .. } = operation;
            let pooled = self.ring.file(file).and_then(|file| file.pooled());
            match pooled.map(PooledFile::open).transpose() {
                Ok(held) => {
                    let started =
                        self.ring.start(direction, file, offset, &pieces, held, operation);
                    started.map_err(broken)?;
                }
                Err(error) => self.refuse(&operation, error),
            }
        }
        Ok(())
    }

    /// The next operation of the sweep: the first part at or after the cursor, and the parts that
    /// follow it in the file without a gap.
    fn next(&mut self) -> Option<Operation> {
        loop {
            let first =
                self.waiting.range(self.cursor..).next().or_else(|| self.waiting.iter().next());
            let place = *first?.0;
            let (direction, part) = self.waiting.remove(&place)?;
            self.cursor = place;
            if self.has_failed(part.slot) {
                self.finish_segment(part.slot, None);
                continue;
            }
            let (file, offset, _) = place;
            let mut operation =
                Operation { direction, file, offset, parts: VecDeque::from([part]), retries: 0 };
            self.extend(&mut operation);
            return Some(operation);
        }
    }

    fn extend(&mut self, operation: &mut Operation) {
        let mut len = operation.len();
        while operation.parts.len() < PARTS_MAX {
            let end = operation.offset + len as u64;
            let follower = self
                .waiting
                .range((operation.file, end, 0)..=(operation.file, end, u64::MAX))
                .find(|(_, (direction, part))| {
                    *direction == operation.direction
                        && len + part.range.len() <= MERGED_SIZE_MAX
                        && !self.has_failed(part.slot)
                })
                .map(|(place, _)| *place);
            let Some((place, (_, part))) =
                follower.and_then(|place| self.waiting.remove(&place).map(|found| (place, found)))
            else {
                return;
            };
            len += part.range.len();
            self.cursor = place;
            operation.parts.push_back(part);
        }
    }

    /// Draws the consequences of a result: bytes, or a negative error number.
    fn settle(&mut self, mut operation: Operation, result: i32) {
        if let Ok(bytes) = usize::try_from(result)
            && bytes > 0
        {
            operation.retries = 0;
            self.advance(&mut operation, bytes);
            if let Some(part) = operation.parts.front() {
                // Cut short in the middle of a page: the rest is not aligned any more.
                let (start, len) = (part.range.start, part.range.len());
                operation.file = self.route(operation.file, operation.offset, start, len);
                self.again.push_back(operation);
            }
            return;
        }
        let error = match (result, operation.direction) {
            (0, Direction::Read) => io::ErrorKind::UnexpectedEof.into(),
            (0, Direction::Write) => io::ErrorKind::WriteZero.into(),
            _ => io::Error::from_raw_os_error(result.saturating_neg()),
        };
        match error.kind() {
            io::ErrorKind::Interrupted => self.again.push_back(operation),
            io::ErrorKind::WouldBlock if operation.retries < RETRIES_MAX => {
                operation.retries += 1;
                std::thread::sleep(Duration::from_micros(RETRY_PAUSE));
                self.again.push_back(operation);
            }
            _ => self.refuse(&operation, error),
        }
    }

    /// The operation failed. One of several parts may be all that is wrong: each must have its own
    /// result.
    fn refuse(&mut self, operation: &Operation, error: io::Error) {
        if operation.parts.len() > 1 {
            self.split(operation);
        } else {
            self.fail(operation, error);
        }
    }

    /// Takes `bytes` transferred bytes off the front of the operation.
    fn advance(&mut self, operation: &mut Operation, mut bytes: usize) {
        operation.offset += bytes as u64;
        while bytes > 0
            && let Some(part) = operation.parts.front_mut()
        {
            let taken = bytes.min(part.range.len());
            part.range.start += taken;
            bytes -= taken;
            if part.range.is_empty() {
                let slot = part.slot;
                operation.parts.pop_front();
                self.finish_segment(slot, None);
            }
        }
    }

    fn split(&mut self, operation: &Operation) {
        let mut offset = operation.offset;
        for part in &operation.parts {
            self.again.push_back(Operation {
                direction: operation.direction,
                file: operation.file,
                offset,
                parts: VecDeque::from([part.clone()]),
                retries: 0,
            });
            offset += part.range.len() as u64;
        }
    }

    fn fail(&mut self, operation: &Operation, error: io::Error) {
        let Operation { direction, file, offset, parts, .. } = operation;
        let (Some(part), Some(store)) = (parts.front(), self.ring.file(*file)) else { return };
        let error = transfer_error(*direction, store.as_ref(), *offset, part.range.len(), error);
        self.finish_segment(part.slot, Some(error));
    }

    fn has_failed(&self, slot: Slot) -> bool {
        self.jobs.get(&slot).is_some_and(|job| job.error.is_some())
    }

    /// One segment of the job is over; with the last one, the job is.
    fn finish_segment(&mut self, slot: Slot, error: Option<Error>) {
        let Some(job) = self.jobs.get_mut(&slot) else { return };
        job.unfinished -= 1;
        if job.error.is_none() {
            job.error = error;
        }
        if job.unfinished > 0 {
            return;
        }
        if let Some(job) = self.jobs.remove(&slot)
            && let Some(buffer) = self.ring.release(slot)
        {
            let result = job.error.map_or(Ok(()), Err);
            self.finished.push_back(Done { token: job.token, buffer, result });
        }
    }
}

/// What the ring is told: parts that also touch in their buffer are one piece.
fn pieces(parts: &VecDeque<Part>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(parts.len());
    for part in parts {
        if let Some(last) = pieces.last_mut()
            && last.slot == part.slot
            && last.range.end == part.range.start
        {
            last.range.end = part.range.end;
        } else {
            pieces.push(Piece { slot: part.slot, range: part.range.clone() });
        }
    }
    pieces
}

fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "io_uring takes no more operations").because(error)
}
