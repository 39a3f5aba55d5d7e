//! Keeps a queue filled ahead of the workers: what a producer plans is read into a buffer of the
//! fixed pool, and travels on with it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::{Halt, Producer, Resources, Ticket};
use crate::disk::io::{
    Backend, Buffer, Direct, Direction, Pool, Queue, ReadAt, Segment, Transfer, open_direct,
};

/// Reads in flight at once: more than this brings an NVMe drive nothing at 1 MiB a read.
const QUEUE_DEPTH: usize = 64;

/// A task with the bytes that were read for it.
pub struct Loaded<T> {
    /// What to do with them.
    pub task: T,
    /// The bytes, where the task's plan put them.
    pub buffer: Buffer,
}

/// A queue, its buffers, and the tasks that wait for their bytes.
pub struct ReadAhead<T> {
    pool: Pool,
    queue: Queue,
    waiting: HashMap<u64, T>,
}

impl<T> ReadAhead<T> {
    /// Reads from `files` into buffers of `buffer_size` bytes, as many as the window allows, and
    /// past the page cache if `direct` says so.
    pub fn new(
        resources: &Resources,
        files: Vec<Arc<dyn ReadAt>>,
        buffer_size: usize,
        direct: Direct,
    ) -> Result<Self> {
        // What comes over a network is read by threads, and nothing was refused.
        let is_remote = |file: &Arc<dyn ReadAt>| file.fd().is_none() && file.pooled().is_none();
        let backend = match resources.backend {
            Backend::Auto if files.iter().any(is_remote) => Backend::Threads,
            backend => backend,
        };
        let files = open_direct(files, direct)?;
        let pool = Pool::new(resources.window(), buffer_size)?;
        let queue = Queue::open(backend, QUEUE_DEPTH, files, &pool)?;
        Ok(Self { pool, queue, waiting: HashMap::new() })
    }

    /// Says what the system refused, if it refused anything.
    pub fn warn_of_fallback(&self, observer: &dyn Observer) {
        if let Some(reason) = self.queue.fallback_reason() {
            observer.warn(Warning::new(Code::SlowIo, reason));
        }
    }

    /// How the files are read.
    pub fn backend(&self) -> Backend {
        self.queue.backend()
    }

    /// Reads `segments` into a buffer, and then hands `task` to the workers. Without segments the
    /// task goes at once.
    pub fn read<R>(
        &mut self,
        producer: &mut Producer<Loaded<T>, R>,
        segments: Vec<Segment>,
        task: T,
    ) -> Result<(), Halt> {
        let buffer = self.buffer(producer)?;
        let ticket = self.ticket(producer)?;
        if segments.is_empty() {
            return Ok(producer.work(ticket, Loaded { task, buffer })?);
        }
        let token = ticket.turn();
        self.waiting.insert(token, task);
        self.queue.push(Transfer { token, buffer, segments, direction: Direction::Read });
        Ok(())
    }

    /// Passes something on that no worker has anything to do with, in its turn.
    pub fn pass<R>(
        &mut self,
        producer: &mut Producer<Loaded<T>, R>,
        result: R,
    ) -> Result<(), Halt> {
        let ticket = self.ticket(producer)?;
        Ok(producer.pass(ticket, result)?)
    }

    /// Waits until everything is read and handed on.
    pub fn finish<R>(&mut self, producer: &mut Producer<Loaded<T>, R>) -> Result<(), Halt> {
        while self.queue.pending() > 0 {
            self.pump(producer)?;
        }
        Ok(())
    }

    /// A buffer; while there is none, what was read goes to the workers, who free some.
    fn buffer<R>(&mut self, producer: &mut Producer<Loaded<T>, R>) -> Result<Buffer, Halt> {
        loop {
            if let Some(buffer) = self.pool.try_take() {
                return Ok(buffer);
            }
            if self.queue.pending() == 0 {
                return Ok(self.pool.take());
            }
            self.pump(producer)?;
        }
    }

    /// A ticket; while there is none, what was read goes to the workers: one of them may hold the
    /// turn that everyone waits for.
    fn ticket<R>(&mut self, producer: &mut Producer<Loaded<T>, R>) -> Result<Ticket, Halt> {
        loop {
            if let Some(ticket) = producer.try_ticket()? {
                return Ok(ticket);
            }
            if self.queue.pending() == 0 {
                return Ok(producer.ticket()?);
            }
            self.pump(producer)?;
        }
    }

    /// Waits for one read and hands it to the workers.
    fn pump<R>(&mut self, producer: &mut Producer<Loaded<T>, R>) -> Result<(), Halt> {
        let done = self.queue.wait()?;
        done.result?;
        if let Some(task) = self.waiting.remove(&done.token) {
            producer.work(Ticket::of_turn(done.token), Loaded { task, buffer: done.buffer })?;
        }
        Ok(())
    }
}
