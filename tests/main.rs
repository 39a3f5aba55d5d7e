//! One integration-test binary; each module opens with a line on its purpose.
//!
//! The program runs as its users run it: from the command line, on real files. `scripts/test`
//! installs what else is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod anchor;
mod archives;
mod bad_days;
mod bad_images;
mod block_devices;
mod calendar;
mod cli;
mod continuity;
mod copies;
mod data_path;
mod definitions;
mod disaster;
mod drills;
mod encrypted;
mod encrypted_places;
mod examples;
mod exports;
mod files;
mod flows;
mod forged;
mod guests;
mod harness;
mod histories;
mod host_config;
mod in_place;
mod in_place_guests;
mod in_place_room;
mod instant;
mod kills;
mod machines;
mod map;
mod matrix;
mod merge_faults;
mod merges;
mod mounts;
mod nights;
mod opened;
mod output;
mod packages;
mod pages;
mod pipes;
mod pools;
mod power_cut;
mod prune_faults;
mod prune_lives;
mod prunes;
mod quiesce;
mod readme;
mod repository;
mod retain;
mod room;
mod s3;
mod scrub;
mod second_reader;
mod serve;
mod snapshot_commands;
mod test_images;
mod tidy;
mod trackers;
mod unfrozen;
