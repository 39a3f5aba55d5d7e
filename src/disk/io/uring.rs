//! A safe io_uring: buffers in flight belong to the ring until the kernel has let go of them.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::disk::io::{Buffer, Direction, Pool, ReadAt};

/// How often the kernel may say that it has no room for an operation, one millisecond apart.
const REFUSALS_MAX: u32 = 5000;

/// A buffer that a [`Ring`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(usize);

/// A range of a held buffer.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) slot: Slot,
    pub(crate) range: Range<usize>,
}

/// A ring, the files that it reads and writes, and the buffers that it holds. Each operation
/// carries a value of the caller's, and gives it back when it is over.
///
/// The files are not registered: the kernel lets go of registered ones some time after the ring was
/// closed (17 to 65 ms were seen), and until then nobody can unmount the filesystem that they are on.
/// What is not registered is let go of with its last operation, also if the program is killed.
pub(crate) struct Ring<T> {
    ring: IoUring,
    /// Keeps the descriptors open.
    files: Vec<Arc<dyn ReadAt>>,
    /// None of a file that is open only while an operation needs it.
    descriptors: Vec<Option<RawFd>>,
    registered_buffers: Option<Pool>,
    held: Slots<Held>,
    flights: Slots<Flight<T>>,
}

struct Held {
    buffer: Buffer,
    /// How many operations in flight use it.
    users: u32,
}

struct Flight<T> {
    payload: T,
    slots: Vec<Slot>,
    vectors: Vectors,
    /// Keeps the descriptor open where the ring's files don't.
    held: Option<Arc<File>>,
}

/// Addresses for the kernel.
struct Vectors(
    #[expect(dead_code, reason = "the kernel may look at them until the operation is over")]
    Vec<libc::iovec>,
);

// SAFETY: the pointers are never followed by this program; the memory that they point at belongs
// to buffers that the ring holds, and those may change threads.
unsafe impl Send for Vectors {}

impl<T> Ring<T> {
    /// A ring for at most `depth` operations at once on `files`.
    pub(crate) fn new(depth: usize, files: Vec<Arc<dyn ReadAt>>) -> io::Result<Self> {
        let descriptors = files
            .iter()
            .map(|file| match file.pooled() {
                Some(_) => Some(None),
                None => file.fd().map(|fd| Some(fd.as_raw_fd())),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| io::Error::other("a file has no descriptor"))?;
        let entries = u32::try_from(depth).map_err(io::Error::other)?.next_power_of_two();
        Ok(Self {
            ring: IoUring::new(entries)?,
            files,
            descriptors,
            registered_buffers: None,
            held: Slots::default(),
            flights: Slots::default(),
        })
    }

    /// Lets the kernel map and pin the memory of `pool` once, and not at each operation.
    pub(crate) fn register_buffers(&mut self, pool: &Pool) -> io::Result<()> {
        let vectors: Vec<libc::iovec> = pool
            .regions()
            .iter()
            .map(|region| libc::iovec { iov_base: region.address as *mut _, iov_len: region.len })
            .collect();
        // SAFETY: the regions are mapped as long as any clone of the pool or any of its buffers
        // is, and the ring keeps a clone. The kernel pins the pages itself, so that even unmapping
        // them would not hand them to anyone else.
        unsafe { self.ring.submitter().register_buffers(&vectors)? };
        self.registered_buffers = Some(pool.clone());
        Ok(())
    }

    /// Takes a buffer. The ring has it until [`Self::release`].
    pub(crate) fn hold(&mut self, buffer: Buffer) -> Slot {
        Slot(self.held.insert(Held { buffer, users: 0 }))
    }

    /// Gives a buffer back, unless operations in flight use it.
    pub(crate) fn release(&mut self, slot: Slot) -> Option<Buffer> {
        if self.held.get_mut(slot.0)?.users > 0 {
            return None;
        }
        self.held.remove(slot.0).map(|held| held.buffer)
    }

    /// How many operations were started and not yet returned by [`Self::completed`].
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Queues one transfer between `pieces`, in this order, and the bytes of file number `file`
    /// from `offset` on. It begins with the next [`Self::enter`]. A file that is open only while it is
    /// needed comes along, open.
    ///
    /// # Errors
    /// A piece outside its buffer, an unknown file, or more operations than the ring has room for;
    /// the payload is lost then. None of them happens to a caller that keeps to the limits.
    pub(crate) fn start(
        &mut self,
        direction: Direction,
        file: usize,
        offset: u64,
        pieces: &[Piece],
        held: Option<Arc<File>>,
        payload: T,
    ) -> io::Result<()> {
        let own = *self.descriptors.get(file).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = held.as_ref().map(|file| file.as_raw_fd()).or(own);
        let descriptor = descriptor.ok_or(io::ErrorKind::InvalidInput)?;
        let mut vectors = Vec::with_capacity(pieces.len());
        let mut fixed = None;
        for piece in pieces {
            let held = self.held.get_mut(piece.slot.0).ok_or(io::ErrorKind::InvalidInput)?;
            let len = held.buffer.len();
            if piece.range.start > piece.range.end || piece.range.end > len {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let base = held.buffer.as_mut_ptr().wrapping_add(piece.range.start);
            vectors.push(libc::iovec { iov_base: base.cast(), iov_len: piece.range.len() });
            fixed = self
                .registered_buffers
                .as_ref()
                .filter(|pool| pieces.len() == 1 && held.buffer.is_from(pool))
                .map(|_| held.buffer.index());
        }
        let entry = prepare(types::Fd(descriptor), direction, offset, &vectors, fixed);
        let slots: Vec<Slot> = pieces.iter().map(|piece| piece.slot).collect();
        let flight = Flight { payload, slots, vectors: Vectors(vectors), held };
        let key = self.flights.insert(flight);
        let entry = entry.user_data(key as u64);
        // SAFETY: what the entry points at stays valid until its completion is seen. The buffers
        // are in `held` and not given back while `users` counts this flight; their memory does not
        // move. The vectors are in `flights`, on the heap. The descriptor is open as long as
        // `files` lives, or the file that the flight holds. Dropping the ring waits for the completion, or leaks all of it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.flights.remove(key);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.count_users(key, 1);
        Ok(())
    }

    /// Hands the kernel what is queued, and waits for at least one completion if `wait` is set and
    /// none is there.
    pub(crate) fn enter(&mut self, wait: bool) -> io::Result<()> {
        let mut refusals = 0;
        loop {
            let ready = !self.ring.completion().is_empty();
            let queued = !self.ring.submission().is_empty();
            if !queued && (ready || !wait) {
                return Ok(());
            }
            match self.ring.submit_and_wait(usize::from(wait && !ready)) {
                Ok(_) => {
                    // One call may take only a part of what is queued.
                    if self.ring.submission().is_empty() {
                        return Ok(());
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // No memory, or completions have to be fetched first.
                    Some(libc::EAGAIN | libc::EBUSY) if ready => return Ok(()),
                    Some(libc::EAGAIN | libc::EBUSY) if refusals < REFUSALS_MAX => {
                        refusals += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// The next operation that is over: its payload, and the number of bytes or the negative error
    /// number that the kernel gave.
    pub(crate) fn completed(&mut self) -> Option<(T, i32)> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        let key = usize::try_from(entry.user_data()).ok()?;
        self.count_users(key, -1);
        let flight = self.flights.remove(key)?;
        drop(flight.vectors);
        drop(flight.held);
        Some((flight.payload, entry.result()))
    }

    /// The file number `file`.
    pub(crate) fn file(&self, file: usize) -> Option<&Arc<dyn ReadAt>> {
        self.files.get(file)
    }

    fn count_users(&mut self, key: usize, change: i32) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        for slot in &flight.slots {
            if let Some(held) = self.held.get_mut(slot.0) {
                held.users = held.users.saturating_add_signed(change);
            }
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.completed().is_none() && self.enter(true).is_err() {
                // The kernel may still write to these buffers. Losing them is the lesser evil.
                mem::forget(mem::take(&mut self.held));
                mem::forget(mem::take(&mut self.flights));
                return;
            }
        }
        if self.registered_buffers.is_some() {
            // Pinned memory counts against the user's limit until it is let go of. If it can't be
            // now, the kernel does so after the ring is closed.
            let _ = self.ring.submitter().unregister_buffers();
        }
    }
}

/// The entry for a transfer.
fn prepare(
    target: types::Fd,
    direction: Direction,
    offset: u64,
    vectors: &[libc::iovec],
    fixed: Option<u16>,
) -> squeue::Entry {
    use opcode::{ReadFixed, Readv, WriteFixed, Writev};
    let (first, count) = (vectors.as_ptr(), vectors.len() as u32);
    match (direction, fixed, vectors) {
        (Direction::Read, Some(index), [one]) => {
            ReadFixed::new(target, one.iov_base.cast(), one.iov_len as u32, index)
                .offset(offset)
                .build()
        }
        (Direction::Write, Some(index), [one]) => {
            WriteFixed::new(target, one.iov_base.cast(), one.iov_len as u32, index)
                .offset(offset)
                .build()
        }
        (Direction::Read, ..) => Readv::new(target, first, count).offset(offset).build(),
        (Direction::Write, ..) => Writev::new(target, first, count).offset(offset).build(),
    }
}

/// Values under small numbers that are used again.
struct Slots<V> {
    values: Vec<Option<V>>,
    free: Vec<usize>,
}

impl<V> Default for Slots<V> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<V> Slots<V> {
    fn insert(&mut self, value: V) -> usize {
        if let Some(key) = self.free.pop()
            && let Some(place) = self.values.get_mut(key)
        {
            *place = Some(value);
            return key;
        }
        self.values.push(Some(value));
        self.values.len() - 1
    }

    fn get_mut(&mut self, key: usize) -> Option<&mut V> {
        self.values.get_mut(key)?.as_mut()
    }

    fn remove(&mut self, key: usize) -> Option<V> {
        let value = self.values.get_mut(key)?.take();
        if value.is_some() {
            self.free.push(key);
        }
        value
    }

    fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }
}
