//! What an image lies on, by names alone: for those who compare files, and read no disk of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use qdelta_formats::qcow2::Header;

use super::chain::{backing_node, data_file_name};
use super::layer::LayerFile;
use super::names::Node;
use super::policy::{Policy, folder_of};
use super::qcow2::read_header;
use super::recognise::format_below;
use super::stated::{StatedBelow, StatedChain};
use super::{Format, OpenOptions};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::FileIndex;

/// More images than this below one are followed by nobody. Chains end with the last file that there is:
/// this bounds the work only.
const FOLLOWED_MAX: usize = 10_000;

/// The files that the image at `path` lies on, as `chain` and its headers name them, and those that its
/// backing files lie on: also those outside its folder, since nothing but headers is read. Below a file
/// that is missing, and below what is not a local file, nothing is known. A chain that comes back to
/// itself ends there: no guest starts with it.
///
/// # Errors
/// `NotFound` if there is no such image; anything else if the chain can't be followed to its end.
pub fn files_below(path: &Path, format: Format, chain: &StatedChain) -> Result<Vec<PathBuf>> {
    let image_roots = vec![PathBuf::from("/")];
    let options = OpenOptions { image_roots, chain: chain.clone(), ..OpenOptions::default() };
    let policy = Policy::new(path, &options)?;
    let mut opened = policy.open_named_by_user(path)?;
    let mut node = Node::plain(path.to_path_buf(), Some(format));
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for depth in 0..FOLLOWED_MAX {
        let format = match node.format {
            Some(format) => format,
            None => format_below(&LayerFile::new(&opened, FileIndex(0)))?,
        };
        if format == Format::Raw || !seen.insert(opened.id) {
            return Ok(files);
        }
        let file = LayerFile::new(&opened, FileIndex(0));
        let header = read_header(&file)?;
        let stated = chain.of_layer(depth);
        match stated.data_file {
            Some(path) => files.push(path.to_path_buf()),
            None => {
                let name = data_file_name(&header, &node, &file.path)?;
                files.extend(name.map(|name| folder_of(&file.path).join(name)));
            }
        }
        let Some(below) = next(&header, &file.path, &node, stated.below)? else { return Ok(files) };
        let is_missing =
            below.file.metadata().is_err_and(|it| it.kind() == std::io::ErrorKind::NotFound);
        files.push(below.file.clone());
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
        opened = policy.open_stated(&below.file)?;
        node = below;
    }
    let text = format!("{} has more than {FOLLOWED_MAX} backing files", path.display());
    Err(Error::new(ErrorKind::Image, text))
}

/// What lies below the image with this header; its file is a path that means the same from everywhere.
fn next(
    header: &Header,
    path: &Path,
    node: &Node,
    stated: StatedBelow<'_>,
) -> Result<Option<Node>> {
    match stated {
        StatedBelow::Nothing => Ok(None),
        StatedBelow::Layer(layer) => Ok(Some(Node::plain(layer.path.clone(), Some(layer.format)))),
        StatedBelow::Unsaid if is_remote(header) => Ok(None),
        StatedBelow::Unsaid => {
            let below = backing_node(header, path, node)?;
            Ok(below.map(|below| Node { file: folder_of(path).join(&below.file), ..below }))
        }
    }
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

    use super::super::stated::StatedLayer;
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

    fn below(top: &Path) -> Result<Vec<PathBuf>> {
        files_below(top, Format::Qcow2, &StatedChain::default())
    }

    #[test]
    fn names_are_followed_into_any_folder() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let data = format!("data_file={}", other.join("data").display());
        overlay(&other, "base", "gone", &["-o", &data]);
        let top = overlay(dir.path(), "top", "other/base", &[]);
        let found = below(&top).unwrap();
        let names = ["base", "data", "gone"].map(|name| other.join(name));
        assert_eq!(found, names);
        assert!(
            files_below(&top, Format::Raw, &StatedChain::default()).unwrap().is_empty(),
            "a guest wrote those bytes"
        );
        let gone = below(&dir.path().join("gone")).unwrap_err();
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
            assert!(below(&top).unwrap().is_empty(), "{remote}");
        }
        let json = r#"json:{"driver":"blkdebug","image.filename":"/x"}"#;
        let top = overlay(dir.path(), "json", json, &[]);
        assert!(below(&top).is_err());
    }

    /// One guest with a chain that QEMU takes and this program did not follow to its end stood in the way
    /// of every roll back on the host.
    #[test]
    fn a_chain_is_followed_to_its_end_however_long() {
        let dir = tempfile::tempdir().unwrap();
        let first = overlay(dir.path(), "image-0", "image-1", &[]);
        for number in 1..300 {
            let header = std::fs::read(&first).unwrap();
            let next = format!("image-{}", number + 1);
            let at = header.windows(7).position(|it| it == b"image-1").unwrap();
            let mut bytes = header.clone();
            bytes.splice(at..at + 7, next.bytes());
            bytes.truncate(header.len());
            bytes[16..20].copy_from_slice(&(next.len() as u32).to_be_bytes());
            std::fs::write(dir.path().join(format!("image-{number}")), bytes).unwrap();
        }
        let found = below(&first).unwrap();
        assert_eq!(found.len(), 300);
        assert_eq!(found[299], dir.path().join("image-300"), "which is missing");
        // One that comes back to itself is no guest's, and all its files are known.
        std::fs::copy(&first, dir.path().join("image-300")).unwrap();
        assert_eq!(below(&first).unwrap().len(), 301);
    }

    /// An empty `<backingStore>` ends the chain whatever the header names, and a named one takes its place.
    #[test]
    fn what_the_definition_says_counts_more_than_headers() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let top = overlay(dir.path(), "top", "base", &[]);
        overlay(dir.path(), "base", "lowest", &[]);
        overlay(dir.path(), "other", "lowest", &[]);
        let layer = |name, format| StatedLayer { path: at(name), format, data_file: None };
        let chain = |below, is_whole| StatedChain { below, is_whole, data_file: None };
        for (chain, expected) in [
            (chain(vec![], false), vec!["base", "lowest"]),
            (chain(vec![], true), vec![]),
            (chain(vec![layer("other", Format::Qcow2)], true), vec!["other"]),
            (chain(vec![layer("other", Format::Qcow2)], false), vec!["other", "lowest"]),
            (chain(vec![layer("other", Format::Raw)], false), vec!["other"]),
            (chain(vec![layer("gone", Format::Qcow2)], false), vec!["gone"]),
        ] {
            let found = files_below(&top, Format::Qcow2, &chain).unwrap();
            assert_eq!(found, expected.into_iter().map(at).collect::<Vec<_>>(), "{chain:?}");
        }
        // What the header says is not even understood.
        let odd = overlay(dir.path(), "odd", r#"json:{"driver":"blkdebug","image":"x"}"#, &[]);
        assert!(below(&odd).is_err());
        let whole = chain(vec![layer("other", Format::Qcow2)], true);
        assert_eq!(files_below(&odd, Format::Qcow2, &whole).unwrap(), [at("other")]);
    }
}
