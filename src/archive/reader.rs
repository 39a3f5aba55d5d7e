//! Opens a sealed archive: footer, directory, small sections; the large tables are looked at where
//! they are needed.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::table::Table;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    BlockIndex, DIGEST_LEN, Digest, Directory, FOOTER_LEN, FRAME_ENTRY_LEN, FRAME_HEADER_LEN,
    FRAME_LEN_MAX, Footer, FrameEntry, FrameView, Geometry, Kind, Metadata, Section, SectionKind,
    frame_blocks, header, index,
};
use crate::formats::{FormatError, Problem};
use crate::io::Store;

/// A sealed archive, open for reading. What it holds in memory are its bitmaps; several threads
/// may use it at once.
pub struct Reader {
    pub(super) store: Arc<dyn Store>,
    pub(super) file_len: u64,
    pub(super) header_len: u64,
    /// Where the frames end and the index starts.
    pub(super) frames_end: u64,
    pub(super) metadata: Metadata,
    /// Always known of a sealed archive.
    pub(super) root: Option<Digest>,
    /// Empty if the directory is lost.
    pub(super) sections: Vec<Section>,
    pub(super) stored: RoaringBitmap,
    pub(super) zero: RoaringBitmap,
    pub(super) groups: RoaringBitmap,
    pub(super) frames: Table,
    pub(super) proofs: Option<Proofs>,
    /// What a salvaged archive can't say; none if it is sealed and opened soundly.
    pub(super) gaps: Option<Gaps>,
}

/// The digests of an archive.
pub(super) struct Proofs {
    /// One for each stored block.
    pub(super) blocks: Table,
    /// One for each group of [`Reader::groups`].
    pub(super) groups: Table,
}

/// What a salvaged archive can't say.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Blocks that it stored and whose content is lost.
    pub(crate) lost: RoaringBitmap,
    /// Blocks that may have changed, or may be as in the parent.
    pub(crate) unsure: RoaringBitmap,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("path", &self.store.path())
            .field("archive_id", &self.metadata.archive_id)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the archive in `store`. Everything but the frames and the two large tables is read
    /// and checked; those are checked where they are used, or all at once by
    /// [`Self::check_index`].
    ///
    /// Memory is bounded by the file's own length and by 1 bit a block of the disk for each of the
    /// two bitmaps.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: the file is no archive, not sealed, or not as it was written; the
    /// error names the place. Others: the store failed.
    pub fn open(store: Arc<dyn Store>) -> Result<Self> {
        let path = store.path();
        let file_len = store.len().map_err(|error| Error::io("find the length of", path, error))?;
        let (metadata, header) = read_header(&*store, file_len)?;
        let footer = read_footer(&*store, file_len)?;
        let directory = read_directory(&*store, &footer)?;
        let damaged = |error| Error::format(ErrorKind::Damaged, path, error);
        if footer.archive_id != metadata.archive_id || directory.archive_id != metadata.archive_id {
            let words = format!(
                "the header is of archive {}, the index of {}: the halves of two files",
                metadata.archive_id, directory.archive_id
            );
            return Err(damaged(invalid(footer.directory_offset, "archive id", words)));
        }
        if directory.header_crc != header::crc(&header) {
            let words = "the index belongs to another header";
            return Err(damaged(invalid(footer.directory_offset, "header CRC-32", words)));
        }
        let section = |kind| find_section(&directory, kind).map_err(damaged);
        let copy = section(SectionKind::Header)?;
        if load_section(&*store, copy, header::HEADER_LEN_MAX as u64)? != header {
            return Err(damaged(invalid(copy.offset, copy.kind.name(), "not the header's bytes")));
        }
        let geometry = metadata.geometry;
        let bitmap = |kind, limit| load_bitmap(&*store, section(kind)?, limit);
        let stored = bitmap(SectionKind::Stored, geometry.block_count())?;
        let zero = bitmap(SectionKind::Zero, geometry.block_count())?;
        let groups = bitmap(SectionKind::Groups, geometry.group_count().into())?;
        let table = |kind| Table::open(&store, section(kind)?);
        let reader = Self {
            file_len,
            header_len: header.len() as u64,
            frames_end: directory.sections.first().map_or(0, |first| first.offset),
            root: Some(directory.root),
            frames: table(SectionKind::Frames)?,
            proofs: Some(Proofs {
                blocks: table(SectionKind::BlockDigests)?,
                groups: table(SectionKind::GroupDigests)?,
            }),
            metadata,
            stored,
            zero,
            groups,
            sections: directory.sections,
            gaps: None,
            store: Arc::clone(&store),
        };
        reader.check_agreement().map_err(|error| reader.damaged(error))?;
        reader.check_edges()?;
        Ok(reader)
    }

    /// Where the section of that kind lies, in bytes: 0 if nobody knows.
    fn section_range(&self, kind: SectionKind) -> Range<u64> {
        let section = self.sections.iter().find(|section| section.kind == kind);
        section.map_or(0..0, |section| section.offset..section.end())
    }

    /// Checks that bitmaps and tables fit together.
    pub(super) fn check_agreement(&self) -> Result<(), FormatError> {
        let at = |kind| self.section_range(kind).start;
        let wrong = |kind: SectionKind, words| Err(invalid(at(kind), kind.name(), words));
        if self.metadata.kind == Kind::Full && !self.zero.is_empty() {
            return wrong(SectionKind::Zero, "a full has zero blocks".to_string());
        }
        if !self.stored.is_disjoint(&self.zero) {
            return wrong(SectionKind::Zero, "a block is both stored and zero".to_string());
        }
        let span = u64::from(frame_blocks(self.geometry().block_size()));
        let stored = self.stored.len();
        let frames = self.frame_count();
        if !self.frames.len().is_multiple_of(FRAME_ENTRY_LEN as u64)
            || frames > stored
            || stored > frames.saturating_mul(span)
        {
            let words = format!("{} bytes for {stored} stored blocks", self.frames.len());
            return wrong(SectionKind::Frames, words);
        }
        let Some(proofs) = &self.proofs else { return Ok(()) };
        for (kind, table, count) in [
            (SectionKind::BlockDigests, &proofs.blocks, stored),
            (SectionKind::GroupDigests, &proofs.groups, self.groups.len()),
        ] {
            if table.len() != count * DIGEST_LEN as u64 {
                return wrong(kind, format!("{} bytes for {count} digests", table.len()));
            }
        }
        Ok(())
    }

    /// Checks that the first frame follows the header and that the last one ends at the index.
    fn check_edges(&self) -> Result<()> {
        let mut end = self.header_len;
        if let Some(last) = self.frame_count().checked_sub(1) {
            let first = self.frame(0)?;
            if first.offset != end {
                return Err(self.bad_entry(0, "the first frame does not follow the header"));
            }
            let last_entry = self.frame(last)?;
            end = last_entry.end();
            if end != self.index_offset() {
                return Err(self.bad_entry(last, "the last frame does not end at the index"));
            }
        }
        if end != self.index_offset() {
            return Err(self.damaged(invalid(end, "index", "it does not follow the frames")));
        }
        Ok(())
    }

    /// What the archive says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Size of the disk and of its blocks.
    pub fn geometry(&self) -> Geometry {
        self.metadata.geometry
    }

    /// The digest of all that the guest saw at this point. Of a salvaged archive that has lost it,
    /// a digest that nothing has: see [`Self::known_root`].
    pub fn root(&self) -> Digest {
        self.root.unwrap_or(Digest([0; DIGEST_LEN]))
    }

    /// The digest of all that the guest saw at this point, unless it is lost.
    pub fn known_root(&self) -> Option<Digest> {
        self.root
    }

    /// Whether this is what is left of a damaged archive, from [`super::salvage::open`].
    pub fn is_salvaged(&self) -> bool {
        self.gaps.is_some()
    }

    /// What a salvaged archive can't say.
    pub(crate) fn gaps(&self) -> Option<&Gaps> {
        self.gaps.as_ref()
    }

    /// Whether the digests of blocks and groups are there.
    pub(crate) fn has_proofs(&self) -> bool {
        self.proofs.is_some()
    }

    /// The blocks stored here.
    pub fn stored(&self) -> &RoaringBitmap {
        &self.stored
    }

    /// The blocks that are zero here and were not at the parent.
    pub fn zero(&self) -> &RoaringBitmap {
        &self.zero
    }

    /// The groups whose digest differs from the parent's.
    pub fn groups(&self) -> &RoaringBitmap {
        &self.groups
    }

    /// What the file is called.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// The file itself: for the queue that reads its frames.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Where the index starts, which is where the frames end, in bytes.
    pub fn index_offset(&self) -> u64 {
        self.frames_end
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> u64 {
        self.frames.len() / FRAME_ENTRY_LEN as u64
    }

    /// Bytes of all payloads together: the compressed data without what the archive adds.
    pub fn payload_bytes(&self) -> u64 {
        let headers = self.frame_count() * FRAME_HEADER_LEN as u64;
        self.index_offset().saturating_sub(self.header_len + headers)
    }

    /// The bytes of the file that frames fill.
    pub fn frame_area(&self) -> Range<u64> {
        self.header_len..self.index_offset()
    }

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
        let span = frame_blocks(self.geometry().block_size());
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
        let span = frame_blocks(self.geometry().block_size());
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

    /// The digest of the stored block number `rank`, counted from 0 in ascending order.
    ///
    /// # Errors
    /// There is no such block, or the store failed. Whether the digest is as it was written shows
    /// the group's digest.
    pub fn block_digest(&self, rank: u64) -> Result<Digest> {
        let mut digest = [Digest([0; DIGEST_LEN])];
        self.block_digests(rank, &mut digest)?;
        Ok(digest[0])
    }

    /// The digests of `out.len()` stored blocks from number `rank` on.
    ///
    /// # Errors
    /// See [`Self::block_digest`].
    pub fn block_digests(&self, rank: u64, out: &mut [Digest]) -> Result<()> {
        read_digests(&self.proofs()?.blocks, rank, out)
    }

    /// The digest of the group number `rank` of [`Self::groups`], counted from 0 in ascending
    /// order.
    ///
    /// # Errors
    /// There is no such group, or the store failed.
    pub fn group_digest(&self, rank: u64) -> Result<Digest> {
        let mut digest = [Digest([0; DIGEST_LEN])];
        read_digests(&self.proofs()?.groups, rank, &mut digest)?;
        Ok(digest[0])
    }

    fn proofs(&self) -> Result<&Proofs> {
        self.proofs.as_ref().ok_or_else(|| {
            let context = format!("{}: the digests are lost", self.path().display());
            Error::new(ErrorKind::Damaged, context)
        })
    }

    /// Which blocks of the span that starts at `first_block` are stored here.
    pub fn stored_mask(&self, first_block: BlockIndex) -> u64 {
        let span = u64::from(frame_blocks(self.geometry().block_size()));
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
            self.frame_error(entry, Error::format(ErrorKind::Damaged, self.path(), error))
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
        let span = u64::from(frame_blocks(self.geometry().block_size()));
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

    fn bad_entry(&self, position: u64, words: &'static str) -> Error {
        let at = self.section_range(SectionKind::Frames).start + position * FRAME_ENTRY_LEN as u64;
        self.damaged(invalid(at, format!("frame table, entry {position}"), words))
    }

    fn damaged(&self, error: FormatError) -> Error {
        Error::format(ErrorKind::Damaged, self.path(), error)
    }
}

fn invalid(
    offset: u64,
    field: impl Into<std::borrow::Cow<'static, str>>,
    words: impl Into<std::borrow::Cow<'static, str>>,
) -> FormatError {
    FormatError::new(offset, field, Problem::Invalid(words.into()))
}

fn read_digests(table: &Table, rank: u64, out: &mut [Digest]) -> Result<()> {
    const AT_ONCE: usize = 128;
    let mut bytes = [0; AT_ONCE * DIGEST_LEN];
    let mut at = rank.saturating_mul(DIGEST_LEN as u64);
    for part in out.chunks_mut(AT_ONCE) {
        let piece = bytes.get_mut(..part.len() * DIGEST_LEN).unwrap_or_default();
        table.read(at, piece)?;
        for (digest, bytes) in part.iter_mut().zip(piece.as_chunks().0) {
            *digest = Digest(*bytes);
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// Reads exactly `len` bytes, which the caller has bounded.
fn read_at(store: &dyn Store, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    store.read_exact_at(&mut bytes, offset).map_err(|error| {
        Error::io(format!("read {len} bytes at {offset} of"), store.path(), error)
    })?;
    Ok(bytes)
}

/// The header's metadata and its bytes.
pub(super) fn read_header(store: &dyn Store, file_len: u64) -> Result<(Metadata, Vec<u8>)> {
    let damaged = |error| Error::format(ErrorKind::Damaged, store.path(), error);
    let prefix = read_at(store, 0, (header::PREFIX_LEN as u64).min(file_len) as usize)?;
    let len = header::header_len(&prefix).map_err(damaged)?;
    let bytes = read_at(store, 0, (len as u64).min(file_len) as usize)?;
    let (metadata, _) = header::decode(&bytes).map_err(damaged)?;
    Ok((metadata, bytes))
}

/// The footer of a file of `file_len` bytes.
pub(super) fn read_footer(store: &dyn Store, file_len: u64) -> Result<Footer> {
    let len = (FOOTER_LEN as u64).min(file_len);
    let bytes = read_at(store, file_len - len, len as usize)?;
    Footer::decode(&bytes, file_len).map_err(|error| {
        let torn = matches!(error.problem, Problem::BadMagic(_) | Problem::Truncated { .. });
        let error = Error::format(ErrorKind::Damaged, store.path(), error);
        if torn {
            error.advise(
                "The archive was not finished, or its end is lost: `restore --salvage` gives what \
                 is left of it.",
            )
        } else {
            error
        }
    })
}

/// The directory that a footer points at.
pub(super) fn read_directory(store: &dyn Store, footer: &Footer) -> Result<Directory> {
    // The footer's rules bound the length and keep it within the file.
    let bytes = read_at(store, footer.directory_offset, footer.directory_len as usize)?;
    Directory::decode(&bytes, footer.directory_offset)
        .map_err(|error| Error::format(ErrorKind::Damaged, store.path(), error))
}

fn find_section(directory: &Directory, kind: SectionKind) -> Result<&Section, FormatError> {
    directory.section(kind).ok_or_else(|| invalid(0, kind.name(), "missing"))
}

fn check_crc(section: &Section, computed: u32) -> Result<(), FormatError> {
    if section.crc == computed {
        return Ok(());
    }
    let problem = Problem::Checksum { stored: section.crc, computed };
    Err(FormatError::new(section.offset, section.kind.name(), problem))
}

/// Reads a whole section and compares its checksum.
pub(super) fn check_section(store: &Arc<dyn Store>, section: &Section) -> Result<()> {
    let mut crc = crc32fast::Hasher::new();
    Table::unmapped(store, section).scan(1, |bytes| {
        crc.update(bytes);
        Ok(())
    })?;
    check_crc(section, crc.finalize())
        .map_err(|error| Error::format(ErrorKind::Damaged, store.path(), error))
}

/// A whole section of at most `max` bytes, checked. The directory keeps it within the file.
pub(super) fn load_section(store: &dyn Store, section: &Section, max: u64) -> Result<Vec<u8>> {
    let damaged = |error| Error::format(ErrorKind::Damaged, store.path(), error);
    if section.len > max {
        let problem = Problem::OutOfRange { value: section.len, min: 0, max };
        let field = format!("length of {}", section.kind.name());
        return Err(damaged(FormatError::new(section.offset, field, problem)));
    }
    let bytes = read_at(store, section.offset, section.len as usize)?;
    check_crc(section, crc32fast::hash(&bytes)).map_err(damaged)?;
    Ok(bytes)
}

/// A bitmap of numbers below `limit`.
pub(super) fn load_bitmap(
    store: &dyn Store,
    section: &Section,
    limit: u64,
) -> Result<RoaringBitmap> {
    let bytes = load_section(store, section, index::bitmap_len_max(limit))?;
    index::decode_bitmap(&bytes, limit, section.kind).map_err(|error| {
        Error::format(ErrorKind::Damaged, store.path(), error.relative_to(section.offset))
    })
}
