//! Making the moment of a running guest: everything that happens between freeze and thaw.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use qdelta_formats::archive::{Consistency, Tracker};

use super::snapshots::Snapshots;
use super::{ConsistencyChoice, Flow, Use, exchanged, machine, refused};
use crate::base::cancel::Cancel;
use crate::base::duration;
use crate::base::error::{AGAIN, Error, ErrorKind, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::io::ReadAt;
use crate::disk::reflink;
use crate::flows::anchors::bitmap;
use crate::flows::anchors::reflink::{Clones, descriptor, sweep_clones};
use crate::flows::backup::disk::Written;
use crate::flows::backup::leave;
use crate::flows::backup::together::{Ready, about};
use crate::flows::capture::{Captured, NO_ANCHOR, NO_MORE_TRIES, old_clone, written_files};
use crate::guest::libvirt::{self, Agent, Found};
use crate::guest::quiesce::{Freeze, Frozen, Thawed, Watchdog};
use crate::vault::repository::{Anchor, AnchorKind, MemoryRecord};

/// A file of firmware variables up to this length is read within the freeze, in bytes: a millisecond.
const NVRAM_IN_FREEZE_MAX: u64 = 4 << 20;
/// How many extents a second a clone is reckoned to take. Measured on XFS on two busy cores: 5,000 to
/// 8,000; others report 30,000 to 50,000 on servers.
const EXTENTS_PER_S: u64 = 10_000;
/// The part of the limit that clones may take by that estimate, as a divisor.
const CLONE_SHARE: u64 = 2;

/// The state of the guest that the point has, and how it came to it.
pub(super) struct Moment {
    pub consistency: Consistency,
    /// Why nothing was frozen although it should have been.
    pub fell_back: Option<String>,
    /// The freeze, if there was one.
    pub freeze: Option<Thawed>,
    /// The files of the firmware's variables at that moment.
    pub variables: Vec<(PathBuf, Vec<u8>)>,
    /// The guest's memory, if the point has it.
    pub memory: Option<MemoryRecord>,
    pub warnings: Vec<Warning>,
}

/// The files that a guest writes to on one disk, open.
type Files = Vec<(PathBuf, Arc<dyn ReadAt>)>;

/// What was made of the disks at the moment.
enum Made {
    Clones(Vec<Clones>),
    Snapshots,
}

/// What was made while the guest was still, and the files that it was moved away from for that.
type Still<T> = (T, Vec<PathBuf>);

impl Moment {
    /// The guest is stopped: any moment is as good as another.
    pub fn offline() -> Self {
        Self {
            consistency: Consistency::Offline,
            fell_back: None,
            freeze: None,
            variables: Vec::new(),
            memory: None,
            warnings: Vec::new(),
        }
    }
}

impl Moment {
    /// The guest's filesystems can't be frozen, and the admin has said that a point is wanted all the same.
    fn fall_back(&mut self, error: &Error) {
        let why = error.chain();
        let text = format!("{why}: the point is what a power cut would leave");
        let warning = Warning::new(Code::FellBack, text);
        // What the failure itself says is nearer to its cause.
        let advice = error.advice().unwrap_or("see to its guest agent (docs/running-guests.md)");
        self.warnings
            .push(warning.advise(format!("{advice}; --consistency quiesced makes no such point")));
        self.fell_back = Some(why);
    }
}

impl<'a> Flow<'a> {
    /// Makes the moment by clones or by the admin's command, and reads it when the guest has long
    /// gone on.
    pub(super) fn at_a_moment(
        &self,
        ready: Vec<Ready<'a>>,
        freeze: Freeze,
        mut snapshots: Option<&mut Snapshots<'_>>,
    ) -> Result<(Vec<Written<'a>>, Moment)> {
        let mut files: Vec<Files> = Vec::new();
        for disk in &ready {
            let written = written_files(disk.image, disk.open);
            files.push(written.map_err(|error| about(disk.disk, ready.len(), error))?);
        }
        match &mut snapshots {
            None => self.check_clonable(&ready, &files)?,
            Some(snapshots) => {
                let paths = |files: &Files| files.iter().map(|(path, _)| path.clone()).collect();
                let files: Vec<Vec<PathBuf>> = files.iter().map(paths).collect();
                snapshots.prepare(self.disks.point, (&ready, self.plan.usage), &files)?;
            }
        }
        for (_, file) in files.iter().flatten() {
            // What is dirty now need not be written within the freeze. If it can't be, that shows
            // when it is cloned.
            let _ = file.fd().map(rustix::fs::fdatasync);
        }
        let at_once = snapshots.as_deref().is_some_and(Snapshots::are_at_once);
        let (made, moment) = self.still(freeze, at_once, |left| {
            self.make(&ready, &files, snapshots.as_deref_mut(), left)
        })?;
        drop(files);
        let sources = self.open(&ready, made, snapshots.as_deref())?;
        if snapshots.is_some() && !self.request.how.same_guest {
            exchanged::check(&ready, &sources, self.cancel)?;
        }
        let written = self.disks.write(ready, sources, moment.consistency, self.cancel)?;
        Ok((written, moment))
    }

    /// Reads what has changed within the freeze.
    pub(super) fn freeze_copy(
        &self,
        ready: Vec<Ready<'a>>,
        freeze: Freeze,
    ) -> Result<(Vec<Written<'a>>, Moment)> {
        let limit = freeze.freeze_max;
        let (written, moment) = self.still(freeze, false, |left| {
            let mut sources = Vec::new();
            for disk in &ready {
                sources.push(Captured::live(disk.image, disk.open)?);
            }
            let consistency = match self.plan.usage {
                Use::Paused => Consistency::CrashConsistent,
                _ => Consistency::FilesystemQuiesced,
            };
            let written = within(left, self.cancel, |cancel| {
                self.disks.write(ready, sources, consistency, cancel)
            });
            written.map(|written| (written, Vec::new())).map_err(|error| match error.kind() {
                ErrorKind::Interrupted if !self.cancel.is_cancelled() => refused(format!(
                    "what has changed could not be read within {} of freeze",
                    duration::in_ms(limit)
                ))
                .advise(
                    "no point was made; give it longer with --freeze-max, stop the guest for \
                         the first full, or keep its images on XFS or Btrfs",
                ),
                _ => error,
            })
        })?;
        Ok((written, moment))
    }

    /// Calls `make` while the guest is still: frozen, paused, or not at all if that was asked for. `at_once`: a program of
    /// the admin's makes the moment of all disks in one call.
    fn still<T>(
        &self,
        freeze: Freeze,
        at_once: bool,
        make: impl FnOnce(Duration) -> Result<Still<T>>,
    ) -> Result<(T, Moment)> {
        self.cancel.check()?;
        let limit = freeze.freeze_max;
        let mut moment = Moment { consistency: Consistency::CrashConsistent, ..Moment::offline() };
        if self.plan.usage == Use::Paused {
            let (made, left) = make(limit)?;
            moment.variables = self.variables();
            let now = self.request.how.libvirt.find(&self.request.domain)?;
            self.check_same(&now, &left)?;
            if !now.domain.is_paused() {
                return Err(refused(format!("{} was let go on meanwhile", self.request.domain))
                    .advise(AGAIN));
            }
            moment.warnings.push(Warning::new(
                Code::GuestState,
                "it is paused, so nothing was frozen: what it had not written yet is not in the \
                 point",
            ));
            return Ok((made, moment));
        }
        let falls_back = match self.request.how.consistency {
            ConsistencyChoice::Crash => return self.unfrozen(make(limit)?, at_once, moment),
            ConsistencyChoice::QuiescedOrCrash => true,
            ConsistencyChoice::Quiesced | ConsistencyChoice::FreezeCopy => false,
        };
        let frozen = self
            .check_agent()
            .and_then(|()| Watchdog::start(&self.request.how.watchdog, freeze)?.freeze());
        let frozen: Frozen = match frozen {
            // It is thawed again, or the error is an alarm.
            Err(error) if falls_back && error.kind() == ErrorKind::Guest => {
                moment.fall_back(&error);
                self.cancel.check()?;
                return self.unfrozen(make(limit)?, at_once, moment);
            }
            frozen => frozen?,
        };
        let made = make(frozen.left());
        moment.variables = self.variables();
        let now = self.request.how.libvirt.find(&self.request.domain);
        let thawed = frozen.thaw()?;
        let (made, left) = made?;
        self.check_same(&now?, &left)?;
        if let Some(broken) = &thawed.broken {
            let error = refused(format!("{} was not frozen all the time", self.request.domain))
                .because(broken.clone())
                .advise("no point was made; --freeze-max allows a longer freeze");
            if !falls_back {
                return Err(error);
            }
            moment.fall_back(&error);
            return Ok((made, moment));
        }
        moment.consistency = Consistency::FilesystemQuiesced;
        moment.freeze = Some(thawed);
        Ok((made, moment))
    }

    /// What was made of a guest that was not frozen.
    fn unfrozen<T>(
        &self,
        (made, left): Still<T>,
        at_once: bool,
        mut moment: Moment,
    ) -> Result<(T, Moment)> {
        moment.variables = self.variables();
        self.check_same(&self.request.how.libvirt.find(&self.request.domain)?, &left)?;
        if self.plan.disks.len() > 1 {
            let text = match at_once {
                true => {
                    "nothing was frozen: its disks are of one moment if the snapshot command makes that of all in one \
                     step (docs/snapshot-commands.md)"
                }
                false => "nothing was frozen: its disks are some milliseconds apart",
            };
            moment.warnings.push(Warning::new(Code::GuestState, text));
        }
        Ok((made, moment))
    }

    /// Fails if the guest has come to write to other files since its disks were looked up: an
    /// external snapshot, the end of a block job, a restart. It may have been moved away from the files
    /// in `left` to have them still.
    fn check_same(&self, now: &Found, left: &[PathBuf]) -> Result<()> {
        let is_left = |source: &libvirt::StorageSource| match source {
            libvirt::StorageSource::File(path) | libvirt::StorageSource::Block(path) => {
                path.canonicalize().is_ok_and(|path| left.contains(&path))
            }
            _ => false,
        };
        let (before, now) = (&self.found.domain, &now.domain);
        let mut pairs = before.disks.iter().zip(&now.disks);
        let is_same = pairs.all(|(before, now)| {
            let files = before.source == now.source && before.chain == now.chain;
            before.target == now.target && (files || is_left(&before.source))
        });
        if before.pid == now.pid && before.disks.len() == now.disks.len() && is_same {
            return Ok(());
        }
        Err(refused(format!("the disks of {} were changed meanwhile", self.request.domain))
            .because("no point was made: its disks would be of different moments")
            .advise("try again when no snapshot or block job is under way"))
    }

    /// Fails if nobody in the guest could freeze anything.
    fn check_agent(&self) -> Result<()> {
        let name = &self.request.domain;
        let what = match self.found.domain.agent {
            Agent::None => format!("{name} has no channel for a guest agent"),
            Agent::Disconnected => format!("no guest agent runs in {name}"),
            Agent::Channel | Agent::Connected => return Ok(()),
        };
        Err(refused(what).because("its filesystems can't be frozen").advise(
            "install and start qemu-guest-agent in it, or take --consistency crash: what a power \
             cut would leave",
        ))
    }

    /// Fails if a clone can't be made, or can't be made quickly: before anything is frozen.
    fn check_clonable(&self, ready: &[Ready<'_>], files: &[Files]) -> Result<()> {
        let mut extents = 0;
        for ((disk, plan), files) in ready.iter().zip(&self.plan.disks).zip(files) {
            for (path, file) in files {
                let tried = match plan.block {
                    true => Err(refused(format!("{} is a block device", path.display()))),
                    false => {
                        let folder = path.parent().unwrap_or(Path::new("/"));
                        reflink::try_clone_in(folder)
                            .and_then(|()| reflink::kept_beside(folder).map(drop))
                    }
                };
                tried.map_err(|error| self.no_moment(disk, &error))?;
                let fd = descriptor(file.as_ref())?;
                extents += reflink::extent_count(fd, path).unwrap_or(0);
            }
        }
        let limit = self.request.how.freeze_max;
        let most = (limit.as_millis() as u64 * EXTENTS_PER_S / 1000 / CLONE_SHARE).max(1);
        if extents > most {
            return Err(refused(format!(
                "the images of {} lie in {extents} extents, too many to clone in {}",
                self.request.domain,
                duration::in_ms(limit)
            ))
            .advise(
                "defragment them (xfs_fsr, btrfs filesystem defragment), or allow a longer freeze \
                 with --freeze-max",
            ));
        }
        tracing::debug!(extents, most, "extents to clone");
        Ok(())
    }

    /// The refusal that lists what else there is.
    fn no_moment(&self, disk: &Ready<'_>, error: &Error) -> Error {
        let text = format!(
            "{} runs, and the image of its disk {} can't be cloned",
            self.request.domain, disk.disk.disk
        );
        refused(text).because(error.chain()).advise(
            "one of these helps: keep the images on XFS (reflink) or Btrfs; --snapshot-command with \
             external-snapshot, for images on any filesystem, or with one for the storage below (LVM, ZFS, a \
             SAN); --consistency freeze-copy, which reads what has changed within the freeze; or to stop \
             the guest",
        )
    }

    /// Makes clones of all files of all disks, or has them made.
    fn make(
        &self,
        ready: &[Ready<'_>],
        files: &[Files],
        snapshots: Option<&mut Snapshots<'_>>,
        left: Duration,
    ) -> Result<Still<Made>> {
        match snapshots {
            None => {
                let clone = |(disk, files): (&Ready<'_>, &Files)| {
                    Clones::take(files, &disk.tag.name(self.disks.point))
                };
                let clones = ready.iter().zip(files).map(clone).collect::<Result<_>>()?;
                Ok((Made::Clones(clones), Vec::new()))
            }
            Some(snapshots) => {
                snapshots.create(left)?;
                Ok((Made::Snapshots, snapshots.left().collect()))
            }
        }
    }

    /// Opens what was made at the moment.
    fn open(
        &self,
        ready: &[Ready<'_>],
        made: Made,
        snapshots: Option<&Snapshots<'_>>,
    ) -> Result<Vec<Captured>> {
        let mut sources = Vec::new();
        match (made, snapshots) {
            (Made::Clones(all), _) => {
                for (disk, clones) in ready.iter().zip(all) {
                    let (open, point) = (disk.open, self.disks.point);
                    let leave =
                        leave(&self.request.how.options, open, &disk.base, &disk.tag, point);
                    let keep = leave.as_ref().is_some_and(|it| it.tracker == Tracker::Reflink);
                    // Also if no anchor is left: the one before is about to be compared with.
                    let before = disk.base.latest.as_ref();
                    let before = before.and_then(|latest| latest.record.anchor.as_ref());
                    let swept = sweep(disk, &clones, before.map(|anchor| anchor.name.as_str()));
                    let mut source = Captured::of_clones(disk.image, open, clones, keep)?;
                    source.warnings.extend(swept);
                    sources.push(source);
                }
            }
            (Made::Snapshots, None) => {}
            (Made::Snapshots, Some(snapshots)) => {
                for (index, disk) in ready.iter().enumerate() {
                    if let Some(export) = snapshots.export(index, self.cancel)? {
                        let (counted, left) = snapshots.bitmaps(index, disk)?;
                        let anchor = left.map(|name| self.live_anchor(disk, name));
                        let (image, open) = (disk.image, disk.open);
                        let source = Captured::of_export(image, open, export, counted, anchor)?;
                        snapshots.check_size(index, &source.image)?;
                        sources.push(source);
                        continue;
                    }
                    let made = snapshots.substitutes(index)?;
                    let mut source = Captured::of_copies(disk.image, disk.open, made)?;
                    snapshots.check_size(index, &source.image)?;
                    snapshots.check_read(&source.image)?;
                    if let Some(name) = snapshots.left_bitmap(index) {
                        self.leave_bitmap(disk, name, &mut source);
                    }
                    sources.push(source);
                }
            }
        }
        Ok(sources)
    }

    /// Believes the bitmap that the command has left in the image, if it began at this moment: one of an earlier moment
    /// comes back with an older state of the image, and knows nothing of what was written in between.
    fn leave_bitmap(&self, disk: &Ready<'_>, name: &str, source: &mut Captured) {
        if name != disk.tag.name(self.disks.point) {
            let text = format!(
                "{NO_ANCHOR}: the bitmap {} that the snapshot command left is not the one that was to begin",
                name.escape_debug()
            );
            source.warnings.push(Warning::new(Code::NoAnchor, text).advise(NO_MORE_TRIES));
            return;
        }
        let is_over = source.image.layers().len() > 1;
        match is_over.then(|| bitmap::allocation(&source.image, name)).transpose() {
            Ok(allocation) => {
                source.allocation = allocation;
                source.anchor = Some(Anchor { name: name.to_owned(), what: AnchorKind::Bitmap });
            }
            Err(error) => {
                source.warnings.push(Warning::failed(Code::NoAnchor, &error).within(NO_ANCHOR));
            }
        }
    }

    /// The anchor of a bitmap that counts on: from this moment, or from that of an earlier point.
    fn live_anchor(&self, disk: &Ready<'_>, name: &str) -> Anchor {
        let before = disk.base.latest.as_ref().and_then(|latest| latest.record.anchor.as_ref());
        let began = match before.filter(|before| before.name == name).map(|before| &before.what) {
            Some(AnchorKind::LiveBitmap { began }) => *began,
            _ => self.disks.point,
        };
        Anchor { name: name.to_owned(), what: AnchorKind::LiveBitmap { began } }
    }

    /// The firmware's variables as they are now, but for files that are too long to be read at once.
    fn variables(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = self.request.how.libvirt.variables(&self.found.domain).into_iter();
        files.filter_map(|path| small(&path).map(|bytes| (path, bytes))).collect()
    }
}

/// What is in a file, if it can be read and is short.
fn small(path: &Path) -> Option<Vec<u8>> {
    let (file, _) = machine::open(path).ok()?;
    if file.metadata().ok()?.len() > NVRAM_IN_FREEZE_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(NVRAM_IN_FREEZE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Removes the clones that interrupted backups of a disk have left, but for its own and the anchor.
fn sweep(disk: &Ready<'_>, clones: &Clones, anchor: Option<&str>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (file, _) in clones.substitutes() {
        let keep = [anchor.unwrap_or_default(), clones.name()];
        let Some(folder) = file.parent() else { continue };
        if let Err(error) = sweep_clones(folder, &disk.tag, &keep) {
            warnings.push(old_clone(&error));
        }
    }
    warnings
}

/// Calls `work` with a request to stop that comes when `outer` does, or when `limit` is over.
fn within<T>(limit: Duration, outer: &Cancel, work: impl FnOnce(&Cancel) -> T) -> T {
    let (inner, done) = (Cancel::default(), Cancel::default());
    let end = Instant::now() + limit;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.is_cancelled() {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() || outer.is_cancelled() {
                    inner.cancel();
                    return;
                }
                thread::sleep(left.min(Duration::from_millis(10)));
            }
        });
        let result = work(&inner);
        done.cancel();
        result
    })
}
