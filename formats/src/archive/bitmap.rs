//! A bitmap section, read piece by piece: roaring's portable serialization. The head says for each
//! container of 65,536 numbers how many of them the bitmap has and where the container lies, so
//! that a reader of a few blocks loads a few containers.

use super::SectionKind;
use super::index::bitmap_len_max;
use crate::{FormatError, Problem};

/// How many numbers a container is about.
pub const CONTAINER_NUMBERS: u64 = 1 << 16;

/// Words of 64 numbers in a container.
pub const CONTAINER_WORDS: usize = CONTAINER_NUMBERS as usize / 64;

/// The first bytes of a section, which tell [`head_len`].
pub const PREFIX_LEN: usize = 8;

/// The longest container, in bytes: plain bits. A list of runs is only written where it is shorter.
pub const CONTAINER_LEN_MAX: usize = 8 << 10;

/// Begins a bitmap without runs.
const COOKIE: u32 = 12_346;

/// The low half of the word that begins a bitmap with runs.
const COOKIE_RUNS: u32 = 12_347;

/// A bitmap with runs has offsets from so many containers on.
const OFFSETS_FROM: usize = 4;

/// A container with more numbers than these is plain bits.
const ARRAY_MAX: u32 = 4096;

/// Where a container lies, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The high 16 bits of its numbers.
    pub key: u16,
    /// How many numbers it has: 1 to 65,536.
    pub cardinality: u32,
    /// Whether it is a list of runs.
    pub is_runs: bool,
    /// Where it starts, in bytes from the start of the section.
    pub offset: u32,
    /// How many bytes it has.
    pub len: u32,
}

/// What the first bytes of a section say about its head.
struct Prefix {
    has_runs: bool,
    containers: usize,
}

impl Prefix {
    fn decode(bytes: &[u8], kind: SectionKind) -> Result<Self, FormatError> {
        let cookie = u32_at(bytes, 0, kind)?;
        if cookie & 0xffff == COOKIE_RUNS {
            return Ok(Self { has_runs: true, containers: (cookie >> 16) as usize + 1 });
        }
        if cookie != COOKIE {
            return Err(invalid(0, kind, "it does not begin like a bitmap"));
        }
        let containers = u32_at(bytes, 4, kind)?;
        if u64::from(containers) > CONTAINER_NUMBERS {
            return Err(invalid(4, kind, "it has too many containers"));
        }
        Ok(Self { has_runs: false, containers: containers as usize })
    }

    /// Where the containers' keys and cardinalities begin.
    fn descriptions(&self) -> usize {
        if self.has_runs { 4 + self.containers.div_ceil(8) } else { 8 }
    }

    fn has_offsets(&self) -> bool {
        !self.has_runs || self.containers >= OFFSETS_FROM
    }

    fn len(&self) -> usize {
        let each = if self.has_offsets() { 8 } else { 4 };
        self.descriptions() + each * self.containers
    }
}

/// How many bytes the head of a section has, from the section's first [`PREFIX_LEN`] bytes.
///
/// # Errors
/// The bytes begin no bitmap.
pub fn head_len(prefix: &[u8], kind: SectionKind) -> Result<usize, FormatError> {
    Ok(Prefix::decode(prefix, kind)?.len())
}

/// The containers of a bitmap of numbers below `limit` that fills a section of `section_len` bytes.
/// `bytes` are the section's head or more; a section of fewer than four containers must be there
/// as a whole.
///
/// # Errors
/// The head breaks a rule: containers ascend, touch each other, and fill the section. Offsets in
/// the error count from the start of the section.
pub fn decode_head(
    bytes: &[u8],
    section_len: u64,
    limit: u64,
    kind: SectionKind,
) -> Result<Vec<Place>, FormatError> {
    let max = bitmap_len_max(limit);
    if section_len > max {
        let problem = Problem::OutOfRange { value: section_len, min: 0, max };
        return Err(FormatError::new(0, kind.name(), problem));
    }
    let prefix = Prefix::decode(bytes, kind)?;
    if prefix.containers as u64 > limit.div_ceil(CONTAINER_NUMBERS) {
        return Err(invalid(4, kind, "it has more containers than the disk needs"));
    }
    let descriptions = prefix.descriptions();
    let offsets = descriptions + 4 * prefix.containers;
    let mut places: Vec<Place> = Vec::with_capacity(prefix.containers);
    let mut next = prefix.len() as u64;
    for index in 0..prefix.containers {
        let at = descriptions + 4 * index;
        let key = u16_at(bytes, at, kind)?;
        if places.last().is_some_and(|last| last.key >= key) {
            return Err(invalid(at, kind, "the containers do not ascend"));
        }
        if u64::from(key) * CONTAINER_NUMBERS >= limit {
            return Err(invalid(at, kind, "a container is past the end of the disk"));
        }
        let cardinality = u32::from(u16_at(bytes, at + 2, kind)?) + 1;
        let is_runs =
            prefix.has_runs && byte_at(bytes, 4 + index / 8, kind)? >> (index % 8) & 1 == 1;
        if prefix.has_offsets() && u64::from(u32_at(bytes, offsets + 4 * index, kind)?) != next {
            return Err(invalid(
                offsets + 4 * index,
                kind,
                "the containers do not touch each other",
            ));
        }
        let len = if !is_runs {
            plain_len(cardinality)
        } else if !prefix.has_offsets() {
            2 + 4 * u64::from(u16_at(bytes, next as usize, kind)?)
        } else if index + 1 < prefix.containers {
            let end = u32_at(bytes, offsets + 4 * (index + 1), kind)?;
            u64::from(end).saturating_sub(next)
        } else {
            section_len.saturating_sub(next)
        };
        if is_runs && (len < 6 || len % 4 != 2 || len > CONTAINER_LEN_MAX as u64 + 2) {
            return Err(invalid(next as usize, kind, "a list of runs has an impossible length"));
        }
        // A section is shorter than 2^31 bytes, and so is every place in it.
        places.push(Place { key, cardinality, is_runs, offset: next as u32, len: len as u32 });
        next += len;
        if next > section_len {
            return Err(invalid(at, kind, "a container reaches past its end"));
        }
    }
    if next != section_len {
        return Err(invalid(next as usize, kind, "bytes are left over at its end"));
    }
    Ok(places)
}

/// Length of a container of so many numbers that is no list of runs, in bytes.
pub fn plain_len(cardinality: u32) -> u64 {
    if cardinality <= ARRAY_MAX { 2 * u64::from(cardinality) } else { CONTAINER_LEN_MAX as u64 }
}

/// The numbers of a container, without the high 16 bits that all of them share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Container {
    /// Ascending numbers.
    Array(Box<[u16]>),
    /// One bit for each number.
    Bits(Box<[u64; CONTAINER_WORDS]>),
    /// Ascending runs: the first and the last number of each.
    Runs(Box<[(u16, u16)]>),
}

impl Container {
    /// Decodes the container at `place`, whose bytes these are. All numbers of the bitmap are below
    /// `limit`.
    ///
    /// # Errors
    /// The numbers do not ascend, are not as many as the head says, or are not below the limit.
    pub fn decode(
        place: &Place,
        bytes: &[u8],
        limit: u64,
        kind: SectionKind,
    ) -> Result<Self, FormatError> {
        let wrong = |words| Err(invalid(place.offset as usize, kind, words));
        if bytes.len() != place.len as usize {
            return wrong("a container is cut off");
        }
        let container = if place.is_runs {
            Self::Runs(decode_runs(bytes).ok_or_else(|| {
                invalid(place.offset as usize, kind, "the runs of a container do not ascend")
            })?)
        } else if place.cardinality <= ARRAY_MAX {
            let numbers = bytes.as_chunks().0.iter().map(|number| u16::from_le_bytes(*number));
            Self::Array(numbers.collect())
        } else {
            let mut words = Box::new([0; CONTAINER_WORDS]);
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            Self::Bits(words)
        };
        if let Self::Array(numbers) = &container
            && !numbers.is_sorted_by(|one, other| one < other)
        {
            return wrong("the numbers of a container do not ascend");
        }
        if container.rank(CONTAINER_WORDS) != place.cardinality {
            return wrong("a container has not as many numbers as the head says");
        }
        let base = u64::from(place.key) * CONTAINER_NUMBERS;
        match container.max() {
            Some(max) if base + u64::from(max) < limit => Ok(container),
            _ => wrong("a number is past the end of the disk"),
        }
    }

    /// The largest number.
    fn max(&self) -> Option<u16> {
        match self {
            Self::Array(numbers) => numbers.last().copied(),
            Self::Runs(runs) => runs.last().map(|(_, last)| *last),
            Self::Bits(words) => {
                let index = words.iter().rposition(|word| *word != 0)?;
                Some(index as u16 * 64 + 63 - words.get(index)?.leading_zeros() as u16)
            }
        }
    }

    /// How many numbers are in the first `words` words of 64 numbers.
    pub fn rank(&self, words: usize) -> u32 {
        let end = (words * 64) as u32;
        match self {
            Self::Array(numbers) => {
                numbers.partition_point(|number| u32::from(*number) < end) as u32
            }
            Self::Bits(all) => all.iter().take(words).map(|word| word.count_ones()).sum(),
            Self::Runs(runs) => runs
                .iter()
                .map(|(first, last)| (u32::from(*first), u32::from(*last) + 1))
                .map(|(start, stop)| stop.min(end).saturating_sub(start))
                .sum(),
        }
    }

    /// Writes the numbers from 64 × `first` on into `words`, one bit for each. The words are clear
    /// before.
    pub fn bits(&self, first: usize, words: &mut [u64]) {
        let (start, end) = (first as u32 * 64, (first + words.len()) as u32 * 64);
        match self {
            Self::Array(numbers) => {
                let from = numbers.partition_point(|number| u32::from(*number) < start);
                for number in numbers.get(from..).unwrap_or_default() {
                    let at = u32::from(*number) - start;
                    let Some(word) = words.get_mut(at as usize / 64) else { break };
                    *word |= 1 << (at % 64);
                }
            }
            Self::Bits(all) => {
                for (word, from) in words.iter_mut().zip(all.iter().skip(first)) {
                    *word = *from;
                }
            }
            Self::Runs(runs) => {
                let from = runs.partition_point(|(_, last)| u32::from(*last) < start);
                for (run_first, run_last) in runs.get(from..).unwrap_or_default() {
                    let run_start = u32::from(*run_first).max(start);
                    if run_start >= end {
                        break;
                    }
                    let run_end = (u32::from(*run_last) + 1).min(end);
                    set(words, run_start - start, run_end - start);
                }
            }
        }
    }

    /// The 64 numbers from 64 × `index` on, one bit for each.
    pub fn word(&self, index: usize) -> u64 {
        let mut word = [0];
        self.bits(index, &mut word);
        word[0]
    }
}

/// Sets the bits from `start` to before `end`.
fn set(words: &mut [u64], start: u32, end: u32) {
    let (first, last) = (start / 64, end.saturating_sub(1) / 64);
    for (index, word) in (0u32..).zip(words).skip(first as usize) {
        if index > last {
            break;
        }
        let from = start.max(index * 64) - index * 64;
        let to = end.min((index + 1) * 64) - index * 64;
        if from < to {
            // `to - from` is 1 to 64, so the shift stays below 64.
            *word |= (u64::MAX >> (64 - (to - from))) << from;
        }
    }
}

/// A list of runs, each a first number and how many follow it; none if they do not ascend.
fn decode_runs(bytes: &[u8]) -> Option<Box<[(u16, u16)]>> {
    let (count, pairs) = bytes.split_first_chunk()?;
    let count = usize::from(u16::from_le_bytes(*count));
    let mut runs: Vec<(u16, u16)> = Vec::with_capacity(count.min(pairs.len() / 4));
    for &[a, b, c, d] in pairs.as_chunks().0 {
        let first = u16::from_le_bytes([a, b]);
        let last = first.checked_add(u16::from_le_bytes([c, d]))?;
        if runs.last().is_some_and(|(_, before)| *before >= first) {
            return None;
        }
        runs.push((first, last));
    }
    (runs.len() == count && count > 0).then(|| runs.into())
}

fn invalid(offset: usize, kind: SectionKind, words: &'static str) -> FormatError {
    FormatError::new(offset as u64, kind.name(), Problem::Invalid(words.into()))
}

fn chunk<const N: usize>(
    bytes: &[u8],
    at: usize,
    kind: SectionKind,
) -> Result<[u8; N], FormatError> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(|| invalid(at, kind, "its head is cut off"))
}

fn byte_at(bytes: &[u8], at: usize, kind: SectionKind) -> Result<u8, FormatError> {
    chunk(bytes, at, kind).map(u8::from_le_bytes)
}

fn u16_at(bytes: &[u8], at: usize, kind: SectionKind) -> Result<u16, FormatError> {
    chunk(bytes, at, kind).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize, kind: SectionKind) -> Result<u32, FormatError> {
    chunk(bytes, at, kind).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use roaring::RoaringBitmap;

    use super::super::index::{decode_bitmap, encode_bitmap};
    use super::*;

    const KIND: SectionKind = SectionKind::Stored;

    /// All numbers of a section, container by container.
    fn numbers(bytes: &[u8], limit: u64) -> Result<Vec<u32>, FormatError> {
        let mut all = Vec::new();
        for place in decode_head(bytes, bytes.len() as u64, limit, KIND)? {
            let at = place.offset as usize;
            let container =
                Container::decode(&place, &bytes[at..at + place.len as usize], limit, KIND)?;
            let mut words = [0; CONTAINER_WORDS];
            container.bits(0, &mut words);
            let base = u32::from(place.key) << 16;
            let is_set = |number: &u32| words[*number as usize / 64] >> (number % 64) & 1 == 1;
            all.extend((0..1 << 16).filter(is_set).map(|number| base + number));
            let mut rank = 0;
            for (index, word) in words.iter().enumerate() {
                assert_eq!(container.rank(index), rank);
                assert_eq!(container.word(index), *word);
                rank += word.count_ones();
            }
        }
        Ok(all)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Piece by piece a bitmap is what roaring reads as a whole, with any mix of containers.
        #[test]
        fn containers_are_what_roaring_reads(
            singles in prop::collection::vec(0u32..600_000, 0..300),
            runs in prop::collection::vec((0u32..500_000, 1u32..80_000), 0..4),
            dense in prop::option::of((0u32..8, 2u32..9)),
        ) {
            let mut bitmap: RoaringBitmap = singles.into_iter().collect();
            for (start, len) in runs {
                bitmap.insert_range(start..start + len);
            }
            if let Some((key, step)) = dense {
                bitmap.extend((key << 16..(key + 1) << 16).step_by(step as usize));
            }
            let bytes = encode_bitmap(bitmap.clone());
            let limit = bitmap.max().map_or(1, |max| u64::from(max) + 1);
            prop_assert_eq!(numbers(&bytes, limit).unwrap(), bitmap.iter().collect::<Vec<_>>());
            prop_assert!(bitmap.is_empty() || numbers(&bytes, limit - 1).is_err());
            let head = head_len(&bytes, KIND).unwrap();
            if decode_head(&bytes, bytes.len() as u64, limit, KIND).unwrap().len() >= OFFSETS_FROM {
                let short = decode_head(&bytes[..head], bytes.len() as u64, limit, KIND);
                prop_assert!(short.is_ok());
            }
            prop_assert!(decode_head(&bytes, bytes.len() as u64 + 1, limit, KIND).is_err());
        }

        /// Damaged bytes are refused, or read as roaring reads them.
        #[test]
        fn hostile_bitmaps_are_read_like_roaring_or_refused(
            singles in prop::collection::vec(0u32..200_000, 0..300),
            run in 0u32..100_000,
            edits in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        ) {
            let mut bitmap: RoaringBitmap = singles.into_iter().collect();
            bitmap.insert_range(run..run + run / 2);
            let mut bytes = encode_bitmap(bitmap);
            for (place, value) in edits {
                let at = usize::from(place) * bytes.len() / 65_536;
                bytes[at] = value;
            }
            if let Ok(numbers) = numbers(&bytes, 200_000) {
                let whole = decode_bitmap(&bytes, 200_000, KIND).unwrap();
                prop_assert_eq!(numbers, whole.iter().collect::<Vec<_>>());
            }
        }
    }
}
