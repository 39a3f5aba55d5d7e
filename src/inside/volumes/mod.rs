//! The volumes of a disk: the whole of it, partitions, and LVM's linear volumes over them.

mod lvm;
mod part;
mod table;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use qdelta_formats::volumes::content;

pub use qdelta_formats::volumes::Content;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::io::ReadAt;

/// The most volumes of a disk. Linux has names for 256 partitions.
pub const VOLUMES_MAX: usize = 1024;

/// What divides a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Nothing: the disk is one volume.
    None,
    /// A PC's master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// What kind of volume it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The whole disk.
    Whole,
    /// A partition of an MBR or a GPT; of an MBR, a logical one, too.
    Partition,
    /// A logical volume of LVM.
    Logical,
}

/// A volume of a disk.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name: `disk` for the whole, `p1` for a partition, `vg/lv` for a logical volume of LVM.
    pub name: String,
    /// What kind it is.
    pub kind: Kind,
    /// The name of a GPT's partition, if it has one.
    pub label: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// What its magic bytes say that it holds. Unknown of a volume that can't be opened.
    pub content: Content,
    /// Where it lies on the disk, in order; or why it can't be opened.
    pieces: Result<Vec<Range<u64>>>,
}

/// The volumes of a disk.
#[derive(Debug, Clone)]
pub struct Survey {
    /// What divides the disk.
    pub table: Table,
    /// The volumes in the order of their names' numbers; those of LVM last. An undivided disk has one,
    /// the whole.
    pub volumes: Vec<Volume>,
    /// What was found damaged and left out, in words.
    pub notes: Vec<String>,
}

impl Volume {
    /// The bytes of the volume; `disk` is that of the survey.
    ///
    /// # Errors
    /// [`ErrorKind::Image`]: the volume is of a kind that can't be read here, or lies partly on another
    /// disk.
    pub fn open(&self, disk: &Arc<dyn ReadAt>) -> Result<Arc<dyn ReadAt>> {
        let pieces = self.pieces.clone()?;
        Ok(Arc::new(part::Part::new(Arc::clone(disk), &self.name, pieces)))
    }

    /// Where it lies on the disk, in order; none of a volume that can't be opened.
    pub fn pieces(&self) -> &[Range<u64>] {
        self.pieces.as_deref().unwrap_or_default()
    }

    /// A volume that lies in one piece.
    fn at(name: String, kind: Kind, piece: Range<u64>) -> Self {
        let size = piece.end - piece.start;
        let pieces = Ok(Vec::from([piece]));
        Self { name, kind, label: None, size, content: Content::Unknown, pieces }
    }
}

/// Finds the volumes of a disk.
///
/// # Errors
/// The disk can't be read. What is damaged on the disk itself is told in the notes of the survey.
pub fn survey(disk: &Arc<dyn ReadAt>) -> Result<Survey> {
    let mut survey = table::partitions(&**disk)?;
    for volume in &mut survey.volumes {
        volume.content = content_of(&*volume.open(disk)?)?;
    }
    lvm::add_logical(disk, &mut survey)?;
    Ok(survey)
}

/// What a volume holds, by its magic bytes.
fn content_of(volume: &dyn ReadAt) -> Result<Content> {
    let mut bytes = vec![0; content::LEN];
    for (at, len) in content::WANTED {
        let place = bytes.get_mut(at..at + len).unwrap_or_default();
        read_some(volume, place, at as u64)?;
    }
    Ok(Content::of(&bytes))
}

/// Fills `out` with the bytes at `offset`; zeros stand behind the end.
fn read_some(from: &dyn ReadAt, out: &mut [u8], offset: u64) -> Result<()> {
    let len = from.len().map_err(|error| Error::io("look at", from.path(), error))?;
    let there = len.saturating_sub(offset).min(out.len() as u64) as usize;
    let out = out.get_mut(..there).unwrap_or_default();
    from.read_exact_at(out, offset).map_err(|error| not_read(from, error))
}

/// A disk could not be read.
fn not_read(from: &dyn ReadAt, error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => inner.clone(),
        None => Error::io("read", from.path(), error),
    }
}

/// The volume can't be read as it is.
fn refused(text: String, advice: &'static str) -> Error {
    Error::new(ErrorKind::Image, text).advise(advice)
}

#[cfg(test)]
mod tests;
