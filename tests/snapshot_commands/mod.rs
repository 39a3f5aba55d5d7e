//! Snapshot commands of the second version: what they are asked, in which order, and what becomes of the guest
//! and the point when they fail, lie or die.

mod shipped;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::guest::{Guest, Host, MIB, UUID, disk};
use crate::harness::run::script;

/// A command that is a script, and what it was asked.
struct Command {
    path: PathBuf,
}

impl Command {
    /// `verbs` are lines of a shell's `case` before those that answer that there is nothing to do.
    fn new(host: &Host, verbs: &str) -> Self {
        let command = Self { path: host.lab.path("command") };
        command.write(host, verbs);
        command
    }

    fn write(&self, host: &Host, verbs: &str) {
        let _ = fs::remove_file(host.lab.path("asked"));
        let (asked, frozen) =
            (host.lab.path("asked"), host.virsh.program().with_file_name("frozen"));
        let text = format!(
            "#!/bin/bash
request=$(cat)
echo \"$1 $([ -e {} ] && echo frozen) $request\" >>{}
ok() {{ echo '{{\"protocol\": 2}}'; }}
case $1 in
{verbs}
*) ok ;;
esac\n",
            frozen.display(),
            asked.display()
        );
        script(&self.path, &text);
    }

    fn word(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The calls so far: the verb, whether the guest was frozen, and the request.
    fn asked(&self) -> Vec<(String, bool, Value)> {
        let text = fs::read_to_string(self.path.with_file_name("asked")).unwrap_or_default();
        let call = |line: &str| {
            let (verb, rest) = line.split_once(' ').unwrap();
            let (frozen, request) = rest.split_once(' ').unwrap();
            let request: Value = serde_json::from_str(request).unwrap();
            assert_eq!(request["verb"], verb);
            (verb.to_owned(), !frozen.is_empty(), request)
        };
        text.lines().map(call).collect()
    }

    fn verbs(&self) -> Vec<String> {
        self.asked().into_iter().map(|(verb, ..)| verb).collect()
    }
}

/// An answer to `snapshot` that names these files.
fn answer(disks: &[(&str, &str, &str)]) -> String {
    let disks: Vec<Value> = disks
        .iter()
        .map(|(disk, file, read)| json!({"disk": disk, "files": [{"file": file, "read": read}]}))
        .collect();
    json!({"protocol": 2, "disks": disks}).to_string()
}

/// A guest that runs, with a command that copies both disks in one call.
fn scene(host: &Host) -> (Guest<'_>, String) {
    let mut guest = Guest::define(host, host.lab.dir());
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 2);
    let (vda, vdb) = (guest.vda().display().to_string(), guest.vdb().display().to_string());
    let (a, b) = (format!("{vda}.copy"), format!("{vdb}.copy"));
    let said = answer(&[("vda", &vda, &a), ("vdb", &vdb, &b)]);
    let verbs = format!(
        "snapshot) cp {vda} {a} && cp {vdb} {b} && echo '{said}' ;;
release) rm -f {a} {b}; ok ;;"
    );
    (guest, verbs)
}

#[test]
fn all_disks_are_asked_for_in_one_call() {
    let host = Host::new();
    let (guest, verbs) = scene(&host);
    let command = Command::new(&host, &verbs);
    let report = host.web(&["--snapshot-command", command.word()]);
    assert_eq!(report["consistency"], "filesystem-quiesced");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 2)]));
    let asked = command.asked();
    assert_eq!(command.verbs(), ["check", "recover", "prepare", "snapshot", "release"]);
    let frozen: Vec<bool> = asked.iter().map(|(_, frozen, _)| *frozen).collect();
    assert_eq!(frozen, [false, false, false, true, false], "only the moment is made in the freeze");
    let request = &asked[3].2;
    assert_eq!((&request["protocol"], &request["domain"]), (&json!(2), &json!("web")));
    assert_eq!((&request["uuid"], &request["state"]), (&json!(UUID), &json!("running")));
    assert_eq!(request["point"], report["point"]);
    assert!(request["limit_ms"].as_u64().unwrap() <= 5000, "{request}");
    let disks = request["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 2);
    let image = guest.vda().canonicalize().unwrap();
    assert_eq!(disks[0]["files"], json!([image.to_str().unwrap()]));
    assert_eq!((&disks[0]["format"], &disks[1]["format"]), (&json!("qcow2"), &json!("raw")));
    assert_eq!((&disks[0]["size"], &disks[0]["since"]), (&json!(8 * MIB), &Value::Null));
    assert_eq!(asked[4].2["kept"], true);
    assert!(asked[3].2.get("kept").is_none());

    // A disk that is left out is nobody's business, and nothing is to be left where none is wanted.
    command.write(&host, &verbs);
    let words = ["--snapshot-command", command.word(), "--exclude", "vdb", "--anchor", "none"];
    host.web(&words);
    let request = command.asked().pop().unwrap().2;
    assert_eq!(request["disks"].as_array().unwrap().len(), 1);
    assert_eq!((&request["track"], &request["disks"][0]["bitmap"]), (&json!(false), &Value::Null));
    host.assert_sound();
}

/// The disks of a moment that is made in one step were said to be some milliseconds apart.
#[test]
fn what_is_said_of_an_unfrozen_moment_is_the_commands_own() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let command = Command::new(&host, &verbs);
    let report = host.web(&["--consistency", "crash", "--snapshot-command", command.word()]);
    let said = report["warnings"].to_string();
    assert!(said.contains("in one step") && !said.contains("apart"), "{said}");
}

/// Every night of every guest paid for a call that had nothing to do.
#[test]
fn what_check_finds_clean_is_not_mended() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let command = Command::new(&host, "");
    for (clean, mended) in [("true", &[][..]), ("false", &["recover"])] {
        let check = format!("check) echo '{{\"protocol\": 2, \"clean\": {clean}}}' ;;");
        command.write(&host, &format!("{check}\n{verbs}"));
        host.web(&["--snapshot-command", command.word()]);
        let expected = [&["check"], mended, &["prepare", "snapshot", "release"]].concat();
        assert_eq!(command.verbs(), expected);
    }
    host.assert_sound();
}

/// A guest that was cut off while it was on an overlay is stopped, and must be mended all the same.
/// A Python program needs a tenth of a second to begin: a guest stood still for it.
#[test]
fn a_command_that_waits_is_started_before_the_freeze() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let command = Command::new(
        &host,
        &format!("check) echo '{{\"protocol\": 2, \"waits\": true}}' ;;\n{verbs}"),
    );
    let (started, asks) = (host.lab.path("started"), "request=$(cat)");
    let frozen = host.virsh.program().with_file_name("frozen");
    let text = fs::read_to_string(&command.path).unwrap();
    let notes = format!(
        "echo $1 $([ -e {} ] && echo frozen) >>{}\n{asks}",
        frozen.display(),
        started.display()
    );
    fs::write(&command.path, text.replacen(asks, &notes, 1)).unwrap();
    for _ in 0..2 {
        host.web(&["--snapshot-command", command.word()]);
    }
    let of_snapshot: Vec<bool> =
        command.asked().iter().filter(|it| it.0 == "snapshot").map(|it| it.1).collect();
    assert_eq!(of_snapshot, [true, true], "asked in the freeze");
    let text = fs::read_to_string(started).unwrap();
    let verbs: Vec<&str> = text.lines().map(str::trim).collect();
    let each = ["check", "recover", "prepare", "snapshot", "release"];
    assert_eq!(verbs, [each, each].concat(), "started before it");
    host.assert_restores("vda", &disk(8, &[(0, MIB, 1)]));
}

#[test]
fn a_stopped_guest_is_checked_and_mended_and_nothing_else() {
    let host = Host::new();
    let (mut guest, verbs) = scene(&host);
    guest.stop();
    let command = Command::new(&host, &verbs);
    let report = host.web(&["--snapshot-command", command.word()]);
    assert_eq!(report["consistency"], "offline");
    assert_eq!(command.verbs(), ["check", "recover"]);
    assert_eq!(command.asked()[1].2["state"], "stopped");
}

#[test]
fn what_fails_before_the_freeze_freezes_nothing() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let command = Command::new(&host, "");
    for (verb, calls) in [
        ("check", &["check"][..]),
        ("recover", &["check", "recover"]),
        ("prepare", &["check", "recover", "prepare", "release"]),
    ] {
        command
            .write(&host, &format!("{verb}) ok; echo 'not on my watch' >&2; exit 1 ;;\n{verbs}"));
        let said = host.web_fails(10, &["--snapshot-command", command.word()]);
        assert!(said.contains(verb) && said.contains("not on my watch"), "{verb}: {said}");
        assert_eq!(command.verbs(), calls);
    }
    assert!(host.virsh.log().is_empty(), "{:?}", host.virsh.log());
    // An answer of another version, or one that nobody understands: the first answer says which protocol it is.
    command.write(&host, &format!("recover) echo '{{\"protocol\": 3}}' ;;\n{verbs}"));
    let said = host.web_fails(10, &["--snapshot-command", command.word()]);
    assert!(said.contains("version 3"), "{said}");
    host.assert_sound();
}

/// A command whose interpreter broke gave no answer to `check`. It was taken for one of the first version,
/// which mends nothing: stopped guests got points without a word, and running ones were frozen for nothing.
#[test]
fn a_check_that_fails_without_an_answer_is_no_older_command() {
    let host = Host::new();
    let (mut guest, verbs) = scene(&host);
    let command = Command::new(&host, "");
    for check in ["echo Traceback >&2; exit 1", "exit 1", "echo Traceback; ok", "kill -9 $$"] {
        command.write(&host, &format!("check) {check} ;;\n{verbs}"));
        let said = host.web_fails(10, &["--snapshot-command", command.word()]);
        assert!(said.contains("check"), "{check}: {said}");
        assert_eq!(said.contains("Traceback"), check.contains(">&2"), "{said}");
    }
    assert!(host.virsh.log().is_empty(), "{:?}", host.virsh.log());
    guest.stop();
    command.write(&host, &format!("check) exit 1 ;;\n{verbs}"));
    host.web_fails(10, &["--snapshot-command", command.word()]);
}

/// One copy was taken for both disks of a guest, and a copy that was cut short for a whole disk.
#[test]
fn an_answer_that_leads_to_the_wrong_disk_makes_no_point() {
    let host = Host::new();
    let (guest, _) = scene(&host);
    let (vda, vdb) = (guest.vda().display().to_string(), guest.vdb().display().to_string());
    let command = Command::new(&host, "");
    let (a, b) = (format!("{vda}.copy"), format!("{vdb}.copy"));
    let both = [("vda", vda.as_str(), a.as_str()), ("vdb", &vdb, &b)];
    let one = answer(&[("vda", &vda, &b), ("vdb", &vdb, &b)]);
    let nbd = |disk: &str| json!({"disk": disk, "nbd": {"uri": "nbd+unix:///x?socket=/nowhere"}});
    let export = json!({"protocol": 2, "disks": [nbd("vda"), nbd("vdb")]}).to_string();
    let cut = format!("truncate -s 1M {b}");
    let empty = format!("truncate -s 0 {b}");
    let long = "head -c 5000000 /dev/zero | tr '\\0' ' '";
    for (words, act, said) in [
        ("can't be both", "true", &one),
        ("one export", "true", &export),
        ("has 4194304 bytes", cut.as_str(), &answer(&both)),
        ("has 4194304 bytes", &empty, &answer(&both)),
        ("longer than 4 MiB", long, &answer(&both)),
    ] {
        let copy = format!("cp {vda} {a} && cp {vdb} {b} && {act}");
        command.write(&host, &format!("snapshot) {copy} && echo '{said}' ;;"));
        let heard = host.web_fails(10, &["--snapshot-command", command.word()]);
        assert!(heard.contains(words), "{words}: {heard}");
    }
    host.assert_sound();
}

/// The copies of two disks of one size were exchanged, and both were wrong in every point from then on. A guest may
/// copy one disk onto another, and an admin may have exchanged them.
#[test]
fn disks_of_one_size_that_were_exchanged_are_noticed() {
    let host = Host::new();
    let mut guest = Guest::define(&host, host.lab.dir());
    fs::File::options().write(true).open(guest.vdb()).unwrap().set_len(8 * MIB).unwrap();
    guest.start("running");
    guest.write(0, 0, MIB, 1);
    guest.write(1, 3 * MIB, MIB, 2);
    let (vda, vdb) = (guest.vda().display().to_string(), guest.vdb().display().to_string());
    let (a, b) = (format!("{vda}.copy"), format!("{vdb}.copy"));
    let said = answer(&[("vda", &vda, &a), ("vdb", &vdb, &b)]);
    let verbs = |one: &str, other: &str| {
        let convert = "qemu-img convert -U -O";
        format!(
            "snapshot) {convert} qcow2 {one} {a} && {convert} raw {other} {b} && echo '{said}' ;;
release) rm -f {a} {b}; ok ;;"
        )
    };
    let command = Command::new(&host, &verbs(&vda, &vdb));
    let words = ["--snapshot-command", command.word()];
    host.web(&words);
    command.write(&host, &verbs(&vdb, &vda));
    let said = host.web_fails(10, &words);
    assert!(said.contains("they were exchanged") && said.contains("disk vda is what"), "{said}");
    assert!(host.points().len() == 1 && !Path::new(&a).exists());
    host.web(&["--snapshot-command", command.word(), "--same-guest"]);
    host.web(&words);
    // One disk becomes a copy of the other.
    guest.write(0, 3 * MIB, MIB, 0);
    guest.write(0, 0, MIB, 1);
    guest.write(1, 0, MIB, 1);
    guest.write(1, 3 * MIB, MIB, 0);
    command.write(&host, &verbs(&vda, &vdb));
    host.web(&words);
    host.assert_sound();
}

/// `recover` was waited for for hours after a request to stop, and `prepare` was begun all the same.
#[test]
fn no_verb_begins_after_a_request_to_stop() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let command = Command::new(&host, "");
    for (verb, calls) in [("check", &["check"][..]), ("recover", &["check", "recover"])] {
        // It is the command itself that asks, as somebody would meanwhile.
        let stop = format!("{verb}) kill -TERM $PPID; sleep 0.3; ok ;;");
        command.write(&host, &format!("{stop}\n{verbs}"));
        let said = host.web_fails(130, &["--snapshot-command", command.word()]);
        assert!(said.contains(&format!("command {verb} has 10")), "{said}");
        assert_eq!(command.verbs(), calls);
    }
    assert!(host.virsh.log().is_empty(), "{:?}", host.virsh.log());
}

/// A warning of a megabyte was shown, and kept, as it was.
#[test]
fn a_command_warns_in_so_many_words_and_no_more() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let long = "x".repeat(5000);
    let said = json!({"protocol": 2, "warnings": vec![long.as_str(); 1], "disks": []});
    let command = Command::new(&host, &format!("check) echo '{said}' ;;\n{verbs}"));
    let report = host.web(&["--snapshot-command", command.word()]);
    let text = report["warnings"][0]["text"].as_str().unwrap();
    assert_eq!((text.chars().count(), text.ends_with('…')), (501, true));
}

/// What was made is released when the guest is thawed, not before: a release may take minutes.
#[test]
fn a_moment_that_is_not_made_is_released_after_the_thaw() {
    let host = Host::new();
    let (guest, verbs) = scene(&host);
    let command = Command::new(&host, "");
    let (vda, vdb) = (guest.vda().display().to_string(), guest.vdb().display().to_string());
    let live = answer(&[("vda", &vda, &vda), ("vdb", &vdb, &vdb)]);
    let one = answer(&[("vda", &vda, "/dev/null")]);
    let twice = answer(&[("vda", &vda, "/x"), ("vda", &vda, "/x"), ("vdb", &vdb, "/x")]);
    let other = answer(&[("vda", &vdb, "/x"), ("vdb", &vdb, "/x")]);
    for (line, why, limit) in [
        ("echo 'no room' >&2; exit 3", "no room", "60000"),
        ("kill -9 $$", "signal: 9", "60000"),
        ("sleep 60", "not ready", "8000"),
        ("true", "no answer", "60000"),
        ("ok", "name disk vda once", "60000"),
        (&format!("echo '{live}'"), "the live image", "60000"),
        (&format!("echo '{one}'"), "neither a regular file", "60000"),
        (&format!("echo '{twice}'"), "name disk vda once", "60000"),
        (&format!("echo '{other}'"), "must name", "60000"),
        ("echo '{\"protocol\": 2, \"discs\": []}'", "unknown field", "60000"),
    ] {
        command.write(&host, &format!("snapshot) {line} ;;\n{verbs}"));
        let words = ["--snapshot-command", command.word(), "--freeze-max", limit];
        let said = host.web_fails(10, &words);
        assert!(said.contains(why), "{line}: {said}");
        let asked = command.asked();
        let (verb, frozen, request) = asked.last().unwrap();
        assert_eq!((verb.as_str(), *frozen, &request["kept"]), ("release", false, &json!(false)));
        assert!(!host.virsh.is_frozen());
    }
    host.assert_sound();
}

/// A command was killed in `release`. The `recover` that followed was told to keep what the point before had left,
/// and removed the new point's checkpoint: the next backup read everything.
#[test]
fn a_release_that_fails_is_mended_or_said() {
    let host = Host::new();
    let (_guest, verbs) = scene(&host);
    let verbs = verbs.replace("\"disk\":\"vda\",", "\"disk\":\"vda\",\"leaves\":\"qdelta-left\",");
    // recover is called first, too.
    let failing = "release) echo 'the job hangs' >&2; exit 1 ;;";
    let command = Command::new(&host, &format!("{failing}\n{verbs}"));
    host.web(&["--snapshot-command", command.word()]);
    assert_eq!(command.verbs().split_off(4), ["release", "recover"]);
    let disks = &command.asked()[5].2["disks"];
    assert_eq!((&disks[0]["since"], &disks[1]["since"]), (&json!("qdelta-left"), &Value::Null));
    let line = "recover) [ $(grep -c ^recover $(dirname $0)/asked) = 1 ] && ok && exit
echo 'still on the overlay' >&2; exit 1 ;;";
    command.write(&host, &format!("{failing}\n{line}\n{verbs}"));
    let done = host.backup(&["--domain", "web", "--snapshot-command", command.word()]);
    assert_eq!(done.code(), Some(13), "{}", done.report());
    for words in ["the job hangs", "still on the overlay"] {
        assert!(done.stderr.contains(words), "{words}: {}", done.report());
    }
    assert_eq!(host.points().len(), 2, "the points are good");
    host.assert_sound();
}

/// Who goes on without any command would back up an overlay that grows for ever.
#[test]
fn a_guest_on_the_overlay_of_a_backup_that_was_cut_off_makes_no_point() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let overlay = format!("{}.qdelta-20261130T001604.157Z-1916cbf6", guest.vda().display());
    fs::rename(guest.vda(), &overlay).unwrap();
    guest.redefine(&[(guest.vda().to_str().unwrap(), &overlay)]);
    let said = host.web_fails(10, &[]);
    assert!(said.contains("made for a backup that was cut off") && said.contains("once"), "{said}");
}
