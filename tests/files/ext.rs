//! ext2, ext3 and ext4, in all the forms that `mke2fs` makes.

use super::tree::{self, Tree};
use super::{Guest, can_mount, make_ext};

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
    if !can_mount() {
        return;
    }
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
    }
}
