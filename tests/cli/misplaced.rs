//! Repositories in which files are missing, in each other's place, or many: what a restore would
//! stumble over, a verification says before.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Run, qdelta};

/// A repository with a full and increments of a small raw disk.
struct Chain {
    dir: tempfile::TempDir,
}

impl Chain {
    fn of(points: u8) -> Self {
        let chain = Self { dir: tempfile::tempdir().unwrap() };
        chain.done(&["init", "repo"]);
        for number in 1..=points {
            std::fs::write(chain.dir.path().join("vm.raw"), [number; 10_000]).unwrap();
            chain.done(&["backup", "vm.raw"]);
        }
        chain
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = qdelta();
        command.args(words).env("QDELTA_REPO", "repo").current_dir(self.dir.path());
        command
    }

    fn run(&self, words: &[&str]) -> Run {
        self.command(words).output().unwrap().into()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let run = self.run(words);
        assert_eq!(run.status, 0, "{words:?}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    /// Verification finds damage, quickly and thoroughly; gives what it said.
    #[track_caller]
    fn damaged(&self) -> String {
        let quick = self.run(&["verify", "--quick"]);
        assert_eq!(quick.status, 4, "{}{}", quick.stdout, quick.stderr);
        let whole = self.run(&["verify"]);
        assert_eq!(whole.status, 4, "{}{}", whole.stdout, whole.stderr);
        whole.stdout
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let dir = self.dir.path().join("repo/vm").join(folder);
        let mut files: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    std::fs::rename(one, &aside).unwrap();
    std::fs::rename(other, one).unwrap();
    std::fs::rename(&aside, other).unwrap();
}

/// Somebody copied the archives and forgot the folder `points`: every recovery point was gone, and
/// `verify` said that there was nothing to verify yet, or, with some of the manifests left, that
/// everything was as it was written.
#[test]
fn a_lost_manifest_is_damage() {
    let chain = Chain::of(3);
    let archives = chain.files("disk");
    std::fs::remove_file(&chain.files("points")[2]).unwrap();
    let said = chain.damaged();
    assert!(said.contains(archives[2].file_name().unwrap().to_str().unwrap()), "{said}");
    assert!(said.contains("1 damage found"), "{said}");
    // The points that are left are well, each by itself.
    chain.done(&["verify", "vm@latest"]);
    for manifest in chain.files("points") {
        std::fs::remove_file(manifest).unwrap();
    }
    assert!(chain.damaged().contains("3 damages found"));
}

/// Two archives of a disk had changed places: each of their bytes was right, so `verify --quick`
/// was content, and no point above the full could be restored.
#[test]
fn archives_in_each_others_place_are_damage_even_to_a_quick_look() {
    let chain = Chain::of(3);
    let archives = chain.files("disk");
    swap(&archives[1], &archives[2]);
    let said = chain.damaged();
    assert!(said.contains("not what the manifest"), "{said}");
    assert_eq!(chain.run(&["restore", "vm", "out.raw"]).status, 4);
    swap(&archives[1], &archives[2]);
    chain.done(&["verify", "--quick"]);
}

/// A named pipe in the place of an archive made every command wait for somebody to write to it.
#[test]
fn a_pipe_in_the_place_of_an_archive_is_damage() {
    let chain = Chain::of(2);
    let archive = &chain.files("disk")[0];
    std::fs::remove_file(archive).unwrap();
    assert!(Command::new("mkfifo").arg(archive).status().unwrap().success());
    assert!(chain.damaged().contains("must be a regular file"));
    assert_eq!(chain.run(&["backup", "vm.raw"]).status, 4);
}

/// A chain keeps all its archives open. Longer than the usual limit of open files, it could neither
/// go on nor be restored, and `verify` took the last of them for damaged.
#[test]
fn a_chain_may_be_longer_than_the_limit_of_open_files() {
    let chain = Chain::of(40);
    let limited = |limit: &str, words: &[&str]| -> Run {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(chain.command(&[]).get_program());
        command.args(words).env("QDELTA_REPO", "repo").current_dir(chain.dir.path());
        command.output().unwrap().into()
    };
    for words in [&["restore", "vm", "out.raw"] as &[&str], &["backup", "vm.raw"], &["verify"]] {
        let run = limited("32:1024", words);
        assert_eq!(run.status, 0, "{words:?}: {}{}", run.stdout, run.stderr);
        // Where it can't be raised, nobody blames the archives.
        let run = limited("32:32", words);
        assert_eq!(run.status, 1, "{words:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains("ulimit -n"), "{}", run.stderr);
    }
}

/// Two images of one name in different folders are taken for one disk: that was not said.
#[test]
fn another_image_of_the_same_name_is_pointed_out() {
    let chain = Chain::of(1);
    std::fs::create_dir(chain.dir.path().join("other")).unwrap();
    std::fs::copy(chain.dir.path().join("vm.raw"), chain.dir.path().join("other/vm.raw")).unwrap();
    let run = chain.run(&["backup", "other/vm.raw"]);
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.contains("--disk"), "{}", run.stderr);
    // Who names the disk means it: a clone of the image has another path every night.
    let run = chain.run(&["backup", "other/vm.raw", "--disk", "vm"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}
