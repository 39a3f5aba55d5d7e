//! The rules of the house that a machine can check. Each says why it is one.

mod seams;

use std::path::{Path, PathBuf};

/// A longer file is several things.
const LINES_MAX: usize = 700;

/// A source file: its path from the top of the tree, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// Lines of code, with their numbers: no comments, and nothing from the unit tests on, which
    /// stand at the end of a file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(index, line)| (index + 1, line))
    }

    /// Every line of code with `text` in it, ready for a message.
    fn with(&self, text: &str) -> Vec<String> {
        let hits = self.code().filter(|(_, line)| line.contains(text));
        hits.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the tree that is not made by a tool.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let made = ["target", ".git", "corpus", "artifacts", "coverage"];
                if !made.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name != ".git" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let list: Vec<Source> = rust
        .map(|path| Source {
            text: std::fs::read_to_string(&path).unwrap(),
            path: path.strip_prefix(top()).unwrap().to_string_lossy().into_owned(),
        })
        .collect();
    assert!(list.len() > 10, "these can't be all sources of the tree");
    list
}

/// `texts` may stand only in files below `allowed`, of those below `within`.
#[track_caller]
fn only_in(within: &[&str], allowed: &[&str], texts: &[&str], why: &str) {
    let mut hits = Vec::new();
    for source in sources() {
        if source.is_in(within) && !source.is_in(allowed) {
            hits.extend(texts.iter().flat_map(|text| source.with(text)));
        }
    }
    assert!(hits.is_empty(), "{why}:\n{}", hits.join("\n"));
}

const PROGRAM: &[&str] = &["src/main.rs", "src/cli"];

#[test]
fn unsafe_code_is_in_two_modules() {
    only_in(
        &["src", "formats", "benches", "fuzz"],
        &["src/disk/io/uring.rs", "src/disk/sys/kernel.rs"],
        &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "#[unsafe("],
        "one module speaks to io_uring, one to the kernel's other calls; those alone hold unsafe",
    );
}

#[test]
fn the_kernel_is_spoken_to_in_one_place() {
    only_in(
        &["src"],
        &["src/disk/sys/", "src/disk/io/uring.rs"],
        &["libc::", "io_uring::", "memmap2::"],
        "who needs the kernel asks crate::disk::sys, which makes the call safe",
    );
    only_in(
        &["formats"],
        &["formats/src/archive/"],
        &["bincode::"],
        "bincode has no maintainer: it stays replaceable",
    );
}

#[test]
fn cryptography_is_in_few_places() {
    only_in(
        &["src", "formats"],
        &[
            "src/vault/age/",
            "src/disk/nbd/tls.rs",
            "src/flows/serve/tls.rs",
            "src/vault/repository/storage/s3/",
            "src/cli/mod.rs",
        ],
        &["openssl::"],
        "files of age are opened and written in one room, servers and clients of disks are met in one module \
         each, requests to object stores are signed in one folder, and the program begins with it",
    );
}

/// The rooms of the library, layer by layer. Each knows only those above it in this list.
const ROOMS: &[&str] = &[
    "base/error",
    "base/printable",
    "base/duration",
    "base/period",
    "base/size",
    "base/calendar",
    "base/json",
    "base/cancel",
    "base/clock",
    "base/random",
    "base/shelf",
    "base/warning",
    "base/observer",
    "disk/sys",
    "disk/io",
    "disk/nbd",
    "disk/files",
    "disk/flow",
    "disk/image",
    "disk/edit",
    "disk/create",
    "disk/reflink",
    "vault/age",
    "vault/codec",
    "vault/archive",
    "vault/frames",
    "vault/chain",
    "vault/repository",
    "vault/point",
    "guest/program",
    "guest/libvirt",
    "guest/quiesce",
    "guest/snapshots",
    "inside/volumes",
    "inside/filesystem",
    "flows/report",
    "flows/notify",
    "flows/page",
    "flows/anchors",
    "flows/capture",
    "flows/tracking",
    "flows/merge",
    "flows/backup",
    "flows/restore",
    "flows/verify",
    "flows/retain",
    "flows/prune",
    "flows/copies",
    "flows/space",
    "flows/serve",
    "flows/bench",
    "flows/files",
    "flows/host",
    "flows/mount",
    "flows/drill",
    "flows/jobs",
];

/// Files that hold a layer together and belong to no room.
const HALLS: &[&str] = &[
    "lib.rs",
    "base/mod.rs",
    "disk/mod.rs",
    "vault/mod.rs",
    "guest/mod.rs",
    "inside/mod.rs",
    "flows/mod.rs",
];

/// The place in [`ROOMS`] of the room that `path`, segments with `/` between, is in.
fn room_of(path: &str) -> Option<usize> {
    ROOMS.iter().position(|room| {
        path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
    })
}

/// The paths that a line of code names from the top of the library.
fn imports(line: &str) -> impl Iterator<Item = String> + '_ {
    line.match_indices("crate::").map(|(at, found)| {
        let rest = &line[at + found.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
        rest[..end.unwrap_or(rest.len())].trim_end_matches(':').replace("::", "/")
    })
}

/// The module that each line of a file belongs to, with `/` between: the file's own, or one that is
/// declared in the file itself.
fn modules_of(source: &Source) -> Vec<String> {
    let path = source.path.strip_prefix("src/").unwrap_or(&source.path);
    let own = path.trim_end_matches(".rs").trim_end_matches("/mod").to_owned();
    let mut module = own.clone();
    let place = |line: &str| {
        let declared = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        match declared.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            Some(name) => module = format!("{own}/{name}"),
            None if line == "}" => module.clone_from(&own),
            None => {}
        }
        module.clone()
    };
    source.text.lines().map(place).collect()
}

/// How many modules each path of a line climbs.
fn climbs(line: &str) -> impl Iterator<Item = usize> {
    let starts = line.match_indices("super::").map(|(at, _)| at);
    let starts = starts.filter(|at| !line[..*at].ends_with("super::"));
    starts.map(|at| {
        let mut rest = &line[at..];
        std::iter::from_fn(|| {
            rest = rest.strip_prefix("super::")?;
            Some(())
        })
        .count()
    })
}

/// A restore imported the backup's flow, a reader the image, the kernel's room the queue, and two
/// circles held seven modules together: nothing could be added without breaking through a wall.
#[test]
fn rooms_know_only_the_rooms_above_them() {
    let mut hits = Vec::new();
    let mut checked = 0;
    for source in sources() {
        let Some(path) = source.path.strip_prefix("src/") else { continue };
        if HALLS.contains(&path) || source.is_in(PROGRAM) {
            continue;
        }
        let here = room_of(path).unwrap_or_else(|| panic!("src/{path} is in no room of the list"));
        let modules = modules_of(&source);
        // Unit tests and comments count: what they name, they know.
        for (index, line) in source.text.lines().enumerate() {
            for import in imports(line) {
                let is_of_all = ["formats", "Error", "ErrorKind", "Result"];
                if is_of_all.iter().any(|name| import.split('/').next() == Some(name)) {
                    continue;
                }
                checked += 1;
                let place = format!("{}:{}: {}", source.path, index + 1, line.trim());
                match room_of(&import) {
                    None => hits.push(format!("{place} (names no room)")),
                    Some(there) if there > here => hits.push(place),
                    Some(_) => {}
                }
            }
            // A layer and a room are two names: a path that climbs above them has left the room.
            let depth = modules[index].matches('/').count() + 1;
            if climbs(line).any(|ups| ups + 2 > depth) {
                hits.push(format!("{}:{}: leaves its room", source.path, index + 1));
            }
        }
    }
    assert!(checked > 500, "{checked} imports can't be all");
    assert!(hits.is_empty(), "a room knows only those above it:\n{}", hits.join("\n"));
}

/// The map says that each room knows only the rooms above it, and showed three rooms out of their order.
#[test]
fn the_map_shows_the_rooms_in_their_order() {
    let text = std::fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| layer | room |")).skip(2);
    let mut layer = String::new();
    let mut shown = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().replace('`', ""));
        let (first, rooms) = (cells.next().unwrap(), cells.next().unwrap());
        if !first.is_empty() {
            layer = first;
        }
        if let Some(layer) = layer.strip_prefix("src/") {
            let rooms = rooms.split(", ").filter(|room| !room.is_empty());
            shown.extend(rooms.map(|room| format!("{layer}{room}")));
        }
    }
    assert_eq!(shown, ROOMS, "the map of ARCHITECTURE.md and this list are one");
}

/// What the kernel is asked for has nothing to do with backups.
#[test]
fn the_kernel_s_room_knows_nothing_of_the_house() {
    let mut hits = Vec::new();
    for source in sources().iter().filter(|source| source.is_in(&["src/disk/sys"])) {
        let foreign = |line: &&str| imports(line).any(|import| !import.starts_with("disk/sys"));
        hits.extend(source.text.lines().filter(foreign).map(str::to_owned));
    }
    assert!(hits.is_empty(), "sys speaks std and the kernel's names alone: {hits:?}");
}

#[test]
fn the_library_does_not_know_the_program() {
    only_in(
        &["src"],
        PROGRAM,
        &["crate::cli", "anyhow", "clap"],
        "nothing imports the command line",
    );
}

#[test]
fn the_library_is_silent() {
    let speech =
        ["println!", "print!(", "eprintln!", "eprint!(", "process::exit", "stdout()", "stderr()"];
    only_in(&["src", "formats"], PROGRAM, &speech, "the library never prints and never exits");
    only_in(
        &["src", "formats"],
        PROGRAM,
        &["static mut", "LazyLock", "= OnceLock::new()", "thread_local!"],
        "the library has no globals",
    );
}

/// That an old anchor stayed in an image, and held on to what was written over, was said to those alone
/// who had asked for more notes.
#[test]
fn a_warning_has_one_way_to_people() {
    only_in(
        &["src"],
        &[],
        &["tracing::warn!", "warn!(", "tracing::info!", "info!("],
        "a warning is an event of the observer and part of the result: beside it, no script sees it",
    );
}

/// A guest's snapshots were told from anchors by a prefix that was spelled a second time.
#[test]
fn anchors_are_recognised_in_one_place() {
    only_in(
        &["src"],
        // The names of man pages, and of systemd's units.
        &[
            "src/flows/anchors/mod.rs",
            "src/cli/commands/shell.rs",
            "src/flows/restore/machine/instant.rs",
        ],
        &["\"qdelta-"],
        "who wants to know whether a name is an anchor's asks crate::flows::anchors",
    );
}

/// What `points` and `anchors` say was gathered by the program: another front end had to write it again.
#[test]
fn results_are_gathered_by_the_library() {
    only_in(
        &["src/cli"],
        &[],
        &[" PointsReport {", " AnchorsReport {", ".health(", "AnchorsReport::default"],
        "the program shows results and gathers none",
    );
}

/// Stores that fail by a plan were a hidden part of every library that was built, the program's
/// included.
#[test]
fn what_is_for_tests_is_behind_a_feature() {
    only_in(
        &["src", "formats"],
        // The library's first page offers what callers need; the layers behind it are not shown.
        &["src/lib.rs"],
        &["doc(hidden)"],
        "what tests alone need is behind the feature `testing`, and what others need is documented",
    );
    let text = std::fs::read_to_string(top().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let features = manifest["features"].as_table().unwrap();
    assert!(features.contains_key("testing"));
    assert!(!features.contains_key("default"), "the program is built with no feature");
}

/// "the clock is 57202199.957s behind the latest point" was one of five ways to print a duration.
#[test]
fn stretches_of_time_are_printed_in_one_place() {
    only_in(
        &["src"],
        &["src/base/duration.rs"],
        &["} ms", "} s\"", "} s,", "} min", "} h\"", "} days", "} seconds", "}s\"", "}ms"],
        "who shows a stretch of time asks crate::base::duration",
    );
}

/// A name from an image or a manifest can hold what a terminal obeys.
#[test]
fn what_is_shown_passes_two_gates() {
    only_in(
        &["src"],
        // Results; messages; what is wrong with the arguments, before there is either; widths alone.
        &[
            "src/cli/out.rs",
            "src/cli/screen.rs",
            "src/cli/mod.rs",
            "src/cli/bar.rs",
            // Descriptors: the replies of the watchdog, and the bytes of a disk.
            "src/cli/commands/watchdog.rs",
            "src/cli/commands/restore.rs",
        ],
        &["stdout()", "stderr()", "/dev/tty"],
        "results go through Out::line, messages through Screen::say: both make text printable",
    );
    only_in(
        &["src/cli"],
        // Scripts of shells, and JSON by pieces. Neither holds foreign text that is not escaped.
        &[
            "src/cli/out.rs",
            "src/cli/commands/shell.rs",
            "src/cli/commands/map.rs",
            "src/cli/mod.rs",
        ],
        &[".raw("],
        "Out::raw shows text as it is: foreign text could command the terminal",
    );
    only_in(
        &["src/cli"],
        &["src/cli/out.rs"],
        &["serde_json::to_"],
        "Out::to_json writes no character that a terminal obeys",
    );
}

/// A result that the program declared itself could not be read back by anyone.
#[test]
fn results_are_declared_in_one_room() {
    only_in(
        &["src/cli"],
        &[],
        &["derive(Serialize", ", Serialize", "json!("],
        "what --json shows is a type of crate::flows::report",
    );
}

#[test]
fn formats_are_bytes_and_nothing_else() {
    let outside =
        ["std::fs", "std::io", "std::net", "std::time", "std::env", "std::thread", "File::"];
    only_in(&["formats/src"], &[], &outside, "a format that does I/O can't be fuzzed from bytes");
}

#[test]
fn qdelta_starts_no_other_program() {
    only_in(
        &["src", "formats"],
        // Its own watchdog, virsh for two verbs, fusermount3 for users who mount, and for drills the
        // system's checkers and what the admin names; of an AWS profile, the command that tells credentials;
        // and the command that gives a key.
        &[
            "src/cli/keys.rs",
            "src/vault/repository/storage/s3/credentials.rs",
            "src/flows/drill/boot.rs",
            "src/flows/drill/tools.rs",
            // The admin's hooks, and systemctl, which is asked whether the timer is on.
            "src/flows/jobs/programs.rs",
            "src/flows/mount/attach.rs",
            // The system's sendmail, and the admin's own command, which tell people.
            "src/flows/notify/send.rs",
            "src/guest/quiesce/mod.rs",
            "src/guest/quiesce/virsh.rs",
            "src/guest/snapshots.rs",
            "src/guest/program.rs",
        ],
        &["Command::new", "process::Command::"],
        "qdelta never starts qemu-img or QEMU",
    );
    let calls: Vec<String> = sources()
        .iter()
        .filter(|source| source.is_in(&["src"]))
        .flat_map(|source| source.with("\"domfs"))
        .collect();
    assert_eq!(calls.len(), 2, "virsh freezes and thaws, and does nothing else: {calls:?}");
}

#[test]
fn what_files_need_is_decided_in_one_place() {
    only_in(
        &["src"],
        &["src/disk/files/rename.rs"],
        &["renameat_with", "NOREPLACE"],
        "two ways to rename without replacing knew different filesystems",
    );
    only_in(
        &["src"],
        &["src/disk/files/"],
        &["statvfs(", "f_bavail", "f_bfree"],
        "room is counted in one way: who asks is crate::disk::files::room",
    );
    only_in(
        &["src"],
        &["src/base/random.rs"],
        &["getrandom::"],
        "random bytes were drawn in four places, with three errors for one failure",
    );
    only_in(
        &["src"],
        // Three need the number for a record that outlives the process or the file.
        &[
            "src/disk/sys/file_id.rs",
            "src/disk/image/fingerprint.rs",
            "src/flows/anchors/",
            "src/vault/repository/storage/local.rs",
        ],
        &[".ino()", "st_ino"],
        "seven places told files apart, each in its way: who asks is crate::disk::sys::FileId",
    );
    only_in(
        &["src"],
        &["src/inside/filesystem/"],
        &["filesystem.open("],
        "a size that no offset reaches went into archives: who opens a content calls open_content",
    );
    only_in(
        &["src"],
        // Whose turn it is to freeze is waited for far longer.
        &["src/disk/sys/patience.rs", "src/guest/quiesce/turn.rs"],
        &[".try_lock("],
        "a process that was just killed holds its locks for some moments",
    );
}

#[test]
fn queues_are_bounded() {
    let endless = ["unbounded(", "unbounded::<", "mpsc::channel"];
    only_in(&["src"], &[], &endless, "memory must not grow with the disk");
}

#[test]
fn nothing_is_left_open() {
    let marks = ["todo!", "unimplemented!", concat!("FIX", "ME"), concat!("XX", "X")];
    let mut hits = Vec::new();
    for source in sources().iter().filter(|source| source.path != "tests/tidy.rs") {
        for (index, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                hits.push(format!("{}:{}: {line}", source.path, index + 1));
            }
        }
    }
    assert!(hits.is_empty(), "left open:\n{}", hits.join("\n"));
}

#[test]
fn files_are_of_a_readable_length_and_say_their_purpose() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            complaints.push(format!("{}: {lines} lines", source.path));
        }
        // A fuzz target begins with an attribute of the whole crate.
        let first = source.text.lines().find(|line| !line.starts_with("#!["));
        if !first.is_some_and(|line| line.starts_with("//! ")) {
            complaints.push(format!("{}: does not open with a line on its purpose", source.path));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    let places = ["root", "work", "Users"].map(|name| format!("/{name}/"));
    let mut hits = Vec::new();
    for path in files() {
        // Images and archives are not text.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                hits.push(format!("{}:{}: {line}", path.display(), index + 1));
            }
        }
    }
    assert!(hits.is_empty(), "a path of somebody's machine:\n{}", hits.join("\n"));
}

#[test]
fn scripts_can_be_run_and_say_their_purpose() {
    use std::os::unix::fs::PermissionsExt;
    let scripts = files().into_iter().filter(|path| {
        let folder = path.parent().and_then(|folder| folder.file_name());
        folder.is_some_and(|name| name == "scripts" || name == ".ci")
    });
    for path in scripts {
        let text = std::fs::read_to_string(&path).unwrap();
        if !text.starts_with("#!") {
            continue;
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert!(mode & 0o111 == 0o111, "{path:?} is not executable");
        let purpose = text.lines().nth(1).unwrap_or_default();
        assert!(
            purpose.starts_with("# ") || purpose.starts_with("\"\"\""),
            "{path:?} does not say its purpose"
        );
    }
}

#[test]
fn dependencies_have_a_reason() {
    let Ok(architecture) = std::fs::read_to_string(top().join("ARCHITECTURE.md")) else {
        panic!("ARCHITECTURE.md gives the reason of every dependency, and is not there");
    };
    // A row of the table names one crate, or several with a comma between.
    let rows = architecture.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let reasons: Vec<&str> = rows.flat_map(|names| names.split(", ")).collect();
    for manifest in ["Cargo.toml", "formats/Cargo.toml"] {
        let text = std::fs::read_to_string(top().join(manifest)).unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        for section in ["dependencies", "dev-dependencies"] {
            let Some(toml::Value::Table(list)) = parsed.get(section) else { continue };
            // The package names itself among its dev-dependencies, for a feature.
            for name in list.keys().filter(|name| *name != env!("CARGO_PKG_NAME")) {
                assert!(
                    reasons.contains(&name.as_str()),
                    "ARCHITECTURE.md gives no reason for `{name}` of {manifest}"
                );
            }
        }
    }
}

/// Nine places opened files so that no named pipe is waited for, and the tenth forgot: a salvage waited
/// for ever.
#[test]
fn files_are_opened_in_one_place() {
    let texts = [
        "File::open(",
        "File::options(",
        "File::create(",
        "File::create_new(",
        "fs::OpenOptions",
        "fs::read(",
        "fs::read_to_string(",
        "fs::write(",
        "fs::copy(",
        "rustix::fs::open(",
        "openat(",
        "openat2(",
    ];
    // Two open pipes and terminals, and wait for their readers; one opens folders and makes new
    // files, each in a folder that it holds open; and one opens the kernel's device of FUSE.
    let allowed = [
        "src/disk/io/open.rs",
        "src/disk/create/mod.rs",
        "src/disk/create/pipe.rs",
        "src/flows/files/target.rs",
        "src/flows/mount/attach.rs",
    ];
    let mut hits = Vec::new();
    for source in sources() {
        // Modules that are compiled for tests alone.
        let tests = ["tests.rs", "/testing.rs", "repository/limits.rs"];
        let is_test =
            tests.iter().any(|end| source.path.ends_with(end)) || source.path.contains("/tests/");
        if source.is_in(&["src"]) && !source.is_in(&allowed) && !is_test {
            hits.extend(texts.iter().flat_map(|text| source.with(text)));
        }
    }
    hits.retain(|hit| !hit.contains("ImageFile::open("));
    let why = "crate::disk::io::Opener sees to it that a file is one, and waits for nobody";
    assert!(hits.is_empty(), "{why}:\n{}", hits.join("\n"));
}

#[test]
fn the_time_is_asked_for_in_one_place() {
    only_in(
        &["src"],
        &["src/base/clock.rs"],
        &["Timestamp::now(", "Zoned::now("],
        "past the year 9999 it panics; crate::base::clock gives an error",
    );
}
