//! Runs a program with a deadline, keeps all that it said, and fails with all of it.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::store::KEY;

/// Nothing that a test starts may take longer: what does, hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    /// The program must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "this should have succeeded:\n{}", self.report());
        self.sane()
    }

    /// The program must have ended with this status, after saying why; gives what it said.
    #[track_caller]
    pub fn fails_with(self, status: i32) -> String {
        assert_eq!(self.status.code(), Some(status), "exit status\n{}", self.report());
        let outcome = self.sane();
        assert!(!outcome.stderr.trim().is_empty(), "it said nothing:\n{}", outcome.report());
        outcome.stderr
    }

    /// Whatever it did, it must not have panicked or crashed.
    #[track_caller]
    pub fn sane(self) -> Self {
        let crashed = matches!(self.status.signal(), Some(4 | 6 | 7 | 8 | 11));
        assert!(
            !crashed && self.status.code() != Some(101) && !self.stderr.contains("panicked at"),
            "it crashed:\n{}",
            self.report()
        );
        self
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard output, which must be one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON: {error}\n{}", self.report()))
    }

    pub fn report(&self) -> String {
        let text = self.text();
        let shown: String = text.chars().take(4000).collect();
        format!(
            "$ {}\n{}\n--- stdout ({} bytes)\n{shown}\n--- stderr\n{}",
            self.command,
            self.status,
            self.stdout.len(),
            self.stderr
        )
    }
}

/// The program under test, with nothing of the caller's settings.
pub fn qdelta(arguments: Vec<OsString>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments);
    in_tests(&mut command);
    command
}

/// Gives a program that starts the program under test the settings of the tests, and nothing of the caller's.
pub fn in_tests(command: &mut Command) {
    command.env_remove("QDELTA_REPO").env_remove("RUST_LOG").env("STATE_DIRECTORY", state());
    in_store(command);
}

/// Gives a program what the tests' own store knows it by, and nothing of the user's.
fn in_store(command: &mut Command) {
    command.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1);
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("CACHE_DIRECTORY", state().join("cache"));
}

/// Gives a program another time, in UTC: it stands still, or runs from there with an `@` before it. The program
/// `faketime` itself would stand between a test and whoever is to get a signal.
pub fn faketime(command: &mut Command, time: &str) {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut places = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    let library = places.find(|place| place.exists());
    let library = library.expect("the package faketime is needed: scripts/test installs it");
    command.env("TZ", "UTC").env("LD_PRELOAD", library).env("FAKETIME", time);
    // Times of files are those of the machine, and so is the time that waits take.
    command.env("NO_FAKE_STAT", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
}

/// Where the program keeps the state of this host: each repository has a folder in it.
pub fn state() -> &'static Path {
    Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
}

/// Where the program under test lies.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_qdelta"))
}

/// Another program, also one of those that only the administrator has on the path.
pub fn tool(name: &str, arguments: Vec<OsString>) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    in_store(&mut command);
    command
}

/// Makes a program of a script. Another process writes it: what this one has open to be written is for a
/// moment open in every program that another test is just starting, and can't be run by then.
#[track_caller]
pub fn script(program: &Path, text: &str) {
    let source = program.with_extension("text");
    std::fs::write(&source, text).unwrap();
    run(tool("install", vec!["-m".into(), "755".into(), source.into(), program.into()])).ok();
}

/// A program that must run with all rights: as it is for root, through `sudo` for others.
pub fn as_root(name: &str, arguments: Vec<OsString>) -> Command {
    if rustix::process::geteuid().is_root() {
        return tool(name, arguments);
    }
    let mut all = vec![OsString::from("-n"), OsString::from(name)];
    all.extend(arguments);
    tool("sudo", all)
}

/// Runs `command` to its end.
#[track_caller]
pub fn run(mut command: Command) -> Outcome {
    finish(start(&mut command), describe(&command))
}

/// Starts `command` with its output caught.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot start {command:?}: {error}; scripts/test installs what the tests need")
        })
}

/// Waits for a started program and takes all that it said.
#[track_caller]
pub fn finish(mut child: Child, command: String) -> Outcome {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no end after {DEADLINE:?}: {command}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    let stdout = stdout.join().unwrap();
    let stderr = String::from_utf8_lossy(&stderr.join().unwrap()).into_owned();
    Outcome { command, status, stdout, stderr }
}

/// The command as one would type it.
pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.is_empty() || argument.contains([' ', '{', '"', '*']) {
            text.push_str(&format!(" '{argument}'"));
        } else {
            text.push_str(&format!(" {argument}"));
        }
    }
    text
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
