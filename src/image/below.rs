//! What an image lies on, by names alone: for those who compare files, and read no disk of them.

use std::path::{Path, PathBuf};

use qdelta_formats::qcow2::Header;

use super::chain::{DEPTH_MAX, backing_node, data_file_name, guess_format};
use super::layer::LayerFile;
use super::names::Node;
use super::policy::{Policy, folder_of};
use super::qcow2::read_header;
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
            None => guess_format(&opened)?,
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

/// Whether the backing file is on a server.
fn is_remote(header: &Header) -> bool {
    let name = header.backing_name.as_deref().unwrap_or_default();
    let is_url = name.windows(3).any(|part| part == b"://") && !name.starts_with(b"json:");
    is_url || name.starts_with(b"nbd:") || name.starts_with(b"rbd:")
}
