//! A content that lies in stretches of the volume, which are all known.

use super::source::Source;
use super::{Data, Place};
use crate::base::error::Result;

/// Stretches of a content, in order and without gaps.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Where each begins in the content, and where it lies on the volume; none of a hole.
    runs: Vec<(u64, Option<u64>)>,
    len: u64,
}

impl Runs {
    /// Adds the stretch that comes next.
    pub fn push(&mut self, at: Option<u64>, len: u64) {
        let goes_on = match (self.runs.last(), at) {
            (Some((start, Some(last))), Some(at)) => last.checked_add(self.len - start) == Some(at),
            (Some((_, None)), None) => true,
            _ => false,
        };
        if !goes_on {
            self.runs.push((self.len, at));
        }
        self.len = self.len.saturating_add(len);
    }

    /// How many stretches there are.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of all stretches.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What the content is from `offset` on, and where that ends.
    pub fn at(&self, offset: u64) -> (Place, u64) {
        let behind = self.runs.partition_point(|(start, _)| *start <= offset);
        let end = self.runs.get(behind).map_or(self.len, |(start, _)| *start);
        match behind.checked_sub(1).and_then(|index| self.runs.get(index)) {
            Some((start, Some(at))) if offset < self.len => {
                (Place::At(at.saturating_add(offset - start)), end)
            }
            Some(_) if offset < self.len => (Place::Hole, end),
            _ => (Place::Hole, u64::MAX),
        }
    }
}

/// A content whose bytes lie as they are.
pub(super) struct InRuns<'a> {
    pub source: &'a Source,
    pub runs: Runs,
    pub size: u64,
    /// What is behind this byte was never written, and reads as zeros.
    pub written: u64,
}

impl Data for InRuns<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn stretch(&self, offset: u64) -> Result<(Place, u64)> {
        if offset >= self.written {
            return Ok((Place::Hole, self.size.max(offset.saturating_add(1))));
        }
        let (place, end) = self.runs.at(offset);
        Ok((place, end.min(self.written)))
    }

    fn read(&self, out: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (place, end) = self.stretch(at)?;
            let count = (end - at).min((len - done) as u64) as usize;
            let part = out.get_mut(done..done + count).unwrap_or_default();
            match place {
                Place::At(place) => self.source.read(part, place)?,
                _ => part.fill(0),
            }
            done += count;
        }
        Ok(len)
    }
}
