//! Standard error: the progress bar, and what is said above it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use qdelta::base::observer::{Event, Observer};
use qdelta::base::warning::{Code, Warning};
use tracing::{Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{bar, text};

/// Where everything goes that is not a result. Messages and the bar do not get into each other's
/// way.
#[derive(Clone)]
pub struct Screen {
    bar: Arc<Mutex<Option<ProgressBar>>>,
    draws: bool,
    /// Whether more is said than what somebody must know.
    verbose: bool,
}

impl Screen {
    /// Standard error; with a bar if it is a terminal and `quiet` is not set.
    pub fn new(quiet: bool, verbose: bool) -> Self {
        Self { bar: Arc::default(), draws: !quiet && io::stderr().is_terminal(), verbose }
    }

    /// Says something, above the bar if there is one.
    pub fn say(&self, message: &str) {
        let message = text::printable_lines(message);
        // Nobody is left to tell that standard error is gone.
        let speak = || drop(writeln!(io::stderr(), "{message}"));
        match &*self.lock() {
            Some(bar) => bar.suspend(speak),
            None => speak(),
        }
    }

    /// Ends the bar, if there is one: a phase that failed has no end of its own.
    pub fn end(&self) {
        if let Some(bar) = self.lock().take() {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Screen {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Begin { disk, phase, total } if self.draws => {
                self.end();
                *self.lock() = Some(bar::draw(disk, phase, total));
            }
            Event::Advance { bytes } => {
                if let Some(bar) = &*self.lock() {
                    bar.inc(bytes);
                }
            }
            Event::End => self.end(),
            Event::Warning(warning) if warning.code != Code::SlowIo => self.say(&describe(warning)),
            // The work is as good without a ring. Whoever may not have one can't change that every
            // night: it stands in the result, and is said to those who ask.
            Event::Warning(warning) if self.verbose => {
                self.say(&format!("qdelta: {}", warning.text));
            }
            // What the library may learn to tell later.
            _ => {}
        }
    }

    fn is_watched(&self) -> bool {
        self.draws
    }
}

/// A warning as people see it: what is the matter; in a second line what to do.
fn describe(warning: &Warning) -> String {
    let disk = warning.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
    let text = text::printable(&format!("{disk}{}", warning.text));
    let advice = warning.advice.as_ref().map(|it| format!("\n        {}", text::printable(it)));
    format!("qdelta: warning: {text}{}", advice.unwrap_or_default())
}

/// Lets the library's notes be seen: errors and warnings always, and more with every `verbose`.
pub fn show_notes(screen: &Screen, verbose: u8) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let screen = screen.clone();
    // Fails only if somebody set another one before, and nobody does.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .event_format(NoteFormat)
        .with_writer(move || Note { screen: screen.clone(), text: Vec::new() })
        .try_init();
}

/// A note as it is shown: like an error of the program, with its importance if it has any.
struct NoteFormat;

impl<S, N> FormatEvent<S, N> for NoteFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => "qdelta: error: ",
            Level::WARN => "qdelta: warning: ",
            _ => "qdelta: ",
        })?;
        context.field_format().format_fields(writer, event)
    }
}

/// One note on its way to the screen.
struct Note {
    screen: Screen,
    text: Vec<u8>,
}

impl Write for Note {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.screen.say(&text::printable(String::from_utf8_lossy(&self.text).trim_end()));
        }
    }
}
