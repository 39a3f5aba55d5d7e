//! The entries of a folder's block.

use crate::FormatError;
use crate::fields::Little;
use crate::filesystems::FileKind;

const NAME: usize = 8;

/// A name in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The inode that it stands for.
    pub inode: u32,
    /// The name's bytes.
    pub name: &'a [u8],
    /// What it stands for, if the entry says so.
    pub kind: Option<FileKind>,
}

/// The entries of a block, without those that are not in use, `.` and `..`.
///
/// # Errors
/// An entry does not fit into its block, or its name is none.
pub fn entries(block: &[u8], has_types: bool) -> Result<Vec<Entry<'_>>, FormatError> {
    let mut found = Vec::new();
    let mut at = 0;
    // What is left behind the last entry has no room for another one.
    while at + NAME <= block.len() {
        let fields = Little::new(block.get(at..).unwrap_or_default(), at as u64);
        let inode = fields.u32(0, "inode")?;
        let len = entry_len(fields.u16(4, "rec_len")?, block.len());
        if len < NAME || !len.is_multiple_of(4) || at + len > block.len() {
            return Err(fields.invalid(4, "rec_len", format!("{len} bytes")));
        }
        let kind = fields.u8(7, "file_type")?;
        // Without types, this is the upper half of the name's length, which is never needed.
        let name_len = usize::from(fields.u8(6, "name_len")?);
        if inode != 0 {
            if name_len == 0 || NAME + name_len > len {
                return Err(fields.invalid(6, "name_len", format!("{name_len} bytes")));
            }
            let name = fields.slice(NAME, name_len, "name")?;
            if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return Err(fields.invalid(NAME, "name", "with a slash or a zero"));
            }
            if name != b"." && name != b".." {
                let kind = if has_types { kind_of(kind) } else { None };
                found.push(Entry { inode, name, kind });
            }
        }
        at += len;
    }
    Ok(found)
}

/// The length of an entry: blocks of 64 KiB need more than the field holds.
fn entry_len(field: u16, block: usize) -> usize {
    let len = usize::from(field);
    if block < 65536 {
        return len;
    }
    match len {
        0 | 65535 => block,
        len => (len & 65532) | (len & 3) << 16,
    }
}

fn kind_of(byte: u8) -> Option<FileKind> {
    Some(match byte {
        1 => FileKind::File,
        2 => FileKind::Folder,
        3 => FileKind::CharacterDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Link,
        _ => return None,
    })
}
