//! `qdelta.toml`: what makes a folder a repository, and how it comes back when it is lost.
//!
//! It holds nothing that a restore needs: what the repository is, and settings. So without it, or when it is damaged, everything can still be
//! read; only writing is refused, until it was made anew with the id that the manifests know.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalog::DomainReading;
use super::keys::{self, Encryption, KeyRing, NewKeys};
use super::names::{DomainName, POINTS};
use super::safe::check_period;
use super::settings::{self, Settings};
use super::storage::{Entry, EntryKind, KeyText, Keys, Local, Name, Publish, S3, Storage};
use super::{Repository, manifest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::base::random;
use crate::disk::files::check_new_file;
use crate::vault::age::Recipient;

/// The file that makes a folder a repository.
pub(super) const CONFIG: &str = "qdelta.toml";

/// The longest configuration that is read, in bytes.
pub(super) const LEN_MAX: u64 = 64 << 10;

/// The newest repository format that this program writes and reads.
const FORMAT: u32 = 1;

/// What `qdelta.toml` says of the repository. The settings below it are read when they are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    /// Version of the layout of the repository: 1.
    format: u32,
    /// 32 hexadecimal digits that no other repository has.
    pub id: String,
    /// When it was made, for people.
    created: String,
    /// To whom every other file is encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    /// BLAKE3 of those above: a flipped bit in the id is not taken for the id.
    digest: String,
    /// Of the settings, what must be known before anything is written.
    #[serde(default, skip_serializing)]
    lock: Option<String>,
}

impl Config {
    fn new(id: String, recipient: Option<Recipient>) -> Result<Self> {
        let created = crate::base::clock::now()?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let recipient = recipient.map(|recipient| recipient.to_string());
        let (digest, lock) = (String::new(), None);
        let mut config = Self { format: FORMAT, id, created, recipient, digest, lock };
        config.digest = config.digest();
        Ok(config)
    }

    /// What `digest` must be.
    fn digest(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.format, self.id, self.created);
        text.extend(self.recipient.iter().flat_map(|recipient| [recipient.as_str(), "\n"]));
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// To whom every other file is encrypted.
    fn recipient(&self) -> Result<Option<Recipient>> {
        self.recipient.as_ref().map(|recipient| recipient.parse()).transpose()
    }

    /// Reads the configuration of a repository.
    fn read(storage: &dyn Storage) -> Result<Self> {
        let name = Name::top().join(CONFIG);
        let bytes = storage.read(&name, LEN_MAX)?;
        let path = storage.describe(&name);
        let damaged = || Error::new(ErrorKind::Damaged, format!("{} is damaged", path.display()));
        let text = std::str::from_utf8(&bytes).map_err(|error| damaged().because(error))?;
        let config: Self =
            toml::from_str(text).map_err(|error| damaged().because(located(text, &error)))?;
        if config.digest != config.digest() {
            return Err(damaged().because("its digest is not that of its content"));
        }
        if config.format > FORMAT {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: repository format {}", shown(storage), config.format),
            )
            .because(format!("this qdelta knows formats up to {FORMAT}"))
            .advise("use the qdelta that made it, or a newer one"));
        }
        Ok(config)
    }

    /// Writes it into a repository.
    fn write(&self, settings: &Settings, storage: &dyn Storage, how: Publish) -> Result<()> {
        let text = toml::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Io, "cannot write qdelta.toml").because(error)
        })?;
        let text = format!(
            "# A repository of qdelta. Please leave the next {} lines as they are.\n{text}{}",
            if self.recipient.is_some() { "five" } else { "four" },
            settings.to_text()
        );
        let name = Name::top().join(CONFIG);
        storage.write(&name, text.as_bytes(), how)
    }
}

/// What is wrong with a text, in one line, and where.
pub(super) fn located(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {message}", 1 + before.matches('\n').count()),
        None => message,
    }
}

/// What to call the repository where people read of it.
fn shown(storage: &dyn Storage) -> String {
    storage.describe(&Name::top()).display().to_string()
}

/// What became of a repository whose `qdelta.toml` was to be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// There was nothing to repair.
    Sound,
    /// It has the id that its points know.
    SameId,
    /// No point knows its id, so it has a new one: anchors of earlier backups are strangers to it.
    NewId,
}

impl Repository {
    fn at(storage: Arc<dyn Storage>, id: String, trouble: Option<Error>) -> Self {
        let root = storage.describe(&Name::top());
        let (state, encryption, locked, past) = (None, None, None, None);
        Self { root, storage, id, trouble, state, encryption, locked, past }
    }

    /// The same repository, whose settings say for how long the storage locks what is written.
    fn with_lock(mut self, lock: Option<&str>) -> Self {
        let Some(text) = lock else { return self };
        match text.parse::<Period>().and_then(|it| check_period(it).map(|()| it)) {
            Ok(period) => {
                // A copy in a folder has the same settings, and no locks.
                if self.storage.lock_new_files(period).is_ok() {
                    self.locked = Some(period);
                }
            }
            // Whatever was written now would be locked for too short a time.
            Err(error) => {
                let path = self.config_path();
                self.trouble = Some(error.within(format!("lock in {}", path.display())));
            }
        }
        self
    }

    fn with_encryption(mut self, encryption: Option<Encryption>) -> Self {
        self.encryption = encryption;
        self
    }

    /// Makes an empty repository of the folder `root`, which is made if it is missing (but not
    /// the folder around it), or of a place in an object store, `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if `root` is a repository already or has other things in it;
    /// [`ErrorKind::Usage`] if it would lie among the kernel's own files, or in a store that does not
    /// keep what a repository needs.
    pub fn init(root: &Path) -> Result<Self> {
        Self::init_with(root, &Settings::of_machine())
    }

    /// Makes an empty repository as [`Self::init`] does, with these settings.
    ///
    /// # Errors
    /// As [`Self::init`]; [`ErrorKind::Usage`] if this machine does not know the time zone.
    pub fn init_with(root: &Path, settings: &Settings) -> Result<Self> {
        Self::init_folder(root, settings, None)
    }

    /// Makes an empty repository as [`Self::init_with`] does, in which everything is encrypted.
    ///
    /// # Errors
    /// As [`Self::init_with`]; a key can't be wrapped.
    pub fn init_encrypted(root: &Path, settings: &Settings, keys: &NewKeys<'_>) -> Result<Self> {
        Self::init_folder(root, settings, Some(keys))
    }

    fn init_folder(root: &Path, settings: &Settings, keys: Option<&NewKeys<'_>>) -> Result<Self> {
        settings.zone()?;
        if S3::is_address(root) {
            let storage = S3::new(root)?;
            if settings.lock.is_some() {
                storage.default_lock()?;
            }
            storage.probe()?;
            return Self::init_in_with(Arc::new(storage), settings, keys);
        }
        match fs::metadata(root) {
            Ok(_) => check_new_file(&root.join(CONFIG))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_new_file(root)?;
                Local::create(root).map_err(|error| {
                    error.advise("is the disk mounted? If it is, make the folder around it first")
                })?;
            }
            Err(error) => return Err(Error::io("look at", root, error)),
        }
        Self::init_in_with(Arc::new(Local::new(root)), settings, keys)
    }

    /// Makes an empty repository of an empty storage.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if there is anything else in it.
    pub fn init_in(storage: Arc<dyn Storage>, settings: &Settings) -> Result<Self> {
        Self::init_in_with(storage, settings, None)
    }

    /// Makes an empty repository of an empty storage: if there are keys, one in which everything is
    /// encrypted.
    ///
    /// # Errors
    /// As [`Self::init_in`]; a key can't be wrapped.
    pub fn init_in_with(
        storage: Arc<dyn Storage>,
        settings: &Settings,
        keys: Option<&NewKeys<'_>>,
    ) -> Result<Self> {
        if let Some(period) = settings.lock {
            check_period(period)?;
            storage.lock_new_files(period)?;
        }
        check_empty(&*storage)?;
        let config = Config::new(new_id()?, keys.map(|keys| keys.identity.recipient()))?;
        if let Some(keys) = keys {
            // Before the repository is one: none is ever without.
            let ring = KeyRing::new(Arc::clone(&storage), Some(keys.identity.recipient()));
            for (name, to) in &keys.wraps {
                ring.add(name, keys.identity, *to)?;
            }
        }
        config.write(settings, &*storage, Publish::New)?;
        if settings.lock.is_some() && storage.locked_until(&[Name::top().join(CONFIG)])? == [None] {
            let text =
                format!("the store of {} ignores that objects are to be locked", shown(&*storage));
            return Err(Error::new(ErrorKind::Usage, text)
                .advise("use a store that keeps object locks, or leave --lock out"));
        }
        let locked = settings.lock;
        let opened = keys.map(|keys| Encryption::of(&storage, Keys::from(keys.identity.clone())));
        let (storage, encryption) =
            opened.map_or((storage, None), |(sealed, it)| (sealed, Some(it)));
        let made = Self::at(storage, config.id, None).with_encryption(encryption);
        Ok(Self { locked, ..made })
    }

    /// Opens the repository in the folder `root`, or in an object store at `s3://BUCKET/PREFIX`. If its
    /// `qdelta.toml` is lost or damaged, and domains are there, it can be read all the same:
    /// [`Self::trouble`] says so.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the folder is missing or no repository: a backup disk that
    /// isn't mounted must not fill the disk below. [`ErrorKind::Damaged`] if its configuration
    /// makes no sense and nothing else is there, [`ErrorKind::Usage`] if a newer program made it.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, None)
    }

    /// Opens the repository in the folder `root` as [`Self::open`] does: an encrypted one by a key.
    ///
    /// # Errors
    /// As [`Self::open`]; [`ErrorKind::Key`] if it is encrypted, and the key is missing or another one;
    /// [`ErrorKind::Usage`] if there is a key, and the repository is not encrypted.
    pub fn open_with(root: &Path, key: Option<&KeyText>) -> Result<Self> {
        if S3::is_address(root) {
            return Self::open_in_with(Arc::new(S3::new(root)?), key).map_err(|error| match error
                .advice()
            {
                None if error.kind() == ErrorKind::NotFound => {
                    let shown = root.display();
                    Error::new(ErrorKind::NotFound, format!("{shown}: not a repository"))
                        .advise(format!("make a new repository: qdelta init {shown}"))
                }
                _ => error,
            });
        }
        let error = match Self::open_in_with(Arc::new(Local::new(root)), key) {
            Err(error) if !matches!(error.kind(), ErrorKind::Usage | ErrorKind::Key) => error,
            opened => return opened,
        };
        let what = match fs::metadata(root) {
            Ok(metadata) if !metadata.is_dir() => "not a folder",
            _ if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(_) => "not a repository",
            Err(_) => "no such folder",
        };
        let shown = root.display();
        Err(Error::new(ErrorKind::NotFound, format!("{shown}: {what}")).advise(format!(
            "mount the disk it is on, or make a new repository: qdelta init {shown}"
        )))
    }

    /// Opens the repository that was at an address in an object store at a moment, as [`Self::open_with`]
    /// does: as the versions tell that the store keeps. It can only be read.
    ///
    /// # Errors
    /// As [`Self::open_with`]; [`ErrorKind::Usage`] if it is a folder.
    pub fn open_as_of(root: &Path, key: Option<&KeyText>, at: Timestamp) -> Result<Self> {
        if !S3::is_address(root) {
            let text = format!("{} is a folder, and knows no earlier state", root.display());
            return Err(Error::new(ErrorKind::Usage, text)
                .advise("--as-of reads buckets of object stores that keep versions"));
        }
        let opened =
            Self::open_in_with(Arc::new(S3::as_of(root, at)?), key).map_err(|error| match error
                .kind()
            {
                ErrorKind::NotFound => error.within(format!("no repository was there at {at}")),
                _ => error,
            })?;
        Ok(Self { past: Some(at), ..opened })
    }

    /// Opens the repository in a storage, as [`Self::open`] does.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_in_with(storage, None)
    }

    /// Opens the repository in a storage, as [`Self::open_with`] does.
    ///
    /// # Errors
    /// As [`Self::open_with`].
    pub fn open_in_with(storage: Arc<dyn Storage>, key: Option<&KeyText>) -> Result<Self> {
        let config = match Config::read(&*storage) {
            Err(error) if error.kind() == ErrorKind::Usage => return Err(error),
            // A store that can't be reached has not lost anything.
            Err(error) if error.kind() == ErrorKind::Io && storage.fails_as_a_whole() => {
                return Err(error);
            }
            config => config,
        };
        let (storage, encryption) = unlock(storage, &config, key)?;
        let error = match config {
            Ok(config) => {
                let repository = Self::at(storage, config.id, None).with_encryption(encryption);
                return Ok(repository.with_lock(config.lock.as_deref()));
            }
            Err(error) => error,
        };
        let path = storage.describe(&Name::top().join(CONFIG));
        let trouble = match error.kind() {
            ErrorKind::NotFound if !holds_domains(&*storage) => return Err(error),
            ErrorKind::NotFound => {
                Error::new(ErrorKind::Damaged, format!("{} is lost", path.display()))
                    .advise(repair_advice(&*storage))
            }
            ErrorKind::Damaged => error.advise(repair_advice(&*storage)),
            _ => unreadable(error),
        };
        if !holds_domains(&*storage) {
            return Err(trouble);
        }
        let mut repository = Self::at(storage, String::new(), Some(trouble));
        repository.id = repository.known_id().unwrap_or_default();
        Ok(repository.with_encryption(encryption))
    }

    /// The wrapped keys of the encrypted repository at `root`, for which no key is needed; none if it is
    /// not encrypted.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn key_ring(root: &Path) -> Result<Option<KeyRing>> {
        let storage: Arc<dyn Storage> = match S3::is_address(root) {
            true => Arc::new(S3::new(root)?),
            false => Arc::new(Local::new(root)),
        };
        let recipient = Config::read(&*storage)?.recipient()?;
        Ok(recipient.map(|recipient| KeyRing::new(storage, Some(recipient))))
    }

    /// What is wrong with the repository's `qdelta.toml`, if anything is: then it can only be read.
    pub fn trouble(&self) -> Option<Error> {
        self.trouble.clone()
    }

    /// Fails unless the repository may be written to.
    pub(super) fn check_writable(&self) -> Result<()> {
        if let Some(at) = self.past {
            let text = format!("a repository as it was at {at} can only be read");
            return Err(Error::new(ErrorKind::Usage, text).advise("leave --as-of out"));
        }
        if let Some(error) = self.trouble() {
            return Err(error.within("nothing is written to this repository"));
        }
        match &self.encryption {
            Some(encryption) => encryption.check_writable(),
            None => Ok(()),
        }
    }

    /// Makes a lost or damaged `qdelta.toml` anew, with the settings that can still be understood. Nothing
    /// else is touched.
    ///
    /// # Errors
    /// As [`Self::open`]; it can't be written.
    pub fn repair(root: &Path) -> Result<(Self, Repair)> {
        Self::repair_with(root, None, None)
    }

    /// Makes a lost or damaged `qdelta.toml` anew as [`Self::repair`] does: of an encrypted repository by
    /// its identity or a host's key; with this period of locks, if it had one that can't be understood any more.
    ///
    /// # Errors
    /// As [`Self::repair`] and [`Self::open_with`]; [`ErrorKind::Usage`]: files are locked, and nobody says for
    /// how long new ones are to be.
    pub fn repair_with(
        root: &Path,
        key: Option<&KeyText>,
        lock: Option<Period>,
    ) -> Result<(Self, Repair)> {
        if S3::is_address(root) {
            return Self::repair_in(Arc::new(S3::new(root)?), key, lock);
        }
        Self::repair_in(Arc::new(Local::new(root)), key, lock)
    }

    fn repair_in(
        storage: Arc<dyn Storage>,
        key: Option<&KeyText>,
        lock: Option<Period>,
    ) -> Result<(Self, Repair)> {
        let config = Config::read(&*storage);
        let (storage, encryption) = match &config {
            Err(error) if error.kind() == ErrorKind::Usage => (storage, None),
            Err(error) if error.kind() == ErrorKind::Io && storage.fails_as_a_whole() => {
                return Err(error.clone());
            }
            _ => unlock(storage, &config, key)?,
        };
        match config {
            Ok(_) if lock.is_some() => {
                let text = format!("qdelta.toml of {} is sound", shown(&*storage));
                return Err(Error::new(ErrorKind::Usage, text).advise(
                    "for how long files are locked stands there as lock: change it there",
                ));
            }
            Ok(config) => {
                let sound = Self::at(storage, config.id, None).with_encryption(encryption);
                return Ok((sound.with_lock(config.lock.as_deref()), Repair::Sound));
            }
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::Damaged => {}
                ErrorKind::Usage => return Err(error),
                // Its settings may be as they were.
                _ => return Err(unreadable(error)),
            },
        }
        // Whose an encrypted one is, only what is there can tell.
        let is_there = encryption.is_none() && storage.entry(&Name::top().join(CONFIG))?.is_some();
        if !is_there && !holds_domains(&*storage) {
            let text = format!("{} holds no domain of a repository", shown(&*storage));
            return Err(Error::new(ErrorKind::NotFound, text)
                .advise("mount the disk it is on, or make a new repository in an empty folder"));
        }
        let mut repository = Self::at(storage, String::new(), None);
        let (id, repair) = match repository.known_id() {
            Some(id) => (id, Repair::SameId),
            None => (new_id()?, Repair::NewId),
        };
        if let Some(encryption) = &encryption {
            encryption.check_writable()?;
        }
        let config = Config::new(id, encryption.as_ref().map(Encryption::recipient))?;
        let mut settings = Settings::salvage(&settings::any_text(&*repository.storage));
        settings.lock = settings.lock.or(lock);
        match settings.lock {
            Some(period) => {
                check_period(period)?;
                // A copy in a folder may have had the same settings.
                let locks = repository.storage.lock_new_files(period);
                repository.locked = locks.is_ok().then_some(period);
                locks.or_else(|error| if lock.is_some() { Err(error) } else { Ok(()) })?;
            }
            None => repository.check_unlocked()?,
        }
        config.write(&settings, &*repository.storage, Publish::Replace)?;
        repository.id = config.id;
        Ok((repository.with_encryption(encryption), repair))
    }

    /// The id that most manifests say that their repository has. Somebody may have copied a domain here
    /// from another one.
    fn known_id(&self) -> Option<String> {
        let mut votes: BTreeMap<String, usize> = BTreeMap::new();
        for domain in self.domains().ok()? {
            let reading = DomainReading::new(self, &domain);
            for id in reading.good().filter_map(|manifest| manifest.repository.as_ref()) {
                *votes.entry(id.clone()).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(id, _)| id)
    }
}

/// What there is in a storage, as somebody sees it who has given this key.
fn unlock(
    storage: Arc<dyn Storage>,
    config: &Result<Config>,
    key: Option<&KeyText>,
) -> Result<(Arc<dyn Storage>, Option<Encryption>)> {
    let recipient = config.as_ref().map_or(Ok(None), Config::recipient)?;
    let is_encrypted = recipient.is_some() || (config.is_err() && keys::are_there(&*storage));
    let Some(key) = key else {
        return match is_encrypted {
            false => Ok((storage, None)),
            true => Err(Error::new(ErrorKind::Key, format!("{} is encrypted", shown(&*storage)))
                .because("no key was given")
                .advise("say --key-file FILE, or set QDELTA_KEY_FILE")),
        };
    };
    if config.is_err() && !is_encrypted && is_empty(&*storage) {
        // The disk is not mounted: no key is wrong there.
        return Ok((storage, None));
    }
    if is_encrypted || config.is_err() {
        // Without a configuration only what is there can say that the key is its own.
        let keys = KeyRing::new(Arc::clone(&storage), recipient).unlock(key)?;
        let (sealed, encryption) = Encryption::of(&storage, keys);
        return Ok((sealed, Some(encryption.by(key))));
    }
    // Whoever can write there could have put another repository in the place of an encrypted one.
    let text = format!("a key was given, and {} is not encrypted", shown(&*storage));
    Err(Error::new(ErrorKind::Usage, text).advise("leave the key out if that is as it should be"))
}

/// Whether nothing is in a storage that a repository could have left.
fn is_empty(storage: &dyn Storage) -> bool {
    let entries = storage.list(&Name::top()).unwrap_or_default();
    entries.iter().all(|entry| entry.name == "lost+found" || entry.kind == EntryKind::Staged)
}

/// A `qdelta.toml` that could not be read: nothing says that it is damaged, so it is not made anew.
fn unreadable(error: Error) -> Error {
    match error.advice() {
        Some(_) => error,
        None => error.advise(
            "see why it can't be read; if its disk has lost it, remove it and run qdelta init --repair",
        ),
    }
}

fn repair_advice(storage: &dyn Storage) -> String {
    format!(
        "what is there can still be restored; qdelta init --repair {} makes qdelta.toml anew",
        shown(storage)
    )
}

/// Whether a storage holds domains as a repository does: a folder with manifests, with archives, or
/// with a folder of manifests that can't be listed.
pub(super) fn holds_domains(storage: &dyn Storage) -> bool {
    let has = |folder: &Name, is_one: fn(&str) -> bool| match storage.list(folder) {
        Ok(entries) => entries.iter().any(|it| it.kind != EntryKind::Staged && is_one(&it.name)),
        Err(_) => storage.entry(folder).is_ok_and(|it| it.is_some_and(|it| it.may_be_folder())),
    };
    let is_domain = |entry: &Entry| {
        let domain = Name::top().join(&entry.name);
        entry.name.parse::<DomainName>().is_ok()
            && (has(&domain.join(POINTS), |name| manifest::parse_file_name(name).is_some())
                || storage.list(&domain).is_ok_and(|disks| {
                    let is_archive = |name: &str| manifest::parse_archive_name(name).is_some();
                    disks.iter().any(|disk| has(&domain.join(&disk.name), is_archive))
                }))
    };
    storage.list(&Name::top()).is_ok_and(|entries| entries.iter().any(is_domain))
}

/// Fails unless nothing that matters is in a storage that becomes a repository.
fn check_empty(storage: &dyn Storage) -> Result<()> {
    let entries = storage.list(&Name::top())?;
    let exists = |what| Error::new(ErrorKind::Exists, format!("{}: {what}", shown(storage)));
    let is_ours = |entry: &Entry| entry.kind == EntryKind::Staged && entry.name == CONFIG;
    let mut names = entries.iter().filter(|entry| !is_ours(entry)).map(|entry| &entry.name);
    if names.clone().any(|name| name == CONFIG) {
        let error = exists("is a repository already");
        return Err(match Config::read(storage) {
            Err(problem) if problem.kind() != ErrorKind::Usage && holds_domains(storage) => {
                error.because(problem.chain()).advise(repair_advice(storage))
            }
            _ => error,
        });
    }
    if holds_domains(storage) {
        return Err(
            exists("is a repository whose qdelta.toml is lost").advise(repair_advice(storage))
        );
    }
    if keys::are_there(storage) {
        return Err(exists("there are keys of an encrypted repository whose qdelta.toml is lost")
            .advise("an init was interrupted: remove the folder; or begin in another one"));
    }
    // A fresh filesystem may be mounted there; an init may have been killed there.
    if names.any(|name| name != "lost+found") {
        return Err(exists("the folder is not empty").advise("name a new folder inside it"));
    }
    Ok(())
}

/// 32 hexadecimal digits at random.
fn new_id() -> Result<String> {
    let bytes: [u8; 16] = random::bytes()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::archive::Kind;
    use crate::vault::repository::storage::faulty::{Fault, Faulty};
    use crate::vault::repository::tests::{back_up, disk, fresh};

    /// Whoever was not allowed to read `qdelta.toml` was told to make it anew, which would have cost
    /// the settings.
    #[test]
    fn only_what_is_lost_or_damaged_is_to_be_repaired() {
        let (_dir, repository) = fresh();
        back_up(&repository, &disk("vm/vda"), Kind::Full).unwrap();
        let root = repository.path().to_owned();
        let path = root.join(CONFIG);
        let advice = || {
            let trouble = Repository::open(&root).unwrap().trouble().unwrap();
            (trouble.kind(), trouble.advice().unwrap().to_owned())
        };
        fs::write(&path, "nonsense").unwrap();
        let (kind, text) = advice();
        assert!(kind == ErrorKind::Damaged && text.contains("makes qdelta.toml anew"), "{text}");
        fs::remove_file(&path).unwrap();
        let (kind, text) = advice();
        assert!(kind == ErrorKind::Damaged && text.contains("makes qdelta.toml anew"), "{text}");
        assert_eq!(Repository::repair(&root).unwrap().1, Repair::SameId);
        // The system refuses to read it.
        let refuses = || {
            let fault = Fault { works: false, kills: false };
            Arc::new(Faulty::new(Arc::new(Local::new(&root)), 0, fault))
        };
        let trouble = Repository::open_in(refuses()).unwrap().trouble().unwrap();
        assert_eq!(trouble.kind(), ErrorKind::Io);
        assert!(trouble.advice().unwrap().contains("see why it can't be read"), "{trouble:?}");
        let sound = fs::read(&path).unwrap();
        assert_eq!(Repository::repair_in(refuses(), None, None).unwrap_err().kind(), ErrorKind::Io);
        assert!(fs::read(&path).unwrap() == sound, "it was made anew");
    }
}
