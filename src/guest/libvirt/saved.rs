//! The definition in the file of a guest's saved memory: the guest as it ran.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::limits::XML_LEN_MAX;
use crate::base::error::{Error, ErrorKind, Result};
use crate::formats::saved_memory::{HEAD_LEN, Head, definition};

/// The definition in the saved memory in `file`, called `path`.
///
/// # Errors
/// [`ErrorKind::Image`] if it is no file that libvirt has finished, or its definition is none; it can't be read.
pub fn saved_definition(file: &File, path: &Path) -> Result<String> {
    let failed = |error| Error::io("read", path, error);
    let len = file.metadata().map_err(failed)?.len();
    let mut head = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let head = Head::parse(&head).map_err(|error| Error::format(ErrorKind::Image, path, error))?;
    let rest = len.saturating_sub(HEAD_LEN as u64);
    if rest <= u64::from(head.data_len) {
        let text = format!("{} is cut short: there is no memory in it", path.display());
        return Err(Error::new(ErrorKind::Image, text));
    }
    // What libvirt notes behind the definition is not looked at.
    let data_len = u64::from(head.data_len).min(XML_LEN_MAX + 1);
    let mut data = vec![0; data_len as usize];
    file.read_exact_at(&mut data, HEAD_LEN as u64).map_err(failed)?;
    let text = definition(&data).filter(|text| text.len() as u64 <= XML_LEN_MAX);
    let none = || Error::new(ErrorKind::Image, format!("{} holds no definition", path.display()));
    text.map(str::to_owned).ok_or_else(none)
}
