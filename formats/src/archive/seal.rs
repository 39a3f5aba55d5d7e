//! What a sealed (encrypted) archive will look like, as far as sizes and places depend on it. No
//! such archive is written yet. `docs/archive-format.md` says how everything is to be sealed.

use super::{BlockIndex, Codec, FRAME_HEADER_LEN, Geometry, SectionKind};

/// The incompatible feature of a sealed archive. Today's reader refuses it by name.
pub const FEATURE_SEALED: u16 = 1;

/// Length of the tag that ends what is sealed, in bytes.
pub const TAG_LEN: u32 = 16;

/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 12;

/// Bytes of a section's content in a chunk that is sealed as one; the last chunk may be shorter.
pub const CHUNK_LEN: u32 = 64 << 10;

/// How long the payload of a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRules {
    /// Bytes of the tag that ends each payload: none in an archive that is not sealed.
    pub tag_len: u32,
}

impl FrameRules {
    /// An archive that is not sealed.
    pub const PLAIN: Self = Self { tag_len: 0 };

    /// A sealed archive.
    pub const SEALED: Self = Self { tag_len: TAG_LEN };

    /// The longest frame, header included, in bytes.
    pub const fn frame_len_max(self) -> usize {
        FRAME_HEADER_LEN + Geometry::BLOCK_SIZE_MAX as usize + self.tag_len as usize
    }

    /// The shortest and the longest payload of `raw_len` bytes of blocks. What does not shrink is
    /// stored.
    pub fn payload_len(self, codec: Codec, raw_len: u64) -> (u64, u64) {
        let tag = u64::from(self.tag_len);
        match codec {
            Codec::Stored => (raw_len + tag, raw_len + tag),
            Codec::Zstd => (1 + tag, raw_len.saturating_sub(1) + tag),
        }
    }
}

/// Where the bytes of a section lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionRules {
    /// Bytes of the tag that ends each chunk: none in an archive that is not sealed.
    pub tag_len: u32,
}

/// The chunk that holds a byte of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its number, counted from 0.
    pub number: u64,
    /// Where it starts on disk, in bytes from the start of the section.
    pub offset: u64,
    /// Where the byte is within the chunk's content.
    pub within: u32,
}

impl SectionRules {
    /// An archive that is not sealed.
    pub const PLAIN: Self = Self { tag_len: 0 };

    /// A sealed archive.
    pub const SEALED: Self = Self { tag_len: TAG_LEN };

    /// The length on disk of a section with `len` bytes of content.
    pub fn disk_len(self, len: u64) -> u64 {
        len.saturating_add(len.div_ceil(CHUNK_LEN.into()).saturating_mul(self.tag_len.into()))
    }

    /// The length of the content of a section of `disk_len` bytes on disk; none if no content has
    /// that length.
    pub fn content_len(self, disk_len: u64) -> Option<u64> {
        let whole = u64::from(CHUNK_LEN) + u64::from(self.tag_len);
        let tags = disk_len.div_ceil(whole) * u64::from(self.tag_len);
        let len = disk_len.checked_sub(tags)?;
        (self.disk_len(len) == disk_len).then_some(len)
    }

    /// The chunk of the byte at `offset` of the content: found without looking at any other.
    pub fn chunk(self, offset: u64) -> Chunk {
        let number = offset / u64::from(CHUNK_LEN);
        Chunk {
            number,
            offset: number.saturating_mul(u64::from(CHUNK_LEN) + u64::from(self.tag_len)),
            within: (offset % u64::from(CHUNK_LEN)) as u32,
        }
    }
}

/// The nonce of the frame whose span starts at `first_block`. A span has one frame in an archive,
/// and an archive has a key of its own.
pub fn frame_nonce(first_block: BlockIndex) -> [u8; NONCE_LEN] {
    let [a, b, c, d] = first_block.0.to_le_bytes();
    [1, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]
}

/// The nonce of a chunk of a section.
pub fn section_nonce(kind: SectionKind, chunk: u64) -> [u8; NONCE_LEN] {
    let [kind_low, kind_high] = kind.to_number().to_le_bytes();
    let [a, b, c, d, e, f, g, h] = chunk.to_le_bytes();
    [2, 0, kind_low, kind_high, a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_nonce_comes_twice() {
        let numbers = [0, 1, 2, 255, 256, 1 << 16, 1 << 24, u32::MAX];
        let mut nonces = BTreeSet::new();
        for number in numbers {
            assert!(nonces.insert(frame_nonce(BlockIndex(number))));
            for kind in SectionKind::ALL {
                assert!(nonces.insert(section_nonce(*kind, number.into())));
                assert!(nonces.insert(section_nonce(*kind, u64::from(number) + (1 << 32))));
            }
        }
        assert_eq!(frame_nonce(BlockIndex(0x0102)), [1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let nonce = section_nonce(SectionKind::Frames, 3);
        assert_eq!(nonce, [2, 0, 4, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_place_of_every_byte_of_a_sealed_section_is_known() {
        let chunk = u64::from(CHUNK_LEN);
        for rules in [SectionRules::PLAIN, SectionRules::SEALED] {
            for len in [0, 1, chunk - 1, chunk, chunk + 1, 7 * chunk, 7 * chunk + 5] {
                assert_eq!(rules.content_len(rules.disk_len(len)), Some(len));
            }
            assert_eq!(
                rules.chunk(chunk - 1),
                Chunk { number: 0, offset: 0, within: CHUNK_LEN - 1 }
            );
            let second = Chunk { number: 1, offset: chunk + u64::from(rules.tag_len), within: 0 };
            assert_eq!(rules.chunk(chunk), second);
            // Hostile numbers overflow nothing.
            let _ = (rules.disk_len(u64::MAX), rules.content_len(u64::MAX), rules.chunk(u64::MAX));
        }
        assert_eq!(SectionRules::PLAIN.disk_len(12_345_678), 12_345_678);
        for impossible in [1, 15, 16, chunk + 16 + 16] {
            assert_eq!(SectionRules::SEALED.content_len(impossible), None, "{impossible}");
        }
    }

    #[test]
    fn a_tag_lengthens_every_payload() {
        for (rules, tag) in [(FrameRules::PLAIN, 0), (FrameRules::SEALED, 16)] {
            assert_eq!(rules.payload_len(Codec::Stored, 4096), (4096 + tag, 4096 + tag));
            assert_eq!(rules.payload_len(Codec::Zstd, 4096), (1 + tag, 4095 + tag));
            let longest = FRAME_HEADER_LEN + Geometry::BLOCK_SIZE_MAX as usize + tag as usize;
            assert_eq!(rules.frame_len_max(), longest);
        }
    }
}
