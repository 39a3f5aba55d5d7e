//! The commands, each from its arguments to its result.

pub mod anchors;
pub mod backup;
pub mod bench;
mod bench_plot;
pub mod complete;
pub mod drill;
pub mod files;
pub mod guests;
mod image_info;
mod in_place;
pub mod info;
pub mod init;
pub mod key;
mod machine;
pub mod map;
pub mod merge;
pub mod mount;
pub mod pin;
pub mod points;
pub mod prune;
pub mod restore;
pub mod serve;
pub mod shell;
pub mod space;
pub mod verify;
pub mod watchdog;
