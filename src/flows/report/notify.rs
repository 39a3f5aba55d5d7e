//! What somebody is told of what is done by itself.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, Level, OpenFinding};
use crate::base::json::text;

/// What somebody may be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A run began.
    Start,
    /// A run went well.
    Success,
    /// A run did not come to a good end.
    Failure,
    /// Something is wrong that was not, or still is.
    Finding,
    /// What was wrong is not any more.
    Recovery,
    /// All of it, at its time, whether something is wrong or not.
    Digest,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Finding => "finding",
            Self::Recovery => "recovery",
            Self::Digest => "digest",
        })
    }
}

/// What somebody is told at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// What it is about; nothing if it is a test.
    pub events: Vec<Event>,
    /// The gravest of what it tells.
    pub level: Level,
    /// This host.
    pub host: String,
    /// When it was written.
    #[serde(with = "text")]
    pub at: Timestamp,
    /// The gist, in a line.
    pub title: String,
    /// The rest.
    pub parts: Vec<MessagePart>,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessagePart {
    /// What it is about.
    pub heading: String,
    /// Findings.
    pub findings: Vec<OpenFinding>,
    /// Other lines.
    pub lines: Vec<String>,
}

/// Who was told, and who would be told of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotifyReport {
    /// The notifiers, by name.
    pub notifiers: Vec<NotifierReport>,
    /// What is open now; nothing where nobody looked.
    pub findings: Vec<OpenFinding>,
}

/// What became of telling somebody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotifierReport {
    /// Its name in the file of jobs.
    pub notifier: String,
    /// Whom it tells, without what may be secret.
    pub to: String,
    /// What it is told of.
    pub on: Vec<Event>,
    /// The title of what it was told; none if there was nothing to tell.
    pub told: Option<String>,
    /// Why it could not be told.
    pub error: Option<Failure>,
}
