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
//! A stage never imports another stage; only a flow ([`backup`], [`restore`], [`verify`]) knows
//! their order. The library never prints, never exits and has no globals. `ARCHITECTURE.md` has
//! the map.

pub mod anchor;
pub mod archive;
pub mod backup;
pub mod bench;
pub mod cancel;
pub mod chain;
pub mod changes;
pub mod clock;
pub mod codec;
pub mod domain;
pub mod duration;
pub mod error;
pub mod extent;
mod files;
pub mod fingerprint;
pub mod image;
pub mod io;
mod json;
pub mod observer;
pub mod output;
pub mod pack;
mod paths;
pub mod pipeline;
mod program;

pub mod quiesce;
pub mod read_ahead;
pub mod reader;
pub mod reflink;
pub mod repository;
pub mod restore;
pub mod sys;
pub mod unpack;
pub mod verify;
pub mod warning;
mod write_behind;

pub use error::{Error, ErrorKind, Result};
pub use qdelta_formats as formats;
