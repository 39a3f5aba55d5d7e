//! The file that takes what is written over a recovery point which is served.
//!
//! ```text
//! 0       header, 4096 bytes
//! 4096    bitmap of the units that are on stable storage
//!         bitmap of the units that were written since the system started
//!         the disk: each unit in its own place, from a multiple of 1 MiB on
//! ```
//!
//! A bitmap has a bit for each unit of the disk, the lowest bit of a byte first, and is rounded up to 4096
//! bytes. The second one counts only while the system runs that it was written under: before a power cut, bits
//! may have reached the disk without their units.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use crate::archive::{DIGEST_LEN, Digest};
use crate::fields::Little;
use crate::{FormatError, Problem};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 4096;
/// The smallest unit, in bytes.
pub const UNIT_MIN: u32 = 4096;

const MAGIC: &[u8; 8] = b"QDSCRATC";
const VERSION: u32 = 1;
const TEXT_LEN_MAX: usize = 1024;
/// The disk starts at a multiple of this.
const DATA_ALIGNMENT: u64 = 1 << 20;
/// The most units that a disk may have.
const UNITS_MAX: u64 = 1 << 32;

/// What a scratch file belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk in bytes.
    pub size: u64,
    /// The root of the point that is written over.
    pub root: Digest,
    /// The point, for people: `GUEST/DISK@ID`.
    pub point: String,
    /// The run of the system that the second bitmap is of.
    pub boot: String,
}

impl Header {
    /// Size of a unit in bytes.
    pub fn unit(&self) -> u64 {
        let least = self.size.div_ceil(UNITS_MAX).max(1).next_power_of_two();
        least.max(UNIT_MIN.into())
    }

    fn bitmap_len(&self) -> u64 {
        let units = self.size.div_ceil(self.unit());
        units.div_ceil(8).next_multiple_of(4096)
    }

    /// Where the bitmap of what is on stable storage lies.
    pub fn stable(&self) -> Range<u64> {
        let start = HEADER_LEN as u64;
        start..start + self.bitmap_len()
    }

    /// Where the bitmap of what was written since the system started lies.
    pub fn since_start(&self) -> Range<u64> {
        let start = self.stable().end;
        start..start + self.bitmap_len()
    }

    /// Where the disk starts.
    pub fn data(&self) -> u64 {
        self.since_start().end.next_multiple_of(DATA_ALIGNMENT)
    }

    /// The header as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.root.0);
        for text in [&self.point, &self.boot] {
            debug_assert!(
                text.len() <= TEXT_LEN_MAX,
                "a name of a point, or the kernel's of a run"
            );
            bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        Self::sealed(&bytes)
    }

    /// Bytes of a header, with zeros and the checksum behind them.
    pub fn sealed(bytes: &[u8]) -> Vec<u8> {
        let mut sealed = bytes.to_vec();
        sealed.resize(HEADER_LEN - 4, 0);
        let crc = crc32fast::hash(&sealed);
        sealed.extend_from_slice(&crc.to_le_bytes());
        sealed
    }

    /// Reads the header.
    ///
    /// # Errors
    /// It is none, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let all = Little::new(bytes, 0);
        if all.slice(0, 8, "magic")? != MAGIC {
            return Err(FormatError::new(0, "magic", Problem::BadMagic("a scratch file")));
        }
        let body = all.slice(0, HEADER_LEN - 4, "header")?;
        let (stored, computed) = (all.u32(HEADER_LEN - 4, "checksum")?, crc32fast::hash(body));
        if stored != computed {
            let at = HEADER_LEN as u64 - 4;
            return Err(FormatError::new(at, "checksum", Problem::Checksum { stored, computed }));
        }
        if all.u32(8, "version")? != VERSION {
            return Err(all.invalid(8, "version", "a newer qdelta has written it"));
        }
        let size = LittleEndian::read_u64(all.slice(12, 8, "size")?);
        if size > i64::MAX as u64 / 2 {
            return Err(all.invalid(12, "size", "no disk is so large"));
        }
        let mut root = Digest([0; DIGEST_LEN]);
        root.0.copy_from_slice(all.slice(20, DIGEST_LEN, "root")?);
        let text = |at: usize| -> Result<(String, usize), FormatError> {
            let len = usize::from(all.u16(at, "length of a text")?);
            if len > TEXT_LEN_MAX {
                return Err(all.invalid(at, "length of a text", "longer than any name"));
            }
            let text = all.slice(at + 2, len, "text")?;
            let text =
                std::str::from_utf8(text).map_err(|_| all.invalid(at, "text", "no UTF-8"))?;
            Ok((text.to_owned(), at + 2 + len))
        };
        let (point, at) = text(20 + DIGEST_LEN)?;
        let (boot, _) = text(at)?;
        Ok(Self { size, root, point, boot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_damage_is_found() {
        let header = Header {
            size: 5 << 30,
            root: Digest([7; DIGEST_LEN]),
            point: "web/vda@20261122T153823.412Z".into(),
            boot: "3f1c".into(),
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(Header::decode(&bytes), Ok(header.clone()));
        for at in 0..HEADER_LEN {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Header::decode(&damaged).is_err(), "{at}");
        }
        assert!(Header::decode(&bytes[..4000]).is_err());
        // A sealed header whose text was longer than any was once read, and could not be written again.
        let at = 20 + DIGEST_LEN;
        let mut long = bytes[..HEADER_LEN - 4].to_vec();
        long[at..at + 2].copy_from_slice(&(TEXT_LEN_MAX as u16 + 1).to_le_bytes());
        assert!(Header::decode(&Header::sealed(&long)).is_err());
        assert_eq!(header.unit(), 4096);
        assert_eq!(header.stable(), 4096..4096 + (5 << 30) / 4096 / 8);
        assert_eq!(header.data() % (1 << 20), 0);
        assert!(header.data() >= header.since_start().end);
        let huge = Header { size: 1 << 50, ..header };
        assert_eq!(huge.unit(), 1 << 18);
        assert_eq!(Header { size: 0, ..huge }.data(), 1 << 20);
    }
}
