//! What the top layer of an image has something of its own for.

use roaring::RoaringTreemap;

use super::layer::Layer;
use super::{Format, Image};
use crate::error::{Error, ErrorKind, Result};

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
}
