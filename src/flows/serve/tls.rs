//! Encryption for clients that come over a network: TLS 1.3 with keys that both sides know beforehand.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslMode, SslOptions, SslStream, SslVersion,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;

/// The longest file of keys that is read, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// The shortest key that is taken, in bytes.
const KEY_LEN_MIN: usize = 16;
/// The longest key that TLS knows, in bytes.
const KEY_LEN_MAX: usize = 256;

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
    /// Reads a file of keys as `psktool` of GnuTLS writes it: lines of `NAME:KEY`, the key in hexadecimal
    /// digits.
    ///
    /// # Errors
    /// It can't be read, others may read it, or a line is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("read", path, error);
        let mode = path.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            let text = format!("{}: others than its owner may use the keys", path.display());
            return Err(Error::new(ErrorKind::Usage, text).advise("chmod 600 it"));
        }
        let text = Opener::READ.read_text(path, FILE_LEN_MAX).map_err(failed)?;
        let mut keys = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself is not for a log.
            let (name, key) = parse(line).ok_or_else(|| {
                let text = format!("{}: line {} names no key", path.display(), number + 1);
                Error::new(ErrorKind::Usage, text)
                    .advise("psktool --username NAME --pskfile FILE writes NAME:KEY, with a key of 16 bytes or more")
            })?;
            keys.insert(name, key);
        }
        if keys.is_empty() {
            let text = format!("{}: it has no keys: nobody could connect", path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let context = context(keys);
        let context = context.map_err(|error| {
            Error::new(ErrorKind::Io, "OpenSSL refuses to set TLS up").because(error)
        })?;
        Ok(Self { context })
    }
}

/// The name and the key of a line.
fn parse(line: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let (name, digits) = line.split_once(':')?;
    let is_hex = digits.len().is_multiple_of(2) && digits.bytes().all(|it| it.is_ascii_hexdigit());
    if name.is_empty() || !is_hex {
        return None;
    }
    let bytes = (0..digits.len()).step_by(2);
    let key: Option<Vec<u8>> =
        bytes.map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect();
    let key = key.filter(|key| (KEY_LEN_MIN..=KEY_LEN_MAX).contains(&key.len()))?;
    Some((name.as_bytes().to_vec(), key))
}

fn context(
    keys: HashMap<Vec<u8>, Vec<u8>>,
) -> std::result::Result<SslContext, openssl::error::ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::tls_server())?;
    // Its key exchange is ephemeral: who learns a key later reads nothing of what was sent before.
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    // Keys of this kind go with this hash alone.
    builder.set_ciphersuites("TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256")?;
    builder.set_options(SslOptions::NO_TICKET);
    builder.set_num_tickets(0)?;
    builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_psktool_is_a_name_and_a_key() {
        let key = "00112233445566778899aabbccddeeFF";
        let (name, bytes) = parse(&format!("web:{key}")).unwrap();
        assert_eq!((name.as_slice(), bytes.len(), bytes[15]), (&b"web"[..], 16, 0xff));
        for bad in ["", "web", ":00", "web:", "web:0011", "web:zz112233445566778899aabbccddeeff"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert!(parse(&format!("web:{key}0")).is_none());
        assert!(parse(&format!("web:{}", "00".repeat(257))).is_none());
    }
}
