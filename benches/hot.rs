//! The hot loops, one by one: decoding L2 entries, the zero test, digests, frames in and out, which
//! archive of a chain owns what, and the sets of blocks. `cargo bench --bench hot`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use qdelta::disk::io::FileStore;
use qdelta::formats::archive::{
    ArchiveId, BlockIndex, Codec, Consistency, Digest, GROUP_BLOCKS, Geometry, GroupIndex, Kind,
    Metadata, Parent, RootHasher, Tracker, block_digest, group_digest, index,
};
use qdelta::formats::qcow2::{
    ClusterSize, GuestOffset, Header, HostOffset, L2Format, Mapping, Table,
};
use qdelta::vault::archive::{Reader, Writer};
use qdelta::vault::chain::Chain;
use qdelta::vault::codec::{Compressor, Decompressor};
use qdelta::vault::frames::pack::{Packer, is_zero};
use roaring::RoaringBitmap;

const BLOCK: usize = 65_536;

/// The bytes of this program: a mix of code, tables and text, as disks have it.
fn real_bytes(len: usize) -> Vec<u8> {
    let program = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    program.into_iter().cycle().skip(1 << 20).take(len).collect()
}

fn l2_decode(criterion: &mut Criterion) {
    let cluster = ClusterSize::from_bits(16).expect("16 is a size that qcow2 has");
    let table = |first: u64| Table { offset: HostOffset(first << 16), entries: 1 };
    let header = Header::new(cluster, 1 << 40, table(1), table(2)).or_else(|_| {
        let l1 = Table { offset: HostOffset(1 << 16), entries: 2048 };
        Header::new(cluster, 1 << 40, l1, table(3))
    });
    let format = L2Format::of(&header.expect("a header like any other"));
    let entries: Vec<u8> = (0..8192_u64)
        .flat_map(|entry| {
            let mapping = match entry % 8 {
                0 => Mapping::Unallocated,
                1 => Mapping::Zero { host: None },
                _ => Mapping::Data { host: HostOffset((entry + 10) << 16) },
            };
            let bytes = format.encode(mapping, true).expect("these can be expressed");
            bytes.into_iter().take(8).collect::<Vec<u8>>()
        })
        .collect();
    let mut group = criterion.benchmark_group("l2");
    group.throughput(Throughput::Elements(8192));
    group.bench_function("decode a table of 8192 entries", |bencher| {
        bencher.iter(|| {
            let mut data = 0_u64;
            for (number, entry) in entries.chunks_exact(8).enumerate() {
                let guest = GuestOffset((number as u64) << 16);
                if let Ok(Mapping::Data { .. }) = format.decode(entry, guest, HostOffset(0)) {
                    data += 1;
                }
            }
            black_box(data)
        });
    });
    group.finish();
}

fn blocks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block of 64 KiB");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let (zeros, bytes) = (vec![0; BLOCK], real_bytes(BLOCK));
    group.bench_function("zero test, zeros", |bencher| bencher.iter(|| is_zero(black_box(&zeros))));
    group.bench_function("zero test, data", |bencher| bencher.iter(|| is_zero(black_box(&bytes))));
    group.bench_function("digest", |bencher| bencher.iter(|| block_digest(black_box(&bytes))));
    group.finish();
    let mut group = criterion.benchmark_group("digest of a group");
    let digests = [Digest([7; 32]); GROUP_BLOCKS as usize];
    group.bench_function("from its blocks'", |bencher| {
        bencher.iter(|| group_digest(black_box(&digests)));
    });
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let bytes = real_bytes(16 * BLOCK);
    let mut group = criterion.benchmark_group("frame of 64 KiB");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for level in [-1, 1, 3] {
        group.bench_with_input(
            BenchmarkId::new("encode, level", level),
            &level,
            |bencher, level| {
                let mut compressor = Compressor::new(*level).expect("zstd has the level");
                let mut out = Vec::new();
                bencher.iter(|| {
                    for frame in bytes.chunks(BLOCK) {
                        let _ = black_box(compressor.compress(frame, &mut out));
                    }
                });
            },
        );
    }
    let mut compressor = Compressor::new(1).expect("zstd has the level");
    let payloads: Vec<(Codec, Vec<u8>)> = bytes
        .chunks(BLOCK)
        .map(|frame| {
            let mut out = Vec::new();
            let codec = compressor.compress(frame, &mut out).expect("there is memory");
            (codec, if codec == Codec::Stored { frame.to_vec() } else { out })
        })
        .collect();
    let (mut decompressor, mut out) =
        (Decompressor::new().expect("there is memory"), vec![0; BLOCK]);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            for (codec, payload) in &payloads {
                let _ = black_box(decompressor.decompress(*codec, payload, &mut out));
            }
        });
    });
    group.bench_function("pack: zero test, digest, encode", |bencher| {
        let mut packer = Packer::new(BLOCK as u32, 1, 1).expect("zstd has the level");
        let all = 0..16;
        let runs = std::slice::from_ref(&all);
        bencher.iter(|| {
            black_box(packer.pack(0..16, runs, &bytes, None).map(|packed| packed.payloads.len()))
                .ok()
        });
    });
    group.finish();
}

/// What an archive of the chain below stores: every block of a full, 1 % of them in an increment.
fn touched(number: u32, blocks: u32) -> Vec<u32> {
    if number == 0 {
        return (0..blocks).collect();
    }
    let mut chosen: Vec<u32> = (0..blocks / 100)
        .map(|index| (index.wrapping_mul(2_654_435_761) ^ number.wrapping_mul(40_503)) % blocks)
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// A full of `blocks` blocks and so many increments of 1 %. The frames hold nothing that decodes.
fn chain_of(folder: &std::path::Path, blocks: u32, increments: u32) -> qdelta::Result<Chain> {
    let geometry = Geometry::new(u64::from(blocks) * BLOCK as u64, BLOCK as u32)
        .map_err(|error| qdelta::Error::new(qdelta::ErrorKind::Usage, "geometry").because(error))?;
    let mut digests = vec![Digest([0; 32]); blocks as usize];
    let mut archives: Vec<Arc<Reader>> = Vec::new();
    for number in 0..=increments {
        let id = ArchiveId([number as u8 + 1; 16]);
        let metadata = Metadata {
            archive_id: id,
            point: format!("{number:04}"),
            domain: "bench".into(),
            disk: "disk".into(),
            kind: if number == 0 { Kind::Full } else { Kind::Incremental },
            tracker: Tracker::Scan,
            consistency: Consistency::Offline,
            created_ms: 1,
            geometry,
            frame_blocks: 1,
            parent: archives.last().map(|parent| Parent {
                domain: parent.metadata().domain.clone(),
                disk: parent.metadata().disk.clone(),
                point: parent.metadata().point.clone(),
                root: parent.root(),
            }),
            generator: "bench".into(),
            extensions: Vec::new(),
        };
        let path = folder.join(number.to_string());
        let file = std::fs::File::create(&path)
            .map_err(|error| qdelta::Error::io("create", &path, error))?;
        let mut writer = Writer::new(Box::new(file), metadata, None)?;
        let stored = touched(number, blocks);
        for &block in &stored {
            let digest = block_digest(&[block.to_le_bytes(), number.to_le_bytes()].concat());
            if let Some(place) = digests.get_mut(block as usize) {
                *place = digest;
            }
            writer.write_frame(BlockIndex(block), 1, Codec::Zstd, &[0; 16], &[digest])?;
        }
        let mut root = RootHasher::new(geometry);
        let mut changed: Vec<u32> = stored.iter().map(|block| block / GROUP_BLOCKS).collect();
        changed.dedup();
        for (group, members) in (0..).zip(digests.chunks_exact(GROUP_BLOCKS as usize)) {
            let members = members.try_into().map(group_digest).unwrap_or(Digest([0; 32]));
            root.push(members);
            if changed.contains(&group) {
                writer.set_group(GroupIndex(group), members)?;
            }
        }
        writer.finish(root.finish())?;
        let file =
            std::fs::File::open(&path).map_err(|error| qdelta::Error::io("open", &path, error))?;
        archives.push(Arc::new(Reader::open(Arc::new(FileStore::new(file, &path)))?));
    }
    Chain::new(archives)
}

fn chains(criterion: &mut Criterion) {
    let blocks = 16_384;
    let mut group = criterion.benchmark_group("chain of a 1 GiB disk");
    group.throughput(Throughput::Elements(u64::from(blocks)));
    group.sample_size(20);
    for increments in [0, 10, 100] {
        let folder = tempfile::tempdir().expect("a place for temporary files");
        let chain = chain_of(folder.path(), blocks, increments).expect("a chain like any other");
        let name = BenchmarkId::new("who owns each block, increments", increments);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut cursor = chain.cursor();
                let groups = (0..chain.geometry().group_count()).map(GroupIndex);
                groups
                    .map(|group| cursor.seek(group).map_or(0, |state| state.frames().len()))
                    .sum::<usize>()
            });
        });
    }
    group.finish();
}

fn sets(criterion: &mut Criterion) {
    let scattered: RoaringBitmap = (0..1 << 20).filter(|block| block % 97 == 3).collect();
    let mut together = RoaringBitmap::new();
    together.insert_range(1000..900_000);
    let mut group = criterion.benchmark_group("set of blocks of a 64 GiB disk");
    group.bench_function("encode", |bencher| {
        bencher.iter(|| index::encode_bitmap(black_box(scattered.clone())));
    });
    group.bench_function("newest wins: (a - b) | b", |bencher| {
        bencher.iter(|| {
            let mut owned = together.clone();
            owned -= black_box(&scattered);
            owned |= black_box(&scattered);
            owned
        });
    });
    group.bench_function("walk", |bencher| {
        bencher.iter(|| black_box(&scattered).iter().map(u64::from).sum::<u64>());
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for bench in [l2_decode, blocks, frames, chains, sets] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
