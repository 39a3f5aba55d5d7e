//! The keys of an encrypted repository.

use std::fmt;
use std::str::FromStr;

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::age::bech32;
use crate::vault::age::{Identity, REPOSITORY_MARK, Recipient, Wiped};

/// How the text of a host's key begins, before its `1`.
const HOST_PREFIX: &str = "QDELTA-HOST-KEY-";

/// What a host must have to add points to a repository: to whom everything is encrypted, and a secret
/// that names and codes come from. It opens no file.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    pub(super) recipient: Recipient,
    pub(super) secret: Wiped<32>,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.recipient)
    }
}

impl HostKey {
    /// The key of the hosts of the repository that has this identity.
    pub fn of(identity: &Identity) -> Self {
        Self { recipient: identity.recipient(), secret: identity.derive("host") }
    }

    /// To whom everything is encrypted.
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// The key as it stands in a file.
    pub fn to_text(&self) -> String {
        bech32::encode(HOST_PREFIX, &[self.recipient.0, self.secret.0].concat())
    }
}

impl FromStr for HostKey {
    type Err = Error;

    /// The error does not show what was read.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(ErrorKind::Usage, format!("no host key: {why}"));
        let bytes = bech32::decode(HOST_PREFIX, text).map_err(|words| wrong(&words))?;
        let (recipient, secret) = bytes
            .split_first_chunk()
            .and_then(|(recipient, rest)| Some((*recipient, rest.try_into().ok()?)))
            .ok_or_else(|| wrong("it is not 64 bytes long"))?;
        Ok(Self { recipient: Recipient(recipient), secret: Wiped(secret) })
    }
}

/// What somebody has of the keys of a repository.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Adds files, and finds them.
    pub host: HostKey,
    /// Opens them. A host that only adds points has none.
    pub identity: Option<Identity>,
    /// Whoever gave them knows that they are the repository's: nothing that lies there had to be believed.
    pub is_proved: bool,
}

impl From<Identity> for Keys {
    fn from(identity: Identity) -> Self {
        Self { host: HostKey::of(&identity), identity: Some(identity), is_proved: true }
    }
}

impl From<HostKey> for Keys {
    fn from(host: HostKey) -> Self {
        Self { host, identity: None, is_proved: true }
    }
}

/// What is in a file that people or programs give as the key.
#[derive(Clone)]
pub enum KeyText {
    /// Identities that are said to be those of repositories. Anybody can encrypt a file to one, so they open
    /// nothing in the folder of keys.
    Own(Vec<Identity>),
    /// Identities of age: those that the repository's own is encrypted to, or its own with nothing that says so.
    Identities(Vec<Identity>),
    /// The key of a host.
    Host(HostKey),
    /// A passphrase.
    Passphrase(String),
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(identities) => f.debug_tuple("Own").field(identities).finish(),
            Self::Identities(identities) => f.debug_tuple("Identities").field(identities).finish(),
            Self::Host(host) => f.debug_tuple("Host").field(host).finish(),
            Self::Passphrase(_) => f.write_str("Passphrase"),
        }
    }
}

/// The longest text of a key that is read, in bytes.
pub const KEY_TEXT_MAX: u64 = 64 << 10;

impl FromStr for KeyText {
    type Err = Error;

    /// Takes lines of identities or of a host's key, with comments as `age-keygen` writes them. A text of
    /// one line that is neither is a passphrase. Identities below the comment that `init --recovery` writes are
    /// those of repositories. The error does not show what was read.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(ErrorKind::Usage, why.to_owned()).advise(
                "a key is an identity of age (AGE-SECRET-KEY-1…), the key of a host \
                 (QDELTA-HOST-KEY-1…), or a passphrase of one line",
            )
        };
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let all: Vec<&str> = lines.collect();
        let is_key = |line: &&str| {
            let line = line.to_ascii_uppercase();
            // A passphrase may begin with the name of an epoch.
            line.starts_with("AGE-SECRET-KEY-")
                || line.starts_with("AGE-PLUGIN-")
                || line.starts_with("QDELTA-HOST-KEY-")
        };
        if !all.iter().any(is_key) {
            return match all.as_slice() {
                [] => Err(wrong("the key is empty")),
                [only] => Ok(Self::Passphrase((*only).to_owned())),
                _ => Err(wrong("what was given as the key is none")),
            };
        }
        let mut identities = Vec::new();
        for line in all.iter().filter(|line| !line.starts_with('#')) {
            if let Ok(host) = line.parse() {
                return Ok(Self::Host(host));
            }
            identities.push(line.parse().map_err(|error: Error| {
                wrong("what was given as the key is none").because(error.chain())
            })?);
        }
        match all.iter().any(|line| line.starts_with(REPOSITORY_MARK)) {
            true => Ok(Self::Own(identities)),
            false => Ok(Self::Identities(identities)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_keys_are_told_apart() {
        let identity = Identity::new().unwrap();
        let host = HostKey::of(&identity);
        let text = format!("# created: now\n# public key: x\n{}\n", identity.to_text());
        assert!(
            matches!(text.parse().unwrap(), KeyText::Identities(all) if all == [identity.clone()])
        );
        let own = identity.to_file().parse().unwrap();
        assert!(matches!(own, KeyText::Own(all) if all == [identity.clone()]));
        let text = format!("# a host\n{}\n", host.to_text());
        assert!(matches!(text.parse().unwrap(), KeyText::Host(found) if found == host));
        assert!(matches!("Age-of-empires".parse().unwrap(), KeyText::Passphrase(_)));
        let passphrase = "correct horse battery staple\n";
        let found: KeyText = passphrase.parse().unwrap();
        assert!(matches!(&found, KeyText::Passphrase(it) if it == passphrase.trim()));
        assert!(!format!("{found:?} {host:?}").contains("horse"));
        let half = &identity.to_text()[..50];
        for bad in ["", "\n", "two\nlines", half, &host.to_text()[..60]] {
            let error = bad.parse::<KeyText>().unwrap_err();
            assert!(bad.len() < 20 || !error.chain().contains(bad), "{}", error.chain());
        }
    }

    #[test]
    fn a_host_s_key_says_nothing_of_the_identity() {
        let identity = Identity::new().unwrap();
        let host = HostKey::of(&identity);
        assert_eq!(host.to_text().parse::<HostKey>().unwrap(), host);
        assert_eq!(host, HostKey::of(&identity.to_text().parse().unwrap()));
        assert!(host.to_text().starts_with("QDELTA-HOST-KEY-1"));
    }
}
