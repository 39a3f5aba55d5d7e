//! The thaw, tried until it works.

use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::virsh::{self, Problem, Verb};
use super::{Freeze, alarm, mark, turn};
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::base::warning::{Code, Warning};

/// How long one try may take at the most. libvirt lets a thaw wait until a freeze that hangs is over.
pub(super) const TRY_MAX: Duration = Duration::from_secs(5);
/// How long one try may take at the least. A `virsh` that hangs once or twice must not keep the
/// guest frozen for a second after the limit.
const TRY_MIN: Duration = Duration::from_millis(300);
/// The first pause between two tries; each is twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause between two tries.
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(400);

/// A thaw that worked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// How many filesystems were thawed.
    pub filesystems: u32,
    /// Why the first try did not work.
    pub first_problem: Option<String>,
    /// libvirt says that the guest does not run: it was stopped, or is only paused and frozen still.
    pub not_running: bool,
}

/// Thaws the guest, and tries again until the time for thawing is over. `left` is the rest of the
/// time for which the guest may be frozen: the first try may take all of it. `trying` is called
/// before each try. Nothing is logged between the tries: the log's reader may block, and the guest
/// would wait.
///
/// `Err` says why the last try failed.
pub(super) fn thaw(
    freeze: &Freeze,
    left: Duration,
    trying: &mut dyn FnMut(),
) -> Result<Done, String> {
    let end = Instant::now() + freeze.thaw_tries;
    let mut pause = PAUSE_FIRST;
    // The first try has the rest of the freeze; each further try gets more time.
    let (mut this, mut next) = (left.clamp(TRY_MIN, TRY_MAX), TRY_MIN);
    let mut first_problem = None;
    loop {
        trying();
        match virsh::call(&freeze.virsh, Verb::Thaw, &freeze.guest, this, None) {
            Ok(filesystems) => return Ok(Done { filesystems, first_problem, not_running: false }),
            Err(problem) if problem.stopped => {
                let first_problem = Some(problem.text);
                return Ok(Done { filesystems: 0, first_problem, not_running: true });
            }
            Err(problem) if Instant::now() + pause >= end => return Err(problem.text),
            Err(problem) => first_problem = first_problem.or(Some(problem.text)),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
        (this, next) = (next, (next * 2).min(TRY_MAX));
    }
}

/// Thaws after a freeze that was not answered, which libvirt may still carry out: the thaw may have
/// overtaken the freeze. So the thaw is repeated until the freeze has come, or can't come any more.
pub(super) fn thaw_for_good(
    freeze: &Freeze,
    left: Duration,
    trying: &mut dyn FnMut(),
) -> Result<Done, String> {
    let end = Instant::now() + freeze.late_max;
    let mut done = thaw(freeze, left, trying)?;
    while done.filesystems == 0 && !done.not_running && Instant::now() < end {
        thread::sleep(PAUSE_MAX);
        done = thaw(freeze, TRY_MAX, trying)?;
    }
    Ok(done)
}

/// Thaws a guest that a freeze can hardly have reached: one try, to be sure. The try takes no
/// longer than what is `left` of the freeze, because the process that waits for the outcome counts
/// on that.
pub(super) fn thaw_once(freeze: &Freeze, left: Duration) -> Result<(), Problem> {
    let left = left.clamp(TRY_MIN, TRY_MAX);
    virsh::call(&freeze.virsh, Verb::Thaw, &freeze.guest, left, None).map(drop)
}

/// Thaws a guest that may be frozen, no matter which process froze it, and removes the mark.
/// `unanswered` says that a freeze may still be on its way.
pub(super) fn thaw_now(freeze: &Freeze, unanswered: bool) -> Result<Done> {
    let done = match unanswered {
        true => thaw_for_good(freeze, TRY_MIN, &mut || ()),
        false => thaw(freeze, TRY_MIN, &mut || ()),
    };
    let done = done.map_err(|problem| alarm(&freeze.name, &problem))?;
    if done.not_running {
        // A paused guest was not thawed: the mark stays until the guest is.
        return Err(alarm(&freeze.name, "it does not run now; a paused one stays frozen"));
    }
    mark::clear(&freeze.mark, None);
    Ok(done)
}

/// Thaws a guest that an earlier run may have left frozen. `running` says whether the guest runs: a
/// guest that has stopped is not frozen any more. Gives whether there was something to do.
///
/// # Errors
/// `Alarm` if it can't be thawed.
pub fn thaw_marked(freeze: &Freeze, running: bool, observer: &dyn Observer) -> Result<bool> {
    if !mark::is_set(&freeze.mark) {
        return Ok(false);
    }
    // The process that left the mark may still be at work.
    let _turn = turn::take(freeze, turn::WAIT_MAX)?;
    if !mark::is_set(&freeze.mark) {
        return Ok(false);
    }
    let mark = mark::read(&freeze.mark);
    // That process's freeze may still be on its way.
    let unanswered = mark.as_ref().is_none_or(|mark| is_recent(&mark.since, freeze.late_max));
    let since = mark.map(|mark| format!(" since {}", mark.since)).unwrap_or_default();
    if running {
        let done = thaw_now(freeze, unanswered)?;
        let text = format!(
            "{} was perhaps frozen{since} and was thawed first: {} filesystems were",
            freeze.name, done.filesystems
        );
        observer.warn(Warning::new(Code::Frozen, text));
    } else {
        let text = format!("{} was perhaps frozen{since}, and has been stopped since", freeze.name);
        observer.warn(Warning::new(Code::Frozen, text));
        mark::clear(&freeze.mark, None);
    }
    Ok(true)
}

/// Whether the moment `since` is no longer ago than `limit`, or can't be read.
fn is_recent(since: &str, limit: Duration) -> bool {
    let (Ok(since), Ok(now)) = (since.parse::<Timestamp>(), crate::base::clock::now()) else {
        return true;
    };
    let age = now.duration_since(since);
    age.unsigned_abs() <= limit || age.is_negative()
}
