//! What a file is: an image or an archive.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use qdelta_formats::archive::{ArchiveId, Consistency, Digest, Kind, Metadata, Tracker};
use serde::{Deserialize, Serialize};

use crate::base::json::text;
use crate::disk::image::ImageInfo;
use crate::vault::archive::Reader;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FileReport {
    /// A delta archive.
    Archive(Box<ArchiveReport>),
    /// An image of a disk.
    Image(Box<ImageInfo>),
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveReport {
    /// The file.
    #[serde(serialize_with = "crate::base::json::serialize")]
    pub path: PathBuf,
    /// Whether it was finished, and its end is sound.
    pub sealed: bool,
    /// Its id.
    #[serde(with = "text")]
    pub archive_id: ArchiveId,
    /// The point that it is of.
    pub point: String,
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Against what it was made.
    #[serde(with = "text")]
    pub kind: Kind,
    /// How the changed blocks were found.
    #[serde(with = "text")]
    pub tracker: Tracker,
    /// In what state the guest was.
    #[serde(with = "text")]
    pub consistency: Consistency,
    /// When it was made.
    #[serde(with = "text")]
    pub created: Timestamp,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Size of a block, in bytes.
    pub block_size: u32,
    /// What it was made against; none for a full.
    pub parent: Option<ParentReport>,
    /// The program that made it, with its version.
    pub generator: String,
    /// Length of the file, in bytes.
    pub file_length: u64,
    /// What only the index of a sealed archive tells. Left out of others.
    #[serde(flatten)]
    pub contents: Option<ArchiveContents>,
}

/// What an archive was made against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentReport {
    /// The disk, as `domain/disk`.
    pub disk: String,
    /// Its point.
    pub point: String,
    /// Digest of what the guest saw then.
    #[serde(with = "text")]
    pub root: Digest,
}

/// What is in a sealed archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveContents {
    /// Digest of what the guest sees.
    #[serde(with = "text")]
    pub root: Digest,
    /// Blocks that are stored.
    pub stored_blocks: u64,
    /// Blocks that are zero, and were not in the parent.
    pub zeroed_blocks: u64,
    /// Frames that hold the blocks.
    pub frames: u64,
    /// Length of all frames, in bytes.
    pub payload_bytes: u64,
}

impl ArchiveReport {
    /// What is known of an archive: its header, and what its index tells if it is sealed.
    pub fn new(
        path: &Path,
        metadata: &Metadata,
        file_length: u64,
        reader: Option<&Reader>,
    ) -> Self {
        let created = i64::try_from(metadata.created_ms).ok();
        let created = created.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Self {
            path: path.to_owned(),
            sealed: reader.is_some(),
            archive_id: metadata.archive_id,
            point: metadata.point.clone(),
            disk: format!("{}/{}", metadata.domain, metadata.disk),
            kind: metadata.kind,
            tracker: metadata.tracker,
            consistency: metadata.consistency,
            created: created.unwrap_or(Timestamp::UNIX_EPOCH),
            virtual_size: metadata.geometry.virtual_size(),
            block_size: metadata.geometry.block_size(),
            parent: metadata.parent.as_ref().map(|parent| ParentReport {
                disk: format!("{}/{}", parent.domain, parent.disk),
                point: parent.point.clone(),
                root: parent.root,
            }),
            generator: metadata.generator.clone(),
            file_length,
            contents: reader.map(|reader| ArchiveContents {
                root: reader.root(),
                stored_blocks: reader.stored().len(),
                zeroed_blocks: reader.zero().len(),
                frames: reader.frame_count(),
                payload_bytes: reader.payload_bytes(),
            }),
        }
    }
}
