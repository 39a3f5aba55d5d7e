//! The flows: they alone know the order of the stages.

pub mod backup;
pub mod bench;
pub mod restore;
pub mod tracking;
pub mod verify;
