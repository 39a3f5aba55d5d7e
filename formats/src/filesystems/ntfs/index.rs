//! A folder: a tree of names.

use super::{Reference, name_of};
use crate::FormatError;
use crate::fields::Little;

/// The name of the tree that holds names of files.
pub const NAMES: &[u8] = b"$I30";
/// Where the header of a node's entries lies in a root, and in another node.
const IN_ROOT: usize = 16;
const IN_NODE: usize = 24;
/// Names that exist for DOS alone: the same file has another one.
const DOS: u8 = 2;

/// A node of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The names.
    pub entries: Vec<(Vec<u8>, Reference)>,
    /// The nodes below, by the cluster (or sector) of the tree in which each begins.
    pub below: Vec<u64>,
}

/// The root of the tree, and the bytes of its other nodes.
///
/// # Errors
/// An entry makes no sense.
pub fn root(bytes: &[u8]) -> Result<(Node, u32), FormatError> {
    let len = Little::new(bytes, 0).u32(8, "bytes of a node")?;
    Ok((node(bytes, IN_ROOT)?, len))
}

/// Another node, whose bytes have been put back.
///
/// # Errors
/// An entry makes no sense.
pub fn inner(bytes: &[u8]) -> Result<Node, FormatError> {
    node(bytes, IN_NODE)
}

fn node(bytes: &[u8], head: usize) -> Result<Node, FormatError> {
    let fields = Little::new(bytes, 0);
    let first = fields.u32(head, "first entry")? as usize;
    let used = fields.u32(head + 4, "bytes of entries")? as usize;
    let end = head.saturating_add(used);
    let mut node = Node::default();
    let mut at = head.saturating_add(first);
    loop {
        let len = usize::from(fields.u16(at + 8, "length of an entry")?);
        let key_len = usize::from(fields.u16(at + 10, "length of a name")?);
        let flags = fields.u16(at + 12, "flags of an entry")?;
        if len < 16 || at + len > end {
            return Err(fields.invalid(at + 8, "length of an entry", format!("{len}")));
        }
        if flags & 1 != 0 {
            node.below.push(fields.u64(at + len - 8, "node below")?);
        }
        if flags & 2 != 0 {
            return Ok(node);
        }
        let key = Little::new(fields.slice(at + 16, key_len, "name")?, at as u64);
        let name_len = usize::from(key.u8(64, "length of a name")?) * 2;
        if key.u8(65, "kind of name")? != DOS {
            let name = name_of(key.slice(66, name_len, "name")?);
            node.entries.push((name, Reference(fields.u64(at, "record")?)));
        }
        at += len;
    }
}
