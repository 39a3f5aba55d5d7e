//! One integration-test binary; each module opens with a line on its purpose.
//!
//! The program runs as its users run it: from the command line, on real files. `scripts/test`
//! installs what else is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli;
mod flows;
mod output;
mod repository;
mod tidy;
