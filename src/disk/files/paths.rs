//! Paths as they are recorded and compared: one name for one file, wherever the program was started.

use std::path::{Component, Path, PathBuf};

use crate::disk::sys::FileId;
use crate::formats::nbd::Uri;

/// A path that means the same from every folder, without `.` and `..`.
///
/// Symlinks stay as they were named: `/dev/vg/web` is the volume's name, and where it leads differs from
/// start to start. Only what stands before a `..` is resolved, because `..` after a symlink is the
/// folder above the symlink's target.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    if is_uri(path) {
        return path.to_path_buf();
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let parts: Vec<Component<'_>> = absolute.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else {
        return absolute.components().collect();
    };
    let (before, after) = parts.split_at(last + 1);
    let before: PathBuf = before.iter().collect();
    let before = before.canonicalize().unwrap_or_else(|_| lexical(&before));
    // Joining nothing would put a slash behind it.
    after.iter().fold(before, |path, part| path.join(part))
}

/// Whether it is no path of a file, but the name of an export of a server.
pub(crate) fn is_uri(path: &Path) -> bool {
    path.to_str().is_some_and(Uri::is_meant)
}

/// The path without `..`, by its words alone: what is not there can't be resolved.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Whether both names lead to one file or block device that is there.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    match (FileId::at(one), FileId::at(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Whether both are the same name, or lead to one file.
pub(crate) fn is_same_place(one: &Path, other: &Path) -> bool {
    absolute(one) == absolute(other) || is_same_file(one, other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// An image that was named as `/w/../x/disk` was recorded so, and its clone as `/x/disk`: one clone was
    /// listed twice, and the second removal failed. `/w/../x` also stood in a restored definition.
    #[test]
    fn no_recorded_path_leads_up() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("w/deep")).unwrap();
        std::fs::create_dir(top.join("x")).unwrap();
        symlink(top.join("w/deep"), top.join("x/link")).unwrap();
        let same = |path: &str, expected: &str| {
            assert_eq!(absolute(&top.join(path)), top.join(expected), "{path}");
        };
        same("w/../x/disk", "x/disk");
        same("w/../x", "x");
        same("w/deep/../../x/./disk", "x/disk");
        same("w/..//x/", "x");
        same("x/disk", "x/disk");
        // Above a symlink is the folder above its target.
        same("x/link/../disk", "w/disk");
        // A symlink is a name like any other: where it leads may differ tomorrow.
        same("x/link/disk", "x/link/disk");
        // What is not there is taken by its words.
        same("gone/../x/disk", "x/disk");
        same("gone/more/../../x/disk", "x/disk");
        assert_eq!(absolute(&top.join("w/..")), top);
        assert_eq!(absolute(Path::new("nbd://host//x/..")), Path::new("nbd://host//x/.."));
        assert_eq!(absolute(Path::new("/..")), Path::new("/"));
        assert_eq!(absolute(Path::new("/../../x")), Path::new("/x"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("disk")), here.join("disk"));
        assert!(!absolute(Path::new("../disk")).to_string_lossy().contains(".."));
    }

    #[test]
    fn one_file_has_many_names() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, hard, other] =
            ["file", "link", "hard", "other"].map(|name| dir.path().join(name));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&other, "").unwrap();
        symlink("file", &link).unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        assert!(
            is_same_file(&file, &link) && is_same_file(&hard, &link) && is_same_file(&file, &file)
        );
        assert!(!is_same_file(&file, &other) && !is_same_file(&file, &dir.path().join("gone")));
        // A name is the same though nothing is there.
        let [gone, dotted] = ["gone", "./gone"].map(|name| dir.path().join(name));
        assert!(is_same_place(&gone, &dotted) && !is_same_file(&gone, &dotted));
        assert!(is_same_place(&file, &link) && !is_same_place(&file, &other));
    }
}
