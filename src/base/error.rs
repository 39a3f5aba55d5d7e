//! The one error of the library: a small kind to match on, what was being done and where, the
//! cause, and one line of advice.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qdelta_formats::FormatError;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The advice of what may be well the next time.
pub const AGAIN: &str = "try again";

/// What kind of failure it is. Each kind has an exit status of its own in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked for makes no sense, whatever is on disk.
    Usage,
    /// The source image can't be read as what it claims to be, or by the rules we keep to.
    Image,
    /// An archive or a repository holds bytes that are not what was written.
    Damaged,
    /// There is no such repository, disk, point or file.
    NotFound,
    /// The target exists already, and nothing said that it may be replaced.
    Exists,
    /// Somebody else uses the image or the disk's part of the repository.
    Busy,
    /// No space is left, or a quota or file size limit is reached.
    NoSpace,
    /// Whoever read the output has gone away: a closed pipe. Nothing is wrong here.
    Closed,
    /// The user or a signal asked to stop.
    Interrupted,
    /// A guest can't be brought to the state that was asked for.
    Guest,
    /// A guest may be frozen, and could not be thawed.
    Alarm,
    /// The repository is encrypted, and the key that is needed was not given.
    Key,
    /// The system refused or failed an operation.
    Io,
}

/// A failure: what was being done to what, why it failed, and what to do about it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    advice: Option<Cow<'static, str>>,
    file: Option<PathBuf>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure without a further cause. `context` says what and where.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), advice: None, file: None, source: None }
    }

    /// A failed system call: `operation` is a verb ("open", "read 4096 bytes at 65536"), and the
    /// kind follows from the cause (no space, not found, everything else).
    pub fn io(operation: impl fmt::Display, path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        // A failure of ours that came through a trait of the system's is still the same.
        if let Some(own) = source.get_ref().and_then(|it| it.downcast_ref::<Self>()) {
            return own.clone().within(format!("cannot {operation} {}", path.display()));
        }
        let kind = match source.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::AlreadyExists => ErrorKind::Exists,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::BrokenPipe => ErrorKind::Closed,
            // Bytes that came, and are not those that were written.
            K::InvalidData => ErrorKind::Damaged,
            _ => ErrorKind::Io,
        };
        let advice = match source.raw_os_error().map(Errno::from_raw_os_error) {
            // Root is refused other things, with other codes.
            Some(Errno::ACCESS) => Some("run qdelta as root, or as a user who may do this"),
            _ => None,
        };
        let error = Self::new(kind, format!("cannot {operation} {}", path.display()));
        let error = error.because(source);
        match advice {
            Some(advice) => error.advise(advice),
            None => error,
        }
    }

    /// Bytes in `path` that do not follow their format.
    pub fn format(kind: ErrorKind, path: &Path, source: FormatError) -> Self {
        Self::new(kind, path.display().to_string()).because(source).of_file(path)
    }

    /// The same failure with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// The same failure with one line that says what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same failure, which is that of one file: its bytes are wrong, and not those of another.
    #[must_use]
    pub fn of_file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    /// The same failure seen from further out: `outer` becomes the text, this failure its cause.
    /// Kind and advice stay.
    #[must_use]
    pub fn within(mut self, outer: impl Into<String>) -> Self {
        let kind = self.kind;
        let advice = self.advice.take();
        Self { kind, context: outer.into(), advice, file: None, source: Some(Arc::new(self)) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it, if there is something to say.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// The file whose failure it is, and that failure alone.
    pub fn file(&self) -> Option<(&Path, &Self)> {
        let mut error = self;
        loop {
            if let Some(path) = &error.file {
                return Some((path, error));
            }
            error = error.source()?.downcast_ref()?;
        }
    }

    /// The text of the failure and of all its causes, joined by colons.
    pub fn chain(&self) -> String {
        let mut text = self.context.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
