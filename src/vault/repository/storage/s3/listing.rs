//! What has names in a store: a list of keys seen as folders and files.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::client::{Ask, Client};
use super::failure::Failure;
use super::xml;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::repository::storage::{Entry, EntryKind};

/// The longest page that makes sense, in bytes: a thousand keys of a thousand bytes, encoded.
const PAGE_LEN_MAX: u64 = 8 << 20;
/// The most pages of one listing: ten million objects.
const PAGES_MAX: usize = 10_000;

/// An object that was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub len: u64,
    pub etag: String,
    pub modified: Option<Timestamp>,
}

/// Every object whose key begins with a prefix, and the uploads that nobody has completed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// By the whole key.
    pub objects: BTreeMap<String, Seen>,
    /// The ids of uploads by their keys.
    pub uploads: BTreeMap<String, Vec<String>>,
    /// Whether the uploads were asked for.
    pub has_uploads: bool,
    /// The names up to the delimiter that more than one key shares, with it.
    pub prefixes: Vec<String>,
}

/// The name under which a small file lies until it is published.
pub(super) fn staged_name(name: &str) -> String {
    format!(".{name}.partial")
}

/// The name that a staged file was to get, if this is the name of one.
fn whole_name(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".partial")
}

/// Lists all objects below a prefix, or only those in the folder that it is.
pub(super) fn objects(client: &Client, prefix: &str, is_deep: bool) -> Result<Listing> {
    if let Some(past) = &client.past {
        return past.listing(client, prefix, is_deep).map_err(|it| unlisted(client, prefix, it));
    }
    let mut listing = Listing::default();
    let mut next: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut ask = Ask::new("GET", "")
            .query("list-type", "2")
            .query("encoding-type", "url")
            .query("prefix", prefix)
            .at_most(PAGE_LEN_MAX);
        if !is_deep {
            ask = ask.query("delimiter", "/");
        }
        if let Some(token) = next.take() {
            ask = ask.query("continuation-token", token);
        }
        let (_, page) =
            client.parsed(&ask, xml::page).map_err(|it| unlisted(client, prefix, it))?;
        for object in page.objects {
            // SeaweedFS, where it keeps versions, tells of `a` as well if it is asked what begins with `a.`.
            if !object.key.starts_with(prefix) {
                continue;
            }
            let modified = object.modified.parse().ok();
            let seen = Seen { len: object.len, etag: object.etag, modified };
            listing.objects.insert(object.key, seen);
        }
        for found in page.prefixes {
            if found.starts_with(prefix) {
                listing.prefixes.push(found);
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(listing);
        }
    }
    let text = format!("the list of {} does not end", client.address.shown(prefix));
    Err(Error::new(ErrorKind::Io, text))
}

/// The ids of the uploads below a prefix that nobody has completed, by their keys.
pub(super) fn uploads(client: &Client, prefix: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if client.past.is_some() {
        return Ok(found);
    }
    let mut next: Option<(String, String)> = None;
    for _ in 0..PAGES_MAX {
        let mut ask = Ask::new("GET", "")
            .query("uploads", "")
            .query("encoding-type", "url")
            .query("prefix", prefix)
            .at_most(PAGE_LEN_MAX);
        if let Some((key, id)) = next.take() {
            ask = ask.query("key-marker", key).query("upload-id-marker", id);
        }
        let (_, page) =
            client.parsed(&ask, xml::uploads).map_err(|it| unlisted(client, prefix, it))?;
        for (key, id) in page.uploads {
            if key.starts_with(prefix) {
                found.entry(key).or_default().push(id);
            }
        }
        next = page.next;
        if next.is_none() {
            return Ok(found);
        }
    }
    let text = format!("the list of the uploads to {} does not end", client.address.shown(prefix));
    Err(Error::new(ErrorKind::Io, text))
}

/// Lists every version of every object below a prefix, marks of removals included: those of a key one after the
/// other, the newest first.
pub(super) fn versions(
    client: &Client,
    prefix: &str,
    mut each: impl FnMut(xml::Version),
) -> Result<(), Failure> {
    let mut next: Option<(String, String)> = None;
    for _ in 0..PAGES_MAX {
        let mut ask = Ask::new("GET", "")
            .query("versions", "")
            .query("encoding-type", "url")
            .query("prefix", prefix)
            .at_most(PAGE_LEN_MAX);
        if let Some((key, id)) = next.take() {
            ask = ask.query("key-marker", key);
            if !id.is_empty() {
                ask = ask.query("version-id-marker", id);
            }
        }
        let (_, page) = client.parsed(&ask, xml::versions)?;
        page.versions.into_iter().for_each(&mut each);
        next = page.next;
        if next.is_none() {
            return Ok(());
        }
    }
    Err(Failure::unclear("the list of versions does not end"))
}

fn unlisted(client: &Client, prefix: &str, failure: Failure) -> Error {
    failure.into_error("list", &client.address.shown(prefix))
}

impl Listing {
    /// What is in the folder whose keys begin with `prefix`; none if nothing is.
    pub fn folder(&self, prefix: &str) -> Option<Vec<Entry>> {
        let mut entries: BTreeMap<(String, bool), Entry> = BTreeMap::new();
        let mut add = |name: &str, kind, len, version| {
            let name = name.to_owned();
            let entry = Entry { name: name.clone(), kind, len, version };
            let known = entries.entry((name, kind == EntryKind::Staged)).or_insert(entry);
            if known.kind != kind {
                // A store lets `a` be beside `a/b`: neither hides the other.
                (known.kind, known.version) = (EntryKind::Unknown, None);
            }
        };
        for (key, seen) in below(&self.objects, prefix) {
            match key.split_once('/') {
                Some((folder, _)) => add(folder, EntryKind::Folder, None, None),
                // What some tools make of a folder that is empty.
                None if key.is_empty() => {}
                None => match whole_name(key) {
                    Some(whole) => add(whole, EntryKind::Staged, Some(seen.len), None),
                    None => add(key, EntryKind::File, Some(seen.len), Some(seen.etag.clone())),
                },
            }
        }
        for found in self.prefixes.iter().filter_map(|it| it.strip_prefix(prefix)) {
            add(found.trim_end_matches('/'), EntryKind::Folder, None, None);
        }
        for (key, _) in below(&self.uploads, prefix) {
            match key.split_once('/') {
                Some((folder, _)) => add(folder, EntryKind::Folder, None, None),
                None => add(key, EntryKind::Staged, None, None),
            }
        }
        let found = entries.into_values().collect::<Vec<_>>();
        (!found.is_empty()).then_some(found)
    }

    /// What changes whenever a name below a prefix comes, goes, or gets another file.
    pub fn version(&self, prefix: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        for (key, seen) in below(&self.objects, prefix) {
            hasher.update(key.as_bytes()).update(&[0]).update(seen.etag.as_bytes()).update(&[0]);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The keys below a prefix, without it.
fn below<'a, T>(
    map: &'a BTreeMap<String, T>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a str, &'a T)> {
    let from = map.range(prefix.to_owned()..);
    from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_seen_as_folders() {
        let seen = |etag: &str| Seen { len: 7, etag: etag.to_owned(), modified: None };
        let mut listing = Listing::default();
        for key in ["p/a", "p/b", "p/b/c", "p/b/d/e", "p/.f.partial", "p/g-h/i", "p/", "pq"] {
            listing.objects.insert(key.to_owned(), seen(key));
        }
        listing.uploads.insert("p/j".to_owned(), vec!["1".to_owned()]);
        let kinds = |prefix: &str| -> Vec<(String, EntryKind)> {
            let entries = listing.folder(prefix).unwrap_or_default();
            entries.into_iter().map(|it| (it.name, it.kind)).collect()
        };
        let named = |name: &str, kind| (name.to_owned(), kind);
        let expected = [
            named("a", EntryKind::File),
            named("b", EntryKind::Unknown),
            named("f", EntryKind::Staged),
            named("g-h", EntryKind::Folder),
            named("j", EntryKind::Staged),
        ];
        assert_eq!(kinds("p/"), expected);
        assert_eq!(kinds("p/b/"), [named("c", EntryKind::File), named("d", EntryKind::Folder)]);
        assert_eq!(listing.folder("p/g/"), None, "a name that only begins so");
        let before = listing.version("p/b/");
        listing.objects.insert("p/b/c".to_owned(), seen("other"));
        assert_ne!(listing.version("p/b/"), before);
    }
}
