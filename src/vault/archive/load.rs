//! Reads the fixed parts of an archive and its small sections, each bounded before it is read and
//! checked before it is believed.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::table::Table;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::{
    Directory, FOOTER_LEN, Footer, Metadata, Section, SectionKind, header,
};
use crate::formats::{FormatError, Problem};

/// Bytes of an open archive that could not be read. One that ends before them, or is gone, was whole when it
/// was opened: that is damage, and no failure of the system.
pub(super) fn unread(path: &Path, offset: u64, len: usize, error: io::Error) -> Error {
    let is_lost = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound);
    let operation = format!("read {len} bytes at {offset} of");
    match is_lost {
        true => Error::new(ErrorKind::Damaged, format!("cannot {operation} {}", path.display()))
            .because(error)
            .of_file(path),
        false => Error::io(operation, path, error),
    }
}

/// How many of the last bytes of a file are read at once. Of most archives they hold all of the
/// index that opening needs.
const TAIL_LEN: u64 = 64 << 10;

/// How many bytes of a file's start are read first: a header is rarely longer.
const HEAD_LEN: usize = 2 << 10;

/// The file of an archive, and its last bytes.
pub(super) struct Tail {
    store: Arc<dyn ReadAt>,
    start: u64,
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads the last bytes of a file of `file_len` bytes. If some of them can't be read, the parts
    /// that are needed are read one by one: the damage may lie in none of them.
    pub(super) fn read(store: &Arc<dyn ReadAt>, file_len: u64) -> Self {
        let mut tail = Self::none(store);
        let len = file_len.min(TAIL_LEN);
        if let Ok(bytes) = tail.at(file_len - len, len as usize).map(Cow::into_owned) {
            tail = Self { store: Arc::clone(store), start: file_len - len, bytes };
        }
        tail
    }

    /// Reads nothing ahead.
    pub(super) fn none(store: &Arc<dyn ReadAt>) -> Self {
        Self { store: Arc::clone(store), start: u64::MAX, bytes: Vec::new() }
    }

    /// The file.
    pub(super) fn store(&self) -> &Arc<dyn ReadAt> {
        &self.store
    }

    /// Exactly `len` bytes at `offset`; the caller has bounded them.
    pub(super) fn at(&self, offset: u64, len: usize) -> Result<Cow<'_, [u8]>> {
        if let Some(start) = offset.checked_sub(self.start)
            && let Some(bytes) = self.bytes.get(start as usize..)
            && let Some(bytes) = bytes.get(..len)
        {
            return Ok(bytes.into());
        }
        let mut bytes = vec![0; len];
        let read = self.store.read_exact_at(&mut bytes, offset);
        read.map_err(|error| unread(self.store.path(), offset, len, error))?;
        Ok(bytes.into())
    }
}

/// The header's metadata and its bytes.
pub(super) fn read_header(tail: &Tail, file_len: u64) -> Result<(Metadata, Vec<u8>)> {
    let damaged = |error| refused(&*tail.store, error);
    let head = |len: usize| tail.at(0, (len as u64).min(file_len) as usize);
    // Frames follow the header: if some of them can't be read, the header may be.
    let mut bytes = head(HEAD_LEN).or_else(|_| head(header::PREFIX_LEN))?;
    let len = header::header_len(&bytes).map_err(damaged)?;
    if len > bytes.len() {
        bytes = head(len)?;
    }
    let bytes = bytes.get(..len).unwrap_or(&bytes);
    let (metadata, _) = header::decode(bytes).map_err(damaged)?;
    Ok((metadata, bytes.to_vec()))
}

/// The footer of a file of `file_len` bytes.
pub(super) fn read_footer(tail: &Tail, file_len: u64) -> Result<Footer> {
    let len = (FOOTER_LEN as u64).min(file_len);
    let bytes = tail.at(file_len - len, len as usize)?;
    Footer::decode(&bytes, file_len).map_err(|error| {
        let torn = matches!(error.problem, Problem::BadMagic(_) | Problem::Truncated { .. });
        let error = Error::format(ErrorKind::Damaged, tail.store.path(), error);
        if torn {
            error.advise(
                "The archive was not finished, or its end is lost: `restore --salvage` gives what \
                 is left of it.",
            )
        } else {
            error
        }
    })
}

/// The directory that a footer points at.
pub(super) fn read_directory(tail: &Tail, footer: &Footer) -> Result<Directory> {
    // The footer's rules bound the length and keep it within the file.
    let bytes = tail.at(footer.directory_offset, footer.directory_len as usize)?;
    Directory::decode(&bytes, footer.directory_offset).map_err(|error| refused(&*tail.store, error))
}

/// An error about bytes that break a rule, or that a later version may know how to read.
fn refused(store: &dyn ReadAt, error: FormatError) -> Error {
    let newer = matches!(error.problem, Problem::Unsupported(_));
    let error = Error::format(ErrorKind::Damaged, store.path(), error);
    if newer {
        error.advise("If a newer qdelta wrote the archive, read it with that.")
    } else {
        error
    }
}

/// The section of that kind.
pub(super) fn find_section(
    directory: &Directory,
    kind: SectionKind,
) -> Result<&Section, FormatError> {
    directory.section(kind).ok_or_else(|| invalid(0, kind.name(), "missing"))
}

/// Compares the checksum of a section's bytes with the directory's.
pub(super) fn check_crc(store: &Arc<dyn ReadAt>, section: &Section, computed: u32) -> Result<()> {
    if section.crc == computed {
        return Ok(());
    }
    let problem = Problem::Checksum { stored: section.crc, computed };
    let error = FormatError::new(section.offset, section.kind.name(), problem);
    Err(Error::format(ErrorKind::Damaged, store.path(), error))
}

/// Reads a whole section and compares its checksum.
pub(super) fn check_section(store: &Arc<dyn ReadAt>, section: &Section) -> Result<()> {
    let mut crc = crc32fast::Hasher::new();
    Table::open(store, section).scan(1, |bytes| {
        crc.update(bytes);
        Ok(())
    })?;
    check_crc(store, section, crc.finalize())
}

/// A whole section of at most `max` bytes, checked. The directory keeps it within the file.
pub(super) fn load_section<'a>(
    tail: &'a Tail,
    section: &Section,
    max: u64,
) -> Result<Cow<'a, [u8]>> {
    if section.len > max {
        let problem = Problem::OutOfRange { value: section.len, min: 0, max };
        let field = format!("length of {}", section.kind.name());
        let error = FormatError::new(section.offset, field, problem);
        return Err(Error::format(ErrorKind::Damaged, tail.store.path(), error));
    }
    let bytes = tail.at(section.offset, section.len as usize)?;
    check_crc(&tail.store, section, crc32fast::hash(&bytes))?;
    Ok(bytes)
}

/// An error in words.
pub(super) fn invalid(
    offset: u64,
    field: impl Into<std::borrow::Cow<'static, str>>,
    words: impl Into<std::borrow::Cow<'static, str>>,
) -> FormatError {
    FormatError::new(offset, field, Problem::Invalid(words.into()))
}
