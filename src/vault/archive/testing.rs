//! Small archives in memory for unit tests.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::Writer;
pub(crate) use crate::disk::io::in_memory::Bytes;
use crate::formats::archive::{
    ArchiveId, BlockIndex, Codec, Consistency, Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind,
    Metadata, Parent, RootHasher, Tracker, block_digest, group_digest, zero_block_digest,
};
use crate::vault::codec::Compressor;

/// A sink whose bytes can be looked at afterwards.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A block of the model disk: what was written last (0: zeros), and how much of it the disk held
/// then. Bytes behind that are zeros, also after the disk has grown again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) seed: u32,
    pub(crate) len: u32,
}

impl Content {
    /// The whole block. Odd seeds are noise, even ones compress.
    pub(crate) fn bytes(self, block_size: u32) -> Vec<u8> {
        let mut bytes = vec![0; block_size as usize];
        if self.seed != 0 {
            let used = &mut bytes[..self.len as usize];
            if self.seed % 2 == 1 {
                blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof().fill(used);
            } else {
                let pattern = self.seed.to_le_bytes();
                used.iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern[at % 4]);
            }
        }
        bytes
    }
}

/// A disk as a list of contents, with the digests that go with them.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) geometry: Geometry,
    pub(crate) blocks: Vec<Content>,
}

impl Disk {
    pub(crate) fn new(virtual_size: u64, block_size: u32) -> Self {
        let geometry = Geometry::new(virtual_size, block_size).unwrap();
        Self { geometry, blocks: vec![Content::default(); geometry.block_count() as usize] }
    }

    pub(crate) fn write(&mut self, block: usize, seed: u32) {
        let len = self.geometry.block_len(BlockIndex(block as u32)) as u32;
        self.blocks[block] = if seed == 0 { Content::default() } else { Content { seed, len } };
    }

    pub(crate) fn resize(&mut self, virtual_size: u64) {
        self.geometry = Geometry::new(virtual_size, self.geometry.block_size()).unwrap();
        self.blocks.resize(self.geometry.block_count() as usize, Content::default());
        if let Some(last) = self.blocks.len().checked_sub(1) {
            let len = self.geometry.block_len(BlockIndex(last as u32)) as u32;
            self.blocks[last].len = self.blocks[last].len.min(len);
        }
    }

    pub(crate) fn content(&self, block: usize) -> Content {
        self.blocks.get(block).copied().unwrap_or_default()
    }

    pub(crate) fn digest(&self, block: usize) -> Digest {
        block_digest(&self.content(block).bytes(self.geometry.block_size()))
    }

    pub(crate) fn group_digest(&self, group: usize) -> Digest {
        let zero = zero_block_digest(self.geometry.block_size());
        let mut digests = Box::new([zero; GROUP_BLOCKS as usize]);
        for (at, digest) in digests.iter_mut().enumerate() {
            let block = group * GROUP_BLOCKS as usize + at;
            if self.content(block).seed != 0 {
                *digest = self.digest(block);
            }
        }
        group_digest(&digests)
    }

    pub(crate) fn root(&self) -> Digest {
        let mut hasher = RootHasher::new(self.geometry);
        for group in 0..self.geometry.group_count() as usize {
            hasher.push(self.group_digest(group));
        }
        hasher.finish()
    }
}

/// Metadata of an archive called `id`, the child of `parent`.
pub(crate) fn metadata(
    id: u8,
    kind: Kind,
    geometry: Geometry,
    parent: Option<(&Metadata, Digest)>,
) -> Metadata {
    let archive_id = ArchiveId([id; 16]);
    Metadata {
        archive_id,
        point: format!("20261122T1538{id:03}Z"),
        domain: "web".into(),
        disk: "vda".into(),
        kind,
        tracker: Tracker::Scan,
        consistency: Consistency::Offline,
        created_ms: 1_795_361_903_000 + u64::from(id),
        geometry,
        frame_blocks: several_blocks(geometry.block_size()),
        parent: parent.map(|(parent, root)| Parent {
            domain: parent.domain.clone(),
            disk: parent.disk.clone(),
            point: parent.point.clone(),
            root,
        }),
        generator: "test".into(),
        extensions: Vec::new(),
    }
}

/// A span of several blocks also for blocks of 64 KiB, where a backup takes one.
fn several_blocks(block_size: u32) -> u32 {
    ((256 << 10) / block_size).clamp(1, 64)
}

/// The archive of what differs between `before` and `now`, as a backup writes it.
pub(crate) fn archive(metadata: &Metadata, before: &Disk, now: &Disk) -> Vec<u8> {
    let sink = Shared::default();
    let mut writer = Writer::new(Box::new(sink.clone()), metadata.clone(), None).unwrap();
    let block_size = now.geometry.block_size();
    let span = metadata.frame_blocks as usize;
    let mut compressor = Compressor::new(1).unwrap();
    let mut payload = Vec::new();
    for first in (0..now.blocks.len()).step_by(span) {
        let (mut mask, mut raw, mut digests) = (0u64, Vec::new(), Vec::new());
        for block in first..now.blocks.len().min(first + span) {
            if now.content(block) == before.content(block) {
                continue;
            }
            if now.content(block).seed == 0 {
                writer.mark_zero(block as u64..block as u64 + 1).unwrap();
            } else {
                mask |= 1 << (block - first);
                digests.push(now.digest(block));
                raw.extend(now.content(block).bytes(block_size));
            }
        }
        if mask != 0 {
            let codec = compressor.compress(&raw, &mut payload).unwrap();
            let payload = if codec == Codec::Stored { &raw } else { &payload };
            writer.write_frame(BlockIndex(first as u32), mask, codec, payload, &digests).unwrap();
        }
    }
    for group in 0..now.geometry.group_count() as usize {
        let blocks = group * GROUP_BLOCKS as usize..(group + 1) * GROUP_BLOCKS as usize;
        if blocks.into_iter().any(|block| now.content(block) != before.content(block)) {
            writer.set_group(GroupIndex(group as u32), now.group_digest(group)).unwrap();
        }
    }
    writer.finish(now.root()).unwrap();
    sink.bytes()
}

/// A full of a small disk that has both kinds of frames, a partial span and a short last block.
pub(crate) fn small_full() -> (Metadata, Disk, Vec<u8>) {
    let mut disk = Disk::new(1100 * 4096 + 512, 4096);
    for (block, seed) in [(0, 2), (1, 4), (63, 6), (200, 1), (1024, 8), (1100, 10)] {
        disk.write(block, seed);
    }
    let metadata = metadata(1, Kind::Full, disk.geometry, None);
    let empty = Disk::new(disk.geometry.virtual_size(), 4096);
    let bytes = archive(&metadata, &empty, &disk);
    (metadata, disk, bytes)
}

/// What follows [`small_full`] in the golden chain: changed blocks, zeros, and a shorter disk.
pub(crate) fn small_incremental(full: &Metadata, before: &Disk) -> (Metadata, Disk, Vec<u8>) {
    let mut disk = before.clone();
    for (block, seed) in [(1, 0), (64, 3), (200, 12)] {
        disk.write(block, seed);
    }
    disk.resize(1000 * 4096 + 1024);
    let metadata = metadata(2, Kind::Incremental, disk.geometry, Some((full, before.root())));
    let bytes = archive(&metadata, before, &disk);
    (metadata, disk, bytes)
}
