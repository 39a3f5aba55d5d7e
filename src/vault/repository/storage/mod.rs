//! Where a repository keeps its files: a folder today, an object store later. The repository knows
//! names and this trait, and no path, file or lock of any particular kind.
//!
//! A file is *staged* first: written under a name that nobody takes for a file of the repository.
//! Then it is *sealed*, which makes its bytes durable, and *published*, which gives it its name,
//! durably and all at once. Nothing is changed after that; a file can only be replaced as a whole.

mod local;
mod name;

use std::fmt;
use std::sync::Arc;

use crate::base::error::Result;
use crate::disk::io::Store;

pub use local::Local;
pub use name::Name;

/// A place for the files of a repository.
pub trait Storage: fmt::Debug + Send + Sync {
    /// What people call a file: for a folder on this machine, its path.
    fn describe(&self, name: &Name) -> String;

    /// What is in a folder, in no order. Names that are no text are left out.
    ///
    /// # Errors
    /// `NotFound` if there is no such folder; it can't be listed.
    fn list(&self, folder: &Name) -> Result<Vec<Entry>>;

    /// What has this name; none if nothing has it.
    ///
    /// # Errors
    /// It can't be told.
    fn entry(&self, name: &Name) -> Result<Option<Entry>>;

    /// The bytes of a whole file of at most `max` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it is longer or no file.
    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>>;

    /// Opens a file for reading at any offset.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it is no file.
    fn open(&self, name: &Name) -> Result<Arc<dyn Store>>;
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its name; of a staged file, of the name that it was to get.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// The length of a file, in bytes, where the storage tells it without asking for each file.
    /// [`Storage::entry`] always tells it.
    pub len: Option<u64>,
}

/// What has a name in a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A file that was never published: somebody is writing it, or was killed writing it.
    Staged,
    /// Anything else: a link that leads nowhere, a named pipe.
    Other,
}

impl Entry {
    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.kind == EntryKind::Folder
    }
}

/// The names in a folder without those of staged files; none if the folder is missing.
///
/// # Errors
/// The folder can't be listed.
pub(super) fn names_if_any(storage: &dyn Storage, folder: &Name) -> Result<Vec<String>> {
    match storage.list(folder) {
        Ok(entries) => Ok(published(entries)),
        Err(error) if error.kind() == crate::base::error::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The names among these entries that are not of staged files.
pub(super) fn published(entries: Vec<Entry>) -> Vec<String> {
    let whole = entries.into_iter().filter(|entry| entry.kind != EntryKind::Staged);
    whole.map(|entry| entry.name).collect()
}
