//! The footer: the last bytes of an archive, which seal it.

use super::ArchiveId;
use super::index::{Directory, SECTIONS_MAX};
use super::layout::Field;
use crate::{FormatError, Problem};

/// The first bytes of the footer.
pub const MAGIC: &[u8; 8] = b"QDSEALED";

/// Length of the footer in bytes.
pub const FOOTER_LEN: usize = field::CRC.end();

/// The fields of the footer.
pub mod field {
    use super::Field;

    /// The magic bytes.
    pub const MAGIC: Field = Field::first(8, "footer magic");
    /// The archive's id.
    pub const ARCHIVE_ID: Field = MAGIC.then(16, "archive id in footer");
    /// Where the directory starts.
    pub const DIRECTORY_OFFSET: Field = ARCHIVE_ID.then(8, "directory offset");
    /// Length of the whole file in bytes.
    pub const FILE_LEN: Field = DIRECTORY_OFFSET.then(8, "length of the whole file");
    /// Length of the directory in bytes.
    pub const DIRECTORY_LEN: Field = FILE_LEN.then(4, "directory length");
    /// CRC-32 of everything before.
    pub const CRC: Field = DIRECTORY_LEN.then(4, "footer CRC-32");
    /// All of them, in order.
    pub const ALL: &[Field] = &[MAGIC, ARCHIVE_ID, DIRECTORY_OFFSET, FILE_LEN, DIRECTORY_LEN, CRC];
}

/// What seals an archive. The directory lies right before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The archive's id, as in the header.
    pub archive_id: ArchiveId,
    /// Where the directory starts, in bytes from the start of the file.
    pub directory_offset: u64,
    /// Length of the directory in bytes.
    pub directory_len: u32,
}

impl Footer {
    /// Length of the whole file in bytes.
    pub fn file_len(&self) -> u64 {
        self.directory_offset
            .saturating_add(self.directory_len.into())
            .saturating_add(FOOTER_LEN as u64)
    }

    /// The footer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_LEN);
        field::MAGIC.append(&mut bytes, 0, MAGIC);
        field::ARCHIVE_ID.append(&mut bytes, 0, &self.archive_id.0);
        field::DIRECTORY_OFFSET.append(&mut bytes, 0, &self.directory_offset.to_le_bytes());
        field::FILE_LEN.append(&mut bytes, 0, &self.file_len().to_le_bytes());
        field::DIRECTORY_LEN.append(&mut bytes, 0, &self.directory_len.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        field::CRC.append(&mut bytes, 0, &crc.to_le_bytes());
        bytes
    }

    /// Decodes the footer from the last [`FOOTER_LEN`] bytes of a file of `file_len` bytes.
    ///
    /// # Errors
    /// The bytes are no footer, the checksum is wrong, or they do not belong to a file of that
    /// length.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, FormatError> {
        let base = file_len.saturating_sub(FOOTER_LEN as u64);
        Self::decode_at_zero(bytes, file_len).map_err(|error| error.relative_to(base))
    }

    fn decode_at_zero(bytes: &[u8], file_len: u64) -> Result<Self, FormatError> {
        field::MAGIC.expect_magic(bytes, MAGIC, "a sealed archive")?;
        field::CRC.expect_crc(bytes)?;
        let stored_len = field::FILE_LEN.u64(bytes)?;
        if stored_len != file_len {
            let words = format!("the file has {file_len} bytes and was sealed with {stored_len}");
            return Err(field::FILE_LEN.invalid(words));
        }
        let footer = Self {
            archive_id: ArchiveId(field::ARCHIVE_ID.bytes(bytes)?),
            directory_offset: field::DIRECTORY_OFFSET.u64(bytes)?,
            directory_len: field::DIRECTORY_LEN.u32(bytes)?,
        };
        let max = Directory::encoded_len(SECTIONS_MAX as usize) as u64;
        if u64::from(footer.directory_len) > max {
            let value = footer.directory_len.into();
            return Err(field::DIRECTORY_LEN.error(Problem::OutOfRange { value, min: 0, max }));
        }
        if footer.file_len() != file_len {
            return Err(field::DIRECTORY_OFFSET.invalid("the directory does not end at the footer"));
        }
        Ok(footer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Footer =
        Footer { archive_id: ArchiveId([5; 16]), directory_offset: 1000, directory_len: 236 };

    #[test]
    fn golden_bytes() {
        let mut expected = b"QDSEALED".to_vec();
        expected.extend([5; 16]);
        expected.extend(1000u64.to_le_bytes());
        expected.extend(1284u64.to_le_bytes());
        expected.extend(236u32.to_le_bytes());
        expected.extend(crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(SAMPLE.encode(), expected);
        assert_eq!(expected.len(), FOOTER_LEN);
    }

    #[test]
    fn round_trip_for_the_very_length_only() {
        let bytes = SAMPLE.encode();
        assert_eq!(Footer::decode(&bytes, 1284).unwrap(), SAMPLE);
        for len in [1283, 1285, 0, u64::MAX] {
            assert!(Footer::decode(&bytes, len).is_err(), "{len}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = SAMPLE.encode();
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(Footer::decode(&flipped, 1284).is_err(), "bit {bit} of byte {position}");
            }
            assert!(Footer::decode(&bytes[..position], 1284).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn hostile_numbers_do_not_overflow() {
        let hostile = Footer { directory_offset: u64::MAX, directory_len: u32::MAX, ..SAMPLE };
        assert!(Footer::decode(&hostile.encode(), u64::MAX).is_err());
    }
}
