//! What the kernel asks about the mount, answered: names and sizes from a listing, at once; everything
//! for which a point is read by threads that nobody waits for endlessly.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, Request,
};

use super::files::{self, Open, Sought};
use super::listing::{Guests, Lister, Shown};
use super::names::{self, Known, Node, Numbers};
use super::patience::Workers;
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer};
use crate::base::warning::{Code, Warning};
use crate::inside::volumes::Survey;
use crate::vault::point::OpenPoints;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{DiskId, DiskName, DomainName, PointId};

/// How long the kernel believes that a name is there.
const NAME_TTL: Duration = Duration::from_secs(1);
/// How long it believes what can't change.
const FOR_EVER: Duration = Duration::from_secs(86_400);
/// The most surveys of volumes that are kept.
const SURVEYS_MAX: usize = 64;
/// How much the kernel reads ahead, in bytes.
const AHEAD: u32 = 1 << 20;

/// The mount's side of the kernel's filesystem.
pub(super) struct Server(Arc<Serving>);

/// What serves the mount. Who ends the mount has it, too: as long as somebody has a file open, the kernel may go on to
/// ask.
pub(super) struct Serving {
    workers: Workers,
    state: Arc<State>,
}

/// What all threads of the mount share.
struct State {
    points: Arc<OpenPoints>,
    lister: Lister,
    numbers: Mutex<Numbers>,
    files: Mutex<Handles<Arc<Open>>>,
    folders: Mutex<Handles<Arc<[Entry]>>>,
    surveys: Mutex<HashMap<(DiskId, PointId), Arc<Survey>>>,
    /// What could not be read, by file and problem: each is told once.
    told: Mutex<HashSet<(u64, String)>>,
    warnings: Teller,
    cancel: Cancel,
    owner: (u32, u32),
}

/// Something in a folder.
#[derive(Debug)]
struct Entry {
    number: u64,
    is_folder: bool,
    name: String,
}

/// What is open, by the number that the kernel has for it.
struct Handles<T> {
    open: HashMap<u64, T>,
    next: u64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: HashMap::new(), next: 1 }
    }
}

impl<T> Handles<T> {
    fn add(&mut self, opened: T) -> FileHandle {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, opened);
        FileHandle(number)
    }
}

impl Server {
    /// Serves what `lister` lists. Whatever can't be read is told to `warnings`.
    pub fn new(
        points: Arc<OpenPoints>,
        lister: Lister,
        patience: Duration,
        warnings: SyncSender<Warning>,
        cancel: &Cancel,
    ) -> Self {
        let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let state = State {
            points,
            lister,
            numbers: Mutex::new(Numbers::new()),
            files: Mutex::default(),
            folders: Mutex::default(),
            surveys: Mutex::default(),
            told: Mutex::default(),
            warnings: Teller(Mutex::new(warnings)),
            cancel: cancel.clone(),
            owner: ids,
        };
        Self(Arc::new(Serving { workers: Workers::new(patience), state: Arc::new(state) }))
    }

    /// What ends it.
    pub fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl Serving {
    /// Opens nothing any more.
    pub fn close(&self) {
        self.state.points.close();
    }

    /// Closes what is open, and gives all locks back: of what is being read when that is done, though not endlessly.
    pub fn end(&self, limit: Duration) {
        self.close();
        let state = Arc::clone(&self.state);
        // A thread of theirs: where locks lie, somebody may not answer.
        self.workers.ask((), move || state.close(), |(), _| ());
        if !self.workers.end(limit) {
            tracing::debug!("something is still being read");
        }
    }

    /// Lets a thread answer.
    fn ask<R: Send + 'static, T: 'static>(
        &self,
        number: u64,
        reply: R,
        work: impl FnOnce(&State) -> Result<T> + Send + 'static,
        answer: impl FnOnce(R, &State, Result<T, Errno>) + Send + 'static,
    ) {
        let (state, told) = (Arc::clone(&self.state), Arc::clone(&self.state));
        self.workers.ask(
            reply,
            move || work(&state),
            move |reply, done| {
                let done = done.unwrap_or_else(|| Err(told.late(number)));
                let done = done.map_err(|error| told.failed(number, &error));
                answer(reply, &told, done);
            },
        );
    }
}

/// Passes on to whoever waits for the mount's end what must be known.
struct Teller(Mutex<SyncSender<Warning>>);

impl Observer for Teller {
    fn event(&self, event: &Event<'_>) {
        if let Event::Warning(warning) = event {
            // Of very many at once some are enough.
            let _ = locked(&self.0).try_send((*warning).clone());
        }
    }
}

impl State {
    fn wait(&self) -> Wait<'_> {
        Wait::by(&self.warnings, &self.cancel)
    }

    /// Closes all files.
    fn close(&self) {
        let files = std::mem::take(&mut locked(&self.files).open);
        drop(files);
    }

    /// Why a file could not be read in time.
    fn late(&self, number: u64) -> Error {
        let known = self.known(number);
        let guest = known.as_ref().and_then(|known| known.node.guest());
        match guest.and_then(|guest| self.points.waits_for(guest)) {
            Some(why) => {
                Error::new(ErrorKind::Busy, "it is not clear yet whether points are being removed")
                    .because(why)
            }
            None => Error::new(ErrorKind::Io, "the repository does not answer"),
        }
    }

    /// What the kernel is told of a failure; people are told the rest.
    fn failed(&self, number: u64, error: &Error) -> Errno {
        if error.kind() == ErrorKind::NotFound && !self.is_listed(number) {
            return Errno::ENOENT;
        }
        let name = self.known(number).map(|known| self.path(&known.node)).unwrap_or_default();
        let mut told = locked(&self.told);
        // What fails in ever new ways is told often enough.
        if told.len() < 1000 && told.insert((number, error.chain())) {
            let warning = Warning::failed(Code::Unreadable, error).within(&name);
            self.warnings.event(&Event::Warning(&warning));
        }
        Errno::EIO
    }

    /// Where a file lies in the mount.
    fn path(&self, node: &Node) -> String {
        match node {
            Node::Top => ".".to_owned(),
            Node::Guest(guest) => guest.to_string(),
            Node::Disk(disk) => disk.to_string(),
            Node::Point(disk, point) => format!("{disk}/{}", names::file_of(*point)),
            Node::Volumes(disk, point) => format!("{disk}/{point}"),
            Node::Volume(disk, point, file) => format!("{disk}/{point}/{file}"),
        }
    }

    fn known(&self, number: u64) -> Option<Known> {
        locked(&self.numbers).known(number).cloned()
    }

    /// Whether the point of a file is still among those that are shown.
    fn is_listed(&self, number: u64) -> bool {
        self.known(number).is_some_and(|known| {
            let guests = self.lister.guests();
            match &known.node {
                Node::Top => true,
                Node::Guest(guest) => guests.contains_key(guest),
                Node::Disk(disk) => points(&guests, disk).is_some(),
                Node::Point(disk, point)
                | Node::Volumes(disk, point)
                | Node::Volume(disk, point, _) => shown(&guests, disk, *point).is_some(),
            }
        })
    }

    /// What is called so in a folder that is not one of volumes.
    fn child(&self, folder: &Node, name: &str) -> Option<Node> {
        let guests = self.lister.guests();
        match folder {
            Node::Top => {
                let guest: DomainName = name.parse().ok()?;
                guests.contains_key(&guest).then_some(Node::Guest(guest))
            }
            Node::Guest(guest) => {
                let disk: DiskName = name.parse().ok()?;
                let is_there = guests.get(guest)?.contains_key(&disk);
                is_there.then(|| Node::Disk(DiskId { domain: guest.clone(), disk }))
            }
            Node::Disk(disk) => {
                let child = names::child_of(disk, name)?;
                let (Node::Point(_, point) | Node::Volumes(_, point)) = &child else { return None };
                shown(&guests, disk, *point).map(|_| child)
            }
            _ => None,
        }
    }

    /// The number of something that is listed.
    fn number(&self, node: Node) -> u64 {
        let size = match &node {
            Node::Point(disk, point) => {
                shown(&self.lister.guests(), disk, *point).map_or(0, |it| it.size)
            }
            _ => 0,
        };
        self.number_of(node, size)
    }

    /// The number of something of this size.
    fn number_of(&self, node: Node, size: u64) -> u64 {
        let data_max = match &node {
            Node::Point(disk, point) | Node::Volume(disk, point, _) => {
                shown(&self.lister.guests(), disk, *point).map_or(size, |it| it.data_max.min(size))
            }
            _ => 0,
        };
        locked(&self.numbers).number(node, size, data_max)
    }

    /// Everything in a folder.
    fn entries(&self, folder: &Node) -> Result<Vec<Entry>> {
        let guests = self.lister.guests();
        let entry = |node: Node, name: String| {
            let is_folder = node.is_folder();
            Entry { number: self.number(node), is_folder, name }
        };
        let mut entries = Vec::new();
        match folder {
            Node::Top => {
                let all = guests.keys();
                entries
                    .extend(all.map(|guest| entry(Node::Guest(guest.clone()), guest.to_string())));
            }
            Node::Guest(guest) => {
                for disk in guests.get(guest).into_iter().flat_map(|disks| disks.keys()) {
                    let id = DiskId { domain: guest.clone(), disk: disk.clone() };
                    entries.push(entry(Node::Disk(id), disk.to_string()));
                }
            }
            Node::Disk(disk) => {
                for point in points(&guests, disk).into_iter().flat_map(|points| points.keys()) {
                    entries.push(entry(Node::Volumes(disk.clone(), *point), point.to_string()));
                    let file = names::file_of(*point);
                    entries.push(entry(Node::Point(disk.clone(), *point), file));
                }
            }
            Node::Volumes(disk, point) => {
                let survey = self.survey(disk, *point)?;
                for (file, volume) in names::files_of(&survey) {
                    let node = Node::Volume(disk.clone(), *point, file.clone());
                    let number = self.number_of(node, volume.size);
                    entries.push(Entry { number, is_folder: false, name: file });
                }
            }
            Node::Point(..) | Node::Volume(..) => {}
        }
        Ok(entries)
    }

    /// The volumes of a point.
    fn survey(&self, disk: &DiskId, point: PointId) -> Result<Arc<Survey>> {
        let key = (disk.clone(), point);
        if let Some(survey) = locked(&self.surveys).get(&key) {
            return Ok(Arc::clone(survey));
        }
        let survey = Arc::new(files::survey(&self.points, disk, point, self.wait())?);
        let mut surveys = locked(&self.surveys);
        if surveys.len() >= SURVEYS_MAX {
            surveys.clear();
        }
        surveys.insert(key, Arc::clone(&survey));
        Ok(survey)
    }

    fn open(&self, number: u64) -> Result<Open> {
        let known = self.known(number).map(|known| known.node);
        match &known {
            Some(Node::Point(disk, point)) => {
                Open::disk(&self.points, number, disk, *point, self.wait())
            }
            Some(Node::Volume(disk, point, name)) => {
                let survey = self.survey(disk, *point)?;
                Open::volume(&self.points, number, (disk, *point), &survey, name, self.wait())
            }
            _ => Err(Error::new(ErrorKind::NotFound, "there is no such file")),
        }
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<Open>> {
        let files = locked(&self.files);
        let file = files.open.get(&handle.0).cloned();
        file.ok_or_else(|| Error::new(ErrorKind::Io, "the file is not open"))
    }

    /// What the kernel is told of a file or folder, and for how long that is true.
    fn attributes(&self, number: u64, known: &Known) -> (FileAttr, Duration) {
        let is_folder = known.node.is_folder();
        let time = known.node.time().unwrap_or_else(|| self.newest(&known.node));
        let (kind, perm, nlink) = match is_folder {
            true => (FileType::Directory, 0o500, 2),
            false => (FileType::RegularFile, 0o400, 1),
        };
        let (uid, gid) = self.owner;
        let attributes = FileAttr {
            ino: INodeNo(number),
            size: known.size,
            blocks: known.data.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 64 << 10,
            flags: 0,
        };
        let ttl = match (is_folder, known.is_exact) {
            (false, true) => FOR_EVER,
            (false, false) => Duration::ZERO,
            (true, _) => NAME_TTL,
        };
        (attributes, ttl)
    }

    /// The time of the newest point below a folder.
    fn newest(&self, folder: &Node) -> SystemTime {
        let guests = self.lister.guests();
        let last = |points: &super::listing::Points| points.keys().next_back().copied();
        let newest = match folder {
            Node::Guest(guest) => {
                guests.get(guest).and_then(|it| it.values().filter_map(last).max())
            }
            Node::Disk(disk) => points(&guests, disk).and_then(last),
            _ => guests.values().flat_map(|it| it.values()).filter_map(last).max(),
        };
        newest.map_or(UNIX_EPOCH, names::time_of)
    }

    fn entry(&self, node: Node, reply: ReplyEntry) {
        let number = self.number(node);
        self.reply_entry(number, reply);
    }

    fn reply_entry(&self, number: u64, reply: ReplyEntry) {
        match self.known(number) {
            Some(known) => {
                let (attributes, ttl) = self.attributes(number, &known);
                reply.entry_with_ttls(&ttl, &NAME_TTL, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }
}

fn points<'a>(guests: &'a Guests, disk: &DiskId) -> Option<&'a super::listing::Points> {
    guests.get(&disk.domain)?.get(&disk.disk)
}

fn shown(guests: &Guests, disk: &DiskId, point: PointId) -> Option<Shown> {
    points(guests, disk)?.get(&point).copied()
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What the kernel does not take it answers with what it takes.
        let _ = config.set_max_readahead(AHEAD);
        let _ = config.set_max_write(AHEAD);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (Some(folder), Some(name)) = (self.0.state.known(parent.0), name.to_str()) else {
            return reply.error(Errno::ENOENT);
        };
        let Node::Volumes(disk, point) = folder.node else {
            return match self.0.state.child(&folder.node, name) {
                Some(node) => self.0.state.entry(node, reply),
                None => reply.error(Errno::ENOENT),
            };
        };
        let name = name.to_owned();
        let find = move |state: &State| {
            let survey = state.survey(&disk, point)?;
            let volume = names::files_of(&survey).find(|(file, _)| *file == name);
            Ok(volume.map(|(file, volume)| {
                state.number_of(Node::Volume(disk, point, file), volume.size)
            }))
        };
        self.0.ask(parent.0, reply, find, |reply, state, found| match found {
            Ok(Some(number)) => state.reply_entry(number, reply),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(error),
        });
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let Some(known) = self.0.state.known(number.0) else { return reply.error(Errno::ENOENT) };
        let open = || {
            let files = locked(&self.0.state.files);
            files.open.values().find(|open| open.number == number.0).cloned()
        };
        let wanted = !known.is_exact && !known.node.is_folder();
        let Some(open) = wanted.then(open).flatten() else {
            let (attributes, ttl) = self.0.state.attributes(number.0, &known);
            return reply.attr(&ttl, &attributes);
        };
        let count = move |state: &State| {
            let data = open.data()?;
            locked(&state.numbers).learn(open.number, data);
            Ok(())
        };
        self.0.ask(number.0, reply, count, move |reply, state, _| {
            let known = state.known(number.0).unwrap_or(known);
            let (attributes, ttl) = state.attributes(number.0, &known);
            reply.attr(&ttl, &attributes);
        });
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let open = move |state: &State| {
            let open = Arc::new(state.open(number.0)?);
            Ok(locked(&state.files).add(open))
        };
        self.0.ask(number.0, reply, open, |reply, _, opened| match opened {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = move |state: &State| state.file(handle)?.read(offset, size as usize);
        self.0.ask(number.0, reply, read, |reply, _, bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn lseek(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // Of all others the kernel knows the answer itself.
        let sought = match whence {
            3 => Sought::Data,
            4 => Sought::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let seek = move |state: &State| state.file(handle)?.seek(offset, sought);
        self.0.ask(number.0, reply, seek, |reply, _, found| match found {
            Ok(found) => match found.and_then(|place| i64::try_from(place).ok()) {
                Some(place) => reply.offset(place),
                None => reply.error(Errno::ENXIO),
            },
            Err(error) => reply.error(error),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let closed = locked(&self.0.state.files).open.remove(&handle.0);
        drop(closed);
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(known) = self.0.state.known(number.0) else { return reply.error(Errno::ENOENT) };
        let list = move |state: &State| {
            let entries = state.entries(&known.node)?;
            Ok(locked(&state.folders).add(entries.into()))
        };
        self.0.ask(number.0, reply, list, |reply, _, opened| match opened {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = locked(&self.0.state.folders).open.get(&handle.0).cloned();
        let Some(entries) = entries else { return reply.error(Errno::EIO) };
        let dots = [(number.0, true, "."), (number.0, true, "..")];
        let rest = entries.iter().map(|entry| (entry.number, entry.is_folder, entry.name.as_str()));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (number, is_folder, name)) in
            dots.into_iter().chain(rest).enumerate().skip(from)
        {
            let kind = if is_folder { FileType::Directory } else { FileType::RegularFile };
            // The place behind this entry is where the next call goes on.
            if reply.add(INodeNo(number), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        locked(&self.0.state.folders).open.remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let guests = self.0.state.lister.guests();
        let all = guests.values().flat_map(|disks| disks.values()).flat_map(|it| it.values());
        let (files, data) =
            all.fold((0, 0_u64), |(files, data), it| (files + 1, data.saturating_add(it.data_max)));
        reply.statfs(data.div_ceil(4096), 0, 0, files, 0, 4096, 255, 4096);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
