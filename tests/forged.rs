//! Another repository in the place of an encrypted one, and an encrypted one whose plain files are gone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::files::copy_tree;
use crate::harness::images::filled;
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, qdelta, run};

/// An encrypted repository with a point of the guest `web`.
fn victim(lab: &Lab) -> Repo {
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    repo.backup(&filled(lab, "web", "", 1 << 20, 5), "web/vda", &[]);
    repo
}

/// What anybody makes who can read `qdelta.toml`: a repository with forged points of the same guest, whose
/// own key is encrypted to this recipient.
fn forged(lab: &Lab, recipient: &str) -> PathBuf {
    let (path, key) = (lab.path("forged"), lab.path("forged.key"));
    let words = args!["init", path.as_path(), "--encrypt", "--recipient", recipient];
    run(qdelta([words, args!["--recovery", key.as_path()]].concat())).ok();
    let image = filled(lab, "other", "", 1 << 20, 6);
    Repo::at(path.clone()).without_ring().backup(&image, "web/vda", &[]);
    path
}

fn put_in_place(repo: &Repo, other: &Path) {
    fs::remove_dir_all(&repo.path).unwrap();
    copy_tree(other, &repo.path);
}

/// The value of a key of a repository's `qdelta.toml`.
fn recipient_of(repo: &Repo) -> String {
    let config = fs::read_to_string(repo.path.join("qdelta.toml")).unwrap();
    config.split("recipient = \"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// Commands that read, and those that hand out what they have read as the repository's.
fn commands(lab: &Lab) -> Vec<Vec<OsString>> {
    vec![
        args!["points"],
        args!["verify"],
        args!["restore", "web/vda", lab.path("out")],
        args!["key", "host", lab.path("h")],
        args!["key", "paper"],
        args!["key", "add", "x", "--recipient", OTHER],
    ]
}

const OTHER: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// The attacker's own key was encrypted to the recipient of the repository, so the recovery key opened it:
/// forged disks were restored with status 0, and `key host` made keys that encrypted to the attacker.
#[test]
fn the_recovery_key_opens_no_other_repository() {
    let lab = Lab::new();
    let repo = victim(&lab);
    let other = forged(&lab, &recipient_of(&repo));
    put_in_place(&repo, &other);
    let fresh = lab.path("fresh-state");
    for is_lost in [false, true] {
        for words in commands(&lab) {
            for state in [args![], args!["--state", fresh.as_path()]] {
                repo.run([words.clone(), state].concat()).fails_with(16);
            }
        }
        assert!(!lab.path("out").exists() && !lab.path("h").exists());
        if !is_lost {
            fs::remove_file(repo.path.join("qdelta.toml")).unwrap();
        }
    }
    let key = repo.key.as_ref().unwrap().as_path();
    run(qdelta(args!["init", "--repair", repo.path.as_path(), "--key-file", key])).fails_with(16);
    assert!(!repo.path.join("qdelta.toml").exists());
}

/// An identity that says not what it is may be an admin's. A host that has seen the repository before
/// knows its recipient; another one warns, and hands nothing out.
#[test]
fn a_host_knows_the_repository_again() {
    let lab = Lab::new();
    let repo = victim(&lab);
    let key = fs::read_to_string(repo.key.as_ref().unwrap()).unwrap();
    let bare = lab.path("bare.key");
    fs::write(&bare, key.lines().last().unwrap()).unwrap();
    let other = forged(&lab, &recipient_of(&repo));
    put_in_place(&repo, &other);
    let by_bare = repo.with_key(&bare);
    for words in commands(&lab) {
        let said = by_bare.run(words).fails_with(16);
        assert!(said.contains("another repository"), "{said}");
    }
    let fresh = lab.path("fresh-state");
    let on_fresh =
        |words: Vec<OsString>| by_bare.run([words, args!["--state", fresh.as_path()]].concat());
    for words in commands(&lab).split_off(3) {
        on_fresh(words).fails_with(16);
    }
    // The first use was one of those: where nothing is remembered, whoever reads is warned.
    fs::remove_dir_all(&fresh).unwrap();
    let first = on_fresh(args!["points"]).ok();
    assert!(first.stderr.contains("for the first time"), "{}", first.stderr);
    assert!(!on_fresh(args!["points"]).ok().stderr.contains("for the first time"));
    fs::remove_file(repo.path.join("qdelta.toml")).unwrap();
    fs::remove_dir_all(&fresh).unwrap();
    on_fresh(args!["points"]).fails_with(16);
}

/// A plain repository without `qdelta.toml` was read with a key, and `init --repair` made it sound.
#[test]
fn a_key_makes_no_plain_repository_of_what_it_does_not_open() {
    let lab = Lab::new();
    let repo = victim(&lab);
    let plain = lab.path("plain");
    run(qdelta(args!["init", plain.as_path()])).ok();
    Repo::at(plain.clone()).without_ring().backup(&lab.path("web"), "web/vda", &[]);
    fs::remove_file(plain.join("qdelta.toml")).unwrap();
    put_in_place(&repo, &plain);
    for words in commands(&lab) {
        repo.run(words).fails_with(16);
    }
    let key = repo.key.as_ref().unwrap().as_path();
    run(qdelta(args!["init", "--repair", repo.path.as_path(), "--key-file", key])).fails_with(16);
    assert!(!repo.path.join("qdelta.toml").exists() && !lab.path("out").exists());
}

/// The only plain names were lost, and the recovery key opened nothing any more.
#[test]
fn the_recovery_key_opens_what_has_lost_its_plain_files() {
    let lab = Lab::new();
    let repo = victim(&lab);
    let recipient = recipient_of(&repo);
    fs::remove_file(repo.path.join("qdelta.toml")).unwrap();
    fs::remove_dir_all(repo.path.join("keys")).unwrap();
    repo.restore("web/vda", &lab.path("out"), &[]).ok();
    let key = repo.key.as_ref().unwrap().as_path();
    run(qdelta(args!["init", "--repair", repo.path.as_path(), "--key-file", key])).ok();
    assert_eq!(recipient_of(&repo), recipient);
    repo.verify();
}

/// `prune` and `drill` took the line of the recipient for a mistake of the admin's. Every command that there is
/// must be named here.
#[test]
fn every_command_works_on_an_encrypted_repository() {
    let lab = Lab::new();
    let repo = victim(&lab);
    let image = lab.path("web");
    repo.backup(&image, "web/vda", &[]);
    let plain = lab.path("plain");
    run(qdelta(args!["init", plain.as_path()])).ok();
    let plain = Repo::at(plain);
    let words = |command: &str| -> Vec<Vec<OsString>> {
        match command {
            "backup" => vec![args!["backup", image.as_path(), "--disk", "web/vda"]],
            "restore" => vec![args!["restore", "web/vda", lab.path("out")]],
            "pin" | "unpin" => vec![args![command, "web@latest"]],
            "merge" => vec![args!["merge", "web", "--full"], args!["merge", "web@latest"]],
            "prune" => vec![args!["prune", "--keep-last", "1"]],
            "undelete" => vec![args!["undelete", "web"]],
            "drill" => vec![args!["drill", "web"]],
            "files" => vec![args!["files", "ls", "web:/"]],
            "key" => ["list", "verify", "paper"].map(|what| args!["key", what]).to_vec(),
            "copy" => vec![args!["copy", "--to", plain.path.as_path()]],
            "repair" => vec![args!["repair", "--from", plain.path.as_path()]],
            "points" | "space" | "verify" | "anchors" | "status" | "history" => {
                vec![args![command]]
            }
            // They hold on until they are ended; tests of their own run them on encrypted repositories.
            "mount" | "serve" => vec![],
            // They ask for no repository, or for the ones that a file of the host names.
            "init" | "replay" | "info" | "map" | "bench" | "completions" | "man" | "help"
            | "run" | "report" | "notify" | "config" | "export-kit" => vec![],
            other => panic!("say how {other} is tried on an encrypted repository"),
        }
    };
    let help = run(qdelta(args!["--help"])).ok().text();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands = list.lines().filter(|line| !line.starts_with("   "));
    for command in commands.map(|line| line.trim().split(' ').next().unwrap()) {
        for words in words(command) {
            let outcome = repo.run(words);
            let report = outcome.report();
            for wrong in ["unknown field", "is damaged", "panicked"] {
                assert!(!report.contains(wrong), "{command}: {report}");
            }
            assert!(outcome.code() != Some(16), "{command}: {report}");
        }
    }
    repo.run(args!["prune", "--keep-last", "1"]).ok();
    repo.verify();
}
