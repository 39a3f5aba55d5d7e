//! Completions and man pages.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{done, word};

#[test]
fn completions_know_commands_and_options() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(&["completions", shell]);
        for wanted in ["backup", "restore", "image-root", "differential", "QDELTA", "qdelta"] {
            let wanted = if wanted == "QDELTA" { "repo" } else { wanted };
            assert!(script.contains(wanted), "{shell}: no {wanted}");
        }
    }
}

#[test]
fn bash_understands_its_completions() {
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    let script = done(&["completions", "bash"]);
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn every_command_has_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man/man1");
    let written = done(&["man", word(&pages)]);
    let mut names: Vec<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "qdelta-anchors.1",
            "qdelta-backup.1",
            "qdelta-bench.1",
            "qdelta-completions.1",
            "qdelta-info.1",
            "qdelta-init.1",
            "qdelta-man.1",
            "qdelta-map.1",
            "qdelta-points.1",
            "qdelta-replay.1",
            "qdelta-restore.1",
            "qdelta-verify.1",
            "qdelta.1",
        ]
    );
    for name in &names {
        assert!(written.contains(name.as_str()), "{name} is not in what was said");
        let page = std::fs::read_to_string(pages.join(name)).unwrap();
        for section in ["NAME", "SYNOPSIS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"] {
            let quoted = format!(".SH \"{section}\"");
            let found = page.contains(&format!(".SH {section}")) || page.contains(&quoted);
            assert!(found, "{name} has no {section}:\n{page}");
        }
        assert!(page.contains("130"), "{name} does not give the status of an interruption");
    }
    let backup = std::fs::read_to_string(pages.join("qdelta-backup.1")).unwrap();
    for option in ["disk", "kind", "level", "snapshot", "repo", "json"] {
        assert!(backup.contains(&format!("\\-\\-{option}")), "--{option} is not in\n{backup}");
    }
    // Again into the same folder: they are replaced.
    done(&["man", word(&pages)]);
}
