//! A new file that gets its final name only when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::existing::refuse_input;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::image_lock;
use crate::disk::files::{rename_new, room};
use crate::disk::io::{FileStore, Opener, Store, not_opened, sync_folder};
use crate::disk::sys::FileId;
use crate::disk::sys::patience;

/// A disk shows everything that was ever written to it: only its owner reads it, unless the file
/// that it replaces was open to others.
const MODE: u32 = 0o600;
/// The ending of an incomplete file's name.
const SUFFIX: &str = ".qdelta-partial";
/// The longest file name.
const NAME_LEN_MAX: usize = 255;
/// How often to try for the name of the incomplete file while other processes take it.
const ATTEMPTS_MAX: u32 = 10;

/// A file that is being written beside its final place, as `.NAME.qdelta-partial`. If the value is
/// dropped without [`Self::commit`], the file is removed. The next process removes the file of a
/// killed process.
#[derive(Debug)]
pub struct Target {
    /// Its lock tells others that this file is no leftover.
    store: Arc<FileStore>,
    partial: PathBuf,
    path: PathBuf,
    replace: bool,
    committed: bool,
}

impl Target {
    /// Begins a file that will be called `path`. A symbolic link is followed.
    ///
    /// # Errors
    /// - `Exists`: there is such a file, and `replace` is not set.
    /// - `Busy`: another process is writing it, or a guest uses the file that is to be replaced.
    /// - `Usage`: it is one of `inputs`, or no file.
    /// - `NotFound`: there is no such folder.
    pub fn create(path: &Path, replace: bool, inputs: &[FileId]) -> Result<Self> {
        let existing = match Opener::READ.open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(not_opened(path, error, ErrorKind::Usage)),
        };
        let path = match &existing {
            Some(file) => {
                check_existing(file, path, replace, inputs)?;
                path.canonicalize().map_err(|error| Error::io("find", path, error))?
            }
            None => path.to_path_buf(),
        };
        let partial = partial_path(&path)?;
        let file = open_partial(&partial)?;
        if let Some(existing) = existing {
            take_over(&file, &existing).map_err(|error| Error::io("prepare", &partial, error))?;
        }
        let store = Arc::new(FileStore::new(file, &partial));
        Ok(Self { store, partial, path, replace, committed: false })
    }

    /// The path of the incomplete file.
    pub fn store(&self) -> &Arc<FileStore> {
        &self.store
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if the filesystem has no room for `needed` more bytes, or if the file may not become `len`
    /// bytes long.
    ///
    /// # Errors
    /// `NoSpace`, with how much is missing.
    pub fn check_space(&self, needed: u64, len: u64) -> Result<()> {
        room::check_limit(&self.path, len)?;
        room::check(&self.partial, needed, &self.path.display().to_string())
    }

    /// Puts the file on stable storage and gives it its name.
    ///
    /// # Errors
    /// `Exists` if the name was taken meanwhile and must not be replaced; `NoSpace` and `Io`.
    pub fn commit(mut self) -> Result<()> {
        self.store.sync().map_err(|error| Error::io("sync", &self.partial, error))?;
        let renamed = if self.replace {
            std::fs::rename(&self.partial, &self.path)
        } else {
            rename_new(&self.partial, &self.path)
        };
        renamed.map_err(|error| {
            Error::io(format!("rename {} to", self.partial.display()), &self.path, error)
        })?;
        self.committed = true;
        // Without this, a power cut undoes the rename.
        let folder = folder(&self.path);
        sync_folder(folder).map_err(|error| Error::io("sync the folder", folder, error))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

fn check_existing(file: &File, path: &Path, replace: bool, inputs: &[FileId]) -> Result<()> {
    refuse_input(file, path, inputs)?;
    if !replace {
        let text = format!("{} exists already", path.display());
        return Err(Error::new(ErrorKind::Exists, text).advise("give --force to replace it"));
    }
    // After a rename, a guest would go on writing to a file that nobody can find any more.
    if let Ok(Some(_)) = image_lock::probe_living(file) {
        let text = format!("{} is in use by another program", path.display());
        return Err(Error::new(ErrorKind::Busy, text).advise("end the program that uses it first"));
    }
    Ok(())
}

/// Gives the new file the mode and, as far as the caller may, the owner of the one it replaces.
fn take_over(file: &File, existing: &File) -> io::Result<()> {
    let metadata = existing.metadata()?;
    let _ = fchown(file, Some(metadata.uid()), Some(metadata.gid()));
    file.set_permissions(std::fs::Permissions::from_mode(metadata.mode() & 0o777))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// The path of the incomplete file of `path`.
fn partial_path(path: &Path) -> Result<PathBuf> {
    let name: &OsStr = path.file_name().ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{} is no name for a file", path.display()))
    })?;
    let mut partial = vec![b'.'];
    let room = NAME_LEN_MAX - SUFFIX.len() - 1;
    partial.extend(name.as_bytes().iter().take(room));
    partial.extend(SUFFIX.as_bytes());
    Ok(folder(path).join(OsString::from_vec(partial)))
}

/// Makes the incomplete file and locks it, after removing an older one that no process writes any
/// more.
fn open_partial(path: &Path) -> Result<File> {
    let failed = |error| Error::io("create", path, error);
    for _ in 0..ATTEMPTS_MAX {
        match Opener::CHANGE.create(MODE).open(path) {
            Ok(file) => match patience::lock(&file) {
                // Another process may have taken the file for a leftover before it was locked.
                Ok(()) if !is_at(&file, path) => {}
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => remove_leftover(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(failed(error).advise("the folder must exist"));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(busy(path))
}

fn busy(path: &Path) -> Error {
    Error::new(ErrorKind::Busy, format!("{} is being written by another process", path.display()))
}

fn remove_leftover(path: &Path) -> Result<()> {
    let file = match Opener::CHANGE.itself().open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(not_opened(path, error, ErrorKind::Exists)),
    };
    match patience::lock(&file) {
        Ok(()) if is_at(&file, path) => {
            std::fs::remove_file(path).map_err(|error| Error::io("remove", path, error))
        }
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(busy(path)),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path, error)
            .advise("if no other restore is running, remove this file")),
    }
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(one), Ok(other)) => FileId::from(&one) == FileId::from(&other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_final_name_appears_with_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let target = Target::create(&path, false, &[]).unwrap();
        target.store().write_all_at(b"whole", 0).unwrap();
        assert_eq!(names(dir.path()), [".disk.raw.qdelta-partial"]);
        assert_eq!(Target::create(&path, false, &[]).unwrap_err().kind(), ErrorKind::Busy);
        target.commit().unwrap();
        assert_eq!(names(dir.path()), ["disk.raw"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_left_of_a_target_that_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(Target::create(&dir.path().join("disk"), false, &[]).unwrap());
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".disk.qdelta-partial"), b"old").unwrap();
        let target = Target::create(&dir.path().join("disk"), false, &[]).unwrap();
        target.commit().unwrap();
        assert_eq!(names(dir.path()), ["disk"]);
        assert_eq!(std::fs::read(dir.path().join("disk")).unwrap(), b"");
    }

    #[test]
    fn an_existing_file_stays_until_its_replacement_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Target::create(&path, false, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert!(error.advice().unwrap().contains("--force"));

        let target = Target::create(&path, true, &[]).unwrap();
        target.store().write_all_at(b"new", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(target);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");

        let target = Target::create(&path, true, &[]).unwrap();
        target.store().write_all_at(b"new", 0).unwrap();
        target.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_comes_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let target = Target::create(&path, false, &[]).unwrap();
        std::fs::write(&path, b"other").unwrap();
        assert_eq!(target.commit().unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert_eq!(names(dir.path()), ["disk"]);
    }

    #[test]
    fn a_link_is_followed_and_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("disk"), dir.path().join("link"));
        std::fs::write(&path, b"old").unwrap();
        std::os::unix::fs::symlink("disk", &link).unwrap();
        let target = Target::create(&link, true, &[]).unwrap();
        target.store().write_all_at(b"new", 0).unwrap();
        target.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn an_input_is_never_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("archive"), dir.path().join("other"));
        std::fs::write(&path, b"old").unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        let input = FileId::of(File::open(&path).unwrap()).unwrap();
        for name in [&path, &other] {
            let error = Target::create(name, true, &[input]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn names_of_any_length_have_a_partial_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n".repeat(NAME_LEN_MAX));
        Target::create(&path, false, &[]).unwrap().commit().unwrap();
        assert!(path.is_file());
        let error = Target::create(&dir.path().join("none/disk"), false, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            Target::create(Path::new("/"), false, &[]).unwrap_err().kind(),
            ErrorKind::Usage
        );
    }

    #[test]
    fn too_little_space_is_said_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::create(&dir.path().join("disk"), false, &[]).unwrap();
        target.check_space(1 << 20, 1 << 20).unwrap();
        assert_eq!(target.check_space(1 << 60, 1 << 60).unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
