//! A layer of an image: one file of its backing chain, and how it maps the guest's disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holes::Holes;
use super::policy::Opened;
use super::qcow2::Qcow2Layer;
use super::tables::Qcow2Cursor;
use crate::base::error::Result;
use crate::disk::image::extent::{CompressedCluster, FileIndex};
use crate::disk::io::{Part, ReadAt};

/// One file of a backing chain.
#[derive(Debug)]
pub(super) enum Layer {
    Raw(RawLayer),
    Qcow2(Box<Qcow2Layer>),
}

/// A file whose bytes are the disk.
pub(super) struct RawLayer {
    pub(super) file: LayerFile,
}

/// An open file as a layer uses it.
#[derive(Clone)]
pub(super) struct LayerFile {
    pub(super) store: Arc<dyn ReadAt>,
    pub(super) index: FileIndex,
    pub(super) path: PathBuf,
    /// Its length in bytes when it was opened.
    pub(super) len: u64,
    /// Bytes that it occupies on its file system; nothing if unknown.
    pub(super) allocated: Option<u64>,
}

impl std::fmt::Debug for LayerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({} bytes)", self.path, self.len)
    }
}

impl std::fmt::Debug for RawLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl LayerFile {
    /// The opened file, which is number `index` of the image's files.
    pub(super) fn new(opened: &Opened, index: FileIndex) -> Self {
        Self {
            store: Arc::clone(&opened.store),
            index,
            path: opened.path.clone(),
            len: opened.len,
            allocated: opened.allocated,
        }
    }

    /// Whether the file has holes, as far as its length and what it occupies tell.
    pub(super) fn is_sparse(&self) -> bool {
        self.allocated.is_some_and(|allocated| allocated < self.len)
    }

    /// Fills `buffer` from `offset` on; what lies behind the end of the file reads as zeros.
    pub(super) fn read_padded(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let available = self.len.saturating_sub(offset);
        let len = usize::try_from(available).unwrap_or(usize::MAX).min(buffer.len());
        let (stored, rest) = buffer.split_at_mut(len);
        rest.fill(0);
        self.store.read_exact_at(stored, offset).map_err(|error| {
            let operation = format!("read {len} bytes at {offset:#x} of");
            crate::base::error::Error::io(operation, &self.path, error)
        })
    }
}

/// Where the bytes of a part of a layer come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// The layer has nothing; the next one decides.
    Unallocated,
    /// Zeros, perhaps with a place reserved for them.
    Zero { host_offset: Option<u64> },
    /// Bytes of a file.
    Data { file: FileIndex, host_offset: u64 },
    /// Part of a compressed cluster.
    Compressed(CompressedCluster),
}

/// How much a mapper is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// What must be read: holes of files are zeros, and nothing lies behind the end of a file.
    Readable,
    /// What the tables say, as `qemu-img map` shows it.
    AsMapped,
}

impl Layer {
    pub(super) fn path(&self) -> &Path {
        &self.file().path
    }

    /// The file with the layer's own bytes: the image file, not an external data file.
    pub(super) fn file(&self) -> &LayerFile {
        match self {
            Self::Raw(raw) => &raw.file,
            Self::Qcow2(qcow2) => &qcow2.file,
        }
    }

    /// Size of the disk that the layer maps, in bytes.
    pub(super) fn virtual_size(&self) -> u64 {
        match self {
            Self::Raw(raw) => raw.file.len,
            Self::Qcow2(qcow2) => qcow2.virtual_size,
        }
    }
}

/// Walks forward over a layer. It remembers the part of the tables it is in, and nothing else.
#[derive(Debug)]
pub(super) enum Cursor {
    Raw(Holes),
    Qcow2(Box<Qcow2Cursor>),
}

impl Cursor {
    /// One that may read `stream` bytes of tables at once.
    pub(super) fn new(layer: &Layer, detail: Detail, stream: u64) -> Self {
        match layer {
            Layer::Raw(_) => Self::Raw(Holes::default()),
            Layer::Qcow2(qcow2) => Self::Qcow2(Box::new(Qcow2Cursor::new(qcow2, detail, stream))),
        }
    }

    /// What the layer has at `at`, and how far that goes, at most to `end`. Both lie on its disk.
    pub(super) fn piece(&mut self, layer: &Layer, at: u64, end: u64) -> Result<(u64, Piece)> {
        match (self, layer) {
            (Self::Qcow2(cursor), Layer::Qcow2(qcow2)) => cursor.piece(qcow2, at, end),
            (Self::Raw(holes), Layer::Raw(raw)) => {
                let (end, part) = holes.part(raw.file.store.as_ref(), at..end);
                let piece = match part {
                    Part::Hole => Piece::Zero { host_offset: Some(at) },
                    Part::Data => Piece::Data { file: raw.file.index, host_offset: at },
                };
                Ok((end, piece))
            }
            // A cursor is only ever used with the layer it was made for.
            (_, layer) => Ok((end, {
                debug_assert!(false, "the cursor is not of {layer:?}");
                Piece::Unallocated
            })),
        }
    }
}
