//! The content of a file of ext: by extents, by block pointers, or in the inode.

use std::ops::Bound;
use std::sync::Arc;

use qdelta_formats::filesystems::ext::extent::{self, Found};
use qdelta_formats::filesystems::ext::inode::{DIRECT, Inode, pointer};

use super::{Data, Ext, Place, wrong};
use crate::base::error::Result;

/// The most that is read at once: reads behind it see a new stretch.
const READ_MAX: u64 = 1 << 30;

/// A content in blocks.
pub(super) struct Blocks<'a> {
    ext: &'a Ext,
    inode: Arc<Inode>,
}

impl<'a> Blocks<'a> {
    pub fn new(ext: &'a Ext, inode: Arc<Inode>) -> Self {
        Self { ext, inode }
    }

    /// Where block `wanted` of the content lies, with those behind it, as far as the first that does not
    /// lie beside them.
    fn map(&self, wanted: u64) -> Result<(Option<u64>, u64)> {
        if self.inode.has_extents() { self.by_extents(wanted) } else { self.by_pointers(wanted) }
    }

    fn by_extents(&self, wanted: u64) -> Result<(Option<u64>, u64)> {
        let mut behind = u64::MAX;
        let mut found = extent::find(&self.inode.body, None, wanted);
        loop {
            match found.map_err(|error| wrong(&self.ext.source, error))? {
                Found::Here { at, end } => return Ok((at, end.min(behind))),
                Found::Below { node, depth, end } => {
                    behind = behind.min(end);
                    found = extent::find(&self.ext.block(node)?, Some(depth), wanted);
                }
            }
        }
    }

    fn by_pointers(&self, wanted: u64) -> Result<(Option<u64>, u64)> {
        if wanted < DIRECT {
            let (at, count) = run(&self.inode.body, wanted, DIRECT);
            return Ok((at, wanted + count));
        }
        let per_block = self.ext.superblock.block / 4;
        let mut rest = wanted - DIRECT;
        let mut span = per_block;
        for level in 0..3u32 {
            if rest < span {
                let top = self.inode.pointer(DIRECT as usize + level as usize);
                return self.below(top, span, per_block, rest, wanted);
            }
            rest -= span;
            span *= per_block;
        }
        Ok((None, u64::MAX))
    }

    /// Follows blocks of pointers from `block` on, which speaks of `span` blocks of the content; the
    /// wanted one is number `rest` of them.
    fn below(
        &self,
        block: u32,
        mut span: u64,
        per_block: u64,
        mut rest: u64,
        wanted: u64,
    ) -> Result<(Option<u64>, u64)> {
        let mut block = block;
        while block != 0 {
            let bytes = self.ext.block(block.into())?;
            if span == per_block {
                let (at, count) = run(&bytes, rest, per_block);
                return Ok((at, wanted + count));
            }
            span /= per_block;
            block = pointer(&bytes, (rest / span) as usize);
            rest %= span;
        }
        Ok((None, wanted + (span - rest)))
    }
}

/// Where pointer `index` of `pointers` points, and how many of them, up to number `end`, point side by
/// side: or to nothing.
fn run(pointers: &[u8], index: u64, end: u64) -> (Option<u64>, u64) {
    let first = pointer(pointers, index as usize);
    let goes_on = |count: &u64| {
        let next = pointer(pointers, (index + count) as usize);
        let wanted = if first == 0 { Some(0) } else { first.checked_add(*count as u32) };
        Some(next) == wanted
    };
    let count = 1 + (1..end - index).take_while(goes_on).count() as u64;
    ((first != 0).then_some(first.into()), count)
}

impl Data for Blocks<'_> {
    fn size(&self) -> u64 {
        self.inode.size
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        let size = self.size();
        if offset >= size {
            return Ok((Place::Hole, u64::MAX));
        }
        let block = self.ext.superblock.block;
        let wanted = offset / block;
        let (at, behind) = self.map(wanted)?;
        let Some(at) = at else {
            return Ok((Place::Hole, behind.saturating_mul(block).min(size)));
        };
        // Blocks of the content that are newer in the journal.
        let newer = &self.ext.newer;
        if newer.contains_key(&at) {
            return Ok((Place::Elsewhere, ((wanted + 1) * block).min(size)));
        }
        let last = at.saturating_add(behind - wanted);
        let next = newer.range((Bound::Excluded(at), Bound::Excluded(last))).next();
        let behind = next.map_or(behind, |(next, _)| wanted + (next - at));
        let place = at.saturating_mul(block).saturating_add(offset % block);
        Ok((Place::At(place), behind.saturating_mul(block).min(size)))
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.size().saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (place, end) = self.stretch(at)?;
            let count = (end - at).min((len - done) as u64).min(READ_MAX) as usize;
            let part = out.get_mut(done..done + count).unwrap_or_default();
            match place {
                Place::Hole => part.fill(0),
                Place::At(place) => self.ext.source.read(part, place)?,
                Place::Elsewhere => {
                    let block = self.ext.superblock.block;
                    let (number, _) = self.map(at / block)?;
                    let start = number.unwrap_or_default().saturating_mul(block);
                    self.ext.read(part, start.saturating_add(at % block))?;
                }
            }
            done += count;
        }
        Ok(len)
    }
}

/// A content in its inode.
pub(super) struct Inline {
    bytes: Vec<u8>,
    size: u64,
}

impl Inline {
    pub fn new(bytes: Vec<u8>, size: u64) -> Self {
        Self { bytes, size }
    }
}

impl Data for Inline {
    fn size(&self) -> u64 {
        self.size
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        let there = self.bytes.len() as u64;
        Ok(match offset < there.min(self.size) {
            true => (Place::Elsewhere, there.min(self.size)),
            false => (Place::Hole, self.size.max(offset + 1)),
        })
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let from = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..));
        let from = from.unwrap_or_default();
        for (index, to) in out.iter_mut().take(len).enumerate() {
            *to = from.get(index).copied().unwrap_or_default();
        }
        Ok(len)
    }
}
