//! Which recipients a host has seen at a place, as ssh remembers the keys of hosts: an admin's key opens what
//! anybody may have encrypted to it, so what lies in the repository can't say that it is the admin's.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Repository, SUMMARY_MODE};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::Opener;
use crate::vault::age::Recipient;

/// The folder of this host's state that holds a file for each place and each id.
const FOLDER: &str = "recipients";

/// The longest file of a place that is read, in bytes.
const LEN_MAX: u64 = 64 << 10;

/// How a recipient became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// By a key that nobody else could have made.
    Proved,
    /// It was there when an admin's key was used first.
    Seen,
}

impl Trust {
    fn word(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Seen => "seen",
        }
    }
}

impl Repository {
    /// Compares a repository with what this host, which keeps its state in `folder`, knows of its place and
    /// its id; and remembers it. Gives a warning if nothing says that the key of an encrypted one is its own,
    /// and one if its files are locked for another time than before.
    ///
    /// # Errors
    /// [`ErrorKind::Key`]: the key proves nothing, and the host knows another recipient there; or
    /// `qdelta.toml` is lost as well.
    pub fn recognize(&mut self, folder: Option<&Path>) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        warnings.extend(self.recognize_recipient(folder)?);
        warnings.extend(folder.and_then(|folder| self.recall_lock(folder)));
        Ok(warnings)
    }

    fn recognize_recipient(&mut self, folder: Option<&Path>) -> Result<Option<Warning>> {
        let keys = [self.place().display().to_string(), self.id.clone()];
        let named = keys.iter().filter(|key| !key.is_empty());
        let files: Vec<PathBuf> = folder
            .map(|folder| {
                let of = |key: &String| blake3::hash(key.as_bytes()).to_hex().to_string();
                named.map(|key| folder.join(FOLDER).join(of(key))).collect()
            })
            .unwrap_or_default();
        let (shown, is_lost) = (self.root.display().to_string(), self.trouble.is_some());
        let Some(encryption) = &mut self.encryption else { return Ok(None) };
        let recipient = encryption.recipient();
        if encryption.is_proved() {
            files.iter().for_each(|file| remember(file, recipient, Trust::Proved));
            return Ok(None);
        }
        let mut found = None;
        for file in &files {
            let known = Opener::READ.read_text(file, LEN_MAX).unwrap_or_default();
            if known.is_empty() {
                continue;
            }
            match trust(&known, recipient) {
                None => return Err(changed(&shown, recipient, file)),
                Some(Trust::Proved) => found = Some(Trust::Proved),
                Some(Trust::Seen) => found = found.or(Some(Trust::Seen)),
            }
        }
        match found {
            Some(Trust::Proved) => {
                encryption.prove();
                return Ok(None);
            }
            Some(Trust::Seen) => return Ok(None),
            None if is_lost => {
                let lost = |error: Error| error.within(format!("{shown}: qdelta.toml is lost"));
                return encryption.check_proved().map_err(lost).map(|()| None);
            }
            None => files.iter().for_each(|file| remember(file, recipient, Trust::Seen)),
        }
        let text = format!(
            "nothing says that {shown} is the repository that it was: this host sees it for the first time, \
             and anybody could have made the file of its folder keys that your key opens"
        );
        let advice = format!(
            "compare the recipient with the one that you know: {recipient}; or give the repository's own \
             identity once, as init --recovery wrote it"
        );
        Ok(Some(Warning::new(Code::Unproved, text).advise(advice)))
    }
}

/// What the text of a place says of a recipient.
fn trust(known: &str, recipient: Recipient) -> Option<Trust> {
    let of = |trust: Trust| {
        let line = format!("{} {recipient}", trust.word());
        known.lines().any(|it| it == line).then_some(trust)
    };
    of(Trust::Proved).or_else(|| of(Trust::Seen))
}

/// Adds a recipient to a place: disks that are changed every week have one place, and a recipient each.
/// Who can't remember warns again.
fn remember(file: &Path, recipient: Recipient, how: Trust) {
    let known = Opener::READ.read_text(file, LEN_MAX).unwrap_or_default();
    if trust(&known, recipient).is_some_and(|it| it == how || it == Trust::Proved) {
        return;
    }
    let written = replace_file(file, SUMMARY_MODE, Durability::None, |file| {
        writeln!(file, "{known}{} {recipient}", how.word())
    });
    if let Err(error) = written {
        tracing::debug!("{}: {error}", file.display());
    }
}

fn changed(shown: &str, recipient: Recipient, file: &Path) -> Error {
    let text = format!("{shown} is another repository than this host has seen there");
    Error::new(ErrorKind::Key, text)
        .because(format!(
            "its recipient {recipient} is none that this host knows, and anybody could have made the file of the \
             folder keys that your key opens"
        ))
        .advise(format!(
            "if it is a new one of yours, give its own identity once, as init --recovery wrote it; what this \
             host knows is in {}",
            file.display()
        ))
}
