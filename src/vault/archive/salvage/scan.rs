//! The search for frames in a file of which nothing can be believed but what proves itself.

use std::ops::Range;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::{
    FRAME_HEADER_LEN, FRAME_LEN_MAX, FRAME_MAGIC, FrameEntry, FrameHeader, Mask, Metadata, header,
};

/// How many bytes are looked at together: the longest frame, and enough for long reads.
const WINDOW_LEN: usize = 4 << 20;

/// What a disk that fails gives at once.
const SECTOR_LEN: usize = 4096;

/// The fewest bytes that so many frames take that their numbers repeat.
const NUMBERS_REPEAT_LEN: u64 = (FRAME_HEADER_LEN as u64 + 1) << 16;

/// The most separate bad ranges that are told apart; what comes behind joins the last one.
const BAD_RANGES_MAX: usize = 10_000;

/// A frame that proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFrame {
    /// Where it lies.
    pub entry: FrameEntry,
    /// Which blocks of its span it stores.
    pub mask: u64,
    /// The low 16 bits of its number in the archive.
    pub sequence: u16,
}

impl FoundFrame {
    fn new(header: &FrameHeader, offset: u64) -> Self {
        let entry =
            FrameEntry { offset, first_block: header.first_block, payload_len: header.payload_len };
        Self { entry, mask: header.mask, sequence: header.sequence }
    }

    /// The blocks that it stores, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.entry.first_block.0;
        // A span starts at a multiple of its length, so its last block is at most 2^32 - 1.
        Mask(self.mask).bits().map(move |bit| first | bit)
    }
}

/// What a search found.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// A header that was come upon where frames should be, and its length in bytes.
    pub metadata: Option<(Metadata, u64)>,
    /// The sound frames, in the order of the file.
    pub frames: Vec<FoundFrame>,
    /// Frames with a sound header and a damaged payload: what they stored is lost.
    pub damaged: Vec<FoundFrame>,
    /// The parts of the file, in bytes, that hold no sound frame; those of `damaged` included.
    pub bad_ranges: Vec<Range<u64>>,
    /// The size of the frames' blocks, and how many of them a span has.
    cut: (u32, u32),
}

/// Searches a whole file for an archive's header and frames, without header or index.
///
/// # Errors
/// [`crate::ErrorKind::Interrupted`], or the length of the store can't be found. Bytes that can't
/// be read are bad ranges.
pub fn scan(store: &dyn ReadAt, cancel: &Cancel) -> Result<Scan> {
    let len = store.len().map_err(|error| Error::io("find the length of", store.path(), error))?;
    scan_range(store, 0..len, None, cancel)
}

/// Searches `range` of the file for frames with this tag. Without a tag, the first frame or header
/// that proves itself sets it: frames of other archives, which the guest's disk may hold, come only
/// to light where ours are damaged.
pub(super) fn scan_range(
    store: &dyn ReadAt,
    range: Range<u64>,
    tag: Option<[u8; 4]>,
    cancel: &Cancel,
) -> Result<Scan> {
    let mut search = Search {
        window: Window { store, bytes: Vec::new(), start: range.start, end: range.end },
        tag,
        found: Scan::default(),
        // A hostile file can pretend as many frames as it likes, each over the same bytes. After
        // reading it twice over, claims are believed and headers are not looked for.
        budget: (range.end.saturating_sub(range.start)).saturating_mul(2).max(1 << 20),
    };
    let mut at = range.start;
    let mut bad_from = None;
    while at < range.end {
        cancel.check()?;
        match search.look(at)? {
            Look::Sound(len) => {
                search.close(&mut bad_from, at);
                at += len;
            }
            Look::Damaged(len) => {
                bad_from.get_or_insert(at);
                at += len;
            }
            Look::Nothing => {
                bad_from.get_or_insert(at);
                at = search.next_magic(at + 1, cancel)?;
            }
        }
    }
    search.close(&mut bad_from, range.end);
    Ok(search.found)
}

/// What lies at a place.
enum Look {
    /// Something sound of this length.
    Sound(u64),
    /// A frame that is damaged, of this length.
    Damaged(u64),
    /// Nothing that proves itself.
    Nothing,
}

struct Search<'a> {
    window: Window<'a>,
    tag: Option<[u8; 4]>,
    found: Scan,
    budget: u64,
}

impl Search<'_> {
    fn look(&mut self, at: u64) -> Result<Look> {
        if let Some(len) = self.header_at(at)? {
            return Ok(Look::Sound(len));
        }
        let Some(header) = self.frame_header_at(at)? else { return Ok(Look::Nothing) };
        let len = header.frame_len();
        let bytes = self.window.at(at, len as usize)?;
        let payload = bytes.get(FRAME_HEADER_LEN..).unwrap_or_default();
        let sound = header.check_payload(payload).is_ok();
        let found = FoundFrame::new(&header, at);
        if sound || self.found.frames.is_empty() {
            self.found.cut = (header.block_size, header.frame_blocks);
        }
        if sound {
            self.tag = Some(header.archive_tag);
            self.found.frames.push(found);
            return Ok(Look::Sound(len));
        }
        self.found.damaged.push(found);
        self.budget = self.budget.saturating_sub(len);
        // If the next frame is where this one says, only its payload is damaged. If not, bytes may
        // be missing, and sound frames may start within what it claims.
        let next = at + len;
        let trusted =
            self.budget == 0 || next == self.window.end || self.frame_header_at(next)?.is_some();
        if trusted && next <= self.window.end {
            return Ok(Look::Damaged(len));
        }
        Ok(Look::Nothing)
    }

    /// The length of the archive's header, if there is one: at the start of the file, or the copy
    /// in an index that can't be found otherwise.
    fn header_at(&mut self, at: u64) -> Result<Option<u64>> {
        if !self.window.at(at, header::MAGIC.len())?.starts_with(header::MAGIC) {
            return Ok(None);
        }
        let Some(budget) = self.budget.checked_sub(header::HEADER_LEN_MAX as u64) else {
            return Ok(None);
        };
        self.budget = budget;
        let bytes = self.window.at(at, header::HEADER_LEN_MAX)?;
        let Ok((metadata, len)) = header::decode(bytes) else { return Ok(None) };
        let ours = self.tag.is_none_or(|tag| tag == metadata.archive_id.tag());
        if ours {
            self.tag = Some(metadata.archive_id.tag());
            self.found.metadata = Some((metadata, len as u64));
        }
        Ok(ours.then_some(len as u64))
    }

    /// The header of a frame of ours, if there is a sound one.
    fn frame_header_at(&mut self, at: u64) -> Result<Option<FrameHeader>> {
        let tag = self.tag;
        let bytes = self.window.at(at, FRAME_HEADER_LEN)?;
        Ok(FrameHeader::decode(bytes)
            .ok()
            .filter(|header| tag.is_none_or(|tag| tag == header.archive_tag)))
    }

    /// Where the next frame or header may start, from `at` on.
    fn next_magic(&mut self, mut at: u64, cancel: &Cancel) -> Result<u64> {
        let end = self.window.end;
        while at < end {
            // A terabyte of holes holds none.
            cancel.check()?;
            let bytes = self.window.at(at, WINDOW_LEN / 2)?;
            let hit = bytes
                .windows(FRAME_MAGIC.len())
                .position(|four| four == FRAME_MAGIC || header::MAGIC.starts_with(four));
            if let Some(hit) = hit {
                return Ok(at + hit as u64);
            }
            // The last three bytes may start a magic that goes on in the next window.
            let looked_at = bytes.len().saturating_sub(FRAME_MAGIC.len() - 1).max(1);
            at += looked_at as u64;
        }
        Ok(end)
    }

    /// Ends the bad range that was open.
    fn close(&mut self, bad_from: &mut Option<u64>, end: u64) {
        let Some(start) = bad_from.take() else { return };
        let ranges = &mut self.found.bad_ranges;
        let full = ranges.len() >= BAD_RANGES_MAX;
        match ranges.last_mut() {
            Some(last) if full => last.end = end,
            _ => ranges.push(start..end),
        }
    }
}

impl Scan {
    /// Drops what can't be: frames of another block size, past the end of the disk, or out of
    /// order, as when parts of the file are there twice. Of the damaged ones, those whose span a
    /// sound frame has.
    pub(super) fn keep(&mut self, metadata: &Metadata, frames_end: u64) {
        let geometry = metadata.geometry;
        let fits = |frame: &FoundFrame| {
            frame.blocks().last().is_some_and(|last| u64::from(last) < geometry.block_count())
                && frame.entry.end() <= frames_end
        };
        if self.cut != (geometry.block_size(), metadata.frame_blocks) {
            self.frames.clear();
            self.damaged.clear();
        }
        self.frames.retain(fits);
        self.damaged.retain(fits);
        // Stable: of two frames of one span, the first in the file stays.
        self.frames.sort_by_key(|frame| frame.entry.first_block);
        self.frames.dedup_by_key(|frame| frame.entry.first_block);
        let sound = &self.frames;
        self.damaged.retain(|frame| {
            sound
                .binary_search_by_key(&frame.entry.first_block, |sound| sound.entry.first_block)
                .is_err()
        });
    }

    /// The blocks of which frames may be lost without a trace: those between two frames that are
    /// not numbered one after the other. `count` is how many frames there were; if nobody knows,
    /// any block behind the last one may be lost.
    pub(super) fn unexplained_blocks(
        &self,
        block_count: u64,
        count: Option<u64>,
    ) -> Vec<Range<u64>> {
        let mut known: Vec<&FoundFrame> = self.frames.iter().chain(&self.damaged).collect();
        known.sort_by_key(|frame| frame.entry.first_block);
        let span = u64::from(self.cut.1);
        let mut unexplained = Vec::new();
        let (mut number, mut block, mut offset) = (0u16, 0, None);
        for frame in known {
            let first = u64::from(frame.entry.first_block.0);
            // Numbers repeat: so many frames may hide in so many bytes.
            let from = offset.unwrap_or(frame.entry.offset);
            let repeats = frame.entry.offset.abs_diff(from) >= NUMBERS_REPEAT_LEN;
            if frame.sequence != number || repeats {
                unexplained.push(block..first);
            }
            number = frame.sequence.wrapping_add(1);
            block = first + span;
            offset = Some(frame.entry.end());
        }
        if count.is_none_or(|count| count as u16 != number) {
            unexplained.push(block..block_count);
        }
        unexplained
    }
}

/// A piece of the file that moves forward. Bytes that can't be read are zeros: nothing in them can
/// prove itself.
struct Window<'a> {
    store: &'a dyn ReadAt,
    bytes: Vec<u8>,
    start: u64,
    end: u64,
}

impl Window<'_> {
    /// At most `len` bytes at `at`, fewer only at the end of the range. `len` is at most half a
    /// window, and [`FRAME_LEN_MAX`] is less than that.
    fn at(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        const { assert!(FRAME_LEN_MAX <= WINDOW_LEN * 3 / 4) };
        let len = (len as u64).min(self.end.saturating_sub(at)) as usize;
        let held = self.start..self.start + self.bytes.len() as u64;
        if at < held.start || at + len as u64 > held.end {
            self.fill(at);
        }
        let from = (at - self.start) as usize;
        Ok(self.bytes.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default())
    }

    fn fill(&mut self, at: u64) {
        let len = (WINDOW_LEN as u64).min(self.end.saturating_sub(at)) as usize;
        self.start = at;
        self.bytes.clear();
        self.bytes.resize(len, 0);
        if self.store.read_exact_at(&mut self.bytes, at).is_ok() {
            return;
        }
        for (piece, offset) in self.bytes.chunks_mut(SECTOR_LEN).zip((at..).step_by(SECTOR_LEN)) {
            if self.store.read_exact_at(piece, offset).is_err() {
                piece.fill(0);
            }
        }
    }
}
