//! The options of what is done before the first backup, and of keys.

use super::{Entry, Table};

pub(super) const TABLES: &[Table] = &[Table {
    command: "init",
    ways: &[
        ("a folder", &["d"]),
        ("the folder of --repo", &["--repo", "r"]),
        ("encrypted", &["d", "--encrypt", "--recovery", "f", "--recipient", "age1"]),
    ],
    entries: &[
        Entry(&["d"], &["a folder", "encrypted"], "the folder"),
        Entry(&["--repair"], &[], "a lost qdelta.toml is made anew"),
        Entry(&["--time-zone", "UTC"], &[], "the days of the rules are its days"),
        Entry(&["--encrypt"], &["encrypted"], "everything is encrypted"),
        Entry(&["--recovery", "f"], &["encrypted"], "the key is written outside"),
        Entry(&["--recipient", "age1"], &["encrypted"], "who can open the key"),
        Entry(&["--passphrase-file", "f"], &["encrypted"], "who can open the key"),
    ],
    apart: &[("--repo", "d"), ("--repair", "--time-zone"), ("--repair", "--encrypt")],
}];
