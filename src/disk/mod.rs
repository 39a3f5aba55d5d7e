//! A disk on this machine: its files, its image, and how bytes are moved. Knows no repository.
//!
//! The rooms, each knowing only those above it:
//! [`sys`] → [`io`] → [`files`] → [`flow`] → [`image`] → [`edit`] → [`create`] → [`reflink`].

pub mod create;
pub mod edit;
pub mod files;
pub mod flow;
pub mod image;
pub mod io;
pub mod reflink;
pub mod sys;
