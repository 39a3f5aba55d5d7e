//! What a host that can open no file knows of those that it has written: manifests, and the index of
//! archives. With them it adds points for ever, and reads nothing of what the archives hold.
//!
//! The copies lie in the folder of this host's state. Each is believed for the very file that it was made
//! of: the header of a file of age is that of no other.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::Name;
use super::HEADER_LEN;
use crate::base::error::{Error, ErrorKind};
use crate::disk::files::{Durability, replace_file};
use crate::disk::io::{FileStore, Opener, ReadAt};
use crate::vault::archive::Reader;

/// Only whoever makes backups reads what a host knows.
const MODE: u32 = 0o600;

/// The longest file that is kept whole: the limit of manifests.
const WHOLE_MAX: u64 = 16 << 20;

const MAGIC: &[u8; 8] = b"QDKNOWN\x01";

/// Magic bytes, a digest of the file's beginning, its length, the length of its content, and what of the
/// content is left out.
const HEAD_LEN: usize = 8 + 32 + 4 * 8;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// What a host knows of its files.
#[derive(Debug)]
pub(super) struct Known {
    folder: PathBuf,
}

impl Known {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.folder.join(blake3::hash(name.as_str().as_bytes()).to_hex().as_str())
    }

    /// Keeps a copy of what the next backup needs of a file that was just written: `sealed` as it lies
    /// there, `plain` what is in it.
    pub fn keep(
        &self,
        name: &Name,
        sealed: &dyn ReadAt,
        plain: &Arc<dyn ReadAt>,
    ) -> Result<(), Error> {
        let len = plain.len().map_err(|error| Error::io("read", plain.path(), error))?;
        let left_out = match Reader::open(Arc::clone(plain)) {
            Ok(archive) => archive.header_len..archive.index_offset(),
            Err(_) if len <= WHOLE_MAX => 0..0,
            Err(_) => return Ok(()),
        };
        let path = self.path(name);
        let write = || -> io::Result<()> {
            let mut head = MAGIC.to_vec();
            head.extend(stamp(sealed)?);
            for number in [sealed.len()?, len, left_out.start, left_out.end] {
                head.extend(number.to_le_bytes());
            }
            replace_file(&path, MODE, Durability::None, |file| {
                file.write_all(&head)?;
                let mut ranges = [0..left_out.start, left_out.end..len].into_iter();
                ranges.try_for_each(|range| copy(&**plain, range, file))
            })
        };
        write().map_err(|error| Error::io("write", &path, error))
    }

    /// What is known of the file that lies there now, if anything is.
    pub fn open(&self, name: &Name, sealed: &dyn ReadAt) -> Option<Arc<dyn ReadAt>> {
        let (file, stamped, sealed_len) = self.last(name, sealed.path())?;
        let is_of_it = stamped == stamp(sealed).ok()? && sealed_len == sealed.len().ok()?;
        is_of_it.then(|| Arc::new(file) as Arc<dyn ReadAt>)
    }

    /// What is known of the file of this name that this host has written last, to be shown as that at `shown`; with
    /// its stamp and its length.
    pub fn last(&self, name: &Name, shown: &Path) -> Option<(KnownFile, [u8; 32], u64)> {
        let path = self.path(name);
        let file = FileStore::new(Opener::READ.open(&path).ok()?, path);
        let mut head = [0; HEAD_LEN];
        file.read_exact_at(&mut head, 0).ok()?;
        let (magic, rest) = head.split_first_chunk::<8>()?;
        let (stamped, rest) = rest.split_first_chunk::<32>()?;
        let mut numbers =
            rest.chunks_exact(8).filter_map(|it| Some(u64::from_le_bytes(*it.first_chunk()?)));
        let (sealed_len, len) = (numbers.next()?, numbers.next()?);
        let left_out = numbers.next()?..numbers.next()?;
        let is_whole = left_out.start <= left_out.end
            && left_out.end <= len
            && file.len().ok()? == HEAD_LEN as u64 + len - (left_out.end - left_out.start);
        let known = KnownFile { file, path: shown.to_owned(), len, left_out };
        (is_whole && magic == MAGIC).then_some((known, *stamped, sealed_len))
    }

    /// Whether this host has written a file of this name: if what it knows of that one is not good for the file
    /// that is there, somebody else has written another.
    pub fn has(&self, name: &Name) -> bool {
        self.path(name).exists()
    }

    /// The file is no more.
    pub fn forget(&self, name: &Name) {
        // What stays takes room, and is believed of no other file.
        let _ = fs::remove_file(self.path(name));
    }
}

/// What tells a file from every other: its header has random shares and a code over them.
fn stamp(sealed: &dyn ReadAt) -> io::Result<[u8; 32]> {
    let mut header = [0; HEADER_LEN as usize];
    sealed.read_exact_at(&mut header, 0)?;
    Ok(*blake3::hash(&header).as_bytes())
}

fn copy(from: &dyn ReadAt, mut range: Range<u64>, to: &mut dyn Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while !range.is_empty() {
        let len = (range.end - range.start).min(PIECE as u64);
        let bytes = piece.get_mut(..len as usize).unwrap_or_default();
        from.read_exact_at(bytes, range.start)?;
        to.write_all(bytes)?;
        range.start += len;
    }
    Ok(())
}

/// What is known of a file.
#[derive(Debug)]
pub(super) struct KnownFile {
    file: FileStore,
    path: PathBuf,
    len: u64,
    left_out: Range<u64>,
}

impl ReadAt for KnownFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (end, place) = match offset {
            _ if offset < self.left_out.start => (self.left_out.start, offset),
            _ if offset < self.left_out.end => {
                let error = Error::new(ErrorKind::Key, "a host's key opens no content");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
            }
            _ => (self.len, offset - (self.left_out.end - self.left_out.start)),
        };
        let count =
            usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..count) else { return Ok(0) };
        self.file.read_at(buffer, HEAD_LEN as u64 + place)
    }
}
