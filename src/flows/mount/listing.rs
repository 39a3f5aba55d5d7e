//! What the mount shows: guests, disks and points, as the repository had them a moment ago.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::error::{ErrorKind, Result};
use crate::vault::repository::{
    Catalog, DiskAt, DiskId, DiskName, DomainName, Point, PointId, Repository,
};

/// How old a listing may be.
const AGE_MAX: Duration = Duration::from_secs(2);
/// Reading a listing takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// How long somebody waits for a new listing before an old one is good enough.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The disks of each guest.
pub(super) type Guests = BTreeMap<DomainName, BTreeMap<DiskName, Points>>;

/// The points of a disk.
pub(super) type Points = BTreeMap<PointId, Shown>;

/// What is shown of a point before anybody opens it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// The size of its disk in bytes.
    pub size: u64,
    /// At most so many of its bytes are not zero.
    pub data_max: u64,
}

/// A listing that is read anew by a thread of its own: a repository that hangs holds up nobody.
pub(super) struct Lister(Arc<Shared>);

struct Shared {
    repository: Repository,
    /// What is shown; everything if nothing is named.
    wanted: Vec<DiskAt>,
    state: Mutex<State>,
    /// Something in the state is new.
    news: Condvar,
}

struct State {
    guests: Arc<Guests>,
    /// When the listing was read, and how long that took.
    read: Instant,
    took: Duration,
    /// Since when somebody waits for a new one.
    asked: Option<Instant>,
    is_over: bool,
}

impl Lister {
    /// Reads the first listing.
    ///
    /// # Errors
    /// The repository can't be listed, or nothing is called so.
    pub fn new(repository: Repository, wanted: Vec<DiskAt>) -> Result<Self> {
        let started = Instant::now();
        let guests = Arc::new(list(&repository, &wanted, true)?);
        let (took, asked) = (started.elapsed(), None);
        let state = Mutex::new(State { guests, read: started, took, asked, is_over: false });
        let shared = Arc::new(Shared { repository, wanted, state, news: Condvar::new() });
        let its = Arc::clone(&shared);
        // Without the thread no new points appear; the rest works.
        let _ = thread::Builder::new().name("lister".into()).spawn(move || its.run());
        Ok(Self(shared))
    }

    /// The guests as they are now; as they were if the repository can't be read, or not soon enough.
    pub fn guests(&self) -> Arc<Guests> {
        let mut state = locked(&self.0.state);
        let (read, age) = (state.read, state.read.elapsed());
        if age < AGE_MAX.max(state.took * SHARE) {
            return Arc::clone(&state.guests);
        }
        let since = *state.asked.get_or_insert_with(Instant::now);
        self.0.news.notify_all();
        while let Some(left) = WAIT_MAX.checked_sub(since.elapsed()).filter(|it| !it.is_zero())
            && state.read == read
        {
            let waited = self.0.news.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Arc::clone(&state.guests)
    }
}

impl Drop for Lister {
    fn drop(&mut self) {
        locked(&self.0.state).is_over = true;
        self.0.news.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = locked(&self.state);
        while !state.is_over {
            if state.asked.is_none() {
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let started = Instant::now();
            let listed = list(&self.repository, &self.wanted, false);
            state = locked(&self.state);
            match listed {
                Ok(guests) => state.guests = Arc::new(guests),
                // What was there may come back: a point that can't be read gives an error when it is.
                Err(error) => tracing::debug!("the points can't be listed: {}", error.chain()),
            }
            (state.read, state.took, state.asked) = (Instant::now(), started.elapsed(), None);
            self.news.notify_all();
        }
    }
}

/// Reads what is wanted of a repository. The `first` time all that is wanted must be there.
fn list(repository: &Repository, wanted: &[DiskAt], first: bool) -> Result<Guests> {
    let mut guests = Guests::new();
    if wanted.is_empty() {
        for domain in repository.domains()? {
            // One catalog for each: the manifests of all guests together take much memory.
            let catalog = repository.catalog();
            let disks = catalog.find_disks(&domain.as_str().parse()?);
            for disk in disks.unwrap_or_default() {
                add(&catalog, &disk, None, &mut guests)?;
            }
        }
    }
    for at in wanted {
        let catalog = repository.catalog();
        let disks = match catalog.find_disks(&at.disk) {
            Err(error) if !first && error.kind() == ErrorKind::NotFound => continue,
            found => found?,
        };
        let single = disks.len() == 1;
        for disk in disks {
            match &at.point {
                None => add(&catalog, &disk, None, &mut guests)?,
                Some(selector) => match catalog.resolve(&disk, selector) {
                    Ok(point) => add(&catalog, &disk, Some(&point), &mut guests)?,
                    // A disk of a guest may be younger than the point, or not be in it.
                    Err(error) if !(single && first) && error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }
    Ok(guests)
}

/// Adds a disk with all points that are not removed, or with this one.
fn add(catalog: &Catalog, disk: &DiskId, only: Option<&Point>, guests: &mut Guests) -> Result<()> {
    let list = catalog.points(disk)?;
    let mut points = Points::new();
    for point in &list.points {
        let record = &point.record;
        let parent = record.parent_point().and_then(|parent| points.get(&parent));
        let below = match (record.parent_point(), parent) {
            (None, _) => 0,
            (Some(_), Some(parent)) => parent.data_max,
            (Some(_), None) => record.virtual_size,
        };
        let data_max = below.saturating_add(record.bytes_changed).min(record.virtual_size);
        points.insert(point.id, Shown { size: record.virtual_size, data_max });
    }
    match only {
        Some(only) => points.retain(|id, _| *id == only.id),
        None => {
            for point in list.points.iter().filter(|point| point.removed.is_some()) {
                points.remove(&point.id);
            }
        }
    }
    let disks = guests.entry(disk.domain.clone()).or_default();
    disks.entry(disk.disk.clone()).or_default().extend(points);
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
