//! Encryption by TLS 1.3 with keys that both sides know beforehand: who has the key is who is meant, and there are no
//! certificates.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslStream,
    SslVerifyMode, SslVersion,
};

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::Opener;
use crate::formats::nbd::Uri;

/// The longest file of keys that is read, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// The shortest key that is taken, in bytes.
const KEY_LEN_MIN: usize = 16;
/// The longest key that TLS knows, in bytes.
const KEY_LEN_MAX: usize = 256;

/// The name of each key, and the key.
pub(crate) type Keys = HashMap<Vec<u8>, Vec<u8>>;

/// Reads a file of keys as `psktool` of GnuTLS writes it: lines of `NAME:KEY`, the key in hexadecimal digits.
///
/// # Errors
/// It can't be read, others may read it, or a line is something else.
pub(crate) fn read_keys(path: &Path) -> Result<Keys> {
    let failed = |error| Error::io("read", path, error);
    let mode = path.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        let text = format!("{}: others than its owner may use the keys", path.display());
        return Err(Error::new(ErrorKind::Usage, text).advise("chmod 600 it"));
    }
    let text = Opener::READ.read_text(path, FILE_LEN_MAX).map_err(failed)?;
    let mut keys = Keys::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is not for a log.
        let (name, key) = parse(line).ok_or_else(|| {
            let text = format!("{}: line {} names no key", path.display(), number + 1);
            Error::new(ErrorKind::Usage, text).advise(
                "psktool --username NAME --pskfile FILE writes NAME:KEY, with a key of 16 bytes or more",
            )
        })?;
        keys.insert(name, key);
    }
    if keys.is_empty() {
        let text = format!("{}: it has no keys: nobody could connect", path.display());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok(keys)
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

/// What both sides of a connection that keys encrypt have in common.
///
/// # Errors
/// OpenSSL can't do it.
pub(crate) fn context(method: SslMethod) -> std::result::Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(method)?;
    // Its key exchange is ephemeral: who learns a key later reads nothing of what was sent before.
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    // Keys of this kind go with this hash alone.
    builder.set_ciphersuites("TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256")?;
    builder.set_options(SslOptions::NO_TICKET);
    builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    Ok(builder)
}

/// How to encrypt connections to the server of a URI; none if it is not asked for.
///
/// # Errors
/// The URI names no keys, or none that is clearly meant; they can't be read.
pub(super) fn client(uri: &Uri) -> Result<Option<Encryption>> {
    let usage = |text: &str| Error::new(ErrorKind::Usage, format!("{uri}: {text}"));
    let file = match (uri.tls, &uri.psk_file) {
        (false, None) => return Ok(None),
        (false, Some(_)) => {
            return Err(usage("keys are named, and nothing would be encrypted")
                .advise("nbds:// and nbds+unix:// encrypt"));
        }
        (true, None) => {
            return Err(usage("it names no keys")
                .because("certificates are not taken")
                .advise("add ?tls-psk-file=FILE, with lines of NAME:KEY"));
        }
        (true, Some(file)) => Path::new(file),
    };
    let mut keys = read_keys(file)?.into_iter();
    let found = match &uri.user {
        Some(user) => keys.find(|(name, _)| name == user.as_bytes()),
        None => keys.next().filter(|_| keys.next().is_none()),
    };
    let (name, key) = found.ok_or_else(|| match &uri.user {
        Some(user) => usage(&format!("{} has no key of {user}", file.display())),
        None => usage(&format!("{} has several keys", file.display()))
            .advise("say whose is meant: nbds://NAME@HOST/…"),
    })?;
    let build = || {
        let mut builder = context(SslMethod::tls_client())?;
        // A server that comes with a certificate in place of the key could be anybody.
        builder.set_verify(SslVerifyMode::PEER);
        builder.set_psk_client_callback(move |_, _, name_out, key_out| {
            // The name ends with a zero byte. A key of no bytes: there is none.
            let ended = [name.as_slice(), &[0]].concat();
            let places = (name_out.get_mut(..ended.len()), key_out.get_mut(..key.len()));
            let (Some(name_out), Some(key_out)) = places else { return Ok(0) };
            name_out.copy_from_slice(&ended);
            key_out.copy_from_slice(&key);
            Ok(key.len())
        });
        Ok(Encryption(builder.build()))
    };
    let refused = |error: ErrorStack| {
        Error::new(ErrorKind::Io, "OpenSSL refuses to set TLS up").because(error)
    };
    build().map(Some).map_err(refused)
}

/// How connections to a server are encrypted.
pub(super) struct Encryption(SslContext);

impl Encryption {
    /// A channel over a connection, on which nothing was agreed yet.
    pub fn over<S: io::Read + io::Write>(&self, connection: S) -> io::Result<Channel<S>> {
        Ok(Channel(SslStream::new(Ssl::new(&self.0)?, connection)?))
    }
}

/// A connection that is encrypted, and waits for nothing.
#[derive(Debug)]
pub(super) struct Channel<S>(SslStream<S>);

/// What a step on a channel comes to.
pub(super) enum Step<T> {
    /// It is done.
    Done(T),
    /// The connection must have something to be read before it can go on.
    Read,
    /// The connection must take something.
    Write,
}

impl<S: io::Read + io::Write> Channel<S> {
    /// Agrees with the server on encryption.
    pub fn agree(&mut self) -> io::Result<Step<()>> {
        step(self.0.connect())
    }

    /// Reads what the server has sent; nothing at its end.
    pub fn read(&mut self, out: &mut [u8]) -> io::Result<Step<usize>> {
        step(match self.0.ssl_read(out) {
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
            read => read,
        })
    }

    /// Sends some of `bytes`; gives how many.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Step<usize>> {
        step(self.0.ssl_write(bytes))
    }
}

fn step<T>(outcome: std::result::Result<T, openssl::ssl::Error>) -> io::Result<Step<T>> {
    match outcome {
        Ok(done) => Ok(Step::Done(done)),
        Err(error) => match error.code() {
            ErrorCode::WANT_READ => Ok(Step::Read),
            ErrorCode::WANT_WRITE => Ok(Step::Write),
            _ => Err(error.into_io_error().unwrap_or_else(io::Error::other)),
        },
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
