//! The repository between processes: a lock is held by one, and ends with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use qdelta::ErrorKind;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{DomainName, Repository};

use crate::harness::faults::traced;
use crate::harness::images::filled;
use crate::harness::repo::Repo;
use crate::harness::run::{as_root, binary};
use crate::harness::{Lab, args, qdelta, run};

/// Another process is kept out while the first lives, and let in after it was killed.
#[test]
fn another_process_is_kept_out_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::init(&dir.path().join("repo")).unwrap();
    let domain: DomainName = "vm".parse().unwrap();
    drop(repository.lock(&domain, Wait::UNHEARD).unwrap());
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
    assert_eq!(repository.lock(&domain, Wait::UNHEARD).unwrap_err().kind(), ErrorKind::Busy);
    holder.kill().unwrap();
    holder.wait().unwrap();
    repository.lock(&domain, Wait::UNHEARD).unwrap();
}

/// What somebody else does in the domain while a command begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    Writer,
    Reader,
    Remover,
}

impl Beside {
    /// The locks that whoever does this holds.
    fn locks(self, repo: &Repo) -> Vec<File> {
        let file = |name: &str| File::open(repo.place_of("vm").join(name)).unwrap();
        let alone = |name: &str| {
            let file = file(name);
            file.lock().unwrap();
            file
        };
        match self {
            Self::Nobody => Vec::new(),
            Self::Writer => vec![alone(".lock")],
            Self::Reader => {
                let file = file(".keep");
                file.lock_shared().unwrap();
                vec![file]
            }
            Self::Remover => vec![alone(".lock"), alone(".keep")],
        }
    }
}

/// The table of ARCHITECTURE.md: who goes on beside whom, and who is refused.
#[test]
fn every_operation_beside_every_other_goes_on_or_is_refused_at_once() {
    use Beside::{Nobody, Reader, Remover, Writer};
    let lab = Lab::new();
    let image = filled(&lab, "vm.qcow2", "", 1 << 20, 1);
    let repo = Repo::init(lab.path("repo"));
    run(qdelta(repo.args(args!["backup", image.as_path()]))).ok();
    // Of an encrypted one, what the key takes out is replayed.
    let archive = lab.path("archive.qdelta");
    repo.take_out(&repo.archives()[0], &archive);
    let (restored, replayed) = (lab.path("restored.raw"), lab.path("replayed.raw"));
    let changes = [Writer, Remover];
    // The command, whom it is refused beside, and its status where it goes on.
    let operations: [(Vec<OsString>, &[Beside], i32); 10] = [
        (args!["backup", image.as_path()], &changes, 0),
        (args!["restore", "vm", image.as_path(), "--in-place"], &changes, 0),
        (args!["restore", "vm", restored.as_path(), "--force"], &[Remover], 0),
        (args!["verify"], &[Remover], 0),
        (args!["replay", archive.as_path(), "--output", replayed.as_path(), "--force"], &[], 0),
        (args!["points"], &[], 0),
        (args!["anchors"], &[], 0),
        (args!["anchors", "vm", "--remove-all"], &changes, 0),
        (args!["init"], &[Nobody, Writer, Reader, Remover], 7),
        (args!["init", "--repair"], &[], 0),
    ];
    for (words, refused, status) in operations {
        for beside in [Nobody, Writer, Reader, Remover] {
            let held = beside.locks(&repo);
            let outcome = run(qdelta(repo.args(words.clone()))).sane();
            let expected = match (refused.contains(&beside), status) {
                (true, 0) => 5,
                _ => status,
            };
            assert_eq!(outcome.code(), Some(expected), "{beside:?}\n{}", outcome.report());
            drop(held);
        }
    }
    repo.verify();
    repo.assert_no_leftovers();
}

/// Who can write nothing can restore: also where no lock was ever made.
#[test]
fn a_repository_that_is_mounted_read_only_is_read() {
    let lab = Lab::new();
    let image = filled(&lab, "vm.qcow2", "", 1 << 20, 1);
    let repo = Repo::init(lab.path("repo"));
    run(qdelta(repo.args(args!["backup", image.as_path()]))).ok();
    for round in 0..2 {
        let output = lab.path(format!("restored{round}.raw"));
        for words in [args!["restore", "vm", output.as_path()], args!["verify"], args!["points"]] {
            let mut all = args!["-m", "sh", "-c"];
            all.extend(args![
                "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && \
                 ! touch \"$0/x\" 2>/dev/null && exec \"$@\"",
                repo.path.as_path(),
                binary()
            ]);
            all.extend(repo.args(words));
            run(as_root("unshare", all)).ok();
        }
        std::fs::remove_file(repo.place_of("vm").join(".keep")).unwrap_or_default();
    }
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
