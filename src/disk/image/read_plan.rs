//! The stage between an image's extents and the workers: which bytes to read into which part of a
//! buffer, which parts are zero, and which are compressed clusters for a worker to unpack.

use std::ops::Range;
use std::sync::Arc;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::Inflater;
use crate::disk::image::extent::{CompressedCluster, Extent, FileIndex, Source};
use crate::disk::io::{ReadAt, Segment};

/// How the bytes of ranges of the disk get into one buffer.
#[derive(Debug, Default)]
pub struct ReadPlan {
    /// What to read from the image's files, straight into the buffer.
    pub segments: Vec<Segment>,
    /// What to fill with zeros.
    pub zeros: Vec<Range<usize>>,
    /// What to decompress, and into which part of the buffer.
    pub compressed: Vec<(Range<usize>, CompressedCluster)>,
}

impl ReadPlan {
    /// Adds what fills `len` bytes of the buffer from `at` on with `range` of the disk, which
    /// `extents` cover in order; the surplus becomes zero. Gives how many bytes that reads from the
    /// image's files.
    pub fn add(&mut self, extents: &[Extent], range: &Range<u64>, at: usize, len: usize) -> u64 {
        let mut filled = at;
        let mut bytes = 0;
        let first = extents.partition_point(|extent| extent.range().end <= range.start);
        for extent in extents.iter().skip(first) {
            if extent.guest_offset >= range.end {
                break;
            }
            let start = extent.guest_offset.max(range.start);
            let end = extent.range().end.min(range.end);
            let skipped = start - extent.guest_offset;
            // Both lie within the range, which is no longer than the buffer.
            let part = at + (start - range.start) as usize..at + (end - range.start) as usize;
            filled = part.end;
            match extent.source {
                Source::Unallocated | Source::Zero { .. } => self.zeros.push(part),
                Source::Data { file, host_offset } => {
                    bytes += part.len() as u64;
                    self.segments.push(Segment {
                        file: usize::from(file.0),
                        offset: host_offset + skipped,
                        range: part,
                    });
                }
                Source::Compressed(cluster) => {
                    bytes += u64::from(cluster.compressed_len);
                    self.compressed.push((
                        part,
                        CompressedCluster {
                            offset_in_cluster: cluster.offset_in_cluster + skipped as u32,
                            ..cluster
                        },
                    ));
                }
            }
        }
        if filled < at + len {
            self.zeros.push(filled..at + len);
        }
        bytes
    }

    /// Whether there is nothing to read: all of it is zero.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.compressed.is_empty()
    }
}

/// Reads compressed clusters; one for each worker.
pub struct ClusterReader {
    files: Vec<Arc<dyn ReadAt>>,
    inflater: Inflater,
    input: Vec<u8>,
    /// The cluster that was unpacked last: a range that shows two parts of it needs it twice.
    cluster: Vec<u8>,
    held: Option<(FileIndex, u64)>,
}

impl ClusterReader {
    /// One that reads from `files`, the image's.
    pub fn new(files: Vec<Arc<dyn ReadAt>>) -> Self {
        Self {
            files,
            inflater: Inflater::new(),
            input: Vec::new(),
            cluster: Vec::new(),
            held: None,
        }
    }

    /// Fills `out` with the part of `cluster` that begins at its `offset_in_cluster`.
    pub fn fill(&mut self, cluster: &CompressedCluster, out: &mut [u8]) -> Result<()> {
        if self.held != Some((cluster.file, cluster.host_offset)) {
            self.held = None;
            self.unpack(cluster)?;
            self.held = Some((cluster.file, cluster.host_offset));
        }
        let start = cluster.offset_in_cluster as usize;
        let part = self.cluster.get(start..start + out.len()).ok_or_else(|| {
            Error::new(ErrorKind::Image, "a compressed cluster is shorter than its extent")
        })?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn unpack(&mut self, cluster: &CompressedCluster) -> Result<()> {
        let store = self.files.get(usize::from(cluster.file.0)).ok_or_else(|| {
            Error::new(ErrorKind::Image, "an extent names a file that the image does not have")
        })?;
        let path = store.path();
        let what = || format!("compressed cluster at host offset {:#x}", cluster.host_offset);
        let len = store.len().map_err(|source| Error::io("find the length of", path, source))?;
        // The descriptor counts whole sectors; the last cluster's may reach past the end.
        let available = len.saturating_sub(cluster.host_offset);
        let count = available.min(u64::from(cluster.compressed_len)) as usize;
        self.input.resize(count, 0);
        store
            .read_exact_at(&mut self.input, cluster.host_offset)
            .map_err(|source| Error::io(format!("read the {} of", what()), path, source))?;
        self.cluster.resize(cluster.cluster_size as usize, 0);
        self.inflater
            .inflate(cluster.compression, &self.input, &mut self.cluster)
            .map_err(|error| error.within(format!("{}: {}", path.display(), what())))
    }
}
