//! Owner, mode, times and extended attributes of files that were written.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};

use super::target::{Target, mode};
use crate::base::error::Result;
use crate::inside::filesystem::{Attribute, FileKind, Node};

/// What of a file's attributes this process may set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    is_root: bool,
}

impl Rights {
    /// Those of this process.
    pub fn own() -> Self {
        Self { is_root: rustix::process::geteuid().is_root() }
    }

    /// Whether devices can be made.
    pub fn devices(self) -> bool {
        self.is_root
    }

    /// The mode that is set: who can't keep the owner must not give another one's rights to himself.
    fn mode(self, node: &Node) -> u16 {
        if self.is_root { node.mode } else { node.mode & 0o777 }
    }

    fn owner(self, node: &Node) -> Option<(Uid, Gid)> {
        let known = node.uid != u32::MAX && node.gid != u32::MAX;
        (self.is_root && known).then(|| (Uid::from_raw(node.uid), Gid::from_raw(node.gid)))
    }
}

/// Sets the attributes of an open file or folder. Says whether all extended ones were taken.
pub(super) fn set(
    fd: BorrowedFd<'_>,
    node: &Node,
    attributes: &[Attribute],
    rights: Rights,
) -> rustix::io::Result<bool> {
    if let Some((uid, gid)) = rights.owner(node) {
        rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    }
    let mut all = true;
    for (name, value) in attributes {
        let is_users = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if !rights.is_root && !is_users {
            all = false;
            continue;
        }
        // A filesystem that has no room for a value of this length says that it is full.
        let set = rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty());
        all &= set.is_ok();
    }
    rustix::fs::fchmod(fd, mode(rights.mode(node)))?;
    rustix::fs::futimens(fd, &times(node))?;
    Ok(all)
}

/// Sets the attributes of a file that has no descriptor: a link, a device, a pipe.
pub(super) fn set_by_name(
    target: &mut Target,
    path: &[u8],
    node: &Node,
    rights: Rights,
) -> Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    target.set_by_name(path, |folder, name| {
        if let Some((uid, gid)) = rights.owner(node) {
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), nofollow)?;
        }
        if node.kind != FileKind::Link {
            rustix::fs::chmodat(folder, name, mode(rights.mode(node)), AtFlags::empty())?;
        }
        rustix::fs::utimensat(folder, name, &times(node), nofollow)
    })
}

fn times(node: &Node) -> Timestamps {
    let spec = |time: crate::inside::filesystem::Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
    Timestamps {
        last_access: node.accessed.map_or(omit, spec),
        last_modification: spec(node.modified),
    }
}
