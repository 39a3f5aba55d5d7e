//! Statuses, help, and where things are said.

use std::fs::File;
use std::process::Stdio;

use super::{Run, done, qdelta, refused, run, word};

const COMMANDS: [&str; 10] = [
    "init",
    "backup",
    "restore",
    "replay",
    "verify",
    "points",
    "info",
    "map",
    "completions",
    "man",
];

#[test]
fn help_shows_every_command_and_what_to_type_first() {
    let short = done(&["-h"]);
    let long = done(&["--help"]);
    for help in [&short, &long] {
        for command in COMMANDS {
            assert!(help.contains(&format!("\n  {command} ")), "{command} is not in\n{help}");
        }
        assert!(help.contains("qdelta init /mnt/backup/repo"), "{help}");
        assert!(help.contains("QDELTA_REPO"), "{help}");
    }
    for status in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130] {
        assert!(long.contains(&format!("\n  {status:>3}  ")), "status {status} is not in\n{long}");
    }
    assert!(done(&["--version"]).starts_with("qdelta 0."));
}

#[test]
fn every_command_has_help_that_fits_a_terminal() {
    for command in COMMANDS {
        for flag in ["-h", "--help"] {
            let help = done(&[command, flag]);
            assert!(help.contains("Examples:"), "{command} {flag}:\n{help}");
            let widest = help.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(100), "{command} {flag} is {widest:?} wide");
        }
    }
}

#[test]
fn words_that_make_no_sense_are_refused() {
    assert_eq!(run(&[]).status, 2);
    for words in [
        &["bakup"] as &[&str],
        &["backup"],
        &["backup", "image", "--kind", "big"],
        &["backup", "image", "--block-size", "3K"],
        &["backup", "image", "--level", "99"],
        &["backup", "image", "--threads", "0"],
        &["backup", "image", "--disk", "../x"],
        &["backup", "image", "--as-file", "--format", "raw"],
        &["restore", "vm"],
        &["restore", "vm@soon", "out"],
        &["restore", "../vm", "out"],
        &["replay", "--output", "out"],
        &["points", "a/b/c"],
        &["completions", "csh"],
        &["points", "-q", "-v"],
        &["verify", "vm", "--direct", "on"],
        &["completions", "bash", "--json"],
        &["points"],
        &["init"],
        &["backup", "image"],
    ] {
        refused(2, words);
    }
}

/// Other programs have other words: who types them is told what they are called here, or that there
/// is nothing like that yet.
#[test]
fn commands_of_other_programs_are_answered_with_a_tip() {
    for (word, tip) in [
        ("list", "qdelta points"),
        ("ls", "qdelta points"),
        ("snapshots", "qdelta points"),
        ("check", "qdelta verify"),
        ("forget", "qdelta prune"),
        ("diff", "qdelta files diff"),
        ("fuse", "qdelta mount"),
        ("bakup", "backup"),
    ] {
        let said = refused(2, &[word]);
        assert!(said.contains(tip), "{word}: {said}");
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn help_is_a_command_too() {
    assert!(done(&["help"]).contains("qdelta init"));
    for command in COMMANDS {
        assert_eq!(done(&["help", command]), done(&[command, "--help"]));
    }
    refused(2, &["help", "nonsense"]);
}

#[test]
fn a_repository_is_made_once_and_found_by_flag_or_variable() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    let said = done(&["init", word(&repo)]);
    assert!(said.contains(word(&repo)), "{said}");
    assert!(repo.join("qdelta.toml").is_file());
    let said = refused(7, &["init", word(&repo)]);
    assert!(said.contains("is a repository already"), "{said}");

    assert!(done(&["points", "--repo", word(&repo)]).contains("no points yet"));
    assert!(done(&["--repo", word(&repo), "points"]).contains("no points yet"));
    let by_variable: Run =
        qdelta().arg("points").env("QDELTA_REPO", &repo).output().unwrap().into();
    assert_eq!(by_variable.status, 0, "{}", by_variable.stderr);
    let flag_wins: Run = qdelta()
        .args(["points", "--repo", word(&repo)])
        .env("QDELTA_REPO", dir.path().join("nowhere"))
        .output()
        .unwrap()
        .into();
    assert_eq!(flag_wins.status, 0, "{}", flag_wins.stderr);

    let by_variable: Run =
        qdelta().arg("init").env("QDELTA_REPO", dir.path().join("other")).output().unwrap().into();
    assert_eq!(by_variable.status, 0, "{}", by_variable.stderr);
}

/// A backup disk that isn't mounted must not fill the disk below.
#[test]
fn a_folder_that_is_no_repository_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("vm.raw");
    std::fs::write(&image, [1; 4096]).unwrap();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for repo in [empty.clone(), dir.path().join("missing")] {
        let said = refused(6, &["points", "--repo", word(&repo)]);
        assert!(said.contains("qdelta init") && said.contains("mount"), "{said}");
        assert_eq!(said.lines().count(), 2, "an error and one line of advice: {said}");
    }
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
}

#[test]
fn an_init_says_as_json_what_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    let made: serde_json::Value =
        serde_json::from_str(&done(&["init", word(&repo), "--json"])).unwrap();
    assert_eq!(made["repository"], word(&repo));
    assert_eq!(made["id"].as_str().unwrap().len(), 32);
}

/// Somebody who has seen enough, like `head`, is no error.
#[test]
fn a_reader_that_leaves_is_no_error() {
    for words in [&["--help"] as &[&str], &["completions", "bash"]] {
        let mut child =
            qdelta().args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let run = Run::from(child.wait_with_output().unwrap());
        assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{words:?}");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = qdelta().args(["completions", "bash"]).stdout(full).output().unwrap();
    // It was told as one of a full repository, by its status.
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard output"));
}

/// A backup whose standard output was full ended with the status of a full repository, and said no
/// word of the point, which was made. Of several guests it left out the rest.
#[test]
fn what_was_done_though_it_could_not_be_shown_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vm.raw"));
    std::fs::write(&image, vec![7; 100_000]).unwrap();
    done(&["init", &repo]);
    for (words, said) in [
        (&["backup", &image] as &[&str], "point vm/disk@"),
        (&["backup", &image, "--json"], "point vm/disk@"),
        (&["restore", "vm", &at("out.raw")], "restored to"),
        (&["restore", "vm", &at("out.raw"), "--force", "--json"], "restored to"),
        (&["restore", "vm", &image, "--in-place"], "rolled back"),
        (&["init", &at("other")], "was made"),
        (&["points"], "cannot write to standard output"),
        (&["verify"], "cannot write to standard output"),
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = qdelta();
        command.args(words).stdout(full).stderr(Stdio::piped());
        if words[0] != "init" {
            command.env("QDELTA_REPO", &repo);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
        assert!(stderr.contains("standard output") && stderr.contains(said), "{words:?}: {stderr}");
        assert!(!stderr.contains(&format!("{repo}:")), "the repository is blamed: {stderr}");
    }
    let listed = done(&["points", "--repo", &repo]);
    assert!(listed.contains("vm/disk: 3 points"), "{listed}");
}

/// `--quiet` hid the warnings, and went on telling what went well: in a nightly script that is the
/// wrong way round.
#[test]
fn quiet_is_silent_on_success_and_on_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vm.raw"));
    std::fs::write(&image, vec![7; 100_000]).unwrap();
    for words in [
        &["init", &repo] as &[&str],
        &["backup", &image, "--repo", &repo],
        &["backup", &image, "--repo", &repo],
        &["restore", "vm", &at("out.raw"), "--repo", &repo],
        &["restore", "vm", &image, "--in-place", "--repo", &repo],
        &["verify", "--repo", &repo],
        &["man", &at("man")],
    ] {
        let quiet = done(&[words, &["--quiet"]].concat());
        assert_eq!(quiet, "", "{words:?}");
    }
    // What was asked for is shown.
    assert!(done(&["points", "--quiet", "--repo", &repo]).contains("vm/disk"));
    assert!(done(&["info", &image, "--quiet"]).contains("disk size"));
    assert!(done(&["verify", "--quiet", "--json", "--repo", &repo]).contains("proved"));
    // So is what is wrong.
    let archives = std::fs::read_dir(dir.path().join("repo/vm/disk")).unwrap();
    let archive = archives.map(|entry| entry.unwrap().path()).max().unwrap();
    std::fs::write(&archive, "nothing").unwrap();
    let found = run(&["verify", "--quiet", "--repo", &repo]);
    assert_eq!(found.status, 4);
    assert!(found.stdout.contains(word(&archive)), "{}", found.stdout);
    // And a warning: the image is of another folder than at the point before, or named by its owner
    // as something that it is not.
    let run = run(&["backup", &image, "--repo", &repo, "--quiet"]);
    assert!(run.stderr.contains("warning"), "{}", run.stderr);
    assert_eq!(run.stdout, "");
}
