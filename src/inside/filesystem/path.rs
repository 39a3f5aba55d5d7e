//! Paths inside a filesystem. A path never leaves its volume: the root is the end of `..`, and an absolute
//! link begins at the volume's own root.

use super::{FileKind, Filesystem, Id, Node};
use crate::base::error::{Error, ErrorKind, Result};

/// How many links a path may go through; the kernel follows as many.
const LINKS_MAX: usize = 40;
/// How many names a path may have, with those of its links.
const NAMES_MAX: usize = 4096;

/// A file that a path leads to.
#[derive(Debug, Clone)]
pub struct Found {
    /// What stands for it.
    pub id: Id,
    /// What the filesystem says of it.
    pub node: Node,
    /// The last name of the path, or of the link that led here; none for the root.
    pub name: Option<Vec<u8>>,
}

/// Follows `path` from the root. Links on the way are followed, and one at its end if `follow` says so, or
/// if a `/` stands behind it.
///
/// # Errors
/// [`ErrorKind::NotFound`]: there is no such file. Others: those of the filesystem.
pub fn find(filesystem: &dyn Filesystem, path: &[u8], follow: bool) -> Result<Found> {
    let follow = follow || path.ends_with(b"/");
    // The names still to go, the next one last.
    let mut names: Vec<Vec<u8>> = Vec::new();
    push(&mut names, path, path)?;
    let root =
        Found { id: filesystem.root(), node: filesystem.node(filesystem.root())?, name: None };
    // The folders from the root to here.
    let mut way = vec![root];
    let mut links = 0;
    while let Some(name) = names.pop() {
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let Some(here) = way.last() else { break };
        if here.node.kind != FileKind::Folder {
            return Err(no_such(path, "a file on the way is no folder"));
        }
        let Some(id) = filesystem.lookup(here.id, &name)? else {
            return Err(no_such(
                path,
                match links {
                    0 => "there is no such file on the volume",
                    _ => "a link on the way leads to no file",
                },
            ));
        };
        let node = filesystem.node(id)?;
        if node.kind == FileKind::Link && (follow || !names.is_empty()) {
            links += 1;
            if links > LINKS_MAX {
                return Err(no_such(
                    path,
                    "more than 40 links are on the way, or a circle of them",
                ));
            }
            let target = filesystem.target(id)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            push(&mut names, &target, path)?;
            continue;
        }
        way.push(Found { id, node, name: Some(name) });
    }
    way.pop().ok_or_else(|| no_such(path, "there is no root"))
}

/// Adds the names of `path`, so that its first one comes next.
fn push(names: &mut Vec<Vec<u8>>, path: &[u8], whole: &[u8]) -> Result<()> {
    let parts = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let parts: Vec<&[u8]> = parts.collect();
    if names.len() + parts.len() > NAMES_MAX {
        return Err(no_such(whole, "the path is too long"));
    }
    names.extend(parts.into_iter().rev().map(<[u8]>::to_vec));
    Ok(())
}

fn no_such(path: &[u8], why: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{}: {why}", String::from_utf8_lossy(path).escape_debug()),
    )
}
