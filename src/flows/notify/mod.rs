//! Telling people and their programs: mail, pings, ntfy, Gotify, webhooks, commands, the system's
//! journal, and Prometheus.
//!
//! What is told, and when, the jobs decide. Nothing here waits longer than it was allowed to, and no
//! error repeats a secret.

mod config;
pub(crate) mod journald;
mod mail;
mod message;
pub(crate) mod metrics;
mod send;
mod template;

pub(crate) use config::host_of;
pub use config::{Addresses, Notifier, Source};
pub(crate) use mail::padded as base64;
pub(crate) use message::escaped;
use send::SENDMAIL;
pub(crate) use send::{Ping, ping, run_id, send};
pub(crate) use template::check as check_template;
