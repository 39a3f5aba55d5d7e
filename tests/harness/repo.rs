//! A repository under test: what was backed up into it, and what must come out again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use qdelta::ErrorKind;
use qdelta::vault::repository::Repository;
use qdelta::vault::repository::storage::{EntryKind, KeyText, Name, Publish, S3, Storage};
use serde_json::Value;

use super::files::{assert_same, tree};
use super::images::{check_is_silent, qemu_img};
use super::store::{self, storage};
use super::{Lab, Outcome, apart, args, qdelta, run, state};

/// The recipient of an admin whose key nobody has kept: the tests open their repositories by `--recovery`.
pub const ADMIN: &str = "age1dqgxxw9rc0a2q8gfv5w357me0dg0zjue8hrzf6es62sg3q4gfa6skhq04a";

/// Where `init` has put the repositories of paths.
static MADE: Mutex<BTreeMap<PathBuf, PathBuf>> = Mutex::new(BTreeMap::new());

/// A repository, and the command line to reach it.
#[derive(Debug, Clone)]
pub struct Repo {
    pub path: PathBuf,
    io: &'static str,
    /// The file with the key of an encrypted one.
    pub key: Option<PathBuf>,
}

impl Repo {
    /// A new repository at `path`: in an object store instead if `QDELTA_STORE` says so, and an encrypted one if
    /// `QDELTA_TEST_ENCRYPTED` is set, but for the tests that stay apart.
    #[track_caller]
    pub fn init(path: PathBuf) -> Self {
        let place = match !S3::is_address(&path) && apart::is_store_wanted() {
            true => store::fresh_address(),
            false => path.clone(),
        };
        MADE.lock().unwrap().insert(path, place.clone());
        Self::made_at(place)
    }

    /// The repository that `init` has made for this path, wherever it has put it.
    pub fn made_before(path: &Path) -> Option<Self> {
        MADE.lock().unwrap().get(path).cloned().map(Self::at)
    }

    /// A new repository at this place, in a folder or in a store.
    #[track_caller]
    pub fn made_at(path: PathBuf) -> Self {
        if apart::is_encryption_wanted() {
            return Self::encrypted(path);
        }
        run(qdelta(args!["init", path.as_path()])).ok();
        Self::at(path)
    }

    /// A new repository at `path`, in which everything is encrypted.
    #[track_caller]
    pub fn encrypted(path: PathBuf) -> Self {
        let key = key_of(&path);
        // That of one which was there before.
        let _ = std::fs::remove_file(&key);
        Self::encrypted_by(path, key)
    }

    /// The same with the file of its key at a place. An admin's recipient costs nothing: the work that a passphrase
    /// takes is for the tests of passphrases.
    #[track_caller]
    pub fn encrypted_by(path: PathBuf, key: PathBuf) -> Self {
        Self::encrypted_for(path, key, args!["--recipient", ADMIN])
    }

    /// The same, opened by the passphrase in the file beside its key.
    #[track_caller]
    pub fn encrypted_by_a_passphrase(path: PathBuf) -> Self {
        let key = key_of(&path);
        let passphrase = key.with_extension("passphrase");
        std::fs::write(&passphrase, "a passphrase\n").unwrap();
        Self::encrypted_for(path, key, args!["--passphrase-file", passphrase])
    }

    #[track_caller]
    fn encrypted_for(path: PathBuf, key: PathBuf, whom: Vec<OsString>) -> Self {
        let words = args!["init", path.as_path(), "--encrypt", "--recovery", key.as_path()];
        run(qdelta([words, whom].concat())).ok();
        Self { path, io: "auto", key: Some(key) }
    }

    /// A new repository for the life number `number`: every fourth one lies in an object store; the others lie
    /// where `init` puts them.
    #[track_caller]
    pub fn of_a_life(path: PathBuf, number: u64) -> Self {
        match number % 4 == 3 {
            true => store::new_repo(),
            false => Self::init(path),
        }
    }

    /// Whether it lies in an object store.
    pub fn is_in_a_store(&self) -> bool {
        S3::is_address(&self.path)
    }

    /// Changes `qdelta.toml`, as an admin does.
    pub fn edit_settings(&self, edit: impl FnOnce(&str) -> String) {
        self.edit(Path::new("qdelta.toml"), edit);
    }

    /// Changes the text of a file, by its name in the repository.
    pub fn edit(&self, file: &Path, edit: impl FnOnce(&str) -> String) {
        if !self.is_in_a_store() {
            let path = self.path.join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, edit(&text)).unwrap();
            return;
        }
        let name = file.iter().fold(Name::top(), |name, part| name.join(part.to_str().unwrap()));
        let store = storage(&self.path);
        let text = String::from_utf8(store.read(&name, 1 << 20).unwrap()).unwrap();
        let mut staged = store.stage(&name).unwrap();
        staged.write_all(edit(&text).as_bytes()).unwrap();
        staged.publish(Publish::Replace).unwrap();
    }

    /// The key of an encrypted one.
    pub fn key_text(&self) -> Option<KeyText> {
        let key = self.key.as_ref().map(|key| std::fs::read_to_string(key).unwrap());
        key.map(|text| text.parse().unwrap())
    }

    /// The repository, opened in this process.
    pub fn open(&self) -> Repository {
        let key = self.key_text();
        match self.is_in_a_store() {
            true => Repository::open_in_with(Arc::new(storage(&self.path)), key.as_ref()).unwrap(),
            false => Repository::open_with(&self.path, key.as_ref()).unwrap(),
        }
    }

    /// A copy of this repository, with the same key; nobody has made it yet.
    pub fn copy_at(&self, path: PathBuf) -> Self {
        Self { path, ..self.clone() }
    }

    /// A repository that is there already.
    pub fn at(path: PathBuf) -> Self {
        let key = Some(key_of(&path)).filter(|key| key.exists());
        Self { path, io: "auto", key }
    }

    /// The same repository, for somebody without a key.
    pub fn without_key(&self) -> Self {
        Self { key: None, ..self.clone() }
    }

    /// The same repository, for somebody with another key.
    pub fn with_key(&self, key: &Path) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The same repository, read and written without a ring unless a command says otherwise. Setting
    /// one up takes most of the time of a small command; a sweep runs thousands.
    pub fn without_ring(self) -> Self {
        Self { io: "threads", ..self }
    }

    /// Options of a command, with how it reads and writes.
    fn options(&self, options: &[&str]) -> Vec<OsString> {
        let mut all: Vec<OsString> = options.iter().map(OsString::from).collect();
        if !options.contains(&"--io") {
            all.extend(args!["--io", self.io]);
        }
        all
    }

    /// The file that says that a guest may be frozen.
    pub fn frozen_mark(&self, domain: &str) -> PathBuf {
        state().join(self.open().id()).join(format!("{domain}.frozen"))
    }

    /// The arguments of a command on this repository.
    pub fn args(&self, arguments: Vec<OsString>) -> Vec<OsString> {
        let mut all = args!["--repo", self.path.as_path()];
        if let Some(key) = &self.key {
            all.extend(args!["--key-file", key.as_path()]);
        }
        all.extend(arguments);
        all
    }

    /// Runs a command on this repository.
    #[track_caller]
    pub fn run(&self, arguments: Vec<OsString>) -> Outcome {
        run(qdelta(self.args(arguments)))
    }

    /// Backs up `image` as `disk`; gives the result's JSON.
    #[track_caller]
    pub fn backup(&self, image: &Path, disk: &str, options: &[&str]) -> Value {
        self.backup_run(image, disk, options).ok().json()
    }

    /// Backs up `image` as `disk`, whatever comes of it.
    #[track_caller]
    pub fn backup_run(&self, image: &Path, disk: &str, options: &[&str]) -> Outcome {
        let mut arguments = args!["backup", image, "--disk", disk, "--json"];
        arguments.extend(self.options(options));
        self.run(arguments)
    }

    /// Restores `selector` (a disk, or DISK@POINT) to `output`.
    #[track_caller]
    pub fn restore(&self, selector: &str, output: &Path, options: &[&str]) -> Outcome {
        let mut arguments = args!["restore", selector, output];
        arguments.extend(self.options(options));
        self.run(arguments)
    }

    /// Restores `selector` as raw and as qcow2; both must hold what `expected` does.
    #[track_caller]
    pub fn assert_restores(&self, lab: &Lab, selector: &str, expected: &Path) {
        self.assert_restores_raw(lab, selector, expected);
        let output = lab.path("restored.qcow2");
        self.restore(selector, &output, &["--format", "qcow2"]).ok();
        check_is_silent(&output);
        // Beyond the end of the shorter one compare takes zeros: the sizes are compared apart.
        qemu_img(args!["compare", "-q", "-f", "raw", "-F", "qcow2", expected, output.as_path()])
            .ok();
        let info = qemu_img(args!["info", "--output=json", output.as_path()]).ok().json();
        let size = std::fs::metadata(expected).unwrap().len().next_multiple_of(512);
        assert_eq!(info["virtual-size"], size, "virtual size of {selector} as qcow2");
        std::fs::remove_file(&output).unwrap();
    }

    /// Restores `selector` as raw; it must hold what `expected` does.
    #[track_caller]
    pub fn assert_restores_raw(&self, lab: &Lab, selector: &str, expected: &Path) {
        let output = lab.path("restored.raw");
        self.restore(selector, &output, &[]).ok();
        assert_same(expected, &output, selector);
        std::fs::remove_file(&output).unwrap();
    }

    /// The ids of the points of `disk`, oldest first.
    #[track_caller]
    pub fn points(&self, disk: &str) -> Vec<String> {
        let list = self.run(args!["points", disk, "--json"]).ok().json();
        ids(&list)
    }

    /// Everything must verify.
    #[track_caller]
    pub fn verify(&self) {
        let mut arguments = args!["verify"];
        arguments.extend(self.options(&[]));
        self.run(arguments).ok();
    }

    /// Its files, by their names within it: of an encrypted one those that the key opens.
    pub fn files(&self) -> Vec<PathBuf> {
        let store: Arc<dyn Storage> = match (self.key.is_some(), self.is_in_a_store()) {
            (true, _) => Arc::clone(self.open().storage()),
            (false, true) => Arc::new(storage(&self.path)),
            (false, false) => return tree(&self.path).into_iter().collect(),
        };
        let (mut found, mut folders) = (Vec::new(), vec![Name::top()]);
        while let Some(folder) = folders.pop() {
            let entries = match store.list(&folder) {
                // A store may tell of folders in which nothing is any more.
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                entries => entries.unwrap(),
            };
            for entry in entries {
                let name = folder.join(&entry.name);
                match entry.kind {
                    EntryKind::Folder => folders.push(name),
                    EntryKind::File => found.push(PathBuf::from(name.as_str())),
                    _ => found.push(format!("{folder}/.{}.partial", entry.name).into()),
                }
            }
        }
        found.sort();
        found
    }

    /// Where a file or folder lies, by its name within the repository: of an encrypted one under another.
    pub fn place_of(&self, name: impl AsRef<Path>) -> PathBuf {
        let parts = name.as_ref().iter();
        let name = parts.fold(Name::top(), |name, part| name.join(part.to_str().unwrap()));
        self.open().storage().describe(&name)
    }

    /// Writes what is in a file, decrypted, to a path.
    pub fn take_out(&self, file: &Path, to: &Path) {
        let parts = file.iter();
        let name = parts.fold(Name::top(), |name, part| name.join(part.to_str().unwrap()));
        std::fs::write(to, self.open().storage().read(&name, u64::MAX).unwrap()).unwrap();
    }

    /// Writes an archive, decrypted, to a file of the lab.
    pub fn bare(&self, archive: &Path, lab: &Lab) -> PathBuf {
        let path = lab.path(archive.file_name().unwrap());
        self.take_out(archive, &path);
        path
    }

    /// Its archives, by their names within it.
    pub fn archives(&self) -> Vec<PathBuf> {
        let files = self.files().into_iter();
        files.filter(|file| file.extension().is_some_and(|it| it == "qdelta")).collect()
    }

    /// Archives and manifests, and nothing that an interrupted run left.
    #[track_caller]
    pub fn assert_no_leftovers(&self) {
        let files = self.files();
        let mut manifests = BTreeSet::new();
        let mut archives = BTreeSet::new();
        for file in &files {
            let name = file.file_name().unwrap().to_string_lossy();
            let domain = file.components().next().unwrap().as_os_str().to_owned();
            match name.rsplit_once('.') {
                Some((point, "json")) if file.parent().unwrap().ends_with("points") => {
                    manifests.insert((domain, point.to_owned()));
                }
                Some((stem, "qdelta")) if !name.starts_with('.') => {
                    // `<point>-<kind>-<start of the archive's id>`.
                    let point = stem.split_once('-').unwrap().0;
                    archives.insert((domain, point.to_owned()));
                }
                _ if name == "qdelta.toml" || name == ".lock" || name == ".keep" => {}
                _ => panic!("a leftover in the repository: {file:?} of {files:?}"),
            }
        }
        assert_eq!(manifests, archives, "each manifest has an archive, each archive a manifest");
    }
}

/// Where the key of a repository is, if it is encrypted: beside it, or in the folder of this host's state.
pub fn key_of(path: &Path) -> PathBuf {
    if !S3::is_address(path) {
        return path.with_extension("key");
    }
    let place = path.to_string_lossy().split(['?', '/']).nth(3).unwrap().to_owned();
    state().join(format!("{place}.key"))
}

/// The ids in the output of `points --json`, whichever way it nests them.
fn ids(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(ids).collect(),
        Value::Object(map) => match map.get("point") {
            Some(Value::String(id)) => vec![id.clone()],
            _ => map.values().flat_map(ids).collect(),
        },
        _ => Vec::new(),
    }
}

/// The point id in the JSON of a backup.
#[track_caller]
pub fn point_of(backup: &Value) -> String {
    backup["point"].as_str().unwrap_or_else(|| panic!("no point in {backup}")).to_owned()
}

/// A number in the JSON of a backup.
#[track_caller]
pub fn number(backup: &Value, field: &str) -> u64 {
    backup[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {backup}"))
}
