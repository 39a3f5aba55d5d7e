//! The header: who can open the file, and a MAC over it.

use std::borrow::Cow;

use super::base64;
use crate::{FormatError, Problem};

/// The longest header that is read, in bytes.
pub const HEADER_LEN_MAX: usize = 64 << 10;

/// Length of the header's MAC, in bytes.
pub const MAC_LEN: usize = 32;

/// The most stanzas that a header may have.
const STANZAS_MAX: usize = 256;

/// The first line.
pub const VERSION: &[u8] = b"age-encryption.org/v1";

/// Base64 digits of a full line of a body.
const COLUMNS: usize = 64;

/// One way to the key of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    /// Its type and what belongs to it: never empty.
    pub args: Vec<String>,
    /// The wrapped key.
    pub body: Vec<u8>,
}

impl Stanza {
    /// A stanza of this type.
    pub fn new(kind: &str, args: &[&str], body: &[u8]) -> Self {
        let args = std::iter::once(&kind).chain(args).map(|&arg| arg.to_owned()).collect();
        Self { args, body: body.to_vec() }
    }

    /// Its type.
    pub fn kind(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }

    /// Its only argument, as `N` bytes, if it has one alone.
    pub fn only_arg<const N: usize>(&self) -> Option<[u8; N]> {
        match self.args.as_slice() {
            [_, only] => base64::decode(only).ok()?.try_into().ok(),
            _ => None,
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("-> ");
        out.push_str(&self.args.join(" "));
        out.push('\n');
        let mut body = base64::encode(&self.body);
        while body.len() >= COLUMNS {
            let rest = body.split_off(COLUMNS);
            out.push_str(&body);
            out.push('\n');
            body = rest;
        }
        out.push_str(&body);
        out.push('\n');
    }
}

/// The header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The ways to its key: at least one.
    pub stanzas: Vec<Stanza>,
    /// What proves that whoever wrote the header knew the key.
    pub mac: [u8; MAC_LEN],
}

impl Header {
    /// The bytes that the MAC of a header with these stanzas is of.
    pub fn authenticated(stanzas: &[Stanza]) -> Vec<u8> {
        let mut text = String::from_utf8_lossy(VERSION).into_owned();
        text.push('\n');
        stanzas.iter().for_each(|stanza| stanza.write(&mut text));
        text.push_str("---");
        text.into_bytes()
    }

    /// The bytes of the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::authenticated(&self.stanzas);
        bytes.push(b' ');
        bytes.extend_from_slice(base64::encode(&self.mac).as_bytes());
        bytes.push(b'\n');
        bytes
    }

    /// The header that a file begins with, and its length in bytes. A header has one text alone, so the
    /// bytes that its MAC is of are those of [`Self::authenticated`].
    ///
    /// # Errors
    /// The bytes are no header, or end before it does: `Truncated`.
    pub fn decode(file: &[u8]) -> Result<(Self, usize), FormatError> {
        let mut lines = Lines { bytes: file, offset: 0 };
        let version = match file.starts_with(VERSION) || VERSION.starts_with(file) {
            true => lines.next("version")?,
            false => return Err(FormatError::new(0, "version", Problem::BadMagic("an age file"))),
        };
        if version.as_bytes() != VERSION {
            return Err(FormatError::new(
                0,
                "version",
                Problem::BadMagic("an age file, version 1"),
            ));
        }
        let mut stanzas = Vec::new();
        loop {
            let at = lines.offset;
            let line = lines.next("stanza")?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = base64::decode(mac).map_err(|words| invalid(at, "MAC", words))?;
                let mac =
                    mac.try_into().map_err(|_| invalid(at, "MAC", "it is not 32 bytes long"))?;
                return match stanzas.is_empty() {
                    true => Err(invalid(at, "stanza", "there is none")),
                    false => Ok((Self { stanzas, mac }, lines.offset)),
                };
            }
            let args = line.strip_prefix("-> ").ok_or_else(|| {
                invalid(at, "stanza", "a line that begins neither a stanza nor the MAC")
            })?;
            let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
            let is_word =
                |arg: &String| !arg.is_empty() && arg.bytes().all(|b| b.is_ascii_graphic());
            if !args.iter().all(is_word) {
                return Err(invalid(at, "stanza", "an argument that is no word"));
            }
            if stanzas.len() == STANZAS_MAX {
                return Err(invalid(at, "stanza", "more than anybody writes"));
            }
            stanzas.push(Stanza { args, body: lines.body()? });
        }
    }
}

fn invalid(at: usize, field: &'static str, words: impl Into<Cow<'static, str>>) -> FormatError {
    FormatError::new(at as u64, field, Problem::Invalid(words.into()))
}

/// The lines of a header.
struct Lines<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self, field: &'static str) -> Result<&'a str, FormatError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let most = HEADER_LEN_MAX.saturating_sub(self.offset);
        let Some(len) = rest.iter().take(most).position(|&byte| byte == b'\n') else {
            return Err(match rest.len() < most {
                true => FormatError::new(
                    self.offset as u64,
                    field,
                    Problem::Truncated {
                        needed: rest.len() as u64 + 1,
                        available: rest.len() as u64,
                    },
                ),
                false => invalid(self.offset, field, "a header longer than anybody writes"),
            });
        };
        let line = rest.get(..len).and_then(|line| std::str::from_utf8(line).ok());
        let line = line.filter(|line| line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        let line = line.ok_or_else(|| invalid(self.offset, field, "a line that is no text"))?;
        self.offset += len + 1;
        Ok(line)
    }

    /// The body of a stanza: full lines, and one that is not.
    fn body(&mut self) -> Result<Vec<u8>, FormatError> {
        let mut body = Vec::new();
        loop {
            let at = self.offset;
            let line = self.next("body of a stanza")?;
            if line.len() > COLUMNS {
                return Err(invalid(at, "body of a stanza", "a line that is too long"));
            }
            let bytes =
                base64::decode(line).map_err(|words| invalid(at, "body of a stanza", words))?;
            body.extend_from_slice(&bytes);
            if line.len() < COLUMNS {
                return Ok(body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let stanzas = vec![
            Stanza::new("X25519", &[&base64::encode(&[1; 32])], &[2; 32]),
            Stanza::new("grease", &["a", "b!"], &[]),
            Stanza::new("long", &[], &[3; 96]),
        ];
        Header { stanzas, mac: [4; 32] }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = header().encode();
        let mut file = bytes.clone();
        file.extend_from_slice(b"payload\n");
        assert_eq!(Header::decode(&file).unwrap(), (header(), bytes.len()));
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.starts_with("age-encryption.org/v1\n-> X25519 AQEB"), "{text}");
        assert!(
            text.contains("\n-> grease a b!\n\n-> long\n"),
            "an empty body is an empty line: {text}"
        );
        for len in 0..bytes.len() {
            let error = Header::decode(&bytes[..len]).unwrap_err();
            assert!(matches!(error.problem, Problem::Truncated { .. }), "{len}: {error}");
        }
    }

    /// A second text of the same header would have a MAC of other bytes.
    #[test]
    fn a_header_has_one_text() {
        let text = String::from_utf8(header().encode()).unwrap();
        let others = [
            text.replace("/v1\n", "/v2\n"),
            text.replace("/v1\n", "/v1\r\n"),
            text.replace("-> grease a", "-> grease  a"),
            text.replace("-> grease", "->  grease"),
            text.replace("a b!\n", "a b! \n"),
            text.replace("a b!", "a \u{e9}"),
            text.replace("--- ", "---  "),
            text.replace("--- BA", "--- B"),
            text.replace("\n\n-> long", "\n-> long"),
            "age-encryption.org/v1\n--- BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ\n".to_owned(),
        ];
        for other in others {
            assert!(other != text && Header::decode(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn no_header_is_read_without_end() {
        let mut endless = b"age-encryption.org/v1\n".to_vec();
        endless.extend(b"-> x\n\n".repeat(HEADER_LEN_MAX));
        assert!(Header::decode(&endless).unwrap_err().to_string().contains("anybody writes"));
        let long = [b"age-encryption.org/v1\n-> ".as_slice(), &[b'x'; HEADER_LEN_MAX]].concat();
        assert!(Header::decode(&long).unwrap_err().to_string().contains("anybody writes"));
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_would_be_written(bytes in "(age-encryption.org/v1\n)?(-> [a-c ]{1,3}\n[A-C]{0,66}\n){0,3}--- [A-C]{43}\n") {
            if let Ok((header, len)) = Header::decode(bytes.as_bytes()) {
                prop_assert_eq!(header.encode(), bytes.as_bytes()[..len].to_vec());
            }
        }
    }
}
