//! Blocks to frames and back, one worker at a time.

pub mod pack;
pub mod unpack;
