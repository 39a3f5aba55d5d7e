//! The repository between processes: a lock is held by one, and ends with it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use qdelta::ErrorKind;
use qdelta::vault::repository::{DomainName, Repository};

use crate::harness::faults::traced;
use crate::harness::images::filled;
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, qdelta, run};

/// Another process is kept out while the first lives, and let in after it was killed.
#[test]
fn another_process_is_kept_out_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(&dir.path().join("repo")).unwrap();
    let domain: DomainName = "vm".parse().unwrap();
    drop(repository.lock(&domain).unwrap());
    let mut holder = Command::new("flock")
        .args(["--no-fork", "--exclusive"])
        .arg(repository.path().join("vm/.lock"))
        .args(["sh", "-c", "echo held; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    assert_eq!(repository.lock(&domain).unwrap_err().kind(), ErrorKind::Busy);
    holder.kill().unwrap();
    holder.wait().unwrap();
    repository.lock(&domain).unwrap();
}

/// Not every filesystem renames without replacing: some say so with one error, some with another, and some
/// have no links either. Backups knew fewer of them than restores, and failed.
#[test]
fn a_filesystem_that_knows_no_rename_without_replacing_holds_points_and_disks() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 1 << 20, 1);
    for (index, error) in ["EINVAL", "ENOSYS", "EOPNOTSUPP"].into_iter().enumerate() {
        for links in [true, false] {
            let repo = Repo::init(lab.path(format!("repo{index}{links}"))).without_ring();
            let mut options = args!["-o", "/dev/null", "-e", "trace=renameat2,link,linkat"];
            options.extend(args!["-e", format!("inject=renameat2:error={error}")]);
            if !links {
                options.extend(args!["-e", "inject=link,linkat:error=EPERM"]);
            }
            let output = lab.path(format!("disk{index}{links}.raw"));
            let words = [
                args!["backup", image.as_path(), "--disk", "disk", "--io", "threads"],
                args!["restore", "disk", output.as_path(), "--io", "threads"],
            ];
            for words in words {
                run(traced(options.clone(), repo.args(words))).ok();
            }
            let again = repo.args(args!["restore", "disk", output.as_path(), "--io", "threads"]);
            run(traced(options, again)).fails_with(7);
            repo.verify();
            repo.assert_no_leftovers();
        }
    }
}

/// A repository below /dev was made in memory, and was gone when the machine started again: a device or a
/// mount point was meant.
#[test]
fn no_repository_is_made_among_the_kernels_own_files() {
    let lab = Lab::new();
    std::os::unix::fs::symlink("/dev", lab.path("link")).unwrap();
    let places = ["/dev/no-such-disk", "/proc/repo", "/sys/repo", "/tmp/../dev/no-such-disk"];
    for place in places.map(PathBuf::from).into_iter().chain([lab.path("link/no-such-disk")]) {
        for words in [args!["init", place.as_path()], args!["init", "--repo", place.as_path()]] {
            let said = run(qdelta(words)).fails_with(2);
            assert!(said.contains("no file is made in"), "{place:?}: {said}");
            assert!(!place.exists(), "{place:?}");
        }
    }
}
