//! The walk over the tables of a qcow2 layer.

use std::ops::Range;

use qdelta_formats::qcow2::{GuestOffset, HostOffset, L1_ENTRY_SIZE, L1Entry, Mapping, Subcluster};

use super::holes::Holes;
use super::layer::{Detail, Piece};
use super::qcow2::Qcow2Layer;
use crate::base::error::{Error, Result};
use crate::disk::io::Part;

/// Whether the entry names no L2 table, aligned or not.
pub(super) fn is_empty(entry: L1Entry) -> bool {
    entry.raw_offset() == 0
}

/// Bytes of a table that are kept in memory at a time.
const WINDOW: u64 = 64 << 10;
/// L2 tables that follow each other in the file, as in an image whose metadata was preallocated,
/// are read up to so many bytes at once, if a chain is short.
const STREAM: u64 = 1 << 20;
/// All layers of a long chain together have no more of them in memory, but for a window each.
const STREAMS: u64 = 16 << 20;

/// How many bytes of L2 tables each of `layers` layers may read at once.
pub(super) fn stream_len(layers: usize) -> u64 {
    (STREAMS / (layers as u64).max(1)).clamp(WINDOW, STREAM)
}

/// A window on an L1 table.
#[derive(Debug, Default)]
pub(super) struct L1Reader {
    first: u64,
    entries: Vec<L1Entry>,
}

impl L1Reader {
    /// The numbers of the entries in the window.
    pub(super) fn range(&self) -> Range<u64> {
        self.first..self.first + self.entries.len() as u64
    }

    /// The entries in the window with their numbers.
    pub(super) fn loaded(&self) -> impl Iterator<Item = (u64, L1Entry)> + '_ {
        (self.first..).zip(self.entries.iter().copied())
    }

    /// Moves the window so that it begins with entry `index`, which must be one of the used ones.
    pub(super) fn load(&mut self, layer: &Qcow2Layer, index: u64) -> Result<()> {
        let count = layer.l1_entries_used().saturating_sub(index).min(WINDOW / L1_ENTRY_SIZE);
        let mut bytes = vec![0; (count * L1_ENTRY_SIZE) as usize];
        layer.file.read_padded(&mut bytes, layer.l1.offset.0 + index * L1_ENTRY_SIZE)?;
        self.first = index;
        self.entries.clear();
        self.entries.extend(L1Entry::read_all(&bytes));
        Ok(())
    }

    /// How many of the tables of the entries behind `index` follow `table` in the file, one after
    /// the other, as far as the window shows; at most `max`.
    fn followers(&self, index: u64, table: HostOffset, table_len: u64, max: u64) -> u64 {
        let Some(next) = index.checked_sub(self.first).map(|skip| skip as usize + 1) else {
            return 0;
        };
        let places = (1..=max).map(|number| table.0 + number * table_len);
        let entries = self.entries.iter().skip(next).zip(places);
        entries.take_while(|(entry, place)| entry.raw_offset() == *place).count() as u64
    }

    /// Entry `index`; nothing behind the used ones.
    fn get(&mut self, layer: &Qcow2Layer, index: u64) -> Result<Option<L1Entry>> {
        if index >= layer.l1_entries_used() {
            return Ok(None);
        }
        if !self.range().contains(&index) {
            self.load(layer, index)?;
        }
        Ok(self.entries.get((index - self.first) as usize).copied())
    }

    /// The L2 table that entry `index` names.
    fn table(&mut self, layer: &Qcow2Layer, index: u64) -> Result<Option<HostOffset>> {
        let Some(entry) = self.get(layer, index)? else { return Ok(None) };
        let position = HostOffset(layer.l1.offset.0 + index * L1_ENTRY_SIZE);
        let table = entry.l2_table(layer.format.cluster, position);
        table.map_err(|error| layer.wrong(error))
    }
}

/// Finds out which L2 table an L1 entry names, and nothing of what it says.
#[derive(Debug)]
pub(super) struct L2Finder<'a> {
    layer: &'a Qcow2Layer,
    l1: L1Reader,
}

impl<'a> L2Finder<'a> {
    pub(super) fn new(layer: &'a Qcow2Layer) -> Self {
        Self { layer, l1: L1Reader::default() }
    }

    /// Where the L2 table of L1 entry `index` lies, if there is one.
    pub(super) fn table(&mut self, index: u64) -> Result<Option<HostOffset>> {
        self.l1.table(self.layer, index)
    }
}

/// A part of an L2 table.
#[derive(Debug, Default)]
struct L2Slice {
    /// Where its first entry lies in the file; 0 if nothing has been read.
    host: u64,
    bytes: Vec<u8>,
}

/// Walks forward over the tables of a layer.
#[derive(Debug)]
pub(super) struct Qcow2Cursor {
    l1: L1Reader,
    /// The L1 entry that was looked up last and its L2 table: the same for many pieces.
    l2_table: Option<(u64, Option<HostOffset>)>,
    slice: L2Slice,
    /// Holes of the image file, to be asked if it has any: tables there need not be read.
    table_holes: Option<Holes>,
    detail: Detail,
    /// To be asked if it pays.
    data_holes: Option<Holes>,
    /// How many bytes of L2 tables it may read at once.
    stream: u64,
}

impl Qcow2Cursor {
    pub(super) fn new(layer: &Qcow2Layer, detail: Detail, stream: u64) -> Self {
        let ask = detail == Detail::Readable && layer.is_preallocated();
        Self {
            l1: L1Reader::default(),
            l2_table: None,
            slice: L2Slice::default(),
            table_holes: layer.file.is_sparse().then(Holes::default),
            detail,
            data_holes: ask.then(Holes::default),
            stream,
        }
    }

    /// What the layer has at `at`, and how far that goes, at most to `end`.
    pub(super) fn piece(&mut self, layer: &Qcow2Layer, at: u64, end: u64) -> Result<(u64, Piece)> {
        let place = |error: Error| error.within(format!("cannot map guest offset {at:#x}"));
        let (end, piece) = self.mapped(layer, at, end).map_err(place)?;
        Ok(self.readable(layer, at, end, piece))
    }

    /// What the tables say about `at`.
    fn mapped(&mut self, layer: &Qcow2Layer, at: u64, end: u64) -> Result<(u64, Piece)> {
        let index = at / layer.format.table_coverage();
        match self.l2_table(layer, index)? {
            None => Ok((self.end_of_empty(layer, index, end)?, Piece::Unallocated)),
            Some(table) => self.in_table(layer, table, at, end),
        }
    }

    /// The L2 table of L1 entry `index`.
    fn l2_table(&mut self, layer: &Qcow2Layer, index: u64) -> Result<Option<HostOffset>> {
        if let Some((known, table)) = self.l2_table
            && known == index
        {
            return Ok(table);
        }
        let table = self.l1.table(layer, index)?;
        if let Some(table) = table {
            layer.check_inside("L2 table", table.0, layer.format.cluster.bytes())?;
            layer.check_overlap("L2 table", table)?;
        }
        self.l2_table = Some((index, table));
        Ok(table)
    }

    /// Where the empty L1 entries from `index` on end, in bytes of the disk, at most `end`.
    fn end_of_empty(&mut self, layer: &Qcow2Layer, index: u64, end: u64) -> Result<u64> {
        let coverage = layer.format.table_coverage();
        let mut next = index + 1;
        while next * coverage < end {
            match self.l1.get(layer, next)? {
                None => return Ok(end),
                Some(entry) if is_empty(entry) => next += 1,
                Some(_) => break,
            }
        }
        Ok(end.min(next * coverage))
    }

    /// What the L2 table at `table` says about `at`, and how far that goes.
    fn in_table(
        &mut self,
        layer: &Qcow2Layer,
        table: HostOffset,
        at: u64,
        end: u64,
    ) -> Result<(u64, Piece)> {
        let cluster = layer.format.cluster;
        let index = at / cluster.bytes() % layer.format.entries_per_table();
        if let Some(skip) = self.unstored_entries(layer, table, index) {
            let run = at - cluster.offset_in_cluster(at) + skip * cluster.bytes();
            return Ok((run.min(end), Piece::Unallocated));
        }
        let entries = self.slice_from(layer, table, index)?;
        let mut decoded = Entries { layer, bytes: entries.1, host: entries.0, guest: at };
        decoded.guest -= cluster.offset_in_cluster(at);
        let in_cluster = cluster.offset_in_cluster(at);
        let first = decoded.next()?;
        let cluster_end = decoded.guest;
        match first {
            Mapping::Unallocated => {
                let run = decoded.run(end, |mapping, _| mapping == Mapping::Unallocated)?;
                Ok((run.min(end), Piece::Unallocated))
            }
            Mapping::Zero { host } => {
                let start = cluster_end - cluster.bytes();
                let run = decoded.run(end, |mapping, guest| match (mapping, host) {
                    (Mapping::Zero { host: None }, None) => true,
                    (Mapping::Zero { host: Some(next) }, Some(first)) => {
                        next.0.checked_sub(first.0) == Some(guest - start)
                    }
                    _ => false,
                })?;
                let host_offset = host.map(|host| host.0 + in_cluster);
                Ok((run.min(end), Piece::Zero { host_offset }))
            }
            Mapping::Data { host } => {
                layer.check_data(host)?;
                let start = cluster_end - cluster.bytes();
                let run = decoded.run(end, |mapping, guest| match mapping {
                    Mapping::Data { host: next } => {
                        next.0.checked_sub(host.0) == Some(guest - start)
                            && layer.check_data(next).is_ok()
                    }
                    _ => false,
                })?;
                let host_offset = host.0 + in_cluster;
                Ok((run.min(end), Piece::Data { file: layer.data.index, host_offset }))
            }
            Mapping::Compressed(descriptor) => {
                let mut compressed = layer.compressed(descriptor)?;
                compressed.offset_in_cluster = in_cluster as u32;
                Ok((cluster_end.min(end), Piece::Compressed(compressed)))
            }
            Mapping::Subclusters(map) => {
                let size = layer.format.subcluster_size();
                let index = (in_cluster / size) as u32;
                let what = map.get(index);
                let count =
                    (index..32).take_while(|&subcluster| map.get(subcluster) == what).count();
                let start = cluster_end - cluster.bytes();
                let run = start + (u64::from(index) + count as u64) * size;
                let host_offset = map.host.map(|host| host.0 + in_cluster);
                if let Some(host) = map.host {
                    layer.check_data(host)?;
                }
                let piece = match (what, host_offset) {
                    (Subcluster::Data, Some(host_offset)) => {
                        Piece::Data { file: layer.data.index, host_offset }
                    }
                    (Subcluster::Zero, host_offset) => Piece::Zero { host_offset },
                    (Subcluster::Unallocated, _) | (Subcluster::Data, None) => Piece::Unallocated,
                };
                Ok((run.min(end), piece))
            }
        }
    }

    /// How many entries of the L2 table at `table` from `index` on lie in a hole of the file: they
    /// are all unallocated. Without asking, a small sparse file whose L1 table names its holes
    /// would have terabytes of zeros read.
    fn unstored_entries(
        &mut self,
        layer: &Qcow2Layer,
        table: HostOffset,
        index: u64,
    ) -> Option<u64> {
        let holes = self.table_holes.as_mut()?;
        let entry_size = layer.format.entry_size() as u64;
        let start = table.0 + index * entry_size;
        let rest = start..table.0 + layer.format.cluster.bytes();
        let (end, part) = holes.part(layer.file.store.as_ref(), rest);
        let count = (end - start) / entry_size;
        (part == Part::Hole && count > 0).then_some(count)
    }

    /// The entries of the L2 table at `table` from `index` on, as many as are in memory, and where
    /// the first of them lies.
    fn slice_from(
        &mut self,
        layer: &Qcow2Layer,
        table: HostOffset,
        index: u64,
    ) -> Result<(u64, &[u8])> {
        let host = table.0 + index * layer.format.entry_size() as u64;
        let slice = &mut self.slice;
        let known = slice.host..slice.host + slice.bytes.len() as u64;
        if !known.contains(&host) {
            // Slices are aligned within their table, so that walking forward reads each byte once.
            let table_len = layer.format.cluster.bytes();
            let len = WINDOW.min(table_len);
            slice.host = host / len * len;
            let l1_index = self.l2_table.map_or(0, |(index, _)| index);
            let streamed = match slice.host == table.0 && table_len <= WINDOW {
                // Who looks at the first entry will probably walk on.
                true => self.l1.followers(l1_index, table, table_len, self.stream / table_len - 1),
                false => 0,
            };
            // Tables in a hole of the file are not read.
            let streamed = self.table_holes.as_mut().map_or(streamed, |holes| {
                let range = table.0..table.0 + (1 + streamed) * table_len;
                let (end, _) = holes.part(layer.file.store.as_ref(), range);
                streamed.min(((end - table.0) / table_len).saturating_sub(1))
            });
            slice.bytes.resize((len + streamed * table_len) as usize, 0);
            let read = layer.file.read_padded(&mut slice.bytes, slice.host);
            if read.is_err() {
                slice.bytes.clear();
            }
            read?;
        }
        let skip = (host - slice.host) as usize;
        let rest = slice.bytes.get(skip..).unwrap_or_default();
        // What follows in memory may be another table.
        let in_table = (table.0 + layer.format.cluster.bytes() - host) as usize;
        Ok((host, rest.get(..in_table).unwrap_or(rest)))
    }

    /// What of `piece` must be read: behind the end of the file and in its holes, nothing.
    fn readable(&mut self, layer: &Qcow2Layer, at: u64, end: u64, piece: Piece) -> (u64, Piece) {
        let Piece::Data { host_offset, .. } = piece else { return (end, piece) };
        if self.detail == Detail::AsMapped {
            return (end, piece);
        }
        let zero = Piece::Zero { host_offset: Some(host_offset) };
        let available = layer.data.len.saturating_sub(host_offset);
        if available == 0 {
            return (end, zero);
        }
        let end = end.min(at + available);
        let Some(holes) = &mut self.data_holes else { return (end, piece) };
        let range = host_offset..host_offset + (end - at);
        let (part_end, part) = holes.part(layer.data.store.as_ref(), range);
        let end = at + (part_end - host_offset);
        (end, if part == Part::Hole { zero } else { piece })
    }
}

/// Decodes entries of an L2 table one after another.
pub(super) struct Entries<'a> {
    pub(super) layer: &'a Qcow2Layer,
    pub(super) bytes: &'a [u8],
    /// Where the next entry lies in the file.
    pub(super) host: u64,
    /// Which cluster of the disk it is about.
    pub(super) guest: u64,
}

impl Entries<'_> {
    pub(super) fn next(&mut self) -> Result<Mapping> {
        let format = &self.layer.format;
        let mapping = format
            .decode(self.bytes, GuestOffset(self.guest), HostOffset(self.host))
            .map_err(|error| self.layer.wrong(error))?;
        self.bytes = self.bytes.get(format.entry_size()..).unwrap_or_default();
        self.host += format.entry_size() as u64;
        self.guest += format.cluster.bytes();
        Ok(mapping)
    }

    /// Walks on while `goes_on` likes the mapping of the next cluster, at most to `end`. Gives
    /// where the walk ended. An entry that can't be decoded ends it, too: the next one to come
    /// here reports it.
    fn run(&mut self, end: u64, goes_on: impl Fn(Mapping, u64) -> bool) -> Result<u64> {
        while self.guest < end && !self.bytes.is_empty() {
            let guest = self.guest;
            match self.next() {
                Ok(mapping) if goes_on(mapping, guest) => {}
                _ => return Ok(guest),
            }
        }
        Ok(self.guest)
    }
}
