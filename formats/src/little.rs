//! Checked access to little-endian fields.

use byteorder::{ByteOrder, LittleEndian};

use crate::{FormatError, Problem};

/// Bytes of a disk together with the place that they came from, so that an error can name the place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Little<'a> {
    bytes: &'a [u8],
    base: u64,
}

impl<'a> Little<'a> {
    /// `bytes`, the first of which lies at byte `base`.
    pub(crate) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base }
    }

    /// An error in words about the field at `at`.
    pub(crate) fn invalid(
        &self,
        at: usize,
        field: &'static str,
        problem: impl Into<std::borrow::Cow<'static, str>>,
    ) -> FormatError {
        let offset = self.base.saturating_add(at as u64);
        FormatError::new(offset, field, Problem::Invalid(problem.into()))
    }

    /// `len` bytes from `at` on.
    pub(crate) fn slice(
        &self,
        at: usize,
        len: usize,
        field: &'static str,
    ) -> Result<&'a [u8], FormatError> {
        at.checked_add(len).and_then(|end| self.bytes.get(at..end)).ok_or_else(|| {
            let available = self.bytes.len().saturating_sub(at) as u64;
            let offset = self.base.saturating_add(at as u64);
            FormatError::new(offset, field, Problem::Truncated { needed: len as u64, available })
        })
    }

    /// The byte at `at`.
    pub(crate) fn u8(&self, at: usize, field: &'static str) -> Result<u8, FormatError> {
        Ok(self.slice(at, 1, field)?.first().copied().unwrap_or_default())
    }

    /// The 16-bit number at `at`.
    pub(crate) fn u16(&self, at: usize, field: &'static str) -> Result<u16, FormatError> {
        self.slice(at, 2, field).map(LittleEndian::read_u16)
    }

    /// The 32-bit number at `at`.
    pub(crate) fn u32(&self, at: usize, field: &'static str) -> Result<u32, FormatError> {
        self.slice(at, 4, field).map(LittleEndian::read_u32)
    }

    /// The 64-bit number at `at`.
    pub(crate) fn u64(&self, at: usize, field: &'static str) -> Result<u64, FormatError> {
        self.slice(at, 8, field).map(LittleEndian::read_u64)
    }
}
