//! Checked access to the fields of a structure.

use std::borrow::Cow;
use std::marker::PhantomData;

use byteorder::{BigEndian, ByteOrder, LittleEndian};

use crate::{FormatError, Problem};

/// Fields of which the highest byte comes first.
pub(crate) type Big<'a> = Fields<'a, BigEndian>;
/// Fields of which the lowest byte comes first.
pub(crate) type Little<'a> = Fields<'a, LittleEndian>;

/// Bytes of a file or a disk together with the place that they came from, so that an error can name the place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a, Order> {
    bytes: &'a [u8],
    base: u64,
    order: PhantomData<Order>,
}

impl<'a, Order: ByteOrder> Fields<'a, Order> {
    /// `bytes`, the first of which lies at byte `base`.
    pub(crate) fn new(bytes: &'a [u8], base: u64) -> Self {
        Self { bytes, base, order: PhantomData }
    }

    /// Where byte `at` lies.
    pub(crate) fn position(&self, at: usize) -> u64 {
        self.base.saturating_add(at as u64)
    }

    /// An error about the field at `at`.
    pub(crate) fn error(&self, at: usize, field: &'static str, problem: Problem) -> FormatError {
        FormatError::new(self.position(at), field, problem)
    }

    /// An error in words about the field at `at`.
    pub(crate) fn invalid(
        &self,
        at: usize,
        field: &'static str,
        problem: impl Into<Cow<'static, str>>,
    ) -> FormatError {
        self.error(at, field, Problem::Invalid(problem.into()))
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
            self.error(at, field, Problem::Truncated { needed: len as u64, available })
        })
    }

    /// The byte at `at`.
    pub(crate) fn u8(&self, at: usize, field: &'static str) -> Result<u8, FormatError> {
        Ok(self.slice(at, 1, field)?.first().copied().unwrap_or_default())
    }

    /// The 16-bit number at `at`.
    pub(crate) fn u16(&self, at: usize, field: &'static str) -> Result<u16, FormatError> {
        self.slice(at, 2, field).map(Order::read_u16)
    }

    /// The 32-bit number at `at`.
    pub(crate) fn u32(&self, at: usize, field: &'static str) -> Result<u32, FormatError> {
        self.slice(at, 4, field).map(Order::read_u32)
    }

    /// The 64-bit number at `at`.
    pub(crate) fn u64(&self, at: usize, field: &'static str) -> Result<u64, FormatError> {
        self.slice(at, 8, field).map(Order::read_u64)
    }
}

/// Overwrites `into` from `at` on with `value`; the layouts of this module always fit.
pub(crate) fn put(into: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = into.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    } else {
        debug_assert!(false, "{} bytes at {at} do not fit into {}", value.len(), into.len());
    }
}

/// Appends zeros to `into` until its length is a multiple of 8.
pub(crate) fn pad_to_8(into: &mut Vec<u8>) {
    into.resize(into.len().next_multiple_of(8), 0);
}
