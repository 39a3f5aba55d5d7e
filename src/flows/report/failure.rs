//! A failure that does not end a flow.

use serde::{Deserialize, Serialize};

use crate::base::error::{Error, ErrorKind};

/// Why something was not done, as part of a result that is about more than that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is. Scripts match it.
    pub kind: ErrorKind,
    /// What failed and why, for people.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let advice = error.advice().map(str::to_owned);
        Self { kind: error.kind(), text: error.chain(), advice }
    }
}
