//! Random access to a recovery point: any bytes of its disk, from any thread, each block proved
//! before a byte of it is given out.

use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qdelta_formats::archive::{Digest, GROUP_BLOCKS, GroupIndex, RootHasher};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::shelf::Shelf;
use crate::disk::io::ReadAt;
use crate::vault::chain::{Chain, FrameRead, GroupState, Owner};
use crate::vault::frames::unpack::{FrameNeed, Unpacker};

/// What a group's state weighs: digests, owners and frames of its blocks.
const STATE_LEN: u64 = 80 << 10;
/// How many bytes of groups' states are kept.
const STATES: u64 = 64 * STATE_LEN;
/// How many bytes of decoded frames are kept, where that is at least a frame for each part of the shelf.
const DECODED: u64 = 16 << 20;
/// How many pieces of memory wait for the next frames, and the longest that may: 4 MiB in all.
const SPARE: usize = 32;
const SPARE_LEN: usize = 128 << 10;
/// Parts of a cache that threads use beside each other.
const PARTS: usize = 16;

/// A recovery point's disk, to be read anywhere and by any number of threads at once.
///
/// Opening it proves the digests of all groups by the point's root. From then on every block is
/// proved by the digest of its group before a byte of it is given out: damage is an error, never a
/// wrong byte.
///
/// Memory is bounded: the caches, which several readers can share, 32 bytes for each group of the disk
/// (8 MiB for 16 TiB), and what the archives of the chain hold.
pub struct PointReader {
    chain: Chain,
    name: PathBuf,
    /// The digests of all groups, proved; none of a salvaged chain.
    groups: Option<Vec<Digest>>,
    caches: Arc<Caches>,
    /// What the caches know the reader by.
    number: u64,
    /// Unpackers that no thread uses now.
    idle: Mutex<Vec<Unpacker>>,
}

/// What readers of points have read and decoded last.
///
/// About 5 MiB of groups' states and 16 MiB of decoded frames (32 MiB where a block has 2 MiB).
#[derive(Debug)]
pub(super) struct Caches {
    /// By reader and group.
    states: Shelf<(u64, u32), GroupState>,
    /// By reader, archive and number of the frame.
    frames: Shelf<FrameKey, Frame>,
    /// The number of the next reader.
    next: AtomicU64,
    spare: Arc<Spare>,
}

/// Memory of frames that nobody has any more, for the next ones: at most [`SPARE`] pieces.
///
/// Memory that comes from the system is made zero first, and costs as much as decoding.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, bytes: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE && bytes.capacity() <= SPARE_LEN {
            spare.push(bytes);
        }
    }
}

impl Caches {
    /// Caches for so many bytes of groups' states and of decoded frames.
    fn new(states: u64, decoded: u64) -> Self {
        Self {
            states: Shelf::new(PARTS, states),
            frames: Shelf::new(PARTS, decoded),
            next: AtomicU64::default(),
            spare: Arc::default(),
        }
    }
}

impl Default for Caches {
    fn default() -> Self {
        Self::new(STATES, DECODED)
    }
}

impl fmt::Debug for PointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PointReader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The blocks of a frame that nothing newer replaces, proved.
#[derive(Debug)]
struct Frame {
    /// The frame's span.
    blocks: Range<u64>,
    /// All blocks of the span side by side, from `at` on; those that the frame does not have hold zeros.
    bytes: Vec<u8>,
    at: usize,
    /// Where the memory goes in the end.
    spare: Arc<Spare>,
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.bytes));
    }
}

/// Proved bytes of a point, where they lie in memory.
#[derive(Debug, Clone)]
pub struct Proved {
    frame: Arc<Frame>,
    range: Range<usize>,
}

impl Deref for Proved {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frame.bytes.get(self.range.clone()).unwrap_or_default()
    }
}

/// The bytes of one block or a part of it.
enum Part {
    Zero(usize),
    Bytes(Proved),
}

/// What the caches know a frame by: reader, archive and number.
type FrameKey = (u64, usize, u64);

/// What a walk over a range has at hand.
struct Near {
    /// Frames of several archives may hold blocks of one span by turns.
    frames: Vec<(FrameKey, Arc<Frame>)>,
    range: Range<u64>,
    keep: Keep,
}

/// Which frames the caches keep.
#[derive(PartialEq, Eq)]
enum Keep {
    All,
    /// Those that the range that is asked for cuts: the rest of them may be wanted next.
    Cut,
}

/// What a range of a point's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Some archive stores its blocks.
    Data,
    /// It is zero, and nothing stores it.
    Zero,
    /// Nobody can tell any more what it was: an archive is damaged. Only in a salvaged chain; to
    /// read it is an error.
    Lost,
}

/// A range of a point's disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which bytes.
    pub range: Range<u64>,
    /// What they are.
    pub content: Content,
}

impl PointReader {
    /// The disk at the newest point of `chain`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: the digests of the groups are not those that the root was made of.
    /// Others: an archive can't be read.
    pub fn new(chain: Chain) -> Result<Self> {
        Self::sharing(chain, &Arc::default())
    }

    /// The same, with caches that other readers use, too.
    pub(super) fn sharing(chain: Chain, caches: &Arc<Caches>) -> Result<Self> {
        let metadata = chain.newest().metadata();
        let name = format!("{}/{}@{}", metadata.domain, metadata.disk, metadata.point);
        let groups = if chain.is_salvaged() { None } else { Some(proved_groups(&chain)?) };
        Ok(Self {
            chain,
            name: name.into(),
            groups,
            caches: Arc::clone(caches),
            number: caches.next.fetch_add(1, Ordering::Relaxed),
            idle: Mutex::default(),
        })
    }

    /// The chain that it reads.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.chain.geometry().virtual_size()
    }

    /// Fills `out` with the bytes at `offset`, as far as the disk goes; gives how many there are.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`]: an archive is not what it was, with its name and the place. Others: an
    /// archive can't be read. What `out` holds then means nothing.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.size().saturating_sub(offset).min(out.len() as u64) as usize;
        let mut rest = out.get_mut(..len).unwrap_or_default();
        self.parts(offset..offset + len as u64, Keep::All, |part| {
            let len = match &part {
                Part::Zero(len) => *len,
                Part::Bytes(bytes) => bytes.len(),
            };
            let Some((place, behind)) = std::mem::take(&mut rest).split_at_mut_checked(len) else {
                return false;
            };
            rest = behind;
            match part {
                Part::Zero(_) => place.fill(0),
                Part::Bytes(bytes) => place.copy_from_slice(&bytes),
            }
            true
        })?;
        Ok(len)
    }

    /// The bytes of `range` where they lie in memory, without a copy. They stay there as long as
    /// somebody has them, so none is given where more than `limit` bytes had to stay; nor where a part
    /// of the range is zero and lies nowhere, or behind the disk's end.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn lend(&self, range: Range<u64>, limit: usize) -> Result<Option<Vec<Proved>>> {
        if range.end > self.size() {
            return Ok(None);
        }
        let (mut lent, mut weight, mut complete): (Vec<Proved>, _, _) = (Vec::new(), 0, true);
        // What is wanted whole will hardly be wanted again: a copy of a whole disk must not take the place
        // of what is read now and then.
        self.parts(range, Keep::Cut, |part| {
            let Part::Bytes(bytes) = part else {
                complete = false;
                return false;
            };
            let is_same = |other: &Proved| Arc::ptr_eq(&other.frame, &bytes.frame);
            if !lent.iter().any(is_same) {
                weight += bytes.frame.bytes.capacity();
            }
            match lent.last_mut().filter(|last| is_same(last)) {
                Some(last) if last.range.end == bytes.range.start => {
                    last.range.end = bytes.range.end;
                }
                _ => lent.push(bytes),
            }
            complete = weight <= limit;
            complete
        })?;
        Ok(complete.then_some(lent))
    }

    /// Gives the parts of a range one after the other, as long as `each` wants more.
    fn parts(
        &self,
        range: Range<u64>,
        keep: Keep,
        mut each: impl FnMut(Part) -> bool,
    ) -> Result<()> {
        let block_size = u64::from(self.chain.geometry().block_size());
        let mut state: Option<Arc<GroupState>> = None;
        let mut near = Near { frames: Vec::new(), range: range.clone(), keep };
        let mut at = range.start;
        while at < range.end {
            let (block, skipped) = (at / block_size, (at % block_size) as usize);
            let group = GroupIndex((block / u64::from(GROUP_BLOCKS)) as u32);
            let len = (range.end - at).min(block_size - skipped as u64) as usize;
            let known = match state.take().filter(|state| state.group() == group) {
                Some(state) => state,
                None => self.state(group)?,
            };
            let part = self.part(&known, block, skipped..skipped + len, &mut near)?;
            state = Some(known);
            if !each(part) {
                break;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// What `range` of the disk is, in whole blocks, neighbours of a kind as one. Stops after
    /// `limit` runs: the end of the last one is where to go on. A range behind the disk's end is
    /// cut.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn extents(&self, range: Range<u64>, limit: usize) -> Result<Vec<Run>> {
        let geometry = self.chain.geometry();
        let block_size = u64::from(geometry.block_size());
        let end = range.end.min(self.size());
        let mut runs: Vec<Run> = Vec::new();
        let mut at = range.start;
        while at < end {
            let group = GroupIndex((at / block_size / u64::from(GROUP_BLOCKS)) as u32);
            let state = self.state(group)?;
            let blocks = geometry.group_blocks(group);
            while at < end && at / block_size < blocks.end {
                let block = at / block_size;
                let content = content(&state, (block - blocks.start) as usize);
                let next = ((block + 1) * block_size).min(end);
                if let Some(last) = runs.last_mut()
                    && last.content == content
                {
                    last.range.end = next;
                } else if runs.len() < limit {
                    runs.push(Run { range: at..next, content });
                } else {
                    return Ok(runs);
                }
                at = next;
            }
        }
        Ok(runs)
    }

    /// How many bytes of these ranges lie in blocks that are not zero.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn data_in(&self, ranges: &[Range<u64>]) -> Result<u64> {
        let blocks = self.chain.nonzero()?;
        let block_size = u64::from(self.chain.geometry().block_size());
        let mut sum = 0;
        for range in ranges {
            let end = range.end.min(self.size());
            let Some(last) = end.checked_sub(1).filter(|_| range.start < end) else { continue };
            let (first, last) = (range.start / block_size, last / block_size);
            // A disk has at most 2³² blocks.
            sum += blocks.range_cardinality(first as u32..=last as u32) * block_size;
            // The first and the last may lie only partly in the range.
            if blocks.contains(first as u32) {
                sum -= range.start - first * block_size;
            }
            if blocks.contains(last as u32) {
                sum -= (last + 1) * block_size - end;
            }
        }
        Ok(sum)
    }

    /// Whether the blocks of `range` are the same at another point, by their digests: no block is read. Of
    /// disks of other sizes, or in other blocks, nothing is said to be the same.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn is_same(&self, other: &Self, range: Range<u64>) -> Result<bool> {
        let geometry = self.chain.geometry();
        let (Some(own), Some(others)) = (&self.groups, &other.groups) else { return Ok(false) };
        if geometry != other.chain.geometry() || range.end > self.size() {
            return Ok(false);
        }
        let block_size = u64::from(geometry.block_size());
        let blocks = range.start / block_size..range.end.div_ceil(block_size);
        let in_group = u64::from(GROUP_BLOCKS);
        for group in blocks.start / in_group..blocks.end.div_ceil(in_group) {
            if own.get(group as usize) == others.get(group as usize) {
                continue;
            }
            let group = GroupIndex(group as u32);
            let (one, another) = (self.state(group)?, other.state(group)?);
            let first = u64::from(group.0) * in_group;
            let within = blocks.start.max(first)..blocks.end.min(first + in_group);
            for block in within {
                let index = (block - first) as usize;
                if one.digest(index) != another.digest(index) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn state(&self, group: GroupIndex) -> Result<Arc<GroupState>> {
        self.caches.states.get((self.number, group.0), STATE_LEN, || {
            let state = self.chain.state(group)?;
            let proved = self.groups.as_ref().map(|groups| groups.get(group.0 as usize));
            match proved {
                Some(proved) if proved != Some(&state.group_digest()) => {
                    Err(self.changed(self.chain.describe_group(group)))
                }
                _ => Ok(state),
            }
        })
    }

    /// The bytes of a part of a block.
    fn part(
        &self,
        state: &GroupState,
        block: u64,
        part: Range<usize>,
        near: &mut Near,
    ) -> Result<Part> {
        let index = (block % u64::from(GROUP_BLOCKS)) as usize;
        match content(state, index) {
            Content::Zero => Ok(Part::Zero(part.len())),
            Content::Lost => {
                let text = format!("{}: block {block} is lost", self.name.display());
                Err(Error::new(ErrorKind::Damaged, text))
            }
            Content::Data => {
                let read = frame_of(state, block).ok_or_else(|| {
                    self.changed(format!("block {block} of {}", self.name.display()))
                })?;
                let frame = self.frame(state, read, block, near)?;
                let block_size = self.chain.geometry().block_size() as usize;
                let start = frame.at + (block - frame.blocks.start) as usize * block_size;
                let range = start + part.start..start + part.end;
                if frame.bytes.len() < range.end {
                    return Err(self.changed(format!("block {block}")));
                }
                Ok(Part::Bytes(Proved { frame, range }))
            }
        }
    }

    /// The frame that holds a block.
    fn frame(
        &self,
        state: &GroupState,
        read: &FrameRead,
        block: u64,
        near: &mut Near,
    ) -> Result<Arc<Frame>> {
        let key = (self.number, read.archive, read.position);
        near.frames.retain(|(_, frame)| frame.blocks.contains(&block));
        if let Some((_, frame)) = near.frames.iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(frame));
        }
        let block_size = u64::from(self.chain.geometry().block_size());
        let archive = self.chain.archives().get(read.archive);
        let span = archive.map_or(0, |archive| u64::from(archive.metadata().frame_blocks));
        let first = u64::from(read.entry.first_block.0);
        let blocks = first..first + span;
        let is_whole = near.range.start <= blocks.start * block_size
            && blocks.end * block_size <= near.range.end;
        let frame = match near.keep {
            Keep::Cut if is_whole => match self.caches.frames.find(&key) {
                Some(frame) => frame,
                None => Arc::new(self.unpacked(state, read, blocks)?),
            },
            _ => {
                let make = || self.unpacked(state, read, blocks);
                self.caches.frames.get(key, span * block_size, make)?
            }
        };
        near.frames.push((key, Arc::clone(&frame)));
        Ok(frame)
    }

    fn unpacked(&self, state: &GroupState, read: &FrameRead, blocks: Range<u64>) -> Result<Frame> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut unpacker = match idle {
            Some(unpacker) => unpacker,
            None => {
                let block_size = self.chain.geometry().block_size();
                Unpacker::new(self.chain.archives().to_vec(), block_size)?
            }
        };
        let need = FrameNeed {
            archive: read.archive,
            entry: read.entry,
            mask: read.mask,
            wanted: read.wanted,
            at: None,
        };
        let spare = Arc::clone(&self.caches.spare);
        let mut frame = Frame { blocks, bytes: spare.take(), at: 0, spare };
        frame.at =
            unpacker.unpack_alone(&frame.blocks, &need, state.digests(), &mut frame.bytes)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(unpacker);
        Ok(frame)
    }

    fn changed(&self, place: String) -> Error {
        let text = format!("{place}: the archives of {} have changed", self.name.display());
        Error::new(ErrorKind::Damaged, text).advise("`qdelta verify` tells which files are damaged")
    }
}

/// What block `index` of a group is. Of a salvaged chain only what is proved counts.
fn content(state: &GroupState, index: usize) -> Content {
    if !state.is_proven() || state.is_unsure(index) {
        return Content::Lost;
    }
    match state.owner(index) {
        Owner::Zero => Content::Zero,
        Owner::Archive(_) => Content::Data,
        Owner::Lost => Content::Lost,
    }
}

/// The frame that holds a block of the group. Frames stand by archive, ascending within each.
fn frame_of(state: &GroupState, block: u64) -> Option<&FrameRead> {
    let Owner::Archive(archive) = state.owner((block % u64::from(GROUP_BLOCKS)) as usize) else {
        return None;
    };
    let behind = state.frames().partition_point(|frame| {
        (frame.archive, u64::from(frame.entry.first_block.0)) <= (archive, block)
    });
    let frame = state.frames().get(behind.checked_sub(1)?)?;
    let bit = block.checked_sub(frame.entry.first_block.0.into())?;
    (frame.archive == archive && bit < 64 && frame.wanted >> bit & 1 == 1).then_some(frame)
}

/// The digests of all groups at the chain's newest point, proved by its root.
fn proved_groups(chain: &Chain) -> Result<Vec<Digest>> {
    let groups = chain.group_digests()?;
    let mut root = RootHasher::new(chain.geometry());
    groups.iter().for_each(|digest| root.push(*digest));
    if root.finish() == chain.root() {
        return Ok(groups);
    }
    let text = format!("{}: the digests do not make up the root", chain.newest().path().display());
    Err(Error::new(ErrorKind::Damaged, text)
        .advise("`qdelta verify` finds out which archive of the chain is damaged"))
}

impl ReadAt for PointReader {
    fn path(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset).map_err(io::Error::other)
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
