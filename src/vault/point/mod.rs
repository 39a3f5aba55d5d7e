//! A recovery point, opened: its chain, and what a new point is made against.

mod base;
mod before;
mod open;
mod opened;
mod reader;

pub(crate) use base::Base;
pub use base::KindChoice;
pub(crate) use before::{Before, Digests, sum_up};
pub use open::open;
pub(crate) use open::{archive_file, check_indexes, open_chain};
pub use opened::{OpenPoint, OpenPoints};
pub use reader::{Content, PointReader, Proved, Run};
