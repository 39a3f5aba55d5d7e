//! Waiting for a lock that seems to be left: whoever waits is told, and can end the wait.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::{Observer, Silent};
use crate::base::warning::Warning;

/// How soon a request to stop is heard.
const HEARD: Duration = Duration::from_millis(200);
/// In so many steps a wait is shown, at most.
const STEPS_MAX: u64 = 1000;

/// Who asks for a lock, and may have to wait until it is clear whether somebody holds it.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    observer: &'a dyn Observer,
    cancel: Option<&'a Cancel>,
    /// Ends the wait as well, and nothing else.
    closed: Option<&'a Cancel>,
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl<'a> Wait<'a> {
    /// Nobody is told, and nobody can end the wait.
    pub const UNHEARD: Wait<'static> = Wait { observer: &Silent, cancel: None, closed: None };

    /// `observer` is told of a wait, and a request to stop ends it.
    pub fn by(observer: &'a dyn Observer, cancel: &'a Cancel) -> Self {
        Self { observer, cancel: Some(cancel), closed: None }
    }

    /// The same for what may be closed meanwhile, and with another observer.
    pub(crate) fn within<'b>(self, closed: &'b Cancel, observer: &'b dyn Observer) -> Wait<'b>
    where
        'a: 'b,
    {
        Wait { observer, cancel: self.cancel, closed: Some(closed) }
    }

    /// Who is told.
    pub(crate) fn observer(self) -> &'a dyn Observer {
        self.observer
    }

    /// What ends the wait, and all other waiting for the storage.
    pub(super) fn cancel(self) -> Option<&'a Cancel> {
        self.cancel
    }

    /// Begins a wait of a certain length, and says why.
    pub(super) fn begin(self, why: Warning, span: Duration) -> Watch<'a> {
        self.observer.warn(why);
        let steps = span.as_secs().clamp(1, STEPS_MAX);
        self.observer.begin("wait", steps);
        Watch { wait: self, begun: Instant::now(), span, steps, shown: 0 }
    }

    /// Fails if somebody has asked to stop.
    pub(crate) fn check(self) -> Result<()> {
        [self.cancel, self.closed].into_iter().flatten().try_for_each(Cancel::check)
    }
}

/// A wait that goes on.
pub(super) struct Watch<'a> {
    wait: Wait<'a>,
    begun: Instant,
    span: Duration,
    steps: u64,
    shown: u64,
}

impl Watch<'_> {
    /// Waits for at most `pause` of what is left; whether something was left.
    ///
    /// # Errors
    /// Somebody has asked to stop.
    pub fn goes_on(&mut self, pause: Duration) -> Result<bool> {
        let Some(rest) = self.span.checked_sub(self.begun.elapsed()) else { return Ok(false) };
        let end = Instant::now() + rest.min(pause);
        loop {
            self.wait.check()?;
            let part = self.begun.elapsed().as_secs_f64() / self.span.as_secs_f64();
            let done = (self.steps as f64 * part) as u64;
            self.wait.observer.advance(done.saturating_sub(self.shown));
            self.shown = self.shown.max(done);
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(HEARD)),
                _ => return Ok(true),
            }
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.wait.observer.end();
    }
}
