//! The thaw, tried until it works.

use std::thread;
use std::time::{Duration, Instant};

use super::virsh::{self, Verb};
use super::{Freeze, alarm, mark};
use crate::error::Result;

/// How long one try may take at the most. libvirt lets a thaw wait until a freeze that hangs is over.
const TRY_MAX: Duration = Duration::from_secs(5);
/// How long one try may take at the least. What hangs must not keep the guest frozen long after the
/// limit.
const TRY_MIN: Duration = Duration::from_millis(600);
/// The first pause between two tries; each is twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_millis(400);

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

/// Thaws, trying again until the time for it is over. `left` is what is left of the time that the
/// guest may be frozen: the first try may take all of it. `Err` says why the last try failed.
pub(super) fn thaw(freeze: &Freeze, left: Duration) -> Result<Done, String> {
    thaw_within(freeze, left, freeze.thaw_tries)
}

/// Thaws a guest that no freeze can have reached: one try, to be sure.
pub(super) fn thaw_once(freeze: &Freeze) {
    let _ = thaw_within(freeze, TRY_MAX, Duration::ZERO);
}

fn thaw_within(freeze: &Freeze, left: Duration, limit: Duration) -> Result<Done, String> {
    let end = Instant::now() + limit;
    let mut pause = PAUSE_FIRST;
    let mut try_max = left;
    let mut first_problem = None;
    loop {
        let this = try_max.clamp(TRY_MIN, TRY_MAX);
        // The first one may have had little time; those that follow get more and more.
        try_max = if first_problem.is_none() { TRY_MIN * 2 } else { this * 2 };
        match virsh::call(&freeze.virsh, Verb::Thaw, &freeze.guest, this, None) {
            Ok(filesystems) => return Ok(Done { filesystems, first_problem, not_running: false }),
            Err(problem) if problem.stopped => {
                let first_problem = Some(problem.text);
                return Ok(Done { filesystems: 0, first_problem, not_running: true });
            }
            Err(problem) if Instant::now() + pause >= end => return Err(problem.text),
            Err(problem) => {
                tracing::warn!("{} is not thawed yet, trying again: {}", freeze.name, problem.text);
                first_problem = first_problem.or(Some(problem.text));
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Thaws a guest that may be frozen, whoever froze it, and removes the mark.
pub(super) fn thaw_now(freeze: &Freeze) -> Result<Done> {
    let done = thaw(freeze, TRY_MAX).map_err(|problem| alarm(&freeze.name, &problem))?;
    if done.not_running {
        // A guest that is paused was not thawed: the mark stays until it is.
        return Err(alarm(&freeze.name, "it does not run now; a paused one stays frozen"));
    }
    mark::clear(&freeze.mark, None);
    Ok(done)
}

/// Thaws a guest that an earlier run may have left frozen. `running` says whether the guest runs: one
/// that doesn't is not frozen any more. Gives whether there was something to do.
///
/// # Errors
/// `Alarm` if it can't be thawed.
pub fn thaw_marked(freeze: &Freeze, running: bool) -> Result<bool> {
    if !mark::is_set(&freeze.mark) {
        return Ok(false);
    }
    let since = mark::read(&freeze.mark).map(|mark| format!(" since {}", mark.since));
    let since = since.unwrap_or_default();
    if running {
        tracing::warn!("{} may be frozen{since}: thawing it first", freeze.name);
        let done = thaw_now(freeze)?;
        tracing::warn!("{}: thawed, {} filesystems were frozen", freeze.name, done.filesystems);
    } else {
        tracing::warn!("{} was perhaps frozen{since}, and has been stopped since", freeze.name);
        mark::clear(&freeze.mark, None);
    }
    Ok(true)
}
