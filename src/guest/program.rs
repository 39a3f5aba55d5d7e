//! Running another program under a deadline. The beginning of its output is kept; when the time is
//! over, the program is killed with every process of its group.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::base::cancel::Cancel;
use crate::disk::sys;

/// How much of a program's output is kept, in bytes.
const OUTPUT_LEN_MAX: usize = 16 << 10;
/// How much is kept of what a program answers to a question, in bytes.
pub(crate) const ANSWER_LEN_MAX: usize = 4 << 20;
/// The most characters of a complaint that are passed on. However they are written in JSON, several
/// complaints fit into a line of the watchdog's.
const PROBLEM_LEN_MAX: usize = 4000;

/// The most that is told of what a program has said at last, in characters.
const LAST_WORDS_MAX: usize = 300;
/// How long one wait for the program lasts if nothing wakes it.
const PAUSE: Duration = Duration::from_millis(20);

/// How a program ended.
pub(crate) enum End {
    /// The program ended by itself.
    Exit(ExitStatus),
    /// The time was over, and the program was killed.
    Deadline,
    /// The other end of the watched pipe was closed, and the program was killed.
    Abort,
}

/// The beginning of a program's output.
#[derive(Default)]
pub(crate) struct Said {
    /// To its standard output.
    pub stdout: Vec<u8>,
    /// To its standard error.
    pub stderr: Vec<u8>,
}

impl Said {
    /// The first line of standard error that begins with `error:`, without that word. `None` if
    /// there is no such line, or if the output was too long to be kept.
    pub fn first_error(&self) -> Option<String> {
        if self.stderr.len() >= OUTPUT_LEN_MAX {
            return None;
        }
        let text = String::from_utf8_lossy(&self.stderr);
        let first = text.lines().find_map(|line| line.trim().strip_prefix("error:"));
        first.map(|words| words.trim().to_owned())
    }

    /// Whether all that the program said was kept.
    pub fn is_whole(&self) -> bool {
        self.stdout.len() < OUTPUT_LEN_MAX && self.stderr.len() < OUTPUT_LEN_MAX
    }

    /// The end of standard error as one line with a colon in front, for those who want to know what went wrong, and not
    /// all that was said; empty if there was none.
    pub fn last_words(&self) -> String {
        let all = self.problem();
        let surplus = all.chars().count().saturating_sub(LAST_WORDS_MAX);
        match surplus {
            0 => all,
            _ => format!(": …{}", all.chars().skip(surplus).collect::<String>()),
        }
    }

    /// Standard error as one line with a colon in front; empty if there was none.
    pub fn problem(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return String::new();
        }
        let plain = |c: &char| !c.is_control();
        let line: String = words.join(" ").chars().filter(plain).take(PROBLEM_LEN_MAX).collect();
        format!(": {line}")
    }
}

/// Whether a program is there: at its path, or in one of the folders of `PATH`.
pub(crate) fn is_there(program: &Path) -> bool {
    if program.components().count() > 1 || program.is_absolute() {
        return program.is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Runs `command` to its end, at most for `limit`, or until the other end of `abort` is closed.
pub(crate) fn run(
    mut command: Command,
    limit: Duration,
    abort: Option<BorrowedFd<'_>>,
) -> Result<(End, Said), Failure> {
    command.stdin(Stdio::null());
    run_keeping(command, limit, (abort, None), OUTPUT_LEN_MAX)
}

/// A request to stop, and who is told that the program is waited for.
pub(crate) struct Stop<'a> {
    pub cancel: &'a Cancel,
    /// How long the program then has to its end.
    pub grace: Duration,
    pub waiting: &'a dyn Fn(),
}

/// Runs `command` with `question` on its standard input, at most for `limit`, and not for long once
/// somebody asks to stop; keeps a long answer.
pub(crate) fn ask(
    mut command: Command,
    question: &[u8],
    limit: Duration,
    stop: Option<Stop<'_>>,
) -> Result<(End, Said), Failure> {
    // In memory, so that nobody waits for a program that does not read.
    let file = rustix::fs::memfd_create("question", MemfdFlags::CLOEXEC).map(File::from);
    let file = file.map_err(std::io::Error::from).and_then(|mut file| {
        file.write_all(question)?;
        file.rewind()?;
        Ok(file)
    });
    command.stdin(file.map_err(Failure::Start)?);
    run_keeping(command, limit, (None, stop), ANSWER_LEN_MAX)
}

/// A program that was started before there is something to ask it. Dropped, it is ended. It ends with the thread that has
/// started it, too.
pub(crate) struct Started {
    /// Nothing once it was asked.
    child: Option<Child>,
}

impl Started {
    /// Starts a program that reads its question from standard input before it does anything.
    pub fn new(mut command: Command) -> std::io::Result<Self> {
        command.stdin(Stdio::piped());
        Ok(Self { child: Some(spawn(command)?) })
    }

    /// Asks the question, and runs the program to its end; gives nothing, and ends it, where the question is longer than
    /// a pipe takes at once, or the program has not waited for it.
    pub fn ask(mut self, question: &[u8], limit: Duration) -> Option<Result<(End, Said), Failure>> {
        let end = Instant::now() + limit;
        let mut child = self.child.take()?;
        let mut stdin = child.stdin.take()?;
        if child.try_wait().ok()?.is_some() || !is_written(&mut stdin, question) {
            // Its input stays open until then: it must not take the beginning of a question for the whole.
            end_group(&mut child);
            return None;
        }
        drop(stdin);
        Some(run_to_its_end(child, (end, ANSWER_LEN_MAX), (None, None)))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end_group(child);
        }
    }
}

/// Writes all to a program that need not read.
fn is_written(stdin: &mut ChildStdin, bytes: &[u8]) -> bool {
    let is_ready = fcntl_setfl(&*stdin, OFlags::NONBLOCK).is_ok();
    is_ready && stdin.write(bytes).is_ok_and(|written| written == bytes.len())
}

fn run_keeping(
    command: Command,
    limit: Duration,
    ends: Ends<'_>,
    answer_len_max: usize,
) -> Result<(End, Said), Failure> {
    let deadline = Instant::now() + limit;
    run_to_its_end(spawn(command).map_err(Failure::Start)?, (deadline, answer_len_max), ends)
}

fn spawn(mut command: Command) -> std::io::Result<Child> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that whatever it starts can be ended with it.
    command.process_group(0);
    sys::kernel::die_with_parent(&mut command);
    command.spawn()
}

fn run_to_its_end(
    mut child: Child,
    limits: (Instant, usize),
    ends: Ends<'_>,
) -> Result<(End, Said), Failure> {
    let mut said = Said::default();
    match wait(&mut child, &mut said, limits, ends) {
        Ok(end) => Ok((end, said)),
        Err(error) => {
            end_group(&mut child);
            Err(Failure::Wait(error))
        }
    }
}

/// Why a program could not be run to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The program can't be started.
    Start(std::io::Error),
    /// The program can't be waited for, and was killed.
    Wait(std::io::Error),
}

/// What ends a program before its time: the other end of a pipe was closed, or somebody asks to stop.
type Ends<'a> = (Option<BorrowedFd<'a>>, Option<Stop<'a>>);

/// Waits for the end of the program, keeps its output, and kills it if necessary.
fn wait(
    child: &mut Child,
    said: &mut Said,
    (mut deadline, answer_len_max): (Instant, usize),
    (abort, mut stop): Ends<'_>,
) -> std::io::Result<End> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let pipes = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
    for pipe in pipes.into_iter().flatten() {
        fcntl_setfl(pipe, OFlags::NONBLOCK)?;
    }
    // Without it the end is seen at the next look.
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok();
    loop {
        let end = child.try_wait()?;
        drain(&mut stdout, &mut said.stdout, answer_len_max);
        drain(&mut stderr, &mut said.stderr, OUTPUT_LEN_MAX);
        if let Some(status) = end {
            return Ok(End::Exit(status));
        }
        if let Some(Stop { waiting, grace, .. }) = stop.take_if(|stop| stop.cancel.is_cancelled()) {
            waiting();
            deadline = deadline.min(Instant::now() + grace);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let gone = abort.is_some_and(is_closed);
        if left.is_zero() || gone {
            end_group(child);
            return Ok(if gone { End::Abort } else { End::Deadline });
        }
        let pipes = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd), abort];
        sleep(&[pipes.as_slice(), &[process.as_ref().map(AsFd::as_fd)]].concat(), left.min(PAUSE));
    }
}

/// Sleeps until one of the pipes or processes has something to say, at most for `limit`.
fn sleep(pipes: &[Option<BorrowedFd<'_>>], limit: Duration) {
    let mut fds: Vec<PollFd<'_>> =
        pipes.iter().flatten().map(|pipe| PollFd::from_borrowed_fd(*pipe, PollFlags::IN)).collect();
    // A sleep that was cut short does no harm.
    let _ = poll(&mut fds, Timespec::try_from(limit).ok().as_ref());
}

/// Whether the other end of a pipe is closed.
fn is_closed(pipe: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1))
        && fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Keeps the bytes that a pipe has now; drops the pipe at its end.
fn drain<R: Read>(pipe: &mut Option<R>, kept: &mut Vec<u8>, len_max: usize) {
    let mut bytes = [0; 1024];
    // Bounded: a program that never stops talking must not keep us from looking at the clock.
    for _ in 0..64 {
        let Some(open) = pipe else { return };
        match open.read(&mut bytes) {
            Ok(0) => *pipe = None,
            Ok(len) => {
                let room = len_max.saturating_sub(kept.len());
                kept.extend(bytes.iter().take(len.min(room)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => *pipe = None,
        }
    }
}

/// Kills the child and every process of its group: what it started, but for what made itself a group of its own.
fn end_group(child: &mut Child) {
    // Not yet waited for, so its id is nobody else's.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A program was waited for to its end, or for hours, after somebody had asked to stop.
    #[test]
    fn a_program_ends_soon_after_a_request_to_stop() {
        let (cancel, told) = (Cancel::default(), Cell::new(0));
        let ask = |words: &str| {
            let waiting = || told.set(told.get() + 1);
            let grace = Duration::from_millis(50);
            let stop = Stop { cancel: &cancel, grace, waiting: &waiting };
            let mut command = Command::new("sh");
            command.args(["-c", words]);
            ask(command, b"", Duration::from_secs(60), Some(stop)).unwrap().0
        };
        assert!(matches!(ask("true"), End::Exit(_)));
        assert_eq!(told.get(), 0);
        cancel.cancel();
        assert!(matches!(ask("sleep 60"), End::Deadline));
        assert_eq!(told.get(), 1, "once");
    }

    /// What was started early does nothing until it is asked, and is ended if it never is.
    #[test]
    fn a_program_waits_for_its_question() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let start = |words: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", words]).env("ASKED", &asked);
            Started::new(command).unwrap()
        };
        let words = "read line; echo \"$line\" >\"$ASKED\"; echo done";
        drop(start(words));
        assert!(!asked.exists());
        let answer = start(words).ask(b"why\n", Duration::from_secs(60)).unwrap().unwrap();
        assert!(matches!(answer.0, End::Exit(status) if status.success()));
        assert_eq!(answer.1.stdout, b"done\n");
        assert_eq!(std::fs::read(&asked).unwrap(), b"why\n");
        let long = vec![b'x'; 2 << 20];
        assert!(start(words).ask(&long, Duration::from_secs(60)).is_none(), "it may not read");
        std::fs::remove_file(&asked).unwrap();
        let to_its_end = start("cat >\"$ASKED.beginning\"; : >\"$ASKED\"");
        assert!(to_its_end.ask(&long, Duration::from_secs(60)).is_none());
        assert!(!asked.exists(), "it took the beginning for the whole");
    }
}
