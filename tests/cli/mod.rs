//! The command line as people and scripts meet it: statuses, help, results, manners.

mod bar;
mod bench;
mod jobs;
pub mod json;
mod manners;
mod misplaced;
mod pins;
mod points;
mod prunes;
mod shell;
mod words;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program, with nothing of this environment that changes what it says.
fn qdelta() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qdelta"));
    command.stdin(Stdio::null()).env_remove("QDELTA_REPO").env_remove("COLUMNS");
    command.env("STATE_DIRECTORY", crate::harness::state());
    command.env_remove("LC_ALL").env_remove("LC_CTYPE").env("LANG", "C.UTF-8");
    command
}

/// What a run came to.
struct Run {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs the program with these words.
fn run(words: &[&str]) -> Run {
    qdelta().args(words).output().unwrap().into()
}

/// Runs the program with these words, and demands that it does its work and says nothing else.
#[track_caller]
fn done(words: &[&str]) -> String {
    let run = run(words);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{words:?}: {}", run.stdout);
    run.stdout
}

/// Runs the program with these words, and demands that it fails with this status, says why on
/// standard error and nothing on standard output.
#[track_caller]
fn refused(status: i32, words: &[&str]) -> String {
    let run = run(words);
    assert_eq!((run.status, run.stdout.as_str()), (status, ""), "{words:?}: {}", run.stderr);
    assert!(run.stderr.starts_with("qdelta: "), "{words:?}: {}", run.stderr);
    run.stderr
}

/// A path as a word.
fn word(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a tool of QEMU, which must do its work.
#[track_caller]
fn tool(name: &str, words: &[&str]) {
    let output = Command::new(name).args(words).output().unwrap();
    assert!(output.status.success(), "{name} {words:?}: {output:?}");
}

/// Runs `qemu-img`.
#[track_caller]
fn qemu_img(words: &[&str]) {
    tool("qemu-img", words);
}

/// Runs commands of `qemu-io` on a qcow2 image.
#[track_caller]
fn qemu_io(image: &str, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    tool("qemu-io", &["-f", "qcow2", image].into_iter().chain(commands).collect::<Vec<_>>());
}
