//! How bytes get in and out: files behind a small trait, a fixed pool of buffers, and a queue of
//! reads or writes that runs on io_uring or, without it, on threads with `pread`/`pwrite`.

mod direct;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
#[cfg(any(test, feature = "testing"))]
pub mod in_memory;
mod open;
mod open_files;
mod pool;
mod queue;
#[cfg(any(test, feature = "testing"))]
pub mod recording;
mod ring;
mod store;
mod threads;
mod uring;
mod writeback;

pub use direct::{Direct, open_direct};
pub use open::{Opener, Whole, is_refusal, not_opened, open_folder, pin, pin_folder, sync_folder};
pub use open_files::{OpenFiles, PooledFile};
pub use pool::{BUFFER_ALIGNMENT, Buffer, Pool};
pub use queue::{Backend, Direction, Done, Queue, Segment, Transfer};
pub use store::{FileStore, Files, Part, ReadAt, Store};
pub use writeback::EarlyWriteback;

/// How often an operation that the system has no room for (`EAGAIN`) is tried again.
const RETRIES_MAX: u32 = 1000;
/// How long to wait before that, in microseconds.
const RETRY_PAUSE: u64 = 1000;
