//! A fixed set of page-aligned buffers. All the memory that data passes through is allocated here,
//! once: when every buffer is away, whoever wants one waits. That is what bounds the pipeline.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::kernel::Memory;

/// Buffers start at a multiple of this, and their size is one: what `O_DIRECT` asks of memory.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// More buffers than a ring can register.
const COUNT_MAX: usize = 1 << 14;
/// Longer than a ring can register in one piece.
const SIZE_MAX: usize = 1 << 30;

/// A fixed set of equally long buffers, shared by all threads that hold a clone.
#[derive(Clone)]
pub struct Pool {
    home: Arc<Home>,
    free: Receiver<Place>,
    regions: Arc<[Region]>,
    size: usize,
}

/// Where buffers return to. Its address is the pool's identity.
struct Home {
    free: Sender<Place>,
}

/// One buffer's memory and its number.
struct Place {
    memory: Memory,
    index: u16,
}

/// Where one buffer lies in memory. An address and not a reference: only a ring looks at it, to
/// tell the kernel about the memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// The address of its first byte.
    pub(crate) address: usize,
    /// Its length in bytes.
    pub(crate) len: usize,
}

impl Pool {
    /// Allocates `count` buffers of `size` bytes, rounded up to [`BUFFER_ALIGNMENT`].
    ///
    /// # Errors
    /// `Usage` if there would be none, or more or longer ones than a ring can register; `Io` if
    /// the memory is not to be had.
    pub fn new(count: usize, size: usize) -> Result<Self> {
        if !(1..=COUNT_MAX).contains(&count) || !(1..=SIZE_MAX).contains(&size) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("a pool of {count} buffers of {size} bytes is out of bounds"),
            ));
        }
        let size = size.next_multiple_of(BUFFER_ALIGNMENT);
        let (sender, free) = bounded(count);
        let mut regions = Vec::with_capacity(count);
        for index in 0..count as u16 {
            let mut memory = Memory::zeroed(size).map_err(|error| {
                Error::new(
                    ErrorKind::Io,
                    format!("cannot allocate {count} buffers of {size} bytes"),
                )
                .because(error)
            })?;
            regions.push(Region { address: memory.as_mut_ptr() as usize, len: size });
            // The channel holds `count` values and its receiver is alive: this can't fail.
            let _ = sender.send(Place { memory, index });
        }
        Ok(Self { home: Arc::new(Home { free: sender }), free, regions: regions.into(), size })
    }

    /// A free buffer; waits until there is one. What it holds is whatever was left in it.
    pub fn take(&self) -> Buffer {
        match self.free.recv() {
            Ok(place) => self.lend(place),
            // `home` keeps a sender alive as long as the pool: a channel without one can't be.
            Err(_) => unreachable!("the pool holds a sender of its own channel"),
        }
    }

    /// A free buffer, if there is one now.
    pub fn try_take(&self) -> Option<Buffer> {
        self.free.try_recv().ok().map(|place| self.lend(place))
    }

    /// How many buffers it has, free or not.
    pub fn count(&self) -> usize {
        self.regions.len()
    }

    /// How long each buffer is, in bytes.
    pub fn buffer_size(&self) -> usize {
        self.size
    }

    /// How many buffers are free now.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Where the buffers lie, by their index.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn lend(&self, place: Place) -> Buffer {
        Buffer { place: Some(place), home: Arc::clone(&self.home) }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("count", &self.count())
            .field("size", &self.size)
            .field("free", &self.free_count())
            .finish()
    }
}

/// A buffer of a [`Pool`]. It goes wherever it is sent and returns to the pool when dropped.
pub struct Buffer {
    /// There until the buffer is dropped.
    place: Option<Place>,
    home: Arc<Home>,
}

impl Buffer {
    /// Whether it is one of `pool`'s.
    pub(crate) fn is_from(&self, pool: &Pool) -> bool {
        Arc::ptr_eq(&self.home, &pool.home)
    }

    /// Its number within its pool.
    pub(crate) fn index(&self) -> u16 {
        self.place.as_ref().map_or(u16::MAX, |place| place.index)
    }

    /// Where it starts in memory, without making a reference to what is there. The address stays
    /// the same, wherever the buffer is moved.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.place.as_mut().map_or(std::ptr::null_mut(), |place| place.memory.as_mut_ptr())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.place.as_ref().map_or(&[], |place| &place.memory)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.place.as_mut().map_or(&mut [], |place| &mut place.memory)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // Fails only when the pool is gone, and then the memory goes, too.
            let _ = self.home.free.send(place);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("index", &self.index()).field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_rounded_up_and_limited_in_number() {
        let pool = Pool::new(3, 5000).unwrap();
        assert_eq!((pool.count(), pool.buffer_size(), pool.free_count()), (3, 8192, 3));
        let mut taken: Vec<_> = (0..3).map(|_| pool.take()).collect();
        assert!(pool.try_take().is_none());
        for buffer in &mut taken {
            assert_eq!(buffer.as_mut_ptr() as usize % BUFFER_ALIGNMENT, 0);
            assert_eq!(buffer.len(), 8192);
        }
        let mut indexes: Vec<_> = taken.iter().map(Buffer::index).collect();
        indexes.sort_unstable();
        assert_eq!(indexes, [0, 1, 2]);
        drop(taken.pop());
        assert_eq!(pool.free_count(), 1);
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn take_waits_for_a_buffer_that_another_thread_returns() {
        let pool = Pool::new(1, 4096).unwrap();
        let mut buffer = pool.take();
        buffer[0] = 7;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                drop(buffer);
            });
            assert_eq!(pool.take()[0], 7);
        });
    }

    #[test]
    fn a_buffer_may_outlive_its_pool() {
        let pool = Pool::new(2, 4096).unwrap();
        let mut buffer = pool.take();
        drop(pool);
        buffer.fill(9);
        assert!(buffer.iter().all(|byte| *byte == 9));
    }

    #[test]
    fn a_pool_that_no_ring_could_register_is_refused() {
        for (count, size) in [(0, 4096), (1, 0), (COUNT_MAX + 1, 4096), (1, SIZE_MAX + 1)] {
            assert_eq!(Pool::new(count, size).unwrap_err().kind(), ErrorKind::Usage);
        }
    }
}
