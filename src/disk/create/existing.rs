//! What stands at a path before a restore writes there.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::sys::FileId;

/// What a path names before anything is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Nothing,
    File,
    Device,
    /// A named pipe.
    Pipe,
    /// A character device, such as `/dev/null`.
    Character,
}

impl Existing {
    pub(super) fn look(path: &Path) -> Result<Self> {
        let kind = match std::fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if path.is_symlink() {
                    let text = format!("{} is a symbolic link to nothing", path.display());
                    Err(Error::new(ErrorKind::Exists, text))
                } else {
                    Ok(Self::Nothing)
                };
            }
            Err(error) => return Err(Error::io("look at", path, error)),
        };
        if kind.is_file() {
            Ok(Self::File)
        } else if kind.is_block_device() {
            Ok(Self::Device)
        } else if kind.is_fifo() {
            Ok(Self::Pipe)
        } else if kind.is_char_device() {
            Ok(Self::Character)
        } else {
            let what = if kind.is_dir() { "a folder" } else { "no file" };
            Err(Error::new(ErrorKind::Usage, format!("{} is {what}", path.display())))
        }
    }
}

/// Fails if `file` is one of `inputs`.
pub(super) fn refuse_input(file: impl AsFd, path: &Path, inputs: &[FileId]) -> Result<()> {
    let id = FileId::of(file).map_err(|error| Error::io("look at", path, error))?;
    if !inputs.contains(&id) {
        return Ok(());
    }
    let text = format!("{} is read from: it can't be the output, too", path.display());
    Err(Error::new(ErrorKind::Usage, text))
}
