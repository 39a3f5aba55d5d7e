//! The value of an attribute: in its record, in runs of clusters, or compressed in units of them.

use std::sync::{Mutex, PoisonError};

use qdelta_formats::filesystems::ntfs::lznt1;
use qdelta_formats::filesystems::ntfs::record::{Value, kind};

use super::records::File;
use super::{Data, Ntfs, Place, Runs, Source, damaged};
use crate::base::error::{Error, ErrorKind, Result};
use crate::inside::filesystem::runs::InRuns;

/// A value that lies in runs as it is.
pub(super) fn plain(source: &Source, runs: Runs, size: u64, written: u64) -> InRuns<'_> {
    let size = size.min(runs.len());
    InRuns { source, runs, size, written: written.min(size) }
}

impl Ntfs {
    /// A stream of a file: its content, or another one by its name.
    pub(super) fn stream(&self, file: &File, name: &[u8]) -> Result<Box<dyn Data + '_>> {
        self.value(file, kind::DATA, name)
    }

    /// The size of a stream.
    pub(super) fn stream_size(&self, file: &File, name: &[u8]) -> u64 {
        match file.first(kind::DATA, name).map(|found| &found.value) {
            Some(Value::Here(bytes)) => bytes.len() as u64,
            Some(Value::There { size, .. }) => *size,
            None => 0,
        }
    }

    /// The value of an attribute; nothing if there is none.
    pub(super) fn value(&self, file: &File, kind: u32, name: &[u8]) -> Result<Box<dyn Data + '_>> {
        let Some(first) = file.first(kind, name) else { return Ok(Box::new(Here(Vec::new()))) };
        if first.is_encrypted {
            let text = format!("{}: a file is encrypted by the guest", self.source.name());
            return Err(Error::new(ErrorKind::Image, text)
                .advise("only the guest has the key: restore the disk"));
        }
        let (size, written) = match &first.value {
            Value::Here(bytes) => return Ok(Box::new(Here(bytes.clone()))),
            Value::There { size, written, .. } => (*size, *written),
        };
        let mut runs = Runs::default();
        // They need not stand in the order of the content.
        let mut parts: Vec<_> = file.all(kind, name).map(|found| &found.value).collect();
        parts.sort_by_key(|part| match part {
            Value::There { first, .. } => *first,
            Value::Here(_) => 0,
        });
        for part in parts {
            self.append(part, &mut runs)?;
        }
        if size > runs.len() {
            return Err(self.damaged("a file is longer than its clusters"));
        }
        if first.unit == 0 {
            return Ok(Box::new(plain(&self.source, runs, size, written)));
        }
        let unit = first.unit * self.parameters.cluster;
        if unit > 2 << 20 {
            return Err(self.damaged("a unit of compression is larger than any can be"));
        }
        let last = Mutex::new(None);
        Ok(Box::new(Packed { source: &self.source, runs, size, written, unit, last }))
    }
}

/// A value in its record.
struct Here(Vec<u8>);

impl Data for Here {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        match offset < self.size() {
            true => Ok((Place::Elsewhere, self.size())),
            false => Ok((Place::Hole, u64::MAX)),
        }
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        out.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(from.len().min(out.len()))
    }
}

/// A value in units, each of which may be compressed.
struct Packed<'a> {
    source: &'a Source,
    runs: Runs,
    size: u64,
    written: u64,
    unit: u64,
    /// The unit that was read last, with its number: most reads go on where the last one ended.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Packed<'_> {
    /// How many bytes at the beginning of a unit lie on the volume: all of one that is not compressed.
    fn stored(&self, number: u64) -> u64 {
        let start = number * self.unit;
        let mut at = start;
        while at < start + self.unit {
            let (place, end) = self.runs.at(at);
            if place == Place::Hole {
                break;
            }
            at = end.min(start + self.unit);
        }
        at - start
    }

    /// A unit as it was before it was compressed.
    fn unpacked(&self, number: u64) -> Result<Vec<u8>> {
        let stored = self.stored(number);
        let start = number * self.unit;
        let size = start.saturating_add(stored);
        let mut packed = vec![0; stored as usize];
        let mut at = start;
        while at < size {
            let (place, end) = self.runs.at(at);
            let Place::At(place) = place else { break };
            let from = (at - start) as usize;
            let count = (end.min(size) - at) as usize;
            self.source.read(packed.get_mut(from..from + count).unwrap_or_default(), place)?;
            at += count as u64;
        }
        if stored == self.unit {
            return Ok(packed);
        }
        let mut out = vec![0; self.unit as usize];
        if stored > 0 {
            let unpacked = lznt1::unpack(&packed, &mut out);
            let text = || damaged(format!("{}: a compressed file is damaged", self.source.name()));
            unpacked.ok_or_else(text)?;
        }
        Ok(out)
    }
}

impl Data for Packed<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        if offset >= self.size.min(self.written) {
            return Ok((Place::Hole, self.size.max(offset.saturating_add(1))));
        }
        let number = offset / self.unit;
        let end = ((number + 1) * self.unit).min(self.size).min(self.written);
        Ok(match self.stored(number) {
            0 => (Place::Hole, end),
            _ => (Place::Elsewhere, end),
        })
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (place, end) = self.stretch(at)?;
            let count = (end - at).min((len - done) as u64) as usize;
            let part = out.get_mut(done..done + count).unwrap_or_default();
            done += count;
            if place == Place::Hole {
                part.fill(0);
                continue;
            }
            let number = at / self.unit;
            if last.as_ref().is_none_or(|(known, _)| *known != number) {
                *last = Some((number, self.unpacked(number)?));
            }
            let bytes = last.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
            let from = bytes.get((at % self.unit) as usize..).unwrap_or_default();
            part.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(len)
    }
}
