//! The data path of a backup, which looks at everything allocated or at chosen blocks: reader here,
//! workers, assembler.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{Digest, Geometry, GroupIndex};
use roaring::RoaringBitmap;

use super::Done;
use super::assemble::{Assembler, Step};
use super::meter::{Amount, Meter, Whole};
use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::{self, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::image::extent::{CompressedCluster, Extent};
use crate::disk::image::read_plan::{ClusterReader, ReadPlan};
use crate::disk::image::{Image, Mapper};
use crate::vault::archive::Writer;
use crate::vault::frames::pack::{GroupDigests, Packer};
use crate::vault::point::{Before, Digests};

/// What to look at, against what, and with what.
pub(super) struct Archiving<'a> {
    pub image: &'a Image,
    pub geometry: Geometry,
    pub before: Option<&'a Before>,
    /// The blocks to look at; `None` for all.
    pub selection: Option<&'a Selection>,
    /// How much that is.
    pub whole: Whole,
    /// How many blocks a frame spans.
    pub frame_blocks: u32,
    pub level: i32,
    pub resources: &'a Resources,
}

/// Which blocks to look at. All others are what they were at the parent.
pub(super) struct Selection {
    /// Those that may have changed.
    pub claim: RoaringBitmap,
    /// Some of the others, to see whether that is true.
    pub sample: RoaringBitmap,
}

/// What of the blocks of a task is to be looked at.
struct Run {
    blocks: Range<u64>,
    /// Only to check the claim.
    sampled: bool,
}

/// Some blocks side by side, read but for what a worker must fill in.
struct Task {
    blocks: Range<u64>,
    /// Those of them that were read.
    runs: Vec<Range<u64>>,
    zeros: Vec<Range<usize>>,
    compressed: Vec<(Range<usize>, CompressedCluster)>,
    before: Option<Arc<GroupDigests>>,
    amount: Amount,
}

impl Selection {
    /// How many of these blocks are to be looked at.
    pub fn count(&self, blocks: &Range<u64>) -> u64 {
        let Some(last) = blocks.end.checked_sub(1) else { return 0 };
        let range = blocks.start as u32..=last as u32;
        let counts = [&self.claim, &self.sample].map(|set| set.range_cardinality(range.clone()));
        counts.iter().sum()
    }
}

pub(super) fn run(
    job: &Archiving<'_>,
    writer: Writer,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Done> {
    let block_size = u64::from(job.geometry.block_size());
    // Every cluster and every frame lies within one task.
    let task_size = TASK_SIZE_MIN
        .max(u64::from(job.frame_blocks) * block_size)
        .max(cluster_size_max(job.image));
    let files = job.image.files().to_vec();
    let ahead =
        ReadAhead::new(job.resources, files.clone(), task_size as usize, job.resources.direct)?;
    let backend = ahead.backend();
    ahead.warn_of_fallback(observer);
    let meter = Meter::begin(observer, job.whole);
    let meter = &meter;
    let mut reader = Reader {
        geometry: job.geometry,
        task_blocks: task_size / block_size,
        mapper: job.image.mapper(),
        parent: job.before.map(|before| (before.digests(), before.geometry().group_count())),
        selection: job.selection,
        extents: Vec::new(),
        ahead,
        zero_groups: 0,
        bytes_read: 0,
        bytes_sampled: 0,
        meter,
        cancel,
    };
    let assembled = pipeline::run(
        job.resources,
        |producer| reader.run(producer),
        || {
            let mut packer = Packer::new(job.geometry.block_size(), job.frame_blocks, job.level)?;
            let mut clusters = ClusterReader::new(files.clone());
            Ok(move |loaded: Loaded<Task>| {
                let amount = loaded.task.amount;
                let packed = pack(&mut packer, &mut clusters, loaded, block_size);
                // Here and not where the results arrive in order: there a whole window can wait for
                // one block that compresses slowly.
                meter.add(amount);
                packed
            })
        },
        Assembler::new(job.geometry, writer, job.selection.map(|it| &it.sample)),
    )?;
    observer.end();
    let Reader { bytes_read, bytes_sampled, .. } = reader;
    Ok(Done { assembled, bytes_read, bytes_sampled, backend })
}

/// What a worker does with a task.
fn pack(
    packer: &mut Packer,
    clusters: &mut ClusterReader,
    loaded: Loaded<Task>,
    block_size: u64,
) -> Result<Step> {
    let Loaded { task, mut buffer } = loaded;
    let len = ((task.blocks.end - task.blocks.start) * block_size) as usize;
    let bytes = &mut buffer[..len];
    for range in task.zeros {
        bytes[range].fill(0);
    }
    for (range, cluster) in &task.compressed {
        clusters.fill(cluster, &mut bytes[range.clone()])?;
    }
    packer.pack(task.blocks, &task.runs, bytes, task.before.as_ref()).map(Step::Packed)
}

/// Walks the disk in order and keeps the queue filled.
struct Reader<'a> {
    geometry: Geometry,
    task_blocks: u64,
    mapper: Mapper,
    /// The parent's digests, and how many groups it has.
    parent: Option<(Digests<'a>, u32)>,
    selection: Option<&'a Selection>,
    extents: Vec<Extent>,
    ahead: ReadAhead<Task>,
    /// Zero groups that were not passed on yet.
    zero_groups: u32,
    bytes_read: u64,
    /// The part of `bytes_read` that only checks the claim.
    bytes_sampled: u64,
    meter: &'a Meter<'a>,
    cancel: &'a Cancel,
}

type Out<'p> = &'p mut Producer<Loaded<Task>, Step>;

impl Reader<'_> {
    fn run(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        for group in (0..self.geometry.group_count()).map(GroupIndex) {
            self.cancel.check()?;
            let blocks = self.geometry.group_blocks(group);
            if !self.is_selected(&blocks) {
                self.keep(producer, group)?;
                continue;
            }
            let before = self.parent_of(group)?;
            self.extents.clear();
            self.mapper.extents(self.geometry.group_range(group), &mut self.extents)?;
            if before.is_none() && self.extents.iter().all(Extent::is_hole) {
                self.zero_groups += 1;
                self.pass_over(&blocks);
                continue;
            }
            self.flush_zero_groups(producer)?;
            let digests = before.as_ref().map(|(digests, _)| Arc::clone(digests));
            self.ahead.pass(producer, Step::Group { group, before })?;
            let mut start = blocks.start;
            while start < blocks.end {
                let end = (start + self.task_blocks).min(blocks.end);
                if self.is_selected(&(start..end)) {
                    self.read(producer, start..end, digests.clone())?;
                }
                start = end;
            }
        }
        self.flush_zero_groups(producer)?;
        self.ahead.finish(producer)
    }

    /// Whether any of the blocks is to be looked at.
    fn is_selected(&self, blocks: &Range<u64>) -> bool {
        self.selection.is_none_or(|selection| selection.count(blocks) > 0)
    }

    /// These blocks are dealt with: there is nothing to read of them.
    fn pass_over(&self, blocks: &Range<u64>) {
        let all = blocks.end - blocks.start;
        let count = self.selection.map_or(all, |selection| selection.count(blocks));
        let disk = count * u64::from(self.geometry.block_size());
        self.meter.add(Amount { disk, file: 0 });
    }

    /// The runs of `blocks` that are to be looked at, in order.
    fn runs(&self, blocks: &Range<u64>) -> Vec<Run> {
        let Some(selection) = self.selection else {
            return vec![Run { blocks: blocks.clone(), sampled: false }];
        };
        let mut runs: Vec<Run> = Vec::new();
        for block in blocks.clone() {
            let claimed = selection.claim.contains(block as u32);
            if !claimed && !selection.sample.contains(block as u32) {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.blocks.end == block && last.sampled != claimed => {
                    last.blocks.end += 1;
                }
                _ => runs.push(Run { blocks: block..block + 1, sampled: !claimed }),
            }
        }
        runs
    }

    /// A group of which nothing is looked at: it is what it was at the parent.
    fn keep(&mut self, producer: Out<'_>, group: GroupIndex) -> Result<(), Halt> {
        // The last group may have lost blocks to a disk that shrank: its digests are needed.
        let is_last = group.0 + 1 == self.geometry.group_count();
        let step = match &mut self.parent {
            Some((digests, count)) if group.0 < *count => match is_last {
                false => digests.group(group)?.map(|digest| Step::Kept { digest }),
                true => {
                    let before = digests.of(group)?;
                    before.map(|before| Step::Group { group, before: Some(before) })
                }
            },
            _ => None,
        };
        match step {
            None => self.zero_groups += 1,
            Some(step) => {
                self.flush_zero_groups(producer)?;
                self.ahead.pass(producer, step)?;
            }
        }
        Ok(())
    }

    /// The group's digests at the parent; `None` if it was all zero there.
    fn parent_of(&mut self, group: GroupIndex) -> Result<Option<(Arc<GroupDigests>, Digest)>> {
        match &mut self.parent {
            Some((digests, count)) if group.0 < *count => digests.of(group),
            _ => Ok(None),
        }
    }

    fn flush_zero_groups(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        if self.zero_groups > 0 {
            let count = std::mem::take(&mut self.zero_groups);
            self.ahead.pass(producer, Step::ZeroGroups(count))?;
        }
        Ok(())
    }

    /// Sends some blocks on their way: to the queue, or past it if there is nothing to read.
    fn read(
        &mut self,
        producer: Out<'_>,
        blocks: Range<u64>,
        before: Option<Arc<GroupDigests>>,
    ) -> Result<(), Halt> {
        // A group of large blocks has gigabytes: too much to wait for.
        self.cancel.check()?;
        let runs = self.runs(&blocks);
        let read_before = self.bytes_read;
        let mut plan = ReadPlan::default();
        for run in &runs {
            self.plan(&blocks, run, &mut plan);
        }
        if plan.is_empty() {
            self.pass_over(&blocks);
            if before.is_some() {
                for run in runs {
                    self.ahead.pass(producer, Step::Zeros(run.blocks))?;
                }
            }
            return Ok(());
        }
        let ReadPlan { segments, zeros, compressed, .. } = plan;
        let count: u64 = runs.iter().map(|run| run.blocks.end - run.blocks.start).sum();
        let amount = Amount {
            disk: count * u64::from(self.geometry.block_size()),
            file: self.bytes_read - read_before,
        };
        let runs = runs.into_iter().map(|run| run.blocks).collect();
        let task = Task { blocks, runs, zeros, compressed, before, amount };
        self.ahead.read(producer, segments, task)
    }

    /// Adds to the plan for a buffer of `blocks` what reads a run of them.
    fn plan(&mut self, blocks: &Range<u64>, run: &Run, plan: &mut ReadPlan) {
        let block_size = u64::from(self.geometry.block_size());
        let start = run.blocks.start * block_size;
        let len = (run.blocks.end - run.blocks.start) * block_size;
        let end = (start + len).min(self.geometry.virtual_size());
        let at = (run.blocks.start - blocks.start) * block_size;
        let bytes = plan.add(&self.extents, &(start..end), at as usize, len as usize);
        self.bytes_read += bytes;
        if run.sampled {
            self.bytes_sampled += bytes;
        }
    }
}

/// The largest cluster of any layer, in bytes; 0 if there are none.
fn cluster_size_max(image: &Image) -> u64 {
    image.layers().iter().filter_map(|layer| layer.cluster_size).max().unwrap_or(0)
}
