//! Standard output: results and nothing else.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use qdelta::{Error, ErrorKind, Result};
use serde::Serialize;

use super::text;

/// Where results go. Somebody who stops reading, like `head`, has seen enough: that is no error.
pub struct Out {
    stdout: BufWriter<Stdout>,
    /// Whether results are JSON.
    pub json: bool,
    /// Nobody reads any more, or nothing can be written.
    closed: bool,
    /// Why nothing can be written.
    failed: Option<io::Error>,
}

impl Out {
    /// Standard output.
    pub fn new(json: bool) -> Self {
        Self { stdout: BufWriter::new(io::stdout()), json, closed: false, failed: None }
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

    /// Writes a line of text.
    pub fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        let line = text::printable(line.as_ref());
        self.write(|stdout| writeln!(stdout, "{line}"))
    }

    /// A whole result as JSON.
    pub fn to_json(&self, value: &impl Serialize) -> Result<String> {
        serde_json::to_string_pretty(value).map_err(unwritable)
    }

    /// A part of a result as JSON, in one line.
    pub fn to_json_line(&self, value: &impl Serialize) -> Result<String> {
        serde_json::to_string(value).map_err(unwritable)
    }

    /// Writes a whole result as JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = self.to_json(value)?;
        self.raw(&format!("{text}\n"))
    }

    /// Writes text as it is.
    pub fn raw(&mut self, text: &str) -> Result<()> {
        self.write(|stdout| stdout.write_all(text.as_bytes()))
    }

    /// Whether nobody reads any more: time to stop.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes what is held back now, while more is to come.
    pub fn flush(&mut self) -> Result<()> {
        self.write(Write::flush)
    }

    /// Writes what is still held back.
    ///
    /// # Errors
    /// Something could not be written, now or before: the work was to be ended first.
    pub fn finish(mut self) -> Result<()> {
        self.write(Write::flush)?;
        let Some(error) = self.failed.take() else { return Ok(()) };
        // The repository has nothing to do with it, whatever it is.
        Err(Error::new(ErrorKind::Io, "cannot write to standard output")
            .because(error)
            .advise("what was to be done is done: only what it says about it is lost"))
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>,
    ) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        if let Err(error) = write(&mut self.stdout) {
            self.closed = true;
            let is_enough = error.kind() == io::ErrorKind::BrokenPipe;
            self.failed = (!is_enough).then_some(error);
        }
        Ok(())
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
