//! Small things that were read from a store before: manifests, and the ends of archives.
//!
//! Everything here is a copy, called after the store, the key and the ETag of what it was copied from: what has changed
//! in the store has another ETag, and is read again. Each file begins with a digest of its name and its
//! content, so one that was damaged or put in another's place is not believed. The folder can be removed at any time.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::files::make_private_folder;
use crate::disk::io::Opener;

/// How many bytes lie in the folder at most.
const FOLDER_LEN_MAX: u64 = 256 << 20;
/// How many bytes are in memory at most.
const MEMORY_LEN_MAX: usize = 64 << 20;
/// The longest thing that is kept, in bytes.
const LEN_MAX: u64 = 1 << 20;
/// After so many new files the folder is looked at.
const TRIM_EVERY: u64 = 256;
/// A name in the folder.
const NAME_LEN: usize = 40;
/// Only whoever makes backups reads what they hold.
const MODE: u32 = 0o600;

/// A cache of what lies in one bucket.
#[derive(Debug)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
    /// What stands before every key: the store and the bucket.
    place: String,
    memory: Mutex<Memory>,
    written: AtomicU64,
}

#[derive(Debug, Default)]
struct Memory {
    known: BTreeMap<String, Arc<Vec<u8>>>,
    /// In the order in which they came.
    order: VecDeque<String>,
    len: usize,
}

impl Cache {
    /// A cache in `folder`, which is made when something is kept; in memory alone where there is none.
    pub fn new(folder: Option<PathBuf>, place: String) -> Self {
        Self { folder, place, memory: Mutex::default(), written: AtomicU64::new(0) }
    }

    /// The usual folder: the one that systemd made for the service, or that of the user or of root.
    pub fn usual(variable: &dyn Fn(&str) -> Option<String>, is_root: bool) -> Option<PathBuf> {
        let of = |name: &str| {
            let path = PathBuf::from(variable(name)?);
            path.is_absolute().then_some(path)
        };
        let listed = variable("CACHE_DIRECTORY").unwrap_or_default();
        let of_service = listed.split(':').next().map(PathBuf::from);
        let of_user = || Some(of("HOME")?.join(".cache"));
        of_service.filter(|it| it.is_absolute()).or_else(|| match is_root {
            true => Some(PathBuf::from("/var/cache/qdelta")),
            false => Some(of("XDG_CACHE_HOME").or_else(of_user)?.join("qdelta")),
        })
    }

    /// What is known of an object with this ETag: `part` says what of it.
    pub fn get(&self, key: &str, etag: &str, part: &str) -> Option<Arc<Vec<u8>>> {
        let (name, seed) = self.name(key, etag, part);
        let known = self.memory().known.get(&name).cloned();
        known.or_else(|| {
            let path = self.folder.as_ref()?.join(&name);
            let mut bytes = Opener::READ.read(&path, LEN_MAX + 32).ok()?;
            let content = bytes.split_off_checked(32)?;
            if *digest(&seed, &content).as_bytes() != *bytes.as_slice() {
                tracing::debug!("{} is damaged, and not used", path.display());
                return None;
            }
            let content = Arc::new(content);
            self.memory().keep(name, &content);
            Some(content)
        })
    }

    /// Keeps what was read of an object. What can't be kept is read again.
    pub fn put(&self, key: &str, etag: &str, part: &str, content: &[u8]) {
        if etag.is_empty() || content.len() as u64 > LEN_MAX {
            return;
        }
        let (name, seed) = self.name(key, etag, part);
        self.memory().keep(name.clone(), &Arc::new(content.to_vec()));
        let Some(folder) = &self.folder else { return };
        if let Err(error) = write(folder, &name, &digest(&seed, content), content) {
            tracing::debug!("{}: nothing is kept: {error}", folder.display());
            return;
        }
        if self.written.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIM_EVERY) {
            trim(folder, FOLDER_LEN_MAX);
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thing is called in the folder, and all that its name is made of.
    fn name(&self, key: &str, etag: &str, part: &str) -> (String, String) {
        let seed = format!("{}\0{key}\0{etag}\0{part}", self.place);
        let name = blake3::hash(seed.as_bytes()).to_hex();
        (name.get(..NAME_LEN).unwrap_or_default().to_owned(), seed)
    }
}

impl Memory {
    fn keep(&mut self, name: String, content: &Arc<Vec<u8>>) {
        if self.known.insert(name.clone(), Arc::clone(content)).is_none() {
            self.order.push_back(name);
            self.len += content.len();
        }
        while self.len > MEMORY_LEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.len -= self.known.remove(&oldest).map_or(0, |gone| gone.len());
        }
    }
}

fn digest(seed: &str, content: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(seed.len() as u64).to_le_bytes()).update(seed.as_bytes()).update(content);
    hasher.finalize()
}

/// Nothing depends on it, so nothing is synced: what a power cut tore is not believed.
fn write(folder: &Path, name: &str, digest: &blake3::Hash, content: &[u8]) -> io::Result<()> {
    make_private_folder(folder)?;
    let partial = folder.join(format!(".{name}.{}.partial", std::process::id()));
    let written = || -> io::Result<()> {
        let mut file = Opener::CHANGE.create(MODE).open(&partial)?;
        file.write_all(digest.as_bytes())?;
        file.write_all(content)?;
        fs::rename(&partial, folder.join(name))
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
}

/// Removes the oldest files of a folder while all of them together are longer than `max`.
fn trim(folder: &Path, max: u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    let mut len: u64 = files.iter().map(|(_, len, _)| len).sum();
    if len <= max {
        return;
    }
    files.sort();
    for (_, of_this, path) in files {
        if len <= max / 4 * 3 {
            return;
        }
        if fs::remove_file(path).is_ok() {
            len -= of_this;
        }
    }
}

/// What `Vec::split_off` does, where there are so many.
trait SplitOff: Sized {
    fn split_off_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitOff for Vec<u8> {
    fn split_off_checked(&mut self, at: usize) -> Option<Self> {
        (at <= self.len()).then(|| self.split_off(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: &Path, place: &str) -> Cache {
        Cache::new(Some(folder.to_owned()), place.to_owned())
    }

    /// Lost, stale, of another store, edited, swapped: nothing of it is believed.
    #[test]
    fn only_what_was_kept_of_this_very_object_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        cache(&folder, "a").put("key", "etag", "end", b"content");
        cache(&folder, "a").put("other", "etag", "end", b"something");
        let get = |place: &str, key: &str, etag: &str, part: &str| {
            cache(&folder, place).get(key, etag, part).map(|it| it.to_vec())
        };
        assert_eq!(get("a", "key", "etag", "end").as_deref(), Some(&b"content"[..]));
        for (place, key, etag, part) in [
            ("b", "key", "etag", "end"),
            ("a", "key2", "etag", "end"),
            ("a", "key", "etag2", "end"),
            ("a", "key", "etag", "start"),
        ] {
            assert_eq!(get(place, key, etag, part), None);
        }
        let files: Vec<PathBuf> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [one, other] = &files[..] else { panic!("{files:?}") };
        let whole = fs::read(one).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(one, bytes).unwrap();
            fs::write(other, &whole[..at]).unwrap();
            assert_eq!(get("a", "key", "etag", "end"), None);
            assert_eq!(get("a", "other", "etag", "end"), None);
        }
        fs::write(other, &whole).unwrap();
        let both = [get("a", "key", "etag", "end"), get("a", "other", "etag", "end")];
        assert!(
            both.iter().filter(|it| it.is_some()).count() <= 1,
            "one in the place of the other"
        );
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(get("a", "key", "etag", "end"), None);
        // A folder that can't be made is no reason to fail.
        fs::write(&folder, "a file").unwrap();
        let in_memory = cache(&folder, "a");
        in_memory.put("key", "etag", "end", b"content");
        assert!(in_memory.get("key", "etag", "end").is_some());
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..8 {
            let path = dir.path().join(number.to_string());
            fs::write(&path, [0; 100]).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(number);
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
        trim(dir.path(), 800);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 8);
        trim(dir.path(), 700);
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left.len(), 5);
        assert!(!left.contains(&"0".into()) && left.contains(&"7".into()), "{left:?}");
    }
}
