//! A queue of reads or writes: jobs in, buffers back, in whatever order they get done.

use std::ops::Range;

use super::ring::RingQueue;
use super::threads::ThreadQueue;
use super::{Buffer, Files, Pool, ReadAt};
use crate::base::error::{Error, ErrorKind, Result};

/// What runs the reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// io_uring, and threads where it is refused.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// `pread` and `pwrite` on a few threads.
    Threads,
}

impl Backend {
    /// Its name, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Threads => "threads",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Auto, Self::Uring, Self::Threads]
            .into_iter()
            .find(|backend| backend.as_str() == name)
            .ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("there is no I/O backend {name:?}"))
                    .advise("the backends are auto, uring and threads")
            })
    }
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// From the file into the buffer.
    #[default]
    Read,
    /// From the buffer into the file.
    Write,
}

impl Direction {
    /// The verb for an error.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// A range of a buffer and the place in a file that it is read from or written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which of the queue's files.
    pub file: usize,
    /// Where in that file, in bytes.
    pub offset: u64,
    /// Which bytes of the buffer.
    pub range: Range<usize>,
}

/// A buffer and what to read into it or to write from it.
#[derive(Debug)]
pub struct Transfer {
    /// Comes back with the buffer; means nothing to the queue.
    pub token: u64,
    /// The queue's until the job is done.
    pub buffer: Buffer,
    /// In any order. The ranges of a read must not overlap: what is in an overlap is anyone's
    /// guess.
    pub segments: Vec<Segment>,
    /// Whether to read or to write.
    pub direction: Direction,
}

/// A job that is over.
#[derive(Debug)]
pub struct Done {
    /// The job's token.
    pub token: u64,
    /// The job's buffer. After an error, what is in it is anyone's guess.
    pub buffer: Buffer,
    /// Whether every segment was read or written whole. An error names file and offset.
    pub result: Result<()>,
}

/// Runs jobs, at most `depth` operations at once. Belongs to one thread; the buffers travel.
///
/// Within what has been pushed and not begun, operations begin in the order of file and offset,
/// in one sweep after the other. Segments that touch in the file are read or written by one
/// operation, whichever jobs they belong to. Short transfers are continued, interrupted ones
/// repeated. A segment that reaches past the end of its file is an error.
///
/// Dropping the queue waits for the operations in flight; buffers return to their pool.
pub struct Queue {
    pub(super) engine: Engine,
    fallback_reason: Option<String>,
}

pub(super) enum Engine {
    Uring(Box<RingQueue>),
    Threads(ThreadQueue),
}

/// Steps of the ring's set-up that a test forbids, to see the next one taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Refuse {
    pub(super) ring: bool,
    pub(super) buffers: bool,
}

impl Queue {
    /// The most operations at once.
    pub const DEPTH_MAX: usize = 1024;

    /// A queue for `files` with at most `depth` operations at once (1 to [`Self::DEPTH_MAX`]).
    /// `pool` is where most buffers will come from: a ring registers its memory.
    ///
    /// With [`Backend::Auto`] what the system refuses is done without, step by step: registered
    /// buffers, a plain ring, threads. [`Self::fallback_reason`] tells why.
    ///
    /// # Errors
    /// `Io` if [`Backend::Uring`] is asked for and refused, or if threads can't be started.
    pub fn open(
        backend: Backend,
        depth: usize,
        files: impl Into<Files>,
        pool: &Pool,
    ) -> Result<Self> {
        Self::open_refusing(backend, depth, files, pool, Refuse::default())
    }

    pub(super) fn open_refusing(
        backend: Backend,
        depth: usize,
        files: impl Into<Files>,
        pool: &Pool,
        refuse: Refuse,
    ) -> Result<Self> {
        let files = files.into();
        let depth = depth.clamp(1, Self::DEPTH_MAX);
        if backend == Backend::Threads {
            let engine = Engine::Threads(ThreadQueue::new(depth, files)?);
            return Ok(Self { engine, fallback_reason: None });
        }
        match RingQueue::open(depth, &files, pool, refuse) {
            Ok((ring, fallback_reason)) => {
                Ok(Self { engine: Engine::Uring(Box::new(ring)), fallback_reason })
            }
            Err(error) if backend == Backend::Uring => {
                Err(Error::new(ErrorKind::Usage, "io_uring is not to be had")
                    .because(error)
                    .advise("use the I/O backend auto or threads"))
            }
            Err(error) => {
                let engine = Engine::Threads(ThreadQueue::new(depth, files)?);
                let reason = format!("threads in place of io_uring: {error}");
                Ok(Self { engine, fallback_reason: Some(reason) })
            }
        }
    }

    /// What it runs on: [`Backend::Uring`] or [`Backend::Threads`].
    pub fn backend(&self) -> Backend {
        match &self.engine {
            Engine::Uring(_) => Backend::Uring,
            Engine::Threads(_) => Backend::Threads,
        }
    }

    /// What was refused by the system and done without, in words; `None` if nothing was.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// Accepts a job. Nothing begins before [`Self::submit`] or [`Self::wait`].
    ///
    /// A segment outside the buffer or of an unknown file makes the job fail, with kind `Usage`;
    /// so does a write to a file that is only to be read.
    pub fn push(&mut self, job: Transfer) {
        match &mut self.engine {
            Engine::Uring(ring) => ring.push(job),
            Engine::Threads(threads) => threads.push(job),
        }
    }

    /// Begins as many operations as may be in flight.
    ///
    /// # Errors
    /// `Io` if the system no longer takes operations. The queue is then of no more use.
    pub fn submit(&mut self) -> Result<()> {
        match &mut self.engine {
            Engine::Uring(ring) => ring.submit(),
            Engine::Threads(threads) => threads.submit(),
        }
    }

    /// Waits for a job to be over, and begins others meanwhile.
    ///
    /// # Errors
    /// `Usage` if no job is pending; `Io` if the system no longer takes operations. A failure of
    /// the job itself is in [`Done::result`].
    pub fn wait(&mut self) -> Result<Done> {
        if self.pending() == 0 {
            return Err(Error::new(ErrorKind::Usage, "the I/O queue has nothing to wait for"));
        }
        match &mut self.engine {
            Engine::Uring(ring) => ring.wait(),
            Engine::Threads(threads) => threads.wait(),
        }
    }

    /// How many jobs were pushed and not yet returned by [`Self::wait`].
    pub fn pending(&self) -> usize {
        match &self.engine {
            Engine::Uring(ring) => ring.pending(),
            Engine::Threads(threads) => threads.pending(),
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("backend", &self.backend())
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

/// Fails for a segment that does not fit its job.
pub(super) fn check(segment: &Segment, buffer_len: usize, files: usize) -> Result<()> {
    let Segment { file, offset, range } = segment;
    let fits = range.start <= range.end && range.end <= buffer_len && *file < files;
    if fits && offset.checked_add(range.len() as u64).is_some_and(|end| end <= i64::MAX as u64) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!(
            "bytes {}..{} of a buffer of {buffer_len} at {offset} of file {file} of {files}",
            range.start, range.end
        ),
    ))
}

/// The error of a write to files that are only to be read.
pub(super) fn unwritable() -> Error {
    Error::new(ErrorKind::Usage, "a write to a queue of files that are only read")
}

/// The error of a transfer of `len` bytes at `offset` of `store`.
pub(super) fn transfer_error(
    direction: Direction,
    store: &dyn ReadAt,
    offset: u64,
    len: usize,
    error: std::io::Error,
) -> Error {
    let preposition = match direction {
        Direction::Read => "of",
        Direction::Write => "to",
    };
    let operation = format!("{} {len} bytes at {offset} {preposition}", direction.verb());
    Error::io(operation, store.path(), error)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
