//! How a flow tells its caller what happens: how far it is, and what the caller should know.

use std::sync::{Mutex, PoisonError};

use crate::base::warning::Warning;

/// Something that happens in a flow.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A phase begins.
    Begin {
        /// The disk that it works on, as `domain/disk`; none if it works on several.
        disk: Option<&'a str>,
        /// What is done in it, in a word.
        phase: &'static str,
        /// How many bytes it goes through.
        total: u64,
    },
    /// Some more bytes of the phase are done.
    Advance {
        /// How many.
        bytes: u64,
    },
    /// The phase is over.
    End,
    /// Something that the admin should know. It stands in the flow's result, too.
    Warning(&'a Warning),
}

/// Told by a flow what happens in it. The library calls it; the program shows it.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);

    /// Whether somebody looks on. A flow then finds out how much there is to do, also where that is of no use
    /// for the work itself.
    fn is_watched(&self) -> bool {
        false
    }
}

impl dyn Observer + '_ {
    /// A phase of `total` bytes begins.
    pub fn begin(&self, phase: &'static str, total: u64) {
        self.event(&Event::Begin { disk: None, phase, total });
    }

    /// `bytes` more of the phase are done.
    pub fn advance(&self, bytes: u64) {
        self.event(&Event::Advance { bytes });
    }

    /// The phase is over.
    pub fn end(&self) {
        self.event(&Event::End);
    }

    /// A phase that is one step, however long that takes.
    pub fn step<T>(&self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        self.begin(phase, 1);
        let result = work();
        self.advance(1);
        self.end();
        result
    }

    /// The admin should know something.
    pub fn warn(&self, warning: Warning) {
        self.event(&Event::Warning(&warning));
    }
}

/// Nobody is watching.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event<'_>) {}
}

/// Says of everything that happens which disk it happens to, so that a stage need not know.
pub struct OfDisk<'a> {
    observer: &'a dyn Observer,
    disk: String,
}

impl<'a> OfDisk<'a> {
    /// What happens to `disk` is told to `observer`.
    pub fn new(observer: &'a dyn Observer, disk: impl ToString) -> Self {
        Self { observer, disk: disk.to_string() }
    }
}

impl Observer for OfDisk<'_> {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Begin { disk: None, phase, total } => {
                self.observer.event(&Event::Begin { disk: Some(&self.disk), phase, total });
            }
            Event::Warning(warning) if warning.disk.is_none() => {
                self.observer.warn(warning.clone().of(&self.disk));
            }
            _ => self.observer.event(event),
        }
    }

    fn is_watched(&self) -> bool {
        self.observer.is_watched()
    }
}

/// Says of a warning that is about no disk in particular which guest it is about.
pub struct OfGuest<'a> {
    observer: &'a dyn Observer,
    guest: &'a str,
}

impl<'a> OfGuest<'a> {
    /// What happens to `guest` is told to `observer`.
    pub fn new(observer: &'a dyn Observer, guest: &'a str) -> Self {
        Self { observer, guest }
    }
}

impl Observer for OfGuest<'_> {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Warning(warning) if warning.disk.is_none() => {
                self.observer.warn(warning.clone().within(self.guest));
            }
            _ => self.observer.event(event),
        }
    }

    fn is_watched(&self) -> bool {
        self.observer.is_watched()
    }
}

/// Keeps the warnings of a flow for its result, and passes everything on.
pub struct Recorder<'a> {
    observer: &'a dyn Observer,
    warnings: Mutex<Vec<Warning>>,
}

impl<'a> Recorder<'a> {
    /// Passes everything on to `observer`.
    pub fn new(observer: &'a dyn Observer) -> Self {
        Self { observer, warnings: Mutex::default() }
    }

    /// All warnings since the last time, in the order in which they came.
    pub fn take(&self) -> Vec<Warning> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The warnings about `disk` since the last time.
    pub fn take_of(&self, disk: &str) -> Vec<Warning> {
        let mut all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(.., |warning| warning.disk.as_deref() == Some(disk)).collect()
    }
}

impl Observer for Recorder<'_> {
    fn event(&self, event: &Event<'_>) {
        if let Event::Warning(warning) = event {
            let mut all = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            // The same thing can be found twice on the way, and is said once.
            if all.contains(warning) {
                return;
            }
            all.push((*warning).clone());
        }
        self.observer.event(event);
    }

    fn is_watched(&self) -> bool {
        self.observer.is_watched()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::warning::Code;

    #[test]
    fn a_warning_reaches_the_caller_and_the_result_once_and_names_its_disk() {
        struct Heard(Mutex<Vec<Option<String>>>);
        impl Observer for Heard {
            fn event(&self, event: &Event<'_>) {
                match event {
                    Event::Warning(warning) => self.0.lock().unwrap().push(warning.disk.clone()),
                    Event::Begin { disk, .. } => {
                        self.0.lock().unwrap().push(disk.map(str::to_owned));
                    }
                    _ => {}
                }
            }
        }
        let heard = Heard(Mutex::default());
        let recorder = Recorder::new(&heard);
        let disk: &dyn Observer = &OfDisk::new(&recorder, "web/vda");
        disk.begin("backup", 1);
        disk.warn(Warning::new(Code::Clock, "late"));
        disk.warn(Warning::new(Code::Clock, "late"));
        (&recorder as &dyn Observer).warn(Warning::new(Code::Clock, "late"));
        let all = [Some("web/vda".to_owned()), Some("web/vda".to_owned()), None];
        assert_eq!(*heard.0.lock().unwrap(), all);
        assert_eq!(recorder.take_of("web/vda").len(), 1);
        assert_eq!(recorder.take(), [Warning::new(Code::Clock, "late")]);
        assert!(recorder.take().is_empty());
    }
}
