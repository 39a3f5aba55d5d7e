//! Files out of points: what qdelta reads of a filesystem is what the kernel shows of it.

mod diffs;
mod disks;
mod ext;
mod hostile;
mod lvm;
mod tree;
mod windows;

use std::path::{Path, PathBuf};

use super::harness::files::unmount;
use super::harness::repo::Repo;
use super::harness::run::as_root;
use super::harness::{Lab, Outcome, args, run, tool};

/// A disk of a guest, and a repository for it.
pub struct Guest {
    pub lab: Lab,
    pub image: PathBuf,
    pub repo: Repo,
}

impl Guest {
    /// An empty disk.
    pub fn new(size: u64) -> Self {
        let lab = Lab::new();
        let image = lab.path("guest.raw");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let repo = Repo::init(lab.path("repo"));
        Self { lab, image, repo }
    }

    /// A point of the disk as it is now.
    #[track_caller]
    pub fn backup(&self) {
        self.repo.backup(&self.image, "web", &["--format", "raw"]);
    }

    /// Runs `qdelta files` with a verb, the disk and further words.
    pub fn files(&self, verb: &str, words: &[&str]) -> Outcome {
        let mut arguments = args!["files", verb, "web"];
        arguments.extend(words.iter().map(Into::into));
        self.repo.run(arguments)
    }

    /// What `qdelta files tar` writes of a path, unpacked by GNU tar.
    #[track_caller]
    pub fn unpacked(&self, path: &str) -> tree::Tree {
        let (archive, out) = (self.lab.path("files.tar"), self.lab.path("unpacked"));
        self.files("tar", &[path, "--to", archive.to_str().unwrap(), "--force"]).ok();
        std::fs::create_dir_all(&out).unwrap();
        let all = "--xattrs-include=*";
        let words = args!["--xattrs", all, "--numeric-owner", "-xpf", archive.as_path(), "-C"];
        run(tool("tar", [words, args![out.as_path()]].concat())).ok();
        let tree = tree::Tree::of(&out);
        std::fs::remove_dir_all(&out).unwrap();
        tree
    }

    /// Writes to the filesystem that begins at `offset` of the disk through the kernel.
    #[track_caller]
    pub fn within(&self, offset: u64, work: impl FnOnce(&Path)) {
        let mount = Mounted::new(&self.lab, &self.image, &format!("loop,offset={offset}"));
        work(&mount.0);
    }

    /// What the kernel shows of the filesystem that begins at `offset` of the disk.
    #[track_caller]
    pub fn seen_by_kernel(&self, offset: u64) -> tree::Tree {
        let mount = Mounted::new(&self.lab, &self.image, &format!("loop,ro,offset={offset}"));
        tree::Tree::of(&mount.0)
    }
}

/// A filesystem that is mounted until this goes.
pub struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    pub fn new(lab: &Lab, image: &Path, options: &str) -> Self {
        let dir = lab.path("mounted");
        std::fs::create_dir_all(&dir).unwrap();
        run(as_root("mount", args!["-o", options, image, dir.as_path()])).ok();
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What was written is in the image once it is unmounted, and may not be before.
        if !std::thread::panicking() {
            unmount(&self.0);
        } else {
            let _ = as_root("umount", args!["-l", self.0.as_path()]).status();
        }
    }
}

/// Fails where this test can't mount filesystems, whose files belong to root.
#[track_caller]
pub fn needs_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "this test mounts filesystems: run it as root (sudo -E cargo test files::)");
}

/// Makes a filesystem of the ext family in a file, from its beginning on.
#[track_caller]
pub fn make_ext(image: &Path, options: &[&str]) {
    let mut arguments = args!["-q", "-F"];
    arguments.extend(options.iter().map(Into::into));
    arguments.push(image.into());
    run(tool("mke2fs", arguments)).ok();
}
