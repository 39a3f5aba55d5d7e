//! How changed blocks are found.

pub mod changes;
mod choose;

pub(crate) use choose::{Tracked, choose, fingerprints};
