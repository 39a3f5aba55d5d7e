//! What the kernel is asked for directly. The `unsafe` code of the project is in `uring` and in
//! `kernel`, and nowhere else.

pub mod image_lock;
pub(crate) mod kernel;
pub(crate) mod patience;
pub(crate) mod uring;
