//! Lists that lack what is there: of a store whose index lags, or behind a cache that cuts them.
//!
//! Whoever believes such a list may remove what a point needs that the list lacks. So a host remembers the points that it
//! has seen of a domain, and before something goes for good it looks for each of them that the list lacks: one that
//! is there all the same says that the list is wrong. So does an archive that a manifest names, that the list lacks, and
//! that is there when it is asked for by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use super::manifest::Manifest;
use super::names::DomainName;
use super::storage::{Entry, Name};
use super::{Catalog, DomainLock, PointId, Repository, SUMMARY_MODE};
use crate::base::cancel::Cancel;
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::Opener;

/// The longest memory that is read, in bytes: some hundred thousand points.
const LEN_MAX: u64 = 4 << 20;
/// No list lags behind for so long, in seconds.
const LAG_MAX_S: i64 = 60 * 60;
/// How many points are looked for before a request to stop is heard.
const LOOKS_AT_ONCE: usize = 256;

/// The manifests of a domain, from a list that lacks no point that this host has seen. What goes for good is chosen by
/// such a list alone.
#[derive(Debug)]
pub(super) struct WholeList {
    domain: DomainName,
    manifests: Vec<(PointId, Result<Manifest>)>,
}

impl WholeList {
    /// All manifests, the oldest first: also those that can't be read.
    pub fn manifests(&self) -> &[(PointId, Result<Manifest>)] {
        &self.manifests
    }

    /// Fails if the list lacks one of these points, and it is there, or shows it as it was before somebody replaced its
    /// manifest: whether it is pinned, and what it builds on, is not known.
    pub fn check_has(
        &self,
        repository: &Repository,
        points: impl Iterator<Item = PointId>,
        cancel: &Cancel,
    ) -> Result<()> {
        let points: BTreeSet<PointId> = points.collect();
        let points: Vec<PointId> = points.into_iter().collect();
        for points in points.chunks(LOOKS_AT_ONCE) {
            cancel.check()?;
            let shown = repository.compare_with_list(&self.domain, points)?;
            for (point, shown) in points.iter().zip(shown) {
                shown.check(&self.domain, *point)?;
            }
        }
        Ok(())
    }
}

impl Repository {
    /// Removes files of a folder of a domain for good, which were chosen by a list, and gives how many there were. What was
    /// read is what is there only if nobody else has had the lock.
    pub(super) fn remove_for_good(
        &self,
        lock: &DomainLock,
        _chosen_by: &WholeList,
        folder: &Name,
        files: &[String],
    ) -> Result<u64> {
        lock.prove()?;
        self.storage().remove_all(folder, files)
    }

    /// Of files of a domain that no manifest in a list names, those that may go: where lists may lag, those that this host
    /// has seen so for long. A manifest comes after what it names.
    ///
    /// # Errors
    /// No clock tells the time.
    pub(super) fn unnamed_for_long(
        &self,
        domain: &DomainName,
        unnamed: BTreeSet<String>,
    ) -> Result<BTreeSet<String>> {
        if !self.storage().lists_may_lag() {
            return Ok(unnamed);
        }
        let Some(state) = &self.state else { return Ok(BTreeSet::new()) };
        let (path, now) = (state.join(format!("{domain}+unnamed")), clock::now()?.as_second());
        let text = Opener::READ.read_text(&path, LEN_MAX).unwrap_or_default();
        let known: BTreeMap<&str, i64> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, since)| Some((name, since.parse().ok()?)))
            .collect();
        let since = |name: &str| known.get(name).copied().filter(|it| *it <= now).unwrap_or(now);
        let (go, stay): (BTreeSet<String>, BTreeSet<String>) =
            unnamed.into_iter().partition(|name| now - since(name) >= LAG_MAX_S);
        if go.is_empty() && stay.is_empty() && known.is_empty() {
            return Ok(go);
        }
        // What goes may come back, and is not known to be unnamed then.
        let put = replace_file(&path, SUMMARY_MODE, Durability::None, |file| {
            stay.iter().try_for_each(|name| writeln!(file, "{name} {}", since(name)))
        });
        if let Err(error) = put {
            // What was noted before may be of a file that was named since.
            tracing::debug!("{}: {error}", path.display());
            return Ok(BTreeSet::new());
        }
        Ok(go)
    }

    /// Forgets points that this host has removed.
    pub(super) fn forget_points(&self, domain: &DomainName, points: &BTreeSet<PointId>) {
        let known = self.known_points(domain);
        let left: BTreeSet<PointId> = known.difference(points).copied().collect();
        if left != known {
            self.remember_points(domain, &left);
        }
    }
}

impl Catalog {
    /// The manifests of a domain, if the list lacks no point that this host has seen, and that is still there.
    ///
    /// # Errors
    /// As [`Self::check_listed`] and [`Self::manifests`].
    pub(super) fn whole_list(&self, domain: &DomainName, cancel: &Cancel) -> Result<WholeList> {
        self.check_listed(domain, cancel)?;
        Ok(WholeList { domain: domain.clone(), manifests: self.manifests(domain)? })
    }

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
    /// [`ErrorKind::Io`]: it does, or a point can't be looked for. The work was interrupted.
    pub(crate) fn check_listed(&self, domain: &DomainName, cancel: &Cancel) -> Result<()> {
        let repository = self.repository();
        let listed: BTreeSet<PointId> = self.points_of(domain).into_iter().collect();
        let mut known = repository.known_points(domain);
        known.extend(repository.newest_seen(domain));
        let unlisted: Vec<PointId> = known.difference(&listed).copied().collect();
        known.extend(listed);
        let checked = repository.look_for(domain, &unlisted, &mut known, cancel);
        // What is gone was removed by another host, and is asked for once.
        repository.remember_points(domain, &known);
        checked
    }

    /// Fails if the list of a domain lacks an archive that a manifest names, and that is there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: it does, or an archive can't be looked for. A folder can't be listed.
    pub(crate) fn check_archives_listed(&self, domain: &DomainName) -> Result<()> {
        for disk in self.disks_of(domain)? {
            if let Some(archive) = self.points(&disk)?.unlisted.first() {
                let path = self.repository().describe(archive);
                let text = format!(
                    "the list of the archives of {disk} lacks {}, which is there",
                    path.display()
                );
                return Err(refusal(text));
            }
        }
        Ok(())
    }
}

/// How a list shows the manifest of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// As it is; or it is gone.
    AsItIs,
    /// As it was before it was replaced.
    AsItWas,
    /// Not at all.
    Not,
}

impl Shown {
    /// Fails unless the list of a domain shows this point as it is.
    fn check(self, domain: &DomainName, point: PointId) -> Result<()> {
        let what = match self {
            Self::AsItIs => return Ok(()),
            Self::Not => format!("lacks {point}, which is there"),
            Self::AsItWas => format!("shows {point} as it was before somebody changed it"),
        };
        Err(refusal(format!("the list of the points of {domain} {what}")))
    }
}

/// What is said where a list proves wrong before something goes.
fn refusal(text: String) -> Error {
    Error::new(ErrorKind::Io, text)
        .because("other points may be missing in it: nothing of the guest is removed or merged")
        .advise(
            "the index of the store lags, or something in front of it cuts lists: try again when qdelta points \
             shows the point",
        )
}

impl Repository {
    /// Whether the list of a domain shows the manifest of a point as it is.
    ///
    /// # Errors
    /// It can't be told.
    pub(super) fn is_shown(&self, domain: &DomainName, point: PointId) -> Result<bool> {
        Ok(self.compare_with_list(domain, &[point])? == [Shown::AsItIs])
    }

    /// What is said of each of these points that the list of a domain does not show as it is.
    ///
    /// # Errors
    /// It can't be told.
    pub(super) fn misshown(
        &self,
        domain: &DomainName,
        points: BTreeSet<PointId>,
    ) -> Result<BTreeMap<PointId, Error>> {
        let points = Vec::from_iter(points);
        let shown = self.compare_with_list(domain, &points)?;
        let wrong = points.into_iter().zip(shown);
        Ok(wrong.filter_map(|(it, shown)| Some((it, shown.check(domain, it).err()?))).collect())
    }

    /// How the list of a domain shows the manifests of points, which are asked for by themselves.
    fn compare_with_list(&self, domain: &DomainName, points: &[PointId]) -> Result<Vec<Shown>> {
        let folder = self.points_dir(domain);
        let names: Vec<String> = points.iter().map(|it| Manifest::file_name(*it)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let listed = self.storage().entries(&folder, &names)?;
        let found = self.storage().ask_for(&folder, &names)?;
        let one = |(listed, found): (Option<Entry>, Option<Entry>)| match (listed, found) {
            (_, None) => Shown::AsItIs,
            (None, Some(_)) => Shown::Not,
            (Some(listed), Some(found)) if listed.version == found.version => Shown::AsItIs,
            _ => Shown::AsItWas,
        };
        Ok(listed.into_iter().zip(found).map(one).collect())
    }

    /// Looks for points that a list lacks, and forgets of those that are `known` which are gone.
    fn look_for(
        &self,
        domain: &DomainName,
        points: &[PointId],
        known: &mut BTreeSet<PointId>,
        cancel: &Cancel,
    ) -> Result<()> {
        let folder = self.points_dir(domain);
        for points in points.chunks(LOOKS_AT_ONCE) {
            cancel.check()?;
            let names: Vec<String> = points.iter().map(|it| Manifest::file_name(*it)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for (point, found) in points.iter().zip(self.storage().ask_for(&folder, &names)?) {
                if found.is_some() {
                    let text =
                        format!("the list of the points of {domain} lacks {point}, which is there");
                    return Err(refusal(text));
                }
                known.remove(point);
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::archive::Kind;
    use crate::vault::repository::tests::{back_up, disk, fresh};

    /// Thousands of points that another host had removed were asked for one after the other, and nobody could stop that.
    #[test]
    fn what_was_found_gone_is_forgotten_and_a_request_to_stop_is_heard() {
        let (dir, repository) = fresh();
        let repository = repository.with_state(&dir.path().join("state"));
        let id = disk("vm/vda");
        let there = back_up(&repository, &id, Kind::Full).unwrap();
        let gone = (1..=300).map(|ms| PointId::from_ms(ms).unwrap());
        let all: BTreeSet<PointId> = gone.chain([there]).collect();
        std::fs::create_dir_all(repository.known_path(&id.domain).unwrap().parent().unwrap())
            .unwrap();
        repository.remember_points(&id.domain, &all);
        let cancel = Cancel::default();
        cancel.cancel();
        let check = |cancel| repository.catalog().check_listed(&id.domain, cancel);
        assert_eq!(check(&cancel).unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(repository.known_points(&id.domain), all);
        check(&Cancel::default()).unwrap();
        assert_eq!(repository.known_points(&id.domain), BTreeSet::from([there]));
    }
}
