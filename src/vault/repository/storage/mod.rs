//! Where a repository keeps its files: a folder, or an object store. The repository knows
//! names and this trait, and no path, file or lock of any particular kind.
//!
//! A file is *staged* first: written under a name that nobody takes for a file of the repository.
//! Then it is *sealed*, which makes its bytes durable, and *published*, which gives it its name,
//! durably and all at once. Nothing is changed after that; a file can only be replaced as a whole.

pub(super) mod durable;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
mod limited;
mod local;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod name;
mod s3;
mod sealed;
mod wait;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::disk::io::ReadAt;

pub(super) use limited::Limited;
pub use local::Local;
pub(crate) use local::host_name;
pub use name::Name;
pub use s3::S3;
pub use sealed::{HostKey, KEY_TEXT_MAX, KeyText, Keys, Sealed};
pub use wait::Wait;

/// How many files of a folder are looked at one by one before the folder is listed, where nothing speaks for
/// another number.
const LOOKS_MAX: u32 = 8;

/// A place for the files of a repository.
pub trait Storage: fmt::Debug + Send + Sync {
    /// The storage beneath, of one that shows the same files under the same names: it answers whatever has an
    /// answer here that is good for most storages.
    fn below(&self) -> Option<&dyn Storage> {
        None
    }

    /// What to call a file where people read of it: for a folder on this machine, its path.
    fn describe(&self, name: &Name) -> PathBuf;

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

    /// What has each of these names in a folder, in their order: as [`Self::entry`] tells it, for many
    /// files of a long chain at once.
    ///
    /// # Errors
    /// One of them can't be told.
    fn entries(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        match self.below() {
            Some(below) => below.entries(folder, names),
            None => names.iter().map(|name| self.entry(&folder.join(name))).collect(),
        }
    }

    /// What has each of these names in a folder, in their order, whatever a list says: each is asked for by itself,
    /// many at once.
    ///
    /// # Errors
    /// One of them can't be told.
    fn ask_for(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        match self.below() {
            Some(below) => below.ask_for(folder, names),
            None => self.entries(folder, names),
        }
    }

    /// The bytes of a whole file of at most `max` bytes.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it is longer or no file.
    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>>;

    /// The bytes of a whole file as this host has written it, whatever stands there now: of one that it can't open.
    fn read_own(&self, name: &Name, max: u64) -> Option<Vec<u8>> {
        self.below()?.read_own(name, max)
    }

    /// Opens a file for reading at any offset.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `Damaged` if it is no file.
    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>>;

    /// Opens a file that may not be as it was written, for whoever makes the best of it. `opening` is what
    /// [`Staged::opening`] gave of it, if that is known.
    ///
    /// # Errors
    /// As [`Self::open`], where nothing of the file can be read.
    fn open_damaged(&self, name: &Name, opening: Option<&[u8]>) -> Result<Arc<dyn ReadAt>> {
        match self.below() {
            Some(below) => below.open_damaged(name, opening),
            None => self.open(name),
        }
    }

    /// The first bytes of a file that is there: what [`Staged::opening`] gave of it when it was written.
    ///
    /// # Errors
    /// They can't be read.
    fn opening_of(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        self.below().map_or(Ok(None), |below| below.opening_of(name))
    }

    /// Begins a file, and makes the folders that it is in.
    ///
    /// # Errors
    /// `Exists` if a file of that name is staged already; it can't be made.
    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>>;

    /// Removes the file that somebody who is gone has staged under this name.
    ///
    /// # Errors
    /// `NotFound` if there is none; it can't be removed.
    fn discard(&self, name: &Name) -> Result<()>;

    /// Removes a file, durably.
    ///
    /// # Errors
    /// `NotFound` if there is none; it can't be removed, or perhaps not for ever.
    fn remove(&self, name: &Name) -> Result<()>;

    /// As [`Self::remove`], also for whoever has lost the lock: a file whose name nobody else gives, and that nothing names.
    ///
    /// # Errors
    /// It can't be removed.
    fn remove_own(&self, name: &Name) -> Result<()> {
        self.below().map_or_else(|| self.remove(name), |below| below.remove_own(name))
    }

    /// Removes files of a folder, durably, and gives how many there were. What is not there is no error;
    /// that it is not, is durable afterwards, too.
    ///
    /// # Errors
    /// One can't be removed: others may be gone.
    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64>;

    /// Takes a lock of this name, unless somebody else has it who is alive. While a lock is held alone,
    /// nobody else changes anything in the folder that it is in. An exclusive lock makes
    /// the folders that it is in. A shared lock writes nothing where the lock was taken before; where
    /// it never was, and nothing can be written, a shared lock holds nothing. Where only time tells whether
    /// somebody has it, `wait` is told.
    ///
    /// # Errors
    /// It can't be told who has it; somebody has asked to stop while it was waited for.
    fn lock(&self, name: &Name, mode: LockMode, wait: Wait<'_>) -> Result<Locked>;

    /// Makes what a shared lock of this name needs, for those who can write nothing. Who can't make it
    /// either is not kept from anything.
    fn prepare_lock(&self, name: &Name) {
        if let Some(below) = self.below() {
            below.prepare_lock(name);
        }
    }

    /// Says that these files are about to be opened or read, in this order: where each costs a way to somewhere
    /// else, many ways are gone at once.
    fn expect(&self, names: &[Name]) {
        if let Some(below) = self.below() {
            below.expect(names);
        }
    }

    /// From now on everything is read from where it lies, and nothing from copies on this host: whoever looks
    /// for damage does.
    fn distrust_copies(&self) {
        if let Some(below) = self.below() {
            below.distrust_copies();
        }
    }

    /// What lies in folders that were listed so far, under names that nobody of this repository has given: what
    /// was renamed, moved from one folder to another, or put there by somebody else. Where names say what
    /// they are, nothing is told.
    fn strangers(&self) -> Vec<PathBuf> {
        self.below().map(|it| it.strangers()).unwrap_or_default()
    }

    /// What a file is called in the repository, where [`Self::describe`] tells it by a path that says nothing.
    fn plain_name(&self, path: &Path) -> Option<String> {
        self.below()?.plain_name(path)
    }

    /// Whether names that differ only in case may be one name.
    fn may_fold_case(&self) -> bool {
        self.below().is_none_or(|it| it.may_fold_case())
    }

    /// From now on the storage itself refuses, for so long, to remove what is written, whoever asks.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: it can't.
    fn lock_new_files(&self, period: Period) -> Result<()> {
        if let Some(below) = self.below() {
            return below.lock_new_files(period);
        }
        Err(Error::new(
            ErrorKind::Usage,
            "a folder can't lock files: whoever can write there can remove them",
        )
        .advise("a bucket of an object store can: --repo s3://BUCKET/PREFIX"))
    }

    /// Has the storage refuse to remove files until a moment, but for those that are locked until `enough`
    /// at least, with what was written over and is still there below; gives what became of each. No lock is ever
    /// made shorter.
    ///
    /// # Errors
    /// One can't be locked.
    fn extend_locks(
        &self,
        names: &[Name],
        until: Timestamp,
        enough: Timestamp,
    ) -> Result<Vec<Extended>> {
        match self.below() {
            Some(below) => below.extend_locks(names, until, enough),
            None => Ok(vec![Extended::default(); names.len()]),
        }
    }

    /// Until when the storage refuses to remove each file as it is now; none for those that anybody can remove who may
    /// write.
    ///
    /// # Errors
    /// It can't be told.
    fn locked_until(&self, names: &[Name]) -> Result<Vec<Option<Timestamp>>> {
        match self.below() {
            Some(below) => below.locked_until(names),
            None => Ok(vec![None; names.len()]),
        }
    }

    /// The locks of files that are written once, each with its length where that is known: of the bytes that were
    /// written, whatever lies over them or hides them. Where several versions may be those, the lock that ends
    /// first.
    ///
    /// # Errors
    /// It can't be told.
    fn locks_of(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<Option<Timestamp>>> {
        match self.below() {
            Some(below) => below.locks_of(files),
            None => Ok(vec![None; files.len()]),
        }
    }

    /// Whether each of these files, which are written once, each with its length where that is known, was written over,
    /// and the storage has what was there before. Of one that was removed in between only the length tells.
    ///
    /// # Errors
    /// It can't be told.
    fn written_over(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<bool>> {
        match self.below() {
            Some(below) => below.written_over(files),
            None => Ok(vec![false; files.len()]),
        }
    }

    /// The time by the storage's own clock.
    ///
    /// # Errors
    /// No clock tells it.
    fn now(&self) -> Result<Timestamp> {
        self.below().map_or_else(clock::now, |it| it.now())
    }

    /// Whether a list may lack what has just been written.
    fn lists_may_lag(&self) -> bool {
        self.below().is_some_and(|it| it.lists_may_lag())
    }

    /// Whether a failure of the system is one of all files: another question would only fail as late.
    fn fails_as_a_whole(&self) -> bool {
        self.below().is_some_and(|it| it.fails_as_a_whole())
    }

    /// How many files of a folder are looked at one by one before the folder is listed.
    fn looks_max(&self) -> u32 {
        self.below().map_or(LOOKS_MAX, |it| it.looks_max())
    }

    /// How many bytes can still be written; nothing if nobody knows.
    fn bytes_free(&self) -> Option<u64> {
        self.below()?.bytes_free()
    }

    /// How many bytes there are at all, free or not; nothing if nobody knows.
    fn bytes_whole(&self) -> Option<u64> {
        self.below()?.bytes_whole()
    }
}

impl dyn Storage + '_ {
    /// Begins a file, also where somebody was killed who had staged it: nobody else may be at it.
    ///
    /// # Errors
    /// As [`Self::stage`]; what was staged can't be removed.
    pub fn stage_anew(&self, name: &Name) -> Result<Box<dyn Staged>> {
        match self.stage(name) {
            Err(error) if error.kind() == ErrorKind::Exists => {
                self.discard(name)?;
                self.stage(name)
            }
            staged => staged,
        }
    }

    /// Writes a whole file at once: nobody else may be at it.
    ///
    /// # Errors
    /// It can't be staged, written or published.
    pub fn write(&self, name: &Name, bytes: &[u8], how: Publish) -> Result<()> {
        let mut staged = self.stage_anew(name)?;
        let failed = |error| Error::io("write", &self.describe(name), error);
        staged.write_all(bytes).map_err(failed)?;
        staged.seal()?;
        staged.publish(how).map_err(|unpublished| unpublished.error)
    }
}

/// A file that is being written. Dropped before it is published, it is gone.
pub trait Staged: Write + fmt::Debug + Send {
    /// Returns once every byte is on stable storage. Nothing is written afterwards.
    ///
    /// # Errors
    /// Nobody knows which bytes are: the file is lost.
    fn seal(&mut self) -> Result<()>;

    /// Returns once a power cut would leave the file staged, with what was sealed of it: perhaps nothing.
    ///
    /// # Errors
    /// It may not be.
    fn announce(&mut self) -> Result<()>;

    /// The first bytes of the file, without which nothing else of it can be read; none if each part can be
    /// read by itself.
    fn opening(&self) -> Option<Vec<u8>> {
        None
    }

    /// Gives the sealed file its name, durably.
    ///
    /// # Errors
    /// What became of it is part of the error.
    fn publish(&mut self, how: Publish) -> Result<(), Unpublished>;
}

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// It stays: publishing another one fails with `Exists`.
    New,
    /// It is replaced, all at once.
    Replace,
    /// It is replaced by what stood there before, even by whoever has lost the lock meanwhile.
    Back,
}

/// A file was not published as it should be.
#[derive(Debug)]
pub struct Unpublished {
    /// Why.
    pub error: Error,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a file that was not published as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has not got its name, and is still staged.
    Refused,
    /// It has its name, and may lose it in a power cut.
    Volatile,
    /// Nobody can tell.
    Unknown,
}

/// What became of the lock of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extended {
    /// It was not locked for nearly as long.
    pub is_new: bool,
    /// The storage has other bytes of the same name that were written over.
    pub is_written_over: bool,
}

/// How a lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// With everybody who shares it.
    Shared,
    /// With nobody.
    Exclusive,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub enum Locked {
    /// It is held for as long as this lives, or the process.
    Held(Box<dyn Lock>),
    /// Somebody else holds it: this is what is known of whom.
    Busy(String),
}

/// A lock that is held. It ends when this is dropped, or the process, however it ends.
pub trait Lock: fmt::Debug + Send + Sync {
    /// Fails if somebody else has had the lock since it was taken, whatever should keep others from that: somebody
    /// may have removed it by hand, or a server may have lost it. What was proved `within` so long a time is not looked at
    /// again.
    ///
    /// # Errors
    /// `Busy`: it was taken. It can't be looked at.
    fn prove(&self, within: Duration) -> Result<()> {
        let _ = within;
        Ok(())
    }
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
    /// What changes whenever the file does, where the storage knows it; of a folder, whenever a name in
    /// it comes, goes or gets another file. Only [`Storage::entry`] and [`Storage::entries`] tell it.
    pub version: Option<String>,
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
    /// Something that can't be looked at; or, in an object store, a file and a folder of one name.
    Unknown,
    /// Anything else: a link that leads nowhere, a named pipe.
    Other,
}

impl Entry {
    /// Whether it is a folder, or can't be looked at and so may be one.
    pub fn may_be_folder(&self) -> bool {
        matches!(self.kind, EntryKind::Folder | EntryKind::Unknown)
    }
}
