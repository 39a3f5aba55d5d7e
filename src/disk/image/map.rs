//! The map of a disk as `qemu-img map --output=json` shows it.

use std::sync::Arc;

use super::holes::Holes;
use super::layer::{Detail, Layer};
use super::mapper::Mapper;
use crate::base::error::Result;
use crate::disk::image::extent::{Extent, Source};
use crate::disk::io::Part;

/// A range of the disk whose bytes come from one place. The fields are those of
/// `qemu-img map --output=json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MapEntry {
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// How many layers below the top it was found.
    pub depth: u16,
    /// Whether a layer says anything about it; otherwise it reads as zeros.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether a layer has data for it.
    pub data: bool,
    /// Whether the data is compressed.
    pub compressed: bool,
    /// Where the data lies in the layer's file, in bytes, if it lies there in plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl MapEntry {
    /// Takes `next` in, if it continues this entry.
    fn absorb(&mut self, next: &Self) -> bool {
        let continues = match (self.offset, next.offset) {
            (None, None) => true,
            (Some(offset), Some(next)) => offset.checked_add(self.length) == Some(next),
            _ => false,
        };
        let alike =
            |entry: &Self| (entry.depth, entry.present, entry.zero, entry.data, entry.compressed);
        let absorbed = continues && alike(self) == alike(next);
        if absorbed {
            self.length += next.length;
        }
        absorbed
    }
}

/// Extents that are looked up at a time.
const BATCH: usize = 4096;

/// Walks over the map of a disk, in bounded memory. After an error there is nothing more.
#[derive(Debug)]
pub struct Map {
    layers: Arc<Vec<Layer>>,
    mapper: Mapper,
    /// Holes of the data of each layer, if its tables say less than its file.
    holes: Vec<Option<Holes>>,
    at: u64,
    virtual_size: u64,
    extents: Vec<Extent>,
    ready: std::collections::VecDeque<MapEntry>,
}

impl Map {
    pub(super) fn new(layers: Arc<Vec<Layer>>) -> Self {
        let ask = |layer: &Layer| match layer {
            // Of an external data file QEMU asks nothing, either.
            Layer::Qcow2(qcow2) if qcow2.format.external_data => None,
            Layer::Qcow2(qcow2) => qcow2.is_preallocated().then(Holes::default),
            Layer::Raw(_) => None,
        };
        Self {
            mapper: Mapper::new(Arc::clone(&layers), Detail::AsMapped),
            holes: layers.iter().map(ask).collect(),
            at: 0,
            virtual_size: layers.first().map_or(0, Layer::virtual_size),
            layers,
            extents: Vec::new(),
            ready: std::collections::VecDeque::new(),
        }
    }

    /// Looks up the next extents, until an entry cannot grow any more or the disk ends.
    fn fill(&mut self) -> Result<()> {
        while self.ready.len() < 2 && self.at < self.virtual_size {
            self.extents.clear();
            let rest = self.at..self.virtual_size;
            self.at = self.mapper.extents_up_to(BATCH, rest, &mut self.extents)?;
            for extent in std::mem::take(&mut self.extents) {
                self.add(extent);
            }
        }
        Ok(())
    }

    fn add(&mut self, extent: Extent) {
        let (present, zero, data, compressed, offset) = match extent.source {
            Source::Unallocated => (false, true, false, false, None),
            Source::Zero { host_offset } => (true, true, false, false, host_offset),
            Source::Data { host_offset, .. } => (true, false, true, false, Some(host_offset)),
            Source::Compressed(_) => (true, false, true, true, None),
        };
        let Extent { guest_offset: start, len: length, depth, .. } = extent;
        let entry = MapEntry { start, length, depth, present, zero, data, compressed, offset };
        let depth = usize::from(depth);
        match (self.layers.get(depth), self.holes.get_mut(depth), extent.source) {
            (Some(Layer::Qcow2(qcow2)), Some(Some(holes)), Source::Data { host_offset, .. }) => {
                let mut done = 0;
                while done < length {
                    let range = host_offset + done..host_offset + length;
                    let (end, part) = holes.part(qcow2.data.store.as_ref(), range);
                    let part_len = end - host_offset - done;
                    push(
                        &mut self.ready,
                        MapEntry {
                            start: start + done,
                            length: part_len,
                            zero: part == Part::Hole,
                            offset: Some(host_offset + done),
                            ..entry
                        },
                    );
                    done += part_len;
                }
            }
            _ => push(&mut self.ready, entry),
        }
    }
}

fn push(ready: &mut std::collections::VecDeque<MapEntry>, entry: MapEntry) {
    let absorbed = ready.back_mut().is_some_and(|last| last.absorb(&entry));
    if !absorbed {
        ready.push_back(entry);
    }
}

impl Iterator for Map {
    type Item = Result<MapEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.fill() {
            self.at = self.virtual_size;
            self.ready.clear();
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}
