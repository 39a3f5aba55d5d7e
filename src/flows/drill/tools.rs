//! The system's own checkers, run on the volumes of a point. None of them may write, and none could:
//! what they read is a file of a mount that takes no writes.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use super::inside::Place;
use super::ladder::{Found, Guest, Ladder};
use crate::base::cancel::Cancel;
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::formats::filesystems::superblock::State;
use crate::guest::program::{self, End, Failure, Said};
use crate::inside::volumes::{Content, Kind};
use crate::vault::repository::{Climb, Part};

/// Where programs of the administrator lie.
const SYSTEM: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A checker of a kind of filesystem.
struct Tool {
    content: Content,
    program: &'static str,
    options: &'static [&'static str],
}

const TOOLS: &[Tool] = &[
    Tool { content: Content::Ext, program: "e2fsck", options: &["-f", "-n"] },
    Tool { content: Content::Xfs, program: "xfs_repair", options: &["-n", "-f"] },
    Tool { content: Content::Btrfs, program: "btrfs", options: &["check", "--readonly"] },
    Tool { content: Content::Fat, program: "fsck.fat", options: &["-n"] },
    Tool { content: Content::Ntfs, program: "ntfsfix", options: &["-n"] },
];

/// How a program that was run for a drill ended.
pub(super) enum Ran {
    /// By itself, and what it said.
    To(ExitStatus, Said),
    /// It was killed because the time was over, and what it had said.
    Late(Said),
    /// There is no such program, or it can't be started.
    Not(String),
}

/// Runs a program for at most `limit`.
///
/// # Errors
/// Somebody asked to stop: the program was killed.
pub(super) fn run(mut command: Command, limit: Duration, cancel: &Cancel) -> Result<Ran> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{SYSTEM}")).env("LC_ALL", "C");
    let failed = |error| Error::new(ErrorKind::Io, "no pipe can be made").because(error);
    let (reader, writer): (std::io::PipeReader, std::io::PipeWriter) =
        std::io::pipe().map_err(failed)?;
    let ran = thread::scope(|scope| {
        let (over, ended) = std::sync::mpsc::sync_channel::<()>(1);
        scope.spawn(move || {
            // Closing the pipe kills the program.
            let _writer = writer;
            let tick = Duration::from_millis(100);
            while !cancel.is_cancelled() && ended.recv_timeout(tick).is_err_and(is_timeout) {}
        });
        let ran = program::run(command, limit, Some(std::os::fd::AsFd::as_fd(&reader)));
        drop(over);
        ran
    });
    cancel.check()?;
    Ok(match ran {
        Ok((End::Exit(status), said)) => Ran::To(status, said),
        Ok((End::Deadline | End::Abort, said)) => Ran::Late(said),
        Err(Failure::Start(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ran::Not("not installed".to_owned())
        }
        Err(Failure::Start(error) | Failure::Wait(error)) => Ran::Not(error.to_string()),
    })
}

fn is_timeout(error: std::sync::mpsc::RecvTimeoutError) -> bool {
    error == std::sync::mpsc::RecvTimeoutError::Timeout
}

/// Lets the tools look at every filesystem that is known.
///
/// # Errors
/// Somebody asked to stop.
pub(super) fn check(ladder: &Ladder<'_>, guest: &Guest, places: &[Place]) -> Result<Found> {
    let mut parts = Vec::new();
    for place in places.iter().filter(|place| place.is_filesystem()) {
        let (result, text) = check_one(ladder, guest, place)?;
        parts.push(Part { name: place.name(), result, text });
    }
    Ok(Found::of(parts, "no filesystem that is known here"))
}

fn check_one(ladder: &Ladder<'_>, guest: &Guest, place: &Place) -> Result<(Climb, String)> {
    let content = place.volume.content;
    let Some(tool) = TOOLS.iter().find(|tool| tool.content == content) else {
        return Ok((Climb::NotTried, format!("no tool is known for {content}")));
    };
    let volume = (place.volume.kind != Kind::Whole).then_some(place.volume.name.as_str());
    let file = match guest.file(ladder, &place.disk, volume) {
        Ok(file) => file,
        Err(error) => return Ok((Climb::NotTried, error.chain())),
    };
    // Damage of the repository must not be taken for damage of the filesystem.
    if let Err(error) = Opener::READ.open(&file) {
        return Ok((Climb::NotTried, format!("the volume can't be opened: {error}")));
    }
    let mut command = Command::new(tool.program);
    command.args(tool.options).arg(&file);
    let ran = run(command, ladder.request.time_limit, ladder.cancel)?;
    if let Some(trouble) = guest.trouble() {
        let text = format!("what {} read could not be read whole: {trouble}", tool.program);
        return Ok((Climb::NotTried, text));
    }
    let state = place.superblock.as_ref().ok().copied().flatten().map(|block| block.state);
    Ok(match ran {
        Ran::Not(why) => (Climb::NotTried, format!("{}: {why}", tool.program)),
        Ran::Late(_) => {
            let limit = duration::shown(ladder.request.time_limit);
            (Climb::NotTried, format!("{} was not ready after {limit}", tool.program))
        }
        Ran::To(status, said) => judge(content, tool.program, state, status, &said),
    })
}

/// What a tool's end says. A filesystem of a running guest is in use: what its journal would put in
/// order is no damage, and where a tool can't tell the two apart, nothing is known.
fn judge(
    content: Content,
    program: &str,
    state: Option<State>,
    status: ExitStatus,
    said: &Said,
) -> (Climb, String) {
    if status.success() {
        return (Climb::Passed, format!("{program} finds nothing wrong"));
    }
    let text = [said.stdout.as_slice(), said.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let is_dirty = match content {
        Content::Ext | Content::Btrfs => state == Some(State::Journal),
        Content::Xfs => text.contains("metadata changes in a log"),
        Content::Fat => text.contains("Dirty bit is set"),
        _ => false,
    };
    let harmless = if content == Content::Xfs { XFS_IN_USE } else { FAT_IN_USE };
    if is_dirty && matches!(content, Content::Xfs | Content::Fat) && says_only(said, harmless) {
        return (Climb::Passed, format!("{program} finds it in use, and nothing wrong"));
    }
    if is_dirty && content != Content::Fat {
        let why = format!("its journal is not replayed, so {program} can't tell");
        return (Climb::NotTried, format!("{why}: as of any running guest"));
    }
    let ended = match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    let last = lines.clone().find(|line| !is_headline(line)).or_else(|| lines.clone().next_back());
    (Climb::Failed, format!("{program}: {ended}: {}", last.map(plain).unwrap_or_default()))
}

/// Whether a line of a tool's output only says what it is about to do.
fn is_headline(line: &str) -> bool {
    let begins =
        ["e2fsck ", "Pass ", "Phase ", "- ", "fsck.fat ", "Opening ", "Checking ", "[", "UUID"];
    begins.iter().any(|begin| line.starts_with(begin))
        || line.contains(": ") && line.ends_with("...")
}

/// What xfs_repair says of a filesystem in use with which nothing is wrong: it goes on without the log, and
/// of a frozen one the superblock's counters are not up to date.
const XFS_IN_USE: &[&str] = &[
    "Phase ",
    "- ",
    "ALERT: The filesystem has valuable metadata changes in a log",
    "ignored because the -n option was used.",
    "which may be resolved by first mounting the filesystem",
    "No modify flag set",
    "Cannot get host filesystem geometry.",
    "Repair may fail if there is a sector size mismatch",
    "the image and the host filesystem.",
    "sb_icount ",
    "sb_ifree ",
    "sb_fdblocks ",
];

/// What fsck.fat says of a filesystem in use with which nothing is wrong: the mark is in the boot sector,
/// and not in the copy of it.
const FAT_IN_USE: &[&str] = &[
    "fsck.fat ",
    "Dirty bit is set.",
    "Automatically removing dirty bit.",
    "Leaving filesystem unchanged.",
    "There are differences between boot sector and its backup.",
    "This is mostly harmless. Differences:",
    "65:01/00",
    "Not automatically fixing this.",
];

/// Whether all of a tool's lines begin in one of these ways.
fn says_only(said: &Said, harmless: &[&str]) -> bool {
    let is_summary = |line: &str| line.contains(" files, ") && line.ends_with(" clusters");
    let is_harmless = |line: &str| {
        line.is_empty() || is_summary(line) || harmless.iter().any(|begin| line.starts_with(begin))
    };
    said.is_whole()
        && [&said.stdout, &said.stderr].into_iter().all(|bytes| {
            String::from_utf8_lossy(bytes).lines().all(|line| is_harmless(line.trim()))
        })
}
