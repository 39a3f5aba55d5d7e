//! Where the fields of a fixed structure lie. Each structure chains its fields, so that an offset
//! is never written twice, and a test compares the chain with the tables of the document.

use crate::{FormatError, Problem};

/// One field of a fixed structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What errors call it.
    pub name: &'static str,
    /// Where it starts, in bytes from the start of the structure.
    pub offset: usize,
    /// Its length in bytes.
    pub size: usize,
}

impl Field {
    /// The first field of a structure.
    pub(super) const fn first(size: usize, name: &'static str) -> Self {
        Self { name, offset: 0, size }
    }

    /// The field that follows this one without a gap.
    pub(super) const fn then(self, size: usize, name: &'static str) -> Self {
        Self { name, offset: self.end(), size }
    }

    /// Where the field ends, in bytes from the start of the structure.
    pub const fn end(self) -> usize {
        self.offset + self.size
    }

    /// An error about this field of a structure that starts at byte 0.
    pub(super) fn error(self, problem: Problem) -> FormatError {
        FormatError::new(self.offset as u64, self.name, problem)
    }

    /// An error about this field, in words.
    pub(super) fn invalid(self, words: impl Into<std::borrow::Cow<'static, str>>) -> FormatError {
        self.error(Problem::Invalid(words.into()))
    }

    /// The field's bytes.
    pub(super) fn bytes<const N: usize>(self, from: &[u8]) -> Result<[u8; N], FormatError> {
        debug_assert_eq!(self.size, N, "{} is read as {N} bytes", self.name);
        from.get(self.offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| {
            self.error(Problem::Truncated {
                needed: N as u64,
                available: from.len().saturating_sub(self.offset) as u64,
            })
        })
    }

    /// The field as an unsigned byte.
    pub(super) fn u8(self, from: &[u8]) -> Result<u8, FormatError> {
        self.bytes(from).map(u8::from_le_bytes)
    }

    /// The field as two little-endian bytes.
    pub(super) fn u16(self, from: &[u8]) -> Result<u16, FormatError> {
        self.bytes(from).map(u16::from_le_bytes)
    }

    /// The field as four little-endian bytes.
    pub(super) fn u32(self, from: &[u8]) -> Result<u32, FormatError> {
        self.bytes(from).map(u32::from_le_bytes)
    }

    /// The field as eight little-endian bytes.
    pub(super) fn u64(self, from: &[u8]) -> Result<u64, FormatError> {
        self.bytes(from).map(u64::from_le_bytes)
    }

    /// Fails unless the field holds `magic`.
    pub(super) fn expect_magic<const N: usize>(
        self,
        from: &[u8],
        magic: &[u8; N],
        of: &'static str,
    ) -> Result<(), FormatError> {
        if self.bytes::<N>(from)? == *magic {
            Ok(())
        } else {
            Err(self.error(Problem::BadMagic(of)))
        }
    }

    /// Fails unless every byte of the field is zero: a later version may give them a meaning,
    /// behind a feature bit.
    pub(super) fn expect_zero(self, from: &[u8]) -> Result<(), FormatError> {
        match from.get(self.offset..self.end()) {
            Some(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(()),
            _ => Err(self.invalid("reserved bytes that are not zero")),
        }
    }

    /// Fails unless the field holds the CRC-32 of everything before it.
    pub(super) fn expect_crc(self, from: &[u8]) -> Result<(), FormatError> {
        let stored = self.u32(from)?;
        let computed = crc32fast::hash(from.get(..self.offset).unwrap_or_default());
        if stored == computed {
            Ok(())
        } else {
            Err(self.error(Problem::Checksum { stored, computed }))
        }
    }

    /// Appends the field's bytes to a structure that is written front to back.
    pub(super) fn append(self, to: &mut Vec<u8>, base: usize, bytes: &[u8]) {
        debug_assert_eq!(to.len(), base + self.offset, "{} is out of order", self.name);
        debug_assert_eq!(self.size, bytes.len(), "{} has another size", self.name);
        to.extend_from_slice(bytes);
    }
}
