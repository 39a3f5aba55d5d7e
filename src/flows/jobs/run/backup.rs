//! The backups of a job: its guests and images, several at a time. One that fails stops no other.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::acts::{freeze_max, is_short, of_all};
use super::{Came, Work};
use crate::base::cancel::Cancel;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer, OfGuest};
use crate::flows::backup::{
    self, AnchorChoice, BackupRequest, GuestOptions, GuestRequest, HostConfig, ImageRequest,
    KindChoice, Options, run_guest,
};
use crate::flows::host;
use crate::flows::jobs::config::JobImage;
use crate::flows::jobs::guests::{ELSEWHERE, Subject};
use crate::flows::jobs::sense;
use crate::flows::jobs::words::option;
use crate::flows::report::{Act, ActResult, BackupReport, End, GuestReport};
use crate::formats::archive::{Consistency, Kind};
use crate::guest::quiesce::THAW_TRIES_DEFAULT;
use crate::vault::repository::{Point, Repository};

/// Passes on what must be known, and no progress: bars of several guests would take turns.
struct Warnings<'a>(&'a dyn Observer);

impl Observer for Warnings<'_> {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Warning(_)) {
            self.0.event(event);
        }
    }
}

impl Work<'_> {
    /// Backs up the guests and images of the job.
    pub(super) fn back_up(&self, repository: &Repository, keep_free: Option<u64>) -> Came {
        self.note_gone();
        if is_short(repository, keep_free) {
            return Came::failed(&too_little_room(repository, keep_free));
        }
        let at_once = self.run.host.config.limits.guests_at_once.min(self.subjects.len()).max(1);
        let (waiting, ends) = (Mutex::new(self.subjects.iter()), Mutex::new(Vec::new()));
        // Each backup takes room of those after it.
        let is_full = AtomicBool::new(false);
        let next = || {
            if is_short(repository, keep_free) {
                is_full.store(true, Ordering::Relaxed);
            }
            match self.run.cancel.is_cancelled() || is_full.load(Ordering::Relaxed) {
                true => None,
                false => waiting.lock().unwrap_or_else(PoisonError::into_inner).next(),
            }
        };
        let work = || {
            while let Some(subject) = next() {
                let end = self.subject(repository, subject, at_once);
                let ended = (subject.name(), end);
                ends.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
            }
        };
        thread::scope(|scope| {
            for _ in 1..at_once {
                scope.spawn(work);
            }
            work();
        });
        let mut ends = ends.into_inner().unwrap_or_else(PoisonError::into_inner);
        ends.sort_by(|one, other| one.0.cmp(&other.0));
        let is_full = is_full.into_inner() && !self.run.cancel.is_cancelled();
        for left in waiting.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let name = left.name();
            let end = self.run.doing(Some(self.name), Act::Backup, Some(&name), || match is_full {
                true => Came {
                    end: End::NotTried,
                    ..Came::failed(&too_little_room(repository, keep_free))
                },
                false => Came::to(End::Interrupted, "stopped on request before it began"),
            });
            ends.push((name, end));
        }
        let came = of_all("backed up", &ends);
        let is_dark = !self.job.guests.is_empty() && self.run.guests.is_empty();
        if is_dark && came.end != End::Interrupted {
            // Else nobody would hear of a night without a single guest.
            let folder = self.run.host.config.libvirt.config.display();
            let text = format!("libvirt has no guest at all in {folder}; {}", came.text);
            let mut came = Came { end: End::Failed, text, ..came };
            came.advice = Some(ELSEWHERE.to_owned());
            return came;
        }
        came
    }

    /// Backs up one.
    fn subject(&self, repository: &Repository, subject: &Subject, at_once: usize) -> End {
        let name = subject.name();
        let quiet = Warnings(self.run.observer);
        let observer: &dyn Observer = if at_once > 1 { &quiet } else { self.run.observer };
        let observer = OfGuest::new(observer, &name);
        let (cancel, options) = (self.run.cancel, self.options(at_once));
        self.run.doing(Some(self.name), Act::Backup, Some(&name), || {
            let taken = sense::taken(self.run.host.config, self.run.guests, self.name, subject);
            if let Err(error) = taken.and_then(|it| it.map_or(Ok(()), Err)) {
                return Came::failed(&error);
            }
            let made = match subject {
                Subject::Guest { name, excluded } => {
                    let request = GuestRequest {
                        domain: name.clone(),
                        excluded: excluded.clone(),
                        how: self.guest_options(options),
                    };
                    run_guest(repository, &request, &observer, cancel).map(of_guest)
                }
                Subject::Host(_) => {
                    let (host, files) = (self.run.host, self.run.host.files());
                    // It is packed anew each time: no anchor would say anything of it.
                    let options = Options { anchor: AnchorChoice::None, ..options };
                    host::back_up(repository, &files, host.state, options, &observer, cancel)
                        .map(of_image)
                }
                Subject::Image(image) => {
                    let run = self.run.now;
                    back_up_image(repository, image, (run, options), &observer, cancel)
                        .map(of_image)
                }
            };
            made.unwrap_or_else(|error| Came::failed(&error))
        })
    }

    fn options(&self, at_once: usize) -> Options {
        Options {
            kind: KindChoice::Auto,
            level: self.job.level,
            anchor: self.job.anchor.clone(),
            resources: self.resources(at_once),
            with_snapshots: self.job.with_snapshots,
            ..Options::default()
        }
    }

    fn guest_options(&self, options: Options) -> GuestOptions {
        let host = self.run.host;
        GuestOptions {
            libvirt: host.config.libvirt.libvirt(),
            same_guest: false,
            consistency: self.job.consistency,
            freeze_max: freeze_max(self.job),
            thaw_tries: THAW_TRIES_DEFAULT,
            snapshot_command: self.job.snapshot_command.clone(),
            host_config: match self.job.with_host_config {
                true => HostConfig::ByItself,
                false => HostConfig::LeftOut,
            },
            with_memory: self.job.with_memory,
            virsh: host.config.libvirt.virsh(),
            watchdog: host.watchdog.clone(),
            image_roots: Vec::new(),
            options,
        }
    }

    /// Notes guests that went and that the file does not name: a guest that it names fails by itself.
    fn note_gone(&self) {
        let run = self.run;
        let is_meant = |name: &str| self.subjects.iter().any(|subject| subject.name() == name);
        let gone = run.guests.gone(run.host.config, run.memory);
        for guest in gone.iter().filter(|it| it.job == Some(self.name)).map(|it| it.guest) {
            let last = run.memory.of(Some(self.name), Act::Backup, Some(guest)).last;
            let is_told = last.is_some_and(|record| record.end == End::Gone);
            if !is_told && !is_meant(guest) {
                run.doing(Some(self.name), Act::Backup, Some(guest), || {
                    let text = "libvirt does not have this guest any more; its points stay";
                    let mut came = Came::to(End::Gone, text);
                    came.advice = Some(format!(
                        "restore it if it should be there: qdelta restore {} --to DIR",
                        option("--domain", guest)
                    ));
                    came
                });
            }
        }
    }
}

/// Says that nothing is begun in a repository where less is free than is to stay free.
pub(super) fn too_little_room(repository: &Repository, keep_free: Option<u64>) -> Error {
    let size = |bytes: Option<u64>| bytesize::ByteSize(bytes.unwrap_or(0)).display().iec();
    let text = format!(
        "nothing was begun: {} is free in {}, and {} is to stay free",
        size(repository.bytes_free()),
        repository.path().display(),
        size(keep_free)
    );
    Error::new(ErrorKind::NoSpace, text).advise(
        "make room: keep fewer points (qdelta space says what they take), or lower keep_free",
    )
}

fn back_up_image(
    repository: &Repository,
    image: &JobImage,
    (run, options): (Timestamp, Options),
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<BackupReport> {
    let open = image.open(cancel)?;
    // What the job says of anchors is for image files.
    let anchor = match image.begun(run)? {
        Some(bitmap) => {
            check_new(repository, image, &bitmap)?;
            AnchorChoice::Begun(bitmap)
        }
        None if image.is_export() => AnchorChoice::None,
        None => options.anchor,
    };
    let options = Options { anchor, ..options };
    let image = ImageRequest { path: image.path.clone(), open, disk: image.disk.clone() };
    backup::run(repository, &BackupRequest { image, options }, observer, cancel)
}

/// Fails if the bitmap that has begun, by a file's word, is that of an earlier point: then none has, or it was called as
/// that one.
fn check_new(repository: &Repository, image: &JobImage, bitmap: &str) -> Result<()> {
    let (id, catalog) = (image.spec()?.or_only_disk(), repository.catalog());
    let is_its = |point: &Point| point.record.anchor.as_ref().is_some_and(|it| it.name == bitmap);
    // Before the first point of a disk there is none.
    let earlier = catalog.latest_first(&id).ok().and_then(|mut points| points.find(is_its));
    let Some(point) = earlier else { return Ok(()) };
    let text = format!(
        "live_bitmap_file: the bitmap {} began at point {} already: none of this moment is known",
        bitmap.escape_debug(),
        point.id
    );
    Err(Error::new(ErrorKind::Usage, text).advise("each night begins a bitmap of a new name"))
}

fn of_guest(report: GuestReport) -> Came {
    let warnings = report.disks.iter().flat_map(|disk| &disk.warnings).chain(&report.warnings);
    let mut warnings: Vec<_> = warnings.cloned().collect();
    warnings.retain(is_worth_a_look);
    let frozen = report.freeze_ms.map(|ms| {
        let time = duration::in_ms(Duration::from_millis(ms));
        format!(" (frozen for {time})")
    });
    let fell_back = report.fell_back.as_ref().map(|_| " (not as asked for)".to_owned());
    let how = frozen.or(fell_back).unwrap_or_default();
    let mut text = format!("{}{how}: {}", report.consistency, stored(&report.disks));
    let has_older = report.disks.iter().any(|disk| disk.kind != Kind::Full);
    let is_new = |disk: &&BackupReport| has_older && disk.kind == Kind::Full;
    let new: Vec<&str> =
        report.disks.iter().filter(is_new).map(|disk| disk.disk.as_str()).collect();
    if !new.is_empty() {
        text += &format!("; whole: {}", new.join(", "));
    }
    let end = if warnings.is_empty() { End::Done } else { End::Warned };
    Came { warnings, result: Some(ActResult::Guest(Box::new(report))), ..Came::to(end, text) }
}

fn of_image(report: BackupReport) -> Came {
    let mut warnings = report.warnings.clone();
    warnings.retain(is_worth_a_look);
    let end = if warnings.is_empty() { End::Done } else { End::Warned };
    let mut text = stored(std::slice::from_ref(&report));
    if report.consistency == Consistency::Unknown {
        text = format!("consistency unknown: {text}");
    }
    Came { warnings, result: Some(ActResult::Image(Box::new(report))), ..Came::to(end, text) }
}

/// How many disks, and how much was stored of them.
fn stored(disks: &[BackupReport]) -> String {
    let bytes = disks.iter().map(|disk| disk.bytes_written).sum();
    let count = disks.len();
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} disk{plural}, {} stored", bytesize::ByteSize(bytes).display().iec())
}

/// Whether somebody can do something about a warning.
fn is_worth_a_look(warning: &crate::base::warning::Warning) -> bool {
    warning.code != crate::base::warning::Code::SlowIo
}
