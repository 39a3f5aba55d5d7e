//! What a merge will read, write and free, from the indexes alone.

use qdelta_formats::archive::{
    ArchiveId, DIGEST_LEN, Directory, FOOTER_LEN, FRAME_ENTRY_LEN, FRAME_HEADER_LEN, GroupIndex,
    SectionKind, header, index, zero_group_digest,
};
use roaring::RoaringBitmap;

use super::metadata_of;
use super::walk::{Cut, runs, share, spans};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::vault::chain::Stretch;

/// What a merge costs, and what it brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes that are read: the frames that still stand, and the indexes.
    pub reads: u64,
    /// Length of the merged archive: exact where whole frames stand, by the share of their blocks where
    /// frames are packed anew.
    pub writes: u64,
    /// Length of the archives whose place it takes, less its own.
    pub frees: u64,
    /// Bytes of the frames among what is read.
    pub(super) frames: u64,
}

impl Estimate {
    /// Both merges together: those of a guest's disks.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            frees: self.frees + other.frees,
            frames: self.frames + other.frames,
        }
    }
}

/// What the merge of a stretch will cost and bring. No frame is read, and of the digests none.
///
/// # Errors
/// An index can't be read, or is damaged; the work was cancelled.
pub fn estimate(stretch: &Stretch, cancel: &Cancel) -> Result<Estimate> {
    let (geometry, cut) = (stretch.geometry(), Cut::of(stretch));
    let zero_group = zero_group_digest(geometry.block_size());
    let mut cursor = stretch.cursor(false);
    let (mut read, mut written, mut frames) = (0, 0, 0_u64);
    let [mut stored, mut zero, mut groups] = [(); 3].map(|()| RoaringBitmap::new());
    for group in (0..geometry.group_count()).map(GroupIndex) {
        cancel.check()?;
        let layer = cursor.seek(group)?;
        let Some(digest) = layer.digest() else { continue };
        if !stretch.is_whole() {
            for run in runs(group, layer.zero()) {
                zero.insert_range(run.start as u32..=(run.end - 1) as u32);
            }
        } else if digest == zero_group && layer.frames().is_empty() {
            continue;
        }
        groups.insert(group.0);
        for unit in cut.units(layer.frames()) {
            let mut packed = 0;
            for frame in unit.frames {
                let len = frame.entry.frame_len();
                read += len;
                let wanted = unit.wanted(frame);
                // A unit's blocks are below the block count, which is at most 2³².
                let blocks = (0..64).filter(|bit| wanted >> bit & 1 == 1);
                stored.extend(blocks.map(|bit| (unit.first + bit) as u32));
                if unit.is_whole(frame, stretch, cut) {
                    written += len;
                    frames += 1;
                } else {
                    let counts = (frame.wanted.count_ones(), frame.mask.count_ones());
                    written += share(&frame.entry, counts.0, counts.1);
                    packed |= wanted;
                }
            }
            let made = spans(unit.first, packed, cut).count() as u64;
            frames += made;
            written += made * FRAME_HEADER_LEN as u64;
        }
    }
    let metadata = metadata_of(stretch, ArchiveId([0; 16]));
    let header = header::encode(&metadata)
        .map_err(|error| Error::new(ErrorKind::Damaged, "no such archive can be").because(error))?;
    written += 2 * header.len() as u64 + frames * FRAME_ENTRY_LEN as u64;
    written += (stored.len() + groups.len()) * DIGEST_LEN as u64;
    written += [stored, zero, groups]
        .map(|set| index::encode_bitmap(set).len() as u64)
        .iter()
        .sum::<u64>();
    written += (Directory::encoded_len(SectionKind::ALL.len()) + FOOTER_LEN) as u64;
    let lengths = stretch.archives().iter().map(|archive| archive.file_len());
    let indexes = stretch.archives().iter().map(|it| it.file_len() - it.index_offset());
    Ok(Estimate {
        reads: read + indexes.sum::<u64>(),
        writes: written,
        frees: lengths.sum::<u64>().saturating_sub(written),
        frames: read,
    })
}
