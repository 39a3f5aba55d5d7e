//! The flows: they alone know the order of the stages.

pub mod anchors;
pub mod backup;
pub mod bench;
pub mod capture;
pub mod copies;
pub mod drill;
pub mod files;
pub mod host;
pub mod jobs;
pub mod merge;
pub mod mount;
pub mod notify;
pub mod page;
pub mod prune;
pub mod report;
pub mod restore;
pub mod retain;
pub mod serve;
pub mod space;
pub mod tracking;
pub mod verify;
