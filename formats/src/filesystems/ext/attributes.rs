//! Extended attributes, in an inode or in a block of their own.

use crate::FormatError;
use crate::fields::Little;

const MAGIC: u32 = 0xea02_0000;
const BLOCK_HEADER_LEN: usize = 32;
const ENTRY_LEN: usize = 16;
/// The most bytes of a value; the kernel takes no longer one.
pub const VALUE_LEN_MAX: u32 = 64 << 10;

/// An attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name with its prefix, as `getxattr` takes it.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Value,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// These bytes, as they lie on the disk.
    Bytes(Vec<u8>),
    /// The content of this inode, of so many bytes.
    Inode(u32, u32),
}

/// The name under which the content of small files goes on.
pub const INLINE: &[u8] = b"system.data";

/// The attributes behind the fixed fields of an inode.
///
/// # Errors
/// An entry makes no sense.
pub fn in_inode(tail: &[u8]) -> Result<Vec<Attribute>, FormatError> {
    match tail.first_chunk() {
        Some(magic) if u32::from_le_bytes(*magic) == MAGIC => {
            let entries = tail.get(4..).unwrap_or_default();
            parse(entries, entries)
        }
        _ => Ok(Vec::new()),
    }
}

/// The attributes of a block.
///
/// # Errors
/// It is not a block of attributes, or an entry makes no sense.
pub fn in_block(block: &[u8]) -> Result<Vec<Attribute>, FormatError> {
    let fields = Little::new(block, 0);
    if fields.u32(0, "h_magic")? != MAGIC {
        return Err(fields.invalid(0, "h_magic", "not that of a block of attributes"));
    }
    parse(block.get(BLOCK_HEADER_LEN..).unwrap_or_default(), block)
}

/// The `entries`, whose values lie in `values`.
fn parse(entries: &[u8], values: &[u8]) -> Result<Vec<Attribute>, FormatError> {
    let fields = Little::new(entries, 0);
    let from = Little::new(values, 0);
    let mut found = Vec::new();
    let mut at = 0usize;
    // Four zeros end the list; where no room is left for them, the end of the list does.
    while at + ENTRY_LEN <= entries.len() && fields.u32(at, "e_name_len")? != 0 {
        let name_len = usize::from(fields.u8(at, "e_name_len")?);
        let index = fields.u8(at + 1, "e_name_index")?;
        let offset = usize::from(fields.u16(at + 2, "e_value_offs")?);
        let inode = fields.u32(at + 4, "e_value_inum")?;
        let len = fields.u32(at + 8, "e_value_size")?;
        if len > VALUE_LEN_MAX {
            return Err(fields.invalid(at + 8, "e_value_size", format!("{len} bytes")));
        }
        let name = fields.slice(at + ENTRY_LEN, name_len, "e_name")?;
        let value = match inode {
            0 => Value::Bytes(from.slice(offset, len as usize, "value of an attribute")?.to_vec()),
            inode => Value::Inode(inode, len),
        };
        if let Some(prefix) = prefix(index) {
            let name = [prefix.as_bytes(), name].concat();
            found.push(Attribute { name, value });
        }
        at = (at + ENTRY_LEN + name_len).next_multiple_of(4);
    }
    Ok(found)
}

fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        1 => "user.",
        2 => "system.posix_acl_access",
        3 => "system.posix_acl_default",
        4 => "trusted.",
        6 => "security.",
        7 => "system.",
        8 => "system.richacl",
        _ => return None,
    })
}

/// A list of access rights as `getxattr` gives it, from what is on the disk; none if it is no list.
pub fn access_list(bytes: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let (version, mut rest) = bytes.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 1 {
        return None;
    }
    let mut list = 2u32.to_le_bytes().to_vec();
    while let Some((entry, behind)) = rest.split_first_chunk::<4>() {
        rest = behind;
        list.extend_from_slice(entry);
        let [tag, tag_high, ..] = *entry;
        if matches!(u16::from_le_bytes([tag, tag_high]), USER | GROUP) {
            let (id, behind) = rest.split_first_chunk::<4>()?;
            rest = behind;
            list.extend_from_slice(id);
        } else {
            list.extend_from_slice(&[0xff; 4]);
        }
    }
    rest.is_empty().then_some(list)
}
