//! A bucket as it was at a moment: a store that keeps versions shows what an attack has hidden or written over.
//!
//! The versions of everything below the prefix are listed once. Of each key the newest one counts that was
//! there at that moment; if that is the mark of a removal, there was nothing. Nothing can be written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::client::Client;
use super::failure::Failure;
use super::listing::{self, Listing, Seen};
use super::xml::Version;
use crate::base::error::{Error, ErrorKind, Result};

/// By key: the id of the version that was there, and what is known of it.
type There = BTreeMap<String, (String, Seen)>;

/// What was in a bucket at a moment.
#[derive(Debug)]
pub(super) struct Past {
    pub at: Timestamp,
    /// By key, once somebody asked.
    known: Mutex<Option<Arc<There>>>,
}

impl Past {
    pub fn new(at: Timestamp) -> Self {
        Self { at, known: Mutex::default() }
    }

    /// What was there: the id of the version by key, and what is known of it.
    fn all(&self, client: &Client) -> Result<Arc<There>, Failure> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return Ok(Arc::clone(known));
        }
        let mut newest: BTreeMap<String, Version> = BTreeMap::new();
        let mut is_versioned = false;
        listing::versions(client, &client.address.prefix, |version| {
            // Of what was written when the bucket kept no versions.
            is_versioned |= version.id != "null";
            if version.modified > self.at {
                return;
            }
            // Of two of the same second, the one that is listed first is the newer one.
            match newest.get(&version.key) {
                Some(other) if other.modified >= version.modified => {}
                _ => drop(newest.insert(version.key.clone(), version)),
            }
        })?;
        if !is_versioned && !newest.is_empty() {
            let text = format!("the bucket of {} keeps no versions", client.address.shown(""));
            return Err(Failure::local(
                Error::new(ErrorKind::Usage, text)
                    .advise("what it was is not known; what is there can be read without --as-of"),
            ));
        }
        let there = newest.into_iter().filter(|(_, version)| !version.is_removed);
        let seen = |it: Version| {
            let seen = Seen { len: it.len, etag: it.etag, modified: Some(it.modified) };
            (it.id, seen)
        };
        let all = Arc::new(there.map(|(key, it)| (key, seen(it))).collect());
        *known = Some(Arc::clone(&all));
        Ok(all)
    }

    /// The version of an object that was there; none if none was.
    pub fn version(&self, client: &Client, key: &str) -> Result<Option<String>, Failure> {
        Ok(self.all(client)?.get(key).map(|(id, _)| id.clone()))
    }

    /// What lay below a prefix, or only in the folder that it is.
    pub fn listing(
        &self,
        client: &Client,
        prefix: &str,
        is_deep: bool,
    ) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        for (key, (_, seen)) in self.all(client)?.range(prefix.to_owned()..) {
            let Some(name) = key.strip_prefix(prefix) else { break };
            match name.find('/').filter(|_| !is_deep) {
                None => drop(listing.objects.insert(key.clone(), seen.clone())),
                Some(at) => {
                    let folder = key.get(..=prefix.len() + at).unwrap_or_default().to_owned();
                    if listing.prefixes.last() != Some(&folder) {
                        listing.prefixes.push(folder);
                    }
                }
            }
        }
        Ok(listing)
    }
}

/// What was can't be changed.
pub(super) fn refused() -> Error {
    Error::new(ErrorKind::Usage, "a repository as it was can only be read")
        .advise("leave --as-of out")
}
