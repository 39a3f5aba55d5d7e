//! Which options go together. An option that would have no effect is refused, so that what was
//! typed is what happens.
//!
//! clap's own rules are not enough: it drops a `requires` whose target conflicts with something
//! that was typed, and it knows no values and no ways of using a command. So what belongs to which
//! way stands here (of clap's there are only what is required, and two of which one must go), and `combination/tests.rs` goes through all pairs of options of every
//! command.

use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;
use qdelta::{Error, ErrorKind, Result};

use super::values::is_uri;

/// What was typed of one command. What an environment variable says, and what is the default, was
/// not typed: it must not get in anybody's way.
pub struct Typed<'a> {
    matches: &'a ArgMatches,
}

impl Typed<'_> {
    /// Whether an option was typed, also with the value that is its default.
    fn has(&self, id: &str) -> bool {
        let known = self.matches.try_contains_id(id).is_ok();
        known && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// Whether an option was typed with this value.
    fn is(&self, id: &str, value: &str) -> bool {
        let given = || self.matches.get_raw(id).into_iter().flatten().next_back();
        self.has(id) && given().is_some_and(|given| given == value)
    }

    /// Whether guests are backed up.
    fn guests(&self) -> bool {
        self.has("domains") || self.has("all")
    }

    /// Whether what is read is an export of a server.
    fn export(&self) -> bool {
        // What has no such argument is asked for nothing.
        let is_one = |id| {
            self.has(id)
                && self
                    .matches
                    .try_get_one::<PathBuf>(id)
                    .ok()
                    .flatten()
                    .is_some_and(|it| is_uri(it))
        };
        is_one("image") || is_one("path")
    }

    /// Whether a guest is restored.
    fn guest(&self) -> bool {
        self.has("domain")
    }

    /// Whether a disk is restored into an output, and not where it lies.
    fn to_output(&self) -> bool {
        !self.guest() && !self.has("in_place")
    }
}

/// Options that have no effect in some case.
struct Rule {
    /// The options, as clap knows them.
    options: &'static [&'static str],
    /// The case.
    when: fn(&Typed<'_>) -> bool,
    /// Why they have none then: a clause that follows the option.
    why: &'static str,
}

/// Where libvirt's files are.
const LIBVIRT: &[&str] = &["libvirt_config", "libvirt_run", "libvirt_state"];

/// Names in an image are followed only where its format has names.
const NAMES: Rule = Rule {
    options: &["image_roots"],
    when: |typed| typed.is("format", "raw") || typed.has("as_file"),
    why: "has no effect on a raw disk, which names no other files",
};

/// Only qcow2 has internal snapshots.
const SNAPSHOT: Rule = Rule {
    options: &["snapshot", "with_snapshots"],
    when: |typed| typed.is("format", "raw"),
    why: "is for qcow2 images: a raw one has no snapshots",
};

/// What a server gives out is the disk, and no file.
const EXPORT: Rule = Rule {
    options: &["snapshot", "with_snapshots", "image_roots"],
    when: |typed| typed.export(),
    why: "is for image files: what a server gives out is the disk itself",
};

/// The server opens images in their formats.
const EXPORT_FORMAT: Rule = Rule {
    options: &["format"],
    when: |typed| typed.export() && typed.is("format", "qcow2"),
    why: "qcow2 is for image files: have the server open the image (qemu-nbd --format qcow2)",
};

/// Not everything can be written from front to back.
const QCOW2_STREAM: Rule = Rule {
    options: &["format"],
    when: |typed| {
        let to_stream = typed.is("output", "-") && typed.to_output();
        to_stream && typed.is("format", "qcow2")
    },
    why: "qcow2 can't be written to standard output: its tables are written last. Write it to a \
          file, or raw to standard output",
};

/// The rules of a command.
fn rules(command: &str) -> &'static [Rule] {
    match command {
        "init" => INIT,
        "backup" => BACKUP,
        "files ls" => &[Rule {
            options: &["volume", "recursive"],
            when: |typed| !typed.has("path"),
            why: "needs a PATH: without one, the volumes of the disk are listed",
        }],
        "restore" => RESTORE,
        "replay" => REPLAY,
        "anchors" => &[Rule {
            options: &["remove", "remove_all"],
            when: |typed| !typed.has("disk"),
            why: "needs a DISK: name the disk whose anchors are to be removed",
        }],
        "verify" => &[
            Rule {
                options: &["max_age", "budget"],
                when: |typed| typed.has("quick"),
                why: "is about proofs, and --quick proves nothing: leave one of them out",
            },
            Rule {
                options: &["quick", "max_age", "budget"],
                when: |typed| typed.has("against"),
                why: "has no effect with --against, which reads no archive",
            },
            Rule {
                options: &["other_key_file", "other_key_command"],
                when: |typed| !typed.has("against"),
                why: "is the key of the other repository: name that by --against",
            },
            OTHER_KEY,
        ],
        "copy" | "repair" => &[OTHER_KEY],
        "drill" => DRILL,
        "serve" => &[
            Rule {
                options: &["at"],
                when: |typed| !typed.guest(),
                why: "is for a guest (--domain); the point of a disk is named with it: DISK@POINT",
            },
            Rule {
                options: &["disks"],
                when: |typed| typed.guest(),
                why: "is a disk, and --domain serves all of a guest: leave one of them out",
            },
            Rule {
                options: &["scratch"],
                when: |typed| !typed.guest() && !typed.has("disks"),
                why: "is for one disk: name it, DISK@POINT",
            },
            Rule {
                options: &["listen"],
                when: |typed| !typed.has("tls_psk"),
                why: "needs --tls-psk FILE: over a network disks go to those alone who have a key",
            },
            Rule {
                options: &["tls_psk"],
                when: |typed| !typed.has("listen"),
                why: "is for a network (--listen): a socket of this machine has its owner and its mode",
            },
        ],
        "map" => &[NAMES, SNAPSHOT, EXPORT, EXPORT_FORMAT],
        "info" | "bench" => &[NAMES, EXPORT, EXPORT_FORMAT],
        "run" | "status" | "notify" | "report" | "history" | "export-kit" | "config check"
        | "config example" => OF_JOBS,
        "completions" => &[Rule {
            options: &["json"],
            when: |_| true,
            why: "has no effect: a shell reads its completions as they are",
        }],
        "key paper" => &[Rule {
            options: &["json"],
            when: |_| true,
            why: "has no effect: what is on paper is read by people and scanners",
        }],
        _ => &[],
    }
}

/// What is done by itself has its repositories in the file of jobs.
const OF_JOBS: &[Rule] = &[Rule {
    options: &["repo"],
    when: |_| true,
    why: "has no effect: the file of jobs names the repositories (--config FILE)",
}];

/// What is typed of the key, of every command.
const KEY: Rule = Rule {
    options: &["key_command"],
    when: |typed| typed.has("key_file"),
    why: "gives the key, and --key-file does, too: leave one of them out",
};

/// What is typed of the key of a second repository.
const OTHER_KEY: Rule = Rule {
    options: &["other_key_command"],
    when: |typed| typed.has("other_key_file"),
    why: "gives the key, and --other-key-file does, too: leave one of them out",
};

const INIT: &[Rule] = &[
    Rule {
        options: &["repo"],
        when: |typed| typed.has("dir"),
        why: "names a second folder: give the new repository's as DIR or by --repo",
    },
    Rule {
        options: &["recipients", "passphrase_file", "recovery"],
        when: |typed| !typed.has("encrypt"),
        why: "is for an encrypted repository: say --encrypt",
    },
    Rule {
        options: &["encrypt"],
        when: |typed| typed.has("repair"),
        why: "is for a new repository: --repair finds out whether one was encrypted",
    },
    Rule {
        options: &["encrypt"],
        when: |typed| !typed.has("recovery"),
        why: "needs --recovery FILE: without a key nobody can read anything, so one is left outside",
    },
    Rule {
        options: &["encrypt"],
        when: |typed| !typed.has("recipients") && !typed.has("passphrase_file"),
        why: "needs --recipient AGE1… or --passphrase-file FILE: the key is left in the repository for \
              nobody else",
    },
];

const DRILL: &[Rule] = &[
    Rule {
        options: &["pick", "to", "boot_command", "time_limit", "rto", "rpo"],
        when: |typed| typed.has("report"),
        why: "has no effect with --report, which shows earlier drills and makes none",
    },
    Rule {
        options: &["to"],
        when: |typed| {
            let running = ["boot", "agent", "service"].iter().any(|rung| typed.is("to", rung));
            running && !typed.has("boot_command")
        },
        why: "of this kind needs a program that boots the guest: name it by --boot-command",
    },
    Rule {
        options: &["boot_command"],
        when: |typed| {
            let below = ["bytes", "partitions", "filesystems", "check"];
            below.iter().any(|rung| typed.is("to", rung))
        },
        why: "has no effect where --to ends below boot",
    },
    Rule {
        options: &["rto"],
        when: |typed| !typed.has("boot_command"),
        why: "is about the time until a guest's agent answers: name what boots it by --boot-command",
    },
];

const BACKUP: &[Rule] = &[
    Rule {
        options: &[
            "exclude",
            "consistency",
            "freeze_max",
            "snapshot_command",
            "with_host_config",
            "with_memory",
            "connect",
            "virsh",
        ],
        when: |typed| !typed.guests(),
        why: "is for libvirt's guests, and an IMAGE is backed up: say --domain NAME or --all",
    },
    Rule {
        options: &["same_guest"],
        when: |typed| !typed.has("domains"),
        why: "is for guests that are named (--domain): it says something of each",
    },
    Rule {
        options: &["exclude_guest"],
        when: |typed| !typed.has("all"),
        why: "is for --all: without it only those guests are backed up that are named",
    },
    Rule {
        options: LIBVIRT,
        when: |typed| !typed.guests(),
        why: "is for libvirt's guests, and an IMAGE is backed up: say --domain NAME or --all",
    },
    Rule {
        options: &["image", "disk", "snapshot", "as_file", "format"],
        when: |typed| typed.guests(),
        why: "is for an IMAGE: of a guest, libvirt's definition says it (--domain, --all)",
    },
    Rule {
        options: &["snapshot_command"],
        when: |typed| typed.is("consistency", "freeze-copy"),
        why: "has no effect with --consistency freeze-copy, which reads the images themselves",
    },
    Rule {
        options: &["synthetic"],
        when: |typed| typed.is("kind", "full"),
        why: "has no effect with --kind full, which reads everything and is a full already",
    },
    Rule {
        options: &["track"],
        when: |typed| {
            let reads_all = typed.is("track", "auto") || typed.is("track", "scan");
            typed.is("kind", "full") && !reads_all
        },
        why: "has no effect with --kind full, which reads everything",
    },
    Rule {
        // 0 asks for what happens then.
        options: &["sample"],
        when: |typed| {
            let reads_all = typed.is("kind", "full") || typed.is("track", "scan");
            reads_all && !typed.is("sample", "0")
        },
        why: "has no effect where everything is read (--kind full, --track scan)",
    },
    Rule {
        options: &["track"],
        when: |typed| {
            let in_tables = ["bitmap", "snapshot"].iter().any(|it| typed.is("track", it));
            in_tables && (typed.has("as_file") || typed.is("format", "raw"))
        },
        why: "of this kind is in qcow2's tables, and the image is taken as a raw file",
    },
    Rule {
        options: &["anchor"],
        when: |typed| {
            let in_tables = ["bitmap", "snapshot"].iter().any(|it| typed.is("anchor", it));
            in_tables && (typed.has("as_file") || typed.is("format", "raw"))
        },
        why: "of this kind is written into a qcow2 image, and this one is taken as a raw file",
    },
    Rule {
        options: &["track"],
        when: |typed| {
            let reads_all = typed.is("track", "auto") || typed.is("track", "scan");
            typed.has("snapshot") && !reads_all
        },
        why: "tells what has changed in the image's current state, and --snapshot backs up another",
    },
    Rule {
        options: &["sample"],
        when: |typed| typed.has("snapshot") && !typed.is("sample", "0"),
        why: "has no effect with --snapshot: all of a snapshot is read",
    },
    Rule {
        options: &["as_file"],
        when: |typed| typed.export(),
        why: "is for image files: what a server gives out is the disk itself",
    },
    Rule {
        options: &["track", "anchor"],
        when: |typed| {
            let of_files = ["bitmap", "snapshot", "overlay", "reflink"];
            let is_of_files = |id: &str| of_files.iter().any(|it| typed.is(id, it));
            typed.export() && (is_of_files("track") || is_of_files("anchor"))
        },
        why: "of this kind is for image files: of an export there is only live-bitmap",
    },
    Rule {
        options: &["direct"],
        when: |typed| typed.export() && !typed.is("direct", "auto"),
        why: "has no effect on what a server gives out",
    },
    Rule {
        options: &["live_bitmap"],
        when: |typed| !typed.export(),
        why: "is for the export of an NBD server (nbd://…): --anchor bitmap is for image files",
    },
    Rule {
        options: &["track"],
        when: |typed| typed.is("track", "live-bitmap") && !typed.export() && !typed.guests(),
        why: "live-bitmap is for the export of an NBD server (nbd://…)",
    },
    NAMES,
    SNAPSHOT,
    EXPORT,
    EXPORT_FORMAT,
];

const RESTORE: &[Rule] = &[
    Rule {
        options: &[
            "domain", "disk", "output", "in_place", "format", "force", "salvage", "direct",
            "threads", "io",
        ],
        when: |typed| typed.has("host_config"),
        why: "has no effect with --host-config, which writes files into the new folder --to",
    },
    Rule {
        options: LIBVIRT,
        when: |typed| typed.has("host_config"),
        why: "has no effect with --host-config: the files say where they belong",
    },
    Rule {
        options: &["host"],
        when: |typed| !typed.has("host_config"),
        why: "is for the configuration of a host (--host-config)",
    },
    Rule {
        options: &["at"],
        when: |typed| !typed.guest() && !typed.has("host_config"),
        why: "is for a guest (--domain); the point of a disk is named with it: DISK@POINT",
    },
    Rule {
        options: &["to"],
        when: |typed| !typed.guest() && !typed.has("host_config"),
        why: "is for a guest (--domain); a disk goes to an OUTPUT: restore DISK@POINT OUTPUT",
    },
    Rule {
        options: &["to_pool"],
        when: |typed| typed.guest() && !typed.has("to") && !typed.has("in_place"),
        why: "is for the disks alone: --to DIR says where the definition and the other files go",
    },
    Rule {
        options: &["to_pool"],
        when: |typed| typed.has("instant"),
        why: "has no effect with --instant, which copies no disk",
    },
    Rule {
        options: &["to_pool"],
        when: |typed| !typed.guest() || !typed.has("to"),
        why: "is for a guest that is restored into a folder (--domain NAME --to DIR)",
    },
    Rule {
        options: &["rename"],
        when: |typed| !typed.guest() || !typed.has("to"),
        why: "is for a guest that is restored into a folder (--domain NAME --to DIR)",
    },
    Rule {
        options: &["with_memory"],
        when: |typed| !typed.guest() || !typed.has("to"),
        why: "is for a guest that is restored into a folder (--domain NAME --to DIR)",
    },
    Rule {
        options: &["instant"],
        when: |typed| !typed.guest() || !typed.has("to"),
        why: "is for a guest that is restored into a folder (--domain NAME --to DIR)",
    },
    Rule {
        options: &["socket"],
        when: |typed| !typed.has("instant"),
        why: "is for an instant restore (--instant): nothing else needs a server",
    },
    Rule {
        options: &["format", "force", "direct"],
        when: |typed| typed.has("instant"),
        why: "has no effect with --instant, which copies no disk and replaces none",
    },
    Rule {
        options: &["disk", "output"],
        when: |typed| typed.guest(),
        why: "is for one disk, and --domain restores a guest: say --to DIR or --in-place",
    },
    Rule {
        options: &["to"],
        when: |typed| typed.has("in_place"),
        why: "has no effect with --in-place, which writes where the disks lie",
    },
    Rule {
        options: &["output"],
        when: |typed| typed.has("in_place") && typed.is("output", "-"),
        why: "must be an image with --in-place, and - is standard output",
    },
    Rule {
        options: &["force", "salvage"],
        when: |typed| typed.has("in_place"),
        why: "has no effect with --in-place: what is there is changed, or nothing",
    },
    Rule {
        options: &["salvage"],
        when: |typed| typed.guest(),
        why: "is for one disk: restore DISK@POINT OUTPUT --salvage",
    },
    Rule {
        options: &["no_point", "image_roots"],
        when: |typed| !typed.has("in_place"),
        why: "is for a roll back (--in-place): nothing else reads what is there",
    },
    Rule {
        options: &["same_guest"],
        when: |typed| !typed.has("in_place") || typed.has("output"),
        why: "is for a roll back of a guest's own disks (--in-place): nothing else looks at the guest",
    },
    Rule {
        options: LIBVIRT,
        when: |typed| typed.to_output() && !typed.has("force"),
        why: "has no effect where nothing is replaced (--force): no guest can be harmed",
    },
    QCOW2_STREAM,
    Rule {
        options: &["force", "direct", "libvirt_config", "libvirt_run", "libvirt_state"],
        when: |typed| typed.is("output", "-") && typed.to_output(),
        why: "has no effect on standard output",
    },
    NAMES,
];

const REPLAY: &[Rule] = &[
    QCOW2_STREAM,
    Rule {
        options: &["force", "direct"],
        when: |typed| typed.is("output", "-"),
        why: "has no effect on standard output",
    },
];

/// Refuses what was typed if a part of it would have no effect.
///
/// # Errors
/// [`ErrorKind::Usage`], naming the option.
pub fn check(program: &clap::Command, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    // Of `files`, each verb is a command of its own.
    let (name, matches) = match matches.subcommand() {
        Some((verb, matches)) => (format!("{name} {verb}"), matches),
        None => (name.to_owned(), matches),
    };
    let name = name.as_str();
    let typed = Typed { matches };
    let all = rules(name).iter().chain(std::iter::once(&KEY));
    for rule in all.filter(|rule| (rule.when)(&typed)) {
        let Some(id) = rule.options.iter().find(|id| typed.has(id)) else { continue };
        let text = format!("{} {}", shown(program, name, id), rule.why);
        return Err(Error::new(ErrorKind::Usage, text)
            .advise(format!("qdelta {name} --help says what goes together")));
    }
    Ok(())
}

/// An option as it is typed.
fn shown(program: &clap::Command, command: &str, id: &str) -> String {
    let mut words = command.split(' ');
    let command = words.try_fold(program, |above, word| above.find_subcommand(word));
    let own = command.and_then(|command| command.get_arguments().find(|arg| arg.get_id() == id));
    let global = || program.get_arguments().find(|arg| arg.get_id() == id);
    match own.or_else(global) {
        Some(arg) if arg.is_positional() => arg
            .get_value_names()
            .and_then(|names| names.first())
            .map_or_else(|| id.to_uppercase(), ToString::to_string),
        Some(arg) => format!("--{}", arg.get_long().unwrap_or(id)),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests;
