//! The archives of a disk: each is read once, and the points of each full are proved together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::VerifyRequest;
use super::frames::Proof;
use super::{note, refuse_of_all, refuse_unless_damage};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer};
use crate::flows::report::{
    ArchiveVerdict, DiskVerdict, FileState, Finding, PointVerdict, VerifyReport,
};
use crate::vault::archive::Reader;
use crate::vault::chain::Forest;
use crate::vault::repository::{Catalog, DiskId, Needed, ParentRecord, Point, PointId, Stamp};

/// After so many bytes is noted what was read.
const NOTED: u64 = 1 << 30;

/// What is wrong with the archives of a disk, and what that costs.
#[derive(Default)]
pub(super) struct Damage {
    /// By the file and what is wrong with it: the points that it costs.
    found: BTreeMap<(PathBuf, String), (FileState, BTreeSet<PointId>)>,
    /// By the point: the files because of which it can't be restored whole.
    costs: BTreeMap<PointId, BTreeSet<PathBuf>>,
}

impl Damage {
    fn add(
        &mut self,
        path: PathBuf,
        state: FileState,
        problem: String,
        points: impl IntoIterator<Item = PointId>,
    ) {
        let found = self.found.entry((path.clone(), problem));
        let (_, costs) = found.or_insert_with(|| (state, BTreeSet::new()));
        for point in points {
            costs.insert(point);
            self.costs.entry(point).or_default().insert(path.clone());
        }
    }

    /// What is wrong with a file.
    pub(super) fn of(&self, path: &Path) -> Option<&str> {
        let mut after = self.found.range((path.to_owned(), String::new())..);
        let ((found, problem), _) = after.next()?;
        (found == path).then_some(problem)
    }

    /// Whether a point can't be restored whole.
    pub(super) fn costs(&self, point: PointId) -> bool {
        self.costs.contains_key(&point)
    }

    /// Puts all of it into the report.
    pub(super) fn settle(
        mut self,
        disk: &DiskId,
        points: &[PointId],
        mut archives: BTreeMap<PathBuf, FileState>,
        report: &mut VerifyReport,
    ) {
        for ((path, problem), (state, points)) in self.found {
            archives.insert(path.clone(), state);
            let points = points.into_iter().collect();
            report.findings.push(Finding { path, name: None, state, points, problem });
        }
        let result = |&point: &PointId| {
            let because = self.costs.remove(&point).unwrap_or_default();
            let because: Vec<PathBuf> = because.into_iter().collect();
            PointVerdict { point, restorable: because.is_empty(), because }
        };
        let points = points.iter().map(result).collect();
        let archives = archives.into_iter().map(|(path, state)| ArchiveVerdict { path, state });
        let archives = archives.collect();
        report.disks.push(DiskVerdict { disk: disk.to_string(), points, archives });
    }
}

/// The archives whose frames were read.
#[derive(Default)]
pub(super) struct Seen {
    states: BTreeMap<PathBuf, FileState>,
    /// The name of each, and what it was like before it was read.
    pub stamps: BTreeMap<PathBuf, (String, Stamp)>,
}

impl Seen {
    /// How the archives were found.
    pub(super) fn states(self) -> BTreeMap<PathBuf, FileState> {
        self.states
    }
}

/// The verification of a disk's archives.
pub(super) struct Run<'a> {
    pub catalog: &'a Catalog,
    pub disk: &'a DiskId,
    pub request: &'a VerifyRequest,
    pub observer: &'a dyn Observer,
    pub cancel: &'a Cancel,
    /// The archives whose frames are read, by number; those of all if none. Of the others the indexes are,
    /// for the roots of the points.
    pub due: Option<&'a BTreeSet<usize>>,
    /// By number: what is known to be wrong with archives, and is said of those that are not read now.
    pub known: Option<&'a BTreeMap<usize, String>>,
    /// When no further archive's frames are read.
    pub until: Option<Instant>,
}

impl Run<'_> {
    /// Verifies archives, and the roots of the points that were asked for. What was read is noted also if
    /// the run is interrupted; who is killed loses the last [`NOTED`] bytes of it.
    pub fn verify(&self, needed: &[Needed], report: &mut VerifyReport) -> Result<(Damage, Seen)> {
        let (mut damage, mut seen) = (Damage::default(), Seen::default());
        let done = self.verify_all(needed, &mut damage, &mut seen, report);
        let ends = |kind| matches!(kind, ErrorKind::Interrupted | ErrorKind::Io);
        if done.as_ref().is_err_and(|error| ends(error.kind())) {
            self.note(&damage, &seen);
        }
        done.map(|()| (damage, seen))
    }

    fn verify_all(
        &self,
        needed: &[Needed],
        damage: &mut Damage,
        seen: &mut Seen,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let above = Above::new(needed);
        for (number, archive) in needed.iter().enumerate() {
            for gap in &archive.gaps {
                refuse_of_all(self.catalog.repository(), &gap.error)?;
                let state = match gap.error.kind() {
                    ErrorKind::Damaged | ErrorKind::NotFound => FileState::Missing,
                    _ => FileState::Unreadable,
                };
                damage.add(gap.path.clone(), state, gap.error.chain(), above.points(number));
            }
        }
        let numbered = needed.iter().enumerate();
        let due = numbered.filter(|(number, archive)| archive.is_there && self.is_due(*number));
        let repository = self.catalog.repository();
        let length =
            |archive: &Needed| repository.storage().entry(&archive.link.archive).ok()??.len;
        let total = due.filter_map(|(_, archive)| length(archive)).sum();
        let name = self.disk.to_string();
        self.observer.event(&Event::Begin { disk: Some(&name), phase: "verify", total });
        let mut noted = report.bytes_read;
        // One full after the other, so that no more archives are known at a time than it has.
        for tree in above.trees() {
            let mut readers = BTreeMap::new();
            for &number in &tree {
                let Some(archive) = needed.get(number).filter(|archive| archive.is_there) else {
                    continue;
                };
                self.cancel.check()?;
                let is_due =
                    self.is_due(number) && self.until.is_none_or(|until| Instant::now() < until);
                let path = repository.describe(&archive.link.archive);
                let stamp = self.catalog.stamp(&archive.link.archive);
                let known = self.known.and_then(|known| known.get(&number)).filter(|_| !is_due);
                if let Some(problem) = known {
                    let points = above.points(number);
                    damage.add(path, FileState::Damaged, problem.clone(), points);
                    continue;
                }
                let (problems, reader) = self.verify_archive(archive, is_due, report)?;
                let state = if problems.is_empty() { FileState::Sound } else { FileState::Damaged };
                if is_due || state == FileState::Damaged {
                    report.archives += u64::from(is_due);
                    let name = archive.link.archive.last().to_owned();
                    seen.stamps.extend(stamp.map(|stamp| (path.clone(), (name, stamp))));
                    seen.states.insert(path.clone(), state);
                }
                for problem in problems {
                    damage.add(path.clone(), FileState::Damaged, problem, above.points(number));
                }
                if let Some(reader) = reader.filter(|_| state == FileState::Sound) {
                    readers.insert(number, reader);
                }
                if report.bytes_read - noted >= NOTED {
                    self.note(damage, seen);
                    noted = report.bytes_read;
                }
            }
            if !self.request.quick {
                self.prove(needed, &tree, &readers, damage)?;
            }
        }
        self.observer.end();
        Ok(())
    }

    /// Notes what was found so far. Roots that are wrong all the same are found by every later run.
    fn note(&self, damage: &Damage, seen: &Seen) {
        note(self.catalog, self.disk, damage, seen, None, self.request, self.observer);
    }

    fn is_due(&self, number: usize) -> bool {
        self.due.is_none_or(|due| due.contains(&number))
    }

    /// Proves the roots of the points of one full whose archives are all sound.
    fn prove(
        &self,
        needed: &[Needed],
        tree: &[usize],
        readers: &BTreeMap<usize, Arc<Reader>>,
        damage: &mut Damage,
    ) -> Result<()> {
        let mut forest = Forest::default();
        // The archives by their place in the forest, and the other way round: those that follow
        // one that does not fit have its error.
        let mut planted = Vec::new();
        let mut places: BTreeMap<usize, Result<usize, String>> = BTreeMap::new();
        for &number in tree {
            let Some(archive) = needed.get(number).filter(|archive| archive.gaps.is_empty()) else {
                continue;
            };
            let Some(reader) = readers.get(&number) else { continue };
            let place = match archive.parent.map(|parent| places.get(&parent)) {
                // What it builds on is damaged or missing, which was said.
                Some(None) => continue,
                Some(Some(Err(misfit))) => Err(misfit.clone()),
                Some(Some(Ok(parent))) => {
                    let added = forest.add(Arc::clone(reader), Some(*parent), archive.is_wanted);
                    added.map_err(|error| error.chain())
                }
                None => {
                    let added = forest.add(Arc::clone(reader), None, archive.is_wanted);
                    added.map_err(|error| error.chain())
                }
            };
            match &place {
                Ok(_) => planted.push(archive),
                Err(misfit) if archive.is_wanted => self.add_to(damage, archive, misfit.clone()),
                Err(_) => {}
            }
            places.insert(number, place);
        }
        let repository = self.catalog.repository();
        let problems = forest.prove(|| {}, self.cancel)?;
        for (archive, problem) in planted.into_iter().zip(problems) {
            if let Some(error) = problem {
                refuse_unless_damage(repository, &error)?;
                self.add_to(damage, archive, error.chain());
            }
        }
        Ok(())
    }

    /// Everything wrong with one archive, and the archive as far as it could be opened. Its frames are read
    /// if it is due.
    fn verify_archive(
        &self,
        needed: &Needed,
        is_due: bool,
        report: &mut VerifyReport,
    ) -> Result<(Vec<String>, Option<Arc<Reader>>)> {
        let repository = self.catalog.repository();
        let file = repository.storage().open(&needed.link.archive);
        let archive = match file.and_then(Reader::open).and_then(|archive| {
            archive.check_index()?;
            Ok(archive)
        }) {
            Ok(archive) => Arc::new(archive),
            Err(error) => {
                refuse_unless_damage(repository, &error)?;
                return Ok((vec![error.chain()], None));
            }
        };
        let mut problems = Vec::new();
        if let Err(error) = self.check_identity(&archive, needed) {
            problems.push(error.chain());
        }
        if !is_due {
            return Ok((problems, Some(archive)));
        }
        report.bytes_read += archive.file_len();
        report.frames += archive.frame_count();
        let VerifyRequest { resources, quick, .. } = self.request;
        let (observer, cancel) = (self.observer, self.cancel);
        let proof = Proof { resources, quick: *quick, observer, cancel };
        let checked = match proof.check(&archive) {
            Ok(checked) => checked,
            Err(error) => {
                refuse_unless_damage(repository, &error)?;
                problems.push(format!("the rest was not looked at: {}", error.chain()));
                return Ok((problems, None));
            }
        };
        self.observer.advance(archive.file_len().saturating_sub(checked.bytes_read));
        report.bytes_verified += checked.bytes_verified;
        problems.extend(checked.problems);
        Ok((problems, Some(archive)))
    }

    /// Adds what is wrong with the point of an archive, and with no other.
    fn add_to(&self, damage: &mut Damage, archive: &Needed, problem: String) {
        let path = self.catalog.repository().describe(&archive.link.archive);
        damage.add(path, FileState::Damaged, problem, [archive.link.point]);
    }

    /// Fails unless an archive is the one that was written there, and fits the one below it.
    fn check_identity(&self, reader: &Reader, archive: &Needed) -> Result<()> {
        // If its manifest is lost, what the archives say of each other is all there is.
        let Some(point) = self.catalog.point(self.disk, archive.link.point) else { return Ok(()) };
        let parent = point.record.parent_point();
        let parent = parent.and_then(|parent| self.catalog.point(self.disk, parent));
        check_identity(reader, &point, parent.as_ref())
    }
}

/// Which archives build on which.
struct Above<'a> {
    needed: &'a [Needed],
    children: Vec<Vec<usize>>,
}

impl<'a> Above<'a> {
    fn new(needed: &'a [Needed]) -> Self {
        let mut children = vec![Vec::new(); needed.len()];
        for (number, archive) in needed.iter().enumerate() {
            if let Some(children) = archive.parent.and_then(|parent| children.get_mut(parent)) {
                children.push(number);
            }
        }
        Self { needed, children }
    }

    /// The archives that build on one, itself first and each after the one that it builds on.
    fn all(&self, number: usize) -> Vec<usize> {
        let mut all = vec![number];
        let mut at = 0;
        while let Some(&number) = all.get(at) {
            all.extend(self.children.get(number).into_iter().flatten());
            at += 1;
        }
        all
    }

    /// The points that were asked for and need an archive.
    fn points(&self, number: usize) -> Vec<PointId> {
        let all = self.all(number).into_iter().filter_map(|number| self.needed.get(number));
        all.filter(|archive| archive.is_wanted).map(|archive| archive.link.point).collect()
    }

    /// The archives of each full, or of what builds on nothing that is known.
    fn trees(&self) -> impl Iterator<Item = Vec<usize>> {
        let numbered = self.needed.iter().enumerate();
        let first = numbered.filter(|(_, archive)| archive.parent.is_none());
        first.map(|(number, _)| self.all(number))
    }
}

/// What an archive says about itself against what the manifest of its place says, and about its
/// parent against what that one's manifest says: together, that each archive is the one that was
/// written there, and fits the one below it.
fn check_identity(archive: &Reader, point: &Point, parent: Option<&Point>) -> Result<()> {
    let (metadata, record) = (archive.metadata(), &point.record);
    let geometry = metadata.geometry;
    let link = metadata.parent.as_ref().map(ParentRecord::try_from).transpose()?;
    if metadata.archive_id != record.archive_id
        || metadata.kind != record.kind
        || metadata.point != point.id.to_string()
        || archive.root() != record.root
        || (geometry.virtual_size(), geometry.block_size())
            != (record.virtual_size, record.block_size)
        || link != record.parent
    {
        let what = format!(
            "the file holds point {} of {}/{}, and not what the manifest of point {} names",
            metadata.point, metadata.domain, metadata.disk, point.id
        );
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    if let (Some(link), Some(parent)) = (link, parent)
        && link.root != parent.record.root
    {
        let what = format!(
            "it was made against the root {} of point {}, whose manifest has {}",
            link.root, parent.id, parent.record.root
        );
        return Err(Error::new(ErrorKind::Damaged, what));
    }
    Ok(())
}
