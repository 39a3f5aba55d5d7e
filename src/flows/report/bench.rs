//! What a measurement found.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::warning::Warning;
use crate::disk::io::Backend;

/// What a measurement found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The image.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub image: PathBuf,
    /// Where writing was measured.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub folder: PathBuf,
    /// Bytes of the image's data that were used.
    pub sample: u64,
    /// Worker threads.
    pub threads: usize,
    /// The zstd level of the whole data path.
    pub level: i32,
    /// Each stage alone, in the order of the data path.
    pub stages: Vec<StageReport>,
    /// The whole data path, out of the page cache and with nothing in it.
    pub pipelines: Vec<DataPathReport>,
    /// How the image was read: `uring` or `threads`.
    pub io: Backend,
    /// What the admin should know.
    pub warnings: Vec<Warning>,
    /// How long the measurement took.
    pub seconds: f64,
}

/// One stage alone, in one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Which one.
    pub stage: Stage,
    /// What the page cache had to do with it, for reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cached>,
    /// Bytes of one operation, for reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Operations at once, for reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Threads at once, for what the processors do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The zstd level, for compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// Bytes of data for each compressed byte, for compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Bytes a second.
    pub rate: f64,
}

/// The whole data path of a full backup, into a file that is synced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPathReport {
    /// Where the image was before: in the page cache, or not.
    pub cache: Cached,
    /// Bytes of the image a second.
    pub rate: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Processor time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// What the slowest stage alone would allow, in bytes of the image a second.
    pub bound: f64,
    /// Which stage that is.
    pub limit: Limit,
    /// The rate as a part of the bound.
    pub closeness: f64,
}

/// A stage of the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading the image.
    Read,
    /// Looking for blocks that are zero.
    ZeroScan,
    /// Computing digests.
    Hash,
    /// Compressing.
    Compress,
    /// Writing the archive.
    Write,
}

/// What the page cache had to do with reading or writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cached {
    /// A read past the page cache's content, but through the cache.
    Uncached,
    /// A read of what the page cache has.
    Cached,
    /// A read or write past the page cache.
    Direct,
    /// A write into the page cache, and then to the device.
    Buffered,
}

/// What limits the whole data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Reading the image.
    Read,
    /// The work of the processors: zero-scan, hash and compression on all threads.
    Compute,
    /// Writing the archive.
    Write,
}

impl Stage {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ZeroScan => "zero-scan",
            Self::Hash => "hash",
            Self::Compress => "compress",
            Self::Write => "write",
        }
    }
}

impl Cached {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uncached => "uncached",
            Self::Cached => "cached",
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

impl Limit {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compute => "compute",
            Self::Write => "write",
        }
    }
}
