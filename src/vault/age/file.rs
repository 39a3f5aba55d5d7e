//! The key of a file: how it is wrapped for whoever may open it, and taken out again.

use super::crypt::{self, Aead, Hmac, Wiped, derive};
use super::keys::{Identity, Recipient};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::formats::age::{FILE_KEY_LEN, Header, NONCE_LEN, Stanza, TAG_LEN, base64};

const X25519: &str = "X25519";
const SCRYPT: &str = "scrypt";

/// What HKDF is told that the keys are for.
const X25519_PURPOSE: &str = "age-encryption.org/v1/X25519";
const SCRYPT_PURPOSE: &str = "age-encryption.org/v1/scrypt";

/// The work of scrypt for a passphrase, as age has it: 256 MiB and about a second.
const WORK: u8 = 18;

/// The most work that is done to open a file: 1 GiB.
const WORK_MAX: u8 = 20;

/// Bytes of a wrapped key of a file.
const WRAPPED_LEN: usize = FILE_KEY_LEN + TAG_LEN as usize;

/// The key of a file.
pub type FileKey = Wiped<FILE_KEY_LEN>;

/// A new key for a file.
pub(super) fn new_key() -> Result<FileKey> {
    Ok(Wiped(random::bytes()?))
}

/// The stanza that gives the key of a file to a recipient.
pub(super) fn for_recipient(key: &FileKey, recipient: &Recipient) -> Result<Stanza> {
    let secret: Wiped<32> = Wiped(random::bytes()?);
    let share = crypt::public_of(&secret.0)?;
    let shared = crypt::agree(&secret.0, &recipient.0)?.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("no file can be encrypted to {recipient}"))
    })?;
    let wrapping = wrapping_key(&shared, &share, recipient);
    let body = wrap(&wrapping, key)?;
    Ok(Stanza::new(X25519, &[&base64::encode(&share)], &body))
}

/// The stanza that gives the key of a file to whoever knows a passphrase. It must be the only one.
pub(super) fn for_passphrase(key: &FileKey, passphrase: &str) -> Result<Stanza> {
    let salt: [u8; 16] = random::bytes()?;
    let wrapping = stretch(passphrase, &salt, WORK)?;
    let body = wrap(&wrapping, key)?;
    Ok(Stanza::new(SCRYPT, &[&base64::encode(&salt), &WORK.to_string()], &body))
}

fn wrapping_key(shared: &Wiped<32>, share: &[u8; 32], recipient: &Recipient) -> Wiped<32> {
    derive(&shared.0, &[*share, recipient.0].concat(), X25519_PURPOSE)
}

fn stretch(passphrase: &str, salt: &[u8; 16], work: u8) -> Result<Wiped<32>> {
    crypt::stretch(passphrase.as_bytes(), &[SCRYPT_PURPOSE.as_bytes(), salt].concat(), work)
}

fn wrap(wrapping: &Wiped<32>, key: &FileKey) -> Result<Vec<u8>> {
    let mut body = Vec::with_capacity(WRAPPED_LEN);
    Aead::to_seal(&wrapping.0)?.seal(&[0; 12], &key.0, &mut body)?;
    Ok(body)
}

/// The key in a body, if it was wrapped with this one. A body of another length would let one file be
/// opened by many keys, so that answers tell which one somebody has.
fn unwrap(wrapping: &Wiped<32>, body: &[u8]) -> Result<Option<FileKey>> {
    let mut key = Wiped([0; FILE_KEY_LEN]);
    let is_one = body.len() == WRAPPED_LEN
        && Aead::to_open(&wrapping.0)?.open(&[0; 12], body, &mut key.0)?;
    Ok(is_one.then_some(key))
}

/// The header of a file with this key.
pub(super) fn header(key: &FileKey, stanzas: Vec<Stanza>) -> Header {
    let mac = mac(key, &stanzas);
    Header { stanzas, mac }
}

/// What the payload is sealed with.
pub(super) fn payload_key(key: &FileKey, nonce: &[u8; NONCE_LEN as usize]) -> Wiped<32> {
    derive(&key.0, nonce, "payload")
}

fn mac(key: &FileKey, stanzas: &[Stanza]) -> [u8; 32] {
    let key = derive(&key.0, &[], "header");
    Hmac::new(&key.0).of(&[&Header::authenticated(stanzas)])
}

/// The stanza of a file for a passphrase, its salt, and how many times the work doubles.
fn scrypt_of(header: &Header) -> Option<(&Stanza, [u8; 16], u8)> {
    let [stanza] = header.stanzas.as_slice() else { return None };
    let [kind, salt, work] = stanza.args.as_slice() else { return None };
    let salt = base64::decode(salt).ok()?.try_into().ok()?;
    let is_number = work.len() <= 2 && work.bytes().all(|b| b.is_ascii_digit());
    let is_ours = kind == SCRYPT && is_number && !work.starts_with('0');
    let work = work.parse().ok().filter(|_| is_ours)?;
    Some((stanza, salt, work))
}

/// How many steps of scrypt it takes to try a passphrase on a file; none if no passphrase opens it, or no
/// work that anybody asks for.
pub fn passphrase_steps(header: &Header) -> Option<u64> {
    let (_, _, work) = scrypt_of(header)?;
    (work <= WORK_MAX).then_some(1 << work)
}

/// What came of trying to open a file.
#[derive(Debug)]
pub enum Opened {
    /// Its key: the header is as it was written.
    Key(FileKey),
    /// It is not for this key or passphrase.
    NotFor,
    /// It is, but its header is not what was written.
    Changed,
}

impl Opened {
    fn proved(key: Option<FileKey>, header: &Header) -> Self {
        match key {
            None => Self::NotFor,
            Some(key) if crypt::same(&mac(&key, &header.stanzas), &header.mac) => Self::Key(key),
            Some(_) => Self::Changed,
        }
    }

    /// Tries an identity.
    ///
    /// # Errors
    /// OpenSSL fails.
    pub fn by_identity(header: &Header, identity: &Identity) -> Result<Self> {
        // A passphrase goes with nothing else: whoever wrote the file would not be who is thought.
        if header.stanzas.iter().any(|stanza| stanza.kind() == SCRYPT) {
            return Ok(Self::NotFor);
        }
        for stanza in header.stanzas.iter().filter(|stanza| stanza.kind() == X25519) {
            let Some(share) = stanza.only_arg::<32>() else { continue };
            let Some(shared) = crypt::agree(identity.secret(), &share)? else { continue };
            let wrapping = wrapping_key(&shared, &share, &identity.recipient());
            if let Some(key) = unwrap(&wrapping, &stanza.body)? {
                return Ok(Self::proved(Some(key), header));
            }
        }
        Ok(Self::NotFor)
    }

    /// Tries a passphrase.
    ///
    /// # Errors
    /// The file wants more work than anybody asks for; there is no memory for it.
    pub fn by_passphrase(header: &Header, passphrase: &str) -> Result<Self> {
        let Some((stanza, salt, work)) = scrypt_of(header) else { return Ok(Self::NotFor) };
        if work > WORK_MAX {
            let text = format!("the passphrase of a file is to cost 2^{work} steps of scrypt");
            return Err(Error::new(ErrorKind::Damaged, text)
                .because(format!("at most 2^{WORK_MAX} are made")));
        }
        let key = unwrap(&stretch(passphrase, &salt, work)?, &stanza.body)?;
        Ok(Self::proved(key, header))
    }
}
