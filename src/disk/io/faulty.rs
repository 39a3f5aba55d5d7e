//! A store for tests that fails, cuts short or interrupts chosen calls of the store beneath it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ReadAt, Store};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error number.
    Error(i32),
    /// It transfers at most this many bytes.
    Short(usize),
}

/// Decides what happens to a call, by its number (from 0 on, reads and writes and syncs together).
pub type Plan = dyn Fn(u64) -> Option<Fault> + Send + Sync;

/// A store whose calls fail by a plan. It has no descriptor, so every call goes through it.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Box<Plan>,
    calls: AtomicU64,
}

impl FaultyStore {
    /// `inner`, with `plan` asked about every call.
    pub fn new(
        inner: Arc<dyn Store>,
        plan: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, plan: Box::new(plan), calls: AtomicU64::new(0) }
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many of `len` bytes the call may transfer.
    fn next(&self, len: usize) -> io::Result<usize> {
        match (self.plan)(self.calls.fetch_add(1, Ordering::Relaxed)) {
            None => Ok(len),
            Some(Fault::Short(count)) => Ok(len.min(count)),
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl ReadAt for FaultyStore {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.next(buffer.len())?;
        self.inner.read_at(buffer.get_mut(..count).unwrap_or_default(), offset)
    }
}

impl Store for FaultyStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let count = self.next(bytes.len())?;
        self.inner.write_at(bytes.get(..count).unwrap_or_default(), offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.next(0)?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.next(0)?;
        self.inner.sync()
    }
}
