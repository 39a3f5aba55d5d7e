//! A bitmap of an archive. A small one is held in memory; of a large one only where its containers
//! lie, 16 bytes for each 65,536 numbers, and the containers are read where they are needed.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::load::{Tail, check_crc, unread};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::FormatError;
use crate::formats::archive::bitmap::{
    CONTAINER_LEN_MAX, CONTAINER_WORDS, Container, PREFIX_LEN, Place, decode_head, head_len,
    plain_len,
};
use crate::formats::archive::{Section, SectionKind, index};

/// A bitmap of at most so many bytes is held in memory: that of the groups of a disk of 16 TiB, if
/// its blocks have 64 KiB, and those of the blocks of a small disk.
const HELD_LEN_MAX: u64 = 33 << 10;

/// How many neighbouring containers of a large bitmap are read together when it is opened: at most
/// 256 KiB.
const AT_ONCE: usize = 32;

/// The highest bit of a container's place says that the container is a list of runs: a section is
/// shorter than 2³¹ bytes.
const IS_RUNS: u32 = 1 << 31;

/// The numbers of the blocks, or of the groups, that a section of an archive names. Any thread may
/// use it.
pub struct Bitmap {
    store: Arc<dyn ReadAt>,
    kind: SectionKind,
    /// Where the section lies in the file.
    offset: u64,
    section_len: u64,
    limit: u64,
    count: u64,
    places: Box<[Held]>,
    /// All containers, if the bitmap is small.
    containers: Option<Box<[Arc<Container>]>>,
}

/// What is held of a container.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// How many numbers are before it. There are at most 2³², and one more container.
    rank: u32,
    /// How many spans have a number before it.
    spans: u32,
    /// Its place in the section, and [`IS_RUNS`].
    offset: u32,
    /// The high 16 bits of its numbers.
    key: u16,
    cardinality_less_one: u16,
}

/// A container, and how much is before it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The high 16 bits of its numbers.
    pub key: u16,
    /// Its numbers.
    pub container: Arc<Container>,
    /// How many numbers are before it.
    pub rank: u64,
    /// How many spans have a number before it.
    pub spans: u64,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bitmap").field("kind", &self.kind).field("count", &self.count).finish()
    }
}

impl Bitmap {
    /// Reads the section once and checks all of it. Its numbers are below `limit`, and `span` of
    /// them make a span: see [`Part::spans`].
    pub(super) fn open(tail: &Tail, section: &Section, limit: u64, span: u32) -> Result<Self> {
        let store = tail.store();
        let damaged = |error: FormatError| {
            Error::format(ErrorKind::Damaged, store.path(), error.relative_to(section.offset))
        };
        let mut bitmap = Self {
            store: Arc::clone(store),
            kind: section.kind,
            offset: section.offset,
            section_len: section.len,
            limit,
            count: 0,
            places: Box::default(),
            containers: None,
        };
        if section.len <= HELD_LEN_MAX {
            let bytes = tail.at(section.offset, section.len as usize)?;
            check_crc(store, section, crc32fast::hash(&bytes))?;
            bitmap.hold(&bytes, span).map_err(damaged)?;
            return Ok(bitmap);
        }
        let prefix = tail.at(section.offset, PREFIX_LEN)?;
        let len = head_len(&prefix, section.kind).map_err(damaged)?;
        // The section's length is within the file's, and a head has at most 8 bytes a container.
        let head = tail.at(section.offset, (len as u64).min(section.len) as usize)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        let places = decode_head(&head, section.len, limit, section.kind).map_err(damaged)?;
        let mut held = Vec::with_capacity(places.len());
        let mut before = Before::default();
        // Neighbours are read together: a container can be as short as two bytes.
        for places in places.chunks(AT_ONCE) {
            let [Some(first), Some(last)] = [places.first(), places.last()] else { continue };
            let len = last.offset + last.len - first.offset;
            let bytes = tail.at(section.offset + u64::from(first.offset), len as usize)?;
            crc.update(&bytes);
            for place in places {
                let at = (place.offset - first.offset) as usize;
                let bytes = bytes.get(at..at + place.len as usize).unwrap_or_default();
                let container = Container::decode(place, bytes, limit, section.kind);
                held.push(before.pass(place, &container.map_err(damaged)?, span));
            }
        }
        check_crc(store, section, crc.finalize())?;
        bitmap.count = before.rank;
        bitmap.places = held.into();
        Ok(bitmap)
    }

    /// A bitmap that was found rather than read.
    pub(super) fn found(
        store: &Arc<dyn ReadAt>,
        kind: SectionKind,
        numbers: RoaringBitmap,
        limit: u64,
        span: u32,
    ) -> Result<Self> {
        let bytes = index::encode_bitmap(numbers);
        let mut bitmap = Self {
            store: Arc::clone(store),
            kind,
            offset: 0,
            section_len: bytes.len() as u64,
            limit,
            count: 0,
            places: Box::default(),
            containers: None,
        };
        let held = bitmap.hold(&bytes, span);
        held.map_err(|error| Error::format(ErrorKind::Damaged, store.path(), error))?;
        Ok(bitmap)
    }

    /// Decodes and holds all of it.
    fn hold(&mut self, bytes: &[u8], span: u32) -> Result<(), FormatError> {
        let places = decode_head(bytes, self.section_len, self.limit, self.kind)?;
        let mut before = Before::default();
        let (mut held, mut containers) = (Vec::new(), Vec::new());
        for place in &places {
            let at = place.offset as usize;
            let bytes = bytes.get(at..at + place.len as usize).unwrap_or_default();
            let container = Container::decode(place, bytes, self.limit, self.kind)?;
            held.push(before.pass(place, &container, span));
            containers.push(Arc::new(container));
        }
        self.count = before.rank;
        self.places = held.into();
        self.containers = Some(containers.into());
        Ok(())
    }

    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `number` is among the numbers.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn contains(&self, number: u32) -> Result<bool> {
        Ok(self.walk().mask(number, 1)? != 0)
    }

    /// All numbers. At most one bit for each block of the disk.
    ///
    /// # Errors
    /// The store failed, or the containers are not what they were.
    pub fn load(&self) -> Result<RoaringBitmap> {
        let mut all = RoaringBitmap::new();
        for numbers in self.pieces() {
            all |= numbers?;
        }
        Ok(all)
    }

    /// All numbers, in ascending pieces of at most 65,536.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Result<RoaringBitmap>> + '_ {
        (0..self.places.len()).filter_map(|index| self.part(index).transpose()).map(|part| {
            let part = part?;
            let mut words = [0; CONTAINER_WORDS];
            part.container.bits(0, &mut words);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            Ok(RoaringBitmap::from_lsb0_bytes(u32::from(part.key) << 16, &bytes))
        })
    }

    /// The container of `key`.
    pub(crate) fn part_of(&self, key: u16) -> Result<Option<Part>> {
        match self.places.binary_search_by_key(&key, |held| held.key) {
            Ok(index) => self.part(index),
            Err(_) => Ok(None),
        }
    }

    fn part(&self, index: usize) -> Result<Option<Part>> {
        let Some(held) = self.places.get(index) else { return Ok(None) };
        let container = match self.containers.as_ref().and_then(|all| all.get(index)) {
            Some(container) => Arc::clone(container),
            None => Arc::new(self.read(index, held)?),
        };
        let (rank, spans) = (held.rank.into(), held.spans.into());
        Ok(Some(Part { key: held.key, container, rank, spans }))
    }

    fn read(&self, index: usize, held: &Held) -> Result<Container> {
        let is_runs = held.offset & IS_RUNS != 0;
        let offset = held.offset & !IS_RUNS;
        let cardinality = u32::from(held.cardinality_less_one) + 1;
        let len = if is_runs {
            let next = self.places.get(index + 1);
            let end = next.map_or(self.section_len, |next| u64::from(next.offset & !IS_RUNS));
            end.saturating_sub(offset.into())
        } else {
            plain_len(cardinality)
        };
        let place = Place { key: held.key, cardinality, is_runs, offset, len: len as u32 };
        // A list of runs has two bytes more than plain bits, at most.
        let mut bytes = [0; CONTAINER_LEN_MAX + 2];
        let bytes = bytes.get_mut(..len as usize).unwrap_or_default();
        let at = self.offset + u64::from(offset);
        let read = self.store.read_exact_at(bytes, at);
        read.map_err(|error| unread(self.store.path(), at, len as usize, error))?;
        Container::decode(&place, bytes, self.limit, self.kind).map_err(|error| {
            Error::format(ErrorKind::Damaged, self.store.path(), error.relative_to(self.offset))
        })
    }

    /// Whether the two have a number in common, which is then given.
    pub(super) fn common(&self, other: &Self) -> Result<Option<u32>> {
        for index in 0..self.places.len() {
            let key = self.places.get(index).map_or(0, |held| held.key);
            let Some(theirs) = other.part_of(key)? else { continue };
            let Some(ours) = self.part(index)? else { continue };
            let (mut some, mut others) = ([0; CONTAINER_WORDS], [0; CONTAINER_WORDS]);
            ours.container.bits(0, &mut some);
            theirs.container.bits(0, &mut others);
            let mut words = (0u32..).zip(some.iter().zip(others));
            if let Some((word, (ours, theirs))) =
                words.find(|(_, (ours, theirs))| **ours & theirs != 0)
            {
                let bit = (ours & theirs).trailing_zeros();
                return Ok(Some((u32::from(key) << 16) + word * 64 + bit));
            }
        }
        Ok(None)
    }

    /// A walk over the bitmap.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk { bitmap: self, at: None }
    }
}

/// A walk over a bitmap, which holds the container that was looked at last.
pub(crate) struct Walk<'a> {
    bitmap: &'a Bitmap,
    at: Option<(u16, Option<Part>)>,
}

impl Walk<'_> {
    /// The numbers of the span of `span` numbers that starts at `first`, a multiple of it.
    pub(crate) fn mask(&mut self, first: u32, span: u32) -> Result<u64> {
        let key = (first >> 16) as u16;
        if self.at.as_ref().is_none_or(|(at, _)| *at != key) {
            self.at = Some((key, self.bitmap.part_of(key)?));
        }
        let part = self.at.as_ref().and_then(|(_, part)| part.as_ref());
        let word = part.map_or(0, |part| part.container.word((first & 0xffff) as usize / 64));
        Ok(span_of(word, first, span))
    }
}

/// The bits of `word` that are of the span of `span` numbers that starts at `first`, which is a
/// multiple of it.
pub(crate) fn span_of(word: u64, first: u32, span: u32) -> u64 {
    word >> (first % 64) & u64::MAX >> (64 - span)
}

/// How many spans of `span` numbers have a bit in `word`.
pub(crate) fn spans_in(word: u64, span: u32) -> u32 {
    // Each bit is spread over the bits below it, as far as a span reaches: then the lowest bit of
    // a span tells of all of them.
    let (mut spread, mut reach) = (word, 1);
    while reach < span {
        spread |= spread >> reach;
        reach *= 2;
    }
    let lowest = (0..64).step_by(span as usize).fold(0, |mask, bit| mask | 1_u64 << bit);
    (spread & lowest).count_ones()
}

/// What was passed of a bitmap.
#[derive(Default)]
struct Before {
    rank: u64,
    spans: u64,
}

impl Before {
    /// Passes a container.
    fn pass(&mut self, place: &Place, container: &Container, span: u32) -> Held {
        let held = Held {
            rank: self.rank as u32,
            spans: self.spans as u32,
            offset: place.offset | if place.is_runs { IS_RUNS } else { 0 },
            key: place.key,
            cardinality_less_one: (place.cardinality - 1) as u16,
        };
        self.rank += u64::from(place.cardinality);
        self.spans += u64::from(if span == 1 {
            place.cardinality
        } else {
            let mut words = [0; CONTAINER_WORDS];
            container.bits(0, &mut words);
            words.iter().map(|word| spans_in(*word, span)).sum()
        });
        held
    }
}
