//! Opens a sealed archive: footer, directory, small sections; the large tables are looked at where
//! they are needed.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::bitmap::Bitmap;
use super::load::{self, Tail, invalid};
use super::table::Table;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::FormatError;
use crate::formats::archive::{
    DIGEST_LEN, Digest, FRAME_ENTRY_LEN, FRAME_HEADER_LEN, Geometry, Kind, Metadata, Section,
    SectionKind, header,
};

/// A sealed archive, open for reading. What it holds in memory is where the pieces of its bitmaps
/// lie; several threads may use it at once.
pub struct Reader {
    pub(super) store: Arc<dyn ReadAt>,
    pub(super) file_len: u64,
    pub(crate) header_len: u64,
    /// Where the frames end and the index starts.
    pub(super) frames_end: u64,
    pub(super) metadata: Metadata,
    /// Always known of a sealed archive.
    pub(super) root: Option<Digest>,
    /// Empty if the directory is lost.
    pub(crate) sections: Vec<Section>,
    pub(super) stored: Bitmap,
    pub(super) zero: Bitmap,
    pub(super) groups: Bitmap,
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
    /// Memory is bounded by 33 KiB for each of the three bitmaps, or by 16 bytes for each 65,536
    /// blocks of the disk if that is more.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: the file is no archive, not sealed, or not as it was written; the
    /// error names the place. Others: the store failed.
    pub fn open(store: Arc<dyn ReadAt>) -> Result<Self> {
        let path = store.path();
        let file_len = store.len().map_err(|error| Error::io("find the length of", path, error))?;
        let tail = Tail::read(&store, file_len);
        let (metadata, header) = load::read_header(&tail, file_len)?;
        let footer = load::read_footer(&tail, file_len)?;
        let directory = load::read_directory(&tail, &footer)?;
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
        let section = |kind| load::find_section(&directory, kind).map_err(damaged);
        let copy = section(SectionKind::Header)?;
        if *load::load_section(&tail, copy, header::HEADER_LEN_MAX as u64)? != *header {
            return Err(damaged(invalid(copy.offset, copy.kind.name(), "not the header's bytes")));
        }
        let geometry = metadata.geometry;
        let bitmap = |kind, limit, span| Bitmap::open(&tail, section(kind)?, limit, span);
        let stored = bitmap(SectionKind::Stored, geometry.block_count(), metadata.frame_blocks)?;
        let zero = bitmap(SectionKind::Zero, geometry.block_count(), 1)?;
        let groups = bitmap(SectionKind::Groups, geometry.group_count().into(), 1)?;
        let table = |kind| Ok::<_, Error>(Table::open(&store, section(kind)?));
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
        reader.check_agreement()?;
        reader.check_edges()?;
        Ok(reader)
    }

    /// Where the section of that kind lies, in bytes: 0 if nobody knows.
    pub(super) fn section_range(&self, kind: SectionKind) -> Range<u64> {
        let section = self.sections.iter().find(|section| section.kind == kind);
        section.map_or(0..0, |section| section.offset..section.end())
    }

    /// Checks that bitmaps and tables fit together.
    pub(super) fn check_agreement(&self) -> Result<()> {
        let at = |kind| self.section_range(kind).start;
        let wrong = |kind: SectionKind, words: String| {
            Err(self.damaged(invalid(at(kind), kind.name(), words)))
        };
        if self.metadata.kind == Kind::Full && !self.zero.is_empty() {
            return wrong(SectionKind::Zero, "a full has zero blocks".to_string());
        }
        if let Some(block) = self.stored.common(&self.zero)? {
            return wrong(SectionKind::Zero, format!("block {block} is both stored and zero"));
        }
        let span = u64::from(self.metadata().frame_blocks);
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
    pub fn stored(&self) -> &Bitmap {
        &self.stored
    }

    /// The blocks that are zero here and were not at the parent.
    pub fn zero(&self) -> &Bitmap {
        &self.zero
    }

    /// The groups whose digest differs from the parent's.
    pub fn groups(&self) -> &Bitmap {
        &self.groups
    }

    /// What the file is called.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// The file itself: for the queue that reads its frames.
    pub fn store(&self) -> &Arc<dyn ReadAt> {
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
    #[cfg(any(test, feature = "testing"))]
    pub fn frame_area(&self) -> Range<u64> {
        self.header_len..self.index_offset()
    }

    /// The digest of the stored block number `rank`, counted from 0 in ascending order.
    ///
    /// # Errors
    /// There is no such block, or the store failed. Whether the digest is as it was written shows
    /// the group's digest.
    pub fn block_digest(&self, rank: u64) -> Result<Digest> {
        let mut digest = [0; DIGEST_LEN];
        self.digest_records(rank, &mut digest)?;
        Ok(Digest(digest))
    }

    /// The digest of the group number `rank` of [`Self::groups`], counted from 0 in ascending
    /// order.
    ///
    /// # Errors
    /// There is no such group, or the store failed.
    pub fn group_digest(&self, rank: u64) -> Result<Digest> {
        let mut digest = [0; DIGEST_LEN];
        self.group_records(rank, &mut digest)?;
        Ok(Digest(digest))
    }

    /// Reads digests of neighbouring stored blocks, from the number `rank` on.
    pub(crate) fn digest_records(&self, rank: u64, out: &mut [u8]) -> Result<()> {
        self.proofs()?.blocks.read(rank.saturating_mul(DIGEST_LEN as u64), out)
    }

    /// Reads digests of neighbouring groups of [`Self::groups`], from the number `rank` on.
    pub(crate) fn group_records(&self, rank: u64, out: &mut [u8]) -> Result<()> {
        self.proofs()?.groups.read(rank.saturating_mul(DIGEST_LEN as u64), out)
    }

    fn proofs(&self) -> Result<&Proofs> {
        self.proofs.as_ref().ok_or_else(|| {
            let context = format!("{}: the digests are lost", self.path().display());
            Error::new(ErrorKind::Damaged, context).of_file(self.path())
        })
    }

    pub(super) fn damaged(&self, error: FormatError) -> Error {
        Error::format(ErrorKind::Damaged, self.path(), error)
    }
}
