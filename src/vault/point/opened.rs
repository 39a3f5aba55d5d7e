//! Points that are opened when somebody asks for them, by the names that people give them, and stay open
//! as long as memory allows.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::open::{Shared, open_archives};
use super::reader::{Caches, PointReader, Proved, Run};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::{Event, Observer, Silent};
use crate::base::shelf::Shelf;
use crate::base::warning::Code;
use crate::disk::io::ReadAt;
use crate::formats::archive::GROUP_BLOCKS;
use crate::vault::repository::storage::Wait;
use crate::vault::repository::{
    Catalog, DiskAt, DiskId, DomainName, Hold, Point, PointId, Repository, Selector,
};

/// What open readers may weigh in all: about so many bytes. The newest one stays open, however heavy.
const READERS: u64 = 40 << 20;

/// What a reader weighs besides its archives: what decodes their frames, for each thread that reads.
const READER_LEN: u64 = 1 << 20;

/// What an open archive weighs, and what it weighs for each piece of its bitmaps.
const ARCHIVE_LEN: u64 = 8 << 10;

/// How many points are opened at a time: each opening reads all manifests of a guest.
const OPENINGS: usize = 2;

/// How long a reader that failed stays what it is before the repository is looked at anew. A damaged
/// block that is asked for again and again does not cost an opening each time.
const RENEWAL: Duration = Duration::from_secs(2);

/// The points of a repository, open on demand: any number of them at a time, by any number of threads,
/// in bounded memory.
///
/// Readers of all points share their caches. A reader that was not used for the longest time is closed
/// to make room, and opened again when it is asked for; whoever holds an [`OpenPoint`] notices nothing.
/// As long as one lives, nobody removes the archives of its guest.
pub struct OpenPoints {
    repository: Repository,
    /// What ends the wait for a promise that a reader needs in the middle of its work.
    cancel: Cancel,
    caches: Arc<Caches>,
    readers: Shelf<Key, Opened>,
    /// The archives that they have open.
    archives: Shared,
    openings: Turns,
    holds: Mutex<HashMap<DomainName, Arc<Promise>>>,
    /// No promise is made any more.
    closed: Cancel,
    /// Archives whose damage is noted already.
    noted: Mutex<HashSet<PathBuf>>,
}

/// The promise that the archives of a guest stay. Who waits for one guest's is in nobody's way who reads another.
#[derive(Default)]
struct Promise {
    /// The one that is in force. Whoever asks for one has this, and others of the guest wait for the result.
    hold: Mutex<Weak<Hold>>,
    /// Why it is waited for.
    why: Mutex<Option<String>>,
}

/// Notes why a promise is waited for, and tells whoever is told.
struct Waiting<'a> {
    promise: &'a Promise,
    observer: &'a dyn Observer,
}

impl Observer for Waiting<'_> {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Warning(warning) if warning.code == Code::LeftLock => {
                *locked(&self.promise.why) = Some(warning.text.clone());
            }
            Event::End => *locked(&self.promise.why) = None,
            _ => {}
        }
        self.observer.event(event);
    }
}

/// Which point of which disk.
type Key = (DiskId, PointId);

/// Lets a bounded number of threads do something at a time.
struct Turns {
    free: Mutex<usize>,
    over: Condvar,
}

/// The turn of a thread.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn wait(&self) -> Turn<'_> {
        let mut free = locked(&self.free);
        while *free == 0 {
            free = self.over.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *locked(&self.0.free) += 1;
        self.0.over.notify_one();
    }
}

/// A reader that is open.
#[derive(Debug)]
struct Opened {
    reader: PointReader,
    since: Instant,
}

/// A point that somebody has open.
///
/// What can't be read for now is an error, and is read once the repository is there again. Where another
/// archive has taken the place of one that is read, or the point is gone, the next read finds out.
pub struct OpenPoint {
    points: Arc<OpenPoints>,
    point: Point,
    name: PathBuf,
    /// What a reader of the point weighs.
    weight: u64,
    hold: Mutex<Arc<Hold>>,
    /// Whoever opens the reader anew has this.
    renewing: Mutex<()>,
    /// A read has failed since the promise was made: what lies there now may be another folder.
    in_doubt: AtomicBool,
}

impl fmt::Debug for OpenPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPoints").field("repository", &self.repository).finish_non_exhaustive()
    }
}

impl fmt::Debug for OpenPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPoint").field("name", &self.name).finish_non_exhaustive()
    }
}

impl OpenPoints {
    /// The points of a repository. None is open yet. After a request to stop, no lock is waited for.
    pub fn new(repository: Repository, cancel: &Cancel) -> Arc<Self> {
        Self::with_room(repository, READERS, cancel)
    }

    /// The same for open readers that weigh so much in all, about as many bytes; one is always open.
    pub fn with_room(repository: Repository, room: u64, cancel: &Cancel) -> Arc<Self> {
        let (caches, readers) = (Arc::default(), Shelf::new(1, room));
        let openings = Turns { free: Mutex::new(OPENINGS), over: Condvar::new() };
        let (archives, holds, noted) = (Shared::default(), Mutex::default(), Mutex::default());
        let (cancel, closed) = (cancel.clone(), Cancel::default());
        Arc::new(Self {
            repository,
            cancel,
            caches,
            readers,
            archives,
            openings,
            holds,
            closed,
            noted,
        })
    }

    /// From now on no lock is taken any more, and none is waited for: who would need one gets an error.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Why points of a guest can't be opened just now; nothing if no lock is waited for.
    pub fn waits_for(&self, domain: &DomainName) -> Option<String> {
        let promise = locked(&self.holds).get(domain).map(Arc::clone)?;
        let why = locked(&promise.why);
        why.clone()
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Opens a point that is named as on the command line: `GUEST/DISK@POINT`, or `GUEST@POINT` of a guest
    /// that has one disk. Without a point, the latest is meant.
    ///
    /// # Errors
    /// As [`Self::open`]; no disk is called so, or several are.
    pub fn open_named(self: &Arc<Self>, name: &DiskAt, wait: Wait<'_>) -> Result<OpenPoint> {
        let disk = self.repository.catalog().find_one(&name.disk)?;
        self.open(&disk, name.point.as_ref().unwrap_or(&Selector::Latest), wait)
    }

    /// Opens the point of a disk that a selector means now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such point. [`ErrorKind::Damaged`]: an archive of its chain is
    /// damaged or missing. [`ErrorKind::Busy`]: points of the guest are just being removed. Others: the
    /// repository can't be read.
    pub fn open(
        self: &Arc<Self>,
        disk: &DiskId,
        selector: &Selector,
        wait: Wait<'_>,
    ) -> Result<OpenPoint> {
        // Before the catalog is read: what it names then stays. And before its turn, which others may need meanwhile.
        let hold = self.hold(&disk.domain, false, wait)?;
        let _turn = self.openings.wait();
        let go_on = || wait.check().and_then(|()| self.closed.check());
        go_on()?;
        let catalog = self.repository.catalog();
        let point = catalog.resolve(disk, selector)?;
        let chain = catalog.chain_of(&point)?;
        go_on()?;
        let (size, block) = (point.record.virtual_size, u64::from(point.record.block_size).max(1));
        let pieces = (size / block).div_ceil(1 << 16);
        let weight = READER_LEN
            + chain.len() as u64 * (ARCHIVE_LEN + 48 * pieces)
            + 32 * (size / block / u64::from(GROUP_BLOCKS));
        let name = PathBuf::from(format!("{}@{}", point.disk, point.id));
        let points = Arc::clone(self);
        let (hold, in_doubt) = (Mutex::new(hold), AtomicBool::new(false));
        let renewing = Mutex::default();
        let open = OpenPoint { points, point, name, weight, hold, renewing, in_doubt };
        let opened = open.points.readers.get(open.key(), open.weight, || open.read_by(&catalog));
        opened.inspect_err(|error| open.points.note(error))?;
        Ok(open)
    }

    /// Notes the damage that a read has met, so that every later command about the disk tells. A client
    /// may read the same blocks again and again: each archive is noted once.
    fn note(&self, error: &Error) {
        let file = error.file().filter(|_| error.kind() == ErrorKind::Damaged);
        if file.is_some_and(|(path, _)| locked(&self.noted).insert(path.to_owned())) {
            self.repository.catalog().note_damage(error);
        }
    }

    /// The promise that the archives of a guest stay, which everybody shares who has a point of it open; another one if
    /// the old one is in doubt.
    fn hold(&self, domain: &DomainName, anew: bool, wait: Wait<'_>) -> Result<Arc<Hold>> {
        let promise = {
            let mut holds = locked(&self.holds);
            // Those that nobody has, and nobody asks for.
            holds.retain(|_, promise| Arc::strong_count(promise) > 1 || promise.is_in_force());
            Arc::clone(holds.entry(domain.clone()).or_default())
        };
        let mut held = locked(&promise.hold);
        if let Some(hold) = held.upgrade().filter(|_| !anew) {
            return Ok(hold);
        }
        let waiting = Waiting { promise: &promise, observer: wait.observer() };
        let hold = self.repository.hold(domain, wait.within(&self.closed, &waiting))?;
        let hold = Arc::new(hold);
        *held = Arc::downgrade(&hold);
        Ok(hold)
    }
}

impl Promise {
    /// Whether somebody has it.
    fn is_in_force(&self) -> bool {
        locked(&self.hold).strong_count() > 0
    }
}

impl OpenPoint {
    /// The point, as its manifest tells it.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// `GUEST/DISK@ID`.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.point.record.virtual_size
    }

    /// Size of the disk's blocks in bytes.
    pub fn block_size(&self) -> u32 {
        self.point.record.block_size
    }

    /// As [`PointReader::read`].
    ///
    /// # Errors
    /// As [`PointReader::read`]; [`ErrorKind::NotFound`] if the point is gone.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        self.ask(|reader| reader.read(out, offset))
    }

    /// As [`PointReader::lend`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn lend(&self, range: Range<u64>, limit: usize) -> Result<Option<Vec<Proved>>> {
        self.ask(|reader| reader.lend(range.clone(), limit))
    }

    /// As [`PointReader::extents`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn extents(&self, range: Range<u64>, limit: usize) -> Result<Vec<Run>> {
        self.ask(|reader| reader.extents(range.clone(), limit))
    }

    /// How many bytes of these ranges lie in blocks that are not zero.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn data_in(&self, ranges: &[Range<u64>]) -> Result<u64> {
        self.ask(|reader| reader.data_in(ranges))
    }

    /// As [`PointReader::is_same`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn is_same(&self, other: &Self, range: Range<u64>) -> Result<bool> {
        let another = other.opened()?;
        self.ask(|reader| reader.is_same(&another.reader, range.clone()))
    }

    /// Puts a question to the reader, and once more to a new one if the first was opened a while ago and
    /// fails: the repository may have come back, or another archive lies there now.
    fn ask<T>(&self, ask: impl FnMut(&PointReader) -> Result<T>) -> Result<T> {
        self.ask_again(ask).inspect_err(|error| self.points.note(error))
    }

    fn ask_again<T>(&self, mut ask: impl FnMut(&PointReader) -> Result<T>) -> Result<T> {
        let opened = self.opened()?;
        let answer = ask(&opened.reader);
        if answer.is_ok() || opened.since.elapsed() < RENEWAL {
            return answer;
        }
        self.in_doubt.store(true, Ordering::Relaxed);
        self.points.readers.forget(&self.key(), &opened);
        drop(opened);
        ask(&self.opened()?.reader)
    }

    fn key(&self) -> Key {
        (self.point.disk.clone(), self.point.id)
    }

    /// The reader, opened anew if it is not open any more.
    fn opened(&self) -> Result<Arc<Opened>> {
        let (points, key) = (&self.points, self.key());
        if let Some(opened) = points.readers.find(&key) {
            return Ok(opened);
        }
        // Whoever waits for a lock takes no turn of those who read other guests.
        let _renewing = locked(&self.renewing);
        if let Some(opened) = points.readers.find(&key) {
            return Ok(opened);
        }
        let wait = Wait::by(&Silent, &points.cancel);
        let in_doubt = self.in_doubt.load(Ordering::Relaxed);
        // Before the catalog is read. The old promise stands until the new one is of use.
        let opened = points.hold(&self.point.disk.domain, in_doubt, wait).and_then(|hold| {
            let _turn = points.openings.wait();
            if in_doubt {
                points.archives.clear();
            }
            let opened = points
                .readers
                .get(key, self.weight, || self.read_by(&points.repository.catalog()))?;
            *locked(&self.hold) = hold;
            self.in_doubt.store(false, Ordering::Relaxed);
            Ok(opened)
        });
        if opened.is_err() {
            self.in_doubt.store(true, Ordering::Relaxed);
        }
        opened
    }

    /// Opens the reader of the point as a catalog has it.
    fn read_by(&self, catalog: &Catalog) -> Result<Opened> {
        let point = catalog.resolve(&self.point.disk, &Selector::Id(self.point.id.to_string()))?;
        if point.record.root != self.point.record.root {
            let text = format!("{} is not the point that was opened", self.name.display());
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        let names = catalog.chain_of(&point)?;
        let storage = &**self.points.repository.storage();
        let chain = open_archives(storage, &names, &point, &self.points.archives)?;
        let reader = PointReader::sharing(chain, &self.points.caches)?;
        Ok(Opened { reader, since: Instant::now() })
    }
}

impl ReadAt for OpenPoint {
    fn path(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset).map_err(io::Error::other)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Many files of a mount that were opened at once read the manifests of a guest as many times beside each other.
    #[test]
    fn few_threads_have_their_turn_at_a_time() {
        let turns = Turns { free: Mutex::new(OPENINGS), over: Condvar::new() };
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _turn = turns.wait();
                        let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(running, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!((1..=OPENINGS).contains(&most.into_inner()));
        assert_eq!(*locked(&turns.free), OPENINGS);
    }
}
