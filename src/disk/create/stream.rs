//! Writing a raw disk from its first byte to its last, into a pipe.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::pipe::Stopped;
use super::{ImageWriter, Plan, on_disk};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;

/// How many zeros are written at once, in bytes.
const ZEROS: usize = 1 << 20;

/// Writes a raw disk to anything that takes bytes one after the other. Blocks must come in
/// ascending order; gaps between them are written as zeros.
pub struct Stream {
    state: Mutex<State>,
    plan: Plan,
    path: PathBuf,
}

struct State {
    sink: Box<dyn Write + Send>,
    position: u64,
    zeros: Vec<u8>,
}

impl Stream {
    /// Writes to `sink`, which errors will call `name`.
    pub fn new(sink: Box<dyn Write + Send>, name: impl Into<PathBuf>, plan: Plan) -> Self {
        let state = State { sink, position: 0, zeros: vec![0; ZEROS] };
        Self { state: Mutex::new(state), plan, path: name.into() }
    }
}

impl State {
    fn write(&mut self, bytes: &[u8], path: &Path) -> Result<()> {
        self.sink.write_all(bytes).map_err(|error| {
            if error.get_ref().is_some_and(|cause| cause.is::<Stopped>()) {
                return Error::new(ErrorKind::Interrupted, Stopped.to_string());
            }
            let operation = format!("write {} bytes at {} to", bytes.len(), self.position);
            Error::io(operation, path, error)
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn fill_to(&mut self, end: u64, path: &Path, cancel: Option<&Cancel>) -> Result<()> {
        while self.position < end {
            cancel.map_or(Ok(()), Cancel::check)?;
            let zeros = std::mem::take(&mut self.zeros);
            let len = usize::try_from(end - self.position).unwrap_or(ZEROS).min(ZEROS);
            let written = self.write(zeros.get(..len).unwrap_or(&zeros), path);
            self.zeros = zeros;
            written?;
        }
        Ok(())
    }
}

impl ImageWriter for Stream {
    fn in_order(&self) -> bool {
        true
    }

    fn write(&self, guest_offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if guest_offset < state.position {
            let text = format!("{guest_offset} comes after {} in a stream", state.position);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        state.fill_to(guest_offset.min(self.plan.virtual_size()), &self.path, None)?;
        state.write(on_disk(&self.plan, guest_offset, bytes), &self.path)
    }

    fn finish(self: Box<Self>, cancel: &Cancel, _progress: &dyn Observer) -> Result<()> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.fill_to(self.plan.virtual_size(), &self.path, Some(cancel))?;
        state.sink.flush().map_err(|error| Error::io("write to", &self.path, error))
    }
}
