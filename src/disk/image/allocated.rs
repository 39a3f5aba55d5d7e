//! What the top layer of an image has something of its own for.

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::layer::Layer;
use super::mapper::Mapper;
use super::{Format, Image};
use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::image::extent::{Extent, Source};

/// The parts of a disk about which the top layer of its image says something: data, or that they are
/// zero. Everything else is as in the backing file, or zero without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocated {
    /// What is allocated at once: bytes in a cluster, or in a subcluster if there are any.
    pub unit: u64,
    /// The numbers of the allocated units.
    pub units: RoaringTreemap,
}

impl Image {
    /// What the top layer allocates at once, in bytes.
    ///
    /// # Errors
    /// The top is no qcow2.
    pub fn allocation_unit(&self) -> Result<u64> {
        match self.layers.first() {
            Some(Layer::Qcow2(top)) => Ok(top.format.subcluster_size()),
            _ => {
                let text = format!("only a {} allocates clusters", Format::Qcow2);
                Err(Error::new(ErrorKind::Usage, text))
            }
        }
    }

    /// What is allocated in the top layer, by its tables.
    ///
    /// # Errors
    /// The top is no qcow2; a table can't be read or is damaged.
    pub fn allocated(&self) -> Result<Allocated> {
        let unit = self.allocation_unit()?;
        let mut units = RoaringTreemap::new();
        self.above(1, |range| {
            units.insert_range(range.start / unit..range.end.div_ceil(unit));
            Ok(())
        })?;
        Ok(Allocated { unit, units })
    }

    /// Calls `each` with every range of the disk, in bytes, whose place in the file of the top layer is
    /// that of another range, too. Clusters that are compressed don't count.
    ///
    /// # Errors
    /// The top is no qcow2; a table can't be read or is damaged; whatever `each` fails with.
    pub fn aliased(&self, mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let unit = self.allocation_unit()?;
        let mapper = || Mapper::above(Arc::clone(&self.layers), 1);
        let (mut seen, mut again) = (RoaringTreemap::new(), RoaringTreemap::new());
        self.walk(mapper(), |extent| {
            let Some(place) = place_of(extent, unit) else { return Ok(()) };
            if seen.insert_range(place.clone()) != place.end - place.start {
                // Also those that are only here: it is claimed too much rather than too little.
                again.insert_range(place);
            }
            Ok(())
        })?;
        if again.is_empty() {
            return Ok(());
        }
        self.walk(mapper(), |extent| {
            let place = place_of(extent, unit).into_iter().flatten();
            let is_again = place.into_iter().any(|number| again.contains(number));
            if is_again { each(extent.range()) } else { Ok(()) }
        })
    }
}

/// The place of an extent in the file of the top layer, in units of so many bytes.
fn place_of(extent: &Extent, unit: u64) -> Option<Range<u64>> {
    let host = match extent.source {
        Source::Data { host_offset, .. } => host_offset,
        Source::Zero { host_offset } => host_offset?,
        Source::Unallocated | Source::Compressed(_) => return None,
    };
    (extent.depth == 0).then(|| host / unit..(host + extent.len).div_ceil(unit))
}
