//! The delta archive: header, frames, index, footer. `docs/archive-format.md` says why.

mod geometry;

pub use geometry::{BlockIndex, GROUP_BLOCKS, Geometry, GroupIndex};
