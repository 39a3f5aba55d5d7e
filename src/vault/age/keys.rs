//! Keys of age: who a file is encrypted to, and who can open it.

use std::fmt;
use std::str::FromStr;

use super::crypt::{self, Wiped};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::formats::age::{IDENTITY_PREFIX, RECIPIENT_PREFIX, bech32};

/// The comment over an identity that is a repository's own. Such a key is never tried on what others may have
/// encrypted to it.
pub const REPOSITORY_MARK: &str = "# the identity of a repository of qdelta";

/// Whoever a file can be encrypted to: a public key, `age1…`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub [u8; 32]);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&bech32::encode(RECIPIENT_PREFIX, &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Recipient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            // A secret that was taken for a recipient is not shown again: errors end in journals.
            let is_public = text.starts_with("age1");
            let shown = if is_public { format!("{text:?}") } else { "what was given".to_owned() };
            Error::new(ErrorKind::Usage, format!("{shown} is no recipient of age: {why}"))
                .advise("a recipient is the public key that age-keygen shows: age1…")
        };
        let bytes = bech32::decode(RECIPIENT_PREFIX, text).map_err(|words| wrong(&words))?;
        let bytes = bytes.try_into().map_err(|_| wrong("it is no key of X25519"))?;
        match crypt::agree(&[9; 32], &bytes)? {
            Some(_) => Ok(Self(bytes)),
            None => Err(wrong("no file can be encrypted to it")),
        }
    }
}

/// What opens the files that are encrypted to its recipient: `AGE-SECRET-KEY-1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    secret: Wiped<32>,
    recipient: Recipient,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient)
    }
}

impl Identity {
    /// A new one, that nobody else has.
    ///
    /// # Errors
    /// The kernel gives no random bytes, or OpenSSL fails.
    pub fn new() -> Result<Self> {
        Self::of(Wiped(random::bytes()?))
    }

    fn of(secret: Wiped<32>) -> Result<Self> {
        let recipient = Recipient(crypt::public_of(&secret.0)?);
        Ok(Self { secret, recipient })
    }

    /// Whose files it opens.
    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// The secret itself.
    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret.0
    }

    /// A secret that follows from this one for one purpose, and says nothing about it.
    pub fn derive(&self, purpose: &str) -> Wiped<32> {
        crypt::derive(&self.secret.0, b"qdelta", purpose)
    }

    /// The identity as age writes it. Whoever sees it can open everything.
    pub fn to_text(&self) -> String {
        bech32::encode(IDENTITY_PREFIX, &self.secret.0)
    }

    /// A file of the identity of a repository, as `age-keygen` writes one: it says what the identity is.
    pub fn to_file(&self) -> String {
        format!(
            "{REPOSITORY_MARK}: it opens every file\n# public key: {}\n{}\n",
            self.recipient,
            self.to_text()
        )
    }
}

impl FromStr for Identity {
    type Err = Error;

    /// The error does not show what was read.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(ErrorKind::Usage, format!("no identity of age: {why}"));
        let bytes = bech32::decode(IDENTITY_PREFIX, text).map_err(|words| wrong(&words))?;
        let secret = bytes.try_into().map_err(|_| wrong("it is no key of X25519"))?;
        Self::of(Wiped(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let identity = Identity::new().unwrap();
        assert_eq!(identity.to_text().parse::<Identity>().unwrap(), identity);
        let recipient = identity.recipient();
        assert_eq!(recipient.to_string().parse::<Recipient>().unwrap(), recipient);
        assert_ne!(Identity::new().unwrap().recipient(), recipient);
        let shown = format!("{identity:?}");
        assert!(!shown.contains("SECRET") && shown.contains("age1"), "{shown}");
        let zeros = Recipient([0; 32]).to_string();
        assert!(zeros.parse::<Recipient>().is_err());
        let half = &identity.to_text()[..40];
        let error = half.parse::<Identity>().unwrap_err();
        assert!(!error.chain().contains(half), "{}", error.chain());
    }
}
