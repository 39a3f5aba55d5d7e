//! The queue without io_uring: each job is run by one of a few threads with `pread` or `pwrite`.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::queue::{Direction, Done, Segment, Transfer, check, transfer_error, unwritable};
use super::{Files, RETRIES_MAX, RETRY_PAUSE};
use crate::base::error::{Error, ErrorKind, Result};

/// More threads do not read faster from one disk.
const THREADS_MAX: usize = 8;

pub(super) struct ThreadQueue {
    waiting: VecDeque<Transfer>,
    /// Jobs handed to the threads and not yet returned by them.
    running: usize,
    running_max: usize,
    to_do: Option<Sender<Transfer>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadQueue {
    pub(super) fn new(depth: usize, files: Files) -> Result<Self> {
        let count = depth.min(THREADS_MAX);
        // Both channels hold all that can run: neither side ever waits to send.
        let running_max = depth.max(count);
        let (to_do, jobs) = bounded::<Transfer>(running_max);
        let (results, done) = bounded(running_max);
        let files = Arc::new(files);
        let mut queue = Self {
            waiting: VecDeque::new(),
            running: 0,
            running_max,
            to_do: Some(to_do),
            done,
            threads: Vec::with_capacity(count),
        };
        for index in 0..count {
            let (jobs, results, files) = (jobs.clone(), results.clone(), Arc::clone(&files));
            let thread = std::thread::Builder::new()
                .name(format!("io-{index}"))
                .spawn(move || work(&jobs, &results, &files))
                .map_err(|error| {
                    Error::new(ErrorKind::Io, "cannot start a thread").because(error)
                })?;
            queue.threads.push(thread);
        }
        Ok(queue)
    }

    pub(super) fn push(&mut self, job: Transfer) {
        self.waiting.push_back(job);
    }

    pub(super) fn submit(&mut self) -> Result<()> {
        while self.running < self.running_max
            && let Some(job) = self.waiting.pop_front()
        {
            let sent = self.to_do.as_ref().is_some_and(|to_do| to_do.send(job).is_ok());
            if !sent {
                return Err(gone());
            }
            self.running += 1;
        }
        Ok(())
    }

    pub(super) fn wait(&mut self) -> Result<Done> {
        self.submit()?;
        let done = self.done.recv().map_err(|_| gone())?;
        self.running -= 1;
        self.submit()?;
        Ok(done)
    }

    pub(super) fn pending(&self) -> usize {
        self.waiting.len() + self.running
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        // Without a sender the threads end when they have done what was handed to them.
        drop(self.to_do.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Io, "the threads of the I/O queue are gone")
}

fn work(jobs: &Receiver<Transfer>, results: &Sender<Done>, files: &Files) {
    for mut job in jobs {
        // A store that panics must not leave its job's owner waiting for ever.
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut job, files)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a store panicked")));
        if results.send(Done { token: job.token, buffer: job.buffer, result }).is_err() {
            return;
        }
    }
}

fn run(job: &mut Transfer, files: &Files) -> Result<()> {
    let segments = merged(&mut job.segments);
    if job.direction == Direction::Read && read_at_once(&mut job.buffer, &segments, files)? {
        return Ok(());
    }
    for segment in segments {
        check(&segment, job.buffer.len(), files.len())?;
        let Some(bytes) = job.buffer.get_mut(segment.range.clone()) else { continue };
        transfer(job.direction, files, segment.file, bytes, segment.offset)?;
    }
    Ok(())
}

/// Reads all segments at once, if they are of one file for which that is quicker; gives whether it did. One by one, each
/// failure has its place.
fn read_at_once(buffer: &mut [u8], segments: &[Segment], files: &Files) -> Result<bool> {
    let [first, _, ..] = segments else { return Ok(false) };
    if segments.iter().any(|segment| segment.file != first.file) {
        return Ok(false);
    }
    for segment in segments {
        check(segment, buffer.len(), files.len())?;
    }
    let Some(store) = files.get(first.file) else { return Ok(false) };
    let parts: Vec<_> = segments.iter().map(|it| (it.range.clone(), it.offset)).collect();
    Ok(store.read_parts(buffer, &parts).is_some_and(|read| read.is_ok()))
}

/// The segments in the order of file and offset, those that touch in both file and buffer as one.
fn merged(segments: &mut Vec<Segment>) -> Vec<Segment> {
    segments.sort_by_key(|segment| (segment.file, segment.offset));
    let mut merged: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments.drain(..) {
        if let Some(last) = merged.last_mut()
            && last.file == segment.file
            && last.range.end == segment.range.start
            && last.offset.checked_add(last.range.len() as u64) == Some(segment.offset)
        {
            last.range.end = segment.range.end.max(last.range.end);
        } else {
            merged.push(segment);
        }
    }
    merged
}

/// Reads or writes all of `bytes` at `offset` of file number `file`.
fn transfer(
    direction: Direction,
    files: &Files,
    file: usize,
    bytes: &mut [u8],
    offset: u64,
) -> Result<()> {
    let Some(store) = files.get(file) else { return Ok(()) };
    let mut done = 0;
    let mut retries = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let len = rest.len();
        let at = offset + done as u64;
        let result = match direction {
            Direction::Read => store.read_at(rest, at),
            Direction::Write => match files.writable(file) {
                Some(store) => store.write_at(rest, at),
                None => return Err(unwritable()),
            },
        };
        let error = match result {
            Ok(0) if direction == Direction::Read => io::ErrorKind::UnexpectedEof.into(),
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                done += count;
                retries = 0;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && retries < RETRIES_MAX => {
                retries += 1;
                std::thread::sleep(Duration::from_micros(RETRY_PAUSE));
                continue;
            }
            Err(error) => error,
        };
        return Err(transfer_error(direction, store, at, len, error));
    }
    Ok(())
}
