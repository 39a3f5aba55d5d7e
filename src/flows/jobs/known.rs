//! Which repository was behind each name of the file: another one that takes its place has none of the points, and says
//! nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Host;
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::Opener;

const NAME: &str = "repositories.json";

/// The longest file that is read, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// What the host does is nobody else's business.
const MODE: u32 = 0o600;

fn path(state: &Path) -> PathBuf {
    // Beside the folder of the history: what is lost with it could not say that it was there.
    state.join(NAME)
}

/// The id of the repository that a run has first found behind each name; nothing if there is no file, or one that makes
/// no sense.
pub(super) fn read(state: &Path) -> BTreeMap<String, String> {
    let bytes = Opener::READ.read(&path(state), LEN_MAX).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Remembers the repository behind a name that was never seen before. One that is known stays what it is: that another
/// is there now is a finding until the file gives that one another name. Only who has the turn of a run may do so, and
/// nothing depends on it: who can't remember does not notice.
pub(super) fn remember(host: &Host<'_>, name: &str, id: &str) {
    let known = read(host.state);
    let mut next = known.clone();
    // A name that the file does not have any more may be given to another.
    next.retain(|name, _| host.config.repositories.contains_key(name));
    next.entry(name.to_owned()).or_insert_with(|| id.to_owned());
    if next == known {
        return;
    }
    let Ok(bytes) = serde_json::to_vec(&next) else { return };
    let path = path(host.state);
    let written = replace_file(&path, MODE, Durability::Synced, |file| file.write_all(&bytes));
    if let Err(error) = written {
        tracing::debug!("{}: {error}", path.display());
    }
}
