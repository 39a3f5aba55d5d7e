//! The repository between processes: a lock is held by one, and ends with it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use qdelta::ErrorKind;
use qdelta::repository::{DomainName, Repository};

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
