//! The kernel's other calls: memory, locks, holes.

use std::io;
use std::ops::{Deref, DerefMut};

/// Anonymous memory. It starts at the beginning of a page, reads as zeros at first, and does not
/// move when the value does.
pub(crate) struct Memory(memmap2::MmapMut);

impl Memory {
    /// Maps `len` bytes. They cost nothing before they are touched.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        memmap2::MmapMut::map_anon(len).map(Self)
    }

    /// Its first byte, without making a reference to what is there.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
