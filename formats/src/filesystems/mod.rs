//! The structures of filesystems that guests have on their disks, to be read and never written. All of
//! it is written by guests, so nothing of it is believed.

pub mod fat;
pub mod superblock;
