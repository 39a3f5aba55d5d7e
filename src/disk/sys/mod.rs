//! What the kernel is asked for directly. The `unsafe` code of the project is in `uring` and in
//! `kernel`, and nowhere else.

mod file_id;
pub(crate) mod kernel;
pub(crate) mod patience;

pub(crate) use file_id::Stamp;
pub use file_id::{FileId, Seen, look_in};
pub(crate) use kernel::inherited_descriptors;

/// Whether the program was started with its standard output closed. What is written to it then goes to
/// `/dev/null`, without an error.
pub fn stdout_was_closed() -> bool {
    kernel::stdout_was_closed()
}
