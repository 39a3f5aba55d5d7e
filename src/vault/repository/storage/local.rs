//! A folder of this machine.

use std::collections::BTreeSet;
use std::fs::{File, FileType, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{
    Entry, EntryKind, Lock, LockMode, Locked, Name, Outcome, Publish, Staged, Storage, Unpublished,
    Wait, durable,
};
use crate::base::error::{AGAIN, Error, ErrorKind, Result};
use crate::base::random;
use crate::disk::files::{image_lock, room};
use crate::disk::io::{EarlyWriteback, OpenFiles, Opener, ReadAt, not_opened, pin_folder};
use crate::disk::sys::patience;
use crate::disk::sys::{FileId, look_in};
use crate::vault::repository::config::CONFIG;

/// The longest note in the file of a lock, in bytes.
const NOTE_LEN_MAX: u64 = 4096;

/// A repository in a folder.
#[derive(Debug)]
pub struct Local {
    root: PathBuf,
    /// The folders that are known to survive a power cut.
    folders: Mutex<BTreeSet<Name>>,
    /// However many archives are read, few of their files are open at a time.
    files: Arc<OpenFiles>,
}

impl Local {
    /// The storage in the folder `root`, which need not be there yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), folders: Mutex::default(), files: Arc::default() }
    }

    /// Makes the folder itself, but not the folder around it.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(root: &Path) -> Result<()> {
        durable::create_dir(root)
    }

    /// Calls `make`, which makes something of this name, and first makes the folders that it is in.
    fn in_folder<T>(&self, name: &Name, make: impl Fn() -> Result<T>) -> Result<T> {
        self.make_folders(name)?;
        match make() {
            // Somebody has removed a folder since.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.folders.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.make_folders(name)?;
                make()
            }
            made => made,
        }
    }

    fn make_folders(&self, name: &Name) -> Result<()> {
        let mut known = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let above = std::iter::successors(name.folder(), Name::folder);
        let missing: Vec<_> = above.take_while(|it| !it.is_top() && !known.contains(it)).collect();
        for folder in missing.into_iter().rev() {
            durable::create_dir(&self.path(&folder))?;
            known.insert(folder);
        }
        Ok(())
    }

    /// Where a file lies while it is staged.
    fn staged_path(&self, name: &Name) -> PathBuf {
        self.path(name).with_file_name(format!(".{}.partial", name.last()))
    }

    /// Where a file lies.
    fn path(&self, name: &Name) -> PathBuf {
        match name.as_str() {
            "" => self.root.clone(),
            name => self.root.join(name),
        }
    }
}

impl Storage for Local {
    fn describe(&self, name: &Name) -> PathBuf {
        self.path(name)
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        let path = self.path(folder);
        let failed = |error| Error::io("list", &path, error);
        let mut entries = Vec::new();
        for found in std::fs::read_dir(&path).map_err(failed)? {
            let found = found.map_err(failed)?;
            let Ok(name) = found.file_name().into_string() else { continue };
            let file_type = found.file_type();
            let kind = file_type.map_or(EntryKind::Unknown, |it| kind_of(it, || found.path()));
            entries.push(match (kind, whole_name(&name)) {
                (EntryKind::File, Some(whole)) => Entry {
                    name: whole.to_owned(),
                    kind: EntryKind::Staged,
                    len: None,
                    version: None,
                },
                _ => Entry { name, kind, len: None, version: None },
            });
        }
        Ok(entries)
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let path = self.path(name);
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("look at", &path, error)),
        };
        let kind = kind_of(metadata.file_type(), || path.clone());
        let followed = if metadata.is_symlink() { path.metadata().ok() } else { Some(metadata) };
        let found = followed.filter(|it| it.is_file() || it.is_dir());
        let len = found.as_ref().filter(|it| it.is_file()).map(Metadata::len);
        let version = |it: Metadata| version(FileId::from(&it), (it.ctime(), it.ctime_nsec()));
        let version = found.map(version);
        Ok(Some(Entry { name: name.last().to_owned(), kind, len, version }))
    }

    fn entries(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        let Ok(open) = pin_folder(&self.path(folder)) else {
            return names.iter().map(|name| self.entry(&folder.join(name))).collect();
        };
        let look = |name: &&str| match look_in(&open, name) {
            Ok(Some(seen)) => Ok(Some(Entry {
                name: (*name).to_owned(),
                kind: EntryKind::File,
                len: Some(seen.len),
                version: Some(version(seen.id, seen.changed)),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A link, or what can't be looked at.
            _ => self.entry(&folder.join(name)),
        };
        names.iter().map(look).collect()
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        durable::read_small(&self.path(name), max)
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        let path = self.path(name);
        let file = self.files.open(&path);
        Ok(Arc::new(file.map_err(|error| not_opened(&path, error, ErrorKind::Damaged))?))
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        let partial = self.staged_path(name);
        let file = self.in_folder(name, || durable::create_new(&partial))?;
        let path = self.path(name);
        Ok(Box::new(StagedFile {
            sink: EarlyWriteback::new(file),
            partial,
            path,
            published: false,
        }))
    }

    fn discard(&self, name: &Name) -> Result<()> {
        durable::remove(&self.staged_path(name))
    }

    fn remove(&self, name: &Name) -> Result<()> {
        let path = self.path(name);
        durable::remove(&path)?;
        durable::sync_dir(folder_of(&path))
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        let path = self.path(folder);
        let mut removed = 0;
        for file in files {
            match durable::remove(&path.join(file)) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        durable::sync_dir(&path)?;
        Ok(removed)
    }

    fn lock(&self, name: &Name, mode: LockMode, _: Wait<'_>) -> Result<Locked> {
        let path = self.path(name);
        match mode {
            LockMode::Exclusive => {
                let file = self.in_folder(name, || durable::open_or_create(&path))?;
                take_alone(file, &path)
            }
            LockMode::Shared => share(&path),
        }
    }

    fn prepare_lock(&self, name: &Name) {
        let _ = share(&self.path(name));
    }

    fn bytes_free(&self) -> Option<u64> {
        // A file in it: of a folder the one around it is asked as well, and that lies on another filesystem
        // where the repository is a mount point.
        room::free(&self.root.join(CONFIG))
    }

    fn bytes_whole(&self) -> Option<u64> {
        room::size(&self.root)
    }
}

/// A lock on a file. The file is never removed: whoever locked a removed file would not be alone.
#[derive(Debug)]
struct FileLock {
    file: Option<File>,
    /// Of a lock that is held alone: where it is, and what this process has written there.
    note: Option<(PathBuf, String)>,
}

impl Lock for FileLock {
    /// A server of files that starts anew, or does not hear of this host for long, lets go of its locks, and gives them to
    /// others. Whoever takes a lock alone writes to its file.
    fn prove(&self, _within: Duration) -> Result<()> {
        let Some((path, note)) = &self.note else { return Ok(()) };
        let read = Opener::READ.read(path, NOTE_LEN_MAX);
        let found = match &self.file {
            Some(file) => standing_note(read, path, file, note.len()),
            None => read,
        };
        if found.map_err(|error| Error::io("read", path, error))? == note.as_bytes() {
            return Ok(());
        }
        let text = format!("the lock {} was taken by somebody else", path.display());
        Err(Error::new(ErrorKind::Busy, text)
            .because("the server of the files has let go of it, or somebody has removed it")
            .advise(AGAIN))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that another thread is just starting holds a
        // copy of it until its exec, and the lock with it.
        let _ = self.file.as_ref().map(File::unlock);
    }
}

fn take_alone(mut file: File, path: &Path) -> Result<Locked> {
    match patience::lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Locked::Busy(holder(file))),
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
    }
    // So that a second caller can say who holds it, and this one whether it is still its own: no reason to fail.
    let mark: [u8; 8] = random::bytes()?;
    let mark: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
    let note = format!("process {} on {}\n{mark}\n", std::process::id(), host_name());
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes()));
    // Others see it at once, also where this host would keep it until the file is closed.
    let written = written.and_then(|()| match is_shared(&file) {
        true => file.sync_data(),
        false => Ok(()),
    });
    let note = written.is_ok().then(|| (path.to_owned(), note));
    Ok(Locked::Held(Box::new(FileLock { file: Some(file), note })))
}

/// What stands in the file of a lock, of which `file` is the handle that holds it and `read` what a look at its path
/// gave; nothing if another file lies there, or none.
fn standing_note(
    read: io::Result<Vec<u8>>,
    path: &Path,
    file: &File,
    len: usize,
) -> io::Result<Vec<u8>> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match read {
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        // Of SMB a file that is locked is read by the handle alone that holds the lock.
        Err(_) => match FileId::at(path) {
            Ok(there) if there == FileId::of(file)? => read_note(file, len),
            Ok(_) => Ok(Vec::new()),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        },
        found => found,
    }
}

/// As many of a file's first bytes as a note has, and one more.
fn read_note(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len + 1];
    let count = file.read_at(&mut bytes, 0)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Whether other hosts may have the same files.
fn is_shared(file: &File) -> bool {
    image_lock::unreliable(file.as_fd()).is_some()
}

/// Locks a file that may lie where nothing can be written, and where its owner alone may read it.
fn share(path: &Path) -> Result<Locked> {
    let file = match Opener::READ.itself().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => durable::open_or_create(path).ok(),
        opened => opened.ok(),
    };
    // Who reads what nobody else can lock is not kept from reading.
    let held = |file| Ok(Locked::Held(Box::new(FileLock { file, note: None })));
    let Some(file) = file else { return held(None) };
    match patience::lock_shared(&file) {
        Ok(()) => held(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(Locked::Busy(holder(file))),
        Err(TryLockError::Error(error)) => {
            tracing::debug!("{}: not locked for reading: {error}", path.display());
            held(None)
        }
    }
}

/// Who holds a lock alone, as far as the holder said.
fn holder(file: File) -> String {
    let mut holder = String::new();
    let read = file.take(200).read_to_string(&mut holder);
    let known = read.is_ok() && holder.starts_with("process ");
    let first = holder.lines().next().unwrap_or_default();
    let holder = if known { first } else { "another process" };
    holder.chars().filter(|c| !c.is_control()).collect()
}

/// This machine's name: a repository may be shared over a network.
pub(crate) fn host_name() -> String {
    let name =
        Opener::READ.read_text(Path::new("/proc/sys/kernel/hostname"), 4096).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this machine".to_owned() } else { name.to_owned() }
}

/// A file under a name that nobody takes for its own.
#[derive(Debug)]
struct StagedFile {
    sink: EarlyWriteback,
    partial: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        durable::step()?;
        self.sink.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl Staged for StagedFile {
    fn seal(&mut self) -> Result<()> {
        durable::sync_file(self.sink.file(), &self.partial)
    }

    fn announce(&mut self) -> Result<()> {
        durable::sync_dir(folder_of(&self.path))
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        let renamed = match how {
            Publish::New => durable::rename_new(&self.partial, &self.path),
            Publish::Replace | Publish::Back => durable::rename_over(&self.partial, &self.path),
        };
        if let Err(error) = renamed {
            // A server that lost its first answer reports a rename that has happened as failed.
            let outcome = match (is_there(&self.partial), is_there(&self.path)) {
                (Ok(true), _) => Some(Outcome::Refused),
                (_, Ok(true)) => None,
                _ => Some(Outcome::Unknown),
            };
            if let Some(outcome) = outcome {
                return Err(Unpublished { error, outcome });
            }
        }
        self.published = true;
        durable::sync_dir(folder_of(&self.path))
            .map_err(|error| Unpublished { error, outcome: Outcome::Volatile })
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            // What can't be removed now is removed by the next run.
            let _ = durable::remove(&self.partial);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    // A path without a folder in front of it lies in the current one.
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Whoever writes to a file, or puts another one in its place, changes one of these.
fn version(id: FileId, (seconds, nanoseconds): (i64, i64)) -> String {
    format!("{id} {seconds}.{nanoseconds:09}")
}

/// Whether anything lies at `path`.
fn is_there(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What lies at `path`, which is asked for only where a link is found: a link is what it leads to.
fn kind_of(found: FileType, path: impl FnOnce() -> PathBuf) -> EntryKind {
    if found.is_symlink() {
        return match path().metadata() {
            Ok(metadata) => kind_of(metadata.file_type(), PathBuf::new),
            Err(error) if error.kind() == io::ErrorKind::NotFound => EntryKind::Other,
            Err(_) => EntryKind::Unknown,
        };
    }
    match (found.is_file(), found.is_dir()) {
        (true, _) => EntryKind::File,
        (_, true) => EntryKind::Folder,
        _ => EntryKind::Other,
    }
}

/// The name that a staged file was to get, if this is the name of one.
fn whole_name(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".partial")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn kinds(local: &Local) -> Vec<(String, EntryKind)> {
        let entries = local.list(&Name::top()).unwrap();
        let mut kinds: Vec<_> = entries.into_iter().map(|it| (it.name, it.kind)).collect();
        kinds.sort_by(|one, other| one.0.cmp(&other.0));
        kinds
    }

    /// What the holder of a lock reads of its file where nobody can open it.
    #[test]
    fn a_note_is_read_by_the_handle_that_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let file = durable::open_or_create(&path).unwrap();
        (&file).write_all(b"process 1 on a\n").unwrap();
        assert_eq!(read_note(&file, 15).unwrap(), b"process 1 on a\n");
        assert_ne!(read_note(&file, 9).unwrap(), b"process 1", "another one's begins so");
    }

    /// Of a lock whose file was removed, and made anew by somebody else where nobody can read it, the handle still gave
    /// this process's own note.
    #[test]
    fn an_unreadable_file_of_another_holder_is_no_proof_of_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let note = b"process 1 on a\n";
        let file = durable::open_or_create(&path).unwrap();
        (&file).write_all(note).unwrap();
        let standing = || {
            let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied));
            standing_note(refused, &path, &file, note.len()).unwrap()
        };
        assert_eq!(standing(), note);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(standing(), b"");
        std::fs::write(&path, note).unwrap();
        assert_eq!(standing(), b"", "another file");
    }

    #[test]
    fn a_link_is_what_it_leads_to_and_staged_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(dir.path());
        std::fs::write(dir.path().join("a"), "content").unwrap();
        std::fs::write(dir.path().join(".b.partial"), "").unwrap();
        std::fs::create_dir(dir.path().join("c")).unwrap();
        symlink("c", dir.path().join("d")).unwrap();
        symlink("nowhere", dir.path().join("e")).unwrap();
        let named = |name: &str, kind| (name.to_owned(), kind);
        let expected = [
            named("a", EntryKind::File),
            named("b", EntryKind::Staged),
            named("c", EntryKind::Folder),
            named("d", EntryKind::Folder),
            named("e", EntryKind::Other),
        ];
        assert_eq!(kinds(&local), expected);
        for (name, kind) in expected {
            let entry = local.entry(&Name::top().join(&name)).unwrap();
            match kind {
                EntryKind::Staged => assert_eq!(entry, None, "it has not got its name"),
                kind => assert_eq!(entry.unwrap().kind, kind, "{name}"),
            }
        }
        let name = Name::top().join("a");
        assert_eq!(local.entry(&name).unwrap().unwrap().len, Some(7));
        assert_eq!(local.read(&name, 7).unwrap(), b"content");
        assert_eq!(local.read(&name, 6).unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(local.open(&name).unwrap().len().unwrap(), 7);
        assert_eq!(local.read(&Name::top().join("x"), 6).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(local.read(&Name::top().join("c"), 6).unwrap_err().kind(), ErrorKind::Damaged);
    }
}
