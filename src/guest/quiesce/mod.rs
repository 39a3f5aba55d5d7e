//! Freezing a guest's filesystems for a moment, and thawing them whatever happens.
//!
//! The freeze belongs to a process of its own, the watchdog: the watchdog alone runs `virsh`. It
//! thaws the guest when it is asked to, when the deadline passes, or when the pipe to the process
//! that started it closes because that process has ended. If the watchdog dies, the process that
//! started it thaws. If both die, the next run finds a mark on disk, which is made before the
//! freeze and removed after the thaw.
//!
//! `virsh` is run for `domfsfreeze` and `domfsthaw`, and for nothing else.

mod mark;
mod protocol;
mod thaw;
mod turn;
mod virsh;
mod watchdog;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use thaw::thaw_marked;
pub use watchdog::watch;

use crate::base::error::{Error, ErrorKind, Result};
use protocol::{Lines, Order, Reply};

/// How long a failing thaw is repeated, by default, before it is an alarm.
pub const THAW_TRIES_DEFAULT: Duration = Duration::from_secs(60);
/// How long an abandoned freeze may still reach the guest: libvirt lets a call wait for its turn
/// for 30 seconds, and then for the agent.
pub const LATE_MAX_DEFAULT: Duration = Duration::from_secs(35);

/// How long the watchdog may take to be ready: it waits for its turn.
const START_MAX: Duration = turn::WAIT_MAX.saturating_add(Duration::from_secs(10));
/// How long the watchdog may take to end when its work is done.
const END_MAX: Duration = Duration::from_secs(10);
/// How late the watchdog's answer may be before the watchdog counts as dead. The time is so short
/// that even then the guest is thawed within a second after the limit.
const SILENCE_MAX: Duration = Duration::from_millis(700);

/// How `virsh` is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virsh {
    /// The program.
    pub program: PathBuf,
    /// The hypervisor to connect to, such as `qemu:///system`; none leaves the choice to `virsh`.
    pub connect: Option<String>,
}

/// What to freeze, and within which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// How `virsh` is called.
    pub virsh: Virsh,
    /// What `virsh` calls the domain: its UUID, or its name.
    pub guest: String,
    /// The domain's name, for people.
    pub name: String,
    /// The file that says that the guest may be frozen.
    pub mark: PathBuf,
    /// libvirt's file of the domain. It is locked for as long as the guest is frozen or thawed.
    pub definition: PathBuf,
    /// When the guest is thawed, even if the work within the freeze is not done.
    pub freeze_max: Duration,
    /// How long a failing thaw is repeated before it is an alarm.
    pub thaw_tries: Duration,
    /// How long an abandoned freeze may still reach the guest: until then the guest is thawed again
    /// and again.
    pub late_max: Duration,
}

/// How the watchdog is started: a program that ends in [`watch`].
#[derive(Debug, Clone)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A watchdog that is ready to freeze the guest.
#[derive(Debug)]
pub struct Watchdog {
    freeze: Freeze,
    child: Child,
    /// When this end closes, the watchdog takes this process for dead.
    orders: Option<ChildStdin>,
    replies: Lines<ChildStdout>,
}

/// A guest whose filesystems are frozen. Dropping the value thaws the guest.
#[derive(Debug)]
#[must_use = "the guest is thawed when this is dropped"]
pub struct Frozen {
    watchdog: Watchdog,
    since: Instant,
    filesystems: u32,
    /// Whether the watchdog has still to be waited for.
    open: bool,
}

/// A freeze that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thawed {
    /// How long filesystems can have been frozen, in milliseconds: from the moment the freeze was
    /// asked for until the thaw was done.
    pub freeze_ms: u64,
    /// How many filesystems were frozen.
    pub filesystems: u32,
    /// Why the filesystems may not have been frozen all the time, if there is a reason: the work
    /// done meanwhile then does not show one moment.
    pub broken: Option<String>,
}

impl Watchdog {
    /// Starts the watchdog. Nothing is frozen yet.
    ///
    /// # Errors
    /// The program can't be started or does not do its work: a freeze would have no safety net
    /// then, and must not happen.
    pub fn start(program: &Program, freeze: Freeze) -> Result<Self> {
        let failed = |what: &str| Error::new(ErrorKind::Io, format!("the watchdog {what}"));
        let mut child = Command::new(&program.path)
            .args(&program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed("can't be started").because(error))?;
        let (orders, replies) = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(replies)) = (orders, replies) else {
            return Err(failed("has no pipes"));
        };
        let replies = Lines::new(replies);
        let mut watchdog = Self { freeze, child, orders: Some(orders), replies };
        let first = Order::Watch(watchdog.freeze.clone());
        watchdog.order(&first).map_err(|error| failed("takes no orders").because(error))?;
        match watchdog.replies.next(Some(START_MAX)) {
            Some(Reply::Ready) => Ok(watchdog),
            Some(Reply::NotFrozen { problem, .. }) => {
                let text = format!("{} is not to be frozen now", watchdog.freeze.name);
                Err(Error::new(ErrorKind::Busy, text).because(problem).advise("try again later"))
            }
            other => {
                watchdog.kill();
                Err(failed("is not ready").because(format!("it said {other:?}")))
            }
        }
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Freezes the guest's filesystems.
    ///
    /// # Errors
    /// `Guest` if the guest can't be frozen within the limit: the guest is thawed again, to be
    /// sure. `Alarm` if that thaw failed, and the guest may still be frozen.
    pub fn freeze(mut self) -> Result<Frozen> {
        let since = Instant::now();
        // If the order can't be given, no reply comes, and that is noticed.
        let _ = self.order(&Order::Freeze);
        let reply = self.outcome(self.freeze.freeze_max);
        let name = self.freeze.name.clone();
        match reply {
            Some(Reply::Frozen { filesystems }) => {
                tracing::debug!(filesystems, after_ms = since.elapsed().as_millis(), "frozen");
                Ok(Frozen { watchdog: self, since, filesystems, open: true })
            }
            Some(Reply::NotFrozen { problem, advice }) => {
                let error = Error::new(ErrorKind::Guest, format!("{name} could not be frozen"));
                let error = error.because(problem);
                Err(match advice {
                    Some(advice) => error.advise(advice),
                    None => error,
                })
            }
            Some(Reply::Alarm { problem }) => Err(alarm(&name, &problem)),
            _ => {
                self.take_over(true)?;
                Err(Error::new(ErrorKind::Guest, format!("{name} was not frozen"))
                    .because("the watchdog died or hung; the guest was thawed"))
            }
        }
    }

    fn order(&mut self, order: &Order) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        match &mut self.orders {
            Some(orders) => orders.write_all(&line),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The watchdog's reply to an order. `None` if the watchdog has ended, makes no sense, or was
    /// silent for too long: after `left` it should thaw the guest.
    fn outcome(&mut self, left: Duration) -> Option<Reply> {
        let mut limit = left + SILENCE_MAX;
        loop {
            match self.replies.next(Some(limit))? {
                Reply::Trying => limit = thaw::PAUSE_MAX + thaw::TRY_MAX + SILENCE_MAX,
                reply => return Some(reply),
            }
        }
    }

    /// Thaws the guest in place of a watchdog that died or hangs. `unanswered` says that the
    /// watchdog's freeze may still be on its way.
    fn take_over(&mut self, unanswered: bool) -> Result<()> {
        self.kill();
        let thawed = thaw::thaw_now(&self.freeze, unanswered).map(drop);
        // The log comes after the thaw: its reader may block, and the guest would wait.
        tracing::error!("the watchdog of {} died or hung", self.freeze.name);
        thawed
    }

    /// Kills the watchdog, whatever it does.
    fn kill(&mut self) {
        self.orders = None;
        // The kill fails only if the watchdog has ended, or if somebody else has waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Watchdog {
    /// Lets a watchdog with nothing left to do end by itself, and kills it if it does not.
    fn drop(&mut self) {
        self.orders = None;
        let end = Instant::now() + END_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                return self.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Frozen {
    /// How much of the limit is left.
    pub fn left(&self) -> Duration {
        self.watchdog.freeze.freeze_max.saturating_sub(self.since.elapsed())
    }

    /// Thaws the guest.
    ///
    /// # Errors
    /// `Alarm` if it can't be thawed.
    pub fn thaw(mut self) -> Result<Thawed> {
        self.end()
    }

    fn end(&mut self) -> Result<Thawed> {
        self.open = false;
        // If the limit has passed, the watchdog has answered already.
        let _ = self.watchdog.order(&Order::Thaw);
        let (freeze_ms, broken) = match self.watchdog.outcome(self.left()) {
            Some(Reply::Thawed { freeze_ms, problem }) => (freeze_ms, problem),
            Some(Reply::Alarm { problem }) => {
                return Err(alarm(&self.watchdog.freeze.name, &problem));
            }
            _ => {
                self.watchdog.take_over(false)?;
                let broken = "the watchdog died or hung during the freeze".to_owned();
                (self.since.elapsed().as_millis() as u64, Some(broken))
            }
        };
        Ok(Thawed { freeze_ms, filesystems: self.filesystems, broken })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The error that led here matters more than the result of the thaw, unless that is an
        // alarm.
        if self.open
            && let Err(error) = self.end()
        {
            tracing::error!("{}", error.chain());
        }
    }
}

/// The worst that can happen: a guest that nobody could thaw.
fn alarm(name: &str, problem: &str) -> Error {
    Error::new(ErrorKind::Alarm, format!("ALARM: {name} may still be frozen"))
        .because(format!("the thaw failed: {problem}"))
        .advise(format!(
            "thaw it now: virsh domfsthaw {name}; if that fails, the guest's console or a reset \
             helps. The next backup tries the thaw first"
        ))
}
