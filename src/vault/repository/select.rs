//! Which point of a disk or a guest somebody means.

use std::collections::BTreeSet;

use super::catalog::Catalog;
use super::manifest::{self, Manifest};
use super::names::{DiskId, DomainName};
use super::point::{Among, PointId, Selector};
use super::{Point, Survey};
use crate::base::error::{Error, ErrorKind, Result};

impl Catalog {
    /// The point of a disk that a selector means: an id, or the very millisecond of a point, means any
    /// point; the latest or another time means backups alone, and neither a safety point nor one of a snapshot,
    /// which is older than its id says. A removed point is meant by its whole id or its very millisecond alone.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Usage`] if an id's beginning fits
    /// several, [`ErrorKind::Damaged`] if the answer may be a point whose manifest is damaged: an
    /// older one is never given in its place.
    pub fn resolve(&self, id: &DiskId, selector: &Selector) -> Result<Point> {
        self.resolve_among(id, selector, Among::Backups)
    }

    /// The last safety point that a selector passed over when it meant `point`, if there is one.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn passed_over(
        &self,
        id: &DiskId,
        selector: &Selector,
        point: PointId,
    ) -> Result<Option<PointId>> {
        if matches!(selector, Selector::Id(_)) {
            return Ok(None);
        }
        let last = self.resolve_among(id, selector, Among::All)?.id;
        Ok((last > point).then_some(last))
    }

    /// The newest point of a disk that is not removed, a safety point or not: what the next backup
    /// builds on. No anchor belongs to the point of a snapshot, so it is none of these.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn newest(&self, id: &DiskId) -> Result<Point> {
        self.resolve_among(id, &Selector::Latest, Among::All)
    }

    /// Looks for the point from the newest manifest on, and reads no older one than it must: a
    /// damaged one on the way may be the answer.
    fn resolve_among(&self, id: &DiskId, selector: &Selector, among: Among) -> Result<Point> {
        self.check_domain(id)?;
        let domain = self.domain(&id.domain);
        if let Some(folder) = domain.unreadable() {
            return Err(folder.error.within(format!("the points of {id} can't be told")).advise(
                "qdelta replay restores from the archives alone: the full first, in order",
            ));
        }
        let is_id = matches!(selector, Selector::Id(_));
        // What a list shows of a safety point must mean that point.
        let is_exact = |point: &Point| match selector {
            Selector::Id(id) => *id == point.id.to_string(),
            selector => *selector == Selector::At(point.id.time()),
        };
        let is_meant = |point: &Point| match &point.removed {
            Some(_) => is_exact(point),
            None if is_id || is_exact(point) => true,
            None => !point.is_of_snapshot() && (among == Among::All || !point.safety),
        };
        let mut found = Vec::new();
        let mut in_doubt = None;
        for &point in domain.points().iter().rev().filter(|point| fits(selector, **point)) {
            match domain.manifest(point) {
                Some(Ok(manifest)) => found.extend(domain.point(manifest, id).filter(is_meant)),
                Some(Err(error)) if in_doubt.is_none() => in_doubt = Some((point, error.clone())),
                _ => {}
            }
            // The beginning of an id must fit no other point; otherwise the latest is the answer.
            if !is_id && (in_doubt.is_some() || !found.is_empty()) {
                break;
            }
        }
        if let (Selector::Id(prefix), 2..) = (selector, found.len()) {
            let ids: Vec<_> = found.iter().rev().map(|point| point.id).collect();
            return Err(ambiguous(prefix, ids.into_iter()));
        }
        if let Some((point, error)) = in_doubt {
            return Err(error
                .within(format!("point {point} of {id} can't be told"))
                .advise("name another point by its id: qdelta points lists them"));
        }
        let Some(found) = found.pop() else {
            return Err(self.no_such_point(id, selector, &is_meant));
        };
        match self.lost_instead(id, selector, &found)?.filter(|_| among == Among::Backups) {
            Some(lost) => Err(Error::new(
                ErrorKind::Damaged,
                format!("the manifest of point {lost} of {id} is lost, though its archive is there"),
            )
            .advise(format!(
                "{} is the point before it: name it by its id; qdelta replay restores the lost one from the archives",
                found.id
            ))),
            None => Ok(found),
        }
    }

    /// The newest point that a selector may mean in the place of `found`, whose manifest is lost and whose
    /// archive is there.
    fn lost_instead(
        &self,
        id: &DiskId,
        selector: &Selector,
        found: &Point,
    ) -> Result<Option<PointId>> {
        let domain = self.domain(&id.domain);
        let folder = domain.folder(&id.disk);
        // Why a folder can't be listed is told by whoever needs an archive of it.
        let Ok(folder) = &*folder else { return Ok(None) };
        let is_id = matches!(selector, Selector::Id(_));
        let may_be = |point: PointId| {
            fits(selector, point)
                && if is_id { point != found.id } else { point > found.id }
                && domain.points().binary_search(&point).is_err()
        };
        let points = folder.names.iter().filter_map(|name| manifest::parse_archive_name(name));
        if !points.map(|(point, _)| point).any(may_be) {
            return Ok(None);
        }
        let strays = self.strays(id)?.into_iter().map(|(_, point)| point);
        Ok(strays.filter(|point| may_be(*point)).max())
    }

    /// Says that a selector means no point of a disk, and why.
    fn no_such_point(
        &self,
        id: &DiskId,
        selector: &Selector,
        is_meant: &dyn Fn(&Point) -> bool,
    ) -> Error {
        if let Some(wrong) = self.unlisted(id, selector) {
            return wrong;
        }
        let points = self.points(id).map(|list| list.points).unwrap_or_default();
        let text = match (selector, points.iter().find(|point| is_meant(point))) {
            (_, None) if !self.strays(id).unwrap_or_default().is_empty() => {
                return Error::new(
                    ErrorKind::Damaged,
                    format!("the manifests of {id} are gone, though there are archives"),
                )
                .advise("qdelta replay restores from the archives: the full first, in order");
            }
            (_, None) if points.iter().any(|point| point.removed.is_some()) => {
                return Error::new(ErrorKind::NotFound, format!("{id} has no point {selector}"))
                    .because("others were removed")
                    .advise("qdelta points --removed lists them; qdelta undelete brings one back");
            }
            (_, None) if points.iter().all(Point::is_of_snapshot) && !points.is_empty() => {
                let text = format!("{id} has no backup, only points of snapshots");
                let last = points.last().map(|point| point.id.to_string()).unwrap_or_default();
                return Error::new(ErrorKind::NotFound, text)
                    .advise(format!("name the one that is meant: {id}@{last}"));
            }
            (_, None) => match points.iter().rfind(|point| point.safety).map(|point| point.id) {
                None => format!("{id} has no points yet"),
                Some(safety) => {
                    let text = format!("{id} has no backup, only safety points of roll backs");
                    return Error::new(ErrorKind::NotFound, text)
                        .advise(format!("name the one that is meant: {id}@{safety}"));
                }
            },
            (Selector::At(time), Some(first)) => {
                format!("{id} has no point at or before {time}; its first is {}", first.id)
            }
            _ => format!("{id} has no point {selector}"),
        };
        Error::new(ErrorKind::NotFound, text).advise("qdelta points lists the points")
    }

    /// What is said of a point that is meant by its whole id, and is there, and the list lacks it.
    fn unlisted(&self, id: &DiskId, selector: &Selector) -> Option<Error> {
        let Selector::Id(text) = selector else { return None };
        let point = text.parse().ok()?;
        let mut wrong = self.repository().misshown(&id.domain, BTreeSet::from([point])).ok()?;
        wrong.remove(&point)
    }

    /// The manifest of the point of a domain that a selector means.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_domain(&self, domain: &DomainName, selector: &Selector) -> Result<Manifest> {
        let mut found = BTreeSet::new();
        let mut none = None;
        let mut survey = Survey::default();
        self.survey_domain(domain, &mut survey);
        for disk in survey.disks {
            match self.resolve(&disk, selector) {
                Ok(point) => {
                    found.insert(point.id);
                }
                // A disk may be younger than the point, or not be in it.
                Err(error) if error.kind() == ErrorKind::NotFound => none = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let (Selector::Id(prefix), Some(first), Some(last)) =
            (selector, found.first(), found.last())
            && first != last
        {
            // For each disk it may be the beginning of one alone.
            return Err(ambiguous(prefix, found.iter().copied()));
        }
        let text = format!("{domain} has no such point");
        let none = none.unwrap_or_else(|| Error::new(ErrorKind::NotFound, text));
        let Some(point) = found.pop_last() else { return Err(none) };
        self.domain(domain).manifest(point).cloned().unwrap_or(Err(none))
    }
}

/// Whether a selector may mean a point, by its id alone.
fn fits(selector: &Selector, point: PointId) -> bool {
    match selector {
        Selector::Latest => true,
        Selector::At(time) => point.time() <= *time,
        Selector::Id(prefix) => point.to_string().starts_with(prefix.as_str()),
    }
}

/// The beginning of an id that several points have.
fn ambiguous(prefix: &str, found: impl ExactSizeIterator<Item = PointId>) -> Error {
    let count = found.len();
    let shown: Vec<_> = found.take(3).map(|point| point.to_string()).collect();
    let more = match count - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = shown.join(", ");
    Error::new(
        ErrorKind::Usage,
        format!("{prefix} is the beginning of several points: {shown}{more}"),
    )
    .advise("give more of the id")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;

    use super::*;
    use crate::formats::archive::Kind;
    use crate::vault::repository::storage::Wait;
    use crate::vault::repository::tests::{back_up, disk, fresh, manifest_path};

    #[test]
    fn a_damaged_manifest_is_never_passed_over() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let first = back_up(&repository, &id, Kind::Full).unwrap();
        let second = back_up(&repository, &id, Kind::Full).unwrap();
        fs::write(manifest_path(&repository, &id, second), "{}").unwrap();
        let kind = |selector: &str| {
            let selector = selector.parse().unwrap();
            repository
                .catalog()
                .resolve(&id, &selector)
                .map(|point| point.id)
                .map_err(|error| error.kind())
        };
        assert_eq!(kind("latest"), Err(ErrorKind::Damaged));
        assert_eq!(kind("2999-01-01"), Err(ErrorKind::Damaged));
        assert_eq!(kind(&second.to_string()), Err(ErrorKind::Damaged));
        assert_eq!(kind(&first.to_string()), Ok(first));
        // Once a later point is there, that one is the latest without a doubt.
        let third = back_up(&repository, &id, Kind::Full).unwrap();
        assert_eq!(kind("latest"), Ok(third));
        // The archive of the damaged manifest is no leftover.
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        assert!(repository.clean(&lock).unwrap().0.removed.is_empty());
    }

    /// The newest manifest was renamed, and `restore` gave the point before it, status 0 and without a word.
    #[test]
    fn no_older_point_is_given_for_one_whose_manifest_is_lost() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let first = back_up(&repository, &id, Kind::Full).unwrap();
        let second = back_up(&repository, &id, Kind::Incremental).unwrap();
        let path = manifest_path(&repository, &id, second);
        fs::rename(&path, path.with_file_name("lost")).unwrap();
        let find = |selector: &str| {
            let found = repository.catalog().resolve(&id, &selector.parse().unwrap());
            found.map(|point| point.id).map_err(|error| error.kind())
        };
        assert_eq!(find("latest"), Err(ErrorKind::Damaged));
        assert_eq!(find("2999-01-01"), Err(ErrorKind::Damaged));
        assert_eq!(find(&first.to_string()), Ok(first));
        // A backup that is being finished is none that was lost.
        fs::write(path.with_file_name(format!(".{second}.json.partial")), "").unwrap();
        assert_eq!(find("latest"), Ok(first));
    }

    #[test]
    fn a_selector_finds_the_point_that_is_meant() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let first = back_up(&repository, &id, Kind::Full).unwrap();
        let second = back_up(&repository, &id, Kind::Incremental).unwrap();
        let find = |selector: &Selector| {
            repository
                .catalog()
                .resolve(&id, selector)
                .map(|point| point.id)
                .map_err(|error| error.kind())
        };
        let ms = |point: PointId, add: i64| {
            Selector::At(Timestamp::from_millisecond(point.as_ms() as i64 + add).unwrap())
        };
        assert_eq!(find(&Selector::Latest), Ok(second));
        assert_eq!(find(&ms(second, 0)), Ok(second));
        assert_eq!(find(&ms(second, 10_000)), Ok(second));
        assert_eq!(find(&ms(second, -1)), Ok(first));
        assert_eq!(find(&ms(first, -1)), Err(ErrorKind::NotFound));
        assert_eq!(find(&Selector::Id(first.to_string())), Ok(first));
        assert_eq!(find(&Selector::Id(first.to_string()[..8].to_owned())), Err(ErrorKind::Usage));
        assert_eq!(find(&Selector::Id("1999".to_owned())), Err(ErrorKind::NotFound));
    }
}
