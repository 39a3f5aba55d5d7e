//! The names by which clients find an export: URIs as NBD's own specification (`uri.md`) has them.

use std::borrow::Cow;
use std::fmt;

use super::NAME_LEN_MAX;
use crate::{FormatError, Problem};

/// The port of servers that are not told another.
const PORT: u16 = 10809;
/// The longest URI that is read, in bytes.
const URI_LEN_MAX: usize = 16 << 10;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a socket of this machine, by its path.
    Unix(String),
    /// At a host, by name or address, and a port.
    Tcp(String, u16),
}

/// A URI: where a server is, and which of its exports is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Where the server is.
    pub place: Place,
    /// The connection must be encrypted.
    pub tls: bool,
    /// As whom to connect.
    pub user: Option<String>,
    /// The export's name; empty for the default one.
    pub export: String,
    /// The file with the keys that both sides know beforehand.
    pub psk_file: Option<String>,
}

impl Uri {
    /// Whether a text is meant as a URI of NBD, though it may be none that can be used.
    pub fn is_meant(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_some_and(|it| ["nbd", "nbds"].contains(&it.split('+').next().unwrap_or_default()))
    }

    /// Reads a URI. What it asks for that is not known is passed over, as the specification has it.
    ///
    /// # Errors
    /// It is no URI of NBD, or of a kind that can't be used.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text.len() > URI_LEN_MAX {
            return Err(invalid(format!("it is longer than {URI_LEN_MAX} bytes")));
        }
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| invalid("it has no scheme like nbd://"))?;
        let (tls, is_unix) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            other => {
                let text = format!("the scheme {}", other.escape_debug());
                return Err(FormatError::new(0, "URI", Problem::Unsupported(text)));
            }
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            // It would be shown, and stand in the manifest of every point.
            Some((user, _)) if user.contains(':') => {
                return Err(invalid("it has a password, and servers of NBD know none"));
            }
            Some((user, host)) => (Some(plain(user)?), host),
            None => (None, authority),
        };
        let export = plain(path)?;
        if export.len() > NAME_LEN_MAX {
            let text = format!("the export's name is longer than {NAME_LEN_MAX} bytes");
            return Err(invalid(text));
        }
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .into_iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| plain(value))
                .transpose()
        };
        let place = match is_unix {
            true if !host.is_empty() => {
                return Err(invalid("a socket has no host"));
            }
            true => {
                let socket = value("socket")?.filter(|path| !path.is_empty());
                Place::Unix(socket.ok_or_else(|| invalid("it names no socket"))?)
            }
            false => place_at(host)?,
        };
        let uri = Self { place, tls, user, export, psk_file: value("tls-psk-file")? };
        // Manifests hold it as it is written out, and have to be read again.
        if uri.to_string().len() > URI_LEN_MAX {
            return Err(invalid(format!("written out, it is longer than {URI_LEN_MAX} bytes")));
        }
        Ok(uri)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|user| format!("{}@", escaped(user)));
        let (user, export) = (user.unwrap_or_default(), escaped(&self.export));
        let tls = if self.tls { "s" } else { "" };
        let keys = self.psk_file.as_ref().map(|path| format!("tls-psk-file={}", escaped(path)));
        match &self.place {
            Place::Unix(socket) => {
                let keys = keys.map(|keys| format!("&{keys}")).unwrap_or_default();
                let socket = escaped(socket);
                write!(f, "nbd{tls}+unix://{user}/{export}?socket={socket}{keys}")
            }
            Place::Tcp(host, port) => {
                let keys = keys.map(|keys| format!("?{keys}")).unwrap_or_default();
                // The zone of an address of IPv6 follows a %.
                let host = host.replace('%', "%25");
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                let port = if *port == PORT { String::new() } else { format!(":{port}") };
                write!(f, "nbd{tls}://{user}{host}{port}/{export}{keys}")
            }
        }
    }
}

fn invalid(text: impl Into<Cow<'static, str>>) -> FormatError {
    FormatError::new(0, "URI", Problem::Invalid(text.into()))
}

/// A host and its port.
fn place_at(text: &str) -> Result<Place, FormatError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port.filter(|port| !port.is_empty()) {
        None => PORT,
        Some(port) => port.parse().map_err(|_| invalid("its port is no number up to 65535"))?,
    };
    let is_odd = |it: char| it.is_control() || it.is_whitespace() || "[]/?#@".contains(it);
    let host = plain(host)?;
    match host.is_empty() || host.contains(is_odd) {
        true => Err(invalid("it names no host")),
        false => Ok(Place::Tcp(host, port)),
    }
}

/// A part of a URI as a text.
fn plain(text: &str) -> Result<String, FormatError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => (high << 4 | low) as u8,
                _ => return Err(invalid("a % without two hexadecimal digits")),
            },
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| invalid("it is no UTF-8"))?;
    match text.contains('\0') {
        true => Err(invalid("it has a zero byte")),
        false => Ok(text),
    }
}

/// The URI of an export of a server that listens at a socket of this path.
pub fn unix_uri(export: &str, socket: &str) -> String {
    format!("nbd+unix:///{}?socket={}", escaped(export), escaped(socket))
}

/// The URI of an export of a server that listens at an address, `HOST:PORT`, and encrypts.
pub fn tls_uri(export: &str, address: &str) -> String {
    format!("nbds://{address}/{}", escaped(export))
}

/// A text as a part of a URI; a path keeps its slashes.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        match is_plain {
            true => escaped.push(byte.into()),
            // Many a client takes a name with a plain @ in it for a user and a host.
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_of_a_network_names_the_address() {
        let uri = "nbds://[::1]:10809/web/vda%40latest";
        assert_eq!(tls_uri("web/vda@latest", "[::1]:10809"), uri);
    }

    #[test]
    fn uris_name_any_guest_and_any_path() {
        assert_eq!(
            unix_uri("web/vda@20261129T021929.882Z", "/run/libvirt/qdelta/web.sock"),
            "nbd+unix:///web/vda%4020261129T021929.882Z?socket=/run/libvirt/qdelta/web.sock"
        );
        assert_eq!(
            unix_uri("it's 100%/ä", "/run/a b?&#"),
            "nbd+unix:///it%27s%20100%25/%C3%A4?socket=/run/a%20b%3F%26%23"
        );
    }

    /// The zone of a host's address was written as it is, and could not be read again.
    #[test]
    fn what_is_shown_is_read_again() {
        for text in ["nbd://[fe80::1%25eth0]/x", "nbd://a%25b:1/", "nbd+unix:///%25?socket=/a%25"] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!(Uri::parse(&uri.to_string()), Ok(uri));
        }
    }

    #[test]
    fn uris_are_read_as_the_specification_has_them() {
        let unix = |export: &str, socket: &str| Uri {
            place: Place::Unix(socket.into()),
            tls: false,
            user: None,
            export: export.into(),
            psk_file: None,
        };
        let tcp = |host: &str, port, export: &str| Uri {
            place: Place::Tcp(host.into(), port),
            ..unix(export, "")
        };
        for (text, expected) in [
            ("nbd+unix:///vda?socket=/run/a.sock", unix("vda", "/run/a.sock")),
            ("nbd+unix://?socket=a.sock", unix("", "a.sock")),
            ("NBD+UNIX:///?x=1&socket=%2Fa%20b", unix("", "/a b")),
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://host:10810/", tcp("host", 10810, "")),
            ("nbd://[::1]:1/web/vda%40latest#x", tcp("::1", 1, "web/vda@latest")),
            ("nbd://[::1]", tcp("::1", 10809, "")),
            // A name may begin with a slash.
            ("nbd://host//abs", tcp("host", 10809, "/abs")),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!(uri, expected, "{text}");
            assert_eq!(Uri::parse(&uri.to_string()), Ok(uri), "{text}");
            assert!(Uri::is_meant(text));
        }
        let tls = Uri::parse("nbds://al%20ice@host/x?tls-psk-file=/etc/keys.psk").unwrap();
        assert!(tls.tls && tls.user.as_deref() == Some("al ice"));
        assert_eq!(tls.psk_file.as_deref(), Some("/etc/keys.psk"));
        assert_eq!(tls.to_string(), "nbds://al%20ice@host/x?tls-psk-file=/etc/keys.psk");
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for text in [
            "",
            "/images/web.qcow2",
            "http://host/",
            "nbd+vsock://1/",
            "nbd:unix:/a.sock",
            "nbd://",
            "nbd:///vda",
            "nbd://host:port/",
            "nbd://host:65536/",
            "nbd://ho st/",
            "nbd+unix:///vda",
            "nbd+unix:///vda?socket=",
            "nbd+unix://host/vda?socket=/a",
            "nbd://host/%",
            "nbd://host/%0",
            "nbd://host/%ff",
            "nbd://host/%00",
        ] {
            assert!(Uri::parse(text).is_err(), "{text}");
        }
        assert!(Uri::parse(&format!("nbd://host/{}", "a".repeat(NAME_LEN_MAX + 1))).is_err());
        // Letters that have to be escaped made a URI that could be written and not read.
        assert!(Uri::parse(&format!("nbd://{}@host/", "é".repeat(3000))).is_err());
        assert!(Uri::is_meant("nbd+vsock://1/") && Uri::is_meant("nbds://x"));
        for text in ["/images/nbd", "nbd", "nbd:x", "nbdx://a", "http://nbd://"] {
            assert!(!Uri::is_meant(text), "{text}");
        }
    }
}
