//! A storage for tests that fails, or dies, at a chosen call of the storage beneath it, or whose files
//! can't be read at a chosen place.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{
    Entry, Lock, LockMode, Locked, Name, Outcome, Publish, Staged, Storage, Unpublished, Wait,
};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The call does its work, a write half of its work, before it fails: nobody can tell.
    pub works: bool,
    /// The program is gone with it: no later call does anything, and nothing is cleaned up.
    pub kills: bool,
}

/// A storage with a fault.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    plan: Arc<Plan>,
    /// The bytes of each opened file that can't be read.
    bad: Range<u64>,
}

#[derive(Debug)]
struct Plan {
    calls: AtomicU64,
    at: u64,
    fault: Fault,
}

impl Plan {
    /// Counts a call, and does it unless it is to fail.
    fn call<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let error = || Err(Error::new(ErrorKind::Io, "a fault that the test asked for"));
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call == self.at {
            if self.fault.works {
                work()?;
            }
            return error();
        }
        if self.fault.kills && call > self.at { error() } else { work() }
    }

    fn is_dead(&self) -> bool {
        self.fault.kills && self.calls.load(Ordering::SeqCst) > self.at
    }
}

impl Faulty {
    /// `inner`, with `fault` at call number `at`, counted from 0.
    pub fn new(inner: Arc<dyn Storage>, at: u64, fault: Fault) -> Self {
        Self { inner, plan: Arc::new(Plan { calls: AtomicU64::new(0), at, fault }), bad: 0..0 }
    }

    /// `inner` without a fault: its calls are counted.
    pub fn counting(inner: Arc<dyn Storage>) -> Self {
        Self::new(inner, u64::MAX, Fault { works: true, kills: false })
    }

    /// `inner` on a disk with a bad sector: these bytes of each opened file can't be read.
    pub fn with_bad_bytes(inner: Arc<dyn Storage>, bad: Range<u64>) -> Self {
        Self { bad, ..Self::counting(inner) }
    }

    /// A file that was opened, with the bytes that can't be read.
    fn with_faults(&self, inner: Arc<dyn ReadAt>) -> Arc<dyn ReadAt> {
        match self.bad.is_empty() {
            true => inner,
            false => Arc::new(BadFile { inner, bad: self.bad.clone() }),
        }
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.plan.calls.load(Ordering::SeqCst)
    }

    /// Whether the chosen call was made.
    pub fn reached(&self) -> bool {
        self.plan.calls.load(Ordering::SeqCst) > self.plan.at
    }
}

impl Storage for Faulty {
    fn below(&self) -> Option<&dyn Storage> {
        Some(&*self.inner)
    }

    fn describe(&self, name: &Name) -> PathBuf {
        self.inner.describe(name)
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        self.plan.call(|| self.inner.list(folder))
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        self.plan.call(|| self.inner.entry(name))
    }

    fn entries(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        self.plan.call(|| self.inner.entries(folder, names))
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        self.plan.call(|| self.inner.read(name, max))
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        self.plan.call(|| self.inner.open(name)).map(|inner| self.with_faults(inner))
    }

    fn open_damaged(&self, name: &Name, opening: Option<&[u8]>) -> Result<Arc<dyn ReadAt>> {
        let opened = self.plan.call(|| self.inner.open_damaged(name, opening));
        opened.map(|inner| self.with_faults(inner))
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        let mut made = None;
        let outcome = self.plan.call(|| {
            made = Some(self.inner.stage(name)?);
            Ok(())
        });
        let staged = FaultyStaged { inner: made, plan: Arc::clone(&self.plan) };
        outcome.map(|()| Box::new(staged) as Box<dyn Staged>)
    }

    fn discard(&self, name: &Name) -> Result<()> {
        self.plan.call(|| self.inner.discard(name))
    }

    fn remove(&self, name: &Name) -> Result<()> {
        self.plan.call(|| self.inner.remove(name))
    }

    fn remove_own(&self, name: &Name) -> Result<()> {
        self.plan.call(|| self.inner.remove_own(name))
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        // It removes file by file, and can die between any two.
        let mut removed = 0;
        for file in files {
            let file = std::slice::from_ref(file);
            removed += self.plan.call(|| self.inner.remove_all(folder, file))?;
        }
        Ok(removed)
    }

    fn lock(&self, name: &Name, mode: LockMode, wait: Wait<'_>) -> Result<Locked> {
        // The lock of a process that dies ends with it.
        self.plan.call(|| self.inner.lock(name, mode, wait)).map(|locked| match locked {
            Locked::Held(lock) => Locked::Held(Box::new(FaultyLock { inner: lock })),
            busy @ Locked::Busy(_) => busy,
        })
    }

    fn prepare_lock(&self, name: &Name) {
        let _ = self.plan.call(|| {
            self.inner.prepare_lock(name);
            Ok(())
        });
    }
}

/// A file with bytes that can't be read.
struct BadFile {
    inner: Arc<dyn ReadAt>,
    bad: Range<u64>,
}

impl ReadAt for BadFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset < self.bad.end && offset + buffer.len() as u64 > self.bad.start {
            return Err(io::Error::other("bad sector"));
        }
        self.inner.read_at(buffer, offset)
    }
}

#[derive(Debug)]
struct FaultyLock {
    inner: Box<dyn Lock>,
}

impl Lock for FaultyLock {
    fn prove(&self, within: Duration) -> Result<()> {
        self.inner.prove(within)
    }
}

#[derive(Debug)]
struct FaultyStaged {
    inner: Option<Box<dyn Staged>>,
    plan: Arc<Plan>,
}

impl FaultyStaged {
    fn call(&mut self, work: impl FnOnce(&mut dyn Staged) -> Result<()>) -> Result<()> {
        let Some(inner) = self.inner.as_deref_mut() else {
            return Err(Error::new(ErrorKind::Io, "never staged"));
        };
        self.plan.call(|| work(inner))
    }
}

impl Write for FaultyStaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_torn = self.plan.calls.load(Ordering::SeqCst) == self.plan.at;
        let len = if is_torn { bytes.len() / 2 } else { bytes.len() };
        let part = bytes.get(..len).unwrap_or_default();
        self.call(|inner| {
            inner.write_all(part).map_err(|error| Error::new(ErrorKind::Io, error.to_string()))
        })
        .map_err(|error| io::Error::other(error.chain()))?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for FaultyStaged {
    fn seal(&mut self) -> Result<()> {
        self.call(|inner| inner.seal())
    }

    fn announce(&mut self) -> Result<()> {
        self.call(|inner| inner.announce())
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        let mut published = None;
        let called = self.call(|inner| {
            published = Some(inner.publish(how));
            Ok(())
        });
        match (called, published) {
            (Ok(()), Some(published)) => published,
            (Err(error), None) => Err(Unpublished { error, outcome: Outcome::Refused }),
            // It did its work, and then failed to say so.
            (Err(error), Some(_)) => Err(Unpublished { error, outcome: Outcome::Unknown }),
            (Ok(()), None) => Ok(()),
        }
    }
}

impl Drop for FaultyStaged {
    fn drop(&mut self) {
        if self.plan.is_dead() {
            // Whoever is dead cleans nothing up.
            std::mem::forget(self.inner.take());
        }
    }
}
