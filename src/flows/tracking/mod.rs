//! How changed blocks are found.

pub mod changes;
