//! Whether there is room for what is about to be written, before any of it is.

use std::path::Path;

use rustix::fs::StatVfs;
use rustix::process::{Resource, getrlimit};

use crate::base::error::{Error, ErrorKind, Result};

/// ext2, ext3 and ext4.
const EXT: u64 = 0xef53;
/// What a filesystem needs for each piece of a file that it keeps apart, in bytes: an entry of a tree of
/// extents, twice, for trees are seldom full.
const PIECE_SIZE: u64 = 64;

/// How many bytes can still be written on the filesystem of the file or folder at `path`; nothing if
/// the filesystem does not know.
///
/// A quota of a project shows in the folder alone: the file is asked, and its folder.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let root = rustix::process::geteuid().is_root();
    let ask = |path: &Path| {
        let space = rustix::fs::statvfs(path).ok()?;
        let blocks = if root { for_root(path, &space) } else { space.f_bavail };
        // A filesystem without a size does not know what it has room for.
        (space.f_blocks != 0).then(|| blocks.saturating_mul(space.f_frsize))
    };
    let folder = path.parent().map(|folder| match folder == Path::new("") {
        true => Path::new("."),
        false => folder,
    });
    [ask(path), folder.and_then(ask)].into_iter().flatten().min()
}

/// How many bytes the filesystem of the file or folder at `path` has, free or not; nothing if it does not know.
pub(crate) fn size(path: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(path).ok()?;
    Some(space.f_blocks.saturating_mul(space.f_frsize)).filter(|size| *size != 0)
}

/// How many blocks root can fill. On ext4 these are also what is reserved for him, but not what the
/// filesystem reserves for itself: a fiftieth, and at most 4096 blocks.
fn for_root(path: &Path, space: &StatVfs) -> u64 {
    let is_ext = rustix::fs::statfs(path).is_ok_and(|it| it.f_type as u64 & 0xffff == EXT);
    match is_ext {
        true => space.f_bfree.saturating_sub((space.f_blocks / 50 + 16).min(4096)),
        false => space.f_bavail,
    }
}

/// What `bytes` in `pieces` pieces take, with what the filesystem writes down of them.
pub(crate) fn with_pieces(bytes: u64, pieces: u64) -> u64 {
    bytes.saturating_add(pieces.saturating_mul(PIECE_SIZE))
}

/// Fails if the filesystem of `path` has no room for `needed` more bytes. `what` needs them.
///
/// # Errors
/// `NoSpace`, with how much is missing.
pub(crate) fn check(path: &Path, needed: u64, what: &str) -> Result<()> {
    let Some(free) = free(path).filter(|free| *free < needed) else { return Ok(()) };
    let text = format!(
        "{what} needs {} and its filesystem has {} free",
        bytesize::ByteSize(needed),
        bytesize::ByteSize(free)
    );
    Err(Error::new(ErrorKind::NoSpace, text))
}

/// Fails if this process may not write files that reach to byte `end`.
///
/// # Errors
/// `NoSpace`.
pub(crate) fn check_limit(path: &Path, end: u64) -> Result<()> {
    let Some(limit) = getrlimit(Resource::Fsize).current.filter(|limit| *limit < end) else {
        return Ok(());
    };
    let text = format!(
        "{} is to have {end} bytes, and this process may write no file beyond {limit}",
        path.display()
    );
    Err(Error::new(ErrorKind::NoSpace, text)
        .advise("raise the limit on the size of files (ulimit -f)"))
}
