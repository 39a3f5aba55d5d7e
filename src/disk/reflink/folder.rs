//! The folder of kept clones: `.qdelta` beside the file that was cloned, a folder in it for each
//! anchor, named after it, and in that the clones.
//!
//! Whoever owns the folder of an image can put there what he likes, also in the place of `.qdelta`.
//! So everything is done from descriptors of folders: what lies in one that is a symlink, belongs to
//! somebody else or can be written to by others is never touched.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::Errno;

use super::clone::clone_file;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{Opener, is_refusal, open_folder};

/// The folder beside an image in which its clones are kept.
pub const ANCHOR_FOLDER: &str = ".qdelta";

/// How often the folders are made again if another run has found them empty and removed them.
const TRIES: usize = 100;

/// A clone that is kept.
#[derive(Debug)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// It, open for reading and writing.
    pub file: File,
    /// The folders that it lies in: the anchor's, that of all clones, and that of the image.
    folders: [Folder; 3],
}

impl Kept {
    /// Clones the open file at `source_path`, which must be its real path, into the folder of the
    /// anchor called `anchor` beside it. Returns as soon as it is cloned: see [`Kept::sync`].
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if there is such a clone; [`ErrorKind::Usage`] if the filesystem can't
    /// clone, or the folder of clones is not ours; [`ErrorKind::NoSpace`]; [`ErrorKind::Io`]. Then
    /// there is no new file.
    pub fn clone_of(source: BorrowedFd<'_>, source_path: &Path, anchor: &str) -> Result<Self> {
        let (Some(parent), Some(name)) = (source_path.parent(), source_path.file_name()) else {
            let text = format!("{} has no folder to keep a clone in", source_path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        };
        let stat = rustix::fs::fstat(source);
        let stat = stat.map_err(|error| Error::io("look at", source_path, error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let text = format!("{} is no regular file", source_path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let parent = Folder::around(parent)?;
        let [own, clones] = make_folders(&parent, anchor.as_ref())?;
        let path = own.path.join(name);
        match clone_file(source, source_path, own.fd.as_fd(), &path) {
            Ok(file) => Ok(Self { path, file, folders: [own, clones, parent] }),
            Err(error) => {
                // Only if they are empty.
                let _ = clones.remove_folder(anchor.as_ref());
                let _ = parent.remove_folder(ANCHOR_FOLDER.as_ref());
                Err(error)
            }
        }
    }

    /// Returns once the clone and its name survive a power cut.
    ///
    /// # Errors
    /// The system does not promise it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))?;
        self.folders.iter().try_for_each(Folder::sync)
    }
}

/// Makes the folder of clones in `parent`, and that of an anchor in it, unless they are there.
fn make_folders(parent: &Folder, anchor: &OsStr) -> Result<[Folder; 2]> {
    let mut again = 0..TRIES;
    loop {
        let made = parent.make(ANCHOR_FOLDER.as_ref()).and_then(|clones| {
            let own = clones.make(anchor)?;
            Ok([own, clones])
        });
        match made {
            // The run of another disk in this folder has just removed its last clone.
            Err(error) if error.kind() == ErrorKind::NotFound && again.next().is_some() => {}
            other => return other,
        }
    }
}

/// A folder that is open.
#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// The folder of an image, whoever owns it.
    fn around(path: &Path) -> Result<Self> {
        let fd = crate::disk::io::pin_folder(path)
            .map_err(|errno| Error::io("open the folder", path, errno.into()))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The folder called `name` in this one, which must be ours alone; none if nothing has the name.
    fn own(&self, name: &OsStr) -> Result<Option<Self>> {
        let path = self.path.join(name);
        if !is_plain(name) {
            let text = format!("{} is no name for a folder of clones", name.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let fd = match open_folder(&self.fd, Path::new(name), false) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(not_ours(&path, "it is no folder")),
            // What we have made ourselves we may read.
            Err(Errno::ACCESS) => return Err(not_ours(&path, "we may not read it")),
            Err(errno) => return Err(Error::io("open the folder", &path, errno.into())),
        };
        let stat = rustix::fs::fstat(&fd);
        let stat = stat.map_err(|errno| Error::io("look at", &path, errno.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(not_ours(&path, &format!("it belongs to user {}", stat.st_uid)));
        }
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
            return Err(not_ours(&path, "others may write to it"));
        }
        Ok(Some(Self { fd, path }))
    }

    /// The same; it is made if nothing has the name.
    fn make(&self, name: &OsStr) -> Result<Self> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io("make the folder", &path, errno.into())),
        }
        let gone = || Error::io("open the folder", &path, io::ErrorKind::NotFound.into());
        self.own(name)?.ok_or_else(gone)
    }

    /// The names of what lies in it.
    fn names(&self) -> Result<Vec<OsString>> {
        let failed = |errno: Errno| Error::io("list", &self.path, errno.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if is_plain(name) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes a regular file.
    fn remove_file(&self, name: &OsStr) -> Result<()> {
        let path = self.path.join(name);
        let failed = |errno: Errno| Error::io("remove", &path, errno.into());
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let text = format!("{} is no clone, and stays", path.display());
            return Err(Error::new(ErrorKind::Usage, text)
                .because("it is no regular file; see what it is, and remove it"));
        }
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).map_err(failed)
    }

    /// Removes an empty folder.
    fn remove_folder(&self, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|errno| Error::io("remove the folder", &self.path.join(name), errno.into()))
    }

    fn sync(&self) -> Result<()> {
        open_folder(&self.fd, Path::new("."), true)
            .and_then(rustix::fs::fsync)
            .map_err(|errno| Error::io("sync the folder", &self.path, errno.into()))
    }
}

/// Whether it is the name of something that lies directly in a folder.
fn is_plain(name: &OsStr) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(it)), None) if it == name)
}

fn not_ours(path: &Path, why: &str) -> Error {
    let text = format!("{} is not qdelta's: nothing is kept or removed there", path.display());
    Error::new(ErrorKind::Usage, text).because(format!(
        "{why}; see what is in it, and for clones to be kept again `chown` it to the user that \
             runs qdelta, or remove it"
    ))
}

/// The folder of clones beside files in `folder`, with that folder.
fn clones_beside(folder: &Path) -> Result<Option<[Folder; 2]>> {
    let parent = match Folder::around(folder) {
        Ok(parent) => parent,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(parent.own(ANCHOR_FOLDER.as_ref())?.map(|clones| [clones, parent]))
}

/// The names of the anchors whose clones are kept beside files in `folder`, sorted.
///
/// # Errors
/// [`ErrorKind::Usage`] if the folder of clones is not ours alone; it can't be read.
pub fn kept_beside(folder: &Path) -> Result<Vec<String>> {
    let Some([clones, _]) = clones_beside(folder)? else { return Ok(Vec::new()) };
    let names = clones.names()?.into_iter();
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Opens the clone of the file called `name` in `folder` that is kept for the anchor called `anchor`,
/// if there is one.
///
/// # Errors
/// As [`kept_beside`], and for the anchor's own folder.
pub fn open_kept(folder: &Path, anchor: &str, name: &OsStr) -> Result<Option<File>> {
    let Some([clones, _]) = clones_beside(folder)? else { return Ok(None) };
    let Some(own) = clones.own(anchor.as_ref())? else { return Ok(None) };
    match Opener::READ.itself().open_at(&own.fd, Path::new(name)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_refusal(&error) => Ok(None),
        Err(error) => Err(Error::io("open", &own.path.join(name), error)),
    }
}

/// Removes the clones of the anchor called `anchor` that are kept beside files in `folder`; it is
/// no failure if there are none.
///
/// # Errors
/// As [`kept_beside`], and for the anchor's own folder: then nothing is removed. Something can't be
/// removed, or is no regular file.
pub fn remove_kept(folder: &Path, anchor: &str) -> Result<()> {
    let Some([clones, parent]) = clones_beside(folder)? else { return Ok(()) };
    let Some(own) = clones.own(anchor.as_ref())? else { return Ok(()) };
    own.names()?.iter().try_for_each(|name| own.remove_file(name))?;
    clones.remove_folder(anchor.as_ref())?;
    // The last one out closes the door; others may be at home.
    let _ = parent.remove_folder(ANCHOR_FOLDER.as_ref());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir_all, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A folder with the clones of an anchor in it.
    fn kept(anchors: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for anchor in anchors {
            let own = folder.path().join(ANCHOR_FOLDER).join(anchor);
            create_dir_all(&own).unwrap();
            std::fs::write(own.join("disk"), "").unwrap();
            for folder in [own.as_path(), own.parent().unwrap()] {
                set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
            }
        }
        folder
    }

    #[test]
    fn what_is_not_kept_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        assert!(kept_beside(folder.path()).unwrap().is_empty());
        remove_kept(folder.path(), "none").unwrap();
        remove_kept(&folder.path().join("none"), "none").unwrap();
    }

    #[test]
    fn removing_one_anchor_leaves_the_others() {
        let folder = kept(&["one", "two"]);
        remove_kept(folder.path(), "one").unwrap();
        assert_eq!(kept_beside(folder.path()).unwrap(), ["two"]);
        remove_kept(folder.path(), "two").unwrap();
        assert!(!folder.path().join(ANCHOR_FOLDER).exists());
    }

    /// Whoever owned the folder of an image could have root empty any other one.
    #[test]
    fn nothing_is_removed_through_a_symlink() {
        let victim = kept(&["one"]);
        let own = victim.path().join(ANCHOR_FOLDER).join("one");
        let refused = |folder: &Path, anchor: &str| {
            let error = remove_kept(folder, anchor).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.chain());
            assert!(own.join("disk").is_file(), "{}", error.chain());
            error.chain()
        };
        let folder = kept(&["two"]);
        let clones = folder.path().join(ANCHOR_FOLDER);
        symlink(&own, clones.join("one")).unwrap();
        assert!(refused(folder.path(), "one").contains("is no folder"));
        refused(folder.path(), "..");
        refused(folder.path(), own.to_str().unwrap());
        // What is no file is no clone.
        symlink(own.join("disk"), clones.join("two/link")).unwrap();
        assert!(refused(folder.path(), "two").contains("is no regular file"));

        let folder = tempfile::tempdir().unwrap();
        symlink(own.parent().unwrap(), folder.path().join(ANCHOR_FOLDER)).unwrap();
        assert!(refused(folder.path(), "one").contains("is no folder"));
        assert_eq!(kept_beside(folder.path()).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_left_alone() {
        for inner in ["", "one"] {
            let folder = kept(&["one"]);
            let open = folder.path().join(ANCHOR_FOLDER).join(inner);
            set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
            let error = remove_kept(folder.path(), "one").unwrap_err();
            assert!(error.chain().contains("others may write to it"), "{}", error.chain());
            assert!(folder.path().join(ANCHOR_FOLDER).join("one/disk").is_file());
            let parent = Folder::around(folder.path()).unwrap();
            assert!(make_folders(&parent, "one".as_ref()).is_err());
        }
    }

    /// The run of another disk in the same folder found it empty, and removed it just before an
    /// anchor's folder was made in it: a running guest lost its point.
    #[test]
    fn a_folder_that_vanishes_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let parent = Folder::around(folder.path()).unwrap();
        // Each try that fails takes a removal, so that fewer of them than tries can't use them up,
        // whatever the scheduler does.
        let removals = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        let remover = || {
            while !done.load(Ordering::Relaxed) {
                if removals.load(Ordering::Relaxed) > 0
                    && parent.remove_folder(ANCHOR_FOLDER.as_ref()).is_ok()
                {
                    removals.fetch_sub(1, Ordering::Relaxed);
                }
            }
        };
        let round = || -> Result<()> {
            removals.store(TRIES - 2, Ordering::Relaxed);
            make_folders(&parent, "one".as_ref())?;
            remove_kept(folder.path(), "one")
        };
        std::thread::scope(|scope| {
            scope.spawn(remover);
            let failed = (0..3000).find_map(|_| round().err());
            done.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{}", failed.unwrap().chain());
        });
    }
}
