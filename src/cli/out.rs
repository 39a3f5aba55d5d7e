//! Standard output: results and nothing else.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use qdelta::base::warning::Warning;
use qdelta::disk::sys::stdout_was_closed;
use qdelta::{Error, ErrorKind, Result};
use serde::Serialize;

use super::text;

/// Where results go.
///
/// Somebody who stops reading, like `head`, has seen enough: that is no error. Any other failure is
/// told at the end: the work that is still to be done does not depend on who can read of it.
pub struct Out {
    stdout: BufWriter<Stdout>,
    /// Whether results are JSON.
    pub json: bool,
    /// Whether what went well is not told.
    pub quiet: bool,
    closed: bool,
    failure: Option<io::Error>,
    done: Option<String>,
    /// What was warned of before there was a result: it belongs to the result.
    early: Mutex<Vec<Warning>>,
}

impl Out {
    /// Standard output.
    pub fn new(json: bool, quiet: bool) -> Self {
        let stdout = BufWriter::new(Stdout);
        let (done, early) = (None, Mutex::default());
        Self { stdout, json, quiet, closed: false, failure: None, done, early }
    }

    /// How many columns a line may have: those of the terminal, or as many as it takes.
    pub fn width(&self) -> usize {
        let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let terminal = || {
            let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
            io::stdout().is_terminal().then_some(usize::from(size.ws_col))
        };
        asked.or_else(terminal).filter(|&columns| columns > 0).unwrap_or(usize::MAX)
    }

    /// Remembers what was done, a sentence without its full stop. If it can't be shown, nobody
    /// shall think that it was not done.
    pub fn was_done(&mut self, what: impl Into<String>) {
        self.done = Some(what.into());
    }

    /// Writes a line of text.
    pub fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        let line = text::printable(line.as_ref());
        self.write(|stdout| writeln!(stdout, "{line}"));
        Ok(())
    }

    /// Writes a line on what went well: who wants quiet does not want it.
    pub fn success(&mut self, line: impl AsRef<str>) -> Result<()> {
        if self.quiet { Ok(()) } else { self.line(line) }
    }

    /// A whole result as JSON.
    pub fn to_json(&self, value: &impl Serialize) -> Result<String> {
        let json = serde_json::to_string_pretty(value).map_err(unwritable)?;
        Ok(text::printable_json(&json))
    }

    /// A part of a result as JSON, in one line.
    pub fn to_json_line(&self, value: &impl Serialize) -> Result<String> {
        let json = serde_json::to_string(value).map_err(unwritable)?;
        Ok(text::printable_json(&json))
    }

    /// Remembers a warning that came before the result: where the result has warnings, they hold it.
    pub fn warned(&self, warning: Warning) {
        self.early.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    /// Writes a whole result as JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let early = std::mem::take(self.early.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !early.is_empty() {
            let mut value = serde_json::to_value(value).map_err(unwritable)?;
            if let Some(warnings) = value.get_mut("warnings").and_then(|it| it.as_array_mut()) {
                let early = serde_json::to_value(early).map_err(unwritable)?;
                warnings.splice(0..0, early.as_array().cloned().unwrap_or_default());
            }
            let text = self.to_json(&value)?;
            return self.raw(&format!("{text}\n"));
        }
        let text = self.to_json(value)?;
        self.raw(&format!("{text}\n"))
    }

    /// Writes text as it is: JSON, a script or a help that is printable already.
    pub fn raw(&mut self, text: &str) -> Result<()> {
        self.write(|stdout| stdout.write_all(text.as_bytes()));
        Ok(())
    }

    /// Makes room for what is shown anew: an empty terminal, or a line between the old and the new.
    pub fn clear(&mut self) -> Result<()> {
        match io::stdout().is_terminal() && !self.json {
            true => self.raw("\x1b[H\x1b[2J"),
            false => self.raw("\n"),
        }
    }

    /// Whether nobody reads any more: time to stop, if showing is all that there is to do.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes what is held back now, while more is to come.
    pub fn flush(&mut self) -> Result<()> {
        self.write(Write::flush);
        Ok(())
    }

    /// Writes what is still held back, and tells what could not be written.
    ///
    /// # Errors
    /// Standard output took not everything.
    pub fn finish(mut self) -> Result<()> {
        self.write(Write::flush);
        match self.failure.take() {
            Some(failure) => Err(not_shown(failure, self.done.as_deref())),
            None => Ok(()),
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>) {
        if self.closed {
            return;
        }
        if let Err(error) = write(&mut self.stdout) {
            self.closed = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.failure = Some(error);
            }
        }
    }
}

/// Standard output, without what the standard library does not tell: it takes a descriptor that can't
/// be written to for a success.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What is there now is /dev/null, and takes everything.
        if stdout_was_closed() {
            return Err(io::Error::other("it is closed"));
        }
        Ok(rustix::io::write(io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A failure of standard output. Its status is never that of a full repository: nothing is the
/// matter with that.
fn not_shown(failure: io::Error, done: Option<&str>) -> Error {
    let error = Error::new(ErrorKind::Io, "cannot write to standard output").because(failure);
    match done {
        Some(done) => error.advise(format!("{done}; only what was to be shown of it is lost")),
        None => error,
    }
}

/// A result that JSON can't hold.
fn unwritable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot write the result as JSON").because(error)
}

impl Drop for Out {
    fn drop(&mut self) {
        // What could not be written is not tried again by the buffer's own end.
        let _ = self.stdout.flush();
    }
}
