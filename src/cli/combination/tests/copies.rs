//! The options of what is done with two repositories, or proves one.

use super::{Entry, Table};

/// The ways to verify that read archives.
const READING: &[&str] = &["everything", "some"];

pub(super) const TABLES: &[Table] = &[
    Table {
        command: "verify",
        ways: &[("everything", &[]), ("some", &["g"]), ("two", &["--against", "r2"])],
        entries: &[
            Entry(&["g"], &[], "what is verified"),
            Entry(&["--quick"], READING, "checksums alone"),
            Entry(&["--max-age", "30d"], READING, "what was proved since is left out"),
            Entry(&["--budget", "200G"], READING, "how much is read"),
            Entry(&["--against", "r2"], &[], "the repository to compare with"),
            Entry(&["--other-key-file", "f"], &["two"], "the key of the other one"),
            Entry(&["--other-key-command", "c"], &["two"], "the key of the other one"),
        ],
        apart: &[
            ("--quick", "--max-age"),
            ("--quick", "--budget"),
            ("--against", "--quick"),
            ("--against", "--max-age"),
            ("--against", "--budget"),
            ("--other-key-file", "--other-key-command"),
        ],
    },
    Table {
        command: "copy",
        ways: &[("everything", &["--to", "r2"]), ("some", &["g", "--to", "r2"])],
        entries: &[
            Entry(&["--to", "r2"], &[], "the other repository"),
            Entry(&["g"], &[], "whose points"),
            Entry(&["--points", "monthly"], &[], "which points"),
            Entry(&["--dry-run"], &[], "nothing is done"),
            Entry(&["--limit-rate", "20M"], &[], "how fast"),
            Entry(&["--same-guest"], &[], "what is there is taken for the same"),
            Entry(&["--at-once", "2"], &[], "how many guests at a time"),
            Entry(&["--level", "3"], &[], "how hard zstd tries where a frame is packed anew"),
            Entry(&["--other-key-file", "f"], &[], "the key of the other one"),
            Entry(&["--other-key-command", "c"], &[], "the key of the other one"),
        ],
        apart: &[("--other-key-file", "--other-key-command")],
    },
    Table {
        command: "repair",
        ways: &[("everything", &["--from", "r2"]), ("some", &["g", "--from", "r2"])],
        entries: &[
            Entry(&["--from", "r2"], &[], "the other repository"),
            Entry(&["g"], &[], "whose points"),
            Entry(&["--dry-run"], &[], "nothing is done"),
            Entry(&["--level", "3"], &[], "how hard zstd tries where a frame is packed anew"),
            Entry(&["--other-key-file", "f"], &[], "the key of the other one"),
            Entry(&["--other-key-command", "c"], &[], "the key of the other one"),
        ],
        apart: &[("--other-key-file", "--other-key-command")],
    },
];
