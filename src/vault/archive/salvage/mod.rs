//! Gets everything sound out of an archive that does not open: its frames by searching for them,
//! and whatever of header and index still proves itself.
//!
//! What comes out is a [`Reader`] again, one that says which blocks it has lost and for which it
//! can't tell whether they had changed. A salvaged chain is built on it.

mod scan;

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::Reader;
use super::bitmap::Bitmap;
use super::load::{self, Tail};
use super::reader::{Gaps, Proofs};
use super::table::Table;
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::{
    DIGEST_LEN, Directory, FRAME_ENTRY_LEN, GroupIndex, Kind, Metadata, Section, SectionKind,
    header, index,
};

pub use scan::{FoundFrame, Scan, scan};

/// How far from the end of the file a directory is searched for whose footer is damaged.
const DIRECTORY_SEARCH_LEN: u64 = 64 << 10;

/// An archive of which not everything is left.
#[derive(Debug)]
pub struct Salvaged {
    /// What is left, to be read like any archive.
    pub reader: Reader,
    /// What is damaged or missing, one line each, file and place included.
    pub problems: Vec<String>,
    /// Parts of the file, in bytes, that hold no sound frame where one should be. None if the
    /// index was enough and nobody had to search.
    pub bad_ranges: Vec<Range<u64>>,
}

/// Opens what is left of an archive. If header and index are sound, that costs no more than
/// [`Reader::open`] and a check of the index; otherwise the whole file is read once, within a fixed
/// window of memory and 24 bytes a frame.
///
/// # Errors
/// [`ErrorKind::Damaged`]: neither the header nor its copy is left, so nobody can say what disk it
/// was. [`ErrorKind::Interrupted`]: somebody cancelled. Others: the store failed where there is no
/// way around.
pub fn open(store: &Arc<dyn ReadAt>, cancel: &Cancel) -> Result<Salvaged> {
    let path = store.path();
    let file_len = store.len().map_err(|error| Error::io("find the length of", path, error))?;
    let mut problems = Vec::new();
    // Each part is read by itself: what can't be read costs no other.
    let tail = Tail::none(store);
    let directory = find_directory(&tail, file_len, &mut problems);
    let front = note(&mut problems, load::read_header(&tail, file_len));
    let (directory, known) = match (directory, front) {
        (Some(directory), Some((metadata, bytes))) => {
            note(&mut problems, load_header_copy(&tail, &directory));
            if directory.archive_id == metadata.archive_id {
                (Some(directory), Some((metadata, bytes.len() as u64)))
            } else {
                // The frames follow the header, and they are what there is to save.
                problems.push(format!(
                    "{}: the index is of archive {}, the header of {}",
                    path.display(),
                    directory.archive_id,
                    metadata.archive_id
                ));
                (None, Some((metadata, bytes.len() as u64)))
            }
        }
        (Some(directory), None) => {
            let copy = note(&mut problems, load_header_copy(&tail, &directory));
            (Some(directory), copy)
        }
        (None, known) => (None, known.map(|(metadata, bytes)| (metadata, bytes.len() as u64))),
    };
    if let (Some(directory), Some((metadata, header_len))) = (&directory, &known) {
        let index = Index::load(&tail, directory, metadata, &mut problems);
        if let Some(reader) = index.complete(store, file_len, directory, metadata, *header_len) {
            match reader.check_agreement().and_then(|()| reader.check_frame_table()) {
                Ok(()) => return Ok(Salvaged { reader, problems, bad_ranges: Vec::new() }),
                Err(error) => problems.push(error.chain()),
            }
        }
    }
    search(store, file_len, directory, known, problems, cancel)
}

/// Goes through the file for frames, and makes the best of them.
fn search(
    store: &Arc<dyn ReadAt>,
    file_len: u64,
    directory: Option<Directory>,
    known: Option<(Metadata, u64)>,
    mut problems: Vec<String>,
    cancel: &Cancel,
) -> Result<Salvaged> {
    let frames_end = directory
        .as_ref()
        .and_then(|directory| directory.sections.first())
        .map_or(file_len, |first| first.offset);
    let tag = known.as_ref().map(|(metadata, _)| metadata.archive_id.tag());
    let start = known.as_ref().map_or(0, |(_, len)| *len);
    let scan = scan::scan_range(&**store, start..frames_end, tag, cancel)?;
    let (metadata, header_len) = match known.or_else(|| scan.metadata.clone()) {
        Some(known) => known,
        None => {
            let context = format!(
                "{}: the header is lost, and so is its copy: {} frames are left of a disk that \
                 nobody can name",
                store.path().display(),
                scan.frames.len()
            );
            return Err(Error::new(ErrorKind::Damaged, context));
        }
    };
    let mut scan = scan;
    scan.keep(&metadata, frames_end);
    for range in &scan.bad_ranges {
        problems.push(format!(
            "{}: bytes {} to {} hold no sound frame",
            store.path().display(),
            range.start,
            range.end
        ));
    }
    let index = match &directory {
        Some(directory) => {
            Index::load(&Tail::none(store), directory, &metadata, &mut Vec::new()).sets()
        }
        None => Sets::default(),
    };
    let frame_count = directory
        .as_ref()
        .and_then(|directory| directory.section(SectionKind::Frames))
        .map(|table| table.len / FRAME_ENTRY_LEN as u64);
    let stored: RoaringBitmap = scan.frames.iter().flat_map(FoundFrame::blocks).collect();
    let gaps = find_gaps(&scan, &metadata, &stored, &index, frame_count);
    let zero = index.zero.unwrap_or_default() - &stored - &gaps.lost;
    // Where bytes are missing, frames may lie before the place that the header's copy tells.
    let header_len = scan.frames.iter().map(|frame| frame.entry.offset).fold(header_len, u64::min);
    let table: Vec<u8> = scan.frames.iter().flat_map(|frame| frame.entry.encode()).collect();
    let found = |kind, numbers, span| {
        let limit = metadata.geometry.block_count();
        Bitmap::found(store, kind, numbers, limit, span)
    };
    let reader = Reader {
        store: Arc::clone(store),
        file_len,
        header_len,
        frames_end,
        root: directory.map(|directory| directory.root),
        sections: Vec::new(),
        stored: found(SectionKind::Stored, stored, metadata.frame_blocks)?,
        zero: found(SectionKind::Zero, zero, 1)?,
        groups: found(SectionKind::Groups, RoaringBitmap::new(), 1)?,
        metadata,
        frames: Table::memory(store, table),
        proofs: None,
        gaps: Some(gaps),
    };
    Ok(Salvaged { reader, problems, bad_ranges: scan.bad_ranges })
}

/// Which blocks are lost, and which may have changed without leaving a trace.
fn find_gaps(
    scan: &Scan,
    metadata: &Metadata,
    found: &RoaringBitmap,
    index: &Sets,
    frame_count: Option<u64>,
) -> Gaps {
    let block_count = metadata.geometry.block_count();
    let mut lost: RoaringBitmap = scan.damaged.iter().flat_map(FoundFrame::blocks).collect();
    let mut unsure = RoaringBitmap::new();
    match &index.stored {
        Some(stored) => lost |= stored - found,
        // Frames ascend: what a missing one held lies between its neighbours' blocks.
        None => {
            for blocks in scan.unexplained_blocks(block_count, frame_count) {
                insert(&mut unsure, blocks);
            }
        }
    }
    if index.zero.is_none() && metadata.kind != Kind::Full {
        insert(&mut unsure, 0..block_count);
    }
    // Groups whose digest did not change did not change.
    if let Some(groups) = &index.groups
        && !unsure.is_empty()
    {
        let mut changed = RoaringBitmap::new();
        for group in groups {
            insert(&mut changed, metadata.geometry.group_blocks(GroupIndex(group)));
        }
        unsure &= changed;
    }
    lost -= found;
    unsure -= found;
    unsure -= &lost;
    if let Some(zero) = &index.zero {
        unsure -= zero;
        lost -= zero;
    }
    unsure.optimize();
    Gaps { lost, unsure }
}

/// Adds block numbers, which are below 2³².
fn insert(bitmap: &mut RoaringBitmap, blocks: Range<u64>) {
    if let (Ok(first), Some(Ok(last))) =
        (u32::try_from(blocks.start), blocks.end.checked_sub(1).map(u32::try_from))
        && first <= last
    {
        bitmap.insert_range(first..=last);
    }
}

/// The result, or a line about why there is none.
fn note<T>(problems: &mut Vec<String>, result: Result<T>) -> Option<T> {
    result.map_err(|error| problems.push(error.chain())).ok()
}

/// The directory: where the footer says, or, if the footer is damaged or cut off, where it proves
/// itself in the last bytes of the file.
fn find_directory(tail: &Tail, file_len: u64, problems: &mut Vec<String>) -> Option<Directory> {
    let footer = note(problems, load::read_footer(tail, file_len));
    if let Some(footer) = footer {
        return note(problems, load::read_directory(tail, &footer));
    }
    let len = DIRECTORY_SEARCH_LEN.min(file_len);
    let base = file_len - len;
    let bytes = tail.at(base, len as usize).ok()?;
    let starts = bytes.windows(index::MAGIC.len()).enumerate().rev();
    starts.filter(|(_, four)| four == index::MAGIC).find_map(|(at, _)| {
        let rest = bytes.get(at..)?;
        let sections = index::field::SECTIONS.offset;
        let count = u32::from_le_bytes(*rest.get(sections..)?.first_chunk()?);
        let len = Directory::encoded_len(count.min(index::SECTIONS_MAX) as usize);
        Directory::decode(rest.get(..len)?, base + at as u64).ok()
    })
}

fn load_header_copy(tail: &Tail, directory: &Directory) -> Result<(Metadata, u64)> {
    let store = &**tail.store();
    let copy = directory.section(SectionKind::Header).ok_or_else(|| missing(store))?;
    let bytes = load::load_section(tail, copy, header::HEADER_LEN_MAX as u64)?;
    let (metadata, len) = header::decode(&bytes).map_err(|error| {
        Error::format(ErrorKind::Damaged, store.path(), error.relative_to(copy.offset))
    })?;
    Ok((metadata, len as u64))
}

fn missing(store: &dyn ReadAt) -> Error {
    let context = format!("{}: a section is missing", store.path().display());
    Error::new(ErrorKind::Damaged, context)
}

/// The sections of the index that still prove themselves.
struct Index {
    stored: Option<Bitmap>,
    zero: Option<Bitmap>,
    groups: Option<Bitmap>,
    frames: Option<Table>,
    digests: Option<Table>,
    group_digests: Option<Table>,
}

/// The bitmaps of an index that still prove themselves, as a whole.
#[derive(Default)]
struct Sets {
    stored: Option<RoaringBitmap>,
    zero: Option<RoaringBitmap>,
    groups: Option<RoaringBitmap>,
}

impl Index {
    fn load(
        tail: &Tail,
        directory: &Directory,
        metadata: &Metadata,
        problems: &mut Vec<String>,
    ) -> Self {
        let geometry = metadata.geometry;
        let store = tail.store();
        let mut bitmap = |kind, limit, span| {
            let section = directory.section(kind)?;
            note(problems, Bitmap::open(tail, section, limit, span))
        };
        let block_count = geometry.block_count();
        let stored = bitmap(SectionKind::Stored, block_count, metadata.frame_blocks);
        let zero = bitmap(SectionKind::Zero, block_count, 1);
        let groups = bitmap(SectionKind::Groups, geometry.group_count().into(), 1);
        let mut table = |kind, record: usize, count: Option<u64>| {
            let section = directory.section(kind)?;
            let len = count?.checked_mul(record as u64)?;
            note(problems, sound_table(store, section)).filter(|table| table.len() == len)
        };
        let blocks = stored.as_ref().map(Bitmap::len);
        let digests = table(SectionKind::BlockDigests, DIGEST_LEN, blocks);
        let group_count = groups.as_ref().map(Bitmap::len);
        let group_digests = table(SectionKind::GroupDigests, DIGEST_LEN, group_count);
        let frames = directory.section(SectionKind::Frames);
        let frames = frames.and_then(|section| note(problems, sound_table(store, section)));
        let frames = frames.filter(|table| table.len().is_multiple_of(FRAME_ENTRY_LEN as u64));
        Self { stored, zero, groups, frames, digests, group_digests }
    }

    /// The bitmaps as a whole. What can't be read any more counts as lost.
    fn sets(self) -> Sets {
        let load = |bitmap: Option<Bitmap>| bitmap.and_then(|bitmap| bitmap.load().ok());
        Sets { stored: load(self.stored), zero: load(self.zero), groups: load(self.groups) }
    }

    /// A reader, if the index says all that it takes to find blocks. Digests are dispensable.
    fn complete(
        self,
        store: &Arc<dyn ReadAt>,
        file_len: u64,
        directory: &Directory,
        metadata: &Metadata,
        header_len: u64,
    ) -> Option<Reader> {
        let (stored, zero, frames) = (self.stored?, self.zero?, self.frames?);
        let (groups, proofs) = match (self.groups, self.group_digests, self.digests) {
            (Some(bitmap), Some(groups), Some(blocks)) => (bitmap, Some(Proofs { blocks, groups })),
            _ => {
                let none = RoaringBitmap::new();
                let limit = metadata.geometry.group_count().into();
                (Bitmap::found(store, SectionKind::Groups, none, limit, 1).ok()?, None)
            }
        };
        Some(Reader {
            store: Arc::clone(store),
            file_len,
            header_len,
            frames_end: directory.sections.first().map_or(header_len, |first| first.offset),
            metadata: metadata.clone(),
            root: Some(directory.root),
            sections: directory.sections.clone(),
            stored,
            zero,
            groups,
            frames,
            proofs,
            gaps: Some(Gaps::default()),
        })
    }
}

/// A table whose checksum is right.
fn sound_table(store: &Arc<dyn ReadAt>, section: &Section) -> Result<Table> {
    load::check_section(store, section)?;
    Ok(Table::open(store, section))
}
