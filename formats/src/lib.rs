//! The bytes on disk that qdelta reads and writes, and nothing else.
//!
//! Three formats are read and written: [`qcow2`], as QEMU defines it, the delta [`archive`], as
//! `docs/archive-format.md` explains it, and the files of [`age`] that an encrypted repository is of. What guests have on their disks is only read: what divides them
//! into [`volumes`], and [`filesystems`]. Functions take bytes and give values or a
//! [`FormatError`] that names the field and its offset. There is no I/O, no clock and no policy:
//! whoever calls fetches the bytes and decides what to do with what they say.
//!
//! Every length and count that is read from a file is bounded before anything is allocated for it.

pub mod age;
pub mod allocation;
pub mod archive;
pub mod elf;
mod error;
mod fields;
pub mod filesystems;
pub mod nbd;
pub mod qcow2;
pub mod saved_memory;
pub mod scratch;
pub mod tar;
pub mod volumes;

pub use error::{FormatError, Problem};
