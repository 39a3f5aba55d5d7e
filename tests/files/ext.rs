//! ext2, ext3 and ext4, in all the forms that `mke2fs` makes.

use super::tree::{self, Tree};
use super::{Guest, make_ext, needs_root};

/// What `mke2fs` is told. The first is what a distribution's installer makes.
const FORMS: &[(&str, &[&str])] = &[
    ("ext4", &["-t", "ext4"]),
    ("ext4 with blocks of 1 KiB", &["-t", "ext4", "-b", "1024"]),
    ("ext2", &["-t", "ext2"]),
    ("ext2 with blocks of 1 KiB", &["-t", "ext2", "-b", "1024"]),
    ("ext3", &["-t", "ext3"]),
    ("inline data", &["-t", "ext4", "-O", "inline_data"]),
    ("inline data in large inodes", &["-t", "ext4", "-O", "inline_data", "-I", "1024"]),
    ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "65536"]),
    ("meta_bg", &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"]),
    ("small inodes", &["-t", "ext4", "-I", "128"]),
    ("no checksums, no 64bit", &["-t", "ext4", "-O", "^metadata_csum,^64bit"]),
    ("sparse_super2, ea_inode", &["-t", "ext4", "-O", "sparse_super2,ea_inode,large_dir"]),
];

/// Everything that the kernel shows of a filesystem, in each of its forms, comes out of a point as it is.
#[test]
fn a_tree_is_what_the_kernel_shows() {
    needs_root();
    for (form, options) in FORMS {
        let guest = Guest::new(96 << 20);
        make_ext(&guest.image, options);
        guest.within(0, tree::make);
        guest.backup();
        let out = guest.lab.path("out");
        guest.files("get", &["/", "--to", out.to_str().unwrap()]).ok();
        let wanted = guest.seen_by_kernel(0);
        assert!(wanted.len() > 340, "{form}: {} files", wanted.len());
        println!("{form}");
        Tree::of(&out).assert_eq(&wanted);
        guest.unpacked("/").assert_eq(&wanted);
    }
}

/// A guest that was running has changes in its journal alone. A mount writes them to their places first;
/// here they are read from the journal, also after files were removed and blocks revoked.
#[test]
fn a_journal_is_read_in_the_place_of_what_is_not_written_yet() {
    use std::io::Write;
    needs_root();
    for options in
        [&["-t", "ext4"][..], &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"]]
    {
        let guest = Guest::new(64 << 20);
        let running = guest.lab.path("running.raw");
        std::fs::copy(&guest.image, &running).unwrap();
        make_ext(&running, options);
        let mount = super::Mounted::new(&guest.lab, &running, "loop");
        let at = |name: &str| mount.0.join(name);
        std::fs::create_dir(at("old")).unwrap();
        for number in 0..60 {
            std::fs::write(at(&format!("old/{number}")), "old").unwrap();
        }
        rustix::fs::sync();
        let sync = |name: &str| {
            let mut file =
                std::fs::File::options().create(true).append(true).open(at(name)).unwrap();
            file.write_all(b"synced").unwrap();
            file.sync_all().unwrap();
        };
        std::fs::create_dir_all(at("new/gone")).unwrap();
        for number in 0..200 {
            std::fs::write(at(&format!("new/{number}")), vec![b'x'; number * 10]).unwrap();
        }
        std::fs::rename(at("old/50"), at("new/renamed")).unwrap();
        sync("new/1");
        for number in 0..20 {
            std::fs::remove_file(at(&format!("old/{number}"))).unwrap();
        }
        std::fs::remove_dir(at("new/gone")).unwrap();
        sync("new/2");
        // As it lies on the disk at this moment, with the journal not at its place.
        std::fs::copy(&running, &guest.image).unwrap();
        drop(mount);
        guest.backup();
        let listed = guest.files("ls", &["/", "--json"]).ok().json();
        assert_eq!(listed["warnings"][0]["code"], "volume", "the journal is spoken of");
        let unpacked = guest.unpacked("/");
        guest.within(0, |_| {});
        unpacked.assert_eq(&guest.seen_by_kernel(0));
    }
}

/// The names of an encrypted folder need a key that only the guest has. It is left out and named, and the
/// rest comes out.
#[test]
fn an_encrypted_folder_is_left_out_and_named() {
    let guest = Guest::new(16 << 20);
    let tree = guest.lab.path("tree");
    std::fs::create_dir_all(tree.join("secret")).unwrap();
    std::fs::write(tree.join("open"), "text").unwrap();
    let tree = tree.to_str().unwrap().to_owned();
    make_ext(&guest.image, &["-t", "ext4", "-O", "encrypt", "-d", &tree]);
    let request = "set_inode_field /secret flags 0x80800";
    let words = super::args!["-w", "-R", request, guest.image.as_path()];
    super::run(super::tool("debugfs", words)).ok();
    guest.backup();
    let out = guest.lab.path("out");
    let run = guest.files("get", &["/", "--to", out.to_str().unwrap()]);
    let said = run.fails_with(9);
    assert!(said.contains("/secret") && said.contains("encrypted"), "{said}");
    assert_eq!(std::fs::read_to_string(out.join("open")).unwrap(), "text");
}
