//! The frames of an archive, each checked by its checksums and by the digests of its blocks.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{Digest, FRAME_HEADER_LEN, FRAME_LEN_MAX};

use crate::base::cancel::Cancel;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::{self, Consumer, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::io::Direct;
use crate::disk::io::Segment;
use crate::vault::archive::{Reader, Windows};
use crate::vault::frames::unpack::{FrameNeed, Unpacker};

/// How the frames of archives are checked.
pub(crate) struct Proof<'a> {
    /// Threads and I/O.
    pub resources: &'a Resources,
    /// Checksums alone.
    pub quick: bool,
    /// Told of the bytes that are read.
    pub observer: &'a dyn Observer,
    /// A request to stop.
    pub cancel: &'a Cancel,
}

impl Proof<'_> {
    /// Checks all frames of an archive.
    ///
    /// # Errors
    /// The archive can't be read. Damage is no error, and among what was found.
    pub fn check(&self, archive: &Arc<Reader>) -> Result<Checked> {
        match archive.file_len() {
            0..=TASK_SIZE_MIN => self.small(archive),
            _ => self.large(archive),
        }
    }

    /// Checks the frames of an archive that is a single task or a few: to start threads and a queue
    /// for those would take longer than the check. What a failure means is the same as in
    /// [`Self::large`]: see [`check`].
    fn small(&self, archive: &Arc<Reader>) -> Result<Checked> {
        let unpacker = Unpacker::new(vec![Arc::clone(archive)], archive.geometry().block_size())?;
        let collector = Collector { all: Checked::default(), observer: self.observer };
        let mut sink = Here { archive, buffer: Vec::new(), unpacker, collector };
        pipeline::guard(move || match self.frames(archive).run(&mut sink) {
            Ok(()) => sink.collector.finish(),
            Err(Halt::Failed(error)) => Err(error),
            // Only a pipeline's consumer stops a producer.
            Err(Halt::Stopped) => Err(Error::new(ErrorKind::Io, "internal error: no consumer")),
        })
    }

    /// Checks the frames of an archive on all cores, reading ahead of them.
    fn large(&self, archive: &Arc<Reader>) -> Result<Checked> {
        let resources = self.resources;
        let mut frames = self.frames(archive);
        let files = vec![Arc::clone(archive.store())];
        let mut ahead = ReadAhead::new(resources, files, frames.buffer_size, Direct::Off)?;
        ahead.warn_of_fallback(self.observer);
        pipeline::run(
            resources,
            |producer| {
                frames.run(&mut Ahead { ahead: &mut ahead, producer })?;
                ahead.finish(producer)
            },
            || {
                let block_size = archive.geometry().block_size();
                let mut unpacker = Unpacker::new(vec![Arc::clone(archive)], block_size)?;
                Ok(move |Loaded { task, buffer }: Loaded<Vec<Frame>>| {
                    check(&mut unpacker, &task, &buffer)
                })
            },
            Collector { all: Checked::default(), observer: self.observer },
        )
    }

    fn frames<'a>(&'a self, archive: &'a Reader) -> Frames<'a> {
        // Several frames a read, and room for the largest.
        let metadata = archive.metadata();
        let span = metadata.frame_blocks as usize * metadata.geometry.block_size() as usize;
        let buffer_size = TASK_SIZE_MIN as usize + (FRAME_HEADER_LEN + span).min(FRAME_LEN_MAX);
        Frames { archive, buffer_size, quick: self.quick, cancel: self.cancel }
    }
}

/// Frames of one task, at most: of data that compresses well a buffer holds thousands.
const FRAMES_MAX: usize = 64;

/// Records that are read ahead of each table of an archive.
const RECORDS_AHEAD: u64 = 4096;

/// A frame to check, and the digests of its blocks (none if quick).
struct Frame {
    need: FrameNeed,
    digests: Vec<Digest>,
}

/// Where planned frames go, in order.
trait Sink {
    /// Passes on a problem that was found before the frame was read.
    fn pass(&mut self, checked: Checked) -> Result<(), Halt>;
    /// Checks frames; the segments say where they are read from, and where to.
    fn check(&mut self, segments: Vec<Segment>, task: Vec<Frame>) -> Result<(), Halt>;
}

/// Frames are read ahead, and checked by the workers.
struct Ahead<'a> {
    ahead: &'a mut ReadAhead<Vec<Frame>>,
    producer: &'a mut Producer<Loaded<Vec<Frame>>, Checked>,
}

impl Sink for Ahead<'_> {
    fn pass(&mut self, checked: Checked) -> Result<(), Halt> {
        self.ahead.pass(self.producer, checked)
    }

    fn check(&mut self, segments: Vec<Segment>, task: Vec<Frame>) -> Result<(), Halt> {
        self.ahead.read(self.producer, segments, task)
    }
}

/// Frames are read and checked at once, on this thread.
struct Here<'a> {
    archive: &'a Reader,
    buffer: Vec<u8>,
    unpacker: Unpacker,
    collector: Collector<'a>,
}

impl Sink for Here<'_> {
    fn pass(&mut self, checked: Checked) -> Result<(), Halt> {
        Ok(self.collector.take(checked)?)
    }

    fn check(&mut self, segments: Vec<Segment>, task: Vec<Frame>) -> Result<(), Halt> {
        self.buffer.resize(segments.last().map_or(0, |last| last.range.end), 0);
        let store = self.archive.store();
        // Frames that follow each other are one read.
        let follows = |one: &Segment, next: &Segment| {
            one.offset + one.range.len() as u64 == next.offset && one.range.end == next.range.start
        };
        for run in segments.chunk_by(follows) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let bytes = self.buffer.get_mut(first.range.start..last.range.end).unwrap_or_default();
            let read = store.read_exact_at(bytes, first.offset);
            read.map_err(|error| Error::io("read", store.path(), error))?;
        }
        Ok(self.collector.take(check(&mut self.unpacker, &task, &self.buffer)?)?)
    }
}

/// Checks frames that were read to `buffer`.
///
/// # Errors
/// The system fails. Damage is a problem of its frame, and the check goes on. Where reading fails, nothing
/// more is read of the archive: a failing disk can take seconds for each sector.
fn check(unpacker: &mut Unpacker, task: &[Frame], buffer: &[u8]) -> Result<Checked> {
    let mut checked = Checked::default();
    for frame in task {
        checked.bytes_read += frame.need.entry.frame_len();
        match unpacker.check(&frame.need, buffer, &frame.digests) {
            Ok(bytes) => checked.bytes_verified += bytes,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                checked.problems.push(error.chain());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(checked)
}

/// Reads an archive's frames in order, as many at a time as fit a buffer.
struct Frames<'a> {
    archive: &'a Reader,
    buffer_size: usize,
    quick: bool,
    cancel: &'a Cancel,
}

impl Frames<'_> {
    fn run(&mut self, sink: &mut dyn Sink) -> Result<(), Halt> {
        let mut task: Vec<Frame> = Vec::new();
        let mut segments: Vec<Segment> = Vec::new();
        let mut used = 0;
        let mut rank = 0;
        let mut windows = Windows::default();
        let mut stored = self.archive.stored().walk();
        for position in 0..self.archive.frame_count() {
            let entry = match windows.frame(self.archive, position, RECORDS_AHEAD) {
                Ok(entry) => entry,
                Err(error) if error.kind() != ErrorKind::Damaged => return Err(error.into()),
                Err(error) => {
                    let problems = vec![error.chain()];
                    sink.pass(Checked { problems, ..Checked::default() })?;
                    continue;
                }
            };
            let span = self.archive.metadata().frame_blocks;
            let mask = stored.mask(entry.first_block.0, span)?;
            let mut digests = Vec::new();
            if !self.quick {
                let count = u64::from(mask.count_ones());
                let records = windows.digests(self.archive, rank, count, RECORDS_AHEAD)?;
                digests.extend(records.iter().copied().map(Digest));
                rank += count;
            }
            let len = entry.frame_len() as usize;
            if len > self.buffer_size {
                let error = Error::new(ErrorKind::Damaged, "it is longer than its blocks");
                let problems = vec![self.archive.frame_error(&entry, mask, error).chain()];
                sink.pass(Checked { problems, ..Checked::default() })?;
                continue;
            }
            if used + len > self.buffer_size || task.len() >= FRAMES_MAX {
                self.cancel.check()?;
                let (task, segments) = (std::mem::take(&mut task), std::mem::take(&mut segments));
                sink.check(segments, task)?;
                used = 0;
            }
            // The reader bounds a frame's length: each fits the buffer.
            let at: Range<usize> = used..used + len;
            segments.push(Segment { file: 0, offset: entry.offset, range: at.clone() });
            used = at.end;
            let need = FrameNeed { archive: 0, entry, mask, wanted: mask, at: Some(at) };
            task.push(Frame { need, digests });
        }
        if !task.is_empty() {
            sink.check(segments, task)?;
        }
        Ok(())
    }
}

/// What checking some frames came to.
#[derive(Default)]
pub(crate) struct Checked {
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of blocks that are what was written.
    pub bytes_verified: u64,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// More damaged frames than this in one archive are counted, not listed.
const PROBLEMS_MAX: usize = 1000;

struct Collector<'a> {
    all: Checked,
    observer: &'a dyn Observer,
}

impl Consumer<Checked> for Collector<'_> {
    type Output = Checked;

    fn take(&mut self, checked: Checked) -> Result<()> {
        self.all.bytes_read += checked.bytes_read;
        self.all.bytes_verified += checked.bytes_verified;
        let room = PROBLEMS_MAX.saturating_sub(self.all.problems.len());
        if checked.problems.len() > room {
            self.all.problems.truncate(PROBLEMS_MAX - 1);
            self.all.problems.push("and more".to_owned());
        } else {
            self.all.problems.extend(checked.problems);
        }
        self.observer.advance(checked.bytes_read);
        Ok(())
    }

    fn finish(self) -> Result<Checked> {
        Ok(self.all)
    }
}
