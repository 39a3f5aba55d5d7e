//! Writes what workers have filled buffers with, while they fill others.

use std::sync::Arc;

use crate::error::Result;
use crate::io::{Access, Buffer, Direction, Job, Pool, Queue, Segment, Store, open_direct};
use crate::pipeline::Resources;

/// Writes in flight at once.
const QUEUE_DEPTH: usize = 8;

/// A queue of writes to one file, and the buffers that they come from. Belongs to the consumer of
/// a data path; the workers have clones of its pool.
pub struct WriteBehind {
    pool: Pool,
    queue: Queue,
}

impl WriteBehind {
    /// Writes to `store` from buffers of `buffer_size` bytes.
    ///
    /// There is one buffer for each turn of the data path and one for each write in flight: a
    /// worker never waits for a buffer that only its own result could free.
    pub fn new(resources: &Resources, store: Arc<dyn Store>, buffer_size: usize) -> Result<Self> {
        let pool = Pool::new(resources.window() + QUEUE_DEPTH, buffer_size)?;
        let files = open_direct(vec![store], resources.direct, Access::Write)?;
        let queue = Queue::open(resources.backend, QUEUE_DEPTH, files, &pool)?;
        // Who reads has warned of the same already.
        if let Some(reason) = queue.fallback_reason() {
            tracing::debug!("writing: {reason}");
        }
        Ok(Self { pool, queue })
    }

    /// Where the workers get their buffers from.
    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Begins to write parts of a buffer; waits only for what was begun long before.
    ///
    /// # Errors
    /// This write or an earlier one failed.
    pub fn write(&mut self, buffer: Buffer, segments: Vec<Segment>) -> Result<()> {
        self.queue.push(Job { token: 0, buffer, segments, direction: Direction::Write });
        self.queue.submit()?;
        self.wait_for(QUEUE_DEPTH - 1)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// A write failed.
    pub fn finish(mut self) -> Result<()> {
        self.wait_for(0)
    }

    /// Waits until no more than `pending` writes are left.
    fn wait_for(&mut self, pending: usize) -> Result<()> {
        while self.queue.pending() > pending {
            self.queue.wait()?.result?;
        }
        Ok(())
    }
}
