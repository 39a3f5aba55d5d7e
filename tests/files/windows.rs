//! NTFS, as ntfs-3g writes and shows it, and FAT, as mtools do.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::tree::{Tree, noise};
use super::{Guest, args, needs_root, run, tool};
use crate::harness::files::unmount;
use crate::harness::run::{as_root, finish, start};
use crate::harness::virsh::wait_until;

/// Files with long and odd names, in several pieces, and of a folder that needs a tree.
fn plant(root: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).unwrap();
    for folder in ["a/b/c", "many", "Sp ace", "empty"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    for len in [0, 1, 200, 700, 4096, 1_000_000] {
        write(&format!("a/noise-{len}"), &noise(len as u64, len));
    }
    write("SHORT.TXT", b"short");
    write("lower.txt", b"lower");
    write("a/Ünïcode näme ☃ that is long.text", b"unicode");
    for number in 0..200 {
        write(&format!("many/{}{number}", "n".repeat(120)), b"");
    }
    for round in 0..40 {
        use std::io::Write;
        for name in ["a/grown", "a/grown-too"] {
            let path = root.join(name);
            let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            file.write_all(&noise(round + 1, 5000)).unwrap();
        }
    }
}

struct Ntfs<'a>(&'a Guest);

impl Ntfs<'_> {
    /// Of an image in a file, the kernel does not wait for the daemon when it is unmounted: this does.
    fn within<T>(&self, how: &str, work: impl FnOnce(&Path) -> T) -> T {
        let dir = self.0.lab.path("mounted");
        std::fs::create_dir_all(&dir).unwrap();
        let outside = dir.metadata().unwrap().dev();
        let options = format!("{how},no_detach,fmask=0133,dmask=0022");
        let words = args!["-o", options, self.0.image.as_path(), dir.as_path()];
        let mut daemon = as_root("ntfs-3g", words);
        let child = start(&mut daemon);
        wait_until("a mount", || dir.metadata().unwrap().dev() != outside);
        let result = work(&dir);
        unmount(&dir);
        finish(child, format!("{daemon:?}")).ok();
        result
    }
}

/// Compressed and sparse files, links, and streams, which ntfs-3g shows as attributes.
#[test]
fn ntfs_is_what_ntfs_3g_shows() {
    needs_root();
    for cluster in ["4096", "512", "65536"] {
        let guest = Guest::new(64 << 20);
        run(tool("mkntfs", args!["-F", "-q", "-c", cluster, guest.image.as_path()])).ok();
        let ntfs = Ntfs(&guest);
        ntfs.within("rw", |root| {
            plant(root);
            let at = |name: &str| root.join(name);
            std::fs::hard_link(at("a/noise-200"), at("a/hard")).unwrap();
            std::os::unix::fs::symlink("../noise-200", at("a/b/soft")).unwrap();
            use std::os::unix::fs::FileExt;
            let sparse = std::fs::File::create(at("a/sparse")).unwrap();
            sparse.set_len(20_000_000).unwrap();
            sparse.write_all_at(&noise(5, 100_000), 9_000_000).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            for (name, value) in [("user.stream", noise(1, 40)), ("user.large", noise(2, 3000))] {
                rustix::fs::setxattr(at("a/noise-700"), name, &value, flags).unwrap();
            }
            // What is made in a compressed folder is compressed.
            std::fs::create_dir(at("packed")).unwrap();
            let compressed = 0x800u32.to_le_bytes();
            rustix::fs::setxattr(at("packed"), "system.ntfs_attrib", &compressed, flags).unwrap();
            let lines: String = (0..4000).map(|n| format!("line {n} of {}\n", n * n)).collect();
            let mixed = [lines.as_bytes(), &[0; 200_000], &noise(3, 150_000), lines.as_bytes()];
            std::fs::write(at("packed/lines"), &lines).unwrap();
            std::fs::write(at("packed/mixed"), mixed.concat()).unwrap();
            std::fs::write(at("packed/noise"), noise(4, 300_000)).unwrap();
            std::fs::write(at("packed/zeros"), vec![0; 500_000]).unwrap();
        });
        guest.backup();
        let out = guest.lab.path("out");
        guest.files("get", &["/", "--to", out.to_str().unwrap()]).ok();
        let wanted = ntfs.within("ro", Tree::of);
        assert!(wanted.len() > 220);
        Tree::of(&out).assert_eq(&wanted);
        guest.unpacked("/").assert_eq(&wanted);
        // Case is no matter to Windows.
        let listed = guest.files("ls", &["/A/NOISE-200", "--json"]).ok().json();
        assert_eq!(listed["files"][0]["bytes"], 200);
    }
}

/// One stream that no attribute can hold made an archive without any attribute of the file.
#[test]
fn a_stream_that_is_too_large_keeps_no_other_back() {
    needs_root();
    let guest = Guest::new(64 << 20);
    run(tool("mkntfs", args!["-F", "-q", guest.image.as_path()])).ok();
    let (small, large) = (noise(1, 40), noise(2, 70_000));
    Ntfs(&guest).within("rw,streams_interface=windows", |root| {
        std::fs::write(root.join("file"), b"content").unwrap();
        std::fs::write(root.join("file:a small one"), &small).unwrap();
        std::fs::write(root.join("file:large"), &large).unwrap();
    });
    guest.backup();
    let (archive, out) = (guest.lab.path("files.tar"), guest.lab.path("out"));
    let tar = guest.files("tar", &["/file", "--to", archive.to_str().unwrap(), "--json"]);
    let get = guest.files("get", &["/file", "--to", out.to_str().unwrap(), "--json"]);
    for outcome in [tar, get] {
        assert_eq!(outcome.status.code(), Some(9), "{}", outcome.report());
        let report = outcome.json();
        assert_eq!(report["left_out"], 1, "{report}");
        let said = report["warnings"][0]["text"].as_str().unwrap();
        assert!(said.contains("/file: the stream \"large\" is left out"), "{said}");
        assert!(said.contains("it has 70000 bytes"), "{said}");
    }
    let words = args!["--xattrs", "--xattrs-include=*", "-xf", archive.as_path(), "-C"];
    std::fs::remove_file(&out).unwrap();
    run(tool("tar", [words, args![guest.lab.dir()]].concat())).ok();
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(guest.lab.path("file"), "user.a small one", &mut value).unwrap();
    assert_eq!(&value[..len], small);
}

#[test]
fn fat_is_what_mtools_wrote() {
    for (width, size) in [("12", 7 << 20), ("16", 64 << 20), ("32", 64 << 20)] {
        let guest = Guest::new(size);
        let made = guest.lab.path("made");
        std::fs::create_dir(&made).unwrap();
        plant(&made);
        run(tool("mkfs.vfat", args!["-F", width, guest.image.as_path()])).ok();
        for entry in std::fs::read_dir(&made).unwrap() {
            let words =
                args!["-s", "-m", "-i", guest.image.as_path(), entry.unwrap().path(), "::/"];
            let mut copy = tool("mcopy", words);
            copy.env("MTOOLS_SKIP_CHECK", "1").env("LC_ALL", "C.UTF-8");
            run(copy).ok();
        }
        guest.backup();
        let out = guest.lab.path("out");
        guest.files("get", &["/", "--to", out.to_str().unwrap()]).ok();
        run(tool("diff", args!["-r", made.as_path(), out.as_path()])).ok();
        let listed = guest.files("ls", &["/short.txt", "--json"]).ok().json();
        assert_eq!(listed["files"][0]["bytes"], 5, "FAT{width}");
    }
}
