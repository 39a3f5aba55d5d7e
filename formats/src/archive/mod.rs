//! The delta archive: header, frames, index, footer. `docs/archive-format.md` says why.
//!
//! Everything here is a pure function of bytes. The archive is `header, frame*, index, footer`,
//! without gaps; every byte is covered by a CRC-32.

pub mod bitmap;
mod digest;
pub mod footer;
pub mod frame;
mod geometry;
pub mod header;
mod hex;
mod id;
pub mod index;
mod layout;
mod mask;
mod metadata;
mod names;
pub mod summary;

pub use digest::{
    DIGEST_LEN, Digest, DigestRules, GROUP_CONTEXT, ROOT_CONTEXT, RootHasher, block_digest,
    group_digest, zero_block_digest, zero_group_digest,
};
pub use footer::{FOOTER_LEN, Footer};
pub use frame::{
    Codec, FRAME_HEADER_LEN, FRAME_LEN_MAX, FRAME_SPAN, FrameHeader, FrameView,
    MAGIC as FRAME_MAGIC, frame_blocks,
};
pub use geometry::{BlockIndex, GROUP_BLOCKS, Geometry, GroupIndex};
pub use id::ArchiveId;
pub use index::{Directory, FRAME_ENTRY_LEN, FrameEntry, Section, SectionKind};
pub use layout::Field;
pub use mask::Mask;
pub use metadata::{EXTENSION_REQUIRED, METADATA_LEN_MAX, Metadata, NAME_LEN_MAX, Parent};
pub use names::{Consistency, Kind, Tracker};
pub use summary::Summary;

#[cfg(test)]
mod document;
#[cfg(test)]
mod samples;
