//! How bytes get in and out: files behind a small trait, a fixed pool of buffers, and a queue of
//! reads or writes that runs on io_uring or, without it, on threads with `pread`/`pwrite`.

mod store;

pub use store::{FileStore, Store};
