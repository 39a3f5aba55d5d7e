//! The folder of kept clones: `.qdelta` beside the file that was cloned, a folder in it for each
//! anchor, named after it, and in that the clones.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::clone_file;
use crate::error::{Error, ErrorKind, Result};

/// The folder beside an image in which its clones are kept.
pub const ANCHOR_FOLDER: &str = ".qdelta";

/// A clone that is kept.
#[derive(Debug)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// It, open for reading and writing.
    pub file: File,
}

impl Kept {
    /// Clones the open file at `source_path`, which must be its real path, into the folder of the
    /// anchor called `anchor` beside it. Returns as soon as it is cloned: see [`Kept::sync`].
    ///
    /// # Errors
    /// As [`clone_file`]; or the folder can't be made.
    pub fn clone_of(source: BorrowedFd<'_>, source_path: &Path, anchor: &str) -> Result<Self> {
        let (Some(parent), Some(name)) = (source_path.parent(), source_path.file_name()) else {
            let text = format!("{} has no folder to keep a clone in", source_path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        };
        let stat = rustix::fs::fstat(source);
        let stat = stat.map_err(|error| Error::io("look at", source_path, error.into()))?;
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind != rustix::fs::FileType::RegularFile {
            let text = format!("{} is no regular file", source_path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let folder = parent.join(ANCHOR_FOLDER);
        make(&folder)?;
        let own = folder.join(anchor);
        make(&own)?;
        let path = own.join(name);
        match clone_file(source, source_path, &path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => {
                // Only if they are empty.
                let _ = std::fs::remove_dir(&own).and_then(|()| std::fs::remove_dir(&folder));
                Err(error)
            }
        }
    }

    /// Returns once the clone and its name survive a power cut.
    ///
    /// # Errors
    /// The system does not promise it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
        for folder in self.path.ancestors().skip(1).take(3) {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| Error::io("sync the folder", folder, error))?;
        }
        Ok(())
    }
}

fn make(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other.map_err(|error| Error::io("make the folder", folder, error)),
    }
}

/// The names of the anchors whose clones are kept beside files in `folder`, sorted.
///
/// # Errors
/// The folder of clones is there but can't be read.
pub fn kept_beside(folder: &Path) -> Result<Vec<String>> {
    let clones = folder.join(ANCHOR_FOLDER);
    let failed = |error| Error::io("list", &clones, error);
    let entries = match std::fs::read_dir(&clones) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes the clones of the anchor called `anchor` that are kept beside files in `folder`; it is
/// no failure if there are none.
///
/// # Errors
/// Something can't be removed.
pub fn remove_kept(folder: &Path, anchor: &str) -> Result<()> {
    let clones = folder.join(ANCHOR_FOLDER);
    let own = clones.join(anchor);
    let entries = match std::fs::read_dir(&own) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", &own, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| Error::io("list", &own, error))?.path();
        std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    std::fs::remove_dir(&own).map_err(|error| Error::io("remove the folder", &own, error))?;
    // The last one out closes the door; others may be at home.
    let _ = std::fs::remove_dir(&clones);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        assert!(kept_beside(folder.path()).unwrap().is_empty());
        remove_kept(folder.path(), "none").unwrap();
    }

    #[test]
    fn removing_one_anchor_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        for anchor in ["one", "two"] {
            let own = folder.path().join(ANCHOR_FOLDER).join(anchor);
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(own.join("disk"), "").unwrap();
        }
        remove_kept(folder.path(), "one").unwrap();
        assert_eq!(kept_beside(folder.path()).unwrap(), ["two"]);
        remove_kept(folder.path(), "two").unwrap();
        assert!(!folder.path().join(ANCHOR_FOLDER).exists());
    }
}
