//! The internal snapshots of a qcow2 image.

use std::path::Path;

use qdelta_formats::qcow2::snapshot::{FIXED_LEN, SNAPSHOT_TABLE_SIZE_MAX, Snapshot};
use qdelta_formats::qcow2::{Header, SECTOR_SIZE};

use super::layer::LayerFile;
use crate::base::error::{Error, ErrorKind, Result};

/// A snapshot and where its entry lies in the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) snapshot: Snapshot,
    pub(super) position: u64,
}

/// Bytes of the table that are read at a time, and the longest possible entry.
const WINDOW: usize = 256 << 10;

/// Reads the snapshot table of the image with this header.
///
/// # Errors
/// The table lies outside the file, or an entry breaks the rules.
pub(super) fn read_table(file: &LayerFile, header: &Header) -> Result<Vec<Entry>> {
    let wrong = |error| Error::format(ErrorKind::Image, &file.path, error);
    let start = header.snapshots.offset.0;
    let mut entries = Vec::new();
    let mut window = Window { file, start, bytes: Vec::new() };
    let mut at = start;
    for _ in 0..header.snapshots.entries {
        // Checked one by one, so that a number of entries alone costs nothing.
        if at >= file.len.next_multiple_of(SECTOR_SIZE) {
            let (path, len) = (file.path.display(), file.len);
            let text = format!(
                "{path} is cut short: its snapshot table at {start:#x} lies behind its end at {len:#x}"
            );
            return Err(Error::new(ErrorKind::Image, text));
        }
        let len = Snapshot::entry_len(window.get(at, FIXED_LEN)?, at).map_err(wrong)?;
        let snapshot = Snapshot::parse(window.get(at, len)?, at).map_err(wrong)?;
        entries.push(Entry { snapshot, position: at });
        at += (len as u64).next_multiple_of(8);
        if at - start > SNAPSHOT_TABLE_SIZE_MAX {
            let (path, max) = (file.path.display(), SNAPSHOT_TABLE_SIZE_MAX);
            let text = format!("{path}: its snapshot table is longer than {max} bytes");
            return Err(Error::new(ErrorKind::Image, text));
        }
    }
    Ok(entries)
}

/// A part of the table in memory.
struct Window<'a> {
    file: &'a LayerFile,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `at`, at most [`WINDOW`]. Behind the end of the file there are zeros.
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + len as u64 > end {
            self.start = at;
            self.bytes.resize(WINDOW, 0);
            self.file.read_padded(&mut self.bytes, at)?;
        }
        let skip = (at - self.start) as usize;
        Ok(self.bytes.get(skip..skip + len).unwrap_or_default())
    }
}

/// The snapshot with this id, or else with this name, as QEMU looks for it.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Usage`] if several have the name.
pub(super) fn find<'a>(entries: &'a [Entry], wanted: &str, path: &Path) -> Result<&'a Entry> {
    let wanted_bytes = wanted.as_bytes();
    if let Some(entry) = entries.iter().find(|entry| entry.snapshot.id == wanted_bytes) {
        return Ok(entry);
    }
    let mut named = entries.iter().filter(|entry| entry.snapshot.name == wanted_bytes);
    let path = path.display();
    match (named.next(), named.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(first), Some(second)) => {
            let [first, second] =
                [first, second].map(|entry| String::from_utf8_lossy(&entry.snapshot.id));
            let text = format!("{path} has several snapshots called '{wanted}'");
            Err(Error::new(ErrorKind::Usage, text)
                .advise(format!("give an id instead of the name: {first}, {second}, …")))
        }
        (None, _) => {
            let text = format!("{path} has no snapshot '{wanted}'");
            Err(Error::new(ErrorKind::NotFound, text)
                .advise("`qdelta info` lists the snapshots of an image"))
        }
    }
}
