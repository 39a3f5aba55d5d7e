//! The frames of an open archive: finding them, reading them, proving them.

use std::ops::Range;

use super::load::{check_section, invalid};
use super::reader::Reader;
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::FormatError;
use crate::formats::archive::{
    BlockIndex, FRAME_ENTRY_LEN, FRAME_LEN_MAX, FrameEntry, FrameView, SectionKind,
};

impl Reader {
    /// The entry of the frame number `position`, counted from 0 in the order of blocks and of the
    /// file.
    ///
    /// # Errors
    /// There is no such frame, the entry points outside the frames ([`ErrorKind::Damaged`]), or
    /// the store failed.
    pub fn frame(&self, position: u64) -> Result<FrameEntry> {
        let mut bytes = [0; FRAME_ENTRY_LEN];
        self.frames.read(position.saturating_mul(FRAME_ENTRY_LEN as u64), &mut bytes)?;
        let entry = FrameEntry::decode(&bytes).map_err(|error| self.damaged(error))?;
        let span = self.metadata().frame_blocks;
        if entry.offset < self.header_len || entry.end() > self.index_offset() {
            return Err(self.bad_entry(position, "it points outside the frames"));
        }
        if entry.frame_len() > FRAME_LEN_MAX as u64 {
            return Err(self.bad_entry(position, "it is too long"));
        }
        if !entry.first_block.0.is_multiple_of(span) {
            return Err(self.bad_entry(position, "its first block starts no span"));
        }
        Ok(entry)
    }

    /// The number of the frame whose span contains `block`, and its entry; none if no frame does.
    /// Costs a binary search.
    ///
    /// # Errors
    /// See [`Self::frame`].
    pub fn frame_of(&self, block: BlockIndex) -> Result<Option<(u64, FrameEntry)>> {
        let span = self.metadata().frame_blocks;
        let first = BlockIndex(block.0 - block.0 % span);
        let position = self.frame_from(first, 0..self.frame_count())?;
        if position == self.frame_count() {
            return Ok(None);
        }
        let entry = self.frame(position)?;
        Ok((entry.first_block == first).then_some((position, entry)))
    }

    /// The number of the first frame among `within` that starts at `block` or later; the end of
    /// `within` if none does.
    ///
    /// # Errors
    /// See [`Self::frame`].
    pub fn frame_from(&self, block: BlockIndex, within: Range<u64>) -> Result<u64> {
        let (mut low, mut high) = (within.start, within.end);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.frame(middle)?.first_block < block {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Which blocks of the span that starts at `first_block` are stored here.
    pub fn stored_mask(&self, first_block: BlockIndex) -> u64 {
        let span = u64::from(self.metadata().frame_blocks);
        let first = u64::from(first_block.0);
        self.stored
            .range(first_block.0..)
            .map(u64::from)
            .take_while(|block| *block < first + span)
            .fold(0, |mask, block| mask | 1 << (block - first))
    }

    /// Checks `bytes`, read from where `entry` says: both checksums, that the frame is of this
    /// archive, and that it is the one that the index means.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], with file, offset, blocks and guest bytes.
    pub fn parse_frame<'a>(&self, entry: &FrameEntry, bytes: &'a [u8]) -> Result<FrameView<'a>> {
        self.check_frame(entry, bytes).map_err(|error| {
            // The path stands in front of what is said of the frame.
            self.frame_error(entry, Error::new(ErrorKind::Damaged, error.to_string()))
        })
    }

    fn check_frame<'a>(
        &self,
        entry: &FrameEntry,
        bytes: &'a [u8],
    ) -> Result<FrameView<'a>, FormatError> {
        let view = FrameView::decode(bytes).map_err(|error| error.relative_to(entry.offset))?;
        let header = &view.header;
        let wrong = |field, words: &'static str| Err(invalid(entry.offset, field, words));
        if header.archive_tag != self.metadata.archive_id.tag() {
            return wrong("archive tag of frame", "the frame is of another archive");
        }
        if header.block_size != self.geometry().block_size() {
            return wrong("frame block size", "not the archive's");
        }
        if header.frame_blocks != self.metadata().frame_blocks {
            return wrong("span of frame", "not the archive's");
        }
        if header.first_block != entry.first_block
            || header.payload_len != entry.payload_len
            || header.mask != self.stored_mask(entry.first_block)
        {
            return wrong("frame", "another one than the index says");
        }
        Ok(view)
    }

    /// Reads and checks the frame that `entry` means, with `buffer` as the place for its bytes.
    ///
    /// # Errors
    /// See [`Self::parse_frame`]; or the store failed.
    pub fn read_frame<'a>(
        &self,
        entry: &FrameEntry,
        buffer: &'a mut Vec<u8>,
    ) -> Result<FrameView<'a>> {
        // Entries from `frame` are bounded; one from elsewhere must not allocate at will.
        let len = entry.frame_len().min(FRAME_LEN_MAX as u64) as usize;
        buffer.clear();
        buffer.resize(len, 0);
        self.store.read_exact_at(buffer, entry.offset).map_err(|error| {
            let operation = format!("read {len} bytes at {} of", entry.offset);
            self.frame_error(entry, Error::io(operation, self.path(), error))
        })?;
        self.parse_frame(entry, buffer)
    }

    /// `error`, seen as what is wrong with the frame that `entry` means: file, offset, the blocks
    /// that it stores, and their bytes on the guest's disk.
    pub fn frame_error(&self, entry: &FrameEntry, error: Error) -> Error {
        let mask = self.stored_mask(entry.first_block);
        let first = u64::from(entry.first_block.0) + u64::from(mask.trailing_zeros() % 64);
        let last = u64::from(entry.first_block.0) + u64::from(63 - mask.leading_zeros().min(63));
        let size = u64::from(self.geometry().block_size());
        error.within(format!(
            "{}: the frame at byte {} is damaged: blocks {first} to {last}, bytes {} to {} of the \
             disk",
            self.path().display(),
            entry.offset,
            first * size,
            ((last + 1) * size).min(self.geometry().virtual_size()),
        ))
    }

    /// Checks every section against its checksum, and every entry of the frame table against its
    /// neighbours and the bitmap of stored blocks. Reads the whole index.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], with file, offset and section. Others: the store failed.
    pub fn check_index(&self) -> Result<()> {
        for section in &self.sections {
            check_section(&self.store, section)?;
        }
        self.check_frame_table()
    }

    pub(super) fn check_frame_table(&self) -> Result<()> {
        let span = u64::from(self.metadata().frame_blocks);
        let mut stored = self.stored.iter().map(u64::from).peekable();
        let (mut end, mut position) = (self.header_len, 0);
        self.frames.scan(FRAME_ENTRY_LEN, |bytes| {
            for record in bytes.chunks_exact(FRAME_ENTRY_LEN) {
                let entry = FrameEntry::decode(record).map_err(|error| self.damaged(error))?;
                if entry.offset != end {
                    return Err(self.bad_entry(position, "the frame does not follow its neighbour"));
                }
                let first = u64::from(entry.first_block.0);
                let mut blocks = 0;
                while stored.next_if(|block| (first..first + span).contains(block)).is_some() {
                    blocks += 1;
                }
                if blocks == 0 || !first.is_multiple_of(span) {
                    return Err(self.bad_entry(position, "no block of its span is next"));
                }
                (end, position) = (entry.end(), position + 1);
            }
            Ok(())
        })?;
        match stored.next() {
            Some(block) => {
                let words = format!("block {block} is stored and in no frame");
                let at = self.section_range(SectionKind::Frames).end;
                Err(self.damaged(invalid(at, SectionKind::Frames.name(), words)))
            }
            None => Ok(()),
        }
    }

    /// The error of a frame table whose entry `position` should be of the span at `block`.
    pub(crate) fn misplaced(&self, position: u64, block: BlockIndex) -> Error {
        self.bad_entry(position, "it is of another span than the bitmap says")
            .within(format!("the frame of block {} can't be found", block.0))
    }

    pub(super) fn bad_entry(&self, position: u64, words: &'static str) -> Error {
        let at = self.section_range(SectionKind::Frames).start + position * FRAME_ENTRY_LEN as u64;
        self.damaged(invalid(at, format!("frame table, entry {position}"), words))
    }
}
