//! What a guest can do to whoever reads its filesystem, and what an admin can get wrong.

use std::path::Path;

use super::{Guest, args, make_ext, run, tool};

/// A small filesystem with some files, changed by `debugfs`.
fn guest(requests: &[&str]) -> Guest {
    let guest = Guest::new(16 << 20);
    let tree = guest.lab.path("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/file"), "text").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("out")).unwrap();
    make_ext(&guest.image, &["-t", "ext4", "-O", "^metadata_csum", "-d", tree.to_str().unwrap()]);
    let mut debugfs = args!["-w"];
    let script = guest.lab.path("requests");
    std::fs::write(&script, requests.join("\n") + "\n").unwrap();
    debugfs.extend(args!["-f", script.as_path(), guest.image.as_path()]);
    run(tool("debugfs", debugfs)).ok();
    guest.backup();
    guest
}

fn get(guest: &Guest, words: &[&str], out: &Path) -> super::Outcome {
    guest.files("get", &[words, &["--to", out.to_str().unwrap()]].concat())
}

/// A folder that is in itself was walked through for ever.
#[test]
fn a_folder_in_itself_ends() {
    let guest = guest(&["link /a /a/b/again"]);
    let out = guest.lab.path("out");
    let said = get(&guest, &["/"], &out).fails_with(9);
    assert!(said.contains("/a/b/again") && said.contains("two names"), "{said}");
    assert_eq!(std::fs::read(out.join("a/file")).unwrap(), b"text");
    assert!(guest.files("ls", &["/", "-R"]).fails_with(9).contains("two names"));
    assert!(guest.files("tar", &["/", "--to", "-"]).fails_with(9).contains("two names"));
}

/// A name with a slash in it would be a path to anywhere. No tool makes one: the bytes are changed.
#[test]
fn a_name_that_leads_out_is_refused() {
    for name in [&b"../e"[..], b"/etc", b"a/..", b"\0abc"] {
        let guest = guest(&["write /dev/null name"]);
        let mut image = std::fs::read(&guest.image).unwrap();
        let at = image.windows(7).position(|window| window == b"\x04\x01name\x00").unwrap_or_else(
            || image.windows(6).position(|window| window == b"\x04\x01name").unwrap(),
        );
        image[at + 2..at + 6].copy_from_slice(name);
        std::fs::write(&guest.image, image).unwrap();
        guest.backup();
        let out = guest.lab.path("inner/out");
        std::fs::create_dir(guest.lab.path("inner")).unwrap();
        let said = get(&guest, &["/"], &out).fails_with(9);
        assert!(said.contains("damaged") || said.contains("name"), "{said}");
        let mut names: Vec<_> = std::fs::read_dir(guest.lab.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.retain(|name| !name.starts_with("repo"));
        assert_eq!(names, ["guest.raw", "inner", "requests", "tree"]);
    }
}

/// A size of an exabyte, of a file that has one block.
#[test]
fn a_size_beyond_all_measure_costs_nothing() {
    let guest = guest(&["set_inode_field /a/file size 0x0fffffffffffff"]);
    let out = guest.lab.path("out.tar");
    guest.files("tar", &["/", "--to", out.to_str().unwrap()]).ok();
    assert!(out.metadata().unwrap().len() < 1 << 20, "holes are no bytes");
    let listed = guest.files("ls", &["/a/file", "--json"]).ok().json();
    assert_eq!(listed["files"][0]["bytes"], 0x000f_ffff_ffff_ffff_u64);
}

/// One file that is damaged, or that the target has no form for, once cost the whole tree: a size that the
/// target's filesystem does not reach, one that no offset reaches, a name that a folder has twice, a link to
/// nowhere at all.
#[test]
fn one_impossible_file_costs_no_other() {
    for (requests, is_in_tar) in [
        (&["set_inode_field /a/file size 0x100000000000"] as &[&str], true),
        (&["set_inode_field /a/file size 0xffffffffffffff00"], false),
        (&["cd /a", "write /dev/null twin", "write /dev/null twix"], true),
    ] {
        let guest = guest(requests);
        // No tool gives a name twice: the bytes of one are changed.
        let mut image = std::fs::read(&guest.image).unwrap();
        if let Some(at) = image.windows(6).position(|window| window == b"\x04\x01twix") {
            image[at + 5] = b'n';
            std::fs::write(&guest.image, image).unwrap();
            guest.backup();
        }
        let out = guest.lab.path("out");
        let said = get(&guest, &["/"], &out).fails_with(9);
        assert!(said.contains("/a/"), "{said}");
        assert_eq!(std::fs::read_link(out.join("out")).unwrap(), Path::new("/etc/passwd"));
        assert!(out.join("a/b").is_dir());
        let archive = guest.lab.path("out.tar");
        let done = guest.files("tar", &["/", "--to", archive.to_str().unwrap()]);
        match is_in_tar {
            true => drop(done.ok()),
            false => drop(done.fails_with(9)),
        }
        run(tool("tar", args!["-tf", archive.as_path()])).ok();
    }
}

/// A path with dots in it is no name for what it leads to; and `get` asked for a path of this machine.
#[test]
fn what_is_typed_is_understood() {
    let guest = guest(&[]);
    let archive = guest.lab.path("out.tar");
    guest.files("tar", &["/../a/../a/./file", "--to", archive.to_str().unwrap()]).ok();
    let listed = run(tool("tar", args!["-tf", archive.as_path()])).ok();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "a/file");
    let said = guest.files("get", &["/a/file", "out.txt"]).fails_with(6);
    assert!(said.contains("on the volume") && said.contains("--to"), "{said}");
}

/// Links in a tree are copied and never followed; a path is followed inside the volume alone.
#[test]
fn a_link_that_points_out_leads_nowhere() {
    let guest = guest(&[]);
    let out = guest.lab.path("out");
    get(&guest, &["/"], &out).ok();
    assert_eq!(std::fs::read_link(out.join("out")).unwrap(), Path::new("/etc/passwd"));
    let said = get(&guest, &["/out"], &guest.lab.path("other")).fails_with(6);
    assert!(said.contains("link"), "{said}");
    get(&guest, &["/../../a/./file"], &guest.lab.path("file")).ok();
    // A folder of the target that is a link is not written through, at the top and below.
    let elsewhere = guest.lab.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::remove_dir_all(out.join("a/b")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, out.join("a/b")).unwrap();
    get(&guest, &["/a", "--force"], &out).fails_with(1);
    std::fs::remove_dir_all(out.join("a")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, out.join("a")).unwrap();
    get(&guest, &["/a", "--force"], &out).fails_with(7);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
}

/// Nothing that exists is replaced unless that was said, and nothing is left of what failed.
#[test]
fn what_exists_stays() {
    let guest = guest(&[]);
    let out = guest.lab.path("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("file"), "mine").unwrap();
    let said = get(&guest, &["/a/file"], &out).fails_with(7);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(out.join("file")).unwrap(), b"mine");
    get(&guest, &["/a/file", "--force"], &out).ok();
    assert_eq!(std::fs::read(out.join("file")).unwrap(), b"text");
    get(&guest, &["/a", "--force"], &out).ok();
    get(&guest, &["/a"], &out).fails_with(7);
    get(&guest, &["/a", "--force"], &out).ok();
    get(&guest, &["/none"], &out).fails_with(6);
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "file"]);
    assert_eq!(guest.files("get", &["/a/file", "--to", "-"]).ok().stdout, b"text");
    guest.files("get", &["/a", "--to", "-"]).fails_with(2);
}
