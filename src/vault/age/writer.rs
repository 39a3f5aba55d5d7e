//! Writing a file from front to back.

use std::io::{self, Write};

use super::crypt::Aead;
use super::file::{self, FileKey};
use super::keys::Recipient;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::random;
use crate::formats::age::{CHUNK_LEN, NONCE_LEN, Stanza, chunk_nonce};

/// Whoever is to open a file.
#[derive(Debug, Clone, Copy)]
pub enum For<'a> {
    /// Whoever has the identity of this recipient.
    Recipient(&'a Recipient),
    /// Whoever knows this passphrase.
    Passphrase(&'a str),
}

/// Seals what is written to it, piece by piece, into `sink`.
#[derive(Debug)]
pub struct Sealer<W> {
    sink: W,
    aead: Aead,
    /// The number of the next piece.
    chunk: u64,
    /// Its content so far.
    plain: Vec<u8>,
    /// What is to be written next: at first the header.
    sealed: Vec<u8>,
    /// The header, and the nonce behind it.
    opening: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Begins a file. `more` makes a stanza of the file's key that stands beside a recipient's, and that
    /// age passes over.
    ///
    /// # Errors
    /// No file can be encrypted to the recipient; there is no memory for scrypt; OpenSSL fails.
    pub fn new(
        sink: W,
        to: For<'_>,
        more: impl FnOnce(&FileKey) -> Option<Stanza>,
    ) -> Result<Self> {
        let key = file::new_key()?;
        let stanzas = match to {
            For::Recipient(recipient) => {
                let first = file::for_recipient(&key, recipient)?;
                std::iter::once(first).chain(more(&key)).collect()
            }
            For::Passphrase(passphrase) => vec![file::for_passphrase(&key, passphrase)?],
        };
        let nonce: [u8; NONCE_LEN as usize] = random::bytes()?;
        let mut head = file::header(&key, stanzas).encode();
        head.extend_from_slice(&nonce);
        let aead = Aead::to_seal(&file::payload_key(&key, &nonce).0)?;
        let plain = Vec::with_capacity(CHUNK_LEN as usize);
        Ok(Self { sink, aead, chunk: 0, plain, sealed: head.clone(), opening: head })
    }

    /// What the file begins with: without these bytes nothing else of it can be read.
    pub fn opening(&self) -> &[u8] {
        &self.opening
    }

    /// What takes the sealed bytes.
    pub fn sink(&mut self) -> &mut W {
        &mut self.sink
    }

    /// Writes the last piece. Without it the file is torn, and nobody takes it for whole.
    ///
    /// # Errors
    /// The sink fails.
    pub fn finish(&mut self) -> io::Result<()> {
        let plain = std::mem::take(&mut self.plain);
        self.put(&plain, true)
    }

    fn put(&mut self, plain: &[u8], is_last: bool) -> io::Result<()> {
        let nonce = chunk_nonce(self.chunk, is_last);
        let sealed = self.aead.seal(&nonce, plain, &mut self.sealed);
        sealed.map_err(|error| io::Error::other(error.chain()))?;
        self.chunk += 1;
        self.sink.write_all(&self.sealed)?;
        self.sealed.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.plain.len() as u64 == CHUNK_LEN {
            // More follows, so this piece is not the last one.
            let plain = std::mem::take(&mut self.plain);
            let put = self.put(&plain, false);
            self.plain = plain;
            put?;
            self.plain.clear();
        }
        let room = CHUNK_LEN as usize - self.plain.len();
        let (now, _) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.plain.extend_from_slice(now);
        Ok(now.len())
    }

    /// What is not a whole piece stays here: only [`Self::finish`] writes it.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// A whole small file.
///
/// # Errors
/// As [`Sealer::new`].
pub fn seal_bytes(plain: &[u8], to: For<'_>) -> Result<Vec<u8>> {
    let mut sealer = Sealer::new(Vec::new(), to, |_| None)?;
    let sealed = sealer.write_all(plain).and_then(|()| sealer.finish());
    sealed.map_err(|error| Error::new(ErrorKind::Io, "cannot encrypt").because(error))?;
    Ok(sealer.sink)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::formats::age::sealed_len;
    use crate::vault::age::{Identity, Opened, open_bytes};

    /// A write of nothing behind a whole piece ended it as one that more follows, which was not so.
    #[test]
    fn a_file_is_the_same_in_whatever_pieces_it_is_written() {
        let identity = Identity::new().unwrap();
        let chunk = CHUNK_LEN as usize;
        let plain: Vec<u8> = (0..9 * chunk + 5).map(|at| (at / 7 % 251) as u8).collect();
        for len in [0, 1, chunk - 1, chunk, chunk + 1, 4 * chunk, 5 * chunk - 1, plain.len()] {
            for piece in [999, chunk, chunk + 1, 3 * chunk - 1, 4 * chunk, plain.len()] {
                let recipient = identity.recipient();
                let mut sealer =
                    Sealer::new(Vec::new(), For::Recipient(&recipient), |_| None).unwrap();
                for bytes in plain[..len].chunks(piece) {
                    sealer.write_all(bytes).unwrap();
                    assert_eq!(sealer.write(&[]).unwrap(), 0);
                }
                sealer.finish().unwrap();
                let header_len = sealer.opening().len() as u64 - NONCE_LEN;
                assert_eq!(sealer.sink.len() as u64, sealed_len(header_len, len as u64));
                let key = |header: &_| Opened::by_identity(header, &identity);
                let opened = open_bytes(&sealer.sink, Path::new("file"), key).unwrap().unwrap();
                assert!(opened == plain[..len], "{len} bytes in pieces of {piece}");
            }
        }
    }
}
