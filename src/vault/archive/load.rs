//! Reads the fixed parts of an archive and its small sections, each bounded before it is read and
//! checked before it is believed.

use std::sync::Arc;

use roaring::RoaringBitmap;

use super::table::Table;
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;
use crate::formats::archive::{
    Directory, FOOTER_LEN, Footer, Metadata, Section, SectionKind, header, index,
};
use crate::formats::{FormatError, Problem};

/// Reads exactly `len` bytes, which the caller has bounded.
fn read_at(store: &dyn ReadAt, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    store.read_exact_at(&mut bytes, offset).map_err(|error| {
        Error::io(format!("read {len} bytes at {offset} of"), store.path(), error)
    })?;
    Ok(bytes)
}

/// The header's metadata and its bytes.
pub(super) fn read_header(store: &dyn ReadAt, file_len: u64) -> Result<(Metadata, Vec<u8>)> {
    let damaged = |error| refused(store, error);
    let prefix = read_at(store, 0, (header::PREFIX_LEN as u64).min(file_len) as usize)?;
    let len = header::header_len(&prefix).map_err(damaged)?;
    let bytes = read_at(store, 0, (len as u64).min(file_len) as usize)?;
    let (metadata, _) = header::decode(&bytes).map_err(damaged)?;
    Ok((metadata, bytes))
}

/// The footer of a file of `file_len` bytes.
pub(super) fn read_footer(store: &dyn ReadAt, file_len: u64) -> Result<Footer> {
    let len = (FOOTER_LEN as u64).min(file_len);
    let bytes = read_at(store, file_len - len, len as usize)?;
    Footer::decode(&bytes, file_len).map_err(|error| {
        let torn = matches!(error.problem, Problem::BadMagic(_) | Problem::Truncated { .. });
        let error = Error::format(ErrorKind::Damaged, store.path(), error);
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
pub(super) fn read_directory(store: &dyn ReadAt, footer: &Footer) -> Result<Directory> {
    // The footer's rules bound the length and keep it within the file.
    let bytes = read_at(store, footer.directory_offset, footer.directory_len as usize)?;
    Directory::decode(&bytes, footer.directory_offset).map_err(|error| refused(store, error))
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

fn check_crc(section: &Section, computed: u32) -> Result<(), FormatError> {
    if section.crc == computed {
        return Ok(());
    }
    let problem = Problem::Checksum { stored: section.crc, computed };
    Err(FormatError::new(section.offset, section.kind.name(), problem))
}

/// Reads a whole section and compares its checksum.
pub(super) fn check_section(store: &Arc<dyn ReadAt>, section: &Section) -> Result<()> {
    let mut crc = crc32fast::Hasher::new();
    Table::unmapped(store, section).scan(1, |bytes| {
        crc.update(bytes);
        Ok(())
    })?;
    check_crc(section, crc.finalize())
        .map_err(|error| Error::format(ErrorKind::Damaged, store.path(), error))
}

/// A whole section of at most `max` bytes, checked. The directory keeps it within the file.
pub(super) fn load_section(store: &dyn ReadAt, section: &Section, max: u64) -> Result<Vec<u8>> {
    let damaged = |error| Error::format(ErrorKind::Damaged, store.path(), error);
    if section.len > max {
        let problem = Problem::OutOfRange { value: section.len, min: 0, max };
        let field = format!("length of {}", section.kind.name());
        return Err(damaged(FormatError::new(section.offset, field, problem)));
    }
    let bytes = read_at(store, section.offset, section.len as usize)?;
    check_crc(section, crc32fast::hash(&bytes)).map_err(damaged)?;
    Ok(bytes)
}

/// A bitmap of numbers below `limit`.
pub(super) fn load_bitmap(
    store: &dyn ReadAt,
    section: &Section,
    limit: u64,
) -> Result<RoaringBitmap> {
    let bytes = load_section(store, section, index::bitmap_len_max(limit))?;
    index::decode_bitmap(&bytes, limit, section.kind).map_err(|error| {
        Error::format(ErrorKind::Damaged, store.path(), error.relative_to(section.offset))
    })
}

/// An error in words.
pub(super) fn invalid(
    offset: u64,
    field: impl Into<std::borrow::Cow<'static, str>>,
    words: impl Into<std::borrow::Cow<'static, str>>,
) -> FormatError {
    FormatError::new(offset, field, Problem::Invalid(words.into()))
}
