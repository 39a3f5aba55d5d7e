//! The packages as far as they can be looked at without installing them: what they hold, and that two of the same
//! commit are the same. scripts/package-trial installs, uses, upgrades and removes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::run::{binary, script};
use crate::harness::{Lab, args, qdelta, run, tool};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Makes the packages of a program that calls the one under test: so nothing large is compressed.
fn pack(lab: &Lab, out: &str) -> PathBuf {
    let program = lab.path("program");
    script(&program, &format!("#!/bin/sh\nexec {} \"$@\"\n", binary().display()));
    let out = lab.path(out);
    let words = args!["--program", program, "--out", &out];
    let mut command = tool(top().join("scripts/package").to_str().unwrap(), words);
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    run(command).ok();
    out
}

/// The paths of all files below a folder, as they begin below it.
fn files_below(folder: &Path) -> BTreeSet<String> {
    let (mut files, mut folders) = (BTreeSet::new(), vec![folder.to_path_buf()]);
    while let Some(of) = folders.pop() {
        for entry in fs::read_dir(of).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    files.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
    }
    files
}

#[test]
fn packages_hold_what_the_list_says_and_are_the_same_every_time() {
    let lab = Lab::new();
    let (first, second) = (pack(&lab, "first"), pack(&lab, "second"));
    let names = files_below(&first);
    let ends = |end: &str| names.iter().find(|name| name.ends_with(end)).unwrap();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in &names {
        assert_eq!(
            fs::read(first.join(name)).unwrap(),
            fs::read(second.join(name)).unwrap(),
            "{name}"
        );
    }

    let root = lab.path("root");
    run(tool("dpkg-deb", args!["-x", first.join(ends(".deb")), &root])).ok();
    let files = files_below(&root);
    let listed = run(tool("rpm", args!["-qlp", "--nosignature", first.join(ends(".rpm"))])).ok();
    let in_rpm: BTreeSet<String> = listed.text().lines().map(|line| line[1..].to_owned()).collect();
    for file in &files {
        let there = file.replace("/vendor-completions/", "/site-functions/");
        assert!(in_rpm.contains(&there), "{file} is not in the rpm");
    }
    for file in [
        "usr/bin/qdelta",
        "usr/lib/systemd/system/qdelta.timer",
        "usr/lib/systemd/system/qdelta-failed@.service",
        "usr/lib/qdelta/snapshot-commands/external-snapshot",
        "usr/lib/qdelta/drill-boot",
        "usr/share/man/man1/qdelta.1.gz",
        "usr/share/man/man1/qdelta-run.1.gz",
        "usr/share/bash-completion/completions/qdelta",
        "usr/share/zsh/vendor-completions/_qdelta",
        "usr/share/fish/vendor_completions.d/qdelta.fish",
        "usr/share/doc/qdelta/docs/jobs.md",
        "usr/share/doc/qdelta/copyright",
    ] {
        assert!(files.contains(file), "{file} is missing: {files:#?}");
    }
    // Nothing of a package lies where an admin writes: /etc/qdelta is there, and empty.
    assert!(root.join("etc/qdelta").is_dir());
    assert!(files.iter().all(|file| file.starts_with("usr/")), "{files:?}");
    let example =
        fs::read_to_string(root.join("usr/share/doc/qdelta/examples/qdelta.toml")).unwrap();
    assert_eq!(example, run(qdelta(args!["config", "example"])).ok().text());

    let units = root.join("usr/lib/systemd/system");
    for unit in fs::read_dir(&units).unwrap() {
        let path = unit.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("WantedBy=multi-user"), "{}", path.display());
        fs::write(&path, text.replace("/usr/", &format!("{}/usr/", root.display()))).unwrap();
    }
    let paths = ["qdelta.service", "qdelta.timer", "qdelta-failed@.service", "qdelta-serve.socket"];
    let words = args!["verify", "--man=no"].into_iter();
    let words = words.chain(paths.map(|unit| units.join(unit).into_os_string()));
    let said = run(tool("systemd-analyze", words.collect())).ok();
    assert_eq!((said.text().as_str(), said.stderr.as_str()), ("", ""));
}

/// A mount namespace of a service's own gives its mounts other numbers, and trackers fall back to reading every
/// image as a whole: each option of systemd that brings one is looked for in the unit of jobs.
#[test]
fn the_unit_of_jobs_has_no_mount_namespace() {
    let text = fs::read_to_string(top().join("scripts/packaging/qdelta.service")).unwrap();
    let keys: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key)
        .collect();
    for key in [
        "RootImage",
        "RootDirectory",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "MountImages",
        "ExtensionImages",
        "MountFlags",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateNetwork",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "PrivateIPC",
        "PrivateUsers",
        "LogNamespace",
        "DynamicUser",
        "JoinsNamespaceOf",
        "NetworkNamespacePath",
        "ProtectClock",
    ] {
        assert!(!keys.contains(&key), "{key}");
    }
    assert!(keys.contains(&"NoNewPrivileges") && keys.contains(&"CapabilityBoundingSet"));
}

/// With any `[notify.NAME]` in the file nobody had a mail of a failed run, also where nobody could be told, or a guest
/// was frozen.
#[test]
fn a_failed_unit_is_told_by_mail_unless_somebody_was_told() {
    let lab = Lab::new();
    let at = |name: &str| lab.path(name).display().to_string();
    let text = fs::read_to_string(top().join("scripts/packaging/failed")).unwrap();
    let text = text.replace("/usr/sbin/sendmail /usr/lib/sendmail", &at("sendmail"));
    script(&lab.path("failed"), &text);
    script(&lab.path("sendmail"), &format!("#!/bin/sh\nexec cat >{}\n", at("mail")));
    // What the history has of runs, and of telling: the run, the act and the end of each record.
    let ran = |run, end| [(run, "run", "begun"), (run, "run", "failed"), (run, "notify", end)];
    // A run that told nobody was silent if the one before had told something else.
    let before = || ran("a", "done").into_iter();
    let none = || [("b", "run", "begun"), ("b", "run", "failed")].into_iter();
    for (status, records, is_mailed) in [
        (12, before().chain(ran("b", "done")).collect::<Vec<_>>(), false),
        (12, before().chain(ran("b", "failed")).collect(), true),
        (12, before().chain(none()).collect(), true),
        (12, vec![], true),
        (11, before().collect(), true),
        (1, before().collect(), true),
    ] {
        script(&lab.path("systemctl"), &format!("#!/bin/sh\necho {status}\n"));
        let record = |(run, act, end): &(&str, &str, &str)| {
            format!(
                "      \"run\": \"{run}\",\n      \"act\": \"{act}\",\n      \"end\": \"{end}\",\n"
            )
        };
        let json: String = records.iter().map(record).collect();
        script(&lab.path("qdelta"), &format!("#!/bin/sh\ncat <<'EOF'\n{json}EOF\n"));
        let mut command = std::process::Command::new(lab.path("failed"));
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg("qdelta.service").env("PATH", format!("{}:{path}", lab.dir().display()));
        run(command).ok();
        let was_mailed = fs::remove_file(lab.path("mail")).is_ok();
        assert_eq!(was_mailed, is_mailed, "{status} {records:?}");
    }
}
