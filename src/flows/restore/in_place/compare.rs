//! Which blocks of an image are not those of a point: the image is read as a backup reads it, and
//! the workers compare digests.

use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::archive::{Digest, GROUP_BLOCKS, GroupIndex, block_digest, zero_block_digest};
use roaring::RoaringBitmap;

use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::{self, Consumer, Halt, Producer, Resources, TASK_SIZE_MIN};
use crate::disk::flow::read_ahead::{Loaded, ReadAhead};
use crate::disk::image::extent::{CompressedCluster, Extent};
use crate::disk::image::read_plan::{ClusterReader, ReadPlan};
use crate::disk::image::{Image, Mapper};
use crate::vault::chain::{Chain, GroupCursor, GroupState};
use crate::vault::frames::pack::{GroupDigests, is_zero};

/// Some blocks of one group side by side, read but for what a worker must fill in.
struct Task {
    blocks: Range<u64>,
    /// How many bytes of the disk they are.
    len: u64,
    zeros: Vec<Range<usize>>,
    compressed: Vec<(Range<usize>, CompressedCluster)>,
    expected: Arc<GroupDigests>,
}

/// What comparing some blocks came to.
struct Compared {
    /// Bytes of the disk that were looked at.
    len: u64,
    /// Those that are not the point's, ascending.
    differing: Vec<u32>,
}

/// The blocks of `image` that are not those at the end of `chain`, whose disk has the same size.
///
/// # Errors
/// The image or an archive can't be read, or is damaged.
pub(super) fn differing(
    image: &Image,
    chain: &Chain,
    resources: &Resources,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RoaringBitmap> {
    let geometry = chain.geometry();
    let block_size = u64::from(geometry.block_size());
    let cluster = image.layers().iter().filter_map(|layer| layer.cluster_size).max();
    let task_size = TASK_SIZE_MIN.max(block_size).max(cluster.unwrap_or(0));
    let files = image.files().to_vec();
    let ahead = ReadAhead::new(resources, files.clone(), task_size as usize, resources.direct)?;
    ahead.warn_of_fallback(observer);
    observer.begin("compare", geometry.virtual_size());
    let zero = zero_block_digest(geometry.block_size());
    let mut planner = Planner {
        chain,
        zero,
        task_blocks: task_size / block_size,
        cursor: chain.cursor(),
        mapper: image.mapper(),
        extents: Vec::new(),
        ahead,
        cancel,
    };
    let differing = pipeline::run(
        resources,
        |producer| planner.run(producer),
        || {
            let mut clusters = ClusterReader::new(files.clone());
            Ok(move |loaded: Loaded<Task>| compare(&mut clusters, loaded, block_size, zero))
        },
        Collector { differing: RoaringBitmap::new(), observer },
    )?;
    observer.end();
    Ok(differing)
}

/// What a worker does with a task.
fn compare(
    clusters: &mut ClusterReader,
    loaded: Loaded<Task>,
    block_size: u64,
    zero: Digest,
) -> Result<Compared> {
    let Loaded { task, mut buffer } = loaded;
    let room = (task.blocks.end - task.blocks.start) * block_size;
    let bytes = buffer.get_mut(..room as usize).unwrap_or_default();
    for part in task.zeros {
        bytes.get_mut(part).unwrap_or_default().fill(0);
    }
    for (part, cluster) in &task.compressed {
        clusters.fill(cluster, bytes.get_mut(part.clone()).unwrap_or_default())?;
    }
    let mut differing = Vec::new();
    for (block, content) in task.blocks.zip(bytes.chunks(block_size as usize)) {
        let expected = task.expected.get((block % u64::from(GROUP_BLOCKS)) as usize);
        let now = if is_zero(content) { zero } else { block_digest(content) };
        if expected != Some(&now) {
            // A disk has at most 2^32 blocks.
            differing.push(block as u32);
        }
    }
    Ok(Compared { len: task.len, differing })
}

/// Walks the disk in order and keeps the queue filled.
struct Planner<'a> {
    chain: &'a Chain,
    /// The digest of a block of zeros.
    zero: Digest,
    task_blocks: u64,
    cursor: GroupCursor<'a>,
    mapper: Mapper,
    extents: Vec<Extent>,
    ahead: ReadAhead<Task>,
    cancel: &'a Cancel,
}

type Out<'p> = &'p mut Producer<Loaded<Task>, Compared>;

impl Planner<'_> {
    fn run(&mut self, producer: Out<'_>) -> Result<(), Halt> {
        let geometry = self.chain.geometry();
        let block_size = u64::from(geometry.block_size());
        for group in (0..geometry.group_count()).map(GroupIndex) {
            self.cancel.check()?;
            let range = geometry.group_range(group);
            self.extents.clear();
            self.mapper.extents(range.clone(), &mut self.extents)?;
            let state = self.cursor.seek(group)?;
            let blocks = geometry.group_blocks(group);
            if self.extents.iter().all(Extent::is_hole) {
                let differing = not_zero(state, &blocks, self.zero);
                let len = range.end - range.start;
                self.ahead.pass(producer, Compared { len, differing })?;
                continue;
            }
            let expected = Arc::new(*state.digests());
            let mut start = blocks.start;
            while start < blocks.end {
                // A group of large blocks has gigabytes: too much to wait for.
                self.cancel.check()?;
                let end = (start + self.task_blocks).min(blocks.end);
                let bytes = start * block_size..(end * block_size).min(range.end);
                let (len, room) = (bytes.end - bytes.start, (end - start) * block_size);
                let mut plan = ReadPlan::default();
                plan.add(&self.extents, &bytes, 0, room as usize);
                if plan.is_empty() {
                    let differing = not_zero(state, &(start..end), self.zero);
                    self.ahead.pass(producer, Compared { len, differing })?;
                    start = end;
                    continue;
                }
                let ReadPlan { segments, zeros, compressed } = plan;
                let expected = Arc::clone(&expected);
                let task = Task { blocks: start..end, len, zeros, compressed, expected };
                self.ahead.read(producer, segments, task)?;
                start = end;
            }
        }
        self.ahead.finish(producer)
    }
}

/// Those of a group's `blocks` that are not zero at the point.
fn not_zero(state: &GroupState, blocks: &Range<u64>, zero: Digest) -> Vec<u32> {
    if !state.has_stored() {
        return Vec::new();
    }
    let digest = |block: &u64| state.digest((block % u64::from(GROUP_BLOCKS)) as usize);
    // A disk has at most 2^32 blocks.
    blocks.clone().filter(|block| digest(block) != zero).map(|block| block as u32).collect()
}

struct Collector<'a> {
    differing: RoaringBitmap,
    observer: &'a dyn Observer,
}

impl Consumer<Compared> for Collector<'_> {
    type Output = RoaringBitmap;

    fn take(&mut self, compared: Compared) -> Result<()> {
        self.differing.extend(compared.differing);
        self.observer.advance(compared.len);
        Ok(())
    }

    fn finish(self) -> Result<RoaringBitmap> {
        Ok(self.differing)
    }
}
