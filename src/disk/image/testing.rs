//! Makes small images for tests, without QEMU: the structures come from `formats`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qdelta_formats::qcow2::{
    ClusterSize, CompressedDescriptor, CompressionType, Header, HostOffset, Incompatible, L1Entry,
    L2Format, Mapping, SubclusterMap, Table, Version,
};

use super::{Image, Inflater, Mapper};
use crate::base::error::Result;
use crate::disk::image::extent::{Extent, Source};

/// What a test puts into a guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    Zero,
    ZeroWithPlace,
    Data(u8),
    Compressed(u8),
    /// Bits of allocated subclusters, bits of zero ones, and the data.
    Subclusters(u32, u32, u8),
}

/// A qcow2 image to be made.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) bits: u32,
    pub(super) extended: bool,
    pub(super) version: Version,
    pub(super) compression: CompressionType,
    pub(super) virtual_size: u64,
    /// One for each guest cluster from the start; nothing in the others.
    pub(super) clusters: Vec<Content>,
    /// Name and format of the backing file.
    pub(super) backing: Option<(String, Option<&'static str>)>,
}

impl Recipe {
    pub(super) fn new(bits: u32, clusters: Vec<Content>) -> Self {
        Self {
            bits,
            extended: false,
            version: Version::V3,
            compression: CompressionType::Deflate,
            virtual_size: (clusters.len() as u64) << bits,
            clusters,
            backing: None,
        }
    }

    pub(super) fn over(mut self, name: &str, format: &'static str) -> Self {
        self.backing = Some((name.to_owned(), Some(format)));
        self
    }

    fn cluster(&self) -> ClusterSize {
        ClusterSize::from_bits(self.bits).unwrap()
    }

    /// The header of the image: refcount table in cluster 1, L1 table from cluster 2 on.
    pub(super) fn header(&self) -> Header {
        let cluster = self.cluster();
        let entry_size = if self.extended { 16 } else { 8 };
        let coverage = cluster.bytes() / entry_size * cluster.bytes();
        let l1 = Table {
            offset: HostOffset(2 * cluster.bytes()),
            entries: self.virtual_size.div_ceil(coverage) as u32,
        };
        let refcounts = Table { offset: HostOffset(cluster.bytes()), entries: 1 };
        let mut header = Header::new(cluster, self.virtual_size, l1, refcounts).unwrap();
        header.version = self.version;
        header.compression = self.compression;
        header.extensions.feature_names.clear();
        if self.extended {
            header.incompatible = header.incompatible.with(Incompatible::EXTENDED_L2);
        }
        if self.compression == CompressionType::Zstd {
            header.incompatible = header.incompatible.with(Incompatible::COMPRESSION);
        }
        if let Some((name, format)) = &self.backing {
            header.backing_name = Some(name.clone().into_bytes());
            header.extensions.backing_format = format.map(|format| format.into());
        }
        header
    }

    /// The bytes of the image.
    pub(super) fn build(&self) -> Vec<u8> {
        self.build_with(self.header())
    }

    /// The bytes of the image with another header, whose tables lie where the recipe has them.
    pub(super) fn build_with(&self, header: Header) -> Vec<u8> {
        let cluster = self.cluster();
        let format = L2Format::of(&header);
        let l1_len = cluster.count(u64::from(header.l1.entries) * 8) as usize * cluster.len();
        let mut file = header.encode().unwrap();
        file.resize(header.l1.offset.0 as usize + l1_len, 0);
        let per_table = format.entries_per_table() as usize;
        for (index, contents) in self.clusters.chunks(per_table).enumerate() {
            if contents.iter().all(|content| *content == Content::Nothing) {
                continue;
            }
            let table = align(&mut file, cluster);
            file.resize(table + cluster.len(), 0);
            for (number, content) in contents.iter().enumerate() {
                let mapping = self.store(&mut file, *content);
                let entry = format.encode(mapping, true).unwrap();
                let at = table + number * format.entry_size();
                file[at..at + format.entry_size()].copy_from_slice(&entry[..format.entry_size()]);
            }
            let at = header.l1.offset.0 as usize + index * 8;
            let entry = L1Entry::new(Some(HostOffset(table as u64)), true);
            file[at..at + 8].copy_from_slice(&entry.to_bytes());
        }
        align(&mut file, cluster);
        file
    }

    /// Appends the bytes of a cluster to the file.
    fn store(&self, file: &mut Vec<u8>, content: Content) -> Mapping {
        let cluster = self.cluster();
        let mut place = |seed: Option<u8>| {
            let at = align(file, cluster);
            match seed {
                Some(seed) => file.extend(pattern(seed, cluster.len())),
                // What is reserved for zeros may hold anything.
                None => file.resize(at + cluster.len(), 0xee),
            }
            HostOffset(at as u64)
        };
        match content {
            Content::Nothing => Mapping::Unallocated,
            Content::Zero => Mapping::Zero { host: None },
            Content::ZeroWithPlace => Mapping::Zero { host: Some(place(None)) },
            Content::Data(seed) => Mapping::Data { host: place(Some(seed)) },
            Content::Subclusters(allocated, zero, seed) => {
                let host = (allocated != 0).then(|| place(Some(seed)));
                Mapping::Subclusters(SubclusterMap { host, allocated, zero })
            }
            Content::Compressed(seed) => {
                // Not aligned, and right behind the one before.
                let host = HostOffset(file.len() as u64);
                let bytes: Vec<u8> = pattern(seed, cluster.len()).collect();
                let compressed = self.compress(&bytes);
                file.extend(&compressed);
                let len = compressed.len() as u32;
                Mapping::Compressed(CompressedDescriptor { host, len })
            }
        }
    }

    fn compress(&self, bytes: &[u8]) -> Vec<u8> {
        match self.compression {
            CompressionType::Zstd => zstd::bulk::compress(bytes, 1).unwrap(),
            CompressionType::Deflate => {
                let level = libdeflater::CompressionLvl::default();
                let mut compressor = libdeflater::Compressor::new(level);
                let mut out = vec![0; compressor.deflate_compress_bound(bytes.len())];
                let len = compressor.deflate_compress(bytes, &mut out).unwrap();
                out.truncate(len);
                out
            }
        }
    }

    /// The bytes of the disk, where this image's own clusters decide them.
    pub(super) fn model(&self) -> Vec<Option<u8>> {
        let cluster = self.cluster().len();
        let mut disk = Vec::new();
        for content in &self.clusters {
            let part = match *content {
                Content::Nothing => vec![None; cluster],
                Content::Zero | Content::ZeroWithPlace => vec![Some(0); cluster],
                Content::Data(seed) | Content::Compressed(seed) => {
                    pattern(seed, cluster).map(Some).collect()
                }
                Content::Subclusters(allocated, zero, seed) => pattern(seed, cluster)
                    .enumerate()
                    .map(|(at, byte)| {
                        let subcluster = at / (cluster / 32);
                        if allocated >> subcluster & 1 != 0 {
                            Some(byte)
                        } else {
                            (zero >> subcluster & 1 != 0).then_some(0)
                        }
                    })
                    .collect(),
            };
            disk.extend(part);
        }
        disk.resize(self.virtual_size as usize, None);
        disk
    }
}

/// Fills the file up to where a cluster starts, and gives its new length.
fn align(file: &mut Vec<u8>, cluster: ClusterSize) -> usize {
    let len = file.len().next_multiple_of(cluster.len());
    file.resize(len, 0);
    len
}

/// Bytes that differ from sector to sector and within one.
pub(super) fn pattern(seed: u8, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |at| (at / 512 * 7 + at % 251) as u8 ^ seed | 1)
}

/// Writes `bytes` to the file `name` in `folder`, with holes where there are zeros.
pub(super) fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, index as u64 * 4096).unwrap();
        }
    }
    path
}

/// Reads a range of the disk through the mapper, and checks what a mapper promises.
pub(super) fn read(
    image: &Image,
    mapper: &mut Mapper,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>> {
    let mut extents = Vec::new();
    mapper.extents(range.clone(), &mut extents)?;
    let mut out = Vec::new();
    for extent in &extents {
        assert_eq!(extent.guest_offset, range.start + out.len() as u64, "a gap");
        assert!(extent.len > 0);
        assert!(usize::from(extent.depth) < image.layers().len());
        append(image, extent, &mut out)?;
    }
    assert_eq!(out.len() as u64, range.end - range.start, "the range is not covered");
    for pair in extents.windows(2) {
        assert!(!is_one(&pair[0], &pair[1]), "{pair:?} should be one extent");
    }
    Ok(out)
}

fn is_one(one: &Extent, next: &Extent) -> bool {
    let source = match one.source {
        Source::Data { file, host_offset } => {
            Source::Data { file, host_offset: host_offset + one.len }
        }
        Source::Zero { host_offset: Some(host) } => {
            Source::Zero { host_offset: Some(host + one.len) }
        }
        Source::Compressed(_) => return false,
        other => other,
    };
    one.depth == next.depth && next.source == source
}

fn append(image: &Image, extent: &Extent, out: &mut Vec<u8>) -> Result<()> {
    let len = extent.len as usize;
    match extent.source {
        Source::Unallocated | Source::Zero { .. } => out.resize(out.len() + len, 0),
        Source::Data { file, host_offset } => {
            let start = out.len();
            out.resize(start + len, 0);
            let store = &image.files()[usize::from(file.0)];
            store.read_exact_at(&mut out[start..], host_offset).unwrap();
        }
        Source::Compressed(cluster) => {
            let mut compressed = vec![0; cluster.compressed_len as usize];
            let store = &image.files()[usize::from(cluster.file.0)];
            store.read_exact_at(&mut compressed, cluster.host_offset).unwrap();
            let mut bytes = vec![0; cluster.cluster_size as usize];
            Inflater::new().inflate(cluster.compression, &compressed, &mut bytes)?;
            let start = cluster.offset_in_cluster as usize;
            out.extend(&bytes[start..start + len]);
        }
    }
    Ok(())
}
