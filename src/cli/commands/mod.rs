//! The commands, each from its arguments to its result.

mod image_info;
pub mod info;
pub mod init;
pub mod points;
pub mod shell;
