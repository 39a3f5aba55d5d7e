//! Pruning.

mod plan;
