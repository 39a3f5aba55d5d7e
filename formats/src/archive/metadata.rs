//! What an archive says about itself, and its encoding by `bincode`, which lives here alone.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use super::{ArchiveId, Consistency, Digest, Geometry, Kind, Tracker};
use crate::{FormatError, Problem};

/// The longest encoded metadata, in bytes.
pub const METADATA_LEN_MAX: usize = 64 << 10;

/// The longest name (point, domain, disk, generator), in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// The last millisecond of the year 9999.
const CREATED_MS_MAX: u64 = 253_402_300_799_999;

/// An extension with a tag below this may be ignored by who does not know it.
pub const EXTENSION_REQUIRED: u16 = 0x8000;

/// The recovery point that an archive was made against. It names no file: whatever archive holds
/// that point of that disk, with that root, is the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The domain of the parent's disk. Another one than the archive's own where a disk began as
    /// a copy of a template.
    pub domain: String,
    /// The parent's disk in that domain.
    pub disk: String,
    /// The recovery point of that disk.
    pub point: String,
    /// The point's root: the archive applies to the very bytes that have this root, and to no
    /// others.
    pub root: Digest,
}

/// What an archive says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Names this file and no other: random, drawn for each file that is written.
    pub archive_id: ArchiveId,
    /// The recovery point.
    pub point: String,
    /// Whose disk it is.
    pub domain: String,
    /// Which disk of the domain.
    pub disk: String,
    /// What the archive holds.
    pub kind: Kind,
    /// How the changed blocks were found.
    pub tracker: Tracker,
    /// What the guest was doing.
    pub consistency: Consistency,
    /// When the point was taken, in milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Size of the disk and of its blocks.
    pub geometry: Geometry,
    /// How many blocks the span of a frame has: see [`super::frame_blocks`].
    pub frame_blocks: u32,
    /// The point that this archive was made against: none for a full, and always there otherwise.
    pub parent: Option<Parent>,
    /// The program that wrote it.
    pub generator: String,
    /// What later versions add: tag and bytes.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// The metadata in the order of the file. Enums are one byte each.
#[derive(Encode, Decode)]
struct Wire {
    archive_id: [u8; 16],
    point: String,
    domain: String,
    disk: String,
    kind: u8,
    tracker: u8,
    consistency: u8,
    created_ms: u64,
    virtual_size: u64,
    block_size: u32,
    frame_blocks: u32,
    parent: Option<WireParent>,
    generator: String,
    extensions: Vec<(u16, Vec<u8>)>,
}

#[derive(Encode, Decode)]
struct WireParent {
    domain: String,
    disk: String,
    point: String,
    root: [u8; 32],
}

/// Fixed integers, so that the bytes can be explained in one line of the document; a limit, so
/// that a hostile length is an error and not an allocation.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<METADATA_LEN_MAX>> =
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<METADATA_LEN_MAX>();

impl Metadata {
    /// Checks everything that must hold among the fields.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn check(&self) -> Result<(), FormatError> {
        check_name("point", &self.point)?;
        check_name("domain", &self.domain)?;
        check_name("disk", &self.disk)?;
        check_name("generator", &self.generator)?;
        super::frame::check_frame_blocks(self.frame_blocks, self.geometry.block_size())
            .map_err(|words| invalid("frame blocks", words))?;
        if self.created_ms > CREATED_MS_MAX {
            return Err(FormatError::new(
                0,
                "created",
                Problem::OutOfRange { value: self.created_ms, min: 0, max: CREATED_MS_MAX },
            ));
        }
        match (&self.parent, self.kind) {
            (None, Kind::Full) => Ok(()),
            (None, _) => check("parent", false, "missing in an archive that is no full"),
            (Some(_), Kind::Full) => check("parent", false, "present in a full"),
            (Some(parent), _) => {
                check_name("parent domain", &parent.domain)?;
                check_name("parent disk", &parent.disk)?;
                check_name("parent point", &parent.point)?;
                let itself = (&parent.domain, &parent.disk, &parent.point)
                    == (&self.domain, &self.disk, &self.point);
                check("parent", !itself, "the archive's own point")
            }
        }
    }

    /// The encoded metadata.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let wire = Wire {
            archive_id: self.archive_id.0,
            point: self.point.clone(),
            domain: self.domain.clone(),
            disk: self.disk.clone(),
            kind: self.kind.to_byte(),
            tracker: self.tracker.to_byte(),
            consistency: self.consistency.to_byte(),
            created_ms: self.created_ms,
            virtual_size: self.geometry.virtual_size(),
            block_size: self.geometry.block_size(),
            frame_blocks: self.frame_blocks,
            parent: self.parent.as_ref().map(|parent| WireParent {
                domain: parent.domain.clone(),
                disk: parent.disk.clone(),
                point: parent.point.clone(),
                root: parent.root.0,
            }),
            generator: self.generator.clone(),
            extensions: self.extensions.clone(),
        };
        bincode::encode_to_vec(&wire, CONFIG)
            .map_err(|error| invalid("metadata", error.to_string()))
            .and_then(|bytes| {
                check("metadata", bytes.len() <= METADATA_LEN_MAX, "longer than 64 KiB")?;
                Ok(bytes)
            })
    }

    /// Decodes metadata that fills `bytes` exactly.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (wire, used): (Wire, usize) = bincode::decode_from_slice(bytes, CONFIG)
            .map_err(|error| invalid("metadata", error.to_string()))?;
        check("metadata", used == bytes.len(), "bytes are left over at its end")?;
        let metadata = Self {
            archive_id: ArchiveId(wire.archive_id),
            point: wire.point,
            domain: wire.domain,
            disk: wire.disk,
            kind: Kind::from_byte(wire.kind)?,
            tracker: Tracker::from_byte(wire.tracker)?,
            consistency: Consistency::from_byte(wire.consistency)?,
            created_ms: wire.created_ms,
            geometry: Geometry::new(wire.virtual_size, wire.block_size)?,
            frame_blocks: wire.frame_blocks,
            parent: wire.parent.map(|parent| Parent {
                domain: parent.domain,
                disk: parent.disk,
                point: parent.point,
                root: Digest(parent.root),
            }),
            generator: wire.generator,
            extensions: wire.extensions,
        };
        metadata.check()?;
        let unknown = metadata.extensions.iter().find(|(tag, _)| *tag >= EXTENSION_REQUIRED);
        if let Some((tag, _)) = unknown {
            let problem = Problem::Unsupported(format!("extension {tag:#06x}"));
            return Err(FormatError::new(0, "extensions", problem));
        }
        Ok(metadata)
    }
}

fn invalid(field: &'static str, words: impl Into<std::borrow::Cow<'static, str>>) -> FormatError {
    FormatError::new(0, field, Problem::Invalid(words.into()))
}

fn check(field: &'static str, holds: bool, otherwise: &'static str) -> Result<(), FormatError> {
    if holds { Ok(()) } else { Err(invalid(field, otherwise)) }
}

/// Names go to terminals and into paths: they are short, not empty, and hold no control
/// characters.
fn check_name(field: &'static str, name: &str) -> Result<(), FormatError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        let problem =
            Problem::OutOfRange { value: name.len() as u64, min: 1, max: NAME_LEN_MAX as u64 };
        return Err(FormatError::new(0, format!("length of {field}"), problem));
    }
    check(field, !name.chars().any(char::is_control), "control characters in a name")
}
