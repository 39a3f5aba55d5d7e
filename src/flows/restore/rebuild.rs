//! The data path of a restore: which frames the newest state needs, each read and decoded once,
//! its blocks proved and written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{Digest, FRAME_SPAN, Geometry, GroupIndex, Mask, RootHasher};

use roaring::RoaringBitmap;

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::create::ImageWriter;
use crate::disk::flow::pipeline::{self, Consumer, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::flow::write_behind::WriteBehind;
use crate::disk::io::{Backend, Buffer, Direct, Pool, Segment};
use crate::vault::chain::{Chain, GroupCursor, GroupState, Owner};
use crate::vault::frames::pack::GroupDigests;
use crate::vault::frames::unpack::{FrameNeed, Lost, Unpacker};

/// What a rebuild came to.
pub(super) struct Rebuilt {
    /// The root, computed anew from what was written; none if a salvage could not prove some group.
    pub root: Option<Digest>,
    /// What a salvage could not get back, or can't vouch for.
    pub gaps: Gaps,
    /// Bytes read from archives.
    pub bytes_read: u64,
    /// Bytes of blocks that are not zero.
    pub bytes_written: u64,
    /// How the archives were read.
    pub backend: Backend,
}

/// What a salvage could not get back, or can't vouch for.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Blocks that are lost; zeros stand in their place.
    pub lost: RoaringBitmap,
    /// Blocks that may be out of date: an archive that is damaged or missing may have changed them.
    pub unsure: RoaringBitmap,
    /// What is damaged, and where.
    pub problems: Vec<String>,
    /// The same of frames, one of each archive.
    pub damage: Vec<Error>,
}

/// More problems than this are not listed.
const PROBLEMS_MAX: usize = 1000;

/// Writes the state at the end of `chain` into `output`; if some blocks are `wanted`, these alone.
pub(super) fn run(
    chain: &Chain,
    wanted: Option<&RoaringBitmap>,
    output: &dyn ImageWriter,
    resources: &Resources,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Rebuilt> {
    let geometry = chain.geometry();
    let block_size = u64::from(geometry.block_size());
    // Every frame lies within one task.
    let frame_blocks = chain.archives().iter().map(|archive| archive.metadata().frame_blocks).max();
    let task_size = TASK_SIZE_MIN.max(u64::from(frame_blocks.unwrap_or(1)) * block_size);
    // Room for the headers of incompressible frames, and for some frames of which little is wanted.
    let buffer_size = task_size as usize + FRAME_SPAN as usize;
    let files = chain.archives().iter().map(|archive| Arc::clone(archive.store())).collect();
    let ahead = ReadAhead::new(resources, files, buffer_size, Direct::Off)?;
    let backend = ahead.backend();
    ahead.warn_of_fallback(observer);
    let stored = chain.nonzero()?;
    let count = wanted.map_or(stored.len(), |wanted| wanted.intersection_len(&stored));
    observer.begin("restore", count * block_size);
    let mut planner = Planner {
        geometry,
        wanted,
        cursor: chain.cursor(),
        task_blocks: task_size / block_size,
        root: RootHasher::new(geometry),
        proven: true,
        salvage: chain.is_salvaged(),
        gaps: Gaps::default(),
        buffer_size,
        ahead,
        bytes_read: 0,
        cancel,
    };
    let salvage = chain.is_salvaged();
    let behind = match output.store() {
        Some(store) => Some(WriteBehind::new(resources, store, task_size as usize)?),
        None => None,
    };
    let pool = behind.as_ref().map(WriteBehind::pool);
    let (bytes_written, lost) = pipeline::run(
        resources,
        |producer| planner.run(producer),
        || {
            let mut unpacker = Unpacker::new(chain.archives().to_vec(), geometry.block_size())?;
            let pool = pool.clone();
            Ok(move |Loaded { task, buffer }: Loaded<Task>| {
                let mut bytes = Room::new(pool.as_ref(), &task.blocks, block_size);
                let lost = match &task.digests {
                    Some(digests) if !salvage => {
                        let out = bytes.bytes();
                        unpacker.unpack(&task.blocks, &task.needs, &buffer, digests, out)?;
                        Vec::new()
                    }
                    digests => {
                        let (digests, out) = (digests.as_deref(), bytes.bytes());
                        unpacker.salvage(&task.blocks, &task.needs, digests, out)?
                    }
                };
                let start = task.blocks.start * block_size;
                let runs = wanted_runs(&task, &lost, block_size);
                let mut piece = Piece { start, runs, bytes, lost };
                if pool.is_none() && !output.in_order() {
                    piece.write(output)?;
                }
                Ok(piece)
            })
        },
        Writer {
            output,
            behind,
            written: 0,
            lost: Vec::new(),
            observer,
            size: geometry.virtual_size(),
            block_size,
        },
    )?;
    observer.end();
    let Planner { root, proven, bytes_read, mut gaps, .. } = planner;
    let proven = proven && lost.is_empty();
    for lost in lost {
        let blocks = Mask(lost.mask).bits();
        gaps.lost.extend(blocks.map(|bit| (lost.first_block + u64::from(bit)) as u32));
        if gaps.problems.len() < PROBLEMS_MAX {
            gaps.problems.push(lost.error.chain());
        }
        let path = lost.error.file().map(|(path, _)| path);
        if gaps.damage.iter().all(|known| known.file().map(|(path, _)| path) != path) {
            gaps.damage.push(lost.error);
        }
    }
    let root = proven.then(|| root.finish());
    Ok(Rebuilt { root, gaps, bytes_read, bytes_written, backend })
}

/// Some blocks and the frames that make them.
struct Task {
    blocks: Range<u64>,
    needs: Vec<FrameNeed>,
    /// Those of the blocks' group; none if a salvage does not know them.
    digests: Option<Arc<GroupDigests>>,
}

/// Where the blocks of one task are put: a buffer that a queue can write from, or any memory.
enum Room {
    Buffer(Buffer, usize),
    Memory(Vec<u8>),
}

impl Room {
    fn new(pool: Option<&Pool>, blocks: &Range<u64>, block_size: u64) -> Self {
        let len = ((blocks.end - blocks.start) * block_size) as usize;
        match pool {
            Some(pool) => Self::Buffer(pool.take(), len),
            None => Self::Memory(vec![0; len]),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Buffer(buffer, len) => &mut buffer[..*len],
            Self::Memory(bytes) => bytes,
        }
    }
}

/// What a task came to.
struct Piece {
    /// Where on the disk it begins, in bytes.
    start: u64,
    /// Its bytes, in whole blocks, that frames fill. The last block may reach past the disk's end.
    runs: Vec<Range<u64>>,
    /// All bytes of its blocks.
    bytes: Room,
    /// What could not be unpacked.
    lost: Vec<Lost>,
}

impl Piece {
    /// Writes the piece now, and lets go of its memory.
    fn write(&mut self, output: &dyn ImageWriter) -> Result<()> {
        let mut room = std::mem::replace(&mut self.bytes, Room::Memory(Vec::new()));
        for run in &self.runs {
            let part = (run.start - self.start) as usize..(run.end - self.start) as usize;
            output.write(run.start, &room.bytes()[part])?;
        }
        Ok(())
    }

    /// Where in the output's file each part of the piece's bytes belongs.
    fn segments(&self, output: &dyn ImageWriter, disk_size: u64) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for run in &self.runs {
            let end = run.end.min(disk_size);
            let mut at = run.start;
            while at < end {
                let offset = output.place(at).ok_or_else(|| {
                    let text = format!("the block at {at} is not in the plan");
                    Error::new(ErrorKind::Usage, text)
                })?;
                let start = (at - self.start) as usize;
                let len = output.run_len(at, (end - at) as usize).max(1);
                segments.push(Segment { file: 0, offset, range: start..start + len });
                at += len as u64;
            }
        }
        Ok(segments)
    }
}

/// The stretches of the disk, in bytes and whole blocks, that the task's frames fill.
fn wanted_runs(task: &Task, lost: &[Lost], block_size: u64) -> Vec<Range<u64>> {
    let is_lost = |block: u64| {
        lost.iter().any(|lost| {
            let bit = block.wrapping_sub(lost.first_block);
            bit < 64 && lost.mask & (1 << bit) != 0
        })
    };
    let mut blocks: Vec<u64> = Vec::new();
    for need in &task.needs {
        let first = u64::from(need.entry.first_block.0);
        blocks.extend(Mask(need.wanted).bits().map(|bit| first + u64::from(bit)));
    }
    blocks.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in blocks.into_iter().filter(|block| !is_lost(*block)) {
        let start = block * block_size;
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += block_size,
            _ => runs.push(start..start + block_size),
        }
    }
    runs
}

struct Planner<'a> {
    geometry: Geometry,
    /// The blocks that are to be written, if not all are.
    wanted: Option<&'a RoaringBitmap>,
    cursor: GroupCursor<'a>,
    task_blocks: u64,
    root: RootHasher,
    /// Whether the digests of all groups so far are known.
    proven: bool,
    salvage: bool,
    gaps: Gaps,
    buffer_size: usize,
    ahead: ReadAhead<Task>,
    bytes_read: u64,
    cancel: &'a Cancel,
}

type Out<'p> = &'p mut Producer<Loaded<Task>, Piece>;

impl Planner<'_> {
    fn run(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        for group in (0..self.geometry.group_count()).map(GroupIndex) {
            self.cancel.check()?;
            let state = self.cursor.seek(group)?;
            self.root.push(state.group_digest());
            if self.salvage {
                self.proven &= state.is_proven();
                self.gaps.note(state, self.geometry.group_blocks(group));
            }
            if !state.has_stored() {
                continue;
            }
            let digests = state.is_proven().then(|| Arc::new(*state.digests()));
            let end = self.geometry.group_blocks(group).end;
            for (start, mut needs) in tasks_of(state, self.task_blocks) {
                if let Some(wanted) = self.wanted {
                    needs.retain_mut(|need| restrict(need, wanted));
                    if needs.is_empty() {
                        continue;
                    }
                }
                let blocks = start..(start + self.task_blocks).min(end);
                self.read(producer, blocks, needs, digests.clone())?;
            }
        }
        self.ahead.finish(producer)
    }

    fn read(
        &mut self,
        producer: Out<'_>,
        blocks: Range<u64>,
        mut needs: Vec<FrameNeed>,
        digests: Option<Arc<GroupDigests>>,
    ) -> Result<(), Halt> {
        // A group of large blocks has gigabytes: too much to wait for.
        self.cancel.check()?;
        let mut used = 0;
        let mut segments = Vec::new();
        for need in &mut needs {
            let len = need.entry.frame_len() as usize;
            self.bytes_read += len as u64;
            // A salvage reads each frame by itself: what can't be read costs no other.
            if !self.salvage && used + len <= self.buffer_size {
                let at = used..used + len;
                segments.push(Segment {
                    file: need.archive,
                    offset: need.entry.offset,
                    range: at.clone(),
                });
                need.at = Some(at);
                used += len;
            }
        }
        self.ahead.read(producer, segments, Task { blocks, needs, digests })
    }
}

impl Gaps {
    /// Notes which of a group's `blocks` are lost or unsure.
    fn note(&mut self, state: &GroupState, blocks: Range<u64>) {
        if !state.has_gaps() {
            return;
        }
        for (index, block) in blocks.enumerate() {
            if state.owner(index) == Owner::Lost {
                self.lost.insert(block as u32);
            } else if state.is_unsure(index) {
                self.unsure.insert(block as u32);
            }
        }
    }
}

/// Leaves only what is wanted of a frame; says whether that is anything.
fn restrict(need: &mut FrameNeed, wanted: &RoaringBitmap) -> bool {
    let first = need.entry.first_block.0;
    for bit in 0..64 {
        if !first.checked_add(bit).is_some_and(|block| wanted.contains(block)) {
            need.wanted &= !(1 << bit);
        }
    }
    need.wanted != 0
}

/// The frames of a group, by the task whose blocks they hold, in the order of the disk.
fn tasks_of(state: &GroupState, task_blocks: u64) -> BTreeMap<u64, Vec<FrameNeed>> {
    let mut tasks: BTreeMap<u64, Vec<FrameNeed>> = BTreeMap::new();
    for frame in state.frames() {
        let start = u64::from(frame.entry.first_block.0) / task_blocks * task_blocks;
        tasks.entry(start).or_default().push(FrameNeed {
            archive: frame.archive,
            entry: frame.entry,
            mask: frame.mask,
            wanted: frame.wanted,
            at: None,
        });
    }
    tasks
}

/// Sees the pieces in order.
struct Writer<'a> {
    output: &'a dyn ImageWriter,
    /// Writes where the output is a file.
    behind: Option<WriteBehind>,
    size: u64,
    block_size: u64,
    written: u64,
    lost: Vec<Lost>,
    observer: &'a dyn Observer,
}

impl Consumer<Piece> for Writer<'_> {
    type Output = (u64, Vec<Lost>);

    fn take(&mut self, mut piece: Piece) -> Result<()> {
        if let Some(behind) = &mut self.behind {
            let segments = piece.segments(self.output, self.size)?;
            let room = std::mem::replace(&mut piece.bytes, Room::Memory(Vec::new()));
            if let Room::Buffer(buffer, _) = room {
                behind.write(buffer, segments)?;
            }
        } else if self.output.in_order() {
            piece.write(self.output)?;
        }
        self.written +=
            piece.runs.iter().map(|run| run.end.min(self.size) - run.start).sum::<u64>();
        let lost: u64 = piece.lost.iter().map(|lost| u64::from(lost.mask.count_ones())).sum();
        let done: u64 = piece.runs.iter().map(|run| run.end - run.start).sum();
        self.observer.advance(done + lost * self.block_size);
        self.lost.extend(piece.lost);
        Ok(())
    }

    fn finish(self) -> Result<(u64, Vec<Lost>)> {
        if let Some(behind) = self.behind {
            behind.finish()?;
        }
        Ok((self.written, self.lost))
    }
}
