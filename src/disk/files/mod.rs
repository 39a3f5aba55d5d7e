//! What every part that writes files needs of the system, each once: giving a file its final name, where
//! a file may be made, whether there is room, making a range read as zeros.

mod allocation;
mod device_id;
pub mod fingerprint;
pub mod image_lock;
pub(crate) mod layers;
pub mod paths;
mod place;
mod rename;
pub(crate) mod room;
mod zeroes;

pub(crate) use allocation::Allocation;
pub(crate) use device_id::device_id;
pub(crate) use place::{check_new_file, is_held, make_private_folder, open_device};
pub(crate) use rename::{Durability, rename_new, replace_file};
pub(crate) use zeroes::{Zeroes, punch};
