//! What is made before the first backup.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::vault::repository::Repair;

/// A repository that was made, or repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReport {
    /// Its folder.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub repository: PathBuf,
    /// Its id.
    pub id: String,
    /// The time zone whose days and months the rules of retention count.
    pub time_zone: String,
    /// To whom everything in it is encrypted; none if it is not.
    pub recipient: Option<String>,
    /// What a repair did; none if none was asked for.
    pub repaired: Option<Repair>,
}

/// Who can open an encrypted repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReport {
    /// To whom everything in it is encrypted.
    pub recipient: Option<String>,
    /// The files that hold its identity.
    pub keys: Vec<KeyRecord>,
    /// Those of them that the given key opens; none if they were not tried.
    pub opened: Option<Vec<String>>,
}

/// A file that holds the identity of a repository, encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What it is called.
    pub name: String,
    /// What opens it, in the words of age.
    pub kinds: Vec<String>,
}

/// Man pages that were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManReport {
    /// Their files.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub pages: Vec<PathBuf>,
}
