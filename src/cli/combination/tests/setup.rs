//! The options of what is done before the first backup, and of keys.

use super::{Entry, Table};

pub(super) const TABLES: &[Table] = &[
    Table {
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
            Entry(&["--lock", "30d"], &[], "the store locks every file"),
            Entry(&["--encrypt"], &["encrypted"], "everything is encrypted"),
            Entry(&["--recovery", "f"], &["encrypted"], "the key is written outside"),
            Entry(&["--recipient", "age1"], &["encrypted"], "who can open the key"),
            Entry(&["--passphrase-file", "f"], &["encrypted"], "who can open the key"),
        ],
        apart: &[("--repo", "d"), ("--repair", "--time-zone"), ("--repair", "--encrypt")],
    },
    Table { command: "key list", ways: &[("all", &[])], entries: &[], apart: &[] },
    Table {
        command: "key add",
        ways: &[
            ("a recipient", &["n", "--recipient", "age1"]),
            ("a passphrase", &["n", "--passphrase-file", "f"]),
        ],
        entries: &[
            Entry(&["--recipient", "age1"], &["a recipient"], "who can open the repository"),
            Entry(&["--passphrase-file", "f"], &["a passphrase"], "what opens the repository"),
        ],
        apart: &[("--recipient", "--passphrase-file")],
    },
    Table { command: "key remove", ways: &[("one", &["n"])], entries: &[], apart: &[] },
    Table { command: "key verify", ways: &[("all", &[])], entries: &[], apart: &[] },
    Table { command: "key host", ways: &[("a file", &["f"])], entries: &[], apart: &[] },
    Table { command: "key paper", ways: &[("the key", &[])], entries: &[], apart: &[] },
];
