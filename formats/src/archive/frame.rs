//! Frames: a few neighbouring blocks, compressed together, self-describing.

use super::layout::Field;
use super::{BlockIndex, Geometry, Mask};
use crate::{FormatError, Problem};

/// The first bytes of every frame.
pub const MAGIC: &[u8; 4] = b"QDFR";

/// Length of a frame's header in bytes.
pub const FRAME_HEADER_LEN: usize = field::HEADER_CRC.end();

/// Bytes of the disk that a frame covers, unless one block is larger.
pub const FRAME_SPAN: u32 = 64 << 10;

/// The longest frame of any archive, header included, in bytes.
pub const FRAME_LEN_MAX: usize = FRAME_HEADER_LEN + Geometry::BLOCK_SIZE_MAX as usize;

/// The fields of a frame's header.
pub mod field {
    use super::Field;

    /// The magic bytes.
    pub const MAGIC: Field = Field::first(4, "frame magic");
    /// How the payload is compressed.
    pub const CODEC: Field = MAGIC.then(1, "frame codec");
    /// The block size's binary logarithm.
    pub const SHIFTS: Field = CODEC.then(1, "frame block size and span");
    /// The frame's number in the archive, its low 16 bits.
    pub const SEQUENCE: Field = SHIFTS.then(2, "frame number");
    /// The first block of the span.
    pub const FIRST_BLOCK: Field = SEQUENCE.then(4, "first block of frame");
    /// Length of the payload in bytes.
    pub const PAYLOAD_LEN: Field = FIRST_BLOCK.then(4, "frame payload length");
    /// Which blocks of the span are in the payload.
    pub const MASK: Field = PAYLOAD_LEN.then(8, "frame mask");
    /// The first four bytes of the archive's id.
    pub const ARCHIVE_TAG: Field = MASK.then(4, "archive tag of frame");
    /// CRC-32 of the payload.
    pub const PAYLOAD_CRC: Field = ARCHIVE_TAG.then(4, "frame payload CRC-32");
    /// CRC-32 of everything before.
    pub const HEADER_CRC: Field = PAYLOAD_CRC.then(4, "frame header CRC-32");
    /// All of them, in order.
    pub const ALL: &[Field] = &[
        MAGIC,
        CODEC,
        SHIFTS,
        SEQUENCE,
        FIRST_BLOCK,
        PAYLOAD_LEN,
        MASK,
        ARCHIVE_TAG,
        PAYLOAD_CRC,
        HEADER_CRC,
    ];
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all: it did not shrink.
    Stored,
    /// One Zstandard frame that says how long its content is.
    Zstd,
}

impl Codec {
    /// The byte that stands for it in a file.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Zstd => 1,
        }
    }

    /// What a byte of a file stands for.
    ///
    /// # Errors
    /// A codec that this crate does not know.
    pub fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Zstd),
            _ => Err(field::CODEC.error(Problem::Unsupported(format!("codec {byte}")))),
        }
    }
}

/// How many blocks of `block_size` bytes the span of a frame has unless told otherwise:
/// [`FRAME_SPAN`] bytes of the disk, one block if that is larger.
///
/// Small on purpose: after many increments most blocks of an old frame are superseded, and a frame
/// of many blocks would be decoded for the sake of a few.
pub fn frame_blocks(block_size: u32) -> u32 {
    (FRAME_SPAN / block_size.max(1)).clamp(1, u64::BITS)
}

/// A span has 1 to 64 blocks, a power of two, so that a group holds whole spans; and no more bytes
/// than the largest block.
pub(super) fn check_frame_blocks(blocks: u32, block_size: u32) -> Result<(), &'static str> {
    let bytes = u64::from(blocks) * u64::from(block_size);
    if blocks.is_power_of_two()
        && blocks <= u64::BITS
        && bytes <= u64::from(Geometry::BLOCK_SIZE_MAX)
    {
        return Ok(());
    }
    Err("a span is no power of two from 1 to 64 blocks, or more than 2 MiB")
}

/// What a frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is compressed.
    pub codec: Codec,
    /// Size of a block in bytes.
    pub block_size: u32,
    /// How many blocks the span has: see [`frame_blocks`].
    pub frame_blocks: u32,
    /// The low 16 bits of the frame's number in the archive, counted from 0: where the index is
    /// lost, it tells whether a frame is missing between two others.
    pub sequence: u16,
    /// The first block of the span, a multiple of `frame_blocks`.
    pub first_block: BlockIndex,
    /// Length of the payload in bytes.
    pub payload_len: u32,
    /// Bit i: block `first_block + i` is in the payload. Never zero.
    pub mask: u64,
    /// The first four bytes of the archive's id.
    pub archive_tag: [u8; 4],
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// Decodes and checks the header at the start of `bytes`, by its own checksum and rules. The
    /// payload is checked by [`Self::check_payload`].
    ///
    /// # Errors
    /// The bytes are no frame header, or not as it was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        field::MAGIC.expect_magic(bytes, MAGIC, "a frame")?;
        field::HEADER_CRC.expect_crc(bytes)?;
        let shifts = u32::from(field::SHIFTS.u8(bytes)?);
        let header = Self {
            codec: Codec::from_byte(field::CODEC.u8(bytes)?)?,
            block_size: 1u32.checked_shl(shifts & 31).unwrap_or(0),
            frame_blocks: 1 << (shifts >> 5),
            sequence: field::SEQUENCE.u16(bytes)?,
            first_block: BlockIndex(field::FIRST_BLOCK.u32(bytes)?),
            payload_len: field::PAYLOAD_LEN.u32(bytes)?,
            mask: field::MASK.u64(bytes)?,
            archive_tag: field::ARCHIVE_TAG.bytes(bytes)?,
            payload_crc: field::PAYLOAD_CRC.u32(bytes)?,
        };
        header.check()?;
        Ok(header)
    }

    /// The header's bytes.
    ///
    /// # Errors
    /// A field breaks a rule of the format.
    pub fn encode(&self) -> Result<[u8; FRAME_HEADER_LEN], FormatError> {
        self.check()?;
        let mut bytes = Vec::with_capacity(FRAME_HEADER_LEN);
        field::MAGIC.append(&mut bytes, 0, MAGIC);
        field::CODEC.append(&mut bytes, 0, &[self.codec.to_byte()]);
        let shifts = self.block_size.trailing_zeros() | self.frame_blocks.trailing_zeros() << 5;
        field::SHIFTS.append(&mut bytes, 0, &[shifts as u8]);
        field::SEQUENCE.append(&mut bytes, 0, &self.sequence.to_le_bytes());
        field::FIRST_BLOCK.append(&mut bytes, 0, &self.first_block.0.to_le_bytes());
        field::PAYLOAD_LEN.append(&mut bytes, 0, &self.payload_len.to_le_bytes());
        field::MASK.append(&mut bytes, 0, &self.mask.to_le_bytes());
        field::ARCHIVE_TAG.append(&mut bytes, 0, &self.archive_tag);
        field::PAYLOAD_CRC.append(&mut bytes, 0, &self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        field::HEADER_CRC.append(&mut bytes, 0, &crc.to_le_bytes());
        bytes.first_chunk().copied().ok_or_else(|| field::HEADER_CRC.invalid("too short"))
    }

    /// Checks every rule that the fields must keep by themselves.
    fn check(&self) -> Result<(), FormatError> {
        if Geometry::new(0, self.block_size).is_err() {
            return Err(field::SHIFTS.invalid("no power of two from 4 KiB to 2 MiB"));
        }
        check_frame_blocks(self.frame_blocks, self.block_size)
            .map_err(|words| field::SHIFTS.invalid(words))?;
        let span = self.frame_blocks;
        if !self.first_block.0.is_multiple_of(span) {
            let problem =
                Problem::Misaligned { value: self.first_block.0.into(), alignment: span.into() };
            return Err(field::FIRST_BLOCK.error(problem));
        }
        let beyond = self.mask.checked_shr(span).unwrap_or(0);
        if self.mask == 0 || beyond != 0 {
            return Err(field::MASK.invalid("no block, or blocks beyond the span"));
        }
        let raw_len = self.raw_len() as u64;
        // What does not shrink is stored.
        let (min, max) = match self.codec {
            Codec::Stored => (raw_len, raw_len),
            Codec::Zstd => (1, raw_len.saturating_sub(1)),
        };
        if !(min..=max).contains(&self.payload_len.into()) {
            let problem = Problem::OutOfRange { value: self.payload_len.into(), min, max };
            return Err(field::PAYLOAD_LEN.error(problem));
        }
        Ok(())
    }

    /// How many blocks the payload holds: 1 to 64.
    pub fn block_count(&self) -> u32 {
        self.mask.count_ones()
    }

    /// Length of the decoded payload in bytes.
    pub fn raw_len(&self) -> usize {
        self.block_count() as usize * self.block_size as usize
    }

    /// Length of the whole frame in bytes.
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.payload_len)
    }

    /// The blocks in the payload, ascending. `u64`, as a mask at the very end of the numbers may
    /// reach 2³².
    pub fn blocks(&self) -> impl Iterator<Item = u64> + use<> {
        let first = u64::from(self.first_block.0);
        Mask(self.mask).bits().map(move |bit| first + u64::from(bit))
    }

    /// Where the masked block `bit` of the span starts in the decoded payload, in bytes.
    pub fn offset_of(&self, bit: u32) -> usize {
        Mask(self.mask).rank(bit) as usize * self.block_size as usize
    }

    /// Checks `payload`, which has `payload_len` bytes, against its checksum.
    ///
    /// # Errors
    /// They do not match, or the payload is too short.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FormatError> {
        let at = FRAME_HEADER_LEN as u64;
        if payload.len() != self.payload_len as usize {
            let problem = Problem::Truncated {
                needed: self.payload_len.into(),
                available: payload.len() as u64,
            };
            return Err(FormatError::new(at, "frame payload", problem));
        }
        let computed = crc32fast::hash(payload);
        if computed != self.payload_crc {
            let problem = Problem::Checksum { stored: self.payload_crc, computed };
            return Err(FormatError::new(at, "frame payload", problem));
        }
        Ok(())
    }
}

/// A checked frame: its header and its payload, still compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameView<'a> {
    /// What it says about itself.
    pub header: FrameHeader,
    /// The payload, as it is on disk.
    pub payload: &'a [u8],
}

impl<'a> FrameView<'a> {
    /// Decodes the frame at the start of `bytes` and checks both checksums. Bytes behind the frame
    /// are ignored.
    ///
    /// # Errors
    /// See [`FrameHeader::decode`] and [`FrameHeader::check_payload`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let header = FrameHeader::decode(bytes)?;
        let rest = bytes.get(FRAME_HEADER_LEN..).unwrap_or_default();
        let payload = rest.get(..header.payload_len as usize).unwrap_or(rest);
        header.check_payload(payload)?;
        Ok(Self { header, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (FrameHeader, Vec<u8>) {
        let payload = b"compressed".to_vec();
        let header = FrameHeader {
            codec: Codec::Zstd,
            block_size: 65536,
            frame_blocks: 4,
            sequence: 0x0605,
            first_block: BlockIndex(8),
            payload_len: payload.len() as u32,
            mask: 0b1010,
            archive_tag: [1, 2, 3, 4],
            payload_crc: crc32fast::hash(&payload),
        };
        (header, payload)
    }

    #[test]
    fn golden_bytes() {
        let (header, payload) = sample();
        let mut expected = b"QDFR\x01\x50\x05\x06".to_vec();
        expected.extend([8, 0, 0, 0, 10, 0, 0, 0]);
        expected.extend([0b1010, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 2, 3, 4]);
        expected.extend(crc32fast::hash(&payload).to_le_bytes());
        expected.extend(crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(header.encode().unwrap().to_vec(), expected);
    }

    #[test]
    fn round_trip() {
        let (header, payload) = sample();
        let mut bytes = header.encode().unwrap().to_vec();
        bytes.extend(&payload);
        bytes.extend(b"the next frame");
        let view = FrameView::decode(&bytes).unwrap();
        assert_eq!(view, FrameView { header, payload: &payload });
        assert_eq!(view.header.blocks().collect::<Vec<_>>(), [9, 11]);
        assert_eq!((view.header.offset_of(1), view.header.offset_of(3)), (0, 65536));
        assert_eq!(view.header.raw_len(), 2 * 65536);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let (header, payload) = sample();
        let mut bytes = header.encode().unwrap().to_vec();
        bytes.extend(&payload);
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(FrameView::decode(&flipped).is_err(), "bit {bit} of byte {position}");
            }
            assert!(FrameView::decode(&bytes[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn broken_rules_are_named() {
        let good = sample().0;
        let broken = [
            (field::FIRST_BLOCK, FrameHeader { first_block: BlockIndex(2), ..good }),
            (field::MASK, FrameHeader { mask: 0, ..good }),
            (field::MASK, FrameHeader { mask: 0b1_0000, ..good }),
            (field::PAYLOAD_LEN, FrameHeader { payload_len: 0, ..good }),
            (field::PAYLOAD_LEN, FrameHeader { payload_len: 131_072, ..good }),
            (field::PAYLOAD_LEN, FrameHeader { codec: Codec::Stored, ..good }),
            (field::SHIFTS, FrameHeader { block_size: 2048, ..good }),
            (field::SHIFTS, FrameHeader { frame_blocks: 64, ..good }),
            (field::SHIFTS, FrameHeader { frame_blocks: 128, ..good }),
            (field::SHIFTS, FrameHeader { block_size: 4 << 20, ..good }),
        ];
        for (field, header) in broken {
            assert_eq!(header.encode().unwrap_err().field, field.name);
        }
    }

    #[test]
    fn spans_stay_within_the_mask_and_the_buffer() {
        let spans = [(4096, 16), (8192, 8), (65536, 1), (256 << 10, 1), (2 << 20, 1)];
        for (block_size, span) in spans {
            assert_eq!(frame_blocks(block_size), span);
            assert!(span as usize * block_size as usize + FRAME_HEADER_LEN <= FRAME_LEN_MAX);
        }
    }
}
