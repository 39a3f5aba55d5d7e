//! The index: its sections, the directory that says where they are, and the frame table.

use roaring::RoaringBitmap;

use super::layout::Field;
use super::{ArchiveId, BlockIndex, DIGEST_LEN, Digest, FRAME_HEADER_LEN};
use crate::{FormatError, Problem};

/// The first bytes of the directory.
pub const MAGIC: &[u8; 4] = b"QDIX";

/// The most sections a directory may have. This version writes [`SectionKind::ALL`].
pub const SECTIONS_MAX: u32 = 64;

/// A section of a kind below this may be ignored by who does not know it.
pub const SECTION_REQUIRED: u16 = 0x8000;

/// Length of an entry of the frame table in bytes.
pub const FRAME_ENTRY_LEN: usize = entry::PAYLOAD_LEN.end();

/// Length of a section's record in the directory, in bytes.
pub const SECTION_RECORD_LEN: usize = section::LEN.end();

/// Bytes of the directory before the sections' records.
pub const DIRECTORY_HEAD_LEN: usize = field::RESERVED.end();

/// The fields of the directory before the sections' records.
pub mod field {
    use super::Field;

    /// The magic bytes.
    pub const MAGIC: Field = Field::first(4, "directory magic");
    /// How many sections there are.
    pub const SECTIONS: Field = MAGIC.then(4, "number of sections");
    /// The root of the recovery point.
    pub const ROOT: Field = SECTIONS.then(32, "root");
    /// The archive's id.
    pub const ARCHIVE_ID: Field = ROOT.then(16, "archive id in directory");
    /// The checksum that ends the header.
    pub const HEADER_CRC: Field = ARCHIVE_ID.then(4, "header CRC-32 in directory");
    /// Zero.
    pub const RESERVED: Field = HEADER_CRC.then(4, "directory reserved bytes");
    /// All of them, in order.
    pub const ALL: &[Field] = &[MAGIC, SECTIONS, ROOT, ARCHIVE_ID, HEADER_CRC, RESERVED];
}

/// The fields of a section's record in the directory.
pub mod section {
    use super::Field;

    /// What the section holds.
    pub const KIND: Field = Field::first(2, "section kind");
    /// How its bytes are encoded: 0, plainly.
    pub const ENCODING: Field = KIND.then(2, "section encoding");
    /// CRC-32 of its bytes.
    pub const CRC: Field = ENCODING.then(4, "section CRC-32");
    /// Where it starts.
    pub const OFFSET: Field = CRC.then(8, "section offset");
    /// How long it is.
    pub const LEN: Field = OFFSET.then(8, "section length");
    /// All of them, in order.
    pub const ALL: &[Field] = &[KIND, ENCODING, CRC, OFFSET, LEN];
}

/// The fields of an entry of the frame table.
pub mod entry {
    use super::Field;

    /// Where the frame starts.
    pub const OFFSET: Field = Field::first(8, "frame offset");
    /// The first block of its span.
    pub const FIRST_BLOCK: Field = OFFSET.then(4, "first block of frame entry");
    /// Length of its payload in bytes.
    pub const PAYLOAD_LEN: Field = FIRST_BLOCK.then(4, "payload length of frame entry");
    /// All of them, in order.
    pub const ALL: &[Field] = &[OFFSET, FIRST_BLOCK, PAYLOAD_LEN];
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// The blocks stored here: a roaring bitmap.
    Stored,
    /// The blocks that are zero now and were not at the parent: a roaring bitmap.
    Zero,
    /// The groups whose digests are in [`Self::GroupDigests`]: a roaring bitmap.
    Groups,
    /// Where each frame lies: [`FrameEntry`]s, ascending.
    Frames,
    /// The digest of each stored block, ascending.
    BlockDigests,
    /// The digest of each group of [`Self::Groups`], ascending.
    GroupDigests,
    /// A copy of the header.
    Header,
    /// Something that this crate does not know and may ignore.
    Other(u16),
}

impl SectionKind {
    /// The sections of this version, in the order of the file: large tables first, so that one
    /// short read of the file's end fetches all the small ones.
    pub const ALL: &[Self] = &[
        Self::Frames,
        Self::BlockDigests,
        Self::GroupDigests,
        Self::Groups,
        Self::Stored,
        Self::Zero,
        Self::Header,
    ];

    /// The number that stands for it in a file.
    pub fn to_number(self) -> u16 {
        match self {
            Self::Stored => 1,
            Self::Zero => 2,
            Self::Groups => 3,
            Self::Frames => 4,
            Self::BlockDigests => 5,
            Self::GroupDigests => 6,
            Self::Header => 7,
            Self::Other(number) => number,
        }
    }

    /// What a number of a file stands for.
    ///
    /// # Errors
    /// A section that must not be ignored and that this crate does not know.
    pub fn from_number(number: u16) -> Result<Self, FormatError> {
        match Self::ALL.iter().find(|kind| kind.to_number() == number) {
            Some(kind) => Ok(*kind),
            None if number < SECTION_REQUIRED => Ok(Self::Other(number)),
            None => {
                let problem = Problem::Unsupported(format!("section kind {number:#06x}"));
                Err(section::KIND.error(problem))
            }
        }
    }

    /// What to call it in an error.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "bitmap of stored blocks",
            Self::Zero => "bitmap of zero blocks",
            Self::Groups => "bitmap of groups",
            Self::Frames => "frame table",
            Self::BlockDigests => "block digests",
            Self::GroupDigests => "group digests",
            Self::Header => "copy of the header",
            Self::Other(_) => "section of a later version",
        }
    }
}

/// Where a section lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// CRC-32 of its bytes.
    pub crc: u32,
    /// Where it starts, in bytes from the start of the file.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
}

impl Section {
    /// Where it ends, in bytes from the start of the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// The end of the index: which recovery point this is, and where the sections are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The root of the recovery point.
    pub root: Digest,
    /// The archive's id, as in the header.
    pub archive_id: ArchiveId,
    /// The checksum that ends the header.
    pub header_crc: u32,
    /// The sections, in the order of the file, without gaps.
    pub sections: Vec<Section>,
}

impl Directory {
    /// Length of a directory of `sections` sections, in bytes.
    pub fn encoded_len(sections: usize) -> usize {
        DIRECTORY_HEAD_LEN + sections * SECTION_RECORD_LEN + 4
    }

    /// The directory's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::encoded_len(self.sections.len()));
        field::MAGIC.append(&mut bytes, 0, MAGIC);
        field::SECTIONS.append(&mut bytes, 0, &(self.sections.len() as u32).to_le_bytes());
        field::ROOT.append(&mut bytes, 0, &self.root.0);
        field::ARCHIVE_ID.append(&mut bytes, 0, &self.archive_id.0);
        field::HEADER_CRC.append(&mut bytes, 0, &self.header_crc.to_le_bytes());
        field::RESERVED.append(&mut bytes, 0, &[0; 4]);
        for record in &self.sections {
            let base = bytes.len();
            section::KIND.append(&mut bytes, base, &record.kind.to_number().to_le_bytes());
            section::ENCODING.append(&mut bytes, base, &0u16.to_le_bytes());
            section::CRC.append(&mut bytes, base, &record.crc.to_le_bytes());
            section::OFFSET.append(&mut bytes, base, &record.offset.to_le_bytes());
            section::LEN.append(&mut bytes, base, &record.len.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes a directory that fills `bytes` exactly and lies at `base` in the file: the sections
    /// must reach up to it without gaps, each kind once, none of this version's missing.
    ///
    /// # Errors
    /// The bytes break one of these rules, or the checksum is wrong.
    pub fn decode(bytes: &[u8], base: u64) -> Result<Self, FormatError> {
        Self::decode_at_zero(bytes, base).map_err(|error| error.relative_to(base))
    }

    fn decode_at_zero(bytes: &[u8], base: u64) -> Result<Self, FormatError> {
        field::MAGIC.expect_magic(bytes, MAGIC, "a directory")?;
        let count = field::SECTIONS.u32(bytes)?;
        if count > SECTIONS_MAX || Self::encoded_len(count as usize) != bytes.len() {
            let problem =
                Problem::OutOfRange { value: count.into(), min: 0, max: SECTIONS_MAX.into() };
            return Err(field::SECTIONS.error(problem));
        }
        let crc_offset = bytes.len().saturating_sub(4);
        Field { name: "directory CRC-32", offset: crc_offset, size: 4 }.expect_crc(bytes)?;
        field::RESERVED.expect_zero(bytes)?;
        let records = bytes.get(DIRECTORY_HEAD_LEN..crc_offset).unwrap_or_default();
        let sections = records
            .chunks_exact(SECTION_RECORD_LEN)
            .enumerate()
            .map(|(index, record)| {
                let at = DIRECTORY_HEAD_LEN + index * SECTION_RECORD_LEN;
                decode_section(record).map_err(|error| error.relative_to(at as u64))
            })
            .collect::<Result<Vec<_>, _>>()?;
        check_sections(&sections, base)?;
        Ok(Self {
            root: Digest(field::ROOT.bytes(bytes)?),
            archive_id: ArchiveId(field::ARCHIVE_ID.bytes(bytes)?),
            header_crc: field::HEADER_CRC.u32(bytes)?,
            sections,
        })
    }

    /// The section of that kind.
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

fn decode_section(record: &[u8]) -> Result<Section, FormatError> {
    let encoding = section::ENCODING.u16(record)?;
    if encoding != 0 {
        let problem = Problem::Unsupported(format!("section encoding {encoding}"));
        return Err(section::ENCODING.error(problem));
    }
    Ok(Section {
        kind: SectionKind::from_number(section::KIND.u16(record)?)?,
        crc: section::CRC.u32(record)?,
        offset: section::OFFSET.u64(record)?,
        len: section::LEN.u64(record)?,
    })
}

/// Sections touch each other and the directory, and each kind of this version is there once.
fn check_sections(sections: &[Section], directory_offset: u64) -> Result<(), FormatError> {
    let wrong = |words: &'static str| Err(field::SECTIONS.invalid(words));
    let mut next = sections.first().map_or(directory_offset, |first| first.offset);
    for section in sections {
        let end = section.offset.checked_add(section.len);
        let (true, Some(end)) = (section.offset == next, end) else {
            return wrong("the sections do not touch each other");
        };
        next = end;
    }
    if next != directory_offset {
        return wrong("the last section does not end at the directory");
    }
    for kind in SectionKind::ALL {
        if sections.iter().filter(|section| section.kind == *kind).count() != 1 {
            return wrong("a section is missing, or there twice");
        }
    }
    Ok(())
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where its header starts, in bytes from the start of the file.
    pub offset: u64,
    /// The first block of its span.
    pub first_block: BlockIndex,
    /// Length of its payload in bytes.
    pub payload_len: u32,
}

impl FrameEntry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; FRAME_ENTRY_LEN] {
        let mut bytes = [0; FRAME_ENTRY_LEN];
        let fields: [(Field, &[u8]); 3] = [
            (entry::OFFSET, &self.offset.to_le_bytes()),
            (entry::FIRST_BLOCK, &self.first_block.0.to_le_bytes()),
            (entry::PAYLOAD_LEN, &self.payload_len.to_le_bytes()),
        ];
        for (field, value) in fields {
            if let Some(place) = bytes.get_mut(field.offset..field.end()) {
                place.copy_from_slice(value);
            }
        }
        bytes
    }

    /// Decodes the entry at the start of `bytes`. Whether it makes sense shows the frame itself.
    ///
    /// # Errors
    /// Fewer than [`FRAME_ENTRY_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Ok(Self {
            offset: entry::OFFSET.u64(bytes)?,
            first_block: BlockIndex(entry::FIRST_BLOCK.u32(bytes)?),
            payload_len: entry::PAYLOAD_LEN.u32(bytes)?,
        })
    }

    /// Length of the whole frame in bytes.
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.payload_len)
    }

    /// Where the frame ends, in bytes from the start of the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.frame_len())
    }
}

/// The digest number `rank` of a table of digests.
pub fn digest_at(table: &[u8], rank: usize) -> Option<Digest> {
    let start = rank.checked_mul(DIGEST_LEN)?;
    table.get(start..)?.first_chunk().copied().map(Digest)
}

/// The bytes of a bitmap section, the same for the same set however it was built.
pub fn encode_bitmap(mut bitmap: RoaringBitmap) -> Vec<u8> {
    bitmap.optimize();
    let mut bytes = Vec::with_capacity(bitmap.serialized_size());
    // Writing to a Vec cannot fail.
    bitmap.serialize_into(&mut bytes).unwrap_or_default();
    bytes
}

/// The most bytes that a bitmap of numbers below `limit` can take, in a file and, to within a few
/// percent, in memory: 1 bit a number. Check a section's length against it before loading it.
pub fn bitmap_len_max(limit: u64) -> u64 {
    // Each 65,536 numbers take at most a plain bitmap of 8 KiB: arrays and runs are only written
    // where they are shorter. A description, an offset and a bit that tells runs come on top.
    16 + limit.div_ceil(1 << 16) * ((8 << 10) + 9)
}

/// Decodes a bitmap that fills `bytes` exactly and whose numbers are all below `limit`.
///
/// # Errors
/// The bytes are no roaring bitmap in its portable serialization, or break one of these rules.
/// Offsets in the error count from the start of `bytes`.
pub fn decode_bitmap(
    bytes: &[u8],
    limit: u64,
    kind: SectionKind,
) -> Result<RoaringBitmap, FormatError> {
    let invalid = |words: String| FormatError::new(0, kind.name(), Problem::Invalid(words.into()));
    if bytes.len() as u64 > bitmap_len_max(limit) {
        let (value, max) = (bytes.len() as u64, bitmap_len_max(limit));
        return Err(FormatError::new(0, kind.name(), Problem::OutOfRange { value, min: 0, max }));
    }
    let mut rest = bytes;
    let bitmap =
        RoaringBitmap::deserialize_from(&mut rest).map_err(|error| invalid(error.to_string()))?;
    if !rest.is_empty() {
        return Err(invalid(format!("{} bytes are left over at its end", rest.len())));
    }
    match bitmap.max() {
        Some(max) if u64::from(max) >= limit => {
            Err(invalid(format!("{max} is past the end of the disk")))
        }
        _ => Ok(bitmap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Directory, u64) {
        let mut offset = 1000;
        let sections = SectionKind::ALL
            .iter()
            .enumerate()
            .map(|(index, kind)| {
                let len = index as u64 * 10;
                let section = Section { kind: *kind, crc: index as u32, offset, len };
                offset += len;
                section
            })
            .collect();
        let directory = Directory {
            root: Digest([7; 32]),
            archive_id: ArchiveId([9; 16]),
            header_crc: 0x0102_0304,
            sections,
        };
        (directory, offset)
    }

    #[test]
    fn golden_bytes() {
        let (directory, _) = sample();
        let bytes = directory.encode();
        let mut expected = b"QDIX\x07\0\0\0".to_vec();
        expected.extend([7; 32]);
        expected.extend([9; 16]);
        expected.extend([4, 3, 2, 1, 0, 0, 0, 0]);
        let numbers = [4u8, 5, 6, 3, 1, 2, 7];
        let mut offset = 1000u64;
        for (index, number) in numbers.into_iter().enumerate() {
            expected.extend([number, 0, 0, 0, index as u8, 0, 0, 0]);
            expected.extend(offset.to_le_bytes());
            expected.extend((index as u64 * 10).to_le_bytes());
            offset += index as u64 * 10;
        }
        expected.extend(crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(bytes.len(), Directory::encoded_len(7));
    }

    #[test]
    fn round_trip() {
        let (directory, base) = sample();
        assert_eq!(Directory::decode(&directory.encode(), base).unwrap(), directory);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let (directory, base) = sample();
        let bytes = directory.encode();
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(Directory::decode(&flipped, base).is_err(), "bit {bit} of {position}");
            }
            assert!(Directory::decode(&bytes[..position], base).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn gaps_overlaps_doubles_and_absences_are_refused() {
        let (good, base) = sample();
        let mut gap = good.clone();
        gap.sections[3].len -= 1;
        let mut missing = good.clone();
        missing.sections.remove(0); // The first one is empty, so nothing else is wrong.
        let mut double = good.clone();
        double.sections[0].kind = SectionKind::Header;
        let mut endless = good.clone();
        endless.sections[6].len = u64::MAX;
        for (name, broken) in
            [("gap", gap), ("missing", missing), ("double", double), ("endless", endless)]
        {
            assert!(Directory::decode(&broken.encode(), base).is_err(), "{name}");
        }
        assert!(Directory::decode(&good.encode(), base + 1).is_err());
    }

    #[test]
    fn sections_of_later_versions_are_ignored_unless_required() {
        let (mut directory, base) = sample();
        let extra = Section { kind: SectionKind::Other(99), crc: 0, offset: base, len: 5 };
        directory.sections.push(extra);
        assert_eq!(Directory::decode(&directory.encode(), base + 5).unwrap(), directory);
        directory.sections[7].kind = SectionKind::Other(0x8001);
        assert!(Directory::decode(&directory.encode(), base + 5).is_err());
    }

    #[test]
    fn frame_entry_golden_bytes_and_round_trip() {
        let entry = FrameEntry {
            offset: 0x0102_0304_0506,
            first_block: BlockIndex(0x0708),
            payload_len: 0x090a,
        };
        let bytes = entry.encode();
        assert_eq!(bytes, [6, 5, 4, 3, 2, 1, 0, 0, 8, 7, 0, 0, 10, 9, 0, 0]);
        assert_eq!(FrameEntry::decode(&bytes).unwrap(), entry);
        assert!(FrameEntry::decode(&bytes[..15]).is_err());
    }

    #[test]
    fn bitmaps_are_canonical_bounded_and_complete() {
        let mut by_range = RoaringBitmap::new();
        by_range.insert_range(5..70_000);
        let one_by_one: RoaringBitmap = (5..70_000).collect();
        let bytes = encode_bitmap(by_range.clone());
        assert_eq!(bytes, encode_bitmap(one_by_one));
        let decode = |bytes: &[u8], limit| decode_bitmap(bytes, limit, SectionKind::Stored);
        assert_eq!(decode(&bytes, 70_000).unwrap(), by_range);
        assert!(decode(&bytes, 69_999).is_err());
        assert!(decode(&bytes[..bytes.len() - 1], 70_000).is_err());
        assert!(decode(&[bytes.as_slice(), &[0]].concat(), 70_000).is_err());
        assert!(decode(&[], 70_000).is_err());
        assert!(decode(&vec![0; 1 << 20], 70_000).is_err());
    }

    /// The roaring specification's own bytes: other programs can read our bitmaps.
    #[test]
    fn golden_bytes_of_a_bitmap() {
        let bitmap: RoaringBitmap = [1, 3, 70_000].into_iter().collect();
        let expected: &[u8] = &[
            0x3a, 0x30, 0, 0, 2, 0, 0, 0, // no runs, two containers
            0, 0, 1, 0, 1, 0, 0, 0, // keys and cardinalities less one
            24, 0, 0, 0, 28, 0, 0, 0, // offsets
            1, 0, 3, 0, 0x70, 0x11, // 1, 3; 70,000 - 65,536
        ];
        assert_eq!(encode_bitmap(bitmap), expected);
    }

    proptest::proptest! {
        /// Any bytes are a bitmap of numbers below the limit, or refused.
        #[test]
        fn hostile_bitmaps_are_decoded_or_refused(
            numbers in proptest::collection::vec(0u32..200_000, 0..300),
            run in 0u32..100_000,
            edits in proptest::collection::vec((proptest::prelude::any::<u16>(), proptest::prelude::any::<u8>()), 0..6),
        ) {
            let mut bitmap: RoaringBitmap = numbers.into_iter().collect();
            bitmap.insert_range(run..run + run / 2);
            let mut bytes = encode_bitmap(bitmap);
            for (place, value) in edits {
                let at = usize::from(place) * bytes.len() / 65_536;
                bytes[at] = value;
            }
            if let Ok(bitmap) = decode_bitmap(&bytes, 200_000, SectionKind::Stored) {
                assert!(bitmap.max().is_none_or(|max| max < 200_000));
                assert_eq!(bitmap.iter().count() as u64, bitmap.len());
            }
        }
    }
}
