//! The mark: a small file that says that a guest may be frozen.
//!
//! The mark exists from before the freeze until after the thaw. A later run that finds a mark knows
//! that neither qdelta nor its watchdog got as far as the thaw.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Freeze;
use crate::base::error::{Error, Result};
use crate::disk::files::make_private_folder;
use crate::disk::io::Opener;

/// The longest mark that can be read, in bytes.
const LEN_MAX: u64 = 64 << 10;

/// The content of a mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The domain, for people.
    pub name: String,
    /// When the freeze was to begin, for people.
    pub since: String,
    /// Tells this mark from a later one of the same guest.
    pub watchdog: u32,
}

/// Makes the mark; a new mark replaces an older one. Without a mark no guest is frozen.
pub(super) fn set(freeze: &Freeze) -> Result<Mark> {
    let mark = Mark {
        name: freeze.name.clone(),
        since: crate::base::clock::now()?.to_string(),
        watchdog: std::process::id(),
    };
    let was_set = is_set(&freeze.mark);
    write(&mark, &freeze.mark).map_err(|error| {
        // A half mark on a full disk would make the next run thaw a guest that was never frozen.
        if !was_set {
            clear(&freeze.mark, None);
        }
        let text = "a guest is frozen only if a mark on disk says so";
        Error::io("write", &freeze.mark, error).within(text).advise(
            "make room in this host's state folder and let qdelta write there, or name another: --state DIR",
        )
    })?;
    Ok(mark)
}

fn write(mark: &Mark, path: &Path) -> io::Result<()> {
    let text = serde_json::to_string(mark)?;
    make_private_folder(path.parent().unwrap_or(Path::new(".")))?;
    let mut file = Opener::CHANGE.itself().or_create(0o600).open(path)?;
    file.set_len(0)?;
    file.write_all(format!("{text}\n").as_bytes())
}

/// Whether there is a mark, whatever its content.
pub(super) fn is_set(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The content of the mark, if it can be read.
pub(super) fn read(path: &Path) -> Option<Mark> {
    let bytes = Opener::READ.itself().read(path, LEN_MAX).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Removes the mark, or `only` this mark. If the removal fails, the next run thaws a guest that is
/// not frozen and says so, which does no harm.
pub(super) fn clear(path: &Path, only: Option<&Mark>) {
    if only.is_some() && read(path).as_ref() != only {
        return;
    }
    let _ = fs::remove_file(path);
}
