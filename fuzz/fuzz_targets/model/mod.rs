//! Archives in memory, and the simplest model of a disk: a list of blocks, each filled with one
//! byte.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use qdelta::disk::io::ReadAt;
use qdelta::formats::archive::{
    ArchiveId, BlockIndex, Codec, Consistency, Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind,
    Metadata, Parent, RootHasher, Tracker, block_digest, frame_blocks, group_digest,
};
use qdelta::vault::archive::Writer;
use qdelta::vault::codec::Compressor;

/// Size of a block in bytes.
pub const BLOCK: usize = 4096;

/// Bytes as a store that can only be read.
pub struct Bytes(pub Vec<u8>);

impl ReadAt for Bytes {
    fn path(&self) -> &Path {
        Path::new("memory")
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk: what each of its blocks is filled with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk(pub Vec<u8>);

impl Disk {
    pub fn geometry(&self) -> Geometry {
        Geometry::new((self.0.len() * BLOCK) as u64, BLOCK as u32).expect("a small disk")
    }

    /// What a block is filled with: zero past the end.
    pub fn at(&self, block: usize) -> u8 {
        self.0.get(block).copied().unwrap_or(0)
    }

    pub fn group_digest(&self, group: usize, digests: &[Digest; 256]) -> Digest {
        let mut blocks = Box::new([digests[0]; GROUP_BLOCKS as usize]);
        for (index, digest) in blocks.iter_mut().enumerate() {
            *digest = digests[usize::from(self.at(group * GROUP_BLOCKS as usize + index))];
        }
        group_digest(&blocks)
    }

    pub fn root(&self, digests: &[Digest; 256]) -> Digest {
        let mut hasher = RootHasher::new(self.geometry());
        for group in 0..self.geometry().group_count() as usize {
            hasher.push(self.group_digest(group, digests));
        }
        hasher.finish()
    }
}

/// The digest of a block filled with each byte.
pub fn digests() -> Box<[Digest; 256]> {
    let mut list = Box::new([Digest([0; 32]); 256]);
    for (byte, digest) in list.iter_mut().enumerate() {
        *digest = block_digest(&[byte as u8; BLOCK]);
    }
    list
}

/// The archive of what differs between `before` and `now`.
pub fn archive(metadata: &Metadata, before: &Disk, now: &Disk, digests: &[Digest; 256]) -> Vec<u8> {
    let sink = Sink::default();
    let mut writer = Writer::new(Box::new(sink.clone()), metadata.clone(), None).expect("a header");
    let mut compressor = Compressor::new(1).expect("a compressor");
    let span = frame_blocks(BLOCK as u32) as usize;
    let mut payload = Vec::new();
    for first in (0..now.0.len()).step_by(span) {
        let (mut mask, mut raw, mut stored) = (0u64, Vec::new(), Vec::new());
        for block in first..now.0.len().min(first + span) {
            match (now.at(block), before.at(block)) {
                (new, old) if new == old => {}
                (0, _) => writer.mark_zero(block as u64..block as u64 + 1).expect("a zero block"),
                (new, _) => {
                    mask |= 1 << (block - first);
                    stored.push(digests[usize::from(new)]);
                    raw.resize(raw.len() + BLOCK, new);
                }
            }
        }
        if mask != 0 {
            let codec = compressor.compress(&raw, &mut payload).expect("compression");
            let bytes = if codec == Codec::Stored { &raw } else { &payload };
            let first = BlockIndex(first as u32);
            writer.write_frame(first, mask, codec, bytes, &stored).expect("a frame");
        }
    }
    for group in 0..now.geometry().group_count() as usize {
        let (old, new) = (before.group_digest(group, digests), now.group_digest(group, digests));
        if old != new {
            writer.set_group(GroupIndex(group as u32), new).expect("a group");
        }
    }
    writer.finish(now.root(digests)).expect("an index");
    let bytes = sink.0.lock().expect("nobody panicked").clone();
    bytes
}

/// Metadata of the archive number `id`, after `parent` with its root.
pub fn metadata(id: u8, kind: Kind, now: &Disk, parent: Option<(&Metadata, Digest)>) -> Metadata {
    let archive_id = ArchiveId([id; 16]);
    Metadata {
        archive_id,
        point: format!("20261122T153823.{id:03}Z"),
        domain: "vm".into(),
        disk: "disk".into(),
        kind,
        tracker: Tracker::Scan,
        consistency: Consistency::Offline,
        created_ms: u64::from(id),
        geometry: now.geometry(),
        frame_blocks: frame_blocks(BLOCK as u32),
        parent: parent.map(|(parent, root)| Parent {
            domain: parent.domain.clone(),
            disk: parent.disk.clone(),
            point: parent.point.clone(),
            root,
        }),
        generator: "fuzz".into(),
        extensions: Vec::new(),
    }
}
