//! A client of the network block device protocol (NBD): an export of a server is bytes to be read, with the
//! ranges of it that are zero and those that a bitmap has as written to.
//!
//! Nothing that a server says is believed before it is bounded, nothing waits for it without an end, and what
//! makes no sense is an error. A connection that broke is not made again: what stands behind its name might be
//! another disk by then.

mod connection;
mod disk;
mod handshake;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use disk::{Description, Disk};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::FormatError;
use crate::formats::nbd::{Place, Uri};

/// The longest text of a server that an error shows, in characters.
const QUOTED_MAX: usize = 200;

/// An export by its name. The server is asked when it is opened first, and all who open it share the
/// connection: some servers end with their first one.
pub struct Export {
    uri: Uri,
    name: PathBuf,
    cancel: Cancel,
    /// A program that the admin named has started the server for a guest: its failures are of that kind.
    of_command: bool,
    opened: Mutex<Option<Arc<Disk>>>,
}

impl Export {
    /// The export that a URI names. Whoever cancels ends all waiting for the server.
    ///
    /// # Errors
    /// The text is no URI of NBD.
    pub fn new(uri: &str, cancel: &Cancel) -> Result<Self> {
        let mut parsed = Uri::parse(uri).map_err(|error| {
            Error::new(ErrorKind::Usage, format!("{} can't be used", shown(uri)))
                .because(error.problem.to_string())
                .advise("write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        })?;
        // The same name from another folder must not be another server.
        if let Place::Unix(socket) = &mut parsed.place {
            *socket = from_anywhere(socket)?;
        }
        parsed.psk_file = parsed.psk_file.map(|file| from_anywhere(&file)).transpose()?;
        let name = PathBuf::from(parsed.to_string());
        Ok(Self {
            uri: parsed,
            name,
            cancel: cancel.clone(),
            of_command: false,
            opened: Mutex::default(),
        })
    }

    /// The same, of a server that a snapshot command has started for a guest.
    #[must_use]
    pub fn of_command(mut self) -> Self {
        self.of_command = true;
        self
    }

    /// What it is called: its URI.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The name of the export at its server; empty for the default one.
    pub fn export(&self) -> &str {
        &self.uri.export
    }

    /// The disk behind it.
    ///
    /// # Errors
    /// The server can't be reached or has no such export; what it says makes no sense.
    pub fn open(&self) -> Result<Arc<Disk>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match opened.as_ref() {
            Some(disk) => Ok(Arc::clone(disk)),
            None => {
                let disk = Disk::open(&self.uri, &self.name, &self.cancel, self.of_command)?;
                Ok(Arc::clone(opened.insert(disk)))
            }
        }
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Export").field(&self.name).finish()
    }
}

/// A failure of a server, as what it is to whoever reads from its export.
fn seen(error: Error, of_command: bool) -> Error {
    let is_servers = matches!(error.kind(), ErrorKind::Io | ErrorKind::NotFound);
    match of_command && is_servers {
        true => Error::new(ErrorKind::Guest, "the snapshot command's server failed").because(error),
        false => error,
    }
}

/// Why something could not be had from a server.
#[derive(Debug)]
enum Failure {
    /// The server has said so itself; what comes next on the connection is what is expected.
    Told(Error),
    /// The connection is of no more use.
    Broken(Error),
}

impl Failure {
    /// The server says what makes no sense.
    fn odd(text: impl Into<String>) -> Self {
        Self::Broken(
            Error::new(ErrorKind::Io, "the server does not keep to the protocol")
                .because(text.into()),
        )
    }

    fn into_error(self) -> Error {
        match self {
            Self::Told(error) | Self::Broken(error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(match error.downcast::<Error>() {
            Ok(own) => own,
            // Only who connects hears either.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Error::new(ErrorKind::NotFound, "no server is there").because(error)
            }
            Err(error) => Error::new(ErrorKind::Io, "the connection failed").because(error),
        })
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        Self::odd(error.to_string())
    }
}

/// A path that means the same from every folder, as text.
fn from_anywhere(path: &str) -> Result<String> {
    let absolute =
        std::path::absolute(path).map_err(|error| Error::io("find", Path::new(path), error))?;
    absolute.into_os_string().into_string().map_err(|_| {
        let text = format!("{} lies in a folder whose name is not UTF-8", quoted(path));
        Error::new(ErrorKind::Usage, text)
    })
}

/// A URI that can't be used, for an error: in one line, not without end, and without a password.
fn shown(uri: &str) -> String {
    let start = uri.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = uri.split_at(start);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let secret = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':'));
    let plain = match secret {
        Some((user, secret)) => {
            let after = rest.get(user.len() + 1 + secret.len()..).unwrap_or_default();
            format!("{scheme}{user}:…{after}")
        }
        None => uri.to_owned(),
    };
    quoted(&plain)
}

/// What a server says, for an error: in one line and not without end.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(QUOTED_MAX).collect();
    let dots = if shown.len() < text.len() { "…" } else { "" };
    format!("'{}{dots}'", shown.escape_debug())
}
