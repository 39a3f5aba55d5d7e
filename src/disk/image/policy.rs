//! Which files may be opened, and how.
//!
//! The image itself is named by whoever runs the program and may lie anywhere. Every further name
//! comes from inside an image: it must lead, with all symlinks resolved, into the image's own
//! folder or into a folder that was allowed, to a regular file or a block device. The file is
//! pinned first, checked, and only then opened for reading: through its descriptor, so that nobody
//! can put another one in its place in between.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OpenOptions;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::{FileStore, Opener, ReadAt, not_opened};
use crate::disk::sys::FileId;

/// An open file and what is known about it.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ReadAt>,
    /// The name that led to it; further names are relative to its folder.
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// Its length in bytes when it was opened.
    pub(super) len: u64,
    /// Bytes that it occupies on its file system; nothing for a device.
    pub(super) allocated: Option<u64>,
}

/// Opens files by the rules above.
#[derive(Debug)]
pub(super) struct Policy {
    /// The folders of the image itself, without symlinks.
    own: Vec<PathBuf>,
    /// Further folders into which names inside images may lead, without symlinks.
    allowed: Vec<PathBuf>,
    /// Which clones are opened in place of which files.
    clones: Vec<(PathBuf, PathBuf)>,
}

impl Policy {
    /// The rules for the image at `path`, with further allowed folders and with clones.
    ///
    /// # Errors
    /// One of the folders does not exist.
    pub(super) fn new(path: &Path, options: &OpenOptions) -> Result<Self> {
        let mut allowed = Vec::new();
        for root in &options.image_roots {
            let real = root.canonicalize();
            allowed.push(real.map_err(|error| Error::io("resolve the image root", root, error))?);
        }
        // The image may be reached through a symlink; its backing files may lie beside either.
        let given = folder_of(path).canonicalize();
        let real = path.canonicalize().map(|real| folder_of(&real).to_path_buf());
        let mut own: Vec<PathBuf> = [given, real].into_iter().flatten().collect();
        // What lies beside an image that the definition names is as near to that one.
        let stated = options.chain.below.iter().map(|layer| folder_of(&layer.path).canonicalize());
        own.extend(stated.flatten());
        own.dedup();
        Ok(Self { allowed, own, clones: options.clones.clone() })
    }

    /// The clone that is to be opened in place of the file that is really at `real`.
    fn clone_of(&self, real: &Path) -> Option<&Path> {
        self.clones.iter().find(|(file, _)| file == real).map(|(_, clone)| clone.as_path())
    }

    /// Opens a pinned file, or its clone.
    fn open_pinned(&self, pinned: &OwnedFd, path: &Path) -> Result<Opened> {
        if self.clones.is_empty() {
            return open_pinned(pinned, path);
        }
        let real = std::fs::read_link(proc_path(pinned))
            .map_err(|error| Error::io("resolve the name of", path, error))?;
        let Some(clone) = self.clone_of(&real) else { return open_pinned(pinned, path) };
        let pinned =
            pin_itself(clone).map_err(|error| Error::io("open the clone", clone, error))?;
        Ok(Opened { path: path.to_path_buf(), ..open_pinned(&pinned, clone)? })
    }

    /// Whether a name inside an image may lead to the file that is really at `real`.
    fn allows(&self, real: &Path) -> bool {
        // An image at the very top of the file system does not open all of it.
        let own = |folder: &PathBuf| match folder.parent() {
            Some(_) => real.starts_with(folder),
            None => real.parent() == Some(folder),
        };
        self.own.iter().any(own) || self.allowed.iter().any(|folder| real.starts_with(folder))
    }

    /// Opens the image that the user named.
    ///
    /// # Errors
    /// It does not exist, may not be read, or is neither a regular file nor a block device.
    pub(super) fn open_named_by_user(&self, path: &Path) -> Result<Opened> {
        let pinned = pin(path).map_err(|error| Error::io("open", path, error))?;
        self.open_pinned(&pinned, path)
    }

    /// Opens a file that the definition of the guest names: it may lie anywhere.
    ///
    /// # Errors
    /// It does not exist, may not be read, or is neither a regular file nor a block device.
    pub(super) fn open_stated(&self, path: &Path) -> Result<Opened> {
        let pinned = pin(path).map_err(|error| match error.kind() {
            // What is missing is a part of the image, not what was asked for.
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Image, format!("cannot open {}", path.display()))
                    .because(error)
                    .advise("the guest's definition names it (virsh dumpxml): mend that")
            }
            _ => Error::io("open", path, error),
        })?;
        self.open_pinned(&pinned, path)
    }

    /// Opens the file that is called `name` inside the image at `by`.
    ///
    /// # Errors
    /// It does not exist, may not be read, is neither a regular file nor a block device, or lies
    /// where names inside images must not lead.
    pub(super) fn open_named_by_image(&self, name: &Path, by: &Path) -> Result<Opened> {
        let path = folder_of(by).join(name);
        let pinned = pin(&path).map_err(|error| match error.kind() {
            // What is missing is a part of the image, not what was asked for.
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::Image, format!("cannot open {}", path.display()))
                    .because(error)
                    .advise("if it was moved, `qemu-img rebase -u` changes the name in the image")
            }
            _ => Error::io("open", &path, error),
        })?;
        let link = proc_path(&pinned);
        let real = std::fs::read_link(&link)
            .map_err(|error| Error::io("resolve the name of", &path, error))?;
        if !self.allows(&real) {
            let what = match real == path {
                true => path.display().to_string(),
                false => format!("{} is {}, which", path.display(), real.display()),
            };
            let text = format!("{what} lies outside the image's folder");
            return Err(Error::new(ErrorKind::Image, text)
                .advise("if the file is meant, allow its folder with --image-root"));
        }
        self.open_pinned(&pinned, &path)
    }
}

/// The folder of `path`; the current one if it has none.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Gets hold of the file without opening it.
fn pin(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(crate::disk::io::pin(path, true)?)
}

/// The same of a clone, which is no symlink: who can put one in its place could have any file read.
fn pin_itself(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(crate::disk::io::pin(path, false)?)
}

/// Opens a pinned file for reading, if it is one that can hold an image.
fn open_pinned(pinned: &OwnedFd, path: &Path) -> Result<Opened> {
    let failed = |error| Error::io("open", path, error);
    let file = Opener::READ.or_device().open(&proc_path(pinned));
    let file = file.map_err(|error| not_opened(path, error, ErrorKind::Image))?;
    let metadata = file.metadata().map_err(failed)?;
    let is_device = metadata.file_type().is_block_device();
    let id = FileId::from(&metadata);
    if id != FileId::of(pinned).map_err(failed)? {
        return Err(Error::new(
            ErrorKind::Image,
            format!("{} changed while it was being opened", path.display()),
        ));
    }
    let store = FileStore::new(file, path);
    let len = store.len().map_err(|error| Error::io("find the end of", path, error))?;
    Ok(Opened {
        store: Arc::new(store),
        path: path.to_path_buf(),
        id,
        len,
        // In units of 512 bytes, whatever the file system's own blocks are.
        allocated: (!is_device).then(|| metadata.blocks().saturating_mul(512)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder `images` with an image in it, and a folder `elsewhere` beside it.
    fn folders() -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        for name in ["images/sub", "elsewhere"] {
            std::fs::create_dir_all(top.path().join(name)).unwrap();
        }
        for name in ["images/top", "images/sub/base", "elsewhere/secret"] {
            std::fs::write(top.path().join(name), name).unwrap();
        }
        let image = top.path().join("images/top");
        (top, image)
    }

    fn options(roots: &[PathBuf]) -> OpenOptions {
        OpenOptions { image_roots: roots.to_vec(), ..OpenOptions::default() }
    }

    fn open(image: &Path, roots: &[PathBuf], name: &str) -> Result<Opened> {
        Policy::new(image, &options(roots))?.open_named_by_image(Path::new(name), image)
    }

    #[test]
    fn names_lead_into_the_own_folder() {
        let (_top, image) = folders();
        for name in ["top", "sub/base", "./sub/../sub/base"] {
            assert!(open(&image, &[], name).is_ok(), "{name}");
        }
        assert!(open(&image, &[], image.to_str().unwrap()).is_ok());
    }

    #[test]
    fn names_do_not_lead_out_of_it() {
        let (top, image) = folders();
        symlink("../elsewhere/secret", top.path().join("images/link")).unwrap();
        symlink("../elsewhere", top.path().join("images/folder-link")).unwrap();
        let absolute = top.path().join("elsewhere/secret");
        for name in
            ["../elsewhere/secret", "link", "folder-link/secret", absolute.to_str().unwrap()]
        {
            let error = open(&image, &[], name).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Image, "{name}");
            assert!(error.chain().contains("outside the image's folder"), "{}", error.chain());
            assert!(error.advice().unwrap().contains("--image-root"));
            let roots = [top.path().join("elsewhere")];
            assert!(open(&image, &roots, name).is_ok(), "{name} with an image root");
        }
    }

    /// A root named `…/images` must not allow `…/images-of-others`.
    #[test]
    fn a_folder_with_a_longer_name_is_another() {
        let (top, image) = folders();
        std::fs::create_dir(top.path().join("images2")).unwrap();
        std::fs::write(top.path().join("images2/x"), "").unwrap();
        assert!(open(&image, &[], "../images2/x").is_err());
    }

    #[test]
    fn an_image_in_the_top_folder_opens_only_that() {
        let policy = Policy::new(Path::new("/image"), &options(&[])).unwrap();
        assert!(policy.allows(Path::new("/base")));
        assert!(!policy.allows(Path::new("/etc/passwd")));
        let policy = Policy::new(Path::new("/image"), &options(&["/".into()])).unwrap();
        assert!(policy.allows(Path::new("/etc/passwd")));
    }

    #[test]
    fn symlink_to_the_image_brings_both_folders() {
        let (top, image) = folders();
        let link = top.path().join("elsewhere/disk");
        symlink(&image, &link).unwrap();
        let policy = Policy::new(&link, &options(&[])).unwrap();
        assert!(policy.open_named_by_user(&link).is_ok());
        assert!(policy.open_named_by_image(Path::new("secret"), &link).is_ok());
        assert!(policy.open_named_by_image(Path::new("../images/sub/base"), &link).is_ok());
    }

    #[test]
    fn only_files_and_block_devices() {
        let (top, image) = folders();
        let fifo = top.path().join("images/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for name in ["fifo", "sub"] {
            let error = open(&image, &[], name).map(|_| ()).unwrap_err();
            assert!(error.chain().contains("neither a regular file"), "{}", error.chain());
        }
        let error = open(&image, &["/".into()], "/dev/null").map(|_| ()).unwrap_err();
        assert!(error.chain().contains("neither a regular file"), "{}", error.chain());
    }

    #[test]
    fn missing_files() {
        let (_top, image) = folders();
        let error = open(&image, &[], "gone").map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image);
        let policy = Policy::new(&image, &options(&[])).unwrap();
        let error = policy.open_named_by_user(Path::new("gone")).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(Policy::new(&image, &options(&["gone".into()])).is_err());
    }
}
