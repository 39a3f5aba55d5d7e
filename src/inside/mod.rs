//! What a guest has on a disk: volumes, and the files in them. All of it was written by the guest, so
//! nothing of it is believed.

pub mod filesystem;
pub mod volumes;
