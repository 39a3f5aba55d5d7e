//! Writes an archive front to back in one pass, to anything that takes bytes.

use std::fmt;
use std::io::{BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use roaring::RoaringBitmap;
use tempfile::SpooledTempFile;

use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::archive::{
    ArchiveId, BlockIndex, Codec, DIGEST_LEN, Digest, Directory, FRAME_ENTRY_LEN, Footer,
    FrameEntry, FrameHeader, GROUP_BLOCKS, Geometry, GroupIndex, Kind, Metadata, Section,
    SectionKind, header, index,
};

/// Each of the three tables stays in memory up to this many bytes; what is longer goes to a
/// temporary file without a name.
const SPOOL_MEMORY_MAX: usize = 5 << 20;

/// Headers and small payloads are gathered into writes of this many bytes. Longer ones make the page cache take
/// larger pieces of memory, which a virtual machine has seldom at hand: twice the processor time.
const WRITE_BUFFER_LEN: usize = 256 << 10;

/// What an archive came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file in bytes.
    pub file_len: u64,
    /// How many frames it has.
    pub frames: u64,
    /// How many blocks are stored in them.
    pub stored_blocks: u64,
    /// How many blocks it marks as zero.
    pub zero_blocks: u64,
    /// Bytes of all payloads together: the compressed data without what the archive adds.
    pub payload_bytes: u64,
}

/// An archive that is being written. Without [`Writer::finish`] it is torn, and nobody takes it
/// for a backup.
pub struct Writer {
    sink: BufWriter<Box<dyn Write + Send>>,
    path: PathBuf,
    archive_id: ArchiveId,
    kind: Kind,
    geometry: Geometry,
    frame_blocks: u32,
    header: Vec<u8>,
    offset: u64,
    next_span: u64,
    stored: RoaringBitmap,
    zero: RoaringBitmap,
    groups: RoaringBitmap,
    touched: RoaringBitmap,
    frames: Spool,
    digests: Spool,
    group_digests: Spool,
    payload_bytes: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("archive_id", &self.archive_id)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts an archive by writing its header to `sink`. Tables that outgrow memory go to a
    /// nameless file in `spool_dir`, or in the system's place for temporary files.
    ///
    /// # Errors
    /// The metadata breaks a rule ([`ErrorKind::Usage`]), or the sink fails.
    pub fn new(
        sink: Box<dyn Write + Send>,
        metadata: Metadata,
        spool_dir: Option<&Path>,
    ) -> Result<Self> {
        let header = header::encode(&metadata).map_err(|error| {
            Error::new(ErrorKind::Usage, "cannot make such an archive").because(error)
        })?;
        let mut writer = Self {
            sink: BufWriter::with_capacity(WRITE_BUFFER_LEN, sink),
            path: PathBuf::from(format!("archive of {}", metadata.point)),
            archive_id: metadata.archive_id,
            kind: metadata.kind,
            geometry: metadata.geometry,
            frame_blocks: metadata.frame_blocks,
            header: Vec::new(),
            offset: 0,
            next_span: 0,
            stored: RoaringBitmap::new(),
            zero: RoaringBitmap::new(),
            groups: RoaringBitmap::new(),
            touched: RoaringBitmap::new(),
            frames: Spool::new(spool_dir),
            digests: Spool::new(spool_dir),
            group_digests: Spool::new(spool_dir),
            payload_bytes: 0,
        };
        writer.put(&header)?;
        writer.header = header;
        Ok(writer)
    }

    /// What errors call the archive from now on.
    #[must_use]
    pub fn named(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// How many bytes the archive has so far.
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// Whether the archive has no bytes yet: never, the header is written at once.
    pub fn is_empty(&self) -> bool {
        self.offset == 0
    }

    /// Writes the frame of the aligned span that starts at `first_block`: the blocks in `mask`
    /// (bit i for block `first_block + i`), encoded as `payload`, and their digests in ascending
    /// order. Spans come strictly ascending.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the frame breaks a rule, and nothing was written. Others: the sink or
    /// the spool failed, and the archive can't be finished.
    pub fn write_frame(
        &mut self,
        first_block: BlockIndex,
        mask: u64,
        codec: Codec,
        payload: &[u8],
        digests: &[Digest],
    ) -> Result<()> {
        let block_size = self.geometry.block_size();
        let payload_len = u32::try_from(payload.len())
            .map_err(|_| self.misused(format!("a payload of {} bytes", payload.len())))?;
        let header = FrameHeader {
            codec,
            block_size,
            frame_blocks: self.frame_blocks,
            sequence: (self.frames.len / FRAME_ENTRY_LEN as u64) as u16,
            first_block,
            payload_len,
            mask,
            archive_tag: self.archive_id.tag(),
            payload_crc: crc32fast::hash(payload),
        };
        let bytes = header.encode().map_err(|error| {
            self.misused(format!("the frame of block {}", first_block.0)).because(error)
        })?;
        if u64::from(first_block.0) < self.next_span {
            return Err(self.misused(format!("block {} is not ascending", first_block.0)));
        }
        if header.blocks().last().is_some_and(|last| last >= self.geometry.block_count()) {
            return Err(self.misused(format!("block {} is past the end", first_block.0)));
        }
        if digests.len() != header.block_count() as usize {
            return Err(self.misused(format!("{} digests of {mask:#x}", digests.len())));
        }
        let entry = FrameEntry { offset: self.offset, first_block, payload_len };
        self.put(&bytes)?;
        self.put(payload)?;
        self.frames.push(&entry.encode())?;
        for digest in digests {
            self.digests.push(&digest.0)?;
        }
        // Block numbers below the block count fit: there are at most 2^32 blocks.
        self.stored.extend(header.blocks().map(|block| block as u32));
        self.touched.insert(first_block.0 / GROUP_BLOCKS);
        self.next_span = u64::from(first_block.0) + u64::from(self.frame_blocks);
        self.payload_bytes += u64::from(payload_len);
        Ok(())
    }

    /// Says that these blocks are zero now and were not at the parent. Any order.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: blocks past the end of the disk, or the archive is a full, which has
    /// no parent.
    pub fn mark_zero(&mut self, blocks: Range<u64>) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        if self.kind == Kind::Full {
            return Err(self.misused("zero blocks in a full".into()));
        }
        if blocks.end > self.geometry.block_count() {
            return Err(self.misused(format!("zero blocks up to {}", blocks.end)));
        }
        let (first, last) = (blocks.start as u32, (blocks.end - 1) as u32);
        self.zero.insert_range(first..=last);
        self.touched.insert_range(first / GROUP_BLOCKS..=last / GROUP_BLOCKS);
        Ok(())
    }

    /// Sets the digest of a group that differs from the parent's (in a full: from a zero group's).
    /// Every group with a stored or zero block needs one. Strictly ascending.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: not ascending, or past the end of the disk. Others: the spool failed.
    pub fn set_group(&mut self, group: GroupIndex, digest: Digest) -> Result<()> {
        if group.0 >= self.geometry.group_count() || self.groups.try_push(group.0).is_err() {
            return Err(self.misused(format!("group {}", group.0)));
        }
        self.group_digests.push(&digest.0)
    }

    /// Writes index and footer, and gives back the sink, flushed but not synced: that is the
    /// caller's part.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: a group with stored or zero blocks has no digest, or a block is both.
    /// Others: the sink or the spool failed.
    pub fn finish(mut self, root: Digest) -> Result<(Box<dyn Write + Send>, Summary)> {
        if let Some(group) = (&self.touched - &self.groups).min() {
            return Err(self.misused(format!("group {group} has changed and has no digest")));
        }
        if let Some(block) = (&self.stored & &self.zero).min() {
            return Err(self.misused(format!("block {block} is both stored and zero")));
        }
        let frames = self.frames.len / FRAME_ENTRY_LEN as u64;
        let (stored_blocks, zero_blocks) = (self.stored.len(), self.zero.len());
        let mut sections = Vec::with_capacity(SectionKind::ALL.len());
        for kind in SectionKind::ALL {
            sections.push(self.write_section(*kind)?);
        }
        let directory = Directory {
            root,
            archive_id: self.archive_id,
            header_crc: header::crc(&self.header),
            sections,
        }
        .encode();
        let footer = Footer {
            archive_id: self.archive_id,
            directory_offset: self.offset,
            directory_len: directory.len() as u32,
        };
        self.put(&directory)?;
        self.put(&footer.encode())?;
        let summary = Summary {
            file_len: self.offset,
            frames,
            stored_blocks,
            zero_blocks,
            payload_bytes: self.payload_bytes,
        };
        let path = self.path;
        let sink = self
            .sink
            .into_inner()
            .map_err(|error| Error::io("write", &path, error.into_error()))?;
        Ok((sink, summary))
    }

    fn write_section(&mut self, kind: SectionKind) -> Result<Section> {
        let offset = self.offset;
        let crc = match kind {
            SectionKind::Frames => self.copy_spool(|writer| &mut writer.frames)?,
            SectionKind::BlockDigests => self.copy_spool(|writer| &mut writer.digests)?,
            SectionKind::GroupDigests => self.copy_spool(|writer| &mut writer.group_digests)?,
            SectionKind::Groups => self.put_bitmap(|writer| &mut writer.groups)?,
            SectionKind::Stored => self.put_bitmap(|writer| &mut writer.stored)?,
            SectionKind::Zero => self.put_bitmap(|writer| &mut writer.zero)?,
            SectionKind::Header => {
                let header = std::mem::take(&mut self.header);
                self.put(&header)?;
                let crc = crc32fast::hash(&header);
                self.header = header;
                crc
            }
            SectionKind::Other(number) => {
                return Err(self.misused(format!("a section of kind {number}")));
            }
        };
        Ok(Section { kind, crc, offset, len: self.offset - offset })
    }

    fn put_bitmap(&mut self, bitmap: impl Fn(&mut Self) -> &mut RoaringBitmap) -> Result<u32> {
        let bytes = index::encode_bitmap(std::mem::take(bitmap(self)));
        self.put(&bytes)?;
        Ok(crc32fast::hash(&bytes))
    }

    fn copy_spool(&mut self, spool: impl Fn(&mut Self) -> &mut Spool) -> Result<u32> {
        let mut crc = crc32fast::Hasher::new();
        let mut chunk = vec![0; 256 << 10];
        spool(self).rewind()?;
        loop {
            let count = spool(self).read(&mut chunk)?;
            let bytes = chunk.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(crc.finalize());
            }
            crc.update(bytes);
            self.put(bytes)?;
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn misused(&self, what: String) -> Error {
        let path = self.path.display();
        Error::new(ErrorKind::Usage, format!("{path}: {what} can't be written to the archive"))
    }
}

/// A table that is appended to and then read once.
struct Spool {
    file: SpooledTempFile,
    /// The folder of the file; none in the system's place for temporary files.
    dir: Option<PathBuf>,
    buffer: Vec<u8>,
    /// How many bytes the file has.
    flushed: u64,
    len: u64,
}

impl Spool {
    fn new(dir: Option<&Path>) -> Self {
        let file = match dir {
            Some(dir) => tempfile::spooled_tempfile_in(SPOOL_MEMORY_MAX, dir),
            None => tempfile::spooled_tempfile(SPOOL_MEMORY_MAX),
        };
        let dir = dir.map(Path::to_owned);
        Self { file, dir, buffer: Vec::with_capacity(64 << 10), flushed: 0, len: 0 }
    }

    fn push(&mut self, record: &[u8]) -> Result<()> {
        debug_assert!(record.len() <= DIGEST_LEN);
        if self.buffer.len() + record.len() > self.buffer.capacity() {
            self.flush()?;
        }
        self.buffer.extend_from_slice(record);
        self.len += record.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if let Err(error) = self.file.write_all(&self.buffer) {
            let Some(dir) = self.dir.take() else { return Err(spool_failed(error)) };
            self.move_out_of(&dir, error)?;
        }
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Goes on in the system's place for temporary files. A folder of this host's state that is full or
    /// can't be written to costs no backup.
    fn move_out_of(&mut self, dir: &Path, error: std::io::Error) -> Result<()> {
        let mut moved = || -> std::io::Result<SpooledTempFile> {
            let mut file = tempfile::spooled_tempfile(SPOOL_MEMORY_MAX);
            self.file.rewind()?;
            if std::io::copy(&mut (&mut self.file).take(self.flushed), &mut file)? != self.flushed {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&self.buffer)?;
            Ok(file)
        };
        self.file = moved().map_err(|second| {
            let text = format!("nor in {}: {second}", std::env::temp_dir().display());
            Error::io("keep the index in", dir, error).within(text)
        })?;
        Ok(())
    }

    fn rewind(&mut self) -> Result<()> {
        self.flush()?;
        self.file.rewind().map_err(spool_failed)
    }

    fn read(&mut self, chunk: &mut [u8]) -> Result<usize> {
        loop {
            match self.file.read(chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map_err(spool_failed),
            }
        }
    }
}

fn spool_failed(error: std::io::Error) -> Error {
    Error::io("use", Path::new("the temporary file of the index"), error)
}
