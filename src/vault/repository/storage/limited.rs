//! A storage that is written and read no faster than somebody allows: a link has other users.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Entry, LockMode, Locked, Name, Publish, Staged, Storage, Unpublished, Wait};
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::disk::io::ReadAt;

/// At most so many bytes pass before somebody looks at the clock, and at most so many of a second's.
const PIECE: usize = 256 << 10;
const PIECES_A_SECOND: u64 = 4;

/// How long nobody may have used the link for what was not used to count still.
const SAVED_MAX: Duration = Duration::from_millis(200);

/// How long a pause is at most before somebody asks whether to stop.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Another storage, behind a link that all its files share.
#[derive(Debug)]
pub(in crate::vault::repository) struct Limited {
    inner: Arc<dyn Storage>,
    pace: Arc<Pace>,
}

/// When the next bytes may pass.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
    cancel: Cancel,
}

impl Pace {
    /// How many of these bytes pass at once: nobody waits for long without being asked whether to stop.
    fn piece(&self, bytes: usize) -> usize {
        let share = (self.bytes_per_second / PIECES_A_SECOND).max(1);
        bytes.min(PIECE).min(usize::try_from(share).unwrap_or(PIECE))
    }

    /// Waits until so many bytes may pass, or until somebody asks to stop: then nothing waits any more.
    fn wait(&self, bytes: usize) {
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64);
        let now = Instant::now();
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let from = now.checked_sub(SAVED_MAX).map_or(*next, |earliest| earliest.max(*next));
            *next = from.checked_add(took).unwrap_or(from);
            *next
        };
        while !self.cancel.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(PAUSE_MAX));
        }
    }
}

impl Limited {
    /// `inner`, at most so fast until somebody asks to stop.
    pub fn new(inner: Arc<dyn Storage>, bytes_per_second: u64, cancel: &Cancel) -> Self {
        let (next, cancel) = (Mutex::new(Instant::now()), cancel.clone());
        Self { inner, pace: Arc::new(Pace { bytes_per_second, next, cancel }) }
    }
}

impl Storage for Limited {
    fn below(&self) -> Option<&dyn Storage> {
        Some(&*self.inner)
    }

    fn describe(&self, name: &Name) -> PathBuf {
        self.inner.describe(name)
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        self.inner.list(folder)
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        self.inner.entry(name)
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        let bytes = self.inner.read(name, max)?;
        self.pace.wait(bytes.len());
        Ok(bytes)
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        let inner = self.inner.open(name)?;
        Ok(Arc::new(SlowFile { inner, pace: Arc::clone(&self.pace) }))
    }

    fn open_damaged(&self, name: &Name, opening: Option<&[u8]>) -> Result<Arc<dyn ReadAt>> {
        let inner = self.inner.open_damaged(name, opening)?;
        Ok(Arc::new(SlowFile { inner, pace: Arc::clone(&self.pace) }))
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        let inner = self.inner.stage(name)?;
        Ok(Box::new(SlowStaged { inner, pace: Arc::clone(&self.pace) }))
    }

    fn discard(&self, name: &Name) -> Result<()> {
        self.inner.discard(name)
    }

    fn remove(&self, name: &Name) -> Result<()> {
        self.inner.remove(name)
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        self.inner.remove_all(folder, files)
    }

    fn lock(&self, name: &Name, mode: LockMode, wait: Wait<'_>) -> Result<Locked> {
        self.inner.lock(name, mode, wait)
    }
}

/// A file that is read no faster than the others. It shows no descriptor: a ring would wait for nobody.
struct SlowFile {
    inner: Arc<dyn ReadAt>,
    pace: Arc<Pace>,
}

impl ReadAt for SlowFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.pace.piece(buffer.len());
        let count = self.inner.read_at(buffer.get_mut(..len).unwrap_or_default(), offset)?;
        self.pace.wait(count);
        Ok(count)
    }
}

/// A file that is written no faster than the others.
struct SlowStaged {
    inner: Box<dyn Staged>,
    pace: Arc<Pace>,
}

impl fmt::Debug for SlowStaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Write for SlowStaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.get(..self.pace.piece(bytes.len())).unwrap_or_default();
        let count = self.inner.write(part)?;
        self.pace.wait(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Staged for SlowStaged {
    fn seal(&mut self) -> Result<()> {
        self.inner.seal()
    }

    fn announce(&mut self) -> Result<()> {
        self.inner.announce()
    }

    fn opening(&self) -> Option<Vec<u8>> {
        self.inner.opening()
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        self.inner.publish(how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::repository::storage::memory::Memory;

    /// What is written and what is read shares one allowance: a floor for the time is all that can be
    /// said, on however busy a machine.
    #[test]
    fn nothing_passes_faster_than_it_may() {
        let storage = Limited::new(Arc::new(Memory::default()), 4 << 20, &Cancel::default());
        let name = Name::top().join("file");
        let begun = Instant::now();
        let mut staged = storage.stage(&name).unwrap();
        staged.write_all(&vec![7; 1 << 20]).unwrap();
        staged.seal().unwrap();
        staged.publish(Publish::New).unwrap();
        let mut bytes = vec![0; 1 << 20];
        storage.open(&name).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
        // Half a second's worth, without what nobody had used before.
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    }

    /// A pause lasted as long as a whole buffer takes, whoever asked to stop: for hours at a low rate.
    #[test]
    fn a_pause_hears_a_request_to_stop() {
        let cancel = Cancel::default();
        let storage = Limited::new(Arc::new(Memory::default()), 1, &cancel);
        let stopper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            cancel.cancel();
        });
        let mut staged = storage.stage(&Name::top().join("file")).unwrap();
        // A week's worth.
        staged.write_all(&vec![7; 600_000]).unwrap();
        stopper.join().unwrap();
    }
}
