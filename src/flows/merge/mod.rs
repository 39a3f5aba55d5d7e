//! Merging: archives that follow each other become one, which stands for the last of them. Of each
//! block the newest version stays; frames whose blocks all stand are copied as they are.

mod data_path;
mod estimate;
mod walk;

use qdelta_formats::archive::{ArchiveId, Metadata};

use crate::base::cancel::Cancel;
use crate::base::error::Result;
use crate::base::observer::Observer;
use crate::disk::flow::pipeline::Resources;
use crate::vault::archive::{Summary, Writer};
use crate::vault::chain::Stretch;

pub use estimate::{Estimate, estimate};

/// How to merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The zstd level of frames that are packed anew.
    pub level: i32,
    /// Threads and I/O.
    pub resources: Resources,
}

/// What the header of the merged archive says: it is of the newest point, and made against the parent
/// of the oldest.
fn metadata_of(stretch: &Stretch, id: ArchiveId) -> Metadata {
    let (oldest, newest) = (stretch.oldest().metadata(), stretch.newest().metadata());
    Metadata {
        archive_id: id,
        kind: oldest.kind,
        parent: oldest.parent.clone(),
        generator: concat!("qdelta ", env!("CARGO_PKG_VERSION")).to_owned(),
        extensions: Vec::new(),
        ..newest.clone()
    }
}

#[cfg(test)]
mod tests;
