//! The files of a repository as they lie there, in a folder or in a store: for tests that damage, lose, swap and
//! put back. No key is asked.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use qdelta::vault::repository::storage::{Name, Publish, Storage};

use super::files::{copy_tree, tree};
use super::repo::Repo;
use super::store::storage;

/// A file of a repository.
#[derive(Debug, Clone)]
pub struct Stored {
    repo: Repo,
    /// What it is called within the repository.
    pub file: PathBuf,
}

impl Stored {
    /// The last part of its name.
    pub fn name(&self) -> &str {
        self.file.file_name().unwrap().to_str().unwrap()
    }

    fn in_store(&self) -> Option<(Box<dyn Storage>, Name)> {
        let parts = self.file.iter().map(|part| part.to_str().unwrap());
        let name = parts.fold(Name::top(), |name, part| name.join(part));
        self.repo.is_in_a_store().then(|| (Box::new(storage(&self.repo.path)) as _, name))
    }

    fn path(&self) -> PathBuf {
        self.repo.path.join(&self.file)
    }

    pub fn is_there(&self) -> bool {
        match self.in_store() {
            Some((store, name)) => store.entry(&name).unwrap().is_some(),
            None => self.path().exists(),
        }
    }

    #[track_caller]
    pub fn bytes(&self) -> Vec<u8> {
        match self.in_store() {
            Some((store, name)) => store.read(&name, u64::MAX).unwrap(),
            None => fs::read(self.path()).unwrap(),
        }
    }

    /// From now on it has these bytes, whether it was there or not.
    #[track_caller]
    pub fn write(&self, bytes: &[u8]) {
        let Some((store, name)) = self.in_store() else {
            fs::create_dir_all(self.path().parent().unwrap()).unwrap();
            return fs::write(self.path(), bytes).unwrap();
        };
        // Whoever replaces something must know it.
        let is_there = store.entry(&name).unwrap().is_some();
        if is_there {
            store.read(&name, u64::MAX).unwrap();
        }
        let mut staged = store.stage(&name).unwrap();
        staged.write_all(bytes).unwrap();
        staged.publish(if is_there { Publish::Replace } else { Publish::New }).unwrap();
    }

    /// Some of its bytes become others.
    #[track_caller]
    pub fn patch(&self, offset: u64, bytes: &[u8]) {
        if !self.repo.is_in_a_store() {
            return super::images::patch(&self.path(), offset, bytes);
        }
        let mut whole = self.bytes();
        whole[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        self.write(&whole);
    }

    #[track_caller]
    pub fn remove(&self) {
        match self.in_store() {
            Some((store, name)) => store.remove(&name).unwrap(),
            None => fs::remove_file(self.path()).unwrap(),
        }
    }
}

impl Repo {
    /// What each file is called that lies there.
    pub fn tree(&self) -> BTreeSet<PathBuf> {
        match self.is_in_a_store() {
            true => self.without_key().files().into_iter().collect(),
            false => tree(&self.path),
        }
    }

    /// A file, by what it is called there.
    pub fn stored(&self, file: impl AsRef<Path>) -> Stored {
        Stored { repo: self.clone(), file: file.as_ref().to_owned() }
    }

    /// The file that has a name of the repository: of an encrypted one it is called otherwise.
    pub fn stored_as(&self, name: impl AsRef<Path>) -> Stored {
        match &self.key {
            None => self.stored(name),
            Some(_) => self.stored_at(self.place_of(name)),
        }
    }

    /// The file that lies at a place which qdelta has named.
    #[track_caller]
    pub fn stored_at(&self, place: impl AsRef<Path>) -> Stored {
        let top = self.path.to_string_lossy().into_owned();
        let file = place.as_ref().to_str().unwrap();
        let file = file.strip_prefix(top.split('?').next().unwrap()).unwrap();
        self.stored(file.trim_start_matches('/'))
    }

    /// The files of a folder of the repository, by its name.
    pub fn files_below(&self, folder: &str) -> Vec<Stored> {
        let files = self.files().into_iter().filter(|file| file.starts_with(folder));
        files.map(|file| self.stored_as(file)).collect()
    }

    /// Copies all files to a folder.
    #[track_caller]
    pub fn copy_to(&self, folder: &Path) {
        if !self.is_in_a_store() {
            return copy_tree(&self.path, folder);
        }
        let _ = fs::remove_dir_all(folder);
        for file in self.tree() {
            let to = folder.join(&file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, self.stored(&file).bytes()).unwrap();
        }
    }

    /// Becomes what lies in a folder to which `copy_to` copied it.
    #[track_caller]
    pub fn put_back(&self, folder: &Path) {
        if !self.is_in_a_store() {
            return copy_tree(folder, &self.path);
        }
        let kept = tree(folder);
        for file in self.tree().difference(&kept) {
            self.stored(file).remove();
        }
        for file in kept {
            let (stored, bytes) = (self.stored(&file), fs::read(folder.join(&file)).unwrap());
            if !stored.is_there() || stored.bytes() != bytes {
                stored.write(&bytes);
            }
        }
    }
}
