//! A storage in memory, for tests: a whole repository without a filesystem.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Entry, EntryKind, Lock, LockMode, Locked, Name, Outcome, Publish, Staged, Storage, Unpublished,
    Wait,
};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::disk::io::in_memory::Bytes;

/// A storage in memory. All clones are the same storage.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<Name, Arc<Vec<u8>>>,
    staged: BTreeMap<Name, StagedBytes>,
    folders: BTreeSet<Name>,
    /// How many share a lock; one that is held alone has none.
    locks: BTreeMap<Name, Option<usize>>,
}

/// What was written of a staged file.
#[derive(Debug, Default)]
struct StagedBytes {
    bytes: Vec<u8>,
    /// How many of the bytes a power cut leaves.
    sealed: usize,
    /// A power cut leaves it staged.
    announced: bool,
}

impl Memory {
    /// What a power cut does: whoever was writing is gone, and so is what was not durable.
    pub fn cut_power(&self) {
        let mut state = self.state();
        state.locks.clear();
        state.staged.retain(|_, staged| staged.announced);
        for staged in state.staged.values_mut() {
            staged.bytes.truncate(staged.sealed);
        }
    }

    /// The names of all files that were published, sorted.
    pub fn names(&self) -> Vec<Name> {
        self.state().files.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, what: &str, name: &Name) -> Error {
        Error::io(what, &self.describe(name), io::ErrorKind::NotFound.into())
    }
}

impl State {
    fn make_folders(&mut self, name: &Name) {
        self.folders.extend(std::iter::successors(name.folder(), Name::folder));
    }
}

impl Storage for Memory {
    fn describe(&self, name: &Name) -> PathBuf {
        PathBuf::from(format!("memory:{name}"))
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        let state = self.state();
        if !folder.is_top() && !state.folders.contains(folder) {
            return Err(self.missing("list", folder));
        }
        let files = state.files.iter().map(|(name, bytes)| (name, EntryKind::File, bytes.len()));
        let staged = state.staged.iter();
        let staged = staged.map(|(name, file)| (name, EntryKind::Staged, file.bytes.len()));
        let folders = state.folders.iter().map(|name| (name, EntryKind::Folder, 0));
        let all = files.chain(staged).chain(folders);
        let inside = all.filter(|(name, ..)| name.folder().as_ref() == Some(folder));
        let entry = |(name, kind, len): (&Name, EntryKind, usize)| Entry {
            name: name.last().to_owned(),
            kind,
            len: (kind != EntryKind::Folder).then_some(len as u64),
            version: None,
        };
        Ok(inside.map(entry).collect())
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let state = self.state();
        let (kind, len) = match state.files.get(name) {
            Some(bytes) => (EntryKind::File, Some(bytes.len() as u64)),
            None if name.is_top() || state.folders.contains(name) => (EntryKind::Folder, None),
            None => return Ok(None),
        };
        Ok(Some(Entry { name: name.last().to_owned(), kind, len, version: None }))
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        let state = self.state();
        let bytes = state.files.get(name).ok_or_else(|| self.missing("open", name))?;
        if bytes.len() as u64 > max {
            let text = format!("memory:{name}: {} bytes long", bytes.len());
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        Ok(bytes.to_vec())
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        let state = self.state();
        let bytes = state.files.get(name).ok_or_else(|| self.missing("open", name))?;
        Ok(Arc::new(Bytes::new(Arc::clone(bytes), self.describe(name))))
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        let mut state = self.state();
        if state.staged.contains_key(name) {
            let error = io::ErrorKind::AlreadyExists.into();
            return Err(Error::io("create", &self.describe(name), error));
        }
        state.make_folders(name);
        state.staged.insert(name.clone(), StagedBytes::default());
        Ok(Box::new(MemoryStaged { memory: self.clone(), name: name.clone() }))
    }

    fn discard(&self, name: &Name) -> Result<()> {
        let staged = self.state().staged.remove(name);
        staged.map(drop).ok_or_else(|| self.missing("remove", name))
    }

    fn remove(&self, name: &Name) -> Result<()> {
        let file = self.state().files.remove(name);
        file.map(drop).ok_or_else(|| self.missing("remove", name))
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        let mut state = self.state();
        let removed = files.iter().filter_map(|file| state.files.remove(&folder.join(file)));
        Ok(removed.count() as u64)
    }

    fn lock(&self, name: &Name, mode: LockMode, _: Wait<'_>) -> Result<Locked> {
        let mut state = self.state();
        let held = match (state.locks.get(name), mode) {
            (None, LockMode::Exclusive) => None,
            (None, LockMode::Shared) => Some(1),
            (Some(Some(count)), LockMode::Shared) => Some(count + 1),
            (Some(_), _) => return Ok(Locked::Busy("another process".to_owned())),
        };
        state.make_folders(name);
        state.locks.insert(name.clone(), held);
        Ok(Locked::Held(Box::new(MemoryLock { memory: self.clone(), name: name.clone() })))
    }
}

#[derive(Debug)]
struct MemoryLock {
    memory: Memory,
    name: Name,
}

impl Lock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        match state.locks.get_mut(&self.name) {
            Some(Some(count)) if *count > 1 => *count -= 1,
            _ => {
                state.locks.remove(&self.name);
            }
        }
    }
}

#[derive(Debug)]
struct MemoryStaged {
    memory: Memory,
    name: Name,
}

impl MemoryStaged {
    fn with(&self, change: impl FnOnce(&mut StagedBytes)) -> io::Result<()> {
        let mut state = self.memory.state();
        let staged = state.staged.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?;
        change(staged);
        Ok(())
    }

    fn shown(&self) -> PathBuf {
        self.memory.describe(&self.name)
    }
}

impl Write for MemoryStaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|staged| staged.bytes.extend_from_slice(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for MemoryStaged {
    fn seal(&mut self) -> Result<()> {
        let sealed = self.with(|staged| staged.sealed = staged.bytes.len());
        sealed.map_err(|error| Error::io("sync", &self.shown(), error))
    }

    fn announce(&mut self) -> Result<()> {
        let announced = self.with(|staged| staged.announced = true);
        announced.map_err(|error| Error::io("sync", &self.shown(), error))
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        let mut state = self.memory.state();
        let refused = |error: io::ErrorKind| Unpublished {
            error: Error::io("publish", &self.shown(), error.into()),
            outcome: Outcome::Refused,
        };
        if how == Publish::New && state.files.contains_key(&self.name) {
            return Err(refused(io::ErrorKind::AlreadyExists));
        }
        let staged = state.staged.remove(&self.name);
        let staged = staged.ok_or_else(|| refused(io::ErrorKind::NotFound))?;
        state.files.insert(self.name.clone(), Arc::new(staged.bytes));
        Ok(())
    }
}

impl Drop for MemoryStaged {
    fn drop(&mut self) {
        self.memory.state().staged.remove(&self.name);
    }
}
