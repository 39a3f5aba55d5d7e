//! The admin's own command that makes the moment where the filesystem can't: QEMU's overlays and bitmaps, LVM,
//! ZFS, a SAN.
//!
//! What it answers is not believed: what is read must be nothing that a guest writes to.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::still::Look;
use super::{GuestRequest, Use};
use crate::base::cancel::Cancel;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};
use crate::disk::files::paths::is_same_place;
use crate::disk::image::Image;
use crate::disk::nbd::Export;
use crate::flows::anchors::{Tag, bitmap};
use crate::flows::backup::AnchorChoice;
use crate::flows::backup::together::Ready;
use crate::flows::capture::Counted;
use crate::formats::nbd::{DIRTY_BITMAP, Place, Uri, is_bitmap_name};
use crate::guest::libvirt::{Choice, Found, decide};
use crate::guest::program::Stop;
use crate::guest::snapshots::{
    Answer, CHECK_MAX, DiskAnswer, DiskRequest, GuestState, NbdAnswer, Request, SnapshotCommand,
    VERSION, Verb,
};
use crate::vault::repository::{Catalog, DiskId, DomainName, Point, PointId};

use qdelta_formats::archive::Tracker;

/// What a disk of QEMU's is a multiple of, in bytes.
const SECTOR: u64 = 512;
/// How long a call has to its end after a request to stop. What is cut off, the next `recover` finds.
const GRACE: Duration = Duration::from_secs(10);
/// How many warnings of one answer are passed on, and how many characters of each.
const WARNINGS_MAX: usize = 20;
const WARNING_LEN_MAX: usize = 500;

/// A command, and what it has made of some disks. Dropped, what was made is released: so this must outlive
/// everything that has it open.
pub(super) struct Snapshots<'a> {
    command: SnapshotCommand,
    request: Request,
    /// The guest's own.
    tag: Tag,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
    taken: Vec<Taken>,
    /// What the command of the second version has answered for each disk.
    disks: Vec<DiskAnswer>,
    /// The command was asked to make the moment, and has not yet been asked to release it.
    is_made: bool,
    /// The point is made.
    is_kept: bool,
}

/// A file that a guest writes to, and what the command has made of it.
struct Taken {
    /// The place of its disk among those of the request.
    disk: usize,
    file: PathBuf,
    /// What is to be read in its place; nothing if the command failed.
    made: PathBuf,
    /// The file as it was before.
    before: Look,
    /// The command has moved the guest to another file, so that this one is the moment.
    is_left: bool,
}

impl<'a> Snapshots<'a> {
    /// Asks the command whether it would work for a guest, and has it mend what an earlier run has left.
    ///
    /// # Errors
    /// It would not; or something can't be mended.
    pub fn begin(
        program: &Path,
        (found, guest): (&Found, &GuestRequest),
        (catalog, name): (&Catalog, &DomainName),
        observer: &'a dyn Observer,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let track = match guest.how.options.anchor {
            AnchorChoice::AsBefore | AnchorChoice::For(Tracker::Bitmap) => true,
            AnchorChoice::None | AnchorChoice::For(_) | AnchorChoice::Begun(_) => false,
        };
        let state = match found.live {
            None => GuestState::Stopped,
            Some(_) if found.domain.is_paused() => GuestState::Paused,
            Some(_) => GuestState::Running,
        };
        let mut disks = Vec::new();
        for disk in &found.domain.disks {
            let Choice::Take { image, format, .. } = decide(disk, &guest.excluded) else {
                continue;
            };
            let id = DiskId { domain: name.clone(), disk: disk.target.parse()? };
            let is_state = |it: &Point| !it.is_of_snapshot();
            let latest = catalog.latest_first(&id).ok().and_then(|mut all| all.find(is_state));
            disks.push(DiskRequest {
                disk: disk.target.clone(),
                format: format.to_string(),
                files: vec![image],
                bitmap: None,
                owner: Tag::new(catalog.repository(), &id).as_str().to_owned(),
                since: latest.and_then(|it| it.record.anchor).map(|anchor| anchor.name),
                marks: Vec::new(),
                size: 0,
            });
        }
        let tag = Tag::of_guest(catalog.repository(), name);
        let request = Request {
            protocol: VERSION,
            verb: Verb::Check,
            domain: found.domain.name.clone(),
            uuid: found.domain.uuid.clone(),
            connect: guest.how.virsh.connect.clone(),
            state,
            pid: std::process::id(),
            point: None,
            name: None,
            owner: tag.as_str().to_owned(),
            limit_ms: 0,
            track,
            disks,
            kept: None,
        };
        let (command, warnings) =
            until_stopped((program, Verb::Check), observer, cancel, |stop| {
                SnapshotCommand::check(program, &request, Some(stop))
            })?;
        let (taken, disks, is_made, is_kept) = (Vec::new(), Vec::new(), false, false);
        let snapshots =
            Self { command, request, tag, observer, cancel, taken, disks, is_made, is_kept };
        snapshots.warn(warnings);
        if !snapshots.command.is_clean() {
            let about = (program, Verb::Recover);
            let mended =
                until_stopped(about, observer, cancel, |stop| snapshots.recover(Some(stop)));
            snapshots.warn(mended.map_err(|error| match error.kind() {
                ErrorKind::Interrupted => error,
                _ => error.advise(
                    "no point was made: what an earlier backup left could not be mended, so see to the \
                     guest (virsh domblklist says which files it is on), and run the backup again",
                ),
            })?);
        }
        Ok(snapshots)
    }

    fn recover(&self, stop: Option<Stop<'_>>) -> Result<Vec<String>> {
        let mut request = Request { verb: Verb::Recover, ..self.request.clone() };
        if self.is_kept {
            // What was left for the point is what the next backup needs.
            for (index, disk) in request.disks.iter_mut().enumerate() {
                disk.since = self.left_bitmap(index).map(str::to_owned).or(disk.since.take());
            }
        }
        self.command.call(&request, None, stop).map(|answer| answer.warnings)
    }

    fn warn(&self, texts: Vec<String>) {
        let more = texts.len().saturating_sub(WARNINGS_MAX);
        let last = (more > 0).then(|| format!("the snapshot command has {more} more warnings"));
        for text in texts.into_iter().take(WARNINGS_MAX).chain(last) {
            let text: String = match text.char_indices().nth(WARNING_LEN_MAX) {
                Some(_) => text.chars().take(WARNING_LEN_MAX).chain(['…']).collect(),
                None => text,
            };
            self.observer.warn(Warning::new(Code::GuestState, text));
        }
    }

    /// Says which point it will be, and which files there are to it, and has the command do what need not be
    /// done while the guest stands still.
    ///
    /// # Errors
    /// An image can't be opened; or the command fails.
    pub fn prepare(
        &mut self,
        point: PointId,
        (ready, usage): (&[Ready<'_>], Use),
        files: &[Vec<PathBuf>],
    ) -> Result<()> {
        self.request.name = Some(self.tag.name(point));
        self.request.point = Some(point.to_string());
        self.request.state = match usage {
            Use::Paused => GuestState::Paused,
            Use::Stopped | Use::Running => GuestState::Running,
        };
        self.request.disks.clear();
        for (ready, files) in ready.iter().zip(files) {
            let name = ready.tag.name(point);
            let top = Image::open(ready.image, ready.open)?;
            let (size, format) = (top.virtual_size(), top.layers().first().map(|top| top.format));
            let latest = ready.base.latest.as_ref();
            self.request.disks.push(DiskRequest {
                disk: ready.disk.disk.to_string(),
                format: format.map(|format| format.to_string()).unwrap_or_default(),
                files: files.clone(),
                marks: bitmap::canaries(&name, size),
                size,
                bitmap: Some(name).filter(|_| self.request.track),
                owner: ready.tag.as_str().to_owned(),
                since: latest.and_then(|it| it.record.anchor.as_ref()).map(|it| it.name.clone()),
            });
        }
        if self.command.is_first() {
            return Ok(());
        }
        self.is_made = true;
        let request = Request { verb: Verb::Prepare, ..self.request.clone() };
        let about = (self.command.program(), Verb::Prepare);
        let answer = until_stopped(about, self.observer, self.cancel, |stop| {
            self.command.call(&request, Some(CHECK_MAX), Some(stop))
        })?;
        self.warn(answer.warnings);
        self.command.start_early();
        Ok(())
    }

    /// Whether the command makes the moment of all disks in one call.
    pub fn are_at_once(&self) -> bool {
        !self.command.is_first()
    }

    /// Makes the moment of all disks, within `limit`.
    ///
    /// # Errors
    /// The command fails, is not ready in time, or does not say where each disk is to be read; or what is to
    /// be read is the live file, which a guest still writes to, or older than that.
    pub fn create(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        for (disk, request) in self.request.disks.iter().enumerate() {
            for file in &request.files {
                let (file, made, before) = (file.clone(), PathBuf::new(), Look::at(file)?);
                self.taken.push(Taken { disk, file, made, before, is_left: false });
            }
        }
        self.is_made = true;
        if self.command.is_first() {
            return self.create_each(end);
        }
        let request = Request { verb: Verb::Snapshot, ..self.request.clone() };
        let left = end.saturating_duration_since(Instant::now());
        let answer = self.command.snapshot(&request, left)?;
        self.understand(answer)
    }

    /// By a command of the first version, file by file.
    fn create_each(&mut self, end: Instant) -> Result<()> {
        let mut looked = Vec::new();
        std::mem::swap(&mut looked, &mut self.taken);
        for taken in looked {
            let left = end.saturating_duration_since(Instant::now());
            let made = self.command.create(&taken.file, &self.request, left);
            // If it failed, it may have got halfway, and must find itself what it made.
            self.taken.push(taken);
            let Some(taken) = self.taken.last_mut() else { continue };
            taken.made = made?;
            taken
                .check()
                .map_err(|why| unbelieved(&self.command, "create printed", &taken.made, why))?;
        }
        self.check_distinct()
    }

    fn understand(&mut self, answer: Answer) -> Result<()> {
        self.warn(answer.warnings);
        Self::check_exports(&answer.disks)?;
        for (index, request) in self.request.disks.iter().enumerate() {
            let mut answers = answer.disks.iter().filter(|it| it.disk == request.disk);
            let (Some(disk), None) = (answers.next(), answers.next()) else {
                return Err(unusable(format!("it must name disk {} once", request.disk)));
            };
            if disk.nbd.is_some() && !disk.files.is_empty() {
                let text = format!("it must name files of disk {} or an export", request.disk);
                return Err(unusable(text));
            }
            if disk.leaves.as_deref().is_some_and(|name| !is_bitmap_name(name)) {
                let text =
                    format!("what it leaves of disk {} is no name of a bitmap", request.disk);
                return Err(unusable(text));
            }
            if disk.nbd.is_some() {
                self.disks.push(disk.clone());
                continue;
            }
            for taken in self.taken.iter_mut().filter(|taken| taken.disk == index) {
                let mut reads = disk.files.iter().filter(|it| it.file == taken.file);
                let (Some(file), None) = (reads.next(), reads.next()) else {
                    let text = format!("it must name {} once", taken.file.display());
                    return Err(unusable(text));
                };
                taken.made.clone_from(&file.read);
                taken
                    .check()
                    .map_err(|why| unbelieved(&self.command, "answered", &taken.made, why))?;
            }
            self.disks.push(disk.clone());
        }
        self.check_distinct()
    }

    /// Fails if an answer names one export for two disks.
    fn check_exports(disks: &[DiskAnswer]) -> Result<()> {
        let mut exports: Vec<(&str, Uri)> = Vec::new();
        for answer in disks {
            let Some(nbd) = &answer.nbd else { continue };
            let uri = Uri::parse(&nbd.uri)
                .map_err(|error| unusable(format!("{} is no export: {error}", nbd.uri)))?;
            if let Some((other, _)) = exports.iter().find(|(_, other)| is_same_export(other, &uri))
            {
                let text = format!("disks {other} and {} can't be one export", answer.disk);
                return Err(unusable(text));
            }
            exports.push((&answer.disk, uri));
        }
        Ok(())
    }

    /// Fails if one file or device is to be read in the place of two.
    fn check_distinct(&self) -> Result<()> {
        let mut seen: Vec<(&Taken, Look)> = Vec::new();
        for taken in &self.taken {
            if taken.made.as_os_str().is_empty() {
                continue;
            }
            let look = Look::at(&taken.made)?;
            if let Some((other, _)) = seen.iter().find(|(_, other)| other.has_same_bytes(&look)) {
                let (one, other) = (other.file.display(), taken.file.display());
                let text = format!("{} can't be both {one} and {other}", taken.made.display());
                return Err(unusable(text));
            }
            seen.push((taken, look));
        }
        Ok(())
    }

    /// Each file of a disk and the real path of what is to be read in its place: the name of a logical volume
    /// is a symlink.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn substitutes(&self, disk: usize) -> Result<Vec<(PathBuf, PathBuf)>> {
        let real = |taken: &Taken| {
            let made = &taken.made;
            let made = made.canonicalize().map_err(|error| Error::io("resolve", made, error))?;
            Ok((taken.file.clone(), made))
        };
        self.taken.iter().filter(|taken| taken.disk == disk).map(real).collect()
    }

    /// The export from which a disk is to be read, if the command has answered one.
    ///
    /// # Errors
    /// It has no URI.
    pub fn export(&self, disk: usize, cancel: &Cancel) -> Result<Option<Export>> {
        let nbd = self.disks.get(disk).and_then(|answer| answer.nbd.as_ref());
        let export = nbd.map(|nbd| Export::new(&nbd.uri, cancel).map(Export::of_command));
        export.transpose().map_err(|error| unusable(error.chain()))
    }

    /// The bitmap that the server of a disk tells of and from which anchor that counts; and what the command
    /// has left for the next backup.
    ///
    /// # Errors
    /// It names one without the other, or something else than a bitmap.
    pub fn bitmaps(
        &self,
        disk: usize,
        ready: &Ready<'_>,
    ) -> Result<(Option<Counted>, Option<&str>)> {
        let Some(NbdAnswer { bitmap, since, marked, .. }) =
            self.disks.get(disk).and_then(|answer| answer.nbd.as_ref())
        else {
            return Ok((None, None));
        };
        let name = bitmap.as_ref().map(|it| it.strip_prefix(DIRTY_BITMAP).unwrap_or_default());
        let counted = match (name, since) {
            (None, None) => None,
            (Some(name), Some(since)) if !name.is_empty() => {
                let latest = ready.base.latest.as_ref().filter(|_| *marked);
                let marks = latest
                    .map(|it| bitmap::canaries(&ready.tag.name(it.id), it.record.virtual_size));
                let marks = marks.unwrap_or_default();
                Some(Counted { bitmap: name.to_owned(), since: since.clone(), marks })
            }
            _ => {
                let why = "a bitmap is named as qemu:dirty-bitmap:NAME, with what it counts from";
                return Err(unusable(why.to_owned()));
            }
        };
        Ok((counted, self.left_bitmap(disk)))
    }

    /// Fails if what is to be read is not as long as the guest's disk: it must be another one, or cut short.
    ///
    /// # Errors
    /// It is not.
    pub fn check_size(&self, disk: usize, image: &Image) -> Result<()> {
        let Some(request) = self.request.disks.get(disk) else { return Ok(()) };
        let size = image.virtual_size();
        // QEMU counts in sectors.
        if size.abs_diff(request.size) < SECTOR {
            return Ok(());
        }
        let text = format!(
            "disk {} has {} bytes, and what the snapshot command answered has {size}",
            request.disk, request.size
        );
        Err(Error::new(ErrorKind::Guest, text)
            .because("it is that of another disk, or cut short, or the disk was resized meanwhile"))
    }

    /// What the command has left of a disk that records what the guest writes.
    pub fn left_bitmap(&self, disk: usize) -> Option<&str> {
        self.disks.get(disk)?.leaves.as_deref().filter(|_| self.request.track)
    }

    /// The files that the guest was moved away from.
    pub fn left(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.taken.iter().filter(|taken| taken.is_left).map(|taken| taken.file.clone())
    }

    /// Fails if a guest writes to a file of an image that is read in the place of a live one: what a
    /// command answers may lie over that.
    ///
    /// # Errors
    /// It does, as far as anything tells.
    pub fn check_read(&self, image: &Image) -> Result<()> {
        for file in image.files() {
            let Some(fd) = file.fd() else { continue };
            let look = Look::of(fd, file.path())?;
            let mut live = self.taken.iter().filter(|taken| !taken.is_left);
            if look.is_written || live.any(|taken| look.leads_to(&taken.before)) {
                let text =
                    format!("what the snapshot command made needs {}", file.path().display());
                return Err(Error::new(ErrorKind::Guest, text)
                    .because("a guest writes to it, so it is of no moment")
                    .advise("it must be what needs no file that a guest writes to"));
            }
        }
        Ok(())
    }

    /// The point is safe.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    fn release(&self) -> Result<()> {
        let request =
            Request { verb: Verb::Release, kept: Some(self.is_kept), ..self.request.clone() };
        if self.cancel.is_cancelled() {
            let program = self.command.program().display();
            let text =
                format!("stopping: waiting for {program} release, which takes away what was made");
            self.observer.warn(Warning::new(Code::GuestState, text));
        }
        match self.command.call(&request, None, None) {
            Ok(answer) => {
                self.warn(answer.warnings);
                Ok(())
            }
            // What was cut off can be mended: the next call is the one that every backup begins with.
            Err(error) => match self.recover(None) {
                Ok(_) => {
                    tracing::debug!("released by `recover`, after: {}", error.chain());
                    Ok(())
                }
                Err(again) => Err(again.within("nor could it be mended").within(error.chain())),
            },
        }
    }
}

/// Makes a call that begins nothing after a request to stop, and that is cut off soon after one.
fn until_stopped<T>(
    (program, verb): (&Path, Verb),
    observer: &dyn Observer,
    cancel: &Cancel,
    call: impl FnOnce(Stop<'_>) -> Result<T>,
) -> Result<T> {
    cancel.check()?;
    let waiting = || {
        let (program, verb) = (program.display(), verb.as_str());
        let text =
            format!("stopping: {program} {verb} has {} to come to its end", duration::in_ms(GRACE));
        observer.warn(Warning::new(Code::GuestState, text));
    };
    let done = call(Stop { cancel, grace: GRACE, waiting: &waiting });
    match (cancel.check(), done) {
        (Err(stopped), Err(error)) => Err(stopped.because(error)),
        (Err(stopped), Ok(_)) => Err(stopped),
        (Ok(()), done) => done,
    }
}

fn unusable(why: String) -> Error {
    Error::new(ErrorKind::Guest, "the snapshot command's answer can't be used").because(why)
}

fn unbelieved(command: &SnapshotCommand, verb: &str, made: &Path, why: String) -> Error {
    let text = format!("{} {verb} {made:?}", command.program().display());
    Error::new(ErrorKind::Guest, text).because(why).advise(
        "it must name a snapshot or a copy that was made now; the file itself only where it has moved \
         the guest to another file",
    )
}

impl Taken {
    /// Finds out whether what was made is the moment, or why not.
    fn check(&mut self) -> Result<(), String> {
        let text = "that is no absolute path of a file or block device that is there";
        if !self.made.is_absolute() {
            return Err(text.to_owned());
        }
        let made = Look::at(&self.made).map_err(|error| format!("{text}: {}", error.chain()))?;
        if made.leads_to(&self.before) {
            self.is_left = made.is_same(&self.before) && self.before.is_written && !made.is_written;
            return match self.is_left {
                true => Ok(()),
                false if made.is_written => {
                    Err("it is the live image, and the guest writes to it".to_owned())
                }
                false => {
                    Err("it is the live image, and nothing shows that the guest left it".to_owned())
                }
            };
        }
        if made.is_written {
            return Err("somebody writes to it".to_owned());
        }
        if made.is_older(&self.before) {
            return Err("it is older than what the guest has written".to_owned());
        }
        Ok(())
    }
}

impl Drop for Snapshots<'_> {
    fn drop(&mut self) {
        if !self.is_made {
            return;
        }
        let released: Vec<Result<()>> = match self.command.is_first() {
            true => {
                let release = |it: &Taken| self.command.release(&it.file, &it.made, &self.request);
                self.taken.iter().rev().map(release).collect()
            }
            false => vec![self.release()],
        };
        for error in released.into_iter().filter_map(Result::err) {
            let error = error.within("what --snapshot-command made may still be there");
            self.observer.warn(Warning::failed(Code::NotReleased, &error));
        }
    }
}

/// Whether two URIs may lead to one export: of one name, behind one socket or one address, however these are spelled.
fn is_same_export(one: &Uri, other: &Uri) -> bool {
    if one.export != other.export {
        return false;
    }
    match (&one.place, &other.place) {
        (Place::Unix(one), Place::Unix(other)) => is_same_place(Path::new(one), Path::new(other)),
        (Place::Tcp(one, one_port), Place::Tcp(other, other_port)) => {
            // No name is looked up: the guest is frozen, and a server of names may not answer.
            let plain = |host: &str| {
                let name = host.trim_end_matches('.').to_ascii_lowercase();
                match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
                    Ok(address) if address.is_loopback() => "localhost".to_owned(),
                    Ok(address) => address.to_string(),
                    Err(_) => name,
                }
            };
            one_port == other_port && plain(one) == plain(other)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One export was believed to be two disks where its URI was spelled in two ways.
    #[test]
    fn an_export_is_one_however_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("s"), dir.path().join("link"));
        std::fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let [socket, link] = [socket, link].map(|path| path.display().to_string());
        let is_same = |one: &str, other: &str| {
            is_same_export(&Uri::parse(one).unwrap(), &Uri::parse(other).unwrap())
        };
        let one = format!("nbd+unix:///vda?socket={socket}");
        for other in [
            format!("nbd+unix:///%76da?socket={socket}"),
            format!("nbd+unix:///vda?socket={link}"),
            format!("nbd+unix:///vda?x=1&socket={socket}#x"),
            format!("nbd+unix:///vda?socket={}/./s", dir.path().display()),
        ] {
            assert!(is_same(&one, &other), "{other}");
        }
        assert!(!is_same(&one, &format!("nbd+unix:///vdb?socket={socket}")));
        assert!(!is_same(&one, &format!("nbd+unix:///vda?socket={socket}2")));
        for other in ["nbd://127.0.0.1/vda", "nbd://localhost:10809/vda", "nbd://[::1]/vda"] {
            assert!(is_same("nbd://localhost/vda", other), "{other}");
        }
        for other in ["nbd://localhost:10810/vda", "nbd://192.0.2.7/vda", "nbd://localhost/vdb"] {
            assert!(!is_same("nbd://localhost/vda", other), "{other}");
        }
    }
}
