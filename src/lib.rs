//! qdelta: a native qcow2 engine for block-level incremental backup.
//!
//! Data flows one way, through stages that hand plain values to each other:
//!
//! ```text
//! backup    image → changes → reader → compress → archive writer → repository
//! restore   repository → chain (newest wins) → archive reader → image writer
//! verify    restore into a writer that discards
//! ```
//!
//! A stage never imports another stage; only a flow ([`flows`]) knows
//! their order. The library never prints, never exits and has no globals. `ARCHITECTURE.md` has
//! the map.

pub mod base;
pub mod disk;
pub mod flows;
pub mod guest;
pub mod vault;

pub use base::error::{Error, ErrorKind, Result};
pub use qdelta_formats as formats;
