//! The few things that OpenSSL computes.

use std::fmt;

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::derive::Deriver;
use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey};
use openssl::sha::{Sha256, sha256};

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::age::TAG_LEN;

/// Bytes of a block of SHA-256.
const BLOCK_LEN: usize = 64;

/// A secret of `N` bytes: nothing shows it, and its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Wiped<const N: usize>(pub [u8; N]);

impl<const N: usize> Drop for Wiped<N> {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving the line above out.
        std::hint::black_box(&self.0);
    }
}

impl<const N: usize> fmt::Debug for Wiped<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// HMAC-SHA256 under one key.
#[derive(Clone)]
pub struct Hmac {
    inner: Sha256,
    outer: Sha256,
}

impl fmt::Debug for Hmac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Hmac {
    /// For a key of any length.
    pub fn new(key: &[u8]) -> Self {
        let mut block = Wiped([0; BLOCK_LEN]);
        let hashed = if key.len() > BLOCK_LEN { &sha256(key) } else { key };
        block.0.iter_mut().zip(hashed).for_each(|(to, from)| *to = *from);
        let begun = |pad: u8| {
            let mut hasher = Sha256::new();
            hasher.update(&block.0.map(|byte| byte ^ pad));
            hasher
        };
        Self { inner: begun(0x36), outer: begun(0x5c) }
    }

    /// The code of these parts, one after the other.
    pub fn of(&self, parts: &[&[u8]]) -> [u8; 32] {
        let (mut inner, mut outer) = (self.inner.clone(), self.outer.clone());
        parts.iter().for_each(|part| inner.update(part));
        outer.update(&inner.finish());
        outer.finish()
    }
}

/// 32 bytes of HKDF-SHA256.
pub fn derive(secret: &[u8], salt: &[u8], purpose: &str) -> Wiped<32> {
    let extracted = Wiped(Hmac::new(salt).of(&[secret]));
    Wiped(Hmac::new(&extracted.0).of(&[purpose.as_bytes(), &[1]]))
}

/// Whether two codes are the same; how long that takes says nothing of where they differ.
pub fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    openssl::memcmp::eq(one, other)
}

/// The sum of a text as `sha256sum` writes it.
pub fn sha256_text(bytes: &[u8]) -> String {
    sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What X25519 makes of a secret and somebody's public key; none if the key is of a small order.
pub(super) fn agree(secret: &[u8; 32], public: &[u8; 32]) -> Result<Option<Wiped<32>>> {
    let agree = || -> Result<Wiped<32>, ErrorStack> {
        let secret = PKey::private_key_from_raw_bytes(secret, Id::X25519)?;
        let public = PKey::public_key_from_raw_bytes(public, Id::X25519)?;
        let mut deriver = Deriver::new(&secret)?;
        deriver.set_peer(&public)?;
        let mut shared = Wiped([0; 32]);
        // OpenSSL refuses a result of zeros.
        deriver.derive(&mut shared.0).map(|_| shared)
    };
    Ok(agree().ok().filter(|shared| shared.0 != [0; 32]))
}

/// The public key of a secret.
pub(super) fn public_of(secret: &[u8; 32]) -> Result<[u8; 32]> {
    let secret = PKey::private_key_from_raw_bytes(secret, Id::X25519).map_err(failed)?;
    let public = secret.raw_public_key().map_err(failed)?;
    public.try_into().map_err(|_| Error::new(ErrorKind::Io, "X25519 gave no key"))
}

/// The key that scrypt makes of a passphrase.
pub(super) fn stretch(passphrase: &[u8], salt: &[u8], work: u8) -> Result<Wiped<32>> {
    let (n, r) = (1_u64 << work.min(62), 8);
    let mut key = Wiped([0; 32]);
    let room = 128 * r * n.saturating_add(32);
    openssl::pkcs5::scrypt(passphrase, salt, n, r, 1, room, &mut key.0).map_err(|error| {
        failed(error).within(format!("cannot take {} MiB for scrypt", room >> 20))
    })?;
    Ok(key)
}

/// ChaCha20-Poly1305 under one key.
pub(super) struct Aead {
    context: CipherCtx,
    seals: bool,
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aead")
    }
}

impl Aead {
    /// To seal messages with.
    pub fn to_seal(key: &[u8; 32]) -> Result<Self> {
        let mut context = CipherCtx::new().map_err(failed)?;
        let cipher = Some(Cipher::chacha20_poly1305());
        context.encrypt_init(cipher, Some(key), None).map_err(failed)?;
        Ok(Self { context, seals: true })
    }

    /// To open messages with.
    pub fn to_open(key: &[u8; 32]) -> Result<Self> {
        let mut context = CipherCtx::new().map_err(failed)?;
        let cipher = Some(Cipher::chacha20_poly1305());
        context.decrypt_init(cipher, Some(key), None).map_err(failed)?;
        Ok(Self { context, seals: false })
    }

    /// Appends `plain`, sealed, to `out`.
    pub fn seal(&mut self, nonce: &[u8; 12], plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        debug_assert!(self.seals);
        self.context.encrypt_init(None, None, Some(nonce)).map_err(failed)?;
        self.context.cipher_update_vec(plain, out).map_err(failed)?;
        self.context.cipher_final_vec(out).map_err(failed)?;
        let mut tag = [0; TAG_LEN as usize];
        self.context.tag(&mut tag).map_err(failed)?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Writes what was sealed into `out`, which is as long; gives whether it is what was sealed. If not,
    /// what is in `out` is anyone's guess.
    pub fn open(&mut self, nonce: &[u8; 12], sealed: &[u8], out: &mut [u8]) -> Result<bool> {
        debug_assert!(!self.seals);
        let Some((body, tag)) = sealed.split_last_chunk::<{ TAG_LEN as usize }>() else {
            return Ok(false);
        };
        if body.len() != out.len() {
            return Ok(false);
        }
        self.context.decrypt_init(None, None, Some(nonce)).map_err(failed)?;
        self.context.set_tag(tag).map_err(failed)?;
        self.context.cipher_update(body, Some(out)).map_err(failed)?;
        Ok(self.context.cipher_final(&mut []).is_ok())
    }
}

/// OpenSSL has failed at what it never fails at but for want of memory, or by a rule of the system.
fn failed(error: ErrorStack) -> Error {
    Error::new(ErrorKind::Io, "OpenSSL failed").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 4231 and RFC 5869.
    #[test]
    fn the_vectors_of_the_standards_come_out() {
        let code = Hmac::new(b"Jefe").of(&[b"what do ya want ", b"for nothing?"]);
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&code), expected);
        let long = Hmac::new(&[0xaa; 131]);
        let code = long.of(&[b"Test Using Larger Than Block-Size Key - Hash Key First"]);
        let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(hex(&code), expected);
        let key = derive(&[0x0b; 22], &[], "");
        let expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d";
        assert_eq!(hex(&key.0), expected);
    }

    #[test]
    fn what_was_sealed_is_opened_and_nothing_else() {
        let (key, nonce) = ([1; 32], [2; 12]);
        let mut sealed = Vec::new();
        Aead::to_seal(&key).unwrap().seal(&nonce, b"a message", &mut sealed).unwrap();
        let mut open = Aead::to_open(&key).unwrap();
        let mut plain = [0; 9];
        for at in 0..sealed.len() {
            sealed[at] ^= 1;
            assert!(!open.open(&nonce, &sealed, &mut plain).unwrap(), "{at}");
            sealed[at] ^= 1;
        }
        assert!(!open.open(&[3; 12], &sealed, &mut plain).unwrap());
        assert!(!open.open(&nonce, &sealed[..15], &mut []).unwrap());
        assert!(open.open(&nonce, &sealed, &mut plain).unwrap());
        assert_eq!(&plain, b"a message");
        assert!(!Aead::to_open(&[4; 32]).unwrap().open(&nonce, &sealed, &mut plain).unwrap());
    }

    #[test]
    fn a_public_key_of_small_order_agrees_with_nobody() {
        assert!(agree(&[7; 32], &[0; 32]).unwrap().is_none());
        let (one, other) = ([7; 32], [8; 32]);
        let shared = agree(&one, &public_of(&other).unwrap()).unwrap().unwrap();
        assert_eq!(Some(shared), agree(&other, &public_of(&one).unwrap()).unwrap());
    }

    #[test]
    fn no_secret_is_shown() {
        let shown = format!("{:?} {:?}", Wiped([7; 32]), Hmac::new(b"key"));
        assert!(!shown.contains('7'), "{shown}");
    }
}
