//! Snapshot commands: the admin's own programs that make the moment of a guest where no filesystem can.
//! Here is how they are called, in both versions of the protocol; `docs/snapshot-commands.md` tells it to
//! those who write them.
//!
//! What a command answers is not believed here: the flow looks at every file that it names.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::guest::program::{self, End, Failure, Said, Started, Stop};

/// How long `check` and `prepare` may take.
pub(crate) const CHECK_MAX: Duration = Duration::from_secs(60);
/// How long `recover` and `release` may take: what a guest has written meanwhile is copied in them.
const MEND_MAX: Duration = Duration::from_secs(2 * 3600);
/// How long `release` may take in the first version.
const RELEASE_MAX: Duration = Duration::from_secs(120);
/// The newer version of the protocol.
pub(crate) const VERSION: u32 = 2;

/// What a command is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    /// Would it work here? The first call of every backup.
    Check,
    /// Mend what a run has left that was cut off.
    Recover,
    /// Do what need not be done while the guest stands still.
    Prepare,
    /// Make the moment.
    Snapshot,
    /// Take away what was made.
    Release,
}

/// What the guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuestState {
    Running,
    Paused,
    Stopped,
}

/// What a command is told, as JSON on its standard input.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    pub protocol: u32,
    pub verb: Verb,
    /// The domain, as libvirt has it.
    pub domain: String,
    pub uuid: Option<String>,
    /// The hypervisor to connect to; none is the default of `virsh`.
    pub connect: Option<String>,
    pub state: GuestState,
    /// The process of this backup.
    pub pid: u32,
    /// The point that is to be made; not yet known in `check` and `recover`.
    pub point: Option<String>,
    /// What is made for this point is called so, or begins with it.
    pub name: Option<String>,
    /// With what the names of all backups of this guest into this repository end.
    pub owner: String,
    /// How long the call may take, in milliseconds.
    pub limit_ms: u64,
    /// Whether something is to be left that shows the next backup what has changed.
    pub track: bool,
    pub disks: Vec<DiskRequest>,
    /// The point was made; only in `release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<bool>,
}

/// A disk that a command is to make the moment of.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DiskRequest {
    /// Its target, such as `vda`.
    pub disk: String,
    pub format: String,
    /// The files or block devices that the guest writes to: the image first, then its external data
    /// file.
    #[serde(serialize_with = "crate::base::json::serialize_all")]
    pub files: Vec<PathBuf>,
    /// What a bitmap of this disk alone is to be called, if one is to be left.
    pub bitmap: Option<String>,
    /// With what the names of all such bitmaps of this disk and repository end.
    pub owner: String,
    /// What the latest point of the disk has left, which is needed until there is another point.
    pub since: Option<String>,
    /// Bytes of the disk whose bits a new bitmap is to have from the beginning.
    pub marks: Vec<u64>,
    /// The length of the disk in bytes; not yet known in `check` and `recover`.
    pub size: u64,
}

/// What a command answers, as JSON on its standard output.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    protocol: u32,
    /// What the admin should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// In the answer to `check`: no earlier run has left anything, so that `recover` need not be called.
    #[serde(default)]
    pub clean: bool,
    /// In the answer to `check`: the command reads its request before it does anything, so that it may be started for
    /// `snapshot` before the guest is frozen.
    #[serde(default)]
    waits: bool,
    /// In the answer to `snapshot`: every disk of the request.
    #[serde(default)]
    pub disks: Vec<DiskAnswer>,
}

/// Where a disk can be read as it was at the moment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskAnswer {
    pub disk: String,
    /// What is to be read in the place of each file of the request.
    #[serde(default)]
    pub files: Vec<FileAnswer>,
    /// An NBD export of the disk in the place of files.
    #[serde(default)]
    pub nbd: Option<NbdAnswer>,
    /// The bitmap or checkpoint that records what the guest writes from the moment on, or from an earlier
    /// one: what shows the next backup what has changed.
    #[serde(default)]
    pub leaves: Option<String>,
}

/// What is to be read in the place of a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileAnswer {
    pub file: PathBuf,
    pub read: PathBuf,
}

/// An NBD export.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NbdAnswer {
    /// `nbd+unix:///EXPORT?socket=PATH` or `nbd://…`.
    pub uri: String,
    /// The metadata context of a bitmap, such as `qemu:dirty-bitmap:backup-vda`.
    #[serde(default)]
    pub bitmap: Option<String>,
    /// What `leaves` was at the point that the bitmap counts from.
    #[serde(default)]
    pub since: Option<String>,
    /// That was given the marks of the request of then.
    #[serde(default)]
    pub marked: bool,
}

/// A command whose version is known.
pub(crate) struct SnapshotCommand {
    program: PathBuf,
    /// The first version has only `create` and `release` of one file.
    is_first: bool,
    /// Nothing of an earlier run is to be mended.
    is_clean: bool,
    /// It may be started before there is a request.
    waits: bool,
    /// Started for `snapshot`, and not yet asked.
    started: Option<Started>,
}

impl SnapshotCommand {
    /// Finds out which version a command has: one of the first version has nothing to say to `check`.
    ///
    /// # Errors
    /// It can't be started, fails, or says that it would not work here. A command that fails without an
    /// answer is not taken for one of the first version: what it should have mended would stay.
    pub fn check(
        program: &Path,
        request: &Request,
        stop: Option<Stop<'_>>,
    ) -> Result<(Self, Vec<String>)> {
        let program = program.to_path_buf();
        let mut command =
            Self { program, is_first: false, is_clean: false, waits: false, started: None };
        let request = Request { verb: Verb::Check, ..request.clone() };
        let (status, said) = command.run((&request, None), CHECK_MAX, stop)?;
        if status.success() && said.stdout.trim_ascii().is_empty() {
            // Nobody else could mend anything.
            (command.is_first, command.is_clean) = (true, true);
            return Ok((command, Vec::new()));
        }
        let why = match (command.parse(&said), status.success()) {
            (Ok(answer), true) => {
                (command.is_clean, command.waits) = (answer.clean, answer.waits);
                return Ok((command, answer.warnings));
            }
            (Err(why), true) => why,
            (_, false) => status.to_string(),
        };
        Err(command.failed(Verb::Check, &format!("{why}{}", said.problem())).advise(
            "nothing was done: see what it says, and docs/snapshot-commands.md (a command of version 1 \
             must end with status 0 and print nothing when it is called with check)",
        ))
    }

    /// Whether only single files can be asked for.
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// Whether it has looked, and an earlier run has left nothing to mend.
    pub fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// What the command is called.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts the command for `snapshot`, if it waits for its request: what it needs to begin would else be a part of
    /// the freeze.
    pub fn start_early(&mut self) {
        if self.waits {
            // Whatever is in its way, it is started again then, and says so.
            self.started = Started::new(self.command(Verb::Snapshot)).ok();
        }
    }

    /// Makes the moment, by the command that was started early if it was.
    ///
    /// # Errors
    /// It fails, is not done in time, or gives no answer.
    pub fn snapshot(&mut self, request: &Request, limit: Duration) -> Result<Answer> {
        let started = self.started.take();
        self.answered(request, self.run((request, started), limit, None)?)
    }

    /// Makes a call of the second version.
    ///
    /// # Errors
    /// It fails, is not done in time, or gives no answer.
    pub fn call(
        &self,
        request: &Request,
        limit: Option<Duration>,
        stop: Option<Stop<'_>>,
    ) -> Result<Answer> {
        self.answered(request, self.run((request, None), limit.unwrap_or(MEND_MAX), stop)?)
    }

    fn answered(&self, request: &Request, (status, said): (ExitStatus, Said)) -> Result<Answer> {
        let verb = request.verb;
        if !status.success() {
            return Err(self.failed(verb, &format!("{status}{}", said.problem())));
        }
        self.parse(&said).map_err(|why| self.failed(verb, &format!("{why}{}", said.problem())))
    }

    fn parse(&self, said: &Said) -> Result<Answer, String> {
        if said.stdout.len() >= program::ANSWER_LEN_MAX {
            return Err(format!("its answer is longer than {} MiB", program::ANSWER_LEN_MAX >> 20));
        }
        let text = String::from_utf8_lossy(&said.stdout);
        let answer: Answer = serde_json::from_str(text.trim())
            .map_err(|error| format!("its standard output is no answer ({error})"))?;
        match answer.protocol {
            VERSION => Ok(answer),
            other => Err(format!("its answer is of version {other} of the protocol")),
        }
    }

    fn run(
        &self,
        (request, started): (&Request, Option<Started>),
        limit: Duration,
        stop: Option<Stop<'_>>,
    ) -> Result<(ExitStatus, Said)> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request { limit_ms, ..request.clone() };
        let failed = |why: &str| self.failed(request.verb, why);
        let text = serde_json::to_vec(&request).map_err(|error| failed(&error.to_string()))?;
        let answered = started.and_then(|it| it.ask(&text, limit));
        let ask = || program::ask(self.command(request.verb), &text, limit, stop);
        match answered.unwrap_or_else(ask) {
            Ok((End::Exit(status), said)) => Ok((status, said)),
            Ok((_, said)) => {
                let (limit, problem) = (duration::in_ms(limit), said.problem());
                Err(failed(&format!("not ready after {limit}, and ended{problem}")))
            }
            Err(Failure::Start(error) | Failure::Wait(error)) => Err(failed(&error.to_string())),
        }
    }

    fn command(&self, verb: Verb) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb.as_str());
        command
    }

    fn failed(&self, verb: Verb, why: &str) -> Error {
        Error::new(ErrorKind::Guest, "the snapshot command failed").because(format!(
            "{} {}: {why}",
            self.program.display(),
            verb.as_str()
        ))
    }

    /// Makes the moment of a file by a command of the first version; gives the path that it prints.
    ///
    /// # Errors
    /// It fails, or is not done in time.
    pub fn create(&self, file: &Path, request: &Request, limit: Duration) -> Result<PathBuf> {
        self.of_file("create", file, None, request, limit)
    }

    /// Takes away what `create` has made.
    ///
    /// # Errors
    /// It fails, or is not done in time.
    pub fn release(&self, file: &Path, made: &Path, request: &Request) -> Result<()> {
        self.of_file("release", file, Some(made), request, RELEASE_MAX).map(drop)
    }

    fn of_file(
        &self,
        verb: &str,
        file: &Path,
        made: Option<&Path>,
        request: &Request,
        limit: Duration,
    ) -> Result<PathBuf> {
        let name = format!("{} {verb} {}", self.program.display(), file.display());
        let failed = |why: String| {
            Error::new(ErrorKind::Guest, "the snapshot command failed")
                .because(format!("{name}: {why}"))
        };
        let mut command = Command::new(&self.program);
        command.arg(verb).arg(file).args(made).env("QDELTA_DOMAIN", &request.domain);
        // A name that no snapshot of an earlier point has.
        command.env("QDELTA_POINT", request.point.as_deref().unwrap_or_default());
        match program::run(command, limit, None) {
            Ok((End::Exit(status), said)) if status.success() => {
                let line = said.stdout.split(|byte| *byte == b'\n').next().unwrap_or_default();
                Ok(PathBuf::from(OsString::from_vec(line.to_vec())))
            }
            Ok((End::Exit(status), said)) => Err(failed(format!("{status}{}", said.problem()))),
            Ok(_) => Err(failed(format!("not ready after {}, and ended", duration::in_ms(limit)))),
            Err(Failure::Start(error) | Failure::Wait(error)) => Err(failed(error.to_string())),
        }
    }
}

impl Verb {
    /// As the command's argument.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Recover => "recover",
            Self::Prepare => "prepare",
            Self::Snapshot => "snapshot",
            Self::Release => "release",
        }
    }
}
