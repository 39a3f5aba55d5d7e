//! Makes chains of any length without an image: archives and manifests as a backup writes them,
//! every frame and every root right.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

use qdelta::formats::archive::{
    ArchiveId, BlockIndex, Codec, Consistency, Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind,
    Metadata, Parent, RootHasher, Tracker, block_digest, group_digest, zero_block_digest,
    zero_group_digest,
};
use qdelta::vault::archive::Writer;
use qdelta::vault::codec::Compressor;
use qdelta::vault::repository::storage::Wait;
use qdelta::vault::repository::{
    DiskId, DiskRecord, ImageRecord, Manifest, ParentRecord, PointId, Repository,
};

/// Any error: this program only prints errors.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// When the first point was made: the start of 2026.
const FIRST_MS: u64 = 1_767_225_600_000;

const HOUR_MS: u64 = 3_600_000;

/// A disk and the blocks that each of its points writes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub virtual_size: u64,
    pub block_size: u32,
    /// A point writes one block in so many, scattered over the disk.
    pub one_in: u64,
    /// The blocks that are ever written: one in so many. All others are zero at every point.
    pub hot_one_in: u64,
    /// The first point writes the whole disk.
    pub is_full_first: bool,
    /// How many different blocks there are at all, at most 255. Many points share few blocks on a
    /// huge disk so that a frame costs no compression.
    pub patterns: u8,
    /// The time from one point to the next.
    pub interval_ms: u64,
    /// A guest writes mostly to a third of its disk: nine of ten writes. Blocks do not compress.
    pub nights: bool,
}

impl Shape {
    /// A small disk for very long chains: 256 MiB, of which a point writes 16 blocks.
    pub const LINEAR: Self = Self {
        virtual_size: 256 << 20,
        block_size: 64 << 10,
        one_in: 256,
        hot_one_in: 1,
        is_full_first: false,
        patterns: 255,
        interval_ms: HOUR_MS,
        nights: false,
    };

    /// A disk of 256 MiB whose first point writes all blocks, and every other one 41.
    pub const READ: Self = Self { one_in: 100, is_full_first: true, ..Self::LINEAR };

    /// The largest disk: 16 TiB, of which a point writes 1 % of the blocks, one here and one there.
    /// One block is left out so that a raw image of the disk fits into a file of ext4.
    pub const CORNER: Self = Self {
        virtual_size: (16 << 40) - (64 << 10),
        block_size: 64 << 10,
        one_in: 100,
        hot_one_in: 50,
        is_full_first: false,
        patterns: 255,
        interval_ms: HOUR_MS,
        nights: false,
    };

    /// A disk of 32 MiB with a backup each night, of which 1 % have changed.
    pub const NIGHTS: Self = Self {
        virtual_size: 32 << 20,
        block_size: 16 << 10,
        one_in: 100,
        hot_one_in: 1,
        is_full_first: true,
        patterns: 255,
        interval_ms: 24 * HOUR_MS,
        nights: true,
    };
}

/// One content that a block may have.
struct Pattern {
    codec: Codec,
    payload: Vec<u8>,
    digest: Digest,
}

/// A disk in a repository whose chain grows point by point.
pub struct Generator {
    repository: Repository,
    disk: DiskId,
    shape: Shape,
    geometry: Geometry,
    patterns: Vec<Pattern>,
    zero: Digest,
    /// For each block its pattern, counted from 1; 0 if the block is zero.
    blocks: Vec<u8>,
    groups: Vec<Digest>,
    newest: Option<(Metadata, PointId, Digest)>,
    points: u64,
}

impl Generator {
    /// Makes the repository in the new folder `root`. Its disk is called `DOMAIN/vda`.
    pub fn new(root: &Path, domain: &str, shape: Shape) -> Outcome<Self> {
        std::fs::create_dir_all(root)?;
        Self::within(Repository::init(root)?, domain, shape)
    }

    /// A further disk, called `DOMAIN/vda`.
    pub fn within(repository: Repository, domain: &str, shape: Shape) -> Outcome<Self> {
        let geometry = Geometry::new(shape.virtual_size, shape.block_size)?;
        Ok(Self {
            repository,
            disk: DiskId { domain: domain.parse()?, disk: "vda".parse()? },
            shape,
            geometry,
            patterns: patterns(shape)?,
            zero: zero_block_digest(shape.block_size),
            blocks: vec![0; geometry.block_count() as usize],
            groups: vec![zero_group_digest(shape.block_size); geometry.group_count() as usize],
            newest: None,
            points: 0,
        })
    }

    /// The newest point and its root.
    pub fn newest(&self) -> Option<(PointId, Digest)> {
        self.newest.as_ref().map(|(_, point, root)| (*point, *root))
    }

    /// How many points there are.
    pub fn points(&self) -> u64 {
        self.points
    }

    /// Adds a point: a full first, then increments. Gives the blocks that it writes.
    pub fn add(&mut self) -> Outcome<Vec<u32>> {
        let point = PointId::from_ms(FIRST_MS + self.points * self.shape.interval_ms);
        let point = point.ok_or("no such time")?;
        let kind = if self.newest.is_none() { Kind::Full } else { Kind::Incremental };
        let metadata = self.metadata(point, kind)?;
        let lock = self.repository.lock(&self.disk.domain, Wait::UNHEARD)?;
        let pending = self.repository.begin(&lock, &self.disk, point, kind, metadata.archive_id)?;
        let sink = pending.writer();
        let mut writer = Writer::new(sink, metadata.clone(), pending.path().parent())?;
        let changed = self.choose();
        self.write(&mut writer, &changed)?;
        let touched = self.update_groups(&changed);
        let mut root = RootHasher::new(self.geometry);
        self.groups.iter().for_each(|group| root.push(*group));
        for group in touched {
            writer.set_group(GroupIndex(group), self.groups[group as usize])?;
        }
        let root = root.finish();
        let (_, summary) = writer.finish(root)?;
        let mut manifest = Manifest::new(point, self.disk.domain.clone(), Consistency::Offline);
        // Also where the point lies ahead of this machine's clock.
        manifest.created = point.time();
        manifest.disks.push(DiskRecord {
            disk: self.disk.disk.clone(),
            archive: pending.archive_name(),
            archive_id: metadata.archive_id,
            kind,
            tracker: metadata.tracker,
            parent: self.newest.as_ref().map(|(_, point, root)| ParentRecord {
                domain: self.disk.domain.clone(),
                disk: self.disk.disk.clone(),
                point: *point,
                root: *root,
            }),
            root,
            virtual_size: self.shape.virtual_size,
            block_size: self.shape.block_size,
            bytes_read: 0,
            bytes_changed: summary.stored_blocks * u64::from(self.shape.block_size),
            payload_bytes: summary.payload_bytes,
            bytes_written: summary.file_len,
            image: ImageRecord {
                path: "/nowhere/disk.raw".into(),
                format: qdelta::Format::Raw,
                layers: Vec::new(),
                boot: None,
            },
            bytes_sampled: 0,
            refused: Vec::new(),
            anchor: None,
            anchor_wanted: None,
            opening: None,
            snapshot: None,
        });
        pending.commit(&manifest)?;
        self.newest = Some((metadata, point, root));
        self.points += 1;
        Ok(changed)
    }

    fn metadata(&self, point: PointId, kind: Kind) -> Outcome<Metadata> {
        let archive_id = ArchiveId(fastrand::u128(1..).to_le_bytes());
        let parent = self.newest.as_ref();
        Ok(Metadata {
            archive_id,
            point: point.to_string(),
            domain: self.disk.domain.to_string(),
            disk: self.disk.disk.to_string(),
            kind,
            tracker: Tracker::Scan,
            consistency: Consistency::Offline,
            created_ms: point.as_ms(),
            geometry: self.geometry,
            frame_blocks: qdelta::formats::archive::frame_blocks(self.shape.block_size),
            parent: parent.map(|(parent, _, root)| Parent {
                domain: parent.domain.clone(),
                disk: parent.disk.clone(),
                point: parent.point.clone(),
                root: *root,
            }),
            generator: "benches/chains".into(),
            extensions: Vec::new(),
        })
    }

    /// The blocks that the next point writes, ascending.
    fn choose(&self) -> Vec<u32> {
        let Shape { one_in, hot_one_in, nights, .. } = self.shape;
        let count = self.geometry.block_count();
        if self.shape.is_full_first && self.points == 0 {
            return (0..count as u32).collect();
        }
        let name = self.disk.domain.as_str().len() as u64;
        let seed = if nights { mix(self.points ^ mix(name)) } else { mix(self.points) };
        if nights {
            let write = |number: u64| {
                let random = mix(seed ^ mix(number));
                let end = if random.is_multiple_of(10) { count } else { count / 3 };
                ((random >> 8) % end) as u32
            };
            let blocks: BTreeSet<u32> = (0..count / one_in).map(write).collect();
            return blocks.into_iter().collect();
        }
        let is_hot = |block: &u64| mix(*block).is_multiple_of(hot_one_in);
        let of_hot = one_in / hot_one_in;
        let is_written = |block: &u64| (mix(block ^ seed) >> 20).is_multiple_of(of_hot);
        let chosen = (0..count).filter(is_hot).filter(is_written);
        chosen.map(|block| block as u32).collect()
    }

    /// Gives the blocks their next pattern, and writes their frames.
    fn write(&mut self, writer: &mut Writer, changed: &[u32]) -> Outcome<()> {
        let span = qdelta::formats::archive::frame_blocks(self.shape.block_size);
        let mut compressor = Compressor::new(1)?;
        let (mut raw, mut payload) = (Vec::new(), Vec::new());
        for blocks in changed.chunk_by(|one, other| one / span == other / span) {
            let (mut mask, mut digests) = (0, Vec::with_capacity(blocks.len()));
            let first = blocks[0] - blocks[0] % span;
            raw.clear();
            for &block in blocks {
                let place = &mut self.blocks[block as usize];
                let number = self.points.wrapping_mul(31).wrapping_add(u64::from(block));
                let next = (number % u64::from(self.shape.patterns)) as u8 + 1;
                // A block that is written differs from what it was.
                *place = if next == *place { next % self.shape.patterns + 1 } else { next };
                digests.push(self.patterns[usize::from(*place) - 1].digest);
                mask |= 1 << (block - first);
                if blocks.len() > 1 {
                    raw.extend(bytes_of(*place, self.shape));
                }
            }
            let pattern = &self.patterns[usize::from(self.blocks[blocks[0] as usize]) - 1];
            let (codec, bytes) = match blocks {
                [_] => (pattern.codec, &pattern.payload),
                _ => match compressor.compress(&raw, &mut payload)? {
                    Codec::Stored => (Codec::Stored, &raw),
                    codec => (codec, &payload),
                },
            };
            writer.write_frame(BlockIndex(first), mask, codec, bytes, &digests)?;
        }
        Ok(())
    }

    /// Computes the digests of the groups of these blocks anew, on all processors; says which.
    fn update_groups(&mut self, changed: &[u32]) -> Vec<u32> {
        let mut touched: Vec<u32> = changed.iter().map(|block| block / GROUP_BLOCKS).collect();
        touched.dedup();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = touched.len().div_ceil(threads).max(1);
        let this = &*self;
        let digests: Vec<Digest> = std::thread::scope(|scope| {
            let parts: Vec<_> = touched
                .chunks(part)
                .map(|part| {
                    scope.spawn(move || {
                        part.iter().map(|group| this.group_digest(*group)).collect::<Vec<_>>()
                    })
                })
                .collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        });
        for (group, digest) in touched.iter().zip(digests) {
            self.groups[*group as usize] = digest;
        }
        touched
    }

    fn group_digest(&self, group: u32) -> Digest {
        let mut digests = [self.zero; GROUP_BLOCKS as usize];
        let blocks: Range<u64> = self.geometry.group_blocks(GroupIndex(group));
        let blocks = &self.blocks[blocks.start as usize..blocks.end as usize];
        for (digest, &block) in digests.iter_mut().zip(blocks) {
            if block != 0 {
                *digest = self.patterns[usize::from(block) - 1].digest;
            }
        }
        group_digest(&digests)
    }
}

/// All contents that blocks have but zeros.
fn patterns(shape: Shape) -> Outcome<Vec<Pattern>> {
    let mut compressor = Compressor::new(1)?;
    let pattern = |number| {
        let raw = bytes_of(number, shape);
        let mut payload = Vec::new();
        let codec = compressor.compress(&raw, &mut payload)?;
        let payload = if codec == Codec::Stored { raw.clone() } else { payload };
        Ok(Pattern { codec, payload, digest: block_digest(&raw) })
    };
    (1..=shape.patterns).map(pattern).collect()
}

fn bytes_of(pattern: u8, shape: Shape) -> Vec<u8> {
    let mut bytes = vec![pattern; shape.block_size as usize];
    if shape.nights {
        fastrand::Rng::with_seed(u64::from(pattern)).fill(&mut bytes);
    }
    bytes
}

/// A number that looks random and is always the same (splitmix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
