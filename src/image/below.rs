//! What an image lies on, by names alone: for those who compare files, and read no disk of them.

use std::path::{Path, PathBuf};

use qdelta_formats::qcow2::Header;

use super::chain::{DEPTH_MAX, backing_node, data_file_name};
use super::layer::LayerFile;
use super::names::Node;
use super::policy::{Policy, folder_of};
use super::qcow2::read_header;
use super::recognise::format_below;
use super::{Format, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::FileIndex;

/// The files that the image at `path` names, and those that its backing files name: also those that lie
/// outside its folder, since nothing but headers is read. Below a file that is missing, and below
/// what is not a local file, nothing is known.
///
/// # Errors
/// `NotFound` if there is no such image; anything else if the chain can't be followed to its end.
pub fn files_below(path: &Path, format: Format) -> Result<Vec<PathBuf>> {
    let anywhere = OpenOptions { image_roots: vec![PathBuf::from("/")], ..OpenOptions::default() };
    let policy = Policy::new(path, &anywhere)?;
    let mut opened = policy.open_named_by_user(path)?;
    let mut node = Node::plain(path.to_path_buf(), Some(format));
    let mut files = Vec::new();
    for _ in 0..=DEPTH_MAX {
        let format = match node.format {
            Some(format) => format,
            None => format_below(&LayerFile::new(&opened, FileIndex(0)))?,
        };
        if format == Format::Raw {
            return Ok(files);
        }
        let file = LayerFile::new(&opened, FileIndex(0));
        let header = read_header(&file)?;
        let beside = |name: &Path| folder_of(&file.path).join(name);
        files.extend(data_file_name(&header, &node)?.map(|name| beside(&name)));
        if is_remote(&header) {
            return Ok(files);
        }
        let Some(below) = backing_node(&header, &file.path, &node)? else { return Ok(files) };
        let path = beside(&below.file);
        let is_missing = path.metadata().is_err_and(|it| it.kind() == std::io::ErrorKind::NotFound);
        files.push(path);
        if is_missing {
            return Ok(files);
        }
        if let Some(format) = &below.foreign_format {
            let text = format!(
                "the backing file {} has format '{}', which is not read here",
                below.file.display(),
                format.escape_debug()
            );
            return Err(Error::new(ErrorKind::Image, text));
        }
        opened = policy.open_named_by_image(&below.file, &file.path)?;
        node = below;
    }
    let text = format!("{} has more than {DEPTH_MAX} backing files", path.display());
    Err(Error::new(ErrorKind::Image, text))
}

/// What QEMU reaches a server by (its block drivers, `qapi/block-core.json`).
const REMOTE_DRIVERS: [&str; 11] =
    ["nbd", "rbd", "http", "https", "ftp", "ftps", "iscsi", "ssh", "gluster", "nfs", "sheepdog"];

/// Whether the backing file is on a server.
fn is_remote(header: &Header) -> bool {
    let name = header.backing_name.as_deref().unwrap_or_default();
    if let Some(json) = name.strip_prefix(b"json:") {
        return serde_json::from_slice(json).is_ok_and(|value| names_server(&value));
    }
    let is_url = name.windows(3).any(|part| part == b"://");
    is_url || name.starts_with(b"nbd:") || name.starts_with(b"rbd:")
}

/// Whether a `json:` name has a driver of a server, in itself or in what it lies on.
fn names_server(value: &serde_json::Value) -> bool {
    let serde_json::Value::Object(options) = value else { return false };
    options.iter().any(|(key, value)| {
        let is_driver = key == "driver" || key.ends_with(".driver");
        is_driver && value.as_str().is_some_and(|it| REMOTE_DRIVERS.contains(&it))
            || names_server(value)
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// An image that names these bytes as its backing file, which need not be there.
    fn overlay(dir: &Path, name: &str, backing: &str, options: &[&str]) -> PathBuf {
        let path = dir.join(name);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing]);
        let made = command.args(options).arg(&path).arg("1M").status().unwrap();
        assert!(made.success());
        path
    }

    #[test]
    fn names_are_followed_into_any_folder() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let data = format!("data_file={}", other.join("data").display());
        overlay(&other, "base", "gone", &["-o", &data]);
        let top = overlay(dir.path(), "top", "other/base", &[]);
        let found = files_below(&top, Format::Qcow2).unwrap();
        let names = ["base", "data", "gone"].map(|name| other.join(name));
        assert_eq!(found, names);
        assert!(files_below(&top, Format::Raw).unwrap().is_empty(), "a guest wrote those bytes");
        let gone = files_below(&dir.path().join("gone"), Format::Qcow2).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_local_file_is_passed_over_and_what_is_not_understood_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let nested = r#"json:{"driver":"qcow2","file":{"driver":"nbd","host":"h","port":"1"}}"#;
        let dotted = r#"json:{"driver":"raw","file.driver":"https","file.url":"https://h/x"}"#;
        let urls = ["nbd://host/export", "rbd:pool/image", "https://host/x.qcow2"];
        for remote in urls.into_iter().chain([nested, dotted]) {
            let top = overlay(dir.path(), "remote", remote, &[]);
            assert!(files_below(&top, Format::Qcow2).unwrap().is_empty(), "{remote}");
        }
        let json = r#"json:{"driver":"blkdebug","image.filename":"/x"}"#;
        let top = overlay(dir.path(), "json", json, &[]);
        assert!(files_below(&top, Format::Qcow2).is_err());
        let top = overlay(dir.path(), "loop", "loop", &[]);
        assert!(files_below(&top, Format::Qcow2).is_err());
    }
}
