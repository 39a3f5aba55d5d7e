//! Writes what workers have filled buffers with, while they fill others.

use std::sync::Arc;

use crate::base::error::Result;
use crate::disk::flow::pipeline::Resources;
use crate::disk::io::{Buffer, Direction, Pool, Queue, Segment, Store, Transfer, open_direct};

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
        let files = open_direct(vec![store], resources.direct)?;
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
        self.queue.push(Transfer { token: 0, buffer, segments, direction: Direction::Write });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::ErrorKind;
    use crate::disk::io::ReadAt;
    use crate::disk::io::faulty::{Fault, FaultyStore};
    use crate::disk::io::recording::RecordingStore;

    fn write_all(fault: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static) -> Result<Vec<u8>> {
        let size = 8192;
        let memory = Arc::new(RecordingStore::new(vec![0; 100 * size], "disk"));
        let store = Arc::new(FaultyStore::new(Arc::clone(&memory) as Arc<dyn Store>, fault));
        let resources = Resources { threads: 1, ..Resources::default() };
        let mut behind = WriteBehind::new(&resources, store, size)?;
        let pool = behind.pool();
        for number in (0..100_u8).rev() {
            let mut buffer = pool.take();
            buffer.fill(number);
            let offset = u64::from(number) * size as u64;
            behind.write(buffer, vec![Segment { file: 0, offset, range: 0..size }])?;
        }
        behind.finish()?;
        // Every buffer is back, though there are fewer of them than writes.
        assert_eq!(pool.free_count(), pool.count());
        assert!(pool.count() < 100);
        let mut bytes = vec![0; 100 * size];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        Ok(bytes)
    }

    #[test]
    fn everything_is_written_when_it_says_so() {
        let short = |call| (call % 3 == 1).then_some(Fault::Short(1000));
        for bytes in [write_all(|_| None).unwrap(), write_all(short).unwrap()] {
            assert!(bytes.chunks(8192).zip(0..).all(|(block, n)| block.iter().all(|b| *b == n)));
        }
    }

    #[test]
    fn a_write_that_fails_is_never_lost() {
        for (call, errno) in [(0, 5), (50, 28), (99, 5)] {
            let fault = move |number| (number == call).then_some(Fault::Error(errno));
            let kind = write_all(fault).unwrap_err().kind();
            assert_eq!(
                kind,
                if errno == 28 { ErrorKind::NoSpace } else { ErrorKind::Io },
                "{call}"
            );
        }
    }
}
