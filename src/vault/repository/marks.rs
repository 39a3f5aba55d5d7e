//! Marks of a point: it is pinned, or it is removed and can still be brought back.
//!
//! A mark stands in the point's manifest, and is set as every other change of a manifest is: another
//! one takes its place. What the point shows stays the same.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{self, Manifest};
use super::point::PointId;
use super::snapshot::SNAPSHOT_HOLDER;
use super::{DomainLock, DomainName, Repository};
use crate::base::error::Result;
use crate::base::json::text;

/// One of those who want a point to stay, whatever the rules say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Who set the pin, and alone takes it away; none for an admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// When it was set.
    #[serde(with = "text")]
    pub at: Timestamp,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Until when it stays; none for ever.
    #[serde(default, with = "text::optional", skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Pin {
    /// Whether it holds the point of a snapshot as long as an image has the snapshot.
    pub fn is_of_snapshot(&self) -> bool {
        self.holder.as_deref() == Some(SNAPSHOT_HOLDER)
    }

    /// Whether the pin still holds.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// A point that nobody is shown any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// When it was removed.
    #[serde(with = "text")]
    pub at: Timestamp,
    /// Until when its data stays, whatever comes.
    #[serde(with = "text")]
    pub until: Timestamp,
    /// Why, for people.
    pub reason: String,
}

impl Removal {
    /// Whether its time is over: its data may go at any moment.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until <= now
    }
}

/// The marks of a point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Its pins, one of each holder: it is pinned while one of them holds.
    pub pins: Vec<Pin>,
    /// It is removed.
    pub removed: Option<Removal>,
}

impl Marks {
    /// Sets a pin, in the place of another one of the same holder.
    pub fn pin(&mut self, pin: Pin) {
        self.unpin(pin.holder.as_deref());
        self.pins.push(pin);
    }

    /// Takes the pin of a holder away, if there is one.
    pub fn unpin(&mut self, holder: Option<&str>) -> Option<Pin> {
        let is_its = |pin: &Pin| pin.holder.as_deref() == holder;
        let place = self.pins.iter().position(is_its)?;
        Some(self.pins.remove(place))
    }
}

impl Repository {
    /// Changes the marks of a point of the domain that is locked, and gives what they are now. Nothing
    /// is written if they stay as they were.
    ///
    /// # Errors
    /// The point's manifest is missing or damaged, or can't be replaced; what `change` says.
    pub fn mark(
        &self,
        lock: &DomainLock,
        point: PointId,
        change: impl FnOnce(&mut Marks) -> Result<()>,
    ) -> Result<Marks> {
        let (mut manifest, version) = self.versioned(lock.domain(), point)?;
        let before = manifest.marks();
        let mut after = before.clone();
        change(&mut after)?;
        if after != before {
            manifest.set_marks(after.clone());
            self.replace(lock, version, &manifest)?;
        }
        Ok(after)
    }
}

impl Repository {
    /// The marks of a point whose manifest is damaged, as far as they can still be read; none of one that is lost.
    pub(crate) fn marks_left(&self, domain: &DomainName, point: PointId) -> Marks {
        let name = self.points_dir(domain).join(&Manifest::file_name(point));
        let bytes = self.storage().read(&name, manifest::LEN_MAX).unwrap_or_default();
        left(&bytes, point)
    }
}

/// The marks that can be read in a damaged manifest of a point. That it is removed counts, though not when or why.
fn left(bytes: &[u8], point: PointId) -> Marks {
    let pins = field(bytes, "pins").flatten().unwrap_or_default();
    let removed = match field::<Removal>(bytes, "removed") {
        Some(Some(removed)) => Some(removed),
        Some(None) => Some(Removal {
            at: point.time(),
            until: point.time(),
            reason: "its manifest was damaged, and still said that it was removed".to_owned(),
        }),
        // The name of the field may be what is damaged.
        None => serde_json::from_slice(bytes).ok().and_then(|fields| match fields {
            Value::Object(fields) => {
                fields.into_iter().find_map(|(_, value)| serde_json::from_value(value).ok())
            }
            _ => None,
        }),
    };
    Marks { pins, removed }
}

/// A field of a damaged manifest, if its name can be read: its value, if that can be read as well.
fn field<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Option<Option<T>> {
    let name = format!("\"{name}\":");
    let at = bytes.windows(name.len()).position(|found| found == name.as_bytes())?;
    let value = bytes.get(at + name.len()..).unwrap_or_default();
    let value = serde_json::Deserializer::from_slice(value).into_iter::<T>().next();
    Some(value.and_then(Result::ok))
}

impl Manifest {
    /// The point's marks.
    pub fn marks(&self) -> Marks {
        Marks { pins: self.pins.clone(), removed: self.removed.clone() }
    }

    /// Whether a pin of the point holds. One that has ended protects nothing.
    pub fn is_pinned(&self, now: Timestamp) -> bool {
        self.pins.iter().any(|pin| pin.holds(now))
    }

    fn set_marks(&mut self, marks: Marks) {
        (self.pins, self.removed) = (marks.pins, marks.removed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::error::{Error, ErrorKind};
    use crate::formats::archive::Kind;
    use crate::vault::repository::storage::Wait;
    use crate::vault::repository::storage::durable::faults::{self, Mode};
    use crate::vault::repository::tests::{back_up, disk, fresh, manifest_path};
    use crate::vault::repository::{DiskId, Selector};

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn removal() -> Removal {
        Removal {
            at: time("2026-11-22T10:00:00Z"),
            until: time("2026-11-29T10:00:00Z"),
            reason: "no rule keeps it".to_owned(),
        }
    }

    fn pin() -> Pin {
        Pin {
            holder: None,
            at: time("2026-11-22T10:00:00Z"),
            reason: Some("the audit".to_owned()),
            until: None,
        }
    }

    fn remove(repository: &Repository, id: &DiskId, point: PointId) {
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let mark = |marks: &mut Marks| {
            marks.removed = Some(removal());
            Ok(())
        };
        repository.mark(&lock, point, mark).unwrap();
    }

    #[test]
    fn marks_are_kept_and_change_nothing_else() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        back_up(&repository, &id, Kind::Full).unwrap();
        let point = back_up(&repository, &id, Kind::Incremental).unwrap();
        let (before, version) = repository.versioned(&id.domain, point).unwrap();
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let set = |marks: &mut Marks| {
            *marks = Marks { pins: vec![pin()], removed: Some(removal()) };
            Ok(())
        };
        let marks = repository.mark(&lock, point, set).unwrap();
        let (after, marked) = repository.versioned(&id.domain, point).unwrap();
        assert_eq!((&after.disks, after.created), (&before.disks, before.created));
        assert_eq!(after.marks(), marks);
        assert_eq!(marks, Marks { pins: vec![pin()], removed: Some(removal()) });
        // What changes nothing writes nothing; a refusal neither.
        repository.mark(&lock, point, set).unwrap();
        let refuse = |marks: &mut Marks| {
            marks.pins.clear();
            Err(Error::new(ErrorKind::Usage, "no"))
        };
        repository.mark(&lock, point, refuse).unwrap_err();
        assert_eq!(repository.versioned(&id.domain, point).unwrap().1, marked);
        // Without marks the manifest is, byte for byte, the one that it was.
        let unset = |marks: &mut Marks| {
            *marks = Marks::default();
            Ok(())
        };
        repository.mark(&lock, point, unset).unwrap();
        assert_eq!(repository.versioned(&id.domain, point).unwrap().1, version);
    }

    /// A point that was removed came back living when its manifest was damaged and mended, and one that was pinned
    /// without its pin.
    #[test]
    fn marks_are_read_from_a_damaged_manifest() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let point = back_up(&repository, &id, Kind::Full).unwrap();
        let path = manifest_path(&repository, &id, point);
        let plain = fs::read(&path).unwrap();
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let marks = Marks { pins: vec![pin()], removed: Some(removal()) };
        let set = |it: &mut Marks| {
            *it = marks.clone();
            Ok(())
        };
        repository.mark(&lock, point, set).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(repository.marks_left(&id.domain, point), marks);
        let (mut lost, mut made_up) = (0, 0);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x04;
            let found = left(&bytes, point);
            lost += usize::from(found.removed.is_none());
            made_up += usize::from(found.removed.is_some_and(|it| it != removal()));
            // Nothing is removed that was not.
            let mut bytes = plain.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x04;
                assert_eq!(left(&bytes, point), Marks::default(), "{at}");
            }
        }
        assert!(lost <= 4 && made_up > 40, "{lost} lost, {made_up} made up");
        assert_eq!(left(b"", point), Marks::default());
        assert_eq!(left(&whole[..whole.len() / 4], point).removed, None);
    }

    /// A point whose archive was lost must not be shown for ever.
    #[test]
    fn a_point_whose_archive_is_missing_can_be_marked() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let point = back_up(&repository, &id, Kind::Full).unwrap();
        let archive = repository.catalog().points(&id).unwrap().points[0].archive.clone();
        fs::remove_file(repository.describe(&archive)).unwrap();
        remove(&repository, &id, point);
        assert!(repository.catalog().points(&id).unwrap().points[0].removed.is_some());
    }

    #[test]
    fn nobody_means_a_removed_point_without_its_whole_id() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let [first, second, third] = [Kind::Full, Kind::Incremental, Kind::Incremental]
            .map(|kind| back_up(&repository, &id, kind).unwrap());
        remove(&repository, &id, second);
        remove(&repository, &id, third);
        let catalog = repository.catalog();
        let find = |selector: &Selector| catalog.resolve(&id, selector).map(|point| point.id);
        let whole = |point: PointId| Selector::Id(point.to_string());
        assert_eq!(find(&Selector::Latest).unwrap(), first);
        assert_eq!(find(&Selector::At(time("2999-01-01T00:00:00Z"))).unwrap(), first);
        assert_eq!(find(&Selector::At(third.time())).unwrap(), third, "as a list shows it");
        assert_eq!(find(&whole(third)).unwrap(), third);
        assert_eq!(find(&whole(second)).unwrap(), second);
        let text = third.to_string();
        let begun = Selector::Id(text[..text.len() - 1].to_owned());
        assert!(find(&begun).map_or(true, |point| point == first), "{begun:?}");
        assert_eq!(catalog.newest(&id).unwrap().id, first, "what the next backup is made against");
        let latest = catalog.latest_first(&id).unwrap().map(|point| point.id);
        assert_eq!(latest.collect::<Vec<_>>(), [first]);
        // Its chain still runs through it.
        let point = catalog.resolve(&id, &whole(third)).unwrap();
        assert_eq!(catalog.chain_of(&point).unwrap().len(), 3);
        remove(&repository, &id, first);
        let error = repository.catalog().resolve(&id, &Selector::Latest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.advice().unwrap().contains("--removed"), "{error:?}");
    }

    /// A removed point was brought back while somebody else, who had taken the lock, was removing it for good: "is back",
    /// it was said.
    #[test]
    fn a_mark_that_was_set_while_somebody_else_wrote_is_told() {
        let (_dir, repository) = fresh();
        let id = disk("vm/vda");
        let point = back_up(&repository, &id, Kind::Full).unwrap();
        let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
        let mut thief = None;
        let marked = repository.mark(&lock, point, |marks| {
            let file = repository.describe(&repository.domain_dir(&id.domain).join(".lock"));
            fs::remove_file(file).unwrap();
            thief = Some(repository.lock(&id.domain, Wait::UNHEARD).unwrap());
            marks.pin(pin());
            Ok(())
        });
        let error = marked.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{}", error.chain());
        assert!(!error.advice().unwrap_or_default().contains("nothing was published"), "{error}");
    }

    /// Whatever fails, or wherever the program dies: the point is marked or it is not, and can be read.
    #[test]
    fn a_mark_is_set_or_not_whatever_happens() {
        for mode in [Mode::Fail, Mode::Kill] {
            let (mut at, mut marked) = (0, 0);
            loop {
                let (_dir, repository) = fresh();
                let id = disk("vm/vda");
                let point = back_up(&repository, &id, Kind::Full).unwrap();
                let (before, _) = repository.versioned(&id.domain, point).unwrap();
                let lock = repository.lock(&id.domain, Wait::UNHEARD).unwrap();
                let set = |marks: &mut Marks| {
                    marks.pin(pin());
                    Ok(())
                };
                faults::arm(at, mode);
                let result = repository.mark(&lock, point, set);
                faults::disarm();
                let (after, _) = repository.versioned(&id.domain, point).unwrap();
                assert_eq!(after.disks, before.disks, "{mode:?} at step {at}");
                assert!([vec![], vec![pin()]].contains(&after.pins), "{mode:?} at step {at}");
                marked += u32::from(!after.pins.is_empty());
                repository.clean(&lock).unwrap();
                assert!(manifest_path(&repository, &id, point).is_file());
                if result.is_ok() {
                    assert!(!after.pins.is_empty());
                    break;
                }
                at += 1;
            }
            assert!(at >= 3 && marked >= 1, "{mode:?}: {at} steps, {marked} times marked");
        }
    }
}
