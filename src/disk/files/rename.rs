//! Giving a file its final name.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// Renames to a name that nothing has; what is there is never replaced.
///
/// # Errors
/// `AlreadyExists` if something has the name; whatever the system says.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every filesystem knows this kind of rename: NFS and some of FUSE do not.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_by_link(from, to),
        result => Ok(result?),
    }
}

/// Gives a file a second name, which never replaces anything, and takes the first one away.
fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Ok(()) => std::fs::remove_file(from),
        Err(error) => match Errno::from_io_error(&error) {
            // FAT has no links either. What remains is to look first.
            Some(Errno::PERM | Errno::NOSYS | Errno::NOTSUP) => rename_after_look(from, to),
            _ => Err(error),
        },
    }
}

fn rename_after_look(from: &Path, to: &Path) -> io::Result<()> {
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_to_rename_replaces_anything() {
        for rename in [rename_new, rename_by_link, rename_after_look] {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            std::fs::write(&from, b"new").unwrap();
            std::fs::write(&to, b"old").unwrap();
            assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            std::fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(!from.exists());
            assert_eq!(std::fs::read(&to).unwrap(), b"new");
        }
    }
}
