//! A recovery point, opened: its chain, and what a new point is made against.

mod base;
mod open;
mod reader;
mod shelf;

pub(crate) use base::Base;
pub use base::KindChoice;
pub use open::open;
pub(crate) use open::{archive_file, check_indexes, open_archives, open_chain};
pub use reader::{Content, PointReader, Run};
