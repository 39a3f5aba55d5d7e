//! A disk: its files or the server that has it, its image, and how bytes are moved. Knows no repository.
//!
//! The rooms, each knowing only those above it:
//! [`sys`] → [`io`] → [`nbd`] → [`files`] → [`flow`] → [`image`] → [`edit`] → [`create`] → [`reflink`].

pub mod create;
pub mod edit;
pub mod files;
pub mod flow;
pub mod image;
pub mod io;
pub mod nbd;
pub mod reflink;
pub mod sys;
