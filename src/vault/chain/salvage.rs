//! A chain out of what is left: archives may be damaged, or missing.

use std::sync::Arc;

use super::{CHAIN_LEN_MAX, Chain, check_pair, is_point};
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::Kind;
use crate::vault::archive::Reader;

impl Chain {
    /// The chain of what is left of these archives, the oldest first, the last one being that of
    /// the point that is wanted. Archives that do not belong to its chain are left out; where some
    /// are missing, the blocks that nobody above speaks about are unsure. With the chain come lines
    /// that say what does not fit.
    ///
    /// A cursor of such a chain does not stop at damage: it says which blocks are lost or unsure.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: none at all, or more than [`CHAIN_LEN_MAX`].
    pub fn salvage(archives: Vec<Arc<Reader>>) -> Result<(Self, Vec<String>)> {
        if archives.len() > CHAIN_LEN_MAX {
            let context = format!("{} archives can't be a chain", archives.len());
            return Err(Error::new(ErrorKind::Usage, context));
        }
        let mut archives = archives;
        archives.reverse();
        let mut rest = archives.into_iter();
        let Some(newest) = rest.next() else {
            return Err(Error::new(ErrorKind::Usage, "nothing is left of the chain"));
        };
        let mut problems = Vec::new();
        let mut kept = vec![newest];
        let mut breaks_above = Vec::new();
        while let Some(below) = rest.next() {
            let above =
                kept.last().and_then(|above| Some((above, above.metadata().parent.as_ref()?)));
            let Some((above, link)) = above else {
                problems.push(format!("{} is not needed", below.path().display()));
                continue;
            };
            let other = below.metadata();
            let is_parent = |archive: &Arc<Reader>| is_point(link, archive.metadata());
            // Below a missing parent the next archive of the disk may be an ancestor.
            let is_passed = !is_parent(&below) && rest.as_slice().iter().any(is_parent);
            if is_passed
                || (&link.domain, &link.disk) != (&other.domain, &other.disk)
                || above.geometry().block_size() != below.geometry().block_size()
            {
                let (path, other) = (below.path().display(), above.path().display());
                problems.push(format!("{path} is not of the chain of {other}"));
                continue;
            }
            if let Err(error) = check_link(&below, above) {
                problems.push(error.chain());
                breaks_above.push(kept.len() - 1);
            }
            kept.push(below);
        }
        if let Some(oldest) = kept.last().filter(|oldest| oldest.metadata().kind != Kind::Full) {
            problems.push(format!("the archives below {} are missing", oldest.path().display()));
            breaks_above.push(kept.len() - 1);
        }
        // Positions counted from the newest become positions counted from the oldest.
        let mut breaks = Vec::with_capacity(breaks_above.len());
        for from_newest in breaks_above {
            let above = kept.iter().take(from_newest + 1);
            let blocks = above.map(|archive| archive.geometry().block_count()).min().unwrap_or(0);
            breaks.push((kept.len() - 1 - from_newest, blocks));
        }
        kept.reverse();
        Ok((Self::link(kept, Some(breaks)), problems))
    }

    /// Whether this chain may have damage: see [`Self::salvage`].
    pub fn is_salvaged(&self) -> bool {
        self.salvage.is_some()
    }
}

/// Whether one archive follows the other, as far as anybody can still tell.
fn check_link(below: &Reader, above: &Reader) -> Result<()> {
    let parent = above.metadata().parent.as_ref();
    let unknown = below.known_root().is_none();
    if unknown && parent.is_some_and(|parent| is_point(parent, below.metadata())) {
        return Ok(());
    }
    check_pair(below, above)
}
