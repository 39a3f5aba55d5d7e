//! The watchdog: the process that freezes, and that thaws whatever becomes of the one that started
//! it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{LINE_LEN_MAX, Order, Reply};
use super::virsh::{self, Verb};
use super::{Freeze, alarm, mark, thaw};
use crate::error::{Error, ErrorKind, Result};

/// Is the watchdog: takes orders from `orders`, which closes when the one who gives them is no
/// more, and answers on `replies`. Returns when there is nothing left to do. The process should heed
/// no signal that can be ignored, and have a session of its own, which this gives it.
///
/// # Errors
/// `Alarm` if a guest could not be thawed; `Usage` if the orders make no sense.
pub fn watch(orders: File, replies: File) -> Result<()> {
    // Who started it by hand is the leader of a group and stays in its session.
    let _ = rustix::process::setsid();
    let mut watch = Watch { orders, replies, line: Vec::new() };
    let Some(Order::Watch(freeze)) = watch.order(None) else {
        return Err(Error::new(ErrorKind::Usage, "the watchdog is started by qdelta alone"));
    };
    watch.reply(&Reply::Ready);
    match watch.order(None) {
        Some(Order::Freeze) => watch.freeze(&freeze),
        // Whoever wanted to freeze has thought better of it.
        _ => Ok(()),
    }
}

struct Watch {
    orders: File,
    replies: File,
    /// What was read of the next order.
    line: Vec<u8>,
}

impl Watch {
    fn freeze(&mut self, freeze: &Freeze) -> Result<()> {
        let mark = match mark::set(freeze) {
            Ok(mark) => mark,
            Err(error) => {
                self.reply(&Reply::NotFrozen { problem: error.chain() });
                return Ok(());
            }
        };
        let since = Instant::now();
        let abort = self.orders.as_fd();
        let frozen =
            virsh::call(&freeze.virsh, Verb::Freeze, &freeze.guest, freeze.freeze_max, Some(abort));
        let frozen = match frozen {
            Ok(0) => Err("the agent found no filesystem to freeze".to_owned()),
            Ok(filesystems) => Ok(filesystems),
            Err(problem) if problem.untouched => {
                thaw::thaw_once(freeze);
                mark::clear(&freeze.mark, Some(&mark));
                self.reply(&Reply::NotFrozen { problem: problem.text });
                return Ok(());
            }
            Err(problem) => Err(problem.text),
        };
        let mut problem = None;
        if let Ok(filesystems) = frozen {
            self.reply(&Reply::Frozen { filesystems });
            let left = freeze.freeze_max.saturating_sub(since.elapsed());
            if !matches!(self.order(Some(left)), Some(Order::Thaw)) {
                problem = Some(format!(
                    "it was thawed after {} ms, before all was done",
                    since.elapsed().as_millis()
                ));
            }
        }
        // Also after a freeze that failed: it may have frozen something.
        let thawed = thaw::thaw(freeze, freeze.freeze_max.saturating_sub(since.elapsed()));
        let freeze_ms = since.elapsed().as_millis() as u64;
        // One that is only paused is frozen still: the next run looks again.
        if thawed.as_ref().is_ok_and(|done| !done.not_running) {
            mark::clear(&freeze.mark, Some(&mark));
        }
        match (frozen, thawed) {
            (_, Err(problem)) => {
                // Whoever hears it raises the alarm; if nobody does, it is for us to do.
                match self.reply(&Reply::Alarm { problem: problem.clone() }) {
                    true => Ok(()),
                    false => Err(alarm(&freeze.name, &problem)),
                }
            }
            (Err(problem), Ok(_)) => {
                self.reply(&Reply::NotFrozen { problem });
                Ok(())
            }
            (Ok(_), Ok(done)) => {
                let by_itself = (done.filesystems == 0)
                    .then(|| "the guest had thawed by itself before it was asked to".to_owned());
                let failed = done.first_problem.map(|first| format!("the thaw failed: {first}"));
                let problem = problem.or(failed).or(by_itself);
                self.reply(&Reply::Thawed { freeze_ms, problem });
                Ok(())
            }
        }
    }

    /// Answers; false if nobody listens any more. Then there is still work to do.
    fn reply(&mut self, reply: &Reply) -> bool {
        let Ok(mut line) = serde_json::to_vec(reply) else { return false };
        line.push(b'\n');
        self.replies.write_all(&line).is_ok()
    }

    /// Waits for the next order, at most for `limit`. Nothing comes if the limit is reached, if
    /// whoever gave orders is no more, or if they make no sense.
    fn order(&mut self, limit: Option<Duration>) -> Option<Order> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return serde_json::from_slice(&line).ok();
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || self.line.len() as u64 > LINE_LEN_MAX {
                return None;
            }
            let mut fds = [PollFd::from_borrowed_fd(self.orders.as_fd(), PollFlags::IN)];
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            // Woken by a signal or at the limit: look again.
            if !matches!(poll(&mut fds, limit.as_ref()), Ok(1)) {
                continue;
            }
            let mut bytes = [0; 4096];
            match self.orders.read(&mut bytes) {
                Ok(0) => return None,
                Ok(len) => self.line.extend(bytes.iter().take(len)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}
