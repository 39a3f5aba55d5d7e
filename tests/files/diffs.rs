//! `files diff`: what was done to files between two points, and nothing else.

use std::path::Path;

use super::tree::noise;
use super::{Guest, make_ext, needs_root};

/// The lines of a comparison of the two newest points.
#[track_caller]
fn diff(guest: &Guest, options: &[&str]) -> Vec<String> {
    let points = guest.repo.points("web");
    let [.., old, new] = points.as_slice() else { panic!("{points:?}") };
    let mut arguments = super::args!["files", "diff", format!("web@{old}..{new}")];
    arguments.extend(options.iter().map(Into::into));
    let text = guest.repo.run(arguments).ok().text();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn each_change_is_told_and_no_other() {
    needs_root();
    for options in [&["-t", "ext4"][..], &["-t", "ext2", "-b", "1024"]] {
        let guest = Guest::new(64 << 20);
        make_ext(&guest.image, options);
        guest.within(0, |root| {
            let at = |name: &str| root.join(name);
            for folder in ["same/below", "gone", "a"] {
                std::fs::create_dir_all(at(folder)).unwrap();
            }
            for name in ["same/below/file", "gone/x", "a/content", "a/mode", "a/touched", "a/kind"]
            {
                std::fs::write(at(name), noise(1, 100_000)).unwrap();
            }
            std::os::unix::fs::symlink("one", at("a/link")).unwrap();
            std::fs::write(at("a/kept time"), noise(2, 200_000)).unwrap();
        });
        guest.backup();
        guest.within(0, change);
        guest.backup();
        let wanted = [
            "M /a/content",
            "M /a/kept time",
            "- /a/kind",
            "+ /a/kind",
            "+ /a/kind/new",
            "M /a/link",
            "m /a/mode",
            "+ /a/new",
            "m /a/touched",
            "- /gone",
            "- /gone/x",
        ];
        assert_eq!(diff(&guest, &[]), wanted, "{options:?}");
        assert_eq!(diff(&guest, &["/gone"]), ["- /gone", "- /gone/x"]);
        assert!(diff(&guest, &["/same"]).is_empty());
    }
}

fn change(root: &Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let at = |name: &str| root.join(name);
    let write_at = |name: &str, bytes: &[u8], offset: u64| {
        let file = std::fs::File::options().write(true).open(at(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file
    };
    write_at("a/content", b"other", 50_000);
    // Written to, and the time put back: the content alone tells.
    let before = at("a/kept time").metadata().unwrap().modified().unwrap();
    write_at("a/kept time", b"other", 150_000).set_modified(before).unwrap();
    // The same bytes again are another time, and no other content.
    write_at("a/touched", &noise(1, 100_000)[..50], 0);
    std::fs::set_permissions(at("a/mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(at("a/link")).unwrap();
    std::os::unix::fs::symlink("two", at("a/link")).unwrap();
    std::fs::remove_file(at("a/kind")).unwrap();
    std::fs::create_dir(at("a/kind")).unwrap();
    for name in ["a/kind/new", "a/new"] {
        std::fs::write(at(name), "new").unwrap();
    }
    std::fs::remove_dir_all(at("gone")).unwrap();
}
