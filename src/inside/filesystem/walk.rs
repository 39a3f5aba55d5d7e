//! A walk through a tree of files that always ends.

use std::collections::HashSet;

use super::{Entry, FileKind, Filesystem, Found, Id, Node, damaged};
use crate::base::error::{Error, ErrorKind, Result};

/// How deep folders may lie in each other. Paths of the kernel end far before.
const DEPTH_MAX: usize = 2048;
/// The longest path of a walk.
const PATH_LEN_MAX: usize = 64 << 10;

/// A file that a walk comes to.
#[derive(Debug)]
pub struct Item<'a> {
    /// Its path from the walk's start: names with `/` between. Empty for the start itself.
    pub path: &'a [u8],
    /// What stands for it.
    pub id: Id,
    /// What the filesystem says of it.
    pub node: &'a Node,
}

/// What a walk tells of.
#[derive(Debug)]
pub enum Step<'a> {
    /// A file. A folder comes before what is in it.
    Item(Item<'a>),
    /// A file, or what is in a folder, that can't be read, with its path.
    Problem(&'a [u8], Error),
}

/// Goes through `start` and all that is below it, in the order of names. `visit` says of a folder whether
/// what is in it is wanted.
///
/// # Errors
/// Those of `visit`; and the volume can't be read any more, which is no matter of one file.
pub fn walk(
    filesystem: &dyn Filesystem,
    start: &Found,
    visit: &mut dyn FnMut(Step<'_>) -> Result<bool>,
) -> Result<()> {
    let mut path = Vec::new();
    // A folder has one name. One that comes again would be walked through again and again.
    let mut seen: HashSet<Id> = HashSet::new();
    // The folders that are open: the names still to come, the next one last, and the path's length.
    let mut open: Vec<(Vec<Entry>, usize)> = Vec::new();
    let first = Item { path: &path, id: start.id, node: &start.node };
    if visit(Step::Item(first))? && start.node.kind == FileKind::Folder {
        seen.insert(start.id);
        enter(filesystem, start.id, &path, &mut open, visit)?;
    }
    while let Some((entries, len)) = open.last_mut() {
        path.truncate(*len);
        let Some(entry) = entries.pop() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let node = match filesystem.node(entry.id) {
            Ok(node) => node,
            Err(error) => {
                visit(Step::Problem(&path, of_one_file(error)?))?;
                continue;
            }
        };
        let item = Item { path: &path, id: entry.id, node: &node };
        if !visit(Step::Item(item))? || node.kind != FileKind::Folder {
            continue;
        }
        let problem = if !seen.insert(entry.id) {
            "the folder has two names: the filesystem is damaged"
        } else if open.len() >= DEPTH_MAX || path.len() > PATH_LEN_MAX {
            "folders lie too deep in each other"
        } else {
            enter(filesystem, entry.id, &path, &mut open, visit)?;
            continue;
        };
        visit(Step::Problem(&path, damaged(problem)))?;
    }
    Ok(())
}

fn enter(
    filesystem: &dyn Filesystem,
    folder: Id,
    path: &[u8],
    open: &mut Vec<(Vec<Entry>, usize)>,
    visit: &mut dyn FnMut(Step<'_>) -> Result<bool>,
) -> Result<()> {
    match filesystem.list(folder) {
        Ok(mut entries) => {
            entries.sort_by(|one, other| other.name.cmp(&one.name));
            open.push((entries, path.len()));
        }
        Err(error) => {
            visit(Step::Problem(path, of_one_file(error)?))?;
        }
    }
    Ok(())
}

/// The error again, if it is a matter of one file: of damage, and not of a volume that is gone.
fn of_one_file(error: Error) -> Result<Error> {
    match error.kind() {
        ErrorKind::Image | ErrorKind::Damaged => Ok(error),
        _ => Err(error),
    }
}
