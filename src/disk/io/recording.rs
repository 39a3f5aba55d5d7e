//! A store for tests that remembers every write and sync, so that the file can be had as a power
//! cut at any moment would leave it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ReadAt, Store};

/// One call that changes the file, or makes sure that it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Bytes were written.
    Write {
        /// Where, in bytes from the start.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file was cut or extended to this many bytes.
    SetLen(u64),
    /// Everything before is on stable storage.
    Sync,
}

/// A file in memory that remembers how it became what it is.
pub struct RecordingStore {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    calls: Vec<Call>,
}

impl Call {
    /// Does to `file` what the call does.
    pub fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                if file.len() < end {
                    file.resize(end, 0);
                }
                if let Some(place) = file.get_mut(start..end) {
                    place.copy_from_slice(bytes);
                }
            }
            Self::SetLen(len) => file.resize(usize::try_from(*len).unwrap_or(usize::MAX), 0),
            Self::Sync => {}
        }
    }
}

impl RecordingStore {
    /// A file with these bytes; errors call it `path`.
    pub fn new(bytes: Vec<u8>, path: impl Into<PathBuf>) -> Self {
        let state = State { bytes, calls: Vec::new() };
        Self { path: path.into(), state: Mutex::new(state) }
    }

    /// What the file is now.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// What was done to it.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: Call) {
        let mut state = self.state();
        call.apply(&mut state.bytes);
        state.calls.push(call);
    }
}

impl ReadAt for RecordingStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let stored = state.bytes.get(start..).unwrap_or_default();
        let count = stored.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(stored) {
            *to = *from;
        }
        Ok(count)
    }
}

impl Store for RecordingStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.note(Call::Write { offset, bytes: bytes.to_vec() });
        Ok(bytes.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Call::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.note(Call::Sync);
        Ok(())
    }
}
