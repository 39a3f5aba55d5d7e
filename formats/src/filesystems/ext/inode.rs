//! An inode: what a file is, and where its bytes lie.

use crate::FormatError;
use crate::fields::Little;
use crate::filesystems::{FileKind, Time};

/// Bytes of the place where an inode has its extents, its block pointers or small content.
pub const BODY_LEN: usize = 60;
const BODY: usize = 40;
const GOOD_OLD_LEN: usize = 128;
/// Block pointers that are in the inode itself.
pub const DIRECT: u64 = 12;

mod flag {
    pub(super) const ENCRYPTED: u32 = 0x800;
    pub(super) const EXTENTS: u32 = 0x8_0000;
    pub(super) const INLINE: u32 = 0x1000_0000;
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What kind of file it is; none of a mode that says nothing known.
    pub kind: Option<FileKind>,
    /// Permissions, with set-user-id, set-group-id and sticky: 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of the content in bytes.
    pub size: u64,
    /// How many names it has.
    pub links: u16,
    /// Last access.
    pub accessed: Time,
    /// Last change of the inode.
    pub changed: Time,
    /// Last change of the content.
    pub modified: Time,
    /// Extents, block pointers, or the first bytes of the content.
    pub body: [u8; BODY_LEN],
    /// A block of extended attributes; 0 without one.
    pub attributes: u64,
    /// What is behind the fixed fields: attributes that lie in the inode.
    pub tail: Vec<u8>,
    flags: u32,
}

impl Inode {
    /// Reads an inode.
    ///
    /// # Errors
    /// The bytes are too few.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let fields = Little::new(bytes, 0);
        let mode = fields.u16(0, "i_mode")?;
        let half = |low: usize, high: usize, name| -> Result<u32, FormatError> {
            Ok(u32::from(fields.u16(low, name)?) | u32::from(fields.u16(high, name)?) << 16)
        };
        let extra = match bytes.len() {
            GOOD_OLD_LEN => 0,
            _ => usize::from(fields.u16(GOOD_OLD_LEN, "i_extra_isize")?),
        };
        let end = (GOOD_OLD_LEN + extra).min(bytes.len());
        // A field of the extra part is there if the part is long enough for it.
        let more = |at: usize| match at + 4 <= end {
            true => fields.u32(at, "time"),
            false => Ok(0),
        };
        let time = |at: usize, more_at: usize| -> Result<Time, FormatError> {
            let (low, more) = (fields.u32(at, "time")?.cast_signed(), more(more_at)?);
            let seconds = i64::from(low) + (i64::from(more & 3) << 32);
            Ok(Time { seconds, nanoseconds: (more >> 2).min(999_999_999) })
        };
        let mut body = [0; BODY_LEN];
        body.copy_from_slice(fields.slice(BODY, BODY_LEN, "i_block")?);
        let size = u64::from(fields.u32(4, "i_size_lo")?);
        let size_high = u64::from(fields.u32(108, "i_size_high")?) << 32;
        let attributes = u64::from(fields.u32(104, "i_file_acl_lo")?);
        let attributes_high = u64::from(fields.u16(118, "i_file_acl_high")?) << 32;
        Ok(Self {
            kind: FileKind::of_mode(mode),
            mode: mode & 0o7777,
            uid: half(2, 120, "i_uid")?,
            gid: half(24, 122, "i_gid")?,
            size: size | size_high,
            links: fields.u16(26, "i_links_count")?,
            accessed: time(8, 140)?,
            changed: time(12, 132)?,
            modified: time(16, 136)?,
            body,
            attributes: attributes | attributes_high,
            tail: bytes.get(end..).unwrap_or_default().to_vec(),
            flags: fields.u32(32, "i_flags")?,
        })
    }

    /// Whether the content, or the names of a folder, are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.flags & flag::ENCRYPTED != 0
    }

    /// Whether the place of the content is told by extents.
    pub fn has_extents(&self) -> bool {
        self.flags & flag::EXTENTS != 0
    }

    /// Whether the content lies in the inode, and goes on in an attribute.
    pub fn is_inline(&self) -> bool {
        self.flags & flag::INLINE != 0
    }

    /// Whether the target of a link lies in the inode.
    pub fn is_short_link(&self) -> bool {
        self.kind == Some(FileKind::Link)
            && self.size < BODY_LEN as u64
            && !self.has_extents()
            && !self.is_inline()
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        let [old, new] = [self.pointer(0), self.pointer(1)];
        match old {
            0 => ((new & 0xfff00) >> 8, (new & 0xff) | ((new >> 12) & 0xfff00)),
            old => (old >> 8 & 0xff, old & 0xff),
        }
    }

    /// Block pointer `index` of the inode itself: of the content for the first twelve, of a block of
    /// pointers, of two and of three levels for the others.
    pub fn pointer(&self, index: usize) -> u32 {
        pointer(&self.body, index)
    }
}

/// Number `index` of a block of pointers; 0 behind its end.
pub fn pointer(block: &[u8], index: usize) -> u32 {
    let at = index.saturating_mul(4);
    let bytes = block.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}
