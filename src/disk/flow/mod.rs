//! How work flows through threads: the pipeline, reading ahead of it, writing behind it.

pub mod pipeline;
pub mod read_ahead;
pub mod write_behind;
