//! Encryption for clients that come over a network: TLS 1.3 with keys that both sides know beforehand.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use openssl::ssl::{ErrorCode, Ssl, SslContext, SslMethod, SslStream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::nbd::tls::{self, read_keys};

/// Whom clients may be, and the key of each.
pub struct Keys {
    context: SslContext,
}

/// A connection that is encrypted.
pub struct Channel {
    socket: TcpStream,
    stream: Mutex<SslStream<TcpStream>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads a file of keys as `psktool` of GnuTLS writes it.
    ///
    /// # Errors
    /// As [`read_keys`].
    pub fn read(path: &Path) -> Result<Self> {
        let context = context(read_keys(path)?).map_err(|error| {
            Error::new(ErrorKind::Io, "OpenSSL refuses to set TLS up").because(error)
        })?;
        Ok(Self { context })
    }
}

fn context(keys: tls::Keys) -> std::result::Result<SslContext, openssl::error::ErrorStack> {
    let mut builder = tls::context(SslMethod::tls_server())?;
    builder.set_num_tickets(0)?;
    builder.set_psk_server_callback(move |_, name, out| {
        let key = name.and_then(|name| keys.get(name));
        // A key of no bytes: nobody is known by this name.
        let Some((key, out)) = key.and_then(|key| Some((key, out.get_mut(..key.len())?))) else {
            return Ok(0);
        };
        out.copy_from_slice(key);
        Ok(key.len())
    });
    Ok(builder.build())
}

impl Channel {
    /// Agrees with a client on encryption.
    ///
    /// # Errors
    /// The client has no key that is known, or does not come to the point.
    pub fn accept(keys: &Keys, socket: &TcpStream, until: Option<Instant>) -> io::Result<Self> {
        // Two threads use the connection, and OpenSSL works for one at a time: nobody waits in it.
        socket.set_nonblocking(true)?;
        let ssl = Ssl::new(&keys.context)?;
        let channel = Self {
            socket: socket.try_clone()?,
            stream: Mutex::new(SslStream::new(ssl, socket.try_clone()?)?),
        };
        channel.until_done(until, |stream| stream.accept())?;
        Ok(channel)
    }

    /// Reads what the client has sent; nothing at its end.
    ///
    /// # Errors
    /// The connection failed, or the client says nothing until then.
    pub fn read(&self, out: &mut [u8], until: Option<Instant>) -> io::Result<usize> {
        self.until_done(until, |stream| match stream.ssl_read(out) {
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
            read => read,
        })
    }

    /// Sends some of `bytes`; gives how many.
    ///
    /// # Errors
    /// The connection failed, or the client takes nothing until then.
    pub fn write(&self, bytes: &[u8], until: Option<Instant>) -> io::Result<usize> {
        self.until_done(until, |stream| stream.ssl_write(bytes))
    }

    fn stream(&self) -> MutexGuard<'_, SslStream<TcpStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a step as often as it takes, and waits for the socket in between, without the lock.
    fn until_done<T>(
        &self,
        until: Option<Instant>,
        mut step: impl FnMut(&mut SslStream<TcpStream>) -> std::result::Result<T, openssl::ssl::Error>,
    ) -> io::Result<T> {
        loop {
            let outcome = step(&mut self.stream());
            let error = match outcome {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let wanted = match error.code() {
                ErrorCode::WANT_READ => PollFlags::IN,
                ErrorCode::WANT_WRITE => PollFlags::OUT,
                _ => return Err(error.into_io_error().unwrap_or_else(io::Error::other)),
            };
            self.wait(wanted, until)?;
        }
    }

    fn wait(&self, wanted: PollFlags, until: Option<Instant>) -> io::Result<()> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = [PollFd::from_borrowed_fd(self.socket.as_fd(), wanted)];
        match poll(&mut polled, limit.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
