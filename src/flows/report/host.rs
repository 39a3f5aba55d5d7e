//! The configuration of a host that came back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::warning::Warning;

/// The configuration of a host, in a folder, and what on this host is otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The name of the host.
    pub host: String,
    /// The disk that holds it, and the point.
    pub source: String,
    /// The folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub output: PathBuf,
    /// How many files, folders and links.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// How many could not be written: each has a warning, up to a hundred of them.
    pub left_out: u64,
    /// How many are the same on this host.
    pub same: u64,
    /// What is not, by path.
    pub changes: Vec<HostChange>,
    /// How long it took.
    pub seconds: f64,
    /// What was left out, and others.
    pub warnings: Vec<Warning>,
}

/// A file that is not on this host as it is in the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// Its path on the host.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// In what it differs.
    pub difference: HostDifference,
    /// The lines that differ, of a text that everybody may read: `-` of this host, `+` of the point.
    pub lines: Vec<String>,
}

/// In what a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostDifference {
    /// Its content, or where a link leads; or it can't be read here.
    Content,
    /// Its owner or its mode alone.
    Rights,
    /// It is another kind of file here.
    Kind,
    /// It is in the point alone.
    Missing,
    /// It is on this host alone.
    New,
}
