//! The options of what is done by itself.

use super::{Entry, Table};

const CONFIG: Entry = Entry(&["--config", "f"], &[], "the file of jobs");

pub(super) const TABLES: &[Table] = &[
    Table {
        command: "run",
        ways: &[("what is due", &[]), ("a job", &["j"])],
        entries: &[Entry(&["j"], &[], "what is done"), CONFIG],
        apart: &[],
    },
    Table {
        command: "status",
        ways: &[("everything", &[])],
        entries: &[
            Entry(&["--nagios"], &[], "a line of Nagios"),
            Entry(&["--watch"], &[], "it is looked again"),
            CONFIG,
        ],
        apart: &[("--nagios", "--json"), ("--nagios", "--watch")],
    },
    Table {
        command: "notify",
        ways: &[("everybody", &[]), ("one", &["n"])],
        entries: &[
            Entry(&["n"], &[], "who is told"),
            Entry(&["--test"], &[], "a test is told"),
            Entry(&["--digest"], &[], "everything is told"),
            CONFIG,
        ],
        apart: &[("--test", "--digest")],
    },
    Table {
        command: "report",
        ways: &[("page", &["p"])],
        entries: &[
            Entry(&["p"], &[], "where it is written"),
            Entry(&["--days", "5"], &[], "how much is looked at"),
            Entry(&["--force"], &[], "what is there is replaced"),
            CONFIG,
        ],
        apart: &[],
    },
    Table {
        command: "history",
        ways: &[("all", &[])],
        entries: &[
            Entry(&["--job", "j"], &[], "which are shown"),
            Entry(&["--guest", "g"], &[], "which are shown"),
            Entry(&["--act", "backup"], &[], "which are shown"),
            Entry(&["--failed"], &[], "which are shown"),
            Entry(&["--since", "7d"], &[], "which are shown"),
            Entry(&["--last", "5"], &[], "how many are shown"),
            Entry(&["--config", "f"], &[], "whose zone the times are of"),
        ],
        apart: &[],
    },
    Table {
        command: "export-kit",
        ways: &[("a kit", &["d"])],
        entries: &[Entry(&["d"], &[], "where to"), CONFIG],
        apart: &[],
    },
    Table { command: "config check", ways: &[("the file", &[])], entries: &[CONFIG], apart: &[] },
    Table { command: "config example", ways: &[("one", &[])], entries: &[], apart: &[] },
];
