//! What was typed is what happens: options that would have no effect are refused before anything is
//! done. Which those are, `src/cli/combination/tests.rs` has for every pair.

use super::{Run, done, qdelta, refused, run};

/// `restore DISK OUTPUT --at TIME` restored the latest point, and called it proved.
#[test]
fn a_point_that_was_named_in_the_wrong_place_is_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image, output) = (at("repo"), at("vm.raw"), at("out.raw"));
    done(&["init", &repo]);
    for content in [1, 2] {
        std::fs::write(&image, vec![content; 10_000]).unwrap();
        done(&["backup", &image, "--repo", &repo]);
    }
    let before = std::fs::read(&image).unwrap();
    for words in [
        &["restore", "vm", &output, "--at", "2026-01-01"] as &[&str],
        &["restore", "vm", &output, "--at", "latest"],
        &["restore", "vm", &output, "--at", "latest", "--force"],
        &["restore", "vm", "--in-place", "--at", "2026-01-01"],
        &["restore", "vm", &image, "--in-place", "--at", "2026-01-01"],
        &["restore", "vm", &output, "--to", &at("folder")],
        &["restore", "vm", &output, "--rename", "other"],
        &["restore", "vm", &output, "--no-point"],
        &["restore", "vm", &output, "--no-point", "--force"],
        &["restore", "vm", &output, "--image-root", &at("x"), "--salvage"],
        &["restore", "vm", "-", "--force"],
        &["restore", "vm", "-", "--format", "qcow2"],
        &["backup", &image, "--exclude", "vdb"],
        &["backup", &image, "--consistency", "quiesced"],
        &["backup", &image, "--consistency", "crash"],
        &["backup", &image, "--freeze-max", "5000"],
        &["backup", &image, "--snapshot-command", "/bin/true"],
        &["backup", &image, "--with-host-config"],
        &["backup", &image, "--virsh", "virsh"],
        &["backup", &image, "--libvirt-config", "/etc/libvirt"],
        &["backup", &image, "--kind", "full", "--track", "bitmap"],
        &["backup", &image, "--track", "scan", "--sample", "9"],
        &["backup", &image, "--as-file", "--image-root", "/"],
        &["backup", &image, "--block-size", "4K"],
        &["init", &at("other")],
    ] {
        let said = refused(2, &[words, &["--repo", &repo]].concat());
        assert!(said.starts_with("qdelta: "), "{words:?}: {said}");
        assert!(said.lines().count() >= 2, "what to do is not said: {said}");
    }
    assert!(!std::path::Path::new(&output).exists());
    assert_eq!(std::fs::read(&image).unwrap(), before);
    assert!(done(&["points", "--repo", &repo]).contains("2 points"), "a backup was made");
    // The same words where they belong.
    done(&["restore", "vm@latest", &output, "--repo", &repo]);
}

/// Who sets a variable for all commands has typed nothing.
#[test]
fn variables_are_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vm.raw"));
    std::fs::write(&image, vec![1; 10_000]).unwrap();
    done(&["init", &repo]);
    for words in [
        &["init", &at("other")] as &[&str],
        &["backup", &image],
        &["restore", "vm", &at("out.raw")],
        &["info", &image],
        &["completions", "bash"],
    ] {
        let mut command = qdelta();
        command.args(words).env("QDELTA_REPO", &repo).env("QDELTA_VIRSH", "/no/virsh");
        let run = Run::from(command.output().unwrap());
        assert_eq!(run.status, 0, "{words:?}: {}", run.stderr);
    }
}

/// Ages and months are times like any other.
#[test]
fn how_long_ago_is_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (repo, image) = (at("repo"), at("vm.raw"));
    std::fs::write(&image, vec![1; 10_000]).unwrap();
    done(&["init", &repo]);
    done(&["backup", &image, "--repo", &repo]);
    let this_year = jiff::Zoned::now().strftime("%Y").to_string();
    let this_month = jiff::Zoned::now().strftime("%Y-%m").to_string();
    for now in ["0s", "today", &this_year, &this_month] {
        done(&["verify", &format!("vm@{now}"), "--repo", &repo]);
    }
    for before in ["3d", "90m", "2w", "1mo", "1y", "2001", "2001-06"] {
        let said = run(&["verify", &format!("vm@{before}"), "--repo", &repo]);
        assert_eq!(said.status, 6, "{before}: {}", said.stderr);
    }
}
