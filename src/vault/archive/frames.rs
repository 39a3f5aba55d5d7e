//! The frames of an open archive: finding them, reading them, proving them.

use super::load::{check_section, invalid, unread};
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
        self.frame_records(position, &mut bytes)?;
        self.decode_frame(position, &bytes)
    }

    /// Reads the records of neighbouring frames, from the frame number `position` on.
    pub(crate) fn frame_records(&self, position: u64, out: &mut [u8]) -> Result<()> {
        self.frames.read(position.saturating_mul(FRAME_ENTRY_LEN as u64), out)
    }

    /// Decodes the record of the frame number `position`.
    pub(crate) fn decode_frame(&self, position: u64, record: &[u8]) -> Result<FrameEntry> {
        let entry = FrameEntry::decode(record).map_err(|error| self.damaged(error))?;
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

    /// Which blocks of the span that starts at `first_block` are stored here. Whoever asks for many
    /// knows them from a walk over [`Self::stored`].
    ///
    /// # Errors
    /// The store failed, or the bitmap is not what it was.
    pub fn stored_mask(&self, first_block: BlockIndex) -> Result<u64> {
        self.stored.walk().mask(first_block.0, self.metadata().frame_blocks)
    }

    /// Checks `bytes`, read from where `entry` says: both checksums, that the frame is of this
    /// archive, and that it is the one that the index means, with the blocks of `mask`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], with file, offset, blocks and guest bytes.
    pub fn parse_frame<'a>(
        &self,
        entry: &FrameEntry,
        mask: u64,
        bytes: &'a [u8],
    ) -> Result<FrameView<'a>> {
        self.check_frame(entry, mask, bytes).map_err(|error| {
            // The path stands in front of what is said of the frame.
            self.frame_error(entry, mask, Error::new(ErrorKind::Damaged, error.to_string()))
        })
    }

    fn check_frame<'a>(
        &self,
        entry: &FrameEntry,
        mask: u64,
        bytes: &'a [u8],
    ) -> Result<FrameView<'a>, FormatError> {
        let view = FrameView::decode(bytes);
        let view = view.map_err(|error| error.relative_to(entry.offset))?;
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
            || header.mask != mask
        {
            return wrong("frame", "another one than the index says");
        }
        Ok(view)
    }

    /// Reads and checks the frame that `entry` means, with `buffer` as the place for its bytes.
    /// `mask` are the blocks of its span that the archive stores.
    ///
    /// # Errors
    /// See [`Self::parse_frame`]; or the store failed.
    pub fn read_frame<'a>(
        &self,
        entry: &FrameEntry,
        mask: u64,
        buffer: &'a mut Vec<u8>,
    ) -> Result<FrameView<'a>> {
        // Entries from `frame` are bounded; one from elsewhere must not allocate at will.
        let len = entry.frame_len().min(FRAME_LEN_MAX as u64) as usize;
        if buffer.len() < len {
            buffer.reserve_exact(len - buffer.len());
            buffer.resize(len, 0);
        }
        let bytes = buffer.get_mut(..len).unwrap_or_default();
        self.store.read_exact_at(bytes, entry.offset).map_err(|error| {
            self.frame_error(entry, mask, unread(self.path(), entry.offset, len, error))
        })?;
        self.parse_frame(entry, mask, bytes)
    }

    /// `error`, seen as what is wrong with the frame that `entry` means: file, offset, the blocks
    /// of `mask` that the frame stores, and their bytes on the guest's disk.
    pub fn frame_error(&self, entry: &FrameEntry, mask: u64, error: Error) -> Error {
        let first = u64::from(entry.first_block.0) + u64::from(mask.trailing_zeros() % 64);
        let last = u64::from(entry.first_block.0) + u64::from(63 - mask.leading_zeros().min(63));
        let size = u64::from(self.geometry().block_size());
        // What could not be read is not known to be damaged.
        let what = if error.kind() == ErrorKind::Damaged { "is damaged" } else { "was not read" };
        let error = error.within(format!(
            "{}: the frame at byte {} {what}: blocks {first} to {last}, bytes {} to {} of the disk",
            self.path().display(),
            entry.offset,
            first * size,
            ((last + 1) * size).min(self.geometry().virtual_size()),
        ));
        error.of_file(self.path())
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
        let span = self.metadata().frame_blocks;
        let mut stored = self.stored.walk();
        let (mut end, mut position) = (self.header_len, 0);
        let (mut next_span, mut blocks) = (0, 0);
        self.frames.scan(FRAME_ENTRY_LEN, |bytes| {
            for record in bytes.chunks_exact(FRAME_ENTRY_LEN) {
                let entry = FrameEntry::decode(record).map_err(|error| self.damaged(error))?;
                if entry.offset != end {
                    return Err(self.bad_entry(position, "the frame does not follow its neighbour"));
                }
                let first = entry.first_block.0;
                if u64::from(first) < next_span || !first.is_multiple_of(span) {
                    return Err(
                        self.bad_entry(position, "its span does not follow its neighbour's")
                    );
                }
                let mask = stored.mask(first, span)?;
                if mask == 0 {
                    return Err(self.bad_entry(position, "no block of its span is stored"));
                }
                blocks += u64::from(mask.count_ones());
                next_span = u64::from(first) + u64::from(span);
                (end, position) = (entry.end(), position + 1);
            }
            Ok(())
        })?;
        if blocks == self.stored.len() {
            return Ok(());
        }
        let words = format!("{} stored blocks are in no frame", self.stored.len() - blocks);
        let at = self.section_range(SectionKind::Frames).end;
        Err(self.damaged(invalid(at, SectionKind::Frames.name(), words)))
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
