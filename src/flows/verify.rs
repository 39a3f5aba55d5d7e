//! The flow that proves what a repository holds.
//!
//! Every archive is read once: its index by checksums, every frame by its checksums and, unless
//! asked to be quick, by the digest of each block. Then every point's root is computed from the
//! digests that its chain leaves standing. Both together prove what restoring each point would
//! give, without restoring any.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta_formats::archive::{Digest, FRAME_HEADER_LEN, FRAME_LEN_MAX, GroupIndex, RootHasher};
use rustix::io::Errno;
use serde::Serialize;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer, Recorder};
use crate::base::warning::{Code, Warning};
use crate::disk::flow::pipeline::{self, Consumer, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::io::Direct;
use crate::disk::io::Segment;
use crate::vault::archive::{Reader, Windows};
use crate::vault::chain::Chain;
use crate::vault::frames::unpack::{FrameNeed, Unpacker};
use crate::vault::point::{open_archive, open_archives};
use crate::vault::repository::{
    Catalog, DiskId, DomainName, MachineFile, ParentRecord, Point, PointId, PointList, Repository,
    Selector, Wanted,
};

/// What to verify, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// A disk or all of a guest, or everything in the repository.
    pub disk: Option<Wanted>,
    /// One of its points and what that one needs, or all of them.
    pub point: Option<Selector>,
    /// Checksums alone: nothing is decompressed.
    pub quick: bool,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What a verification found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Recovery points that were looked at.
    pub points: u64,
    /// Archives that were read.
    pub archives: u64,
    /// Frames that were read.
    pub frames: u64,
    /// Files of machines that were read: domain XML, firmware variables and the like.
    pub machine_files: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of blocks that were proved (or, if quick, whose checksums were).
    pub bytes_verified: u64,
    /// Whether checksums alone were looked at.
    pub quick: bool,
    /// Whether everything that was looked at is proved: by digests and roots, and nothing was found.
    pub proved: bool,
    /// Everything that is not as it was written. Empty if all is well.
    pub findings: Vec<Finding>,
    /// Disk by disk: which points can be restored, and which archives are sound.
    pub disks: Vec<DiskResult>,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub seconds: f64,
    /// What was found already.
    #[serde(skip)]
    known: BTreeSet<(PathBuf, String)>,
}

/// How a file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is what was written.
    Sound,
    /// It is there, and not what was written.
    Damaged,
    /// It is not there.
    Missing,
    /// No manifest names it. It may well be sound.
    Stray,
    /// The system can't read it, or can't list it.
    Unreadable,
}

/// What a verification says of a disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskResult {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Its points that were looked at, oldest first.
    pub points: Vec<PointResult>,
    /// The archives that these need.
    pub archives: Vec<ArchiveResult>,
}

/// What a verification says of a point of a disk.
#[derive(Debug, Clone, Serialize)]
pub struct PointResult {
    /// The point.
    pub point: PointId,
    /// Whether the disk can be restored whole to it.
    pub restorable: bool,
    /// The files because of which it can't.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub because: Vec<PathBuf>,
}

/// What a verification says of an archive.
#[derive(Debug, Clone, Serialize)]
pub struct ArchiveResult {
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// How it was found.
    pub state: State,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The file or folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// How it was found.
    pub state: State,
    /// The recovery points that can't be restored whole because of it.
    pub points: Vec<String>,
    /// What is wrong, and where.
    pub problem: String,
}

impl Report {
    /// Adds a finding. What several disks share is found once.
    fn add(&mut self, finding: Finding) {
        if self.known.insert((finding.path.clone(), finding.problem.clone())) {
            self.findings.push(finding);
        }
    }
}

/// Verifies a repository, a disk, or a point.
///
/// # Errors
/// Damage is no error here but a finding; an error says that the verification could not be done.
pub fn run(
    repository: &Repository,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report> {
    let started = std::time::Instant::now();
    let recorder = Recorder::new(observer);
    let observer: &dyn Observer = &recorder;
    let mut report = Report { quick: request.quick, ..Report::default() };
    if let Some(error) = repository.trouble() {
        report.add(finding(&repository.path().join("qdelta.toml"), NO_POINTS, &error));
        observer.warn(Warning::failed(Code::Unreadable, &error));
    }
    let catalog = repository.catalog();
    let mut disks = match &request.disk {
        Some(wanted) => catalog.find_disks(wanted)?,
        None => {
            let survey = catalog.survey()?;
            for folder in &survey.unreadable {
                report.add(unlisted(&folder.path, &folder.error));
            }
            survey.disks
        }
    };
    if let Some(selector) = request.point.as_ref().filter(|_| disks.len() > 1) {
        // A disk of a guest may be younger than the point, or not be in it.
        let is_missing = |disk: &DiskId| {
            let found = catalog.resolve(disk, selector);
            found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        if !disks.iter().all(is_missing) {
            disks.retain(|disk| !is_missing(disk));
        }
    }
    for disk in &disks {
        verify_disk(&catalog, disk, request, observer, cancel, &mut report)?;
    }
    let domains: BTreeSet<_> = disks.iter().map(|disk| &disk.domain).collect();
    for domain in domains {
        let of_domain = disks.iter().filter(|disk| disk.domain == *domain);
        let wanted = match &request.point {
            Some(selector) => {
                let points = of_domain.map(|disk| catalog.resolve(disk, selector));
                Some(points.map(|point| Ok(point?.id)).collect::<Result<BTreeSet<_>>>()?)
            }
            None => None,
        };
        verify_machines(&catalog, domain, wanted.as_ref(), &mut report)?;
    }
    report.proved = !request.quick && report.findings.is_empty();
    report.warnings = recorder.take();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn verify_disk(
    catalog: &Catalog,
    disk: &DiskId,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut Report,
) -> Result<()> {
    let list = catalog.points(disk)?;
    let points = match &request.point {
        Some(selector) => vec![catalog.resolve(disk, selector)?],
        None => list.points.clone(),
    };
    if request.point.is_none() {
        report_the_rest(catalog, disk, &list, report)?;
    }
    let mut damage = Damage::default();
    // Which points need which archive: a chain shares its files.
    let mut needed_by: BTreeMap<PathBuf, BTreeSet<PointId>> = BTreeMap::new();
    for point in &points {
        report.points += 1;
        let remains = catalog.remains_of(point);
        for path in remains.archives {
            needed_by.entry(path).or_default().insert(point.id);
        }
        for gap in remains.gaps {
            let state = match gap.error.kind() {
                ErrorKind::Damaged | ErrorKind::NotFound => State::Missing,
                _ => State::Unreadable,
            };
            damage.add(gap.path, state, gap.error.chain(), [point.id]);
        }
    }
    let by_path: BTreeMap<&Path, &Point> =
        list.points.iter().map(|point| (point.archive_path.as_path(), point)).collect();
    let known: BTreeMap<PointId, &Point> =
        list.points.iter().map(|point| (point.id, point)).collect();
    let total = needed_by.keys().filter_map(|path| path.metadata().ok()).map(|data| data.len());
    let name = disk.to_string();
    let begin = |phase, total| observer.event(&Event::Begin { disk: Some(&name), phase, total });
    begin("verify", total.sum());
    let mut archives = BTreeMap::new();
    for (path, needed) in &needed_by {
        cancel.check()?;
        report.archives += 1;
        let identity = |archive: &Reader| match by_path.get(path.as_path()) {
            Some(point) => {
                let parent = point.record.parent_point();
                let parent = parent.and_then(|parent| known.get(&parent).copied());
                check_identity(archive, point, parent)
            }
            // Its manifest is lost: what the archives say of each other is all there is.
            None => Ok(()),
        };
        let found = verify_archive(path, identity, request, observer, cancel, report)?;
        let state = if found.is_empty() { State::Sound } else { State::Damaged };
        archives.insert(path.clone(), state);
        for problem in found {
            damage.add(path.clone(), State::Damaged, problem, needed.iter().copied());
        }
    }
    observer.end();
    if !request.quick {
        begin("prove", points.len() as u64);
        for point in &points {
            if damage.costs.contains_key(&point.id) {
                continue;
            }
            cancel.check()?;
            let chain = catalog.remains_of(point).archives;
            if let Err(error) = open_archives(&chain, point).and_then(|chain| prove_root(&chain)) {
                refuse_unless_damage(&error)?;
                let path = point.archive_path.clone();
                damage.add(path, State::Damaged, error.chain(), [point.id]);
            }
            observer.advance(1);
        }
        observer.end();
    }
    damage.settle(disk, &points, archives, report);
    Ok(())
}

/// Reports what is wrong with a disk beside its points.
fn report_the_rest(
    catalog: &Catalog,
    disk: &DiskId,
    list: &PointList,
    report: &mut Report,
) -> Result<()> {
    for folder in &list.unreadable {
        report.add(unlisted(&folder.path, &folder.error));
    }
    // Which archives have no manifest can't be told where the manifests, or they, are not known.
    let strays = match list.unreadable.is_empty() {
        true => catalog.strays(disk)?,
        false => Vec::new(),
    };
    for (path, point) in strays {
        report.add(Finding {
            path,
            state: State::Stray,
            points: vec![point.to_string()],
            problem: "no manifest names this archive: the point's manifest is lost, or was not \
                      copied (replay can restore it from the archives alone)"
                .to_owned(),
        });
    }
    for damaged in &list.damaged {
        report.add(finding(&damaged.path, [damaged.point], &damaged.error));
    }
    Ok(())
}

/// A folder that can't be listed.
fn unlisted(path: &Path, error: &Error) -> Finding {
    let problem = error.chain();
    Finding { path: path.to_path_buf(), state: State::Unreadable, points: Vec::new(), problem }
}

/// What is wrong with the archives of a disk, and what that costs.
#[derive(Default)]
struct Damage {
    /// By the file and what is wrong with it: the points that it costs.
    found: BTreeMap<(PathBuf, String), (State, BTreeSet<PointId>)>,
    /// By the point: the files because of which it can't be restored whole.
    costs: BTreeMap<PointId, BTreeSet<PathBuf>>,
}

impl Damage {
    fn add(
        &mut self,
        path: PathBuf,
        state: State,
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

    /// Puts all of it into the report.
    fn settle(
        mut self,
        disk: &DiskId,
        points: &[Point],
        mut archives: BTreeMap<PathBuf, State>,
        report: &mut Report,
    ) {
        for ((path, problem), (state, points)) in self.found {
            archives.insert(path.clone(), state);
            let points = points.iter().map(ToString::to_string).collect();
            report.add(Finding { path, state, points, problem });
        }
        let result = |point: &Point| {
            let because = self.costs.remove(&point.id).unwrap_or_default();
            let because: Vec<PathBuf> = because.into_iter().collect();
            PointResult { point: point.id, restorable: because.is_empty(), because }
        };
        let points = points.iter().map(result).collect();
        let archives = archives.into_iter().map(|(path, state)| ArchiveResult { path, state });
        let archives = archives.collect();
        report.disks.push(DiskResult { disk: disk.to_string(), points, archives });
    }
}

/// Proves the files of a domain's machine, each once, at all points or at these.
fn verify_machines(
    catalog: &Catalog,
    domain: &DomainName,
    wanted: Option<&BTreeSet<PointId>>,
    report: &mut Report,
) -> Result<()> {
    let repository = catalog.repository();
    let mut files: BTreeMap<PathBuf, (MachineFile, BTreeSet<String>)> = BTreeMap::new();
    for (point, machine) in catalog.machines(domain) {
        if wanted.is_some_and(|wanted| !wanted.contains(&point)) {
            continue;
        }
        for file in machine.files {
            let path = repository.machine_file_path(domain, &file);
            files.entry(path).or_insert((file, BTreeSet::new())).1.insert(point.to_string());
        }
    }
    for (path, (file, points)) in files {
        report.machine_files += 1;
        match repository.copy_machine_file(domain, &file, &mut std::io::sink()) {
            Ok(()) => report.bytes_verified += file.length,
            Err(error) => {
                refuse_unless_damage(&error)?;
                report.add(finding(&path, points, &error));
            }
        }
    }
    Ok(())
}

/// No points in particular.
const NO_POINTS: [PointId; 0] = [];

fn finding<T: ToString>(
    path: &Path,
    points: impl IntoIterator<Item = T>,
    error: &Error,
) -> Finding {
    let state = match error.kind() {
        ErrorKind::NotFound => State::Missing,
        ErrorKind::Io => State::Unreadable,
        _ => State::Damaged,
    };
    Finding {
        path: path.to_path_buf(),
        state,
        points: points.into_iter().map(|point| point.to_string()).collect(),
        problem: error.chain(),
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

/// Computes the root of a chain's end from the digests that stand there.
fn prove_root(chain: &Chain) -> Result<()> {
    let geometry = chain.geometry();
    let mut root = RootHasher::new(geometry);
    let mut cursor = chain.cursor();
    for group in (0..geometry.group_count()).map(GroupIndex) {
        let state = cursor.seek(group)?;
        root.push(state.group_digest());
    }
    let computed = root.finish();
    if computed == chain.root() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Damaged,
        format!("the digests give the root {computed}, and the index says {}", chain.root()),
    ))
}

/// An error that says that the verification itself can't go on is passed up; damage is not.
fn refuse_unless_damage(error: &Error) -> Result<()> {
    match error.kind() {
        ErrorKind::Damaged | ErrorKind::NotFound => Ok(()),
        ErrorKind::Io if !is_exhausted(error) => Ok(()),
        kind => {
            let passed = Error::new(kind, error.chain());
            Err(match error.advice() {
                Some(advice) => passed.advise(advice.to_owned()),
                None => passed,
            })
        }
    }
}

/// Whether the system has no descriptor or no memory left for us: that says nothing about a file.
fn is_exhausted(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let errno = error.downcast_ref().and_then(Errno::from_io_error);
        if matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Everything wrong with one archive.
fn verify_archive(
    path: &Path,
    identity: impl FnOnce(&Reader) -> Result<()>,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
    report: &mut Report,
) -> Result<Vec<String>> {
    let archive = match open_archive(path).and_then(|archive| {
        archive.check_index()?;
        Ok(archive)
    }) {
        Ok(archive) => Arc::new(archive),
        Err(error) => {
            refuse_unless_damage(&error)?;
            return Ok(vec![error.chain()]);
        }
    };
    let mut problems = Vec::new();
    if let Err(error) = identity(&archive) {
        problems.push(error.chain());
    }
    report.bytes_read += archive.file_len();
    report.frames += archive.frame_count();
    let files = vec![Arc::clone(archive.store())];
    // Several frames a read, and room for the largest.
    let metadata = archive.metadata();
    let span = metadata.frame_blocks as usize * metadata.geometry.block_size() as usize;
    let buffer_size = TASK_SIZE_MIN as usize + (FRAME_HEADER_LEN + span).min(FRAME_LEN_MAX);
    let ahead = ReadAhead::new(&request.resources, files, buffer_size, Direct::Off)?;
    ahead.warn_of_fallback(observer);
    let mut frames = Frames { ahead, archive: &archive, buffer_size, quick: request.quick, cancel };
    let checked = pipeline::run(
        &request.resources,
        |producer| frames.run(producer),
        || {
            let block_size = archive.geometry().block_size();
            let mut unpacker = Unpacker::new(vec![Arc::clone(&archive)], block_size)?;
            Ok(move |Loaded { task, buffer }: Loaded<Vec<Frame>>| {
                let mut checked = Checked::default();
                for frame in &task {
                    checked.bytes_read += frame.need.entry.frame_len();
                    match unpacker.check(&frame.need, &buffer, &frame.digests) {
                        Ok(bytes) => checked.bytes_verified += bytes,
                        Err(error) => {
                            refuse_unless_damage(&error)?;
                            checked.problems.push(error.chain());
                        }
                    }
                }
                Ok(checked)
            })
        },
        Collector { all: Checked::default(), observer },
    );
    let checked = match checked {
        Ok(checked) => checked,
        Err(error) => {
            refuse_unless_damage(&error)?;
            problems.push(format!("the rest was not looked at: {}", error.chain()));
            return Ok(problems);
        }
    };
    observer.advance(archive.file_len().saturating_sub(checked.bytes_read));
    report.bytes_verified += checked.bytes_verified;
    problems.extend(checked.problems);
    Ok(problems)
}

/// Frames of one task, at most: of data that compresses well a buffer holds thousands.
const FRAMES_MAX: usize = 64;

/// Records that are read ahead of each table of an archive.
const RECORDS_AHEAD: u64 = 4096;

/// A frame to check, and the digests of its blocks (none if quick).
struct Frame {
    need: FrameNeed,
    digests: Vec<Digest>,
}

/// Reads an archive's frames in order, as many at a time as fit a buffer.
struct Frames<'a> {
    ahead: ReadAhead<Vec<Frame>>,
    archive: &'a Reader,
    buffer_size: usize,
    quick: bool,
    cancel: &'a Cancel,
}

impl Frames<'_> {
    fn run(&mut self, producer: &mut Producer<Loaded<Vec<Frame>>, Checked>) -> Result<(), Halt> {
        let mut task: Vec<Frame> = Vec::new();
        let mut segments: Vec<Segment> = Vec::new();
        let mut used = 0;
        let mut rank = 0;
        let mut windows = Windows::default();
        let mut stored = self.archive.stored().walk();
        for position in 0..self.archive.frame_count() {
            let entry = match windows.frame(self.archive, position, RECORDS_AHEAD) {
                Ok(entry) => entry,
                Err(error) => {
                    refuse_unless_damage(&error)?;
                    let problems = vec![error.chain()];
                    self.ahead.pass(producer, Checked { problems, ..Checked::default() })?;
                    continue;
                }
            };
            let span = self.archive.metadata().frame_blocks;
            let mask = stored.mask(entry.first_block.0, span)?;
            let mut digests = Vec::new();
            if !self.quick {
                let count = u64::from(mask.count_ones());
                let records = windows.digests(self.archive, rank, count, RECORDS_AHEAD)?;
                digests.extend(records.iter().copied().map(Digest));
                rank += count;
            }
            let len = entry.frame_len() as usize;
            if len > self.buffer_size {
                let error = Error::new(ErrorKind::Damaged, "it is longer than its blocks");
                let problems = vec![self.archive.frame_error(&entry, mask, error).chain()];
                self.ahead.pass(producer, Checked { problems, ..Checked::default() })?;
                continue;
            }
            if used + len > self.buffer_size || task.len() >= FRAMES_MAX {
                self.cancel.check()?;
                let (task, segments) = (std::mem::take(&mut task), std::mem::take(&mut segments));
                self.ahead.read(producer, segments, task)?;
                used = 0;
            }
            // The reader bounds a frame's length: each fits the buffer.
            let at: Range<usize> = used..used + len;
            segments.push(Segment { file: 0, offset: entry.offset, range: at.clone() });
            used = at.end;
            let need = FrameNeed { archive: 0, entry, mask, wanted: mask, at: Some(at) };
            task.push(Frame { need, digests });
        }
        if !task.is_empty() {
            self.ahead.read(producer, segments, task)?;
        }
        self.ahead.finish(producer)
    }
}

/// What checking some frames came to.
#[derive(Default)]
struct Checked {
    bytes_read: u64,
    bytes_verified: u64,
    problems: Vec<String>,
}

/// More damaged frames than this in one archive are counted, not listed.
const PROBLEMS_MAX: usize = 1000;

struct Collector<'a> {
    all: Checked,
    observer: &'a dyn Observer,
}

impl Consumer<Checked> for Collector<'_> {
    type Output = Checked;

    fn take(&mut self, checked: Checked) -> Result<()> {
        self.all.bytes_read += checked.bytes_read;
        self.all.bytes_verified += checked.bytes_verified;
        let room = PROBLEMS_MAX.saturating_sub(self.all.problems.len());
        if checked.problems.len() > room {
            self.all.problems.truncate(PROBLEMS_MAX - 1);
            self.all.problems.push("and more".to_owned());
        } else {
            self.all.problems.extend(checked.problems);
        }
        self.observer.advance(checked.bytes_read);
        Ok(())
    }

    fn finish(self) -> Result<Checked> {
        Ok(self.all)
    }
}
