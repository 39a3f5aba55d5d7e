//! A node of the tree of extents that says where a file's content lies.

use crate::FormatError;
use crate::fields::Little;

/// How deep a tree may be.
pub const DEPTH_MAX: u16 = 5;
const ENTRY_LEN: usize = 12;
/// A longer extent is one that was reserved and never written, of so many blocks less.
const WRITTEN_MAX: u16 = 32768;

/// What a node says of a block of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The block is in the subtree at this block of the filesystem, which must have this depth, and
    /// knows nothing of blocks from `end` on.
    Below {
        /// The block of the node.
        node: u64,
        /// How deep the tree is below that node.
        depth: u16,
        /// The first block of the file that the subtree does not speak of.
        end: u64,
    },
    /// The block and those behind it, up to `end`, lie side by side on the disk from `at` on; or read
    /// as zeros.
    Here {
        /// Where the block lies; none where nothing was written.
        at: Option<u64>,
        /// The first block of the file that this does not speak of.
        end: u64,
    },
}

/// What the node in `bytes` says of block `wanted` of the file. `depth` is what the node above said of
/// it: none of the root, which is in the inode.
///
/// # Errors
/// It is not a node, or its depth is another one.
pub fn find(bytes: &[u8], depth: Option<u16>, wanted: u64) -> Result<Found, FormatError> {
    let fields = Little::new(bytes, 0);
    if fields.u16(0, "eh_magic")? != 0xf30a {
        return Err(fields.invalid(0, "eh_magic", "not that of a node of extents"));
    }
    let count = usize::from(fields.u16(2, "eh_entries")?);
    let own_depth = fields.u16(6, "eh_depth")?;
    if depth.is_some_and(|depth| depth != own_depth) || own_depth > DEPTH_MAX {
        return Err(fields.invalid(6, "eh_depth", format!("{own_depth}")));
    }
    let first = |index: usize| fields.u32((index + 1) * ENTRY_LEN, "first block of an extent");
    // The whole table must be there.
    fields.slice(ENTRY_LEN, count * ENTRY_LEN, "extents")?;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if u64::from(first(middle)?) <= wanted { low = middle + 1 } else { high = middle }
    }
    let next = if low < count { u64::from(first(low)?) } else { u64::MAX };
    let Some(index) = low.checked_sub(1) else {
        return Ok(Found::Here { at: None, end: next.max(wanted + 1) });
    };
    let (at, start) = ((index + 1) * ENTRY_LEN, u64::from(first(index)?));
    if own_depth > 0 {
        let node = u64::from(fields.u32(at + 4, "ei_leaf_lo")?);
        let node = node | u64::from(fields.u16(at + 8, "ei_leaf_hi")?) << 32;
        return Ok(Found::Below { node, depth: own_depth - 1, end: next.max(wanted + 1) });
    }
    let len = fields.u16(at + 4, "ee_len")?;
    let written = len <= WRITTEN_MAX;
    let end = start + u64::from(if written { len } else { len - WRITTEN_MAX });
    if wanted >= end {
        return Ok(Found::Here { at: None, end: next.max(wanted + 1) });
    }
    let place = u64::from(fields.u32(at + 8, "ee_start_lo")?);
    let place = place | u64::from(fields.u16(at + 6, "ee_start_hi")?) << 32;
    Ok(Found::Here { at: written.then_some(place + (wanted - start)), end })
}
