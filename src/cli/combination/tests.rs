//! Every option of every command, alone and with every other.
//!
//! `restore DISK OUTPUT --at TIME` restored the latest point and called it proved: `--at` was read,
//! `requires = "domain"` stood beside it, and clap drops such a rule where the target conflicts with
//! something else that was typed. The same was true of a dozen other options. So each option stands
//! in a table here, with the ways of using its command in which it has an effect, and what effect;
//! whatever has none must be refused. An option that is in no table fails the test.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::super::args::Cli;
use super::*;

mod copies;
mod jobs;
mod pages;
mod restores;
mod setup;

/// A way of using a command: its name, and the words that choose it.
type Way = (&'static str, &'static [&'static str]);

/// An option: its words, the ways in which it has an effect (all, if none is named), and which.
struct Entry(&'static [&'static str], &'static [&'static str], &'static str);

/// A command: its ways, its options, and the pairs that do not go together though each has an effect
/// by itself. Such a pair is given by words that both options begin with.
struct Table {
    command: &'static str,
    ways: &'static [Way],
    entries: &'static [Entry],
    apart: &'static [(&'static str, &'static str)],
}

/// The tables of all commands.
fn tables() -> impl Iterator<Item = &'static Table> {
    TABLES
        .iter()
        .chain(setup::TABLES)
        .chain(jobs::TABLES)
        .chain(copies::TABLES)
        .chain(restores::TABLES)
}

/// The ways to back up image files, and not the export of a server.
const FILES: &[&str] = &["image", "guest", "all"];
/// The ways to back up guests.
const GUESTS: &[&str] = &["guest", "all"];

/// The options of every command.
const GLOBAL: &[Entry] = &[
    Entry(
        &["--repo", "r"],
        &[],
        "the repository; who needs none does not look: an alias may say it",
    ),
    Entry(&["--state", "s"], &[], "the host's own folder; who needs none does not look"),
    Entry(&["--key-file", "k"], &[], "the key; who needs none does not look: an alias may say it"),
    Entry(&["--key-command", "c"], &[], "the key; who needs none does not look"),
    Entry(&["--as-of", "3h"], &[], "the repository as it was; who writes to it is refused then"),
    Entry(&["--json"], &[], "the result is JSON"),
    Entry(&["--verbose"], &[], "the notes on the way are shown"),
    Entry(&["--quiet"], &[], "what went well is not told"),
];

const ENGINE: &[Entry] = &[
    Entry(&["--threads", "2"], &[], "workers of the pipeline"),
    Entry(&["--io", "auto"], &[], "the queue that reads archives or images"),
];

const TABLES: &[Table] = &[
    Table {
        command: "files ls",
        ways: &[("volumes", &["d"]), ("files", &["d", "/etc"])],
        entries: &[
            Entry(&["--volume", "p2"], &["files"], "the volume of the path"),
            Entry(&["--recursive"], &["files"], "also what is below"),
        ],
        apart: &[],
    },
    Table {
        command: "files tar",
        ways: &[("files", &["d", "/etc"])],
        entries: &[
            Entry(&["--volume", "p2"], &[], "the volume of the paths"),
            Entry(&["--to", "f"], &[], "where to"),
            Entry(&["--force"], &[], "what exists is replaced"),
        ],
        apart: &[],
    },
    Table {
        command: "files diff",
        ways: &[("points", &["d@yesterday..latest"]), ("a path", &["d@yesterday..latest", "/etc"])],
        entries: &[Entry(&["--volume", "p2"], &[], "the volume of the path")],
        apart: &[],
    },
    Table {
        command: "files get",
        ways: &[("files", &["d", "/etc"])],
        entries: &[
            Entry(&["--volume", "p2"], &[], "the volume of the paths"),
            Entry(&["--to", "f"], &[], "where to"),
            Entry(&["--force"], &[], "what exists is replaced"),
        ],
        apart: &[],
    },
    Table {
        command: "backup",
        ways: &[
            ("image", &["i.qcow2"]),
            ("export", &["nbd+unix:///x?socket=s"]),
            ("guest", &["--domain", "g"]),
            ("all", &["--all"]),
        ],
        entries: &[
            Entry(&["i.qcow2"], &["image"], "what is backed up"),
            Entry(&["nbd+unix:///x?socket=s"], &["export"], "what is backed up"),
            Entry(&["--domain", "g"], &["guest"], "what is backed up"),
            Entry(&["--all"], &["all"], "what is backed up"),
            Entry(&["--disk", "d"], &["image", "export"], "the name in the repository"),
            Entry(&["--snapshot", "s"], &["image"], "which state of the image is read"),
            Entry(&["--with-snapshots"], FILES, "snapshots become points, too"),
            Entry(&["--as-file"], &["image"], "the container's bytes are the disk"),
            Entry(&["--format", "raw"], &["image", "export"], "the image is not probed"),
            Entry(&["--format", "qcow2"], &["image"], "the image is not probed"),
            Entry(&["--image-root", "d"], FILES, "where names in the images may lead"),
            Entry(&["--kind", "auto"], &[], "what is compared with"),
            Entry(&["--kind", "full"], &[], "what is compared with: nothing"),
            Entry(&["--kind", "incremental"], &[], "what is compared with, or an error"),
            Entry(&["--kind", "differential"], &[], "what is compared with, or an error"),
            Entry(&["--synthetic"], &[], "the chain becomes a full"),
            Entry(&["--level", "3"], &[], "how hard zstd tries"),
            Entry(
                &["--block-size", "64K"],
                &[],
                "of a new chain; an error if the chain has another",
            ),
            Entry(&["--track", "auto"], &[], "any tracker may be used"),
            Entry(&["--track", "scan"], &[], "everything is read"),
            Entry(&["--track", "bitmap"], FILES, "this tracker or an error"),
            Entry(&["--track", "snapshot"], FILES, "this tracker or an error"),
            Entry(&["--track", "overlay"], FILES, "this tracker or an error"),
            Entry(&["--track", "reflink"], FILES, "this tracker or an error"),
            Entry(
                &["--track", "live-bitmap"],
                &["export", "guest", "all"],
                "this tracker or an error",
            ),
            Entry(&["--live-bitmap", "b"], &["export"], "left, or an error"),
            Entry(&["--anchor", "auto"], &[], "the kind of the point before is left again"),
            Entry(&["--anchor", "none"], &[], "nothing is left"),
            Entry(&["--anchor", "bitmap"], FILES, "left, or a warning"),
            Entry(&["--anchor", "snapshot"], FILES, "left, or a warning"),
            Entry(&["--anchor", "reflink"], FILES, "left, or a warning"),
            Entry(&["--sample", "5000"], &[], "so many blocks are read to check a claim"),
            Entry(&["--sample", "0"], &[], "nothing is read to check a claim"),
            Entry(&["--same-guest"], &["guest"], "another UUID or file is taken"),
            Entry(&["--exclude-guest", "g"], &["all"], "this guest is not backed up"),
            Entry(&["--exclude", "vdb"], GUESTS, "these disks are not in the point"),
            Entry(&["--consistency", "quiesced"], GUESTS, "how a guest that runs is stilled"),
            Entry(&["--consistency", "crash"], GUESTS, "how a guest that runs is stilled"),
            Entry(
                &["--consistency", "quiesced-or-crash"],
                GUESTS,
                "how a guest that runs is stilled",
            ),
            Entry(&["--consistency", "freeze-copy"], GUESTS, "how a guest that runs is stilled"),
            Entry(
                &["--freeze-max", "5000"],
                GUESTS,
                "limits the freeze, and without one the clones and --snapshot-command",
            ),
            Entry(&["--snapshot-command", "c"], GUESTS, "makes the moment"),
            Entry(&["--with-host-config"], GUESTS, "the host's files are in the point"),
            Entry(&["--with-memory"], GUESTS, "saved memory is in the point"),
            Entry(&["--connect", "u"], GUESTS, "virsh's; thaws also what an earlier run left"),
            Entry(&["--virsh", "v"], GUESTS, "thaws also what an earlier run left"),
            Entry(&["--libvirt-config", "d"], GUESTS, "where definitions are"),
            Entry(&["--libvirt-run", "d"], GUESTS, "where it is seen who runs"),
            Entry(&["--libvirt-state", "d"], GUESTS, "where saved memory and TPMs are"),
            Entry(&["--direct", "auto"], &[], "how images are read"),
        ],
        apart: &[
            ("--as-file", "--snapshot"),
            ("--as-file", "--with-snapshots"),
            ("--snapshot", "--with-snapshots"),
            ("--format raw", "--with-snapshots"),
            ("--as-file", "--format"),
            ("--as-file", "--image-root"),
            ("--format raw", "--image-root"),
            ("--as-file", "--track bitmap"),
            ("--as-file", "--track snapshot"),
            ("--as-file", "--anchor bitmap"),
            ("--as-file", "--anchor snapshot"),
            ("--format raw", "--track bitmap"),
            ("--format raw", "--track snapshot"),
            ("--format raw", "--anchor bitmap"),
            ("--format raw", "--anchor snapshot"),
            ("--format raw", "--snapshot"),
            ("--kind full", "--synthetic"),
            ("--kind full", "--track bitmap"),
            ("--kind full", "--track snapshot"),
            ("--kind full", "--track overlay"),
            ("--kind full", "--track reflink"),
            ("--kind full", "--track live-bitmap"),
            ("--live-bitmap", "--anchor"),
            ("--kind full", "--sample 5000"),
            ("--track scan", "--sample 5000"),
            ("--snapshot", "--track bitmap"),
            ("--snapshot", "--track snapshot"),
            ("--snapshot", "--track overlay"),
            ("--snapshot", "--track reflink"),
            ("--snapshot", "--sample 5000"),
            ("--consistency freeze-copy", "--snapshot-command"),
        ],
    },
    Table {
        command: "serve",
        ways: &[
            ("everything", &["--socket", "s"]),
            ("disks", &["g@latest", "--socket", "s"]),
            ("guest", &["--domain", "g", "--socket", "s"]),
        ],
        entries: &[
            Entry(&["--socket", "s"], &[], "where clients come in"),
            // Neither is anything without the other.
            Entry(&["--listen", "h:1", "--tls-psk", "k"], &[], "where clients come in"),
            Entry(&["--tls-psk", "k", "--listen", "h:1"], &[], "who may come in"),
            Entry(&["g@latest"], &["disks", "everything"], "what is served"),
            Entry(&["--domain", "g"], &["guest", "everything"], "what is served"),
            Entry(&["--at", "latest"], &["guest"], "which point of the guest"),
            Entry(&["--scratch", "f"], &["disks", "guest"], "where goes what is written"),
            Entry(&["--threads", "2"], &[], "how many requests of a client are worked on at once"),
        ],
        apart: &[("g@latest", "--domain"), ("--listen", "--tls-psk")],
    },
    Table {
        command: "points",
        ways: &[("everything", &[]), ("some", &["g"])],
        entries: &[
            Entry(&["g"], &["some", "everything"], "what is listed"),
            Entry(&["--utc"], &[], "times of the list; JSON has UTC always"),
            Entry(&["--removed"], &[], "which points are listed"),
        ],
        apart: &[],
    },
    Table {
        command: "prune",
        ways: &[("everything", &[]), ("some", &["g"])],
        entries: &[
            Entry(&["g"], &["some", "everything"], "whose points"),
            Entry(&["--dry-run"], &[], "nothing is done"),
            Entry(&["--keep-last", "1"], &[], "a rule"),
            Entry(&["--keep-hourly", "1"], &[], "a rule"),
            Entry(&["--keep-daily", "1"], &[], "a rule"),
            Entry(&["--keep-weekly", "1"], &[], "a rule"),
            Entry(&["--keep-monthly", "1"], &[], "a rule"),
            Entry(&["--keep-yearly", "all"], &[], "a rule"),
            Entry(&["--keep-within", "1d"], &[], "a rule"),
            Entry(&["--keep-safety", "1d"], &[], "a rule, beside others; an error alone"),
            Entry(&["--grace", "0"], &[], "until when the points can come back"),
            Entry(&["--trust-clock"], &[], "points may go although the clock jumped"),
            Entry(&["--until-free", "1G"], &[], "how far to go"),
            Entry(&["--level", "3"], &[], "how what is merged is packed"),
        ],
        apart: &[],
    },
    Table {
        command: "mount",
        ways: &[("folder", &["d"])],
        entries: &[Entry(&["g@latest"], &[], "what is shown")],
        apart: &[],
    },
    Table {
        command: "drill",
        ways: &[
            ("report", &["--report"]),
            ("everything", &[]),
            ("some", &["g@latest"]),
            ("booted", &["--boot-command", "c"]),
        ],
        entries: &[
            Entry(&["g@latest"], &[], "which guests"),
            Entry(&["--report"], &["report"], "nothing is drilled"),
            Entry(&["--pick", "2"], &["everything", "some", "booted"], "those that are due"),
            Entry(&["--to", "check"], &["everything", "some"], "where the ladder ends"),
            Entry(&["--to", "agent"], &["booted"], "where the ladder ends"),
            Entry(&["--boot-command", "c"], &["booted"], "what boots a guest"),
            Entry(&["--time-limit", "5m"], &["everything", "some", "booted"], "of each program"),
            Entry(&["--rto", "5m"], &["booted"], "what the agent's answer is compared with"),
            Entry(
                &["--rpo", "26h"],
                &["everything", "some", "booted"],
                "what the point's age is compared with",
            ),
        ],
        apart: &[],
    },
    Table {
        command: "space",
        ways: &[("everything", &[]), ("some", &["g"])],
        entries: &[Entry(&["g"], &["some", "everything"], "whose points")],
        apart: &[],
    },
    Table {
        command: "undelete",
        ways: &[("point", &["g@latest"])],
        entries: &[Entry(&["g@latest"], &[], "which point")],
        apart: &[],
    },
    Table {
        command: "pin",
        ways: &[("point", &["g@latest"])],
        entries: &[
            Entry(&["g@latest"], &[], "which point"),
            Entry(&["--reason", "r"], &[], "the list shows it"),
            Entry(&["--until", "2999"], &[], "when the pin ends"),
            Entry(&["--holder", "h"], &[], "whose pin it is"),
        ],
        apart: &[],
    },
    Table {
        command: "unpin",
        ways: &[("point", &["g@latest"])],
        entries: &[
            Entry(&["g@latest"], &[], "which point"),
            Entry(&["--holder", "h"], &[], "whose pin it is"),
        ],
        apart: &[],
    },
    Table {
        command: "merge",
        ways: &[("points", &["d@2026..2027"])],
        entries: &[
            Entry(&["--dry-run"], &[], "nothing is done"),
            Entry(&["--level", "3"], &[], "how hard zstd tries where a frame is packed anew"),
        ],
        apart: &[],
    },
    Table {
        command: "anchors",
        ways: &[("everything", &[]), ("some", &["g"])],
        entries: &[
            Entry(&["g"], &["some", "everything"], "whose"),
            Entry(&["--remove", "a"], &["some"], "which goes"),
            Entry(&["--remove-all"], &["some"], "all go"),
        ],
        // `g` gives the second way its disk.
        apart: &[("--remove", "--remove-all")],
    },
    Table {
        command: "info",
        ways: &[("file", &["i"]), ("export", &["nbd://h"])],
        entries: &[
            Entry(&["i"], &["file"], "what is shown"),
            Entry(&["nbd://h"], &["export"], "what is shown"),
            Entry(&["--format", "raw"], &[], "the image is not probed"),
            Entry(&["--format", "qcow2"], &["file"], "the image is not probed"),
            Entry(&["--image-root", "d"], &["file"], "where names in the image may lead"),
        ],
        apart: &[("--format raw", "--image-root")],
    },
    Table {
        command: "map",
        ways: &[("image", &["i"]), ("export", &["nbd://h"])],
        entries: &[
            Entry(&["i"], &["image"], "what is shown"),
            Entry(&["nbd://h"], &["export"], "what is shown"),
            Entry(&["--snapshot", "s"], &["image"], "which state of the image is shown"),
            Entry(&["--format", "raw"], &[], "the image is not probed"),
            Entry(&["--format", "qcow2"], &["image"], "the image is not probed"),
            Entry(&["--image-root", "d"], &["image"], "where names in the image may lead"),
        ],
        apart: &[("--format raw", "--image-root"), ("--format raw", "--snapshot")],
    },
    Table {
        command: "bench",
        ways: &[("image", &["i"]), ("export", &["nbd://h"])],
        entries: &[
            Entry(&["i"], &["image"], "what is measured"),
            Entry(&["nbd://h"], &["export"], "what is measured"),
            Entry(&["--folder", "d"], &[], "where writing is measured"),
            Entry(&["--bytes", "1M"], &[], "how much is measured"),
            Entry(&["--level", "3"], &[], "of the whole data path"),
            Entry(&["--plot", "f"], &[], "the picture"),
            Entry(&["--format", "raw"], &[], "the image is not probed"),
            Entry(&["--format", "qcow2"], &["image"], "the image is not probed"),
            Entry(&["--image-root", "d"], &["image"], "where names in the image may lead"),
            Entry(&["--direct", "auto"], &[], "how the whole data path reads"),
        ],
        apart: &[("--format raw", "--image-root")],
    },
    Table {
        command: "completions",
        ways: &[("shell", &["bash"])],
        entries: &[Entry(&["bash"], &[], "whose")],
        apart: &[],
    },
    Table {
        command: "man",
        ways: &[("folder", &["d"])],
        entries: &[Entry(&["d"], &[], "where to")],
        apart: &[],
    },
];

/// Options of every command that a command refuses.
const GLOBAL_REFUSED: &[(&str, &str)] = &[
    ("completions", "--json"),
    ("key paper", "--json"),
    ("run", "--repo"),
    ("status", "--repo"),
    ("notify", "--repo"),
    ("report", "--repo"),
    ("history", "--repo"),
    ("export-kit", "--repo"),
    ("config check", "--repo"),
    ("config example", "--repo"),
];

impl Entry {
    fn words(&self) -> String {
        self.0.join(" ")
    }

    fn works(&self, way: &str) -> bool {
        self.1.is_empty() || self.1.contains(&way)
    }
}

/// What the parser and the rules make of these words.
fn accepts(command: &str, words: &[&str]) -> Result<(), String> {
    let mut program = Cli::command();
    let all = std::iter::once("qdelta").chain(command.split(' ')).chain(words.iter().copied());
    let matches = program.try_get_matches_from_mut(all).map_err(|error| {
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    })?;
    check(&program, &matches).map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.chain()
    })
}

/// Every command that does something, by its words: of those that have verbs, each verb.
fn leaves() -> Vec<(String, clap::Command)> {
    let program = Cli::command();
    let mut leaves = Vec::new();
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        if !command.has_subcommands() {
            leaves.push((name.to_owned(), command.clone()));
        }
        for verb in command.get_subcommands() {
            leaves.push((format!("{name} {}", verb.get_name()), verb.clone()));
        }
    }
    leaves
}

/// The entries of a command, with those of options that several have.
fn entries(table: &Table) -> Vec<&'static Entry> {
    let known = |words: &Entry| {
        leaves()
            .into_iter()
            .find(|(name, _)| name == table.command)
            .unwrap()
            .1
            .get_arguments()
            .any(|arg| arg.get_long().is_some_and(|it| words.0[0] == format!("--{it}")))
    };
    let own = table.entries.iter();
    let global =
        GLOBAL.iter().filter(|entry| !GLOBAL_REFUSED.contains(&(table.command, entry.0[0])));
    own.chain(global).chain(ENGINE.iter().filter(|entry| known(entry))).collect()
}

/// Whether the base of a way has the argument of this entry already.
fn is_in_base(base: &[&str], entry: &Entry) -> bool {
    match entry.0[0].starts_with("--") {
        true => base.contains(&entry.0[0]),
        // The last word of a way's words is no option's value unless one stands before it.
        false => base.first().is_some_and(|first| !first.starts_with("--")),
    }
}

#[test]
fn every_option_is_in_the_table() {
    let program = Cli::command();
    for (name, command) in &leaves() {
        let name = name.as_str();
        let table = tables().find(|table| table.command == name);
        let table = table.unwrap_or_else(|| panic!("{name} has no table"));
        let typed: BTreeSet<&str> =
            entries(table).iter().map(|entry| entry.0[0].trim_start_matches("--")).collect();
        for arg in command.get_arguments().chain(program.get_arguments()) {
            let Some(long) = arg.get_long() else { continue };
            let refused = GLOBAL_REFUSED.contains(&(name, format!("--{long}").as_str()));
            assert!(
                typed.contains(long) || refused || matches!(long, "help" | "version"),
                "{name} --{long}: say in the table in which ways it has which effect"
            );
        }
        // Each value of its own has its effects.
        for (words, effect) in entries(table).iter().map(|entry| (entry.words(), entry.2)) {
            assert!(!effect.is_empty(), "{name} {words}: which effect?");
        }
    }
    for (command, option) in GLOBAL_REFUSED {
        let way = tables().find(|table| table.command == *command).unwrap().ways[0].1;
        assert!(accepts(command, &[way, &[*option]].concat()).is_err(), "{command} {option}");
    }
}

/// The way that words choose: the one that most of them belong to.
fn way_of(table: &Table, words: &[&str]) -> &'static str {
    let has_all = |base: &[&str]| base.iter().all(|word| words.contains(word));
    let mut chosen: &Way = &("none", &[]);
    for way in table.ways.iter().filter(|way| has_all(way.1)) {
        if chosen.0 == "none" || way.1.len() > chosen.1.len() {
            chosen = way;
        }
    }
    chosen.0
}

/// Whether two options are said not to go together.
fn apart(table: &Table, one: &str, other: &str) -> bool {
    let begins = |text: &str, with: &str| text == with || text.starts_with(&format!("{with} "));
    let both = |a: &str, b: &str| begins(one, a) && begins(other, b);
    let everywhere = [("--quiet", "--verbose"), ("--key-file", "--key-command")];
    let mut pairs = table.apart.iter().chain(&everywhere);
    pairs.any(|(a, b)| both(a, b) || both(b, a))
}

/// Demands that options beside the words of a way are accepted if each has an effect, and refused
/// otherwise.
#[track_caller]
fn assert_effect(table: &Table, base: &[&str], options: &[&Entry]) {
    let mut words = base.to_vec();
    words.extend(options.iter().flat_map(|entry| entry.0));
    let way = way_of(table, &words);
    // With those that choose the way.
    let is_typed = |entry: &&Entry| words.windows(entry.0.len()).any(|window| window == entry.0);
    let typed: Vec<_> = entries(table).into_iter().filter(is_typed).collect();
    let fits = |one: &&Entry| {
        let together = |other: &&Entry| !apart(table, &one.words(), &other.words());
        one.works(way) && typed.iter().all(together)
    };
    let wanted = typed.iter().all(fits);
    let accepted = accepts(table.command, &words);
    let line = words.join(" ");
    assert_eq!(accepted.is_ok(), wanted, "qdelta {} {line} ({way}): {accepted:?}", table.command);
}

#[test]
fn every_option_has_its_effect_or_is_refused() {
    for table in tables() {
        for (way, base) in table.ways {
            accepts(table.command, base).unwrap_or_else(|error| panic!("{way}: {error}"));
            for entry in entries(table).iter().filter(|entry| !is_in_base(base, entry)) {
                assert_effect(table, base, &[entry]);
            }
        }
    }
}

#[test]
fn every_pair_of_options_has_its_effects_or_is_refused() {
    for table in tables() {
        let entries = entries(table);
        for (_, base) in table.ways {
            let others: Vec<_> = entries.iter().filter(|it| !is_in_base(base, it)).collect();
            for (index, one) in others.iter().enumerate() {
                for other in others.iter().skip(index + 1).filter(|it| it.0[0] != one.0[0]) {
                    assert_effect(table, base, &[one, other]);
                }
            }
        }
    }
}

/// What an environment variable says was not typed: it is there for every command.
#[test]
fn variables_are_in_nobodys_way() {
    let program = Cli::command();
    let of_variables = ["config", "repo", "virsh"];
    for command in program.get_subcommands().chain([&program]) {
        for arg in command.get_arguments().filter(|arg| arg.get_env().is_some()) {
            assert!(of_variables.contains(&arg.get_id().as_str()), "{}", arg.get_id());
        }
    }
    // tests/cli/words.rs sets them.
}
