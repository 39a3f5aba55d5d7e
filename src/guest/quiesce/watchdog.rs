//! The watchdog: the process that freezes the guest, and that thaws it whatever becomes of the
//! process that started the watchdog.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::protocol::{Lines, Order, Reply};
use super::virsh::{self, Problem, Verb};
use super::{Freeze, alarm, mark, thaw, turn};
use crate::base::duration;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::kernel;

/// What helps where `virsh` does not reach the guest's libvirt.
const UNREACHED_ADVICE: &str = "nothing was sent to the guest: see that this user can run virsh domstate \
    for it, and name the libvirt that has it: --connect qemu:///system (without it virsh takes another one \
    for users than for root), --virsh the program";

/// The watchdog's whole life: takes orders from `orders`, which closes when the process that gives
/// them ends, and answers on `replies`. Returns when there is nothing left to do. The process must
/// ignore every signal that can be ignored. This function gives it a session of its own.
///
/// # Errors
/// `Alarm` if a guest could not be thawed; `Usage` if the orders make no sense.
pub fn watch(orders: File, replies: File) -> Result<()> {
    // A process that was started by hand leads a group and stays in its session.
    let _ = rustix::process::setsid();
    // A run that stands back for others must not make its watchdog late. Where the system refuses, the
    // watchdog does what it can.
    let _ = rustix::process::setpriority_process(None, 0);
    kernel::set_io_class(0, 0);
    let mut watch = Watch { orders: Lines::new(orders), replies };
    let Some(Order::Watch(freeze)) = watch.order(None) else {
        return Err(Error::new(ErrorKind::Usage, "the watchdog is started by qdelta alone"));
    };
    let _turn = match turn::take(&freeze, turn::WAIT_MAX) {
        Ok(turn) => turn,
        Err(error) => {
            watch.reply(&Reply::not_frozen(&error));
            return Ok(());
        }
    };
    watch.reply(&Reply::Ready);
    match watch.order(None) {
        Some(Order::Freeze) => watch.freeze(&freeze),
        // The process that wanted a freeze gave it up.
        _ => Ok(()),
    }
}

struct Watch {
    orders: Lines<File>,
    replies: File,
}

impl Watch {
    fn freeze(&mut self, freeze: &Freeze) -> Result<()> {
        let mark = match mark::set(freeze) {
            Ok(mark) => mark,
            Err(error) => {
                self.reply(&Reply::not_frozen(&error));
                return Ok(());
            }
        };
        let since = Instant::now();
        let abort = Some(self.orders.pipe().as_fd());
        let frozen =
            virsh::call(&freeze.virsh, Verb::Freeze, &freeze.guest, freeze.freeze_max, abort);
        let frozen = match frozen {
            Ok(0) => Err(Problem::new("the agent found no filesystem to freeze".to_owned())),
            Err(problem) if not_frozen(freeze, &problem, since) => {
                mark::clear(&freeze.mark, Some(&mark));
                self.reply(&Reply::refused_by(&problem));
                return Ok(());
            }
            other => other,
        };
        let mut broken = None;
        if let Ok(filesystems) = frozen {
            self.reply(&Reply::Frozen { filesystems });
            let left = freeze.freeze_max.saturating_sub(since.elapsed());
            if !matches!(self.order(Some(left)), Some(Order::Thaw)) {
                broken = Some(format!(
                    "it was thawed after {}, before all was done",
                    duration::in_ms(since.elapsed())
                ));
            }
        }
        // The thaw comes also after a failed freeze, which may have frozen something, or still may.
        let left = freeze.freeze_max.saturating_sub(since.elapsed());
        let mut trying = || {
            self.reply(&Reply::Trying);
        };
        let thawed = match &frozen {
            Err(problem) if problem.unanswered => thaw::thaw_for_good(freeze, left, &mut trying),
            _ => thaw::thaw(freeze, left, &mut trying),
        };
        let freeze_ms = since.elapsed().as_millis() as u64;
        // A guest that is only paused is still frozen: the next run looks again.
        if thawed.as_ref().is_ok_and(|done| !done.not_running) {
            mark::clear(&freeze.mark, Some(&mark));
        }
        let reply = match (frozen, thawed) {
            (frozen, Err(problem)) => {
                let problem = match frozen {
                    Ok(_) => problem,
                    Err(first) => {
                        format!("{problem}; before it the freeze had failed: {}", first.text)
                    }
                };
                // The process that hears this raises the alarm; if nobody listens, the watchdog
                // does.
                return match self.reply(&Reply::Alarm { problem: problem.clone() }) {
                    true => Ok(()),
                    false => Err(alarm(&freeze.name, &problem)),
                };
            }
            (Err(problem), Ok(_)) => Reply::refused_by(&problem),
            (Ok(filesystems), Ok(done)) => {
                let by_itself = (done.filesystems < filesystems).then(|| {
                    format!(
                        "of {filesystems} frozen filesystems {} were still frozen when it was thawed",
                        done.filesystems
                    )
                });
                let failed = done.first_problem.map(|first| format!("the thaw failed: {first}"));
                Reply::Thawed { freeze_ms, problem: broken.or(failed).or(by_itself) }
            }
        };
        self.reply(&reply);
        Ok(())
    }

    /// Sends a reply. False if nobody listens any more; the work goes on even then.
    fn reply(&mut self, reply: &Reply) -> bool {
        let Ok(mut line) = serde_json::to_vec(reply) else { return false };
        line.push(b'\n');
        self.replies.write_all(&line).is_ok()
    }

    /// Waits for the next order, at most for `limit`.
    fn order(&mut self, limit: Option<Duration>) -> Option<Order> {
        self.orders.next(limit)
    }
}

/// Whether a failed freeze is known to have frozen nothing, so that nothing has to be thawed.
fn not_frozen(freeze: &Freeze, problem: &Problem, since: Instant) -> bool {
    if !problem.untouched && !problem.refused {
        return false;
    }
    let thawed = thaw::thaw_once(freeze, freeze.freeze_max.saturating_sub(since.elapsed()));
    // An agent that refuses both commands never froze anything; an agent that has frozen something
    // does not refuse the thaw.
    problem.untouched || thawed.is_ok() || thawed.is_err_and(|problem| problem.refused)
}

impl Reply {
    /// There was no freeze, for this reason.
    fn not_frozen(error: &Error) -> Self {
        Self::NotFrozen { problem: error.chain(), advice: error.advice().map(str::to_owned) }
    }

    /// The guest was not to be frozen by `virsh`.
    fn refused_by(problem: &Problem) -> Self {
        let advice = match problem.unreached {
            true => UNREACHED_ADVICE,
            false => "look at the guest agent, or take --consistency crash",
        };
        Self::NotFrozen { problem: problem.text.clone(), advice: Some(advice.to_owned()) }
    }
}
