//! What this host knows of the archives of a domain beside what the repository says: when each was
//! proved, what was found to be wrong with it, and how much all took on the days before.
//!
//! The history lies in the folder of this host's state. It holds nothing that a restore needs, so one
//! that is lost or damaged says that nothing was ever proved. What it says of an archive is about the very
//! file: a file that was written to or replaced since, or lies in a copy of the repository, was not
//! looked at yet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::drills::Drill;
use super::names::{DiskId, DiskName, DomainName};
use super::sizes::Size;
use super::storage::{Entry, Local, LockMode, Locked, Name, Publish, Storage, Wait};
use super::{Catalog, Point, PointId, Repository};
use crate::base::clock;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::make_private_folder;

/// The longest history that is read, in bytes: some hundred thousand archives.
const LEN_MAX: u64 = 64 << 20;

/// How often a run asks for the history that another one is writing, a second each time.
const TRIES: u32 = 10;

/// What is known of the archives of a domain.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// By disk and file name.
    disks: BTreeMap<DiskName, BTreeMap<String, Seen>>,
    /// The drills of the guest, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) drills: Vec<Drill>,
    /// How much the archives took, the oldest day first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sizes: Vec<Size>,
}

/// What is known of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// The file that was looked at.
    stamp: Stamp,
    /// When it was read, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_ms: Option<i64>,
    /// What is wrong with it; none if it was proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

/// By what a file is recognised that nobody has written to or replaced. None: it was missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp(Option<String>);

impl Stamp {
    /// That of what was found under a name; nothing where the storage can't tell one file from another.
    pub(crate) fn of(found: Option<&Entry>) -> Option<Self> {
        let Some(entry) = found else { return Some(Self(None)) };
        let (len, version) = (entry.len?, entry.version.as_ref()?);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&len.to_le_bytes()).update(version.as_bytes());
        let digest = hasher.finalize().to_hex();
        Some(Self(Some(digest.chars().take(16).collect())))
    }
}

/// How an archive was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte was read and proved.
    Proved,
    /// Something is wrong with it: the text says what.
    Damaged(String),
}

impl History {
    /// Notes how an archive was found that was as `stamp` says before it was read.
    pub fn note(&mut self, disk: &DiskName, archive: &str, stamp: Stamp, verdict: Verdict) {
        let archives = self.disks.entry(disk.clone()).or_default();
        // A clock outside all years: then nobody knows when.
        let now = clock::now().ok().map(Timestamp::as_millisecond);
        let damage = match verdict {
            Verdict::Proved => None,
            Verdict::Damaged(problem) => Some(problem),
        };
        archives.insert(archive.to_owned(), Seen { stamp, read_ms: now, damage });
    }

    /// Notes that an archive that is as `stamp` says was made of archives that were all proved at this time or later.
    /// Whoever made it has checked all that it took over; a verification reads the file itself at the turn of those.
    pub fn inherit(&mut self, disk: &DiskName, archive: &str, stamp: Stamp, time: Timestamp) {
        let seen = Seen { stamp, read_ms: Some(time.as_millisecond()), damage: None };
        self.disks.entry(disk.clone()).or_default().insert(archive.to_owned(), seen);
    }

    /// Forgets the archives of a disk that are not among `named`.
    pub fn forget_others(&mut self, disk: &DiskName, named: &BTreeSet<&str>) {
        if let Some(archives) = self.disks.get_mut(disk) {
            archives.retain(|archive, _| named.contains(archive.as_str()));
        }
    }

    /// When an archive was proved that is as `stamp` says.
    pub fn proved(
        &self,
        disk: &DiskName,
        archive: &str,
        stamp: Option<&Stamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let is_sound = self.damage(disk, archive, stamp).is_none();
        self.read(disk, archive, stamp, now).filter(|_| is_sound)
    }

    /// When an archive was read that is as `stamp` says, whatever was found. What was read in the future
    /// was not: the clock was wrong then, or is now.
    pub fn read(
        &self,
        disk: &DiskName,
        archive: &str,
        stamp: Option<&Stamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let time = self.seen(disk, archive, stamp)?.read_ms?;
        Timestamp::from_millisecond(time).ok().filter(|time| *time <= now)
    }

    /// What is wrong with an archive that is as `stamp` says, as far as anybody knows.
    pub fn damage(&self, disk: &DiskName, archive: &str, stamp: Option<&Stamp>) -> Option<&str> {
        self.seen(disk, archive, stamp)?.damage.as_deref()
    }

    fn seen(&self, disk: &DiskName, archive: &str, stamp: Option<&Stamp>) -> Option<&Seen> {
        let seen = self.disks.get(disk)?.get(archive)?;
        (Some(&seen.stamp) == stamp).then_some(seen)
    }

    /// The archives of a disk with damage, and what is wrong with them.
    fn damaged(&self, disk: &DiskName) -> impl Iterator<Item = (&str, &Stamp, &str)> {
        let archives = self.disks.get(disk).into_iter().flatten();
        archives
            .filter_map(|(name, seen)| Some((name.as_str(), &seen.stamp, seen.damage.as_deref()?)))
    }
}

impl Repository {
    /// What this host knows of the archives of a domain: nothing if there is no history, or none that can
    /// be read.
    pub fn history(&self, domain: &DomainName) -> History {
        let Some(state) = &self.state else { return History::default() };
        read(&Local::new(state), &name_of(domain)).unwrap_or_default()
    }

    /// Changes what this host knows of the archives of a domain. Runs beside each other lose nothing of
    /// what each has noted.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: another run holds on to the history. The history can't be written. Nothing
    /// depends on it: what was proved will be proved again.
    pub fn note(&self, domain: &DomainName, change: impl FnOnce(&mut History)) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        make_private_folder(state).map_err(|error| Error::io("make", state, error))?;
        let storage = Local::new(state);
        let name = name_of(domain);
        let lock_name = Name::top().join(&format!("{}.lock", name.last()));
        let mut tries = 0;
        let _lock = loop {
            match storage.lock(&lock_name, LockMode::Exclusive, Wait::UNHEARD)? {
                Locked::Held(lock) => break lock,
                Locked::Busy(_) if tries < TRIES => tries += 1,
                Locked::Busy(holder) => {
                    let path = storage.describe(&name);
                    let text = format!("{} is being written by {holder}", path.display());
                    return Err(Error::new(ErrorKind::Busy, text));
                }
            }
        };
        let mut history = read(&storage, &name).unwrap_or_default();
        change(&mut history);
        let text = serde_json::to_string(&history).map_err(|error| {
            Error::new(ErrorKind::Io, "the history of a guest can't be written").because(error)
        })?;
        let bytes = [digest(&text).as_bytes(), b"\n", text.as_bytes()].concat();
        let storage: &dyn Storage = &storage;
        storage.write(&name, &bytes, Publish::Replace)
    }
}

impl Catalog {
    /// The stamp of an archive as it is now; nothing where it can't be told.
    pub(crate) fn stamp(&self, archive: &Name) -> Option<Stamp> {
        let found = self.repository().storage().entry(archive).ok()?;
        Stamp::of(found.as_ref())
    }

    /// When all of these archives of a disk were proved last; none if one never was.
    pub(crate) fn proved_together<'a>(
        &self,
        history: &History,
        disk: &DiskId,
        archives: impl IntoIterator<Item = &'a str>,
    ) -> Option<Timestamp> {
        let now = clock::now().ok()?;
        let proved = archives.into_iter().map(|name| {
            let stamp = self.stamp(&self.repository().archive(disk, name));
            history.proved(&disk.disk, name, stamp.as_ref(), now)
        });
        proved.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// When each point of a disk was proved last: all archives that the point needs were, then or later.
    /// A point that needs one which never was is left out.
    pub fn proofs(
        &self,
        disk: &DiskId,
        points: &[Point],
        now: Timestamp,
    ) -> BTreeMap<PointId, Timestamp> {
        let history = self.repository().history(&disk.domain);
        if !history.disks.contains_key(&disk.disk) {
            return BTreeMap::new();
        }
        let mut proofs: Vec<Option<Timestamp>> = Vec::new();
        let mut proved = BTreeMap::new();
        // Each archive comes after the one that it builds on.
        for needed in self.needed_by(disk, points) {
            let archive = &needed.link.archive;
            let stamp = self.stamp(archive);
            let own = history.proved(&disk.disk, archive.last(), stamp.as_ref(), now);
            let below = match needed.parent {
                Some(parent) => proofs.get(parent).copied().flatten(),
                None => own,
            };
            let proof = own.zip(below).map(|(own, below)| own.min(below));
            proved.extend(proof.map(|time| (needed.link.point, time)));
            proofs.push(proof);
        }
        proved
    }

    /// The points of a disk that need an archive in which damage was found, as long as the archive is the
    /// file that it was found in.
    pub fn known_damaged(&self, disk: &DiskId, points: &[Point]) -> BTreeSet<PointId> {
        let history = self.repository().history(&disk.domain);
        let noted: BTreeMap<&str, &Stamp> =
            history.damaged(&disk.disk).map(|(name, stamp, _)| (name, stamp)).collect();
        if noted.is_empty() {
            return BTreeSet::new();
        }
        let (mut is_damaged, mut damaged) = (Vec::new(), BTreeSet::new());
        // Each archive comes after the one that it builds on.
        for needed in self.needed_by(disk, points) {
            let archive = &needed.link.archive;
            let own = noted.get(archive.last());
            let own = own.is_some_and(|stamp| self.stamp(archive).as_ref() == Some(*stamp));
            let below = needed.parent.and_then(|parent| is_damaged.get(parent).copied());
            let is = own || below == Some(true);
            if is {
                damaged.insert(needed.link.point);
            }
            is_damaged.push(is);
        }
        damaged
    }

    /// Notes the archive that a failure is about, if it is damaged and of this repository: every later
    /// command about its disk tells. Whoever reads archives calls this with what failed; a verification
    /// notes more, and by itself.
    pub fn note_damage(&self, error: &Error) {
        let Some((path, own)) = error.file().filter(|_| error.kind() == ErrorKind::Damaged) else {
            return;
        };
        let Some((disk, archive)) = self.archive_at(path) else { return };
        // The file that was read, unless somebody has replaced it in this very moment.
        let Some(stamp) = self.stamp(&archive) else { return };
        let noted = self.repository().note(&disk.domain, |history| {
            let verdict = Verdict::Damaged(own.chain());
            history.note(&disk.disk, archive.last(), stamp, verdict);
        });
        if let Err(error) = noted {
            tracing::debug!(error = %error.chain(), "damage was not noted");
        }
    }

    /// The disk and the name of the archive that a path leads to.
    fn archive_at(&self, path: &Path) -> Option<(DiskId, Name)> {
        // Where names are encrypted, those on the way say nothing.
        let plain = self.repository().storage().plain_name(path);
        let shown = plain.as_deref().map_or(path, Path::new);
        let mut names = shown.iter().rev().map(|name| name.to_str());
        let [archive, disk, domain] = [names.next()??, names.next()??, names.next()??];
        let disk = DiskId { domain: domain.parse().ok()?, disk: disk.parse().ok()? };
        let archive = self.repository().archive(&disk, archive);
        (self.repository().describe(&archive) == path).then_some((disk, archive))
    }

    /// Warns of the archives of these disks in which damage was found, as long as they are the files that
    /// it was found in and a manifest names them.
    pub fn warn_of_damage<'a>(
        &self,
        disks: impl IntoIterator<Item = &'a DiskId>,
        observer: &dyn Observer,
    ) {
        if let Some(text) = self.strangers() {
            observer
                .warn(Warning::new(Code::Stray, text).advise("qdelta verify lists all of them"));
        }
        let mut histories: BTreeMap<&DomainName, History> = BTreeMap::new();
        for disk in disks {
            let domain = &disk.domain;
            let history =
                histories.entry(domain).or_insert_with(|| self.repository().history(domain));
            let damaged: Vec<_> = history.damaged(&disk.disk).collect();
            if damaged.is_empty() {
                continue;
            }
            let list = self.points(disk).map(|list| list.points).unwrap_or_default();
            for (archive, stamp, problem) in damaged {
                let Some(point) = list.iter().find(|point| point.record.archive == archive) else {
                    continue;
                };
                if self.stamp(&point.archive).as_ref() != Some(stamp) {
                    continue;
                }
                let text = format!("an archive of point {} is damaged: {problem}", point.id);
                let advice = format!(
                    "put a sound copy of the file back and run `qdelta verify {disk}`, or begin a new \
                     chain with `backup --kind full`"
                );
                observer.warn(Warning::new(Code::DamagedArchive, text).of(disk).advise(advice));
            }
        }
    }
}

/// The history of a domain, in the folder of this host's state.
fn name_of(domain: &DomainName) -> Name {
    // No name of a domain has a plus.
    Name::top().join(&format!("{domain}+history"))
}

fn read(storage: &dyn Storage, name: &Name) -> Option<History> {
    let bytes = storage.read(name, LEN_MAX).ok()?;
    let (head, text) = std::str::from_utf8(&bytes).ok()?.split_once('\n')?;
    (digest(text) == head).then(|| serde_json::from_str(text).ok())?
}

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::observer::{Recorder, Silent};
    use crate::formats::archive::Kind;
    use crate::vault::repository::tests::{back_up, disk, fresh};

    fn stamp(text: &str) -> Stamp {
        Stamp(Some(text.to_owned()))
    }

    fn known(repository: &Repository, archive: &str) -> Option<Timestamp> {
        let id = disk("vm/vda");
        let now = clock::now().unwrap();
        repository.history(&id.domain).proved(&id.disk, archive, Some(&stamp("a")), now)
    }

    #[test]
    fn runs_beside_each_other_lose_nothing() {
        let (dir, repository) = fresh();
        let repository = repository.with_state(&dir.path().join("state"));
        let id = disk("vm/vda");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (repository, id) = (&repository, &id);
                scope.spawn(move || {
                    let archive = format!("archive {number}");
                    let note = |history: &mut History| {
                        history.note(&id.disk, &archive, stamp("a"), Verdict::Proved);
                    };
                    repository.note(&id.domain, note).unwrap();
                });
            }
        });
        assert!((0..8).all(|number| known(&repository, &format!("archive {number}")).is_some()));
        assert_eq!(known(&repository, "archive 8"), None);
    }

    #[test]
    fn what_is_torn_or_of_another_file_or_of_the_future_was_never_proved() {
        let (dir, repository) = fresh();
        let state = dir.path().join("state");
        let repository = repository.with_state(&state);
        let id = disk("vm/vda");
        let note = |history: &mut History| {
            history.note(&id.disk, "archive", stamp("a"), Verdict::Proved);
        };
        repository.note(&id.domain, note).unwrap();
        let now = clock::now().unwrap();
        let history = repository.history(&id.domain);
        let proved = |stamp: Option<&Stamp>, now| history.proved(&id.disk, "archive", stamp, now);
        assert!(proved(Some(&stamp("a")), now).is_some());
        assert_eq!(proved(Some(&stamp("b")), now), None);
        assert_eq!(proved(None, now), None);
        assert_eq!(proved(Some(&stamp("a")), Timestamp::UNIX_EPOCH), None);
        let path = state.join(repository.id()).join("vm+history");
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(known(&repository, "archive"), None, "{len} bytes");
        }
        repository.note(&id.domain, note).unwrap();
        assert!(known(&repository, "archive").is_some());
    }

    /// An alarm that nobody can end is one that nobody heeds: damage is told as long as the file is the one
    /// that it was found in.
    #[test]
    fn damage_is_told_until_the_file_is_another_or_proved() {
        let (dir, repository) = fresh();
        let repository = repository.with_state(&dir.path().join("state"));
        let id = disk("vm/vda");
        back_up(&repository, &id, Kind::Full).unwrap();
        let told = || {
            let recorder = Recorder::new(&Silent);
            repository.catalog().warn_of_damage([&id], &recorder);
            recorder.take().len()
        };
        let found = |verdict: Verdict| {
            let catalog = repository.catalog();
            let point = catalog.points(&id).unwrap().points.remove(0);
            let stamp = catalog.stamp(&point.archive).unwrap();
            let note = |history: &mut History| {
                history.note(&id.disk, &point.record.archive, stamp, verdict);
            };
            repository.note(&id.domain, note).unwrap();
            repository.describe(&point.archive)
        };
        assert_eq!(told(), 0);
        let path = found(Verdict::Damaged("a frame is damaged".to_owned()));
        assert_eq!(told(), 1);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(told(), 0);
        found(Verdict::Damaged("a frame is damaged".to_owned()));
        assert_eq!(told(), 1);
        found(Verdict::Proved);
        assert_eq!(told(), 0);
    }
}
