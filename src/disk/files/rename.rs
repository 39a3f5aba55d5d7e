//! Giving a file its final name.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::place::make_private_folder;
use crate::disk::io::Opener;
use crate::disk::sys::FileId;

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
    if let Err(error) = fs::hard_link(from, to) {
        match Errno::from_io_error(&error) {
            // FAT has no links either. What remains is to look first.
            Some(Errno::PERM | Errno::NOSYS | Errno::NOTSUP) => return rename_after_look(from, to),
            // link(2): a server of NFS that dies before it can answer has made the link, and reports the second try
            // as failed.
            _ if is_one_file(from, to) => {}
            _ => return Err(error),
        }
    }
    // It has its name. Where the other one can't be taken away now, whoever stages a file the next time does it.
    let _ = fs::remove_file(from);
    Ok(())
}

fn is_one_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.symlink_metadata().ok().map(|found| FileId::from(&found));
    id(one).is_some() && id(one) == id(other)
}

fn rename_after_look(from: &Path, to: &Path) -> io::Result<()> {
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(error) => Err(error),
    }
}

/// What becomes of a file that was replaced if the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It may be the new one, the old one or torn: whoever reads it does not depend on it.
    None,
    /// It is the new one or the old one.
    Synced,
}

/// Writes a file under another name, and gives it its own when it is whole: nobody reads half of it, and an older
/// one stays until then. The folder is made if it is missing, private to its owner.
///
/// # Errors
/// It can't be written; the older one is as it was.
pub(crate) fn replace_file(
    path: &Path,
    mode: u32,
    durability: Durability,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|it| *it != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = folder.join(format!(".{name}.partial"));
    let put = || -> io::Result<()> {
        make_private_folder(folder)?;
        // Of somebody who was killed.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = Opener::CHANGE.create(mode).open(&partial)?;
        write(&mut file)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        fs::rename(&partial, path)
    };
    put().inspect_err(|_| {
        let _ = fs::remove_file(&partial);
    })
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

    /// The answer of the server was lost, and the link made; or the first name could not be taken away.
    #[test]
    fn a_link_that_was_made_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, b"new").unwrap();
        std::fs::hard_link(&from, &to).unwrap();
        rename_by_link(&from, &to).unwrap();
        assert!(!from.exists());
        assert_eq!(std::fs::read(&to).unwrap(), b"new");
    }
}
