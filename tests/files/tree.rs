//! A tree of files: making one with everything that files can be, and describing one exactly.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Timespec, Timestamps, Uid, XattrFlags};

use crate::harness::{args, run, tool};

/// Everything that is known of a file but its name.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    links: u64,
    device: u64,
    target: Option<PathBuf>,
    content: u64,
    attributes: Vec<(OsString, Vec<u8>)>,
    /// The first of the names of a file that has several.
    same_as: Option<PathBuf>,
}

/// A tree, by paths.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, File>);

impl Tree {
    /// Describes what is below `root`, without `lost+found`.
    pub fn of(root: &Path) -> Self {
        let mut tree = BTreeMap::new();
        let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
        let mut todo = vec![root.to_owned()];
        while let Some(path) = todo.pop() {
            let name = path.strip_prefix(root).unwrap().to_owned();
            if name == Path::new("lost+found") {
                continue;
            }
            let metadata = path.symlink_metadata().unwrap();
            let kind = metadata.file_type();
            if metadata.is_dir() {
                let mut names: Vec<_> =
                    std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
                names.sort();
                todo.extend(names.into_iter().rev());
            }
            let first = inodes.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
            let several = !metadata.is_dir() && metadata.nlink() > 1;
            let is_device = kind.is_block_device() || kind.is_char_device();
            let file = File {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                size: if metadata.is_dir() { 0 } else { metadata.len() },
                links: if metadata.is_dir() { 0 } else { metadata.nlink() },
                device: if is_device { metadata.rdev() } else { 0 },
                target: kind.is_symlink().then(|| std::fs::read_link(&path).unwrap()),
                content: if metadata.is_file() { content(&path) } else { 0 },
                attributes: attributes(&path),
                same_as: several.then_some(first),
            };
            tree.insert(name, file);
        }
        Self(tree)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Fails with the first differences if the trees are not equal.
    #[track_caller]
    pub fn assert_eq(&self, other: &Self) {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differs = |name: &&&PathBuf| self.0.get(**name) != other.0.get(**name);
        let all: Vec<_> = names.iter().filter(differs).collect();
        let told: Vec<String> = all
            .iter()
            .take(5)
            .map(|name| {
                format!("{name:?}\n  {:?}\n  {:?}", self.0.get(**name), other.0.get(**name))
            })
            .collect();
        assert!(all.is_empty(), "{} files differ:\n{}", all.len(), told.join("\n"));
    }
}

fn content(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut file = std::fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finish(),
            count => hasher.write(&buffer[..count]),
        }
    }
}

fn attributes(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0u8; 65536];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else { return Vec::new() };
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0u8; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (OsString::from_vec(name.to_vec()), value)
        })
        .collect();
    all.sort();
    all
}

/// Bytes that no compression makes smaller.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Makes a tree with everything that a filesystem of Unix can hold.
pub fn make(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
    for folder in ["a/b/c", "sp ace", "long", "empty folder"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    write("a/f", b"hello\n");
    write("a/empty", b"");
    for len in [1, 59, 60, 61, 150, 4095, 4096, 4097, 3_000_000] {
        write(&format!("a/noise-{len}"), &noise(len as u64, len));
    }
    write("a/zeros", &vec![0; 300_000]);
    links(root);
    holes(root);
    for number in 0..300 {
        write(&format!("long/{}{number}", "n".repeat(200)), b"");
    }
    for name in [&b"new\nline"[..], b"bad\xff\xfeutf", b"back\\slash", b"\x1b[31mred", b"-rf"] {
        std::fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    // Two files that grow in turn lie in many pieces.
    for round in 0..60 {
        for name in ["a/grown", "a/grown-too"] {
            use std::io::Write;
            let mut file =
                std::fs::File::options().create(true).append(true).open(at(name)).unwrap();
            file.write_all(&noise(round + 7, 4096)).unwrap();
            file.sync_data().unwrap();
        }
    }
    specials(root);
    owners_and_times(root);
}

fn links(root: &Path) {
    let at = |name: &str| root.join(name);
    std::fs::hard_link(at("a/f"), at("a/b/hard")).unwrap();
    std::fs::hard_link(at("a/f"), at("a/hard too")).unwrap();
    for (target, name) in [
        ("../f", "a/b/soft"),
        ("/a/b", "absolute"),
        ("../../../../etc/passwd", "a/out"),
        ("loop2", "loop1"),
        ("loop1", "loop2"),
    ] {
        symlink(target, at(name)).unwrap();
    }
    for len in [59, 60, 61, 200, 1000] {
        symlink("x".repeat(len), at(&format!("a/link-{len}"))).unwrap();
    }
}

fn holes(root: &Path) {
    use std::os::unix::fs::FileExt;
    let sparse = std::fs::File::create(root.join("a/sparse")).unwrap();
    sparse.write_all_at(&noise(3, 12_000), 400_000).unwrap();
    sparse.write_all_at(&noise(4, 4096), 20_000_000).unwrap();
    sparse.set_len(50_000_001).unwrap();
    std::fs::File::create(root.join("a/hole")).unwrap().set_len(1 << 28).unwrap();
    // Room that was reserved and never written reads as zeros.
    let reserved = std::fs::File::create(root.join("a/reserved")).unwrap();
    let flags = rustix::fs::FallocateFlags::empty();
    let _ = rustix::fs::fallocate(&reserved, flags, 0, 1 << 20);
    reserved.write_all_at(b"middle", 500_000).unwrap();
}

fn specials(root: &Path) {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let make = |name: &str, kind, major, minor| {
        let device = makedev(major, minor);
        mknodat(CWD, root.join(name), kind, Mode::from(0o640), device).unwrap();
    };
    make("a/null", FileType::CharacterDevice, 1, 3);
    make("a/disk", FileType::BlockDevice, 259, 70_000);
    make("a/pipe", FileType::Fifo, 0, 0);
}

fn owners_and_times(root: &Path) {
    let at = |name: &str| root.join(name);
    let set = |name: &str, attribute: &str, value: &[u8]| {
        // Not every filesystem takes every attribute.
        let _ = rustix::fs::setxattr(at(name), attribute, value, XattrFlags::empty());
    };
    set("a/f", "user.foo", b"bar");
    set("a/f", "user.empty", b"");
    set("a/noise-61", "user.big", &noise(9, 1500));
    set("a/b", "trusted.t", b"1");
    run(tool("setfacl", args!["-m", "u:1234:rw,g:77:r", at("a/noise-60")])).ok();
    run(tool("setfacl", args!["-d", "-m", "u:5:rx", at("a/b")])).ok();
    let owner = (Some(Uid::from_raw(100_000)), Some(Gid::from_raw(200_000)));
    rustix::fs::chown(at("a/noise-4096"), owner.0, owner.1).unwrap();
    rustix::fs::chownat(
        rustix::fs::CWD,
        at("loop1"),
        owner.0,
        owner.1,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set("a/noise-4096", "security.capability", &capability);
    for (name, mode) in [("a/noise-4097", 0o4755), ("long", 0o1777), ("a/b", 0o2750), ("a/f", 0)] {
        rustix::fs::chmod(at(name), mode.into()).unwrap();
    }
    for (name, seconds, nanoseconds) in [
        ("a/noise-1", -2, 500_000_000),
        ("a/noise-59", 4_102_444_800, 123_456_789),
        ("sp ace", 2_147_490_000, 900_000_000),
        ("a", 1_000_000_000, 1),
    ] {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, flags).unwrap();
    }
}
