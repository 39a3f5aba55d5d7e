//! A bucket of an object store that speaks S3, or a prefix in it.
//!
//! A name of the repository is a key. There are no folders: a folder is what keys have in common, and is
//! there as long as one of them is. A large file is staged as an upload that nobody has completed; a
//! small one stays in memory until it is published, and lies under another name meanwhile if it is
//! announced. Publishing is one request, which the store does as a whole or not at all, and refuses if
//! another file has the name (`If-None-Match`).
//!
//! Locks are objects with a lease: [`lease`] says what they promise. Whoever holds one alone is the only
//! one who changes the folder that it is in. So that folder is listed once, as a whole, and every question
//! about it is answered from that list until the lock ends.

mod address;
mod cache;
mod client;
mod clocks;
mod credentials;
mod failure;
mod holder;
mod lease;
mod listing;
mod object;
mod past;
mod probe;
mod profile;
mod retain;
mod sign;
mod upload;
mod xml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::{Entry, EntryKind, Extended, LockMode, Locked, Name, Staged, Storage, Wait};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::disk::io::ReadAt;
use address::{Place, SCHEME, Typed};
use cache::Cache;
use client::{Answer, Ask, Client};
use credentials::{Credentials, Environment};
use failure::Failure;
use lease::{Fence, Lease};
use listing::{Listing, Seen, staged_name};
use past::Past;
use profile::Profile;

/// The most keys that one request removes.
const DELETE_MAX: usize = 1000;
/// The longest answer to such a request that makes sense, in bytes.
const DELETE_ANSWER_MAX: u64 = 4 << 20;
/// So many names are looked at one by one; the folder of more is listed.
const LOOKS_MAX: usize = 2;

/// A variable of this process.
fn variable(name: &str) -> Option<String> {
    at_home(name, std::env::var(name).ok(), rustix::process::geteuid().is_root())
}

/// systemd gives a service of root's no `HOME`, and root's files are meant all the same.
fn at_home(name: &str, value: Option<String>, is_root: bool) -> Option<String> {
    value.or_else(|| (is_root && name == "HOME").then(|| "/root".to_owned()))
}

/// A repository in an object store. All clones are the same storage.
#[derive(Debug, Clone)]
pub struct S3(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    cache: Cache,
    /// For how long what is written is locked.
    lock: Mutex<Option<Period>>,
    /// Nothing is taken from the cache that was not read by this process for this very purpose.
    is_distrusted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The leases of the locks that are held alone, by the prefix of the folder that each is in.
    held: BTreeMap<String, Arc<Lease>>,
    /// What is in those folders, once somebody asked.
    listings: BTreeMap<String, Listing>,
    /// What was last read of an object: whoever replaces it must know the one that is there.
    read: BTreeMap<String, String>,
    /// What was last seen of an object in a list.
    seen: BTreeMap<String, Seen>,
    /// What was about to be opened when somebody looked at it last, and lies in the cache.
    fresh: BTreeSet<String>,
    /// What this process made that was not there before.
    made: BTreeSet<String>,
    /// Which small files were read one after the other.
    walk: Walk,
    /// Whose locks this process left: they could not be removed, or nobody knows whether they were written.
    left: BTreeSet<String>,
    /// By the prefix of a folder that is held alone: what is removed together with its lock.
    litter: BTreeMap<String, Vec<String>>,
}

/// Files of a folder that are read in the order of their names, as the manifests of a chain are.
#[derive(Debug, Default)]
struct Walk {
    last: String,
    steps: u32,
}

impl S3 {
    /// Whether a path is the address of a bucket.
    pub fn is_address(path: &Path) -> bool {
        let bytes = path.as_os_str().as_encoded_bytes();
        // In capitals, too: nobody means a folder by that.
        bytes.get(..SCHEME.len()).is_some_and(|it| it.eq_ignore_ascii_case(SCHEME.as_bytes()))
    }

    /// The storage at an address: `s3://BUCKET/PREFIX`, with options behind a question mark. What the
    /// address does not say, the environment and the files in `~/.aws` do, as for every S3 tool.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the address makes no sense; a file that it needs can't be read.
    pub fn new(address: &Path) -> Result<Self> {
        Self::with(address, variable)
    }

    /// What was at an address at a moment, as far as the store keeps versions. It can only be read.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn as_of(address: &Path, at: Timestamp) -> Result<Self> {
        Self::made(address, Arc::new(variable), Some(Past::new(at)))
    }

    /// The storage at an address, with other variables than those of this process.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(
        address: &Path,
        environment: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::made(address, Arc::new(environment), None)
    }

    /// The same, whose locks hold for so long, if nobody uses it yet: an address may not say so little.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn with_lease(mut self, lease: std::time::Duration) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            shared.client.address.lease = lease;
        }
        self
    }

    fn made(address: &Path, environment: Environment, past: Option<Past>) -> Result<Self> {
        let text = address.to_str().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{}: no text", address.display()))
        })?;
        let typed = Typed::parse(text)?;
        let name = typed.profile(&*environment);
        let profile = Profile::read(&*environment, &name)?;
        let address = typed.resolve(&*environment, &profile)?;
        let folder = match &address.cache {
            Place::Usual => Cache::usual(&*environment, rustix::process::geteuid().is_root()),
            Place::None => None,
            Place::Folder(folder) => Some(folder.clone()),
        };
        let cache = Cache::new(folder, format!("{} {}", address.base, address.bucket));
        let credentials = Credentials::new(environment, name, address.region.clone());
        let client = Client::new(address, credentials, past)?;
        let (is_distrusted, state) = (AtomicBool::new(false), Mutex::default());
        let lock = Mutex::default();
        Ok(Self(Arc::new(Shared { client, cache, lock, is_distrusted, state })))
    }
}

impl State {
    /// Takes a list of all that is below a prefix.
    fn learn(&mut self, listing: Listing, prefix: &str) {
        for (key, seen) in &listing.objects {
            self.seen.insert(key.clone(), seen.clone());
        }
        self.listings.insert(prefix.to_owned(), listing);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a file.
    fn key(&self, name: &Name) -> String {
        format!("{}{name}", self.client.address.prefix)
    }

    /// What the keys in a folder begin with.
    fn prefix(&self, folder: &Name) -> String {
        match folder.is_top() {
            true => self.client.address.prefix.clone(),
            false => format!("{}{folder}/", self.client.address.prefix),
        }
    }

    fn shown(&self, key: &str) -> String {
        self.client.address.shown(key)
    }

    fn missing(&self, what: &str, key: &str) -> Error {
        Error::new(ErrorKind::NotFound, format!("cannot {what} {}", self.shown(key)))
            .because("there is no such object")
    }

    /// Until when a key may be changed by whoever holds its folder alone; none if this process holds no lock there.
    fn fence(&self, key: &str) -> Result<Option<Fence>> {
        let lease = {
            let state = self.state();
            let around = state.held.iter().find(|(prefix, _)| key.starts_with(*prefix));
            around.map(|(_, lease)| Arc::clone(lease))
        };
        let Some(lease) = lease else { return Ok(None) };
        Ok(Some(Fence { until: lease.fence(&self.client)?, lease }))
    }

    /// Makes a change, within a fence if there is one. One that came too late is made once more, if the lock is still ours:
    /// clocks differ, or it was on its way for long.
    fn change<T>(
        &self,
        fence: Option<&Fence>,
        ask: Ask<'_>,
        make: impl Fn(&Ask<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(fence) = fence else { return make(&ask) };
        let ask = ask.until(Some(fence.until));
        let late = match make(&ask) {
            Err(failure) if failure.is_late() => failure,
            made => return made,
        };
        match fence.lease.renewed(&self.client) {
            Ok(until) => make(&ask.until(Some(until))),
            // It was not done.
            Err(_) => Err(late),
        }
    }

    /// Answers a question about a key, or about what keys begin with, from the list of a folder that this
    /// process holds alone; none if it holds none that the key is in.
    fn known<T>(&self, key: &str, answer: impl FnOnce(&Listing) -> T) -> Result<Option<T>> {
        self.learned(key, false, answer)
    }

    /// As [`Self::known`], from a list that was asked for together with that of the uploads, where it was not known.
    fn learned<T>(
        &self,
        key: &str,
        with_uploads: bool,
        answer: impl FnOnce(&Listing) -> T,
    ) -> Result<Option<T>> {
        let mut state = self.state();
        let around = state.held.keys().find(|prefix| key.starts_with(*prefix)).cloned();
        let Some(prefix) = around else { return Ok(None) };
        if !state.listings.contains_key(&prefix) {
            let listing = match with_uploads {
                true => self.list_with_uploads(&prefix)?,
                false => listing::objects(&self.client, &prefix, true)?,
            };
            if let Some(lease) = state.held.get(&prefix)
                && let Some(own) = listing.objects.get(lease.key())
            {
                lease.compare_clocks(&self.client, own);
            }
            state.learn(listing, &prefix);
        }
        let Some(listing) = state.listings.get(&prefix) else { return Ok(None) };
        Ok(Some(answer(listing)))
    }

    /// Lists all that is in a folder, and asks for the uploads in it at the same time: each is a way to the store.
    fn list_with_uploads(&self, prefix: &str) -> Result<Listing> {
        std::thread::scope(|scope| {
            let uploads = scope.spawn(|| listing::uploads(&self.client, prefix));
            let listing = listing::objects(&self.client, prefix, true);
            let panicked =
                |_| Error::new(ErrorKind::Io, "the thread that lists uploads has panicked");
            let uploads = uploads.join().map_err(panicked)??;
            Ok(Listing { uploads, has_uploads: true, ..listing? })
        })
    }

    /// Has the list of a folder that this process holds alone, and of the uploads in it that nobody has completed.
    fn learn_uploads(&self, key: &str) -> Result<()> {
        self.learned(key, true, |_| ())?;
        let mut state = self.state();
        let around = state.listings.iter_mut().find(|(prefix, _)| key.starts_with(*prefix));
        if let Some((prefix, listing)) = around
            && !listing.has_uploads
        {
            listing.uploads = listing::uploads(&self.client, prefix)?;
            listing.has_uploads = true;
        }
        Ok(())
    }

    /// Lists a folder, and remembers what was seen in it.
    fn look_in(&self, prefix: &str) -> Result<Listing> {
        let listing = listing::objects(&self.client, prefix, false)?;
        let mut state = self.state();
        for (key, seen) in &listing.objects {
            state.seen.insert(key.clone(), seen.clone());
        }
        Ok(listing)
    }

    /// Removes an object when the lock of its folder ends; now, where none is held.
    fn delete_later(&self, key: &str) -> Result<()> {
        let mut state = self.state();
        let around = state.held.keys().find(|prefix| key.starts_with(*prefix)).cloned();
        let Some(prefix) = around else {
            drop(state);
            return self.delete(key);
        };
        state.litter.entry(prefix).or_default().push(key.to_owned());
        drop(state);
        self.note(key, |listing| {
            listing.objects.remove(key);
        });
        Ok(())
    }

    /// Changes what is known of a folder that this process holds alone; whether it holds one that the
    /// key is in. What was known of the key is forgotten.
    fn note(&self, key: &str, change: impl FnOnce(&mut Listing)) -> bool {
        let mut state = self.state();
        state.read.remove(key);
        state.seen.remove(key);
        let around = state.listings.iter_mut().find(|(prefix, _)| key.starts_with(*prefix));
        around.map(|(_, listing)| change(listing)).is_some()
    }

    /// What the store says of a version of an object, of the newest one if none is named.
    fn head(&self, key: &str, version: Option<&str>) -> Result<Answer, Failure> {
        let ask = |method| {
            let ask = Ask::new(method, key);
            match version {
                Some(version) => ask.query("versionId", version),
                None => ask,
            }
        };
        let first_byte = ask("GET").header("range", "bytes=0-0").at_most(DELETE_ANSWER_MAX);
        match self.client.send(&ask("HEAD")) {
            // Such an answer has no words: a balancer whose backend is gone gives the same one. Of an answer with words it
            // is known that the store gives it.
            Err(failure) if failure.is_missing() => match self.client.send(&first_byte) {
                Err(failure) if failure.is_missing() => Err(failure),
                _ => self.client.send(&ask("HEAD")),
            },
            answer => answer,
        }
    }

    /// An object, if there is one.
    fn look(&self, key: &str) -> Result<Option<Seen>> {
        let answer = match self.head(key, None) {
            Err(failure) if failure.is_missing() => return Ok(None),
            answer => answer.map_err(|it| it.into_error("look at", &self.shown(key)))?,
        };
        let len = answer.header("content-length").and_then(|it| it.parse().ok());
        let whole = len.zip(answer.etag());
        let (len, etag) = whole.ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("cannot look at {}", self.shown(key)))
                .because("the store says neither its length nor its ETag")
        })?;
        let modified = answer.header("last-modified").and_then(clocks::time);
        Ok(Some(Seen { len, etag, modified }))
    }

    /// Removes an object, if there is one.
    fn delete(&self, key: &str) -> Result<()> {
        self.delete_all(&[key.to_owned()], self.fence(key)?.as_ref())
    }

    /// Removes objects, of which each may be there or not; at most [`DELETE_MAX`] at once.
    fn delete_all(&self, keys: &[String], fence: Option<&Fence>) -> Result<()> {
        if let [key] = keys {
            let ask = Ask::new("DELETE", key).at_most(DELETE_ANSWER_MAX);
            let sent = self.change(fence, ask, |ask| self.client.send(ask)).map(drop);
            sent.or_else(|it| if it.is_missing() { Ok(()) } else { Err(it) })
                .map_err(|it| it.into_error("remove", &self.shown(key)))?;
            self.note(key, |listing| drop(listing.objects.remove(key)));
            return Ok(());
        }
        let body = xml::deletion(keys.iter().map(String::as_str));
        let ask = Ask::new("POST", "")
            .query("delete", "")
            .header("content-md5", upload::md5(body.as_bytes())?)
            .body(body.as_bytes())
            .at_most(DELETE_ANSWER_MAX);
        let shown = keys.first().map(|first| self.shown(first)).unwrap_or_default();
        let failed = |it: Failure| it.into_error("remove", &shown);
        let sent = self.change(fence, ask, |ask| self.client.parsed(ask, xml::undeleted));
        let (_, undeleted) = sent.map_err(failed)?;
        let is_left = |key: &String| undeleted.iter().any(|(left, _)| left == key);
        for key in keys.iter().filter(|key| !is_left(key)) {
            self.note(key, |listing| drop(listing.objects.remove(key)));
        }
        let Some((key, refusal)) = undeleted.first() else { return Ok(()) };
        let why = format!("{}: {}", refusal.code, refusal.message);
        let text = format!("cannot remove {}", self.shown(key));
        Err(Error::new(ErrorKind::Io, text).because(why))
    }

    /// Ends an upload that nobody completes: its parts are gone.
    fn abort(&self, key: &str, id: &str) -> Result<()> {
        let ask = Ask::new("DELETE", key).query("uploadId", id).at_most(DELETE_ANSWER_MAX);
        match self.client.send(&ask) {
            Err(failure) if failure.is_missing() => Ok(()),
            sent => {
                sent.map(drop).map_err(|it| it.into_error("end the upload to", &self.shown(key)))
            }
        }
    }

    /// The key under which a small file lies until it is published.
    fn staged_key(&self, name: &Name) -> String {
        let folder = name.folder().unwrap_or_else(Name::top);
        format!("{}{}", self.prefix(&folder), staged_name(name.last()))
    }
}

/// What has a name: a store lets a file and a folder have the same one, and neither hides the other.
fn either(file: Option<Entry>, folder: Option<Entry>) -> Option<Entry> {
    match (file, folder) {
        (Some(file), Some(_)) => Some(Entry { kind: EntryKind::Unknown, version: None, ..file }),
        (file, folder) => file.or(folder),
    }
}

/// An object as an entry of its folder.
fn file_entry(name: &Name, seen: &Seen) -> Entry {
    Entry {
        name: name.last().to_owned(),
        kind: EntryKind::File,
        len: Some(seen.len),
        version: Some(seen.etag.clone()),
    }
}

fn folder_entry(name: &Name, version: Option<String>) -> Entry {
    Entry { name: name.last().to_owned(), kind: EntryKind::Folder, len: None, version }
}

impl Storage for S3 {
    fn describe(&self, name: &Name) -> PathBuf {
        match name.is_top() {
            true => PathBuf::from(&self.0.client.address.text),
            false => PathBuf::from(self.0.shown(&self.0.key(name))),
        }
    }

    fn list(&self, folder: &Name) -> Result<Vec<Entry>> {
        let prefix = self.0.prefix(folder);
        self.0.learn_uploads(&prefix)?;
        let found = match self.0.known(&prefix, |listing| listing.folder(&prefix))? {
            Some(found) => found,
            None => self.0.look_in(&prefix)?.folder(&prefix),
        };
        match found {
            Some(found) => Ok(found),
            None if folder.is_top() => Ok(Vec::new()),
            None => Err(self.0.missing("list", &prefix)),
        }
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let (key, prefix) = (self.0.key(name), self.0.prefix(name));
        // Of the folder itself that is held the list is known as well.
        let known = self.0.known(&prefix, |listing| {
            let is_folder = listing.folder(&prefix).is_some();
            let folder = is_folder.then(|| folder_entry(name, Some(listing.version(&prefix))));
            either(listing.objects.get(&key).map(|seen| file_entry(name, seen)), folder)
        })?;
        if let Some(known) = known {
            return Ok(known);
        }
        if name.is_top() {
            return Ok(Some(folder_entry(name, None)));
        }
        // The file of this name, and what else begins so: among others what is in a folder of this name.
        let listing = self.0.look_in(&key)?;
        let folder = listing.prefixes.contains(&prefix).then(|| folder_entry(name, None));
        Ok(either(listing.objects.get(&key).map(|seen| file_entry(name, seen)), folder))
    }

    fn entries(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        let prefix = self.0.prefix(folder);
        let look = |listing: &Listing| -> Vec<Option<Entry>> {
            let one = |name: &&str| {
                let name = folder.join(name);
                listing.objects.get(&self.0.key(&name)).map(|seen| file_entry(&name, seen))
            };
            names.iter().map(one).collect()
        };
        if let Some(known) = self.0.known(&prefix, look)? {
            return Ok(known);
        }
        if names.len() <= LOOKS_MAX {
            return names.iter().map(|name| self.entry(&folder.join(name))).collect();
        }
        Ok(look(&self.0.look_in(&prefix)?))
    }

    fn ask_for(&self, folder: &Name, names: &[&str]) -> Result<Vec<Option<Entry>>> {
        // What was is told by the list of all versions alone.
        if self.0.client.past.is_some() {
            return self.entries(folder, names);
        }
        let found = retain::at_once(names, |name| {
            let name = folder.join(name);
            let seen = self.0.look(&self.0.key(&name))?;
            Ok(seen.map(|seen| file_entry(&name, &seen)))
        });
        found.into_iter().collect()
    }

    fn read(&self, name: &Name, max: u64) -> Result<Vec<u8>> {
        object::read(&self.0, &self.0.key(name), max)
    }

    fn open(&self, name: &Name) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(object::Object::open(&self.0, self.0.key(name))?))
    }

    fn stage(&self, name: &Name) -> Result<Box<dyn Staged>> {
        Ok(Box::new(upload::Upload::begin(&self.0, name)?))
    }

    fn discard(&self, name: &Name) -> Result<()> {
        let (key, staged) = (self.0.key(name), self.0.staged_key(name));
        self.0.learn_uploads(&key)?;
        let known = self.0.known(&key, |listing| {
            (listing.uploads.get(&key).cloned(), listing.objects.contains_key(&staged))
        })?;
        let (uploads, is_announced) = match known {
            Some(known) => known,
            None => {
                let found = listing::uploads(&self.0.client, &key)?.remove(&key);
                (found, self.0.look(&staged)?.is_some())
            }
        };
        if uploads.is_none() && !is_announced {
            return Err(self.0.missing("remove", &staged));
        }
        for id in uploads.into_iter().flatten() {
            self.0.abort(&key, &id)?;
        }
        self.0.note(&key, |listing| {
            listing.uploads.remove(&key);
        });
        if is_announced {
            self.0.delete(&staged)?;
        }
        Ok(())
    }

    fn remove(&self, name: &Name) -> Result<()> {
        let key = self.0.key(name);
        if self.entry(name)?.is_none() {
            return Err(self.0.missing("remove", &key));
        }
        self.0.delete(&key)
    }

    fn remove_own(&self, name: &Name) -> Result<()> {
        let key = self.0.key(name);
        // Without a lock nothing ends with it.
        let fence = self.0.fence(&key).unwrap_or_default();
        self.0.delete_all(std::slice::from_ref(&key), fence.as_ref())
    }

    fn remove_all(&self, folder: &Name, files: &[String]) -> Result<u64> {
        let prefix = self.0.prefix(folder);
        let seen = |listing: &Listing| -> Vec<String> {
            let keys = files.iter().map(|file| self.0.key(&folder.join(file)));
            keys.filter(|key| listing.objects.contains_key(key)).collect()
        };
        let keys = match self.0.known(&prefix, seen)? {
            Some(keys) => keys,
            None => seen(&self.0.look_in(&prefix)?),
        };
        for keys in keys.chunks(DELETE_MAX) {
            let Some(first) = keys.first() else { continue };
            self.0.delete_all(keys, self.0.fence(first)?.as_ref())?;
        }
        Ok(keys.len() as u64)
    }

    fn lock(&self, name: &Name, mode: LockMode, wait: Wait<'_>) -> Result<Locked> {
        if let Some(cancel) = wait.cancel() {
            self.0.client.heed(cancel);
        }
        match mode {
            LockMode::Exclusive => lease::take_alone(&self.0, name, wait),
            LockMode::Shared => lease::share(&self.0, name, wait),
        }
    }

    fn expect(&self, names: &[Name]) {
        let keys = names.iter().map(|name| self.0.key(name)).collect();
        object::fetch(&self.0, keys);
    }

    fn distrust_copies(&self) {
        self.0.is_distrusted.store(true, Ordering::Relaxed);
    }

    fn may_fold_case(&self) -> bool {
        false
    }

    fn lock_new_files(&self, period: Period) -> Result<()> {
        *self.0.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(period);
        Ok(())
    }

    fn extend_locks(
        &self,
        names: &[Name],
        until: Timestamp,
        enough: Timestamp,
    ) -> Result<Vec<Extended>> {
        let keys: Vec<String> = names.iter().map(|name| self.0.key(name)).collect();
        self.0.extend_all(&keys, until, enough)
    }

    fn locked_until(&self, names: &[Name]) -> Result<Vec<Option<Timestamp>>> {
        let keys: Vec<String> = names.iter().map(|name| self.0.key(name)).collect();
        self.0.all_locked_until(&keys)
    }

    fn locks_of(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<Option<Timestamp>>> {
        let files: Vec<_> = files.iter().map(|(name, len)| (self.0.key(name), *len)).collect();
        self.0.all_locks(&files)
    }

    fn written_over(&self, files: &[(Name, Option<u64>)]) -> Result<Vec<bool>> {
        let files: Vec<_> = files.iter().map(|(name, len)| (self.0.key(name), *len)).collect();
        self.0.all_written_over(&files)
    }

    fn now(&self) -> Result<Timestamp> {
        self.0.client.clocks.object_time()
    }

    fn lists_may_lag(&self) -> bool {
        true
    }

    fn fails_as_a_whole(&self) -> bool {
        true
    }

    fn looks_max(&self) -> u32 {
        // A list costs as much as one look, and tells of all.
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys in `~/.aws/credentials` opened a repository for root at a terminal, and not for the nightly service.
    #[test]
    fn root_has_a_home_without_a_variable() {
        assert_eq!(at_home("HOME", None, true).as_deref(), Some("/root"));
        assert_eq!(at_home("HOME", Some("/h".to_owned()), true).as_deref(), Some("/h"));
        assert_eq!(at_home("HOME", None, false), None);
        assert_eq!(at_home("AWS_PROFILE", None, true), None);
    }
}
