//! Completions and man pages.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{done, qdelta, word};

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

/// Who reads the first page alone has seen every command there is.
#[test]
fn the_first_page_names_every_command() {
    let page = include_str!("../../README.md");
    let help = done(&["--help"]);
    let listed = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands = listed.lines().filter_map(|line| line.strip_prefix("  "));
    let commands =
        commands.filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
    let names: Vec<&str> = commands.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 25, "{names:?}");
    let is_missing = |name: &&str| {
        *name != "help"
            && !page.contains(&format!("`qdelta {name}"))
            && !page.contains(&format!("`{name}`"))
    };
    let missing: Vec<&str> = names.into_iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
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
            "qdelta-config-check.1",
            "qdelta-config-example.1",
            "qdelta-config.1",
            "qdelta-copy.1",
            "qdelta-drill.1",
            "qdelta-export-kit.1",
            "qdelta-files-diff.1",
            "qdelta-files-get.1",
            "qdelta-files-ls.1",
            "qdelta-files-tar.1",
            "qdelta-files.1",
            "qdelta-history.1",
            "qdelta-info.1",
            "qdelta-init.1",
            "qdelta-key-add.1",
            "qdelta-key-host.1",
            "qdelta-key-list.1",
            "qdelta-key-paper.1",
            "qdelta-key-remove.1",
            "qdelta-key-verify.1",
            "qdelta-key.1",
            "qdelta-man.1",
            "qdelta-map.1",
            "qdelta-merge.1",
            "qdelta-mount.1",
            "qdelta-notify.1",
            "qdelta-pin.1",
            "qdelta-points.1",
            "qdelta-prune.1",
            "qdelta-repair.1",
            "qdelta-replay.1",
            "qdelta-report.1",
            "qdelta-restore.1",
            "qdelta-run.1",
            "qdelta-serve.1",
            "qdelta-space.1",
            "qdelta-status.1",
            "qdelta-undelete.1",
            "qdelta-unpin.1",
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

/// A repository with two points of a disk of a guest with a second one.
fn repository(dir: &std::path::Path) -> (String, Vec<String>) {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vda.raw"));
    done(&["init", &repo]);
    let mut points = Vec::new();
    for (disk, content) in [("web/vda", 1), ("web/vda", 2), ("web/vdb", 1)] {
        std::fs::write(&image, vec![content; 10_000]).unwrap();
        let text = done(&["backup", &image, "--disk", disk, "--json", "--repo", &repo]);
        let made: serde_json::Value = serde_json::from_str(&text).unwrap();
        points.push(made["point"].as_str().unwrap().to_owned());
    }
    (repo, points)
}

/// What a shell is told of a line.
fn complete(repo: &str, line: &str) -> Vec<String> {
    let output = qdelta().args(["complete", "--", line]).env("QDELTA_REPO", repo).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn disks_points_and_anchors_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, points) = repository(dir.path());
    assert_eq!(complete(&repo, "qdelta restore "), ["web", "web/vda", "web/vdb"]);
    assert_eq!(complete(&repo, "qdelta verify web/vdb"), ["web/vdb"]);
    let of_vda = ["latest", &points[1], &points[0]].map(|point| format!("web/vda@{point}"));
    assert_eq!(complete(&repo, "qdelta restore web/vda@"), of_vda);
    let last = format!("web/vda@{}", points[1]);
    assert_eq!(complete(&repo, &format!("qdelta -q verify {last}")), [last]);
    assert_eq!(complete(&repo, "qdelta restore --domain w"), ["web"]);
    assert_eq!(complete(&repo, "qdelta restore --domain web --at l"), ["latest"]);
    assert_eq!(complete(&repo, "qdelta restore --domain web --at 2").len(), 3);
    assert_eq!(complete(&repo, "qdelta points "), ["web", "web/vda", "web/vdb"]);
    // Files and options are the shell's own business, and a repository that is not there nobody's.
    for line in ["qdelta restore web ", "qdelta info ", "qdelta restore --", "qdelta restore no@"] {
        assert_eq!(complete(&repo, line), Vec::<String>::new(), "{line}");
    }
    assert_eq!(complete("/nowhere", "qdelta restore "), Vec::<String>::new());
    assert_eq!(complete("/nowhere", &format!("qdelta --repo {repo} points web/vdb")), ["web/vdb"]);
}

#[test]
fn what_nobody_types_is_in_no_completion() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(&["completions", shell]);
        assert!(!script.contains("watchdog"), "{shell}");
        // The scripts call it, and offer it to nobody.
        let offered = ["opts=\"init", "'complete:", "-a \"complete\""];
        for line in script.lines().filter(|line| offered.iter().any(|it| line.contains(it))) {
            assert!(!line.contains("complete ") && !line.contains("'complete:"), "{shell}: {line}");
        }
    }
}

/// Runs a shell on the completions of it, with the program on the path; gives what it printed.
fn in_shell(shell: &[&str], repo: &str, script: &str) -> Option<String> {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_qdelta"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let child = Command::new(shell[0])
        .args(&shell[1..])
        .arg(script)
        .env("PATH", path)
        .env("QDELTA_REPO", repo)
        .env("LANG", "C.UTF-8")
        .output();
    // Of the shells only bash is everywhere.
    if child.is_err() && shell[0] != "bash" {
        return None;
    }
    let output = child.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{shell:?}: {stderr}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Bash takes `@` for the end of a word, and replaces only what comes after it.
#[test]
fn bash_completes_disks_and_points() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, points) = repository(dir.path());
    let press = |words: &[&str], line: &str| -> Vec<String> {
        let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let script = format!(
            "source <(qdelta completions bash)\nCOMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}\n\
             COMP_WORDS=({list}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             _qdelta_values qdelta \"${{COMP_WORDS[COMP_CWORD]}}\" x\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let said = in_shell(&["bash", "--norc", "-c"], &repo, &script).unwrap();
        said.lines().map(str::to_owned).collect()
    };
    assert_eq!(
        press(&["qdelta", "restore", "we"], "qdelta restore we"),
        ["web", "web/vda", "web/vdb"]
    );
    assert_eq!(
        press(&["qdelta", "restore", "web/vda", "@"], "qdelta restore web/vda@"),
        ["latest", &points[1], &points[0]]
    );
    assert_eq!(
        press(&["qdelta", "restore", "web/vda", "@", "l"], "qdelta restore web/vda@l"),
        ["latest"]
    );
    // Everything else is as clap has it.
    assert!(press(&["qdelta", "ver"], "qdelta ver").contains(&"verify".to_owned()));
    let options = press(&["qdelta", "restore", "--in-"], "qdelta restore --in-");
    assert_eq!(options, ["--in-place"]);
}

#[test]
fn zsh_and_fish_understand_their_completions() {
    let dir = tempfile::tempdir().unwrap();
    let (repo, points) = repository(dir.path());
    let line = "qdelta restore web/vda@2";
    let fish = format!("qdelta completions fish | source; complete -C '{line}'");
    if let Some(said) = in_shell(&["fish", "--no-config", "-c"], &repo, &fish) {
        let offered: Vec<&str> = said.lines().collect();
        assert_eq!(offered.len(), 2, "{said}");
        assert!(said.contains(&format!("web/vda@{}", points[0])), "{said}");
        let options = "qdelta completions fish | source; complete -C 'qdelta restore --in'";
        let said = in_shell(&["fish", "--no-config", "-c"], &repo, options).unwrap();
        assert!(said.contains("--in-place"), "{said}");
    }
    // What compadd is given, in the place of a terminal that shows it.
    let zsh = format!(
        "autoload -Uz compinit; compinit -D -u -d {0}/dump; compadd() {{ shift; print -l -- \"$@\" }}\n\
         source <(qdelta completions zsh)\n\
         words=(qdelta restore 'web/vda@2'); CURRENT=3; LBUFFER='{line}'; _qdelta",
        dir.path().display()
    );
    if let Some(said) = in_shell(&["zsh", "-f", "-c"], &repo, &zsh) {
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains(&format!("web/vda@{}", points[0])), "{said}");
    }
}
