//! Where the pieces of the payload lie.

use std::ops::Range;

use crate::{FormatError, Problem};

/// Bytes of a piece before it is sealed; only the last one has fewer.
pub const CHUNK_LEN: u64 = 64 << 10;

/// Bytes that sealing adds to each piece.
pub const TAG_LEN: u64 = 16;

/// Bytes of the nonce between the header and the payload.
pub const NONCE_LEN: u64 = 16;

/// Bytes of a sealed piece.
const SEALED_CHUNK_LEN: u64 = CHUNK_LEN + TAG_LEN;

/// The payload of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Where it begins, in bytes from the start of the file.
    start: u64,
    /// Bytes of the content.
    len: u64,
}

impl Payload {
    /// The payload of a file of `file_len` bytes whose header has `header_len`.
    ///
    /// # Errors
    /// No file has that length: it was cut off.
    pub fn new(header_len: u64, file_len: u64) -> Result<Self, FormatError> {
        let start = header_len.saturating_add(NONCE_LEN);
        let sealed = file_len.saturating_sub(start);
        let chunks = sealed.div_ceil(SEALED_CHUNK_LEN);
        let last = sealed.saturating_sub(chunks.saturating_sub(1) * SEALED_CHUNK_LEN);
        // An empty piece is that of an empty file alone.
        let least = TAG_LEN + u64::from(chunks > 1);
        if chunks == 0 || last < least {
            let problem = Problem::Invalid("it ends in the middle of a piece".into());
            return Err(FormatError::new(start, "payload", problem));
        }
        Ok(Self { start, len: sealed - chunks * TAG_LEN })
    }

    /// Bytes of the content.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of the last piece.
    pub fn last_chunk(&self) -> u64 {
        self.len.saturating_sub(1) / CHUNK_LEN
    }

    /// Where in the file these pieces lie, sealed. The caller has bounded them.
    pub fn sealed(&self, chunks: Range<u64>) -> Range<u64> {
        let end = self.start + self.len + (self.last_chunk() + 1) * TAG_LEN;
        let at = |chunk: u64| (self.start + chunk * SEALED_CHUNK_LEN).min(end);
        at(chunks.start)..at(chunks.end)
    }

    /// Where in the content a piece lies.
    pub fn content(&self, chunk: u64) -> Range<u64> {
        let at = |chunk: u64| (chunk * CHUNK_LEN).min(self.len);
        at(chunk)..at(chunk + 1)
    }

    /// The nonce of a piece.
    pub fn nonce(&self, chunk: u64) -> [u8; 12] {
        chunk_nonce(chunk, chunk == self.last_chunk())
    }
}

/// The nonce of a piece: its number, and whether it is the last one.
pub fn chunk_nonce(chunk: u64, is_last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    for (to, from) in nonce.iter_mut().skip(3).zip(chunk.to_be_bytes()) {
        *to = from;
    }
    nonce[11] = u8::from(is_last);
    nonce
}

/// The length of a file with `len` bytes of content, whose header has `header_len`.
pub fn sealed_len(header_len: u64, len: u64) -> u64 {
    let chunks = len.div_ceil(CHUNK_LEN).max(1);
    header_len.saturating_add(NONCE_LEN).saturating_add(len).saturating_add(chunks * TAG_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_says_how_long_the_content_is() {
        for len in
            [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 10 * CHUNK_LEN, u64::from(u32::MAX)]
        {
            let file = sealed_len(200, len);
            let payload = Payload::new(200, file).unwrap();
            let chunks = payload.last_chunk() + 1;
            assert_eq!(payload.len(), len);
            assert_eq!(payload.sealed(0..chunks), 216..file);
            let last = payload.content(chunks - 1);
            assert_eq!(last.end, len);
            assert!(last.end - last.start <= CHUNK_LEN && (len == 0 || !last.is_empty()));
            let sealed = payload.sealed(chunks - 1..chunks);
            assert_eq!(sealed.end - sealed.start, last.end - last.start + TAG_LEN);
        }
    }

    #[test]
    fn a_file_that_was_cut_off_has_no_such_length() {
        let one = sealed_len(200, CHUNK_LEN);
        for len in (0..232).chain(one + 1..=one + 16) {
            assert!(Payload::new(200, len).is_err(), "{len}");
        }
        Payload::new(200, 232).unwrap();
        Payload::new(200, one + 17).unwrap();
    }

    #[test]
    fn nonces_count_and_the_last_one_is_marked() {
        assert_eq!(chunk_nonce(0, false), [0; 12]);
        assert_eq!(chunk_nonce(0x0102, true), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1]);
        let payload = Payload::new(0, sealed_len(0, CHUNK_LEN + 1)).unwrap();
        assert_eq!(payload.nonce(0)[11], 0);
        assert_eq!(payload.nonce(1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
