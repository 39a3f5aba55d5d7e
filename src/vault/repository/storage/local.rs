//! A folder of this machine.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, EntryKind, Name, Storage};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{FileStore, Opener, Store, not_opened};

/// A repository in a folder.
#[derive(Debug)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The storage in the folder `root`, which need not be there yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
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
    fn describe(&self, name: &Name) -> String {
        self.path(name).display().to_string()
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        let path = self.path(folder);
        let failed = |error| Error::io("list", &path, error);
        let mut entries = Vec::new();
        for found in std::fs::read_dir(&path).map_err(failed)? {
            let found = found.map_err(failed)?;
            let Ok(name) = found.file_name().into_string() else { continue };
            let kind = found.file_type().map_or(EntryKind::Other, |it| kind_of(it, &found.path()));
            entries.push(match (kind, whole_name(&name)) {
                (EntryKind::File, Some(whole)) => {
                    Entry { name: whole.to_owned(), kind: EntryKind::Staged, len: None }
                }
                _ => Entry { name, kind, len: None },
            });
        }
        Ok(entries)
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let path = self.path(name);
        let found = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("look at", &path, error)),
        };
        let file = if found.is_symlink() { path.metadata().ok() } else { Some(found) };
        let kind = file.as_ref().map_or(EntryKind::Other, |it| kind_of(it.file_type(), &path));
        let len = file.filter(Metadata::is_file).map(|it| it.len());
        Ok(Some(Entry { name: name.last().to_owned(), kind, len }))
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        let path = self.path(name);
        let file = open(&path)?;
        let failed = |error| Error::io("read", &path, error);
        let len = file.metadata().map_err(failed)?.len();
        if len > max {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{}: {len} bytes long, and at most {max} make sense", path.display()),
            ));
        }
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn Store>> {
        let path = self.path(name);
        Ok(Arc::new(FileStore::new(open(&path)?, path)))
    }
}

/// Opens a file for reading.
fn open(path: &Path) -> Result<File> {
    Opener::READ.open(path).map_err(|error| not_opened(path, error, ErrorKind::Damaged))
}

/// What lies at `path`: a link is what it leads to.
fn kind_of(found: FileType, path: &Path) -> EntryKind {
    if found.is_symlink() {
        return path.metadata().map_or(EntryKind::Other, |it| match it.is_symlink() {
            true => EntryKind::Other,
            false => kind_of(it.file_type(), path),
        });
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
