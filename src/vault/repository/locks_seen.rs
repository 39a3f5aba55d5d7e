//! For how long a host has seen that the files at a place are locked: whoever can write `qdelta.toml` could end
//! all locking by leaving out one line, and nobody would hear of it before the last lock is over.

use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Repository, SUMMARY_MODE};
use crate::base::period::Period;
use crate::base::warning::{Code, Warning};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::Opener;

/// The folder of this host's state that holds a file for each place whose files are locked.
const FOLDER: &str = "locks";

/// The longest file of a place that is read, in bytes.
const LEN_MAX: u64 = 1 << 10;

impl Repository {
    /// Compares for how long files are locked with what this host, which keeps its state in `folder`, has seen
    /// at this place; and remembers the longer time. If it is shorter now, or there is none, the time that was
    /// seen holds: a lock that is too long costs money, one that is too short the backups.
    pub(super) fn recall_lock(&mut self, folder: &Path) -> Option<Warning> {
        if self.past.is_some() {
            return None;
        }
        let key = blake3::hash(self.place().as_os_str().as_encoded_bytes()).to_hex().to_string();
        let file = folder.join(FOLDER).join(key);
        let known = Opener::READ.read_text(&file, LEN_MAX).unwrap_or_default();
        let known = known.trim().parse::<Period>().ok();
        let (shown, config) = (self.root.display().to_string(), self.config_path());
        match (known, self.locked) {
            (None, None) => None,
            (None, Some(now)) => {
                remember(&file, now);
                None
            }
            (Some(known), Some(now)) if end(now) >= end(known) => {
                if now == known {
                    return None;
                }
                remember(&file, now);
                let text = format!(
                    "{shown} locks what is written for {now} from now on: it was {known} when this host looked last"
                );
                Some(Warning::new(Code::OtherLock, text).advise(format!(
                    "if nobody has changed lock in {}, take new credentials for the store",
                    config.display()
                )))
            }
            (Some(known), now) => {
                // The store may be another one at the same address.
                self.storage.lock_new_files(known).ok()?;
                self.locked = Some(known);
                let now = now.map_or("not at all".to_owned(), |now| format!("for {now}"));
                let text = format!(
                    "{} has files locked {now}, and this host has seen {known} there: it goes on with {known}",
                    config.display()
                );
                Some(Warning::new(Code::OtherLock, text).advise(format!(
                    "if nobody has changed it, take new credentials for the store, and write lock = \"{known}\" \
                     there again; if you have, remove {} on this host",
                    file.display()
                )))
            }
        }
    }
}

/// When a lock that begins at a certain moment ends.
fn end(period: Period) -> Timestamp {
    period.after(Timestamp::UNIX_EPOCH, &TimeZone::UTC)
}

/// Who can't remember does not notice.
fn remember(file: &Path, period: Period) {
    let written =
        replace_file(file, SUMMARY_MODE, Durability::None, |file| writeln!(file, "{period}"));
    if let Err(error) = written {
        tracing::debug!("{}: {error}", file.display());
    }
}
