//! The beginning of the file into which libvirt saves the memory of a guest (`virsh save`, `virsh managedsave`):
//! a head of numbers in the order of the host's bytes, then the guest's definition. What follows is QEMU's.

use crate::fields::{Fields, Little};
use crate::{FormatError, Problem};
use byteorder::{BigEndian, ByteOrder};

/// How a complete file begins.
pub const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
/// Length of the head in bytes; the definition follows.
pub const HEAD_LEN: usize = 92;
/// The longest definition, and what libvirt notes behind it, in bytes.
pub const DATA_LEN_MAX: u32 = 16 << 20;

/// Where the fields of the head lie, in bytes from its start.
mod at {
    pub(super) const VERSION: usize = 16;
    pub(super) const DATA_LEN: usize = 20;
    pub(super) const WAS_RUNNING: usize = 24;
}

/// No version is as high as one whose bytes stand the other way round.
const VERSION_MAX: u32 = 0xffff;

/// What the head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes behind the head: the definition, a byte 0, and what libvirt notes of the guest.
    pub data_len: u32,
    /// Whether the guest ran, and goes on when it is resumed; a paused one stays so.
    pub was_running: bool,
}

impl Head {
    /// Reads the head from the first bytes of a file.
    ///
    /// # Errors
    /// They are too few or no such head, or the definition would be too long.
    pub fn parse(head: &[u8]) -> Result<Self, FormatError> {
        let little = Little::new(head, 0);
        if little.slice(0, MAGIC.len(), "magic")? != MAGIC {
            let magic = Problem::BadMagic("a guest's memory that libvirt has saved");
            return Err(little.error(0, "magic", magic));
        }
        little.slice(0, HEAD_LEN, "head")?;
        match little.u32(at::VERSION, "version")? {
            version if version <= VERSION_MAX => Self::fields(little),
            _ => Self::fields(Fields::<BigEndian>::new(head, 0)),
        }
    }

    fn fields<Order: ByteOrder>(head: Fields<'_, Order>) -> Result<Self, FormatError> {
        let data_len = head.u32(at::DATA_LEN, "data_len")?;
        if !(1..=DATA_LEN_MAX).contains(&data_len) {
            let (value, min, max) = (data_len.into(), 1, DATA_LEN_MAX.into());
            return Err(head.error(
                at::DATA_LEN,
                "data_len",
                Problem::OutOfRange { value, min, max },
            ));
        }
        Ok(Self { data_len, was_running: head.u32(at::WAS_RUNNING, "was_running")? != 0 })
    }
}

/// The definition in the bytes behind the head; nothing if it is no text.
pub fn definition(data: &[u8]) -> Option<&str> {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    std::str::from_utf8(data.get(..end)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: [u8; 4], data_len: [u8; 4]) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend([version, data_len, [1, 0, 0, 0]].concat());
        head.resize(HEAD_LEN, 0);
        head
    }

    #[test]
    fn both_orders_of_bytes_are_read() {
        let expected = Head { data_len: 4096, was_running: true };
        for (version, len) in [([2, 0, 0, 0], [0, 16, 0, 0]), ([0, 0, 0, 2], [0, 0, 16, 0])] {
            assert_eq!(Head::parse(&head(version, len)).unwrap(), expected);
        }
        assert_eq!(definition(b"<domain/>\0cookie"), Some("<domain/>"));
        assert_eq!(definition(b"<domain/>"), Some("<domain/>"));
        assert_eq!(definition(b"\xff\0"), None);
    }

    #[test]
    fn what_is_none_is_refused() {
        let good = head([2, 0, 0, 0], [0, 16, 0, 0]);
        for len in 0..HEAD_LEN {
            assert!(Head::parse(&good[..len]).is_err(), "{len}");
        }
        // One that was not finished.
        let mut part = good.clone();
        part[12..16].copy_from_slice(b"Part");
        assert!(matches!(Head::parse(&part).unwrap_err().problem, Problem::BadMagic(_)));
        for len in [[0, 0, 0, 0], [0, 0, 0, 0xff]] {
            let problem = Head::parse(&head([2, 0, 0, 0], len)).unwrap_err().problem;
            assert!(matches!(problem, Problem::OutOfRange { .. }));
        }
    }
}
