//! Files of machines that no manifest names, where lists may lag behind.
//!
//! A point that a list lacks may name such a file. So a prune marks it first, by an object beside it that says since when,
//! by the storage's own clock; and it goes when it was marked for a day. Whoever names a file again that is marked, marks
//! it anew.
//!
//! So nothing goes that a point names. A list lags by an hour at most. A point that a prune's list lacks was made since the
//! list was true, in the last hour. Its backup has marked the file anew, or has seen no mark: then it had the guest's
//! lock when the mark was an hour old at most. So the mark is no older than two hours and what the backup took.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::listed::WholeList;
use super::machine::file_name;
use super::names::DomainName;
use super::storage::{Name, Publish};
use super::{DomainLock, Repository};
use crate::base::error::{ErrorKind, Result};
use crate::formats::archive::Digest;

/// How a mark is called: as the file, and this.
const ENDING: &str = ".unnamed";
/// The longest mark, in bytes: a time.
const MARK_MAX: u64 = 64;
/// For so long a file has been marked that goes: no list lags, and hardly a backup takes as long.
const MARKED: SignedDuration = SignedDuration::from_hours(24);

impl Repository {
    /// Removes files of a domain's folder that no manifest in a list names, and gives how many there were. Where lists may
    /// lag, those that have been marked for long; the others are marked.
    ///
    /// # Errors
    /// A file can't be removed or marked; no clock tells the time.
    pub(super) fn remove_unnamed(
        &self,
        lock: &DomainLock,
        list: &WholeList,
        folder: &Name,
        unnamed: BTreeSet<String>,
    ) -> Result<u64> {
        let going: Vec<String> = if self.storage().lists_may_lag() {
            let now = self.storage().now()?;
            let mut going = Vec::new();
            for file in &unnamed {
                let since = self.marked_since(folder, file)?.filter(|since| *since <= now);
                match since.map(|since| now.duration_since(since)) {
                    None => self.mark_unnamed(folder, file, now)?,
                    Some(age) if age >= MARKED => going.push(file.clone()),
                    Some(_) => {}
                }
            }
            going
        } else {
            unnamed.iter().cloned().collect()
        };
        let removed = match going.is_empty() {
            true => 0,
            false => self.remove_for_good(lock, list, folder, &going)?,
        };
        // Marks of what is gone, or is named.
        let stays = |file: &str| unnamed.contains(file) && !going.iter().any(|it| it == file);
        let names = self.folder(folder)?.names.into_iter();
        let marks: Vec<String> = names
            .filter(|name| name.strip_suffix(ENDING).is_some_and(|file| !stays(file)))
            .collect();
        if !marks.is_empty() {
            self.remove_for_good(lock, list, folder, &marks)?;
        }
        Ok(removed)
    }

    /// A file of a machine is about to be named, that may lie there already: whoever has marked it waits again.
    ///
    /// # Errors
    /// It can't be marked.
    pub(super) fn name_again(&self, domain: &DomainName, digest: Digest) -> Result<()> {
        if !self.storage().lists_may_lag() {
            return Ok(());
        }
        let (folder, file) = (self.machine_dir(domain), file_name(digest));
        match self.storage().entry(&folder.join(&mark_of(&file)))? {
            None => Ok(()),
            Some(_) => self.mark_unnamed(&folder, &file, self.storage().now()?),
        }
    }

    /// Since when a file has been marked; none if it is not, or nobody can tell.
    fn marked_since(&self, folder: &Name, file: &str) -> Result<Option<Timestamp>> {
        match self.storage().read(&folder.join(&mark_of(file)), MARK_MAX) {
            Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(|it| it.trim().parse().ok())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn mark_unnamed(&self, folder: &Name, file: &str, now: Timestamp) -> Result<()> {
        let mark = folder.join(&mark_of(file));
        self.storage().write(&mark, now.to_string().as_bytes(), Publish::Replace)
    }
}

fn mark_of(file: &str) -> String {
    format!("{file}{ENDING}")
}
