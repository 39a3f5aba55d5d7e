//! Restores to pipes and to standard output: what can't be written is told as what it is, and nobody waits
//! for a reader that never comes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::images::filled;
use crate::harness::repo::Repo;
use crate::harness::run::{binary, describe, finish, in_tests, start};
use crate::harness::{Lab, args, qdelta, run, tool};

const MIB: u64 = 1 << 20;

fn repo(lab: &Lab) -> Repo {
    let repo = Repo::init(lab.path("repo")).without_ring();
    repo.backup(&filled(lab, "disk.qcow2", "", 4 * MIB, 1), "disk", &[]);
    repo
}

/// Gives a shell the program as `$Q`, and the repository as `$R`.
fn of(repo: &Repo, command: &mut Command) {
    in_tests(command);
    command.env("Q", binary()).env("R", &repo.path);
    command.envs(repo.key.iter().map(|key| ("QDELTA_KEY_FILE", key)));
}

/// A shell with the program as `$Q`, restoring the disk to standard output.
fn shell(repo: &Repo, redirection: &str) -> Command {
    let text = format!("exec $Q --repo $R restore disk - {redirection}");
    let mut command = tool("sh", args!["-c", text]);
    of(repo, &mut command);
    command
}

/// Standard output was closed: the disk went nowhere, and "restored and proved" was said of it.
#[test]
fn a_closed_or_full_standard_output_is_no_success() {
    let lab = Lab::new();
    let repo = repo(&lab);
    for (redirection, status) in [(">&-", 1), (">/dev/full", 8), ("1</dev/null", 1)] {
        let said = run(shell(&repo, redirection)).fails_with(status);
        assert!(said.contains("standard output"), "{redirection}: {said}");
        assert!(!said.contains("proved"), "{redirection}: {said}");
    }
    for redirection in [">/dev/null", "1<>/dev/null"] {
        run(shell(&repo, redirection)).ok();
    }
}

/// In the place of a closed standard output, Rust's runtime opens /dev/null, and its standard library calls
/// it a success when a descriptor can't be written to: lists and results went nowhere, with status 0.
/// Others open /dev/null just as the runtime does because they want nothing of the output: that is sound.
#[test]
fn every_command_tells_that_standard_output_takes_nothing() {
    let lab = Lab::new();
    let repo = repo(&lab);
    let shown = [
        "--help",
        "--version",
        "backup --help",
        "backup $I --disk disk",
        "backup $I --disk disk --json",
        "points",
        "points --json --quiet",
        "verify",
        "anchors",
        "info $I",
        "map $I",
        "map $I --json",
        "completions bash",
        "restore disk $O",
    ];
    let run_with = |words: &str, redirection: &str| {
        let text = format!("exec $Q --repo $R {words} {redirection}");
        let mut command = tool("sh", args!["-c", text]);
        of(&repo, &mut command);
        command.env("I", lab.path("disk.qcow2"));
        command.env("O", lab.path("out.raw"));
        let _ = std::fs::remove_file(lab.path("out.raw"));
        run(command)
    };
    for words in shown {
        for redirection in [">&-", "1</dev/null"] {
            let said = run_with(words, redirection).fails_with(1);
            assert!(said.contains("standard output"), "{words} {redirection}: {said}");
        }
        for redirection in [">/dev/null", "1<>/dev/null", "| head -c 1"] {
            run_with(words, redirection).ok();
        }
    }
    // Nothing was to be shown, so nothing is lost.
    run_with("backup $I --disk disk --quiet", ">&-").ok();
}

/// What a command says of its work is lost, and the work is done.
#[test]
fn a_report_that_cannot_be_written_is_no_failure_of_the_repository() {
    let lab = Lab::new();
    let repo = repo(&lab);
    for words in ["backup $I --disk disk", "backup $I --disk disk --json", "points", "verify"] {
        let text = format!("exec $Q --repo $R {words} >/dev/full");
        let mut command = tool("sh", args!["-c", text]);
        of(&repo, &mut command);
        command.env("I", lab.path("disk.qcow2"));
        let said = run(command).fails_with(1);
        assert!(said.contains("standard output"), "{words}: {said}");
    }
    assert_eq!(repo.points("disk").len(), 3, "the backups were made");
}

fn interrupted(mut command: Command, signal: rustix::process::Signal, what: &str) {
    let child: Child = start(&mut command);
    std::thread::sleep(Duration::from_millis(700));
    wait_until_heard(&child, signal);
    let begin = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    finish(child, describe(&command)).fails_with(130);
    // Before the reader that does not read ends.
    assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {:?}", begin.elapsed());
}

/// Waits until a program listens for a signal: on a busy machine that takes its time.
fn wait_until_heard(child: &Child, signal: rustix::process::Signal) {
    let status = format!("/proc/{}/status", child.id());
    let hears = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or_default();
        mask >> (signal.as_raw() - 1) & 1 == 1
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !hears() {
        assert!(Instant::now() < end, "it does not listen for {signal:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody opened the pipe, or he who did stopped to read: the first signal changed nothing.
#[test]
fn a_pipe_that_nobody_reads_ends_with_the_first_signal() {
    use rustix::process::Signal;
    let lab = Lab::new();
    let repo = repo(&lab);
    let pipe = lab.path("pipe");
    run(tool("mkfifo", args![pipe.as_path()])).ok();
    let command = || qdelta(repo.args(args!["restore", "disk", pipe.as_path()]));
    for signal in [Signal::TERM, Signal::INT] {
        interrupted(command(), signal, "no reader");
        let stalled = open_to_read(&pipe);
        interrupted(command(), signal, "a reader that does not read");
        drop(stalled);
        // Standard output, and a reader that does not read from it.
        interrupted(qdelta(repo.args(args!["restore", "disk", "-"])).stalled(), signal, "stalled");
    }
}

/// A reader that comes late gets the whole disk.
#[test]
fn a_reader_that_comes_late_gets_all() {
    let lab = Lab::new();
    let repo = repo(&lab);
    let (pipe, expected) = (lab.path("pipe"), lab.path("expected.raw"));
    repo.restore("disk", &expected, &["--format", "raw"]).ok();
    run(tool("mkfifo", args![pipe.as_path()])).ok();
    let mut command = qdelta(repo.args(args!["restore", "disk", pipe.as_path()]));
    let child = start(&mut command);
    std::thread::sleep(Duration::from_millis(300));
    let mut bytes = Vec::new();
    File::open(&pipe).unwrap().read_to_end(&mut bytes).unwrap();
    finish(child, describe(&command)).ok();
    assert!(bytes == std::fs::read(&expected).unwrap());
}

/// The reading end, without waiting for a writer.
fn open_to_read(pipe: &Path) -> File {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    File::options().read(true).custom_flags(flags).open(pipe).unwrap()
}

trait Stalled {
    fn stalled(self) -> Command;
}

impl Stalled for Command {
    /// The same command, with an output that is read by a program that sleeps.
    fn stalled(self) -> Command {
        let mut words =
            args!["-c", "exec \"$@\" > >(exec sleep 40 >/dev/null 2>&1)", "-", self.get_program()];
        words.extend(self.get_args().map(Into::into));
        let mut command = tool("bash", words);
        command.stdin(Stdio::null());
        command
    }
}
