//! The rungs of a running guest: the admin's program boots it, waits for its agent, and runs the
//! admin's own check. `docs/drills.md` says what it is told and what it answers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::Deserialize;

use super::ladder::{Found, Guest, Ladder};
use super::tools::{self, Ran};
use crate::base::duration;
use crate::base::error::{Error, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::files::make_private_folder;
use crate::disk::io::Opener;
use crate::guest::program::Said;
use crate::vault::repository::{Climb, Drill, MachineFile, MachineRecord, Role, Rung};

/// The status of a command that can't try on this machine.
const CANT: i32 = 77;
/// The rungs that the command climbs.
const RUNGS: [Rung; 3] = [Rung::Boot, Rung::Agent, Rung::Service];
/// How much of a screenshot or of a console is kept, in bytes.
const KEPT_MAX: u64 = 16 << 20;
/// The most characters of the command's text that are kept.
const TEXT_MAX: usize = 500;

/// What the command says of how far it came.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    reached: Reached,
    #[serde(default)]
    seconds: BTreeMap<Reached, f64>,
    screenshot: Option<PathBuf>,
    console: Option<PathBuf>,
    text: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reached {
    #[default]
    None,
    Boot,
    Agent,
    Service,
}

impl Reached {
    fn rung(self) -> Option<Rung> {
        match self {
            Self::None => None,
            Self::Boot => Some(Rung::Boot),
            Self::Agent => Some(Rung::Agent),
            Self::Service => Some(Rung::Service),
        }
    }
}

/// A call of the command.
pub(super) struct Boot<'a> {
    ladder: &'a Ladder<'a>,
    guest: &'a Guest,
    program: &'a Path,
}

impl<'a> Boot<'a> {
    /// A call that is still to be made.
    pub fn new(ladder: &'a Ladder<'a>, guest: &'a Guest, program: &'a Path) -> Self {
        Self { ladder, guest, program }
    }

    /// Calls the command, and notes how far the guest came.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn run(&self, drill: &mut Drill) -> Result<()> {
        let started = Instant::now();
        let command = match self.command() {
            Ok(command) => command,
            Err(error) => {
                let found = || Found::new(Climb::NotTried, error.chain());
                drill.steps.extend(RUNGS.map(|rung| found().into_step(rung, started)));
                return Ok(());
            }
        };
        let ready = started.elapsed().as_secs_f64();
        let limit = self.ladder.request.time_limit;
        let ran = tools::run(command, limit, self.ladder.cancel)?;
        let (answer, then, why) = match ran {
            Ran::Not(why) => {
                // An admin who names a program that is not there does not know that nothing is drilled.
                let why = format!("{}: {why}", self.program.display());
                (None, Climb::Failed, why)
            }
            Ran::Late(said) => {
                let why = format!("not done after {}, and killed", duration::shown(limit));
                (answer_of(&said), Climb::Failed, why)
            }
            Ran::To(status, said) => {
                let answer = answer_of(&said);
                let then = match status.code() {
                    Some(0) if answer.is_some() => Climb::NotTried,
                    Some(CANT) => Climb::NotTried,
                    _ => Climb::Failed,
                };
                let why = match (then, &answer) {
                    (Climb::Failed, None) if status.success() => {
                        "the command said nothing of how far it came".to_owned()
                    }
                    _ => format!("{status}{}", said.problem()),
                };
                (answer, then, why)
            }
        };
        self.note(drill, &answer.unwrap_or_default(), (then, &why), (started, ready));
        Ok(())
    }

    /// Notes what the command said; the rung above those that passed ended as `then` says.
    fn note(
        &self,
        drill: &mut Drill,
        answer: &Answer,
        (then, why): (Climb, &str),
        (started, ready): (Instant, f64),
    ) {
        let said = answer.text.as_deref().map(plain).filter(|text| !text.is_empty());
        let mut is_above = false;
        let mut before = 0.0;
        for rung in RUNGS {
            let passed = answer.reached.rung().is_some_and(|reached| rung <= reached);
            let at = answer.seconds.iter().find(|(name, _)| name.rung() == Some(rung));
            let at = at.map(|(_, seconds)| *seconds).filter(|it| it.is_finite() && *it >= 0.0);
            let found = match (passed, is_above) {
                (true, _) => {
                    let text = said.clone().filter(|_| answer.reached.rung() == Some(rung));
                    Found::new(Climb::Passed, text.unwrap_or_default())
                }
                (false, false) => {
                    is_above = true;
                    Found::new(then, said.clone().unwrap_or_else(|| why.to_owned()))
                }
                (false, true) => Found::new(Climb::NotTried, "the rung below did not pass"),
            };
            let mut step = found.into_step(rung, started);
            let took_time = !passed && step.result != Climb::NotTried;
            let end = at.unwrap_or(if took_time { step.seconds } else { before });
            step.seconds = (end - before).max(0.0);
            before = end;
            if passed && rung == Rung::Agent {
                drill.recovery = at.map(|seconds| ready + seconds);
            }
            drill.steps.push(step);
        }
        drill.screenshot = self.keep(answer.screenshot.as_deref(), "screen");
        drill.console = self.keep(answer.console.as_deref(), "console");
    }

    /// The command with all that it is told.
    fn command(&self) -> Result<Command> {
        let scratch = self.folder("scratch")?;
        let mut command = Command::new(self.program);
        command.arg("boot");
        for disk in &self.guest.disks {
            let file = self.guest.file(self.ladder, disk, None)?;
            let mut argument = OsString::from(format!("{}=", disk.disk));
            argument.push(&file);
            command.arg(argument);
        }
        command
            .env("QDELTA_DOMAIN", self.guest.domain.as_str())
            .env("QDELTA_POINT", self.guest.manifest.point.to_string())
            .env("QDELTA_SCRATCH", &scratch)
            .env("QDELTA_SECONDS", self.ladder.request.time_limit.as_secs().to_string())
            .env_remove("QDELTA_MACHINE");
        if let Some(machine) = &self.guest.manifest.machine {
            command.env("QDELTA_MACHINE", self.machine(machine)?);
        }
        Ok(command)
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.ladder.scratch.path().join(name);
        make_private_folder(&folder).map_err(|error| Error::io("make", &folder, error))?;
        Ok(folder)
    }

    /// Copies of the machine's files, for the guest to write to.
    fn machine(&self, machine: &MachineRecord) -> Result<PathBuf> {
        let folder = self.folder("machine")?;
        let mut names = Vec::new();
        for file in &machine.files {
            let name = match file.role {
                Role::DomainXml => "domain.xml".into(),
                // A guest that libvirt keeps no definition of has that of its last run alone.
                Role::LiveXml if machine.file(Role::DomainXml).is_none() => "domain.xml".into(),
                Role::Nvram | Role::BootFile | Role::GuestState => match file.path.file_name() {
                    Some(name) => name.to_owned(),
                    None => continue,
                },
                Role::LiveXml | Role::Tpm | Role::HostConfig => continue,
            };
            // Of two files of one name the second has a folder of its own.
            let place = match names.contains(&name) {
                false => folder.join(&name),
                true => self.folder(&format!("machine/{}", names.len()))?.join(&name),
            };
            names.push(name);
            self.copy(file, &place)?;
        }
        Ok(folder)
    }

    fn copy(&self, file: &MachineFile, place: &Path) -> Result<()> {
        let mut copy = Opener::CHANGE
            .create(0o600)
            .open(place)
            .map_err(|error| Error::io("make", place, error))?;
        let repository = self.ladder.catalog.repository();
        repository.copy_machine_file(&self.guest.domain, file, &mut copy)
    }

    /// Keeps a file that the command has made in its folder; nothing if there is none, or it lies elsewhere.
    fn keep(&self, made: Option<&Path>, what: &str) -> Option<PathBuf> {
        let kept = self.keep_file(made?, what);
        match kept {
            Ok(kept) => Some(kept),
            Err(error) => {
                let warning = Warning::failed(Code::NotNoted, &error);
                self.ladder.observer.warn(warning);
                None
            }
        }
    }

    fn keep_file(&self, made: &Path, what: &str) -> Result<PathBuf> {
        let failed = |error| Error::io("keep", made, error);
        let scratch = self.ladder.scratch.path().canonicalize().map_err(failed)?;
        let made = made.canonicalize().map_err(failed)?;
        if !made.starts_with(&scratch) {
            let error = std::io::Error::other("it lies outside the scratch folder");
            return Err(failed(error));
        }
        let mut file = Opener::READ.open(&made).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        // The end is what tells how it ended.
        file.seek(SeekFrom::Start(len.saturating_sub(KEPT_MAX))).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(KEPT_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let ending = match (what, bytes.first()) {
            ("screen", Some(b'P')) => "ppm",
            ("screen", _) => "png",
            _ => "log",
        };
        let name = format!("{}.{what}.{ending}", self.guest.domain);
        let place = self.ladder.request.folder.join(name);
        let staged = self.ladder.scratch.path().join("kept");
        let written = Opener::CHANGE.create(0o600).open(&staged).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &bytes)?;
            fs::rename(&staged, &place)
        });
        written.map_err(|error| Error::io("write", &place, error))?;
        Ok(place)
    }
}

/// The last whole line that says how far the guest came.
fn answer_of(said: &Said) -> Option<Answer> {
    let end = said.stdout.iter().rposition(|byte| *byte == b'\n')?;
    let lines = said.stdout.get(..end)?.split(|byte| *byte == b'\n');
    lines.rev().find_map(|line| serde_json::from_slice(line).ok())
}

/// What a command says, as one line of few characters.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}
