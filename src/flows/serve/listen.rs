//! Where clients come in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::stream::Stream;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::rename_new;
use crate::disk::sys::{FileId, inherited_descriptors};

/// Where clients come in.
#[derive(Debug)]
pub enum Listener {
    /// A socket of this machine, and the file of it that is removed in the end.
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "held until the server ends")] Option<SocketFile>,
    ),
}

/// The file of a socket. It is removed when this is dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: FileId,
}

impl Listener {
    /// Makes a socket at `path`, which its owner alone may use.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if a server listens there; [`ErrorKind::Exists`] if something else lies
    /// there.
    pub fn bind(path: &Path) -> Result<Self> {
        make_way(path)?;
        let failed = |error| Error::io("make the socket", path, error);
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // Nobody but the owner gets into this folder: nobody connects before the mode is right.
        let private = tempfile::Builder::new().prefix(".q").rand_bytes(4).tempdir_in(folder);
        let private = private.map_err(failed)?;
        let place = private.path().join("s");
        let listener = UnixListener::bind(&place).map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&place, mode).map_err(failed)?;
        rename_new(&place, path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let id = FileId::at(path).map_err(failed)?;
        Ok(Self::Unix(listener, Some(SocketFile { path: path.to_owned(), id })))
    }

    /// The sockets that another program has opened for this one, as systemd does: so many, from the
    /// first that is no standard stream on. Call it once.
    ///
    /// # Errors
    /// One of them is no socket of this machine that clients can come to.
    pub fn inherited(count: u32) -> Result<Vec<Self>> {
        let mut listeners = Vec::new();
        for socket in inherited_descriptors(count) {
            let refused = |why: String| {
                let text = format!("a socket that the server was started with is of no use: {why}");
                Error::new(ErrorKind::Usage, text).advise("give it a listening Unix socket")
            };
            let socket = socket.map_err(|error| refused(error.to_string()))?;
            let listener = UnixListener::from(socket);
            // Of a socket of another family, the name can't be told.
            listener.local_addr().map_err(|error| refused(error.to_string()))?;
            listener.set_nonblocking(true).map_err(|error| refused(error.to_string()))?;
            listeners.push(Self::Unix(listener, None));
        }
        Ok(listeners)
    }

    /// The path of the socket, if it has one.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(listener, _) => Some(listener.local_addr().ok()?.as_pathname()?.to_owned()),
        }
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// `WouldBlock` if none does.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener, _) => Stream::unix(listener.accept()?.0),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// Removes the socket of a server that is gone.
fn make_way(path: &Path) -> Result<()> {
    let failed = |error| Error::io("look at", path, error);
    let file_type = match path.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !file_type.is_socket() {
        let text = format!("{} exists and is no socket", path.display());
        return Err(Error::new(ErrorKind::Exists, text).advise("name another place for the socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| Error::io("remove", path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("connect to", path, error)),
        Ok(_) => {
            let text = format!("another server listens on {}", path.display());
            Err(Error::new(ErrorKind::Busy, text).advise("stop it, or name another socket"))
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if FileId::at(&self.path).is_ok_and(|id| id == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
