//! Recovery points, kept safe: archives, chains of them, and the repository.

pub mod age;
pub mod archive;
pub mod chain;
pub mod codec;
pub mod frames;
pub mod point;
pub mod repository;
