//! Files of this host as an archive of tar. The same files give the same bytes.

use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qdelta_formats::tar::{END, Entry, Kind, padding};

use super::HostFiles;
use crate::base::cancel::Cancel;
use crate::base::error::{Error, Result};
use crate::base::warning::{Code, Warning};
use crate::disk::io::Opener;

/// The longest file that is kept: a configuration is small.
const FILE_LEN_MAX: u64 = 16 << 20;
/// The longest archive.
const LEN_MAX: u64 = 1 << 30;
/// The most files.
const FILES_MAX: usize = 50_000;
/// The smallest archive. Those that are larger double: a disk that gets smaller is worth a warning elsewhere.
const LEN_MIN: u64 = 1 << 20;
/// The most warnings.
const WARNINGS_MAX: usize = 100;

/// Writes the archive to `path`; gives what is not in it.
///
/// # Errors
/// It can't be written.
pub(super) fn pack(files: &HostFiles, path: &Path, cancel: &Cancel) -> Result<Vec<Warning>> {
    let failed = |error| Error::io("write", path, error);
    let file = Opener::CHANGE.or_create(0o600).open(path).map_err(failed)?;
    file.set_len(0).map_err(failed)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut archive = Archive { out, path, len: 0, files: 0, left_out: Vec::new(), cancel };
    for root in roots(&files.paths) {
        if files.named && root.symlink_metadata().is_err() {
            let text = format!("{} is not there", root.display());
            archive.warn(
                Warning::new(Code::LeftOut, text).advise("see host_files in the file of jobs"),
            );
        }
        archive.tree(&root)?;
    }
    archive.write(&END)?;
    let (len, left_out) = (archive.len, archive.left_out);
    let file = archive.out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.set_len(len.next_power_of_two().max(LEN_MIN)).map_err(failed)?;
    Ok(left_out)
}

/// The paths in order, without those that lie in another one.
fn roots(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = paths.iter().map(|path| path.components().collect()).collect();
    paths.sort();
    paths.dedup();
    let is_in_another =
        |path: &PathBuf| paths.iter().any(|other| other != path && path.starts_with(other));
    paths.iter().filter(|path| !is_in_another(path)).cloned().collect()
}

struct Archive<'a> {
    out: BufWriter<File>,
    path: &'a Path,
    len: u64,
    files: usize,
    left_out: Vec<Warning>,
    cancel: &'a Cancel,
}

impl Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|error| Error::io("write", self.path, error))
    }

    fn warn(&mut self, warning: Warning) {
        if self.left_out.len() < WARNINGS_MAX {
            self.left_out.push(warning);
        }
    }

    /// Leaves a file out, unless it has gone: files come and go.
    fn leave_out(&mut self, what: &str, path: &Path, error: std::io::Error) {
        if error.kind() != std::io::ErrorKind::NotFound {
            self.warn(Warning::failed(Code::LeftOut, &Error::io(what, path, error)));
        }
    }

    /// Adds a file, or a folder with all that is below it, in the order of names.
    fn tree(&mut self, root: &Path) -> Result<()> {
        let mut waiting = vec![root.to_path_buf()];
        while let Some(path) = waiting.pop() {
            self.cancel.check()?;
            if self.files >= FILES_MAX || self.len >= LEN_MAX {
                let text = format!(
                    "{} and what follows is too much: {FILES_MAX} files are kept of a host, and 1 GiB",
                    path.display()
                );
                self.warn(Warning::new(Code::LeftOut, text).advise("name less in host_files"));
                return Ok(());
            }
            let metadata = match path.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    self.leave_out("look at", &path, error);
                    continue;
                }
            };
            if metadata.is_dir() {
                match names_in(&path) {
                    Ok(names) => waiting.extend(names.into_iter().rev()),
                    Err(error) => self.leave_out("list", &path, error),
                }
            }
            self.file(&path, &metadata)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) -> Result<()> {
        let (mut target, mut content) = (Vec::new(), Vec::new());
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Folder,
            kind if kind.is_symlink() => match fs::read_link(path) {
                Ok(link) => {
                    link.as_os_str().as_bytes().clone_into(&mut target);
                    Kind::Link
                }
                Err(error) => return self.left(path, error),
            },
            kind if kind.is_file() && metadata.len() > FILE_LEN_MAX => {
                let text = format!(
                    "{} is left out: no file of more than 16 MiB is kept of a host",
                    path.display()
                );
                self.warn(
                    Warning::new(Code::LeftOut, text)
                        .advise("leave it out of host_files, or keep it elsewhere"),
                );
                return Ok(());
            }
            kind if kind.is_file() => match Opener::READ.itself().read(path, FILE_LEN_MAX) {
                Ok(bytes) => {
                    content = bytes;
                    Kind::File
                }
                Err(error) => return self.left(path, error),
            },
            // A socket or a pipe is no configuration.
            _ => return Ok(()),
        };
        let mut name = path.as_os_str().as_bytes().to_vec();
        let slashes = name.iter().take_while(|byte| **byte == b'/').count();
        name.drain(..slashes);
        if kind == Kind::Folder {
            name.push(b'/');
        }
        let entry = Entry {
            path: &name,
            kind,
            target: &target,
            mode: (metadata.mode() & 0o7777) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: content.len() as u64,
            modified: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or_default()),
            accessed: None,
            device: (0, 0),
            attributes: &[],
            sparse: None,
        };
        self.files += 1;
        self.write(&entry.headers())?;
        self.write(&content)?;
        self.write(&vec![0; padding(content.len() as u64)])
    }

    fn left(&mut self, path: &Path, error: std::io::Error) -> Result<()> {
        self.leave_out("read", path, error);
        Ok(())
    }
}

/// The paths of what is in a folder, in the order of names.
fn names_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut names: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
    names.sort();
    names.truncate(FILES_MAX);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_within_another_one_is_kept_once() {
        let paths = ["/etc/b/", "/etc/b/c", "/etc/a", "/etc/b", "/etc/bc"].map(PathBuf::from);
        let expected = ["/etc/a", "/etc/b", "/etc/bc"].map(PathBuf::from);
        assert_eq!(roots(&paths), expected);
    }
}
