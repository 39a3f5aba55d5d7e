//! From guest ranges to the places that hold their bytes.

use std::ops::Range;
use std::sync::Arc;

use super::layer::{Cursor, Detail, Layer, Piece};
use super::tables::stream_len;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::{Extent, Source};

/// Walks forward over a disk and says where its bytes are. Going back is allowed but slower.
///
/// Memory is bounded by the number of layers, not by the size of the disk: each layer keeps a
/// window on its L1 table and one on an L2 table.
#[derive(Debug)]
pub struct Mapper {
    layers: Arc<Vec<Layer>>,
    cursors: Vec<Cursor>,
    virtual_size: u64,
}

impl Mapper {
    pub(super) fn new(layers: Arc<Vec<Layer>>, detail: Detail) -> Self {
        let stream = stream_len(layers.len());
        let cursors = layers.iter().map(|layer| Cursor::new(layer, detail, stream)).collect();
        let virtual_size = layers.first().map_or(0, Layer::virtual_size);
        Self { layers, cursors, virtual_size }
    }

    /// One that asks only the first `count` layers.
    pub(super) fn above(layers: Arc<Vec<Layer>>, count: usize) -> Self {
        let mut mapper = Self::new(layers, Detail::Readable);
        mapper.cursors.truncate(count);
        mapper
    }

    /// Appends the extents of `range`, a half-open range of bytes of the disk, to `out`. They
    /// cover it exactly and in order; neighbours that continue each other are one, also with what
    /// `out` ends with already.
    ///
    /// An empty part of a disk costs as much as its L1 entries; a compressed cluster is an extent
    /// of its own.
    ///
    /// # Errors
    /// [`ErrorKind::Image`] if a table is damaged or the file is cut short, with the place;
    /// [`ErrorKind::Usage`] if the range reaches beyond the disk. `out` then holds the extents
    /// before the one that failed.
    pub fn extents(&mut self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        self.extents_up_to(usize::MAX, range, out).map(|_| ())
    }

    /// Like [`Mapper::extents`], but stops once `out` holds `limit` extents, so that a large range
    /// of a fragmented disk takes no more memory than that. Gives where it stopped: the end of the
    /// range, or a byte from which to go on.
    ///
    /// # Errors
    /// See there.
    pub fn extents_up_to(
        &mut self,
        limit: usize,
        range: Range<u64>,
        out: &mut Vec<Extent>,
    ) -> Result<u64> {
        if range.end > self.virtual_size {
            let (end, size) = (range.end, self.virtual_size);
            let text = format!("byte {end} is asked for, but the disk has only {size}");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        // Without its cursor, a layer has no say.
        let layers = self.layers.get(..self.cursors.len()).unwrap_or_default();
        resolve(layers, &mut self.cursors, 0, range, limit, out)
    }
}

/// Maps `range` by the first of `layers`, and what that leaves open by the next, until `out` holds
/// `limit` extents. The first layer is `depth` layers below the top. Gives where it stopped.
fn resolve(
    layers: &[Layer],
    cursors: &mut [Cursor],
    depth: u16,
    range: Range<u64>,
    limit: usize,
    out: &mut Vec<Extent>,
) -> Result<u64> {
    let (Some((layer, layers_below)), Some((cursor, cursors_below))) =
        (layers.split_first(), cursors.split_first_mut())
    else {
        return Ok(range.end);
    };
    let mut at = range.start;
    while at < range.end && out.len() < limit {
        let (end, piece) = cursor.piece(layer, at, range.end)?;
        debug_assert!(at < end && end <= range.end, "{at}..{end} of {range:?}");
        match (piece, layers_below.first()) {
            (Piece::Unallocated, Some(below)) => {
                // Behind the end of a shorter backing file there are zeros.
                let covered = below.virtual_size().clamp(at, end);
                at = resolve(layers_below, cursors_below, depth + 1, at..covered, limit, out)?;
                if at == covered {
                    push(out, covered..end, depth, piece);
                    at = end;
                }
            }
            _ => {
                push(out, at..end, depth, piece);
                at = end;
            }
        }
    }
    Ok(at)
}

fn push(out: &mut Vec<Extent>, range: Range<u64>, depth: u16, piece: Piece) {
    if range.is_empty() {
        return;
    }
    let source = match piece {
        Piece::Unallocated => Source::Unallocated,
        Piece::Zero { host_offset } => Source::Zero { host_offset },
        Piece::Data { file, host_offset } => Source::Data { file, host_offset },
        Piece::Compressed(cluster) => Source::Compressed(cluster),
    };
    let len = range.end - range.start;
    if let Some(last) = out.last_mut()
        && last.depth == depth
        && last.range().end == range.start
        && continues(last, source)
    {
        last.len += len;
        return;
    }
    out.push(Extent { guest_offset: range.start, len, depth, source });
}

/// Whether `next`, at the end of `last`, is more of the same.
fn continues(last: &Extent, next: Source) -> bool {
    match (last.source, next) {
        (Source::Unallocated, Source::Unallocated) => true,
        (Source::Zero { host_offset: None }, Source::Zero { host_offset: None }) => true,
        (
            Source::Zero { host_offset: Some(last_host) },
            Source::Zero { host_offset: Some(host) },
        ) => host.checked_sub(last_host) == Some(last.len),
        (
            Source::Data { file: last_file, host_offset: last_host },
            Source::Data { file, host_offset },
        ) => last_file == file && host_offset.checked_sub(last_host) == Some(last.len),
        (Source::Compressed(one), Source::Compressed(other)) => {
            // Two parts of one cluster, which a caller asked for separately.
            let shown =
                one.offset_in_cluster.checked_add(u32::try_from(last.len).unwrap_or(u32::MAX));
            one.host_offset == other.host_offset
                && shown == Some(other.offset_in_cluster)
                && other.offset_in_cluster != 0
        }
        _ => false,
    }
}
