//! An encrypted repository: another storage, in which every file is a file of age, under a name that
//! says nothing.
//!
//! Everything is encrypted to the repository's own recipient. Beside that, the header of each file has a
//! stanza with a code over the file's name and its key, under a secret that hosts have: anybody can encrypt a
//! file to a recipient, and nobody else can make this one, or give a file the name of another. age passes
//! over stanzas that it does not know.
//!
//! `qdelta.toml` and the files of locks are what they are in every repository.

mod keys;
mod known;
mod names;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Entry, EntryKind, Extended, LockMode, Locked, Name, Publish, Staged, Storage, Unpublished, Wait,
};
use jiff::Timestamp;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::disk::io::ReadAt;
use crate::formats::age::{Header, Payload, Stanza, base64, sealed_len};
use crate::vault::age::{
    Chunks, FileKey, For, Hmac, Identity, Opened, SealedReader, Sealer, open_bytes, opening_of,
    same,
};
use crate::vault::repository::config::CONFIG;
use crate::vault::repository::keys::KEYS;

pub use keys::{HostKey, KEY_TEXT_MAX, KeyText, Keys};
use known::Known;
use names::Names;

/// The stanza that says who has written a file, and under which name.
const STANZA: &str = "qdelta";

/// Length of the header of every file that is written here, in bytes: one stanza of X25519, and ours.
const HEADER_LEN: u64 = 223;

/// So many entries are told of at most whose names nobody has given.
const STRANGERS_MAX: usize = 1000;

/// A storage whose files are encrypted.
pub struct Sealed {
    inner: Arc<dyn Storage>,
    keys: Keys,
    names: Names,
    codes: Hmac,
    chunks: Arc<Chunks>,
    opened: AtomicU64,
    strangers: Mutex<BTreeSet<PathBuf>>,
    /// What this host knows of the files that it has written, if it can open none.
    known: Option<Arc<Known>>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("inner", &self.inner).field("keys", &self.keys).finish()
    }
}

impl Sealed {
    /// What is in `inner`, for somebody with these keys.
    pub fn new(inner: Arc<dyn Storage>, keys: Keys) -> Self {
        let secret = &keys.host.secret;
        Self {
            inner,
            names: Names::new(&secret.0),
            codes: Hmac::new(&Hmac::new(&secret.0).of(&[b"files"])),
            keys,
            chunks: Arc::default(),
            opened: AtomicU64::new(0),
            strangers: Mutex::default(),
            known: None,
        }
    }

    /// The same storage, for a host that keeps in `folder` what it knows of the files that it writes: for
    /// whoever can open none.
    #[must_use]
    pub fn with_known(mut self, folder: PathBuf) -> Self {
        self.known = self.keys.identity.is_none().then(|| Arc::new(Known::new(folder)));
        self
    }

    /// The key of a file, proved to be written by a host under this name.
    fn key_of(&self, name: &Name, header: &Header) -> Result<Opened> {
        let opened = Opened::by_identity(header, self.identity(name)?)?;
        if let Opened::Key(key) = &opened {
            self.prove(name, key, header)?;
        }
        Ok(opened)
    }

    /// What this host knows of a file that it can't open.
    fn known(&self, name: &Name) -> Result<Option<Arc<dyn ReadAt>>> {
        let Some(known) = &self.known else { return Ok(None) };
        Ok(known.open(name, &*self.inner.open(&self.sealed(name)?)?))
    }

    fn forget(&self, name: &Name) {
        self.known.iter().for_each(|known| known.forget(name));
    }

    /// Files with their lengths, as they are called and as long as they are in the storage that holds them.
    fn with_lens(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<(Name, Option<u64>)>> {
        let sealed = |(name, len): &(Name, Option<u64>)| {
            let len = match is_plain_file(name) {
                true => *len,
                false => len.map(|len| sealed_len(HEADER_LEN, len)),
            };
            Ok((self.sealed(name)?, len))
        };
        files.iter().map(sealed).collect()
    }

    /// What somebody has of the keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The storage that holds the encrypted files.
    pub fn inner(&self) -> &Arc<dyn Storage> {
        &self.inner
    }

    /// What a file or folder is called in the storage below.
    fn sealed(&self, name: &Name) -> Result<Name> {
        let (mut plain, mut sealed) = (Name::top(), Name::top());
        for part in name.as_str().split('/').filter(|part| !part.is_empty()) {
            sealed = match is_plain(&plain, part) {
                true => sealed.join(part),
                false => sealed.join(&self.names.seal(&plain, part).ok_or_else(|| {
                    let text = format!("{name} is too long a name for an encrypted repository");
                    Error::new(ErrorKind::Usage, text)
                })?),
            };
            plain = plain.join(part);
        }
        Ok(sealed)
    }

    /// What somebody who has the keys calls an entry of a folder; none if it is nothing of ours.
    fn shown(&self, folder: &Name, entry: Entry) -> Option<Entry> {
        if is_plain(folder, &entry.name) {
            return Some(entry);
        }
        let Some(name) = self.names.open(folder, &entry.name) else {
            self.notice(folder, &entry);
            return None;
        };
        Some(Entry { name, len: entry.len.map(plain_len), ..entry })
    }

    /// What `ask` tells of each of these names in a folder.
    fn of_each(
        &self,
        folder: &Name,
        names: &[&str],
        ask: impl FnOnce(&Name, &[&str]) -> Result<Vec<Option<Entry>>>,
    ) -> Result<Vec<Option<Entry>>> {
        let sealed = |name: &&str| Ok(self.sealed(&folder.join(name))?.last().to_owned());
        let all = names.iter().map(sealed).collect::<Result<Vec<String>>>()?;
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let entries = ask(&self.sealed(folder)?, &all)?;
        let shown = |entry: Entry| self.shown(folder, entry);
        Ok(entries.into_iter().map(|entry| entry.and_then(shown)).collect())
    }

    /// Remembers an entry of a folder whose name nobody has given who has the keys.
    fn notice(&self, folder: &Name, entry: &Entry) {
        // What was never published is no file of anybody's, and the folder of keys has no encrypted names.
        let is_known = folder.is_top() && matches!(entry.name.as_str(), KEYS | "lost+found");
        if is_known || entry.kind == EntryKind::Staged {
            return;
        }
        let Ok(folder) = self.sealed(folder) else { return };
        let mut all = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < STRANGERS_MAX {
            all.insert(self.inner.describe(&folder.join(&entry.name)));
        }
    }

    /// The code that proves who has written a file, and under which name.
    fn code(&self, name: &Name, key: &FileKey) -> [u8; 32] {
        self.codes.of(&[&key.0, name.as_str().as_bytes()])
    }

    /// Fails unless a file was written by a host, under this name.
    fn prove(&self, name: &Name, key: &FileKey, header: &Header) -> Result<()> {
        let ours = header.stanzas.iter().filter(|stanza| stanza.kind() == STANZA);
        let mut codes = ours.filter_map(Stanza::only_arg::<32>);
        let code = self.code(name, key);
        if codes.any(|found| same(&found, &code)) {
            return Ok(());
        }
        let path = self.describe(name);
        let text = format!("{} is not a file that was written under this name", path.display());
        let known = header.stanzas.iter().any(|stanza| stanza.kind() == STANZA);
        Err(Error::new(ErrorKind::Damaged, text)
            .because(match known {
                true => "it is another file of the repository, or one of another host key",
                false => "whoever wrote it has no key of a host",
            })
            .of_file(&path))
    }

    fn identity(&self, name: &Name) -> Result<&Identity> {
        self.keys.identity.as_ref().ok_or_else(|| {
            let text = format!("{} can't be opened", self.describe(name).display());
            Error::new(ErrorKind::Key, text)
                .because(match &self.known {
                    None => "a host's key opens no file",
                    Some(known) if known.has(name) => {
                        "somebody with the repository's key has changed it since this host wrote it (a pin, a \
                         prune, a merge), and a host's key opens no file"
                    }
                    Some(_) => {
                        "this host no longer has what it kept of it (in the folder of --state), and its key opens \
                         no file"
                    }
                })
                .advise("give the repository's identity: --key-file FILE")
        })
    }
}

/// Whether a part of a name in `folder` is not encrypted: the configuration, and files of locks.
fn is_plain(folder: &Name, part: &str) -> bool {
    part.starts_with('.') || (folder.is_top() && part == CONFIG)
}

/// Whether the whole name of a file is that of one that is not encrypted.
fn is_plain_file(name: &Name) -> bool {
    name.folder().is_none_or(|folder| is_plain(&folder, name.last()))
}

/// The length of the content of a file of this length; of one that was cut off, what comes nearest.
fn plain_len(sealed: u64) -> u64 {
    Payload::new(HEADER_LEN, sealed).map_or(0, |payload| payload.len())
}

/// The first bytes of what is known of a file.
fn whole(known: &dyn ReadAt, max: u64) -> Result<Vec<u8>> {
    let failed = |error| Error::io("read", known.path(), error);
    let mut bytes = vec![0; known.len().map_err(failed)?.min(max) as usize];
    known.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes)
}

impl Storage for Sealed {
    /// The file that there is: who looks for it finds it under that name.
    fn describe(&self, name: &Name) -> PathBuf {
        self.inner.describe(&self.sealed(name).unwrap_or_else(|_| name.clone()))
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        let entries = self.inner.list(&self.sealed(folder)?)?;
        Ok(entries.into_iter().filter_map(|entry| self.shown(folder, entry)).collect())
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let entry = self.inner.entry(&self.sealed(name)?)?;
        let len = |len| if is_plain_file(name) { len } else { plain_len(len) };
        let shown =
            |entry: Entry| Entry { name: name.last().to_owned(), len: entry.len.map(len), ..entry };
        Ok(entry.map(shown))
    }

    fn entries(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        self.of_each(folder, names, |folder, names| self.inner.entries(folder, names))
    }

    fn ask_for(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        self.of_each(folder, names, |folder, names| self.inner.ask_for(folder, names))
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        if is_plain_file(name) {
            return self.inner.read(name, max);
        }
        if let Some(known) = self.known(name)? {
            return whole(&*known, max);
        }
        let path = self.describe(name);
        let bytes = self.inner.read(&self.sealed(name)?, sealed_len(HEADER_LEN, max))?;
        open_bytes(&bytes, &path, |header| self.key_of(name, header))?.ok_or_else(|| {
            let text = format!("{} is encrypted to somebody else", path.display());
            Error::new(ErrorKind::Damaged, text).of_file(&path)
        })
    }

    fn read_own(&self, name: &Name, max: u64) -> Option<Vec<u8>> {
        let (known, ..) = self.known.as_ref()?.last(name, &self.describe(name))?;
        whole(&known, max).ok()
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        let inner = self.inner.open(&self.sealed(name)?)?;
        if is_plain_file(name) {
            return Ok(inner);
        }
        if let Some(known) = self.known(name)? {
            return Ok(known);
        }
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let key = |header: &Header| self.key_of(name, header);
        let file = SealedReader::open(inner, &self.chunks, number, key)?;
        Ok(Arc::new(file))
    }

    fn open_damaged(&self, name: &Name, opening: Option<&[u8]>) -> Result<Arc<dyn ReadAt>> {
        if is_plain_file(name) || self.keys.identity.is_none() {
            return self.open(name);
        }
        let inner = self.inner.open_damaged(&self.sealed(name)?, None)?;
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let key = |header: &Header| self.key_of(name, header);
        let file = SealedReader::open_damaged(inner, &self.chunks, number, opening, key)?;
        Ok(Arc::new(file))
    }

    fn opening_of(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        if is_plain_file(name) {
            return Ok(None);
        }
        opening_of(&*self.inner.open(&self.sealed(name)?)?).map(Some)
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        let inner = self.inner.stage(&self.sealed(name)?)?;
        if is_plain_file(name) {
            return Ok(inner);
        }
        let mut of_file = None;
        let more = |key: &FileKey| {
            of_file = self.known.is_some().then(|| key.clone());
            Some(Stanza::new(STANZA, &[&base64::encode(&self.code(name, key))], &[]))
        };
        let sealer = Sealer::new(inner, For::Recipient(&self.keys.host.recipient), more)?;
        let keep = self.known.clone().zip(of_file).map(|(known, key)| Keep {
            known,
            key,
            name: name.clone(),
            sealed: self.sealed(name),
            storage: Arc::clone(&self.inner),
        });
        Ok(Box::new(SealedStaged { sealer, path: self.describe(name), keep }))
    }

    fn discard(&self, name: &Name) -> Result<()> {
        self.inner.discard(&self.sealed(name)?)
    }

    fn remove(&self, name: &Name) -> Result<()> {
        self.forget(name);
        self.inner.remove(&self.sealed(name)?)
    }

    fn remove_own(&self, name: &Name) -> Result<()> {
        self.forget(name);
        self.inner.remove_own(&self.sealed(name)?)
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        files.iter().for_each(|file| self.forget(&folder.join(file)));
        let sealed = |file: &String| Ok(self.sealed(&folder.join(file))?.last().to_owned());
        let files = files.iter().map(sealed).collect::<Result<Vec<String>>>()?;
        self.inner.remove_all(&self.sealed(folder)?, &files)
    }

    fn lock(&self, name: &Name, mode: LockMode, wait: Wait<'_>) -> Result<Locked> {
        self.inner.lock(&self.sealed(name)?, mode, wait)
    }

    fn prepare_lock(&self, name: &Name) {
        if let Ok(name) = self.sealed(name) {
            self.inner.prepare_lock(&name);
        }
    }

    fn expect(&self, names: &[Name]) {
        let sealed = names.iter().filter_map(|name| self.sealed(name).ok());
        self.inner.expect(&sealed.collect::<Vec<_>>());
    }

    fn distrust_copies(&self) {
        self.inner.distrust_copies();
    }

    fn strangers(&self) -> Vec<PathBuf> {
        let all = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().cloned().collect()
    }

    fn plain_name(&self, path: &Path) -> Option<String> {
        // What the top is called need not be what names of files begin with: options of an address.
        let beside = self.inner.describe(&Name::top().join("-"));
        let below = path.strip_prefix(beside.parent()?).ok()?;
        let mut name = Name::top();
        for part in below.iter() {
            let part = part.to_str()?;
            name = match is_plain(&name, part) {
                true => name.join(part),
                false => name.join(&self.names.open(&name, part)?),
            };
        }
        (!name.is_top()).then(|| name.as_str().to_owned())
    }

    fn may_fold_case(&self) -> bool {
        self.inner.may_fold_case()
    }

    fn lock_new_files(&self, period: Period) -> Result<()> {
        self.inner.lock_new_files(period)
    }

    fn extend_locks(
        &self,
        names: &[Name],
        until: Timestamp,
        enough: Timestamp,
    ) -> Result<Vec<Extended>> {
        let names = names.iter().map(|name| self.sealed(name)).collect::<Result<Vec<_>>>()?;
        self.inner.extend_locks(&names, until, enough)
    }

    fn locked_until(&self, names: &[Name]) -> Result<Vec<Option<Timestamp>>> {
        let names = names.iter().map(|name| self.sealed(name)).collect::<Result<Vec<_>>>()?;
        self.inner.locked_until(&names)
    }

    fn locks_of(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<Option<Timestamp>>> {
        self.inner.locks_of(&self.with_lens(files)?)
    }

    fn written_over(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<bool>> {
        self.inner.written_over(&self.with_lens(files)?)
    }

    fn now(&self) -> Result<Timestamp> {
        self.inner.now()
    }

    fn lists_may_lag(&self) -> bool {
        self.inner.lists_may_lag()
    }

    fn fails_as_a_whole(&self) -> bool {
        self.inner.fails_as_a_whole()
    }

    fn looks_max(&self) -> u32 {
        self.inner.looks_max()
    }

    fn bytes_free(&self) -> Option<u64> {
        self.inner.bytes_free()
    }

    fn bytes_whole(&self) -> Option<u64> {
        self.inner.bytes_whole()
    }
}

/// A file that is being encrypted.
#[derive(Debug)]
struct SealedStaged {
    sealer: Sealer<Box<dyn Staged>>,
    path: PathBuf,
    keep: Option<Keep>,
}

/// What it takes to read a file again that was just written, by whoever can open none.
#[derive(Debug)]
struct Keep {
    known: Arc<Known>,
    key: FileKey,
    name: Name,
    sealed: Result<Name>,
    storage: Arc<dyn Storage>,
}

impl Keep {
    /// Keeps what the next backup needs. Without it the next one is a full, and says so.
    fn keep(self) -> Result<()> {
        let sealed = self.storage.open(&self.sealed?)?;
        let key = |_: &Header| Ok(Opened::Key(self.key));
        let plain = SealedReader::open(Arc::clone(&sealed), &Arc::default(), 0, key)?;
        let plain: Arc<dyn ReadAt> = Arc::new(plain);
        self.known.keep(&self.name, &*sealed, &plain)
    }
}

impl Write for SealedStaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sealer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sealer.flush()
    }
}

impl Staged for SealedStaged {
    fn seal(&mut self) -> Result<()> {
        self.sealer.finish().map_err(|error| Error::io("write", &self.path, error))?;
        self.sealer.sink().seal()
    }

    fn announce(&mut self) -> Result<()> {
        self.sealer.sink().announce()
    }

    fn opening(&self) -> Option<Vec<u8>> {
        Some(self.sealer.opening().to_vec())
    }

    fn publish(&mut self, how: Publish) -> Result<(), Unpublished> {
        self.sealer.sink().publish(how)?;
        if let Some(Err(error)) = self.keep.take().map(Keep::keep) {
            tracing::debug!("nothing is kept of {}: {}", self.path.display(), error.chain());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
