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

/// Man pages that were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManReport {
    /// Their files.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub pages: Vec<PathBuf>,
}
