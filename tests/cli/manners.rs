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
        &["points"],
        &["init"],
        &["backup", "image"],
    ] {
        refused(2, words);
    }
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
