//! Lists that lack what is there: of a store whose index lags, or behind a cache that cuts them.
//!
//! Whoever believes such a list may remove what a point needs that the list lacks. So a host remembers the points that it
//! has seen of a domain, and before something goes for good it looks for each of them that the list lacks: one that
//! is there all the same says that the list is wrong.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use super::manifest::{self, Manifest};
use super::names::DomainName;
use super::{Catalog, PointId, Repository, SUMMARY_MODE};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::Opener;

/// The longest memory that is read, in bytes: some hundred thousand points.
const LEN_MAX: u64 = 4 << 20;

impl Catalog {
    /// Remembers the points that the list of a domain has, beside those that were seen before.
    pub(crate) fn remember_listed(&self, domain: &DomainName) {
        let repository = self.repository();
        let mut known = repository.known_points(domain);
        known.extend(self.points_of(domain));
        repository.remember_points(domain, &known);
    }

    /// Fails if the list of a domain lacks a point that this host has seen, and that is still there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: it does, or a point can't be looked for.
    pub(crate) fn check_listed(&self, domain: &DomainName) -> Result<()> {
        let repository = self.repository();
        let listed: BTreeSet<PointId> = self.points_of(domain).into_iter().collect();
        let mut known = repository.known_points(domain);
        known.extend(repository.newest_seen(domain));
        for point in known.difference(&listed) {
            if repository.has_manifest(domain, *point)? {
                let text =
                    format!("the list of the points of {domain} lacks {point}, which is there");
                return Err(Error::new(ErrorKind::Io, text)
                    .because("other points may be missing in it: nothing of the guest is removed or merged")
                    .advise(
                        "the index of the store lags, or something in front of it cuts lists: try again when \
                         qdelta points shows the point",
                    ));
            }
        }
        // What is gone was removed by another host.
        repository.remember_points(domain, &listed);
        Ok(())
    }
}

impl Repository {
    /// Whether there is a manifest of a point, whatever a list says.
    pub(super) fn has_manifest(&self, domain: &DomainName, point: PointId) -> Result<bool> {
        let name = self.points_dir(domain).join(&Manifest::file_name(point));
        match self.storage().read(&name, manifest::LEN_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            // Whatever else is wrong with it, it is there.
            Err(error) if error.kind() == ErrorKind::Io => Err(error),
            _ => Ok(true),
        }
    }

    /// The points of a domain that this host has seen in a list.
    fn known_points(&self, domain: &DomainName) -> BTreeSet<PointId> {
        let path = self.known_path(domain);
        let text = path.and_then(|path| Opener::READ.read_text(&path, LEN_MAX).ok());
        text.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
    }

    /// Remembers the points of a domain. Who can't remember them misses none.
    fn remember_points(&self, domain: &DomainName, points: &BTreeSet<PointId>) {
        let Some(path) = self.known_path(domain) else { return };
        let put = replace_file(&path, SUMMARY_MODE, Durability::None, |file| {
            points.iter().try_for_each(|point| writeln!(file, "{point}"))
        });
        if let Err(error) = put {
            tracing::debug!("{}: {error}", path.display());
        }
    }

    fn known_path(&self, domain: &DomainName) -> Option<PathBuf> {
        Some(self.state.as_ref()?.join(format!("{domain}+listed")))
    }
}
