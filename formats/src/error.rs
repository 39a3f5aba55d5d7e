//! The one error of this crate: which field, where, and what is wrong with it.

use std::borrow::Cow;

/// Bytes that do not follow their format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} at byte {offset}: {problem}")]
pub struct FormatError {
    /// Where the field starts, in bytes from the start of the file.
    pub offset: u64,
    /// The field's name in the words of its specification.
    pub field: Cow<'static, str>,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes end before the field does.
    #[error("{needed} bytes are needed and {available} are there")]
    Truncated {
        /// Length of the field in bytes.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// These are not the magic bytes of the format.
    #[error("not the magic bytes of {0}")]
    BadMagic(&'static str),
    /// The number lies outside what the format or QEMU allows.
    #[error("{value} is outside {min}..={max}")]
    OutOfRange {
        /// What the file says.
        value: u64,
        /// The least value allowed.
        min: u64,
        /// The greatest value allowed.
        max: u64,
    },
    /// An offset that must be aligned is not.
    #[error("{value:#x} is not aligned to {alignment}")]
    Misaligned {
        /// What the file says.
        value: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// A feature that this reader does not know and must not ignore.
    #[error("unsupported feature: {0}")]
    Unsupported(String),
    /// The stored checksum is not the checksum of the bytes.
    #[error("checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
}

impl FormatError {
    /// An error about `field`, which starts at byte `offset` of the file.
    pub fn new(offset: u64, field: impl Into<Cow<'static, str>>, problem: Problem) -> Self {
        Self { offset, field: field.into(), problem }
    }

    /// The same error, for bytes that start at `base` in the file rather than at 0.
    #[must_use]
    pub fn relative_to(mut self, base: u64) -> Self {
        self.offset = self.offset.saturating_add(base);
        self
    }
}
