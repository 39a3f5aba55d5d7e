//! The data path of a merge: which frames still stand, read in the order of the disk; those that stand
//! whole are copied, the others packed anew.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{
    BlockIndex, Codec, Digest, FRAME_HEADER_LEN, FRAME_LEN_MAX, GROUP_BLOCKS, GroupIndex,
    RootHasher, zero_group_digest,
};

use super::walk::{Cut, Unit, runs, spans};
use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::{self, Consumer, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::io::{Buffer, Direct, Segment};
use crate::vault::archive::{Reader, Summary, Writer};
use crate::vault::chain::Stretch;
use crate::vault::frames::pack::{GroupDigests, Packed, Packer};
use crate::vault::frames::unpack::{FrameNeed, Unpacker};

/// The most groups that one task says something about.
const MARKS_MAX: usize = 4096;

/// What a merge came to.
pub(crate) struct Merged {
    pub summary: Summary,
    /// Bytes of frames that were read.
    pub bytes_read: u64,
    /// Frames that were copied as they are.
    pub copied: u64,
    /// Frames that were packed anew.
    pub packed: u64,
}

/// What to merge, and with what.
pub(super) struct Merging<'a> {
    pub stretch: &'a Stretch,
    /// The zstd level of frames that are packed anew.
    pub level: i32,
    pub resources: &'a Resources,
}

/// Frames on their way, and what is known of the blocks that have none.
#[derive(Default)]
struct Task {
    units: Vec<Blocks>,
    marks: Marks,
    /// How many bytes of the buffer are used.
    used: usize,
    segments: Vec<Segment>,
    bytes_read: u64,
}

/// What the archive says beside its frames.
#[derive(Default)]
struct Marks {
    groups: Vec<(GroupIndex, Digest)>,
    zero: Vec<Range<u64>>,
}

/// A unit on its way.
struct Blocks {
    first: u64,
    needs: Vec<Need>,
    digests: Arc<GroupDigests>,
}

struct Need {
    frame: FrameNeed,
    /// It stands whole.
    is_whole: bool,
}

/// What a worker made of a task.
struct Piece {
    buffer: Buffer,
    frames: Vec<Ready>,
    payloads: Vec<u8>,
    marks: Marks,
    bytes_read: u64,
    copied: u64,
}

/// A frame for the merged archive.
struct Ready {
    first_block: BlockIndex,
    mask: u64,
    codec: Codec,
    payload: Payload,
    digests: Vec<Digest>,
}

/// Where the payload of a frame is.
enum Payload {
    /// In the buffer that it was read to.
    Read(Range<usize>),
    /// Among the payloads that were made or read by a worker.
    Made(Range<usize>),
}

/// Writes the archive that stands for the whole stretch.
pub(super) fn run(
    job: &Merging<'_>,
    writer: Writer,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Merged> {
    let stretch = job.stretch;
    let cut = Cut::of(stretch);
    let block_size = stretch.geometry().block_size();
    let longest = FRAME_HEADER_LEN + cut.unit as usize * block_size as usize;
    let buffer_size = TASK_SIZE_MIN as usize + longest.min(FRAME_LEN_MAX);
    let files = stretch.archives().iter().map(|archive| Arc::clone(archive.store())).collect();
    let ahead = ReadAhead::new(job.resources, files, buffer_size, Direct::Off)?;
    ahead.warn_of_fallback(observer);
    let mut planner = Planner { stretch, cut, buffer_size, ahead, task: Task::default(), cancel };
    pipeline::run(
        job.resources,
        |producer| planner.run(producer),
        || {
            let mut worker = Worker {
                archives: stretch.archives(),
                cut,
                block_size: block_size as usize,
                unpacker: Unpacker::new(stretch.archives().to_vec(), block_size)?,
                packer: Packer::new(block_size, cut.span, job.level)?,
                blocks: Vec::new(),
                frame: Vec::new(),
            };
            Ok(move |loaded| worker.work(loaded))
        },
        Sink {
            writer,
            is_whole: stretch.is_whole(),
            root: stretch.newest().root(),
            observer,
            merged: (0, 0, 0),
        },
    )
}

/// Walks over the groups and keeps the queue filled.
struct Planner<'a> {
    stretch: &'a Stretch,
    cut: Cut,
    buffer_size: usize,
    ahead: ReadAhead<Task>,
    task: Task,
    cancel: &'a Cancel,
}

type Out<'p> = &'p mut Producer<Loaded<Task>, Piece>;

impl Planner<'_> {
    fn run(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        let stretch = self.stretch;
        let geometry = stretch.geometry();
        let zero_group = zero_group_digest(geometry.block_size());
        // The root of a whole chain follows from its groups. That of a part is proved with the chain.
        let mut root = stretch.is_whole().then(|| RootHasher::new(geometry));
        let mut cursor = stretch.cursor(true);
        for group in (0..geometry.group_count()).map(GroupIndex) {
            self.cancel.check()?;
            let layer = cursor.seek(group)?;
            let Some(digest) = layer.digest() else { continue };
            if let Some(root) = &mut root {
                root.push(digest);
                if digest == zero_group && layer.frames().is_empty() {
                    continue;
                }
            } else {
                self.task.marks.zero.extend(runs(group, layer.zero()));
            }
            self.task.marks.groups.push((group, digest));
            if self.task.marks.groups.len() >= MARKS_MAX {
                self.flush(producer)?;
            }
            if layer.frames().is_empty() {
                continue;
            }
            let digests = Arc::new(*layer.digests());
            for unit in self.cut.units(layer.frames()) {
                self.plan(producer, &unit, &digests)?;
            }
        }
        if root.is_some_and(|root| root.finish() != stretch.newest().root()) {
            let path = stretch.newest().path().display();
            let text = format!("{path}: the digests of the chain do not give its root");
            let error = Error::new(ErrorKind::Damaged, text);
            return Err(error.advise("`qdelta verify` tells which files are damaged").into());
        }
        self.flush(producer)?;
        self.ahead.finish(producer)
    }

    /// Puts a unit into the task at hand, or into the next one.
    fn plan(
        &mut self,
        producer: Out<'_>,
        unit: &Unit<'_>,
        digests: &Arc<GroupDigests>,
    ) -> Result<(), Halt> {
        let len: usize = unit.frames.iter().map(|frame| frame.entry.frame_len() as usize).sum();
        if self.task.used > 0 && self.task.used + len > self.buffer_size.min(TASK_SIZE_MIN as usize)
        {
            self.flush(producer)?;
        }
        let mut needs = Vec::with_capacity(unit.frames.len());
        for frame in unit.frames {
            let len = frame.entry.frame_len() as usize;
            self.task.bytes_read += len as u64;
            // What has no room, the worker reads.
            let at = self.task.used..self.task.used + len;
            let fits = at.end <= self.buffer_size;
            if fits {
                self.task.read(frame.archive, frame.entry.offset, at.clone());
            }
            let frame_need = FrameNeed {
                archive: frame.archive,
                entry: frame.entry,
                mask: frame.mask,
                wanted: frame.wanted,
                at: fits.then_some(at),
            };
            let is_whole = unit.is_whole(frame, self.stretch, self.cut);
            needs.push(Need { frame: frame_need, is_whole });
        }
        self.task.units.push(Blocks { first: unit.first, needs, digests: Arc::clone(digests) });
        Ok(())
    }

    fn flush(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        let mut task = std::mem::take(&mut self.task);
        let segments = std::mem::take(&mut task.segments);
        self.ahead.read(producer, segments, task)
    }
}

impl Task {
    /// Reads some bytes of a file into the next ones of the buffer: what follows in both goes with what
    /// is before.
    fn read(&mut self, file: usize, offset: u64, at: Range<usize>) {
        self.used = at.end;
        match self.segments.last_mut() {
            Some(last)
                if last.file == file
                    && last.range.end == at.start
                    && last.offset + last.range.len() as u64 == offset =>
            {
                last.range.end = at.end;
            }
            _ => self.segments.push(Segment { file, offset, range: at }),
        }
    }
}

/// Makes frames of frames.
struct Worker<'a> {
    archives: &'a [Arc<Reader>],
    cut: Cut,
    block_size: usize,
    unpacker: Unpacker,
    packer: Packer,
    /// The blocks of a unit, side by side.
    blocks: Vec<u8>,
    /// A frame that the task's buffer had no room for.
    frame: Vec<u8>,
}

impl Worker<'_> {
    fn work(&mut self, loaded: Loaded<Task>) -> Result<Piece> {
        let Loaded { task, buffer } = loaded;
        let mut made = Packed::default();
        let (mut frames, mut copied) = (Vec::new(), 0);
        for unit in task.units {
            let from = frames.len();
            let (whole, rest): (Vec<Need>, Vec<Need>) =
                unit.needs.into_iter().partition(|need| need.is_whole);
            for need in whole {
                frames.push(self.copy(&need.frame, &unit.digests, &buffer, &mut made.payloads)?);
                copied += 1;
            }
            let rest: Vec<FrameNeed> = rest.into_iter().map(|need| need.frame).collect();
            if !rest.is_empty() {
                self.pack(unit.first, &rest, &unit.digests, &buffer, &mut made)?;
                frames.extend(made.frames.drain(..).map(|frame| Ready {
                    first_block: frame.first_block,
                    mask: frame.mask,
                    codec: frame.codec,
                    payload: Payload::Made(frame.payload),
                    digests: frame.digests,
                }));
                if let Some(own) = frames.get_mut(from..) {
                    own.sort_by_key(|frame| frame.first_block.0);
                }
            }
        }
        let (marks, bytes_read) = (task.marks, task.bytes_read);
        Ok(Piece { buffer, frames, payloads: made.payloads, marks, bytes_read, copied })
    }

    /// Proves a frame by its checksums, and takes it as it is.
    fn copy(
        &mut self,
        need: &FrameNeed,
        digests: &GroupDigests,
        buffer: &[u8],
        payloads: &mut Vec<u8>,
    ) -> Result<Ready> {
        let archive = self.archives.get(need.archive).ok_or_else(|| {
            Error::new(ErrorKind::Io, "internal error: a frame of an archive that is not open")
        })?;
        let (header, payload) = match &need.at {
            Some(at) => {
                let view = archive.parse_frame(&need.entry, need.mask, &buffer[at.clone()])?;
                let start = at.start + FRAME_HEADER_LEN;
                (view.header, Payload::Read(start..start + view.payload.len()))
            }
            None => {
                let view = archive.read_frame(&need.entry, need.mask, &mut self.frame)?;
                let start = payloads.len();
                payloads.extend_from_slice(view.payload);
                (view.header, Payload::Made(start..payloads.len()))
            }
        };
        let digests = header.blocks().map(|block| digest_of(digests, block)).collect();
        Ok(Ready {
            first_block: header.first_block,
            mask: header.mask,
            codec: header.codec,
            payload,
            digests,
        })
    }

    /// Decodes frames, proves the blocks that are wanted of them, and packs those.
    fn pack(
        &mut self,
        first: u64,
        needs: &[FrameNeed],
        digests: &GroupDigests,
        buffer: &[u8],
        made: &mut Packed,
    ) -> Result<()> {
        let blocks = first..first + u64::from(self.cut.unit);
        self.blocks.resize(self.cut.unit as usize * self.block_size, 0);
        self.unpacker.unpack(&blocks, needs, buffer, digests, &mut self.blocks)?;
        let place = |need: &FrameNeed| need.wanted << (u64::from(need.entry.first_block.0) - first);
        let wanted = needs.iter().fold(0, |all, need| all | place(need));
        for (span, mask) in spans(first, wanted, self.cut) {
            let held = mask.bits().map(|bit| digest_of(digests, span + u64::from(bit))).collect();
            let start = (span - first) as usize * self.block_size;
            self.packer.pack_span(span, mask, held, &self.blocks[start..], made)?;
        }
        Ok(())
    }
}

fn digest_of(digests: &GroupDigests, block: u64) -> Digest {
    digests[(block % u64::from(GROUP_BLOCKS)) as usize]
}

/// Sees the pieces in order.
struct Sink<'a> {
    writer: Writer,
    is_whole: bool,
    root: Digest,
    observer: &'a dyn Observer,
    /// Bytes read, frames copied and packed.
    merged: (u64, u64, u64),
}

impl Consumer<Piece> for Sink<'_> {
    type Output = Merged;

    fn take(&mut self, piece: Piece) -> Result<()> {
        for frame in &piece.frames {
            let payload = match &frame.payload {
                Payload::Read(at) => &piece.buffer[at.clone()],
                Payload::Made(at) => &piece.payloads[at.clone()],
            };
            let (first, mask) = (frame.first_block, frame.mask);
            self.writer.write_frame(first, mask, frame.codec, payload, &frame.digests)?;
        }
        for (group, digest) in piece.marks.groups {
            self.writer.set_group(group, digest)?;
        }
        for blocks in piece.marks.zero.into_iter().filter(|_| !self.is_whole) {
            self.writer.mark_zero(blocks)?;
        }
        let (read, copied, packed) = &mut self.merged;
        *read += piece.bytes_read;
        *copied += piece.copied;
        *packed += piece.frames.len() as u64 - piece.copied;
        self.observer.advance(piece.bytes_read);
        Ok(())
    }

    fn finish(self) -> Result<Merged> {
        let (mut sink, summary) = self.writer.finish(self.root)?;
        sink.flush().map_err(|error| {
            Error::io("write", std::path::Path::new("the merged archive"), error)
        })?;
        let (bytes_read, copied, packed) = self.merged;
        Ok(Merged { summary, bytes_read, copied, packed })
    }
}
