//! Whole files and folders: comparing, copying, and file systems on loop devices.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::run::as_root;
use super::virsh::wait_until;
use super::{args, run, tool};

/// Two files must have the same bytes; says where they first differ.
#[track_caller]
pub fn assert_same(expected: &Path, actual: &Path, what: &str) {
    let lengths = [expected, actual].map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(lengths[0], lengths[1], "{what}: length of {actual:?}");
    let mut files = [expected, actual].map(|path| std::fs::File::open(path).unwrap());
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut offset = 0;
    while offset < lengths[0] {
        let len = (lengths[0] - offset).min(1 << 20) as usize;
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(&mut buffer[..len]).unwrap();
        }
        if buffers[0][..len] != buffers[1][..len] {
            let at = (0..len).find(|&i| buffers[0][i] != buffers[1][i]).unwrap();
            panic!(
                "{what}: {actual:?} differs from {expected:?} first at byte {}: {:#04x} instead of {:#04x}",
                offset + at as u64,
                buffers[1][at],
                buffers[0][at]
            );
        }
        offset += len as u64;
    }
}

/// Every file below `dir`, by its path from there.
pub fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_path_buf());
            }
        }
    }
    found
}

/// Replaces `to` by a copy of the folder `from`.
#[track_caller]
pub fn copy_tree(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(tool("cp", args!["-a", "--sparse=auto", from, to])).ok();
}

/// The SHA-256 of a file, in hex.
#[track_caller]
pub fn sha256(path: &Path) -> String {
    let text = run(tool("sha256sum", args!["-b", path])).ok().text();
    text.split_whitespace().next().unwrap().trim_start_matches('\\').to_owned()
}

/// Bytes that a file takes on disk.
pub fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A file system of its own, mounted below a test's folder and unmounted at the end.
#[derive(Debug)]
pub struct Mount {
    pub dir: PathBuf,
    source: PathBuf,
    options: &'static str,
}

impl Mount {
    /// A file system of type `kind` in a sparse file of `size` bytes.
    #[track_caller]
    pub fn on_loop(lab: &Path, kind: &str, size: u64) -> Self {
        Self::on_loop_with(lab, kind, size, &[])
    }

    /// The same, made with these options.
    #[track_caller]
    pub fn on_loop_with(lab: &Path, kind: &str, size: u64, options: &[&str]) -> Self {
        let source = lab.join(format!("{kind}.disk"));
        std::fs::File::create(&source).unwrap().set_len(size).unwrap();
        let mut arguments = args!["-q"];
        arguments.extend(options.iter().map(Into::into));
        arguments.push(source.clone().into());
        run(tool(&format!("mkfs.{kind}"), arguments)).ok();
        let mount = Self { dir: lab.join(format!("{kind}.mount")), source, options: "loop" };
        std::fs::create_dir(&mount.dir).unwrap();
        mount.mount();
        mount
    }

    /// A file system in memory of `size` bytes.
    #[track_caller]
    pub fn in_memory(lab: &Path, size: u64) -> Self {
        Self::of_type(lab, "tmpfs", PathBuf::from("tmpfs"), &format!("size={size},mode=0777"))
    }

    /// An overlayfs that writes nothing back when it is asked to.
    #[track_caller]
    pub fn volatile(lab: &Path) -> Self {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| lab.join(name));
        for folder in [&lower, &upper, &work] {
            std::fs::create_dir(folder).unwrap();
        }
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},volatile");
        Self::of_type(lab, "overlay", PathBuf::from("overlay"), &options)
    }

    /// A squashfs with the files of `tree`, which can only be read.
    #[track_caller]
    pub fn read_only(lab: &Path, tree: &Path) -> Self {
        let source = lab.join("squashfs.disk");
        run(tool("mksquashfs", args![tree, source.as_path(), "-quiet", "-no-progress"])).ok();
        Self::of_type(lab, "squashfs", source, "loop,ro")
    }

    #[track_caller]
    fn of_type(lab: &Path, kind: &'static str, source: PathBuf, options: &str) -> Self {
        let mount = Self { dir: lab.join(format!("{kind}.mount")), source, options: kind };
        std::fs::create_dir(&mount.dir).unwrap();
        let names = args![mount.source.as_path(), mount.dir.as_path()];
        run(as_root("mount", [args!["-t", kind, "-o", options], names].concat())).ok();
        mount
    }

    /// A mount namespace of another test may still have the file system as it was when its power was
    /// cut. Then that is what is mounted, and not to be used: it is tried again.
    #[track_caller]
    pub fn mount(&self) {
        wait_until("a file system that works", || {
            let place = args!["-o", self.options, self.source.as_path(), self.dir.as_path()];
            run(as_root("mount", place)).ok();
            let works = run(as_root("chmod", args!["0777", self.dir.as_path()])).code() == Some(0);
            if !works {
                self.unmount();
            }
            works
        });
    }

    #[track_caller]
    pub fn unmount(&self) {
        unmount(&self.dir);
    }

    /// What a script does when qdelta has ended: once, and it must work.
    #[track_caller]
    pub fn unmount_at_once(&self) {
        run(as_root("umount", args![self.dir.as_path()])).ok();
    }

    /// What a power cut leaves: nothing that has not been made durable. With `log_flushed`, the
    /// file system's own journal got out just before, but not the data of files.
    #[track_caller]
    pub fn cut_power(&self, log_flushed: bool) {
        let shutdown = if log_flushed { "shutdown -f" } else { "shutdown" };
        run(as_root("xfs_io", args!["-x", "-c", shutdown, self.dir.as_path()])).ok();
        self.unmount();
        self.mount();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = as_root("umount", args!["-l", self.dir.as_path()]).status();
    }
}

/// Ends the mount at `dir`. A program that was killed a moment ago may still be letting go of its files,
/// and a program that is just being started by another test has all files of this process open until it runs.
#[track_caller]
pub fn unmount(dir: &Path) {
    wait_until("the end of a mount", || run(as_root("umount", args![dir])).code() == Some(0));
}
