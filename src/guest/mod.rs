//! A guest of this host: what libvirt's files say of it, and how it is frozen and thawed.

pub mod libvirt;
pub mod program;
pub mod quiesce;
pub(crate) mod snapshots;
